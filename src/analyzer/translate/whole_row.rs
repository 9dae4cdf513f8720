//! References to whole rows: `to_jsonb(t)`, `count(t)`, `select t`, `row_to_json(r)` over a subquery `r`.
//!
//! Such a reference becomes a node `NAMEDROW`: `args` (the columns), `colnames`, `row_typeid` (a table's row type, or
//! record) and `present`, a column that is true where the row is there: on the optional side of an outer join a row that
//! is missing is NULL, which is not a row of NULLs (`ExecEvalWholeRowVar`).

use crate::analyzer::node::{Node, Value};
use crate::plan::Rel;
use crate::plan::expr::Expr;
use crate::row::{Datum, Row, TypeInfo};

use super::frame::Level;
use super::from::entries_below;
use super::refusal::{Refusal, Step};
use super::stage::{Block, Stage, var_node};
use super::{ROW_ID, Translator, entry_name, range_table_entry, types, unknown_form};

fn refused(entry: &Node, why: &str) -> Refusal {
    Refusal::new(
        "unsupported.whole_row",
        format!("the query refers to a whole row of {}{why}", entry_name(entry)),
    )
    .hint("name the columns instead")
}

impl Translator<'_> {
    /// What a reference to the whole row of an entry of this level stands for.
    pub(super) fn whole_row(&self, frame: &Level, var: &Node) -> Step<Node> {
        let rtindex = var.int("varno")?;
        let entry = range_table_entry(&frame.query, rtindex)?;
        let columns = self.row_columns(entry)?;
        let (mut args, mut names) = (Vec::new(), Vec::new());
        for (attribute, name, ty) in columns {
            let position = usize::try_from(attribute - 1).map_err(|_| unknown_form("a column's number"))?;
            args.push(Value::Node(Box::new(var_node(rtindex, position, &ty))));
            names.push(Value::Str(name));
        }
        let present = match is_optional(&frame.query, rtindex)? {
            true => Value::Node(Box::new(self.presence(rtindex))),
            false => Value::Null,
        };
        let fields = [
            ("args", Value::List(args)),
            ("colnames", Value::List(names)),
            ("row_typeid", var.field("vartype").clone()),
            ("present", present),
        ];
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Node { tag: "NAMEDROW".to_owned(), fields })
    }

    /// `t IS [NOT] NULL`: all columns are, and the row is there or not. To the server a column that was dropped is a NULL
    /// among those of a row that it has in sight, to its NULL test it is none.
    pub(super) fn row_null_test(&self, frame: &Level, test: &Node) -> Step<Option<Node>> {
        let arg = self.expand(frame, test.node("arg")?)?;
        if arg.tag != "NAMEDROW" {
            return Ok(None);
        }
        let is_null = test.int("nulltesttype")? == 0;
        let one = |value: &Node| {
            let fields = vec![
                ("arg".to_owned(), Value::Node(Box::new(value.clone()))),
                ("nulltesttype".to_owned(), test.field("nulltesttype").clone()),
                ("argisrow".to_owned(), Value::Bool(false)),
            ];
            Value::Node(Box::new(Node { tag: "NULLTEST".to_owned(), fields }))
        };
        let both = |operator: &str, args: Vec<Value>| {
            let fields = vec![
                ("boolop".to_owned(), Value::Token(operator.to_owned())),
                ("args".to_owned(), Value::List(args)),
            ];
            Node { tag: "BOOLEXPR".to_owned(), fields }
        };
        let mut columns: Vec<Value> = arg.nodes("args")?.into_iter().map(one).collect();
        let all = match columns.pop() {
            Some(Value::Node(only)) if columns.is_empty() => *only,
            last => both("and", columns.into_iter().chain(last).collect()),
        };
        let Some(present) = arg.optional_node("present").map(one) else { return Ok(Some(all)) };
        let operator = if is_null { "or" } else { "and" };
        Ok(Some(both(operator, vec![present, Value::Node(Box::new(all))])))
    }

    /// The column (attribute 0) that says whether an entry's row is there.
    fn presence(&self, rtindex: i64) -> Node {
        let mut var = var_node(rtindex, 0, &types::boolean(self.facts()));
        var.fields.iter_mut().filter(|(n, _)| n == "varattno").for_each(|(_, v)| *v = Value::Int(0));
        var
    }

    /// Attribute numbers, names and types of an entry's columns.
    pub(super) fn row_columns(&self, entry: &Node) -> Step<Vec<(i64, String, TypeInfo)>> {
        let names = entry.optional_node("eref").map(|e| e.list("colnames")).unwrap_or_default();
        let names: Vec<String> = names.iter().filter_map(Value::as_text).collect();
        let named = |types: Vec<TypeInfo>| match types.len() == names.len() {
            true => Ok((1..).zip(&names).zip(types).map(|((a, n), ty)| (a, n.clone(), ty)).collect()),
            false => Err(unknown_form("the columns of a FROM item")),
        };
        match entry.int("rtekind")? {
            0 => {
                let relation = self.facts().relations.get(&entry.oid("relid")?);
                let relation =
                    relation.ok_or_else(|| unknown_form("a relation that is not in the catalog"))?;
                let hidden = relation.columns.iter().any(|c| c.name == ROW_ID);
                if hidden && relation.stream_table.as_ref().is_some_and(|s| s.incremental) {
                    return Err(refused(entry, ", a stream table with row numbers"));
                }
                let column =
                    |c: &crate::analyzer::facts::Column| (i64::from(c.attnum), c.name.clone(), c.ty.clone());
                Ok(relation.columns.iter().map(column).collect())
            }
            1 => {
                let targets = entry.node("subquery")?.nodes("targetList")?;
                let shown = targets.into_iter().filter(|t| !t.bool("resjunk"));
                named(shown.map(|t| self.type_of(t.node("expr")?)).collect::<Step<_>>()?)
            }
            5 | 6 => {
                let numbers =
                    |f: &str| -> Vec<i64> { entry.list(f).iter().filter_map(Value::as_int).collect() };
                let (typmods, collations) = (numbers("coltypmods"), numbers("colcollations"));
                let column = |(i, oid): (usize, i64)| {
                    let typmod = typmods.get(i).and_then(|t| i32::try_from(*t).ok()).unwrap_or(-1);
                    let collation = collations.get(i).and_then(|c| u32::try_from(*c).ok()).unwrap_or(0);
                    types::info(self.facts(), u32::try_from(oid).unwrap_or(0), typmod, collation)
                };
                named(numbers("coltypes").into_iter().enumerate().map(column).collect())
            }
            2 => Err(refused(entry, ", a join")),
            _ => Err(refused(entry, ", a function")),
        }
    }

    /// The stage of entry `rtindex` with the column that says whether a row is there, where a reference to the whole row
    /// needs it.
    pub(super) fn with_presence(&self, frame: &Level, rtindex: i64, stage: Stage) -> Step<Stage> {
        if !is_optional(&frame.query, rtindex)? || !is_read_whole(&frame.query, rtindex) {
            return Ok(stage);
        }
        let Stage { rel, mut columns, mut blocks } = stage;
        let start = columns.len();
        let mut exprs: Vec<Expr> = (0..start).map(Expr::Column).collect();
        exprs.push(Expr::Literal(Row::from_datums([Datum::Bool(true)])));
        columns.push(types::boolean(self.facts()));
        blocks.push(Block { rtindex, start, attributes: vec![0] });
        Ok(Stage { rel: Rel::Project { input: Box::new(rel), exprs }, columns, blocks })
    }
}

/// Whether an outer join of the query can put NULLs in place of the entry's row.
fn is_optional(query: &Node, rtindex: i64) -> Step<bool> {
    fn below(item: &Node, rtindex: i64) -> Step<bool> {
        if item.tag != "JOINEXPR" {
            return Ok(false);
        }
        let (left, right) = (item.node("larg")?, item.node("rarg")?);
        let (of_left, of_right) = match item.int("jointype")? {
            1 => (false, true),
            2 => (true, true),
            3 => (true, false),
            _ => (false, false),
        };
        for (side, optional) in [(left, of_left), (right, of_right)] {
            if entries_below(side)?.contains(&rtindex) {
                return Ok(optional || below(side, rtindex)?);
            }
        }
        Ok(false)
    }
    for item in query.node("jointree")?.nodes("fromlist")? {
        if below(item, rtindex)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the query, or one in it, refers to the whole row of the entry.
fn is_read_whole(query: &Node, rtindex: i64) -> bool {
    let mut found = false;
    super::functions::each_var(query, 0, &mut |var, depth| {
        let number = |field: &str| var.field(field).as_int();
        found |= number("varno") == Some(rtindex)
            && number("varlevelsup") == Some(depth)
            && number("varattno") == Some(0);
    });
    found
}
