//! The CYCLE clause of WITH RECURSIVE (`rewrite/rewriteSearchCycle.c`): each row carries the path of its cycle columns;
//! one whose own value is on the path before it is marked and not followed.
//!
//! The server's path is an array of anonymous rows, which can't be read back from text. Here it is an array of the texts
//! of those rows, for columns of which equal values have one text; and the mark is a boolean until it is shown.

use crate::analyzer::node::{Node, Value};
use crate::plan::expr::Expr;
use crate::plan::{Rel, RemoteBatch, RemoteExpr};
use crate::row::{Datum, Row, TypeClass, TypeInfo};

use super::recursion::refused;
use super::refusal::Step;
use super::stage::{Stage, same, var_node};
use super::types::BOOL;
use super::{Translator, range_table_entry, types, unknown_form};

/// `pg_type.oid` of text[].
const TEXT_ARRAY: u32 = 1009;

pub(super) struct Cycle {
    /// Columns that tell a cycle.
    columns: Vec<usize>,
    /// Shown for rows that close a cycle, and for the others.
    mark: Node,
    otherwise: Node,
    /// Of the mark.
    ty: TypeInfo,
}

/// The rows that do not close a cycle. The mark and the path are the last two columns.
pub(super) fn followed(reference: Rel, columns: &[TypeInfo]) -> Rel {
    let looped = Expr::Column(columns.len().saturating_sub(2));
    Rel::Filter { input: Box::new(reference), predicate: Expr::Not(Box::new(looped)) }
}

/// The query whose recursive term also puts out mark and path of the row that it follows.
pub(super) fn with_carried_columns(query: &Node, operation: &Node, cte: &Node, width: usize) -> Step<Node> {
    let odd =
        || refused("the recursive term under a CYCLE clause is no plain SELECT over the recursive reference");
    let right = operation.node("rarg")?;
    if right.tag != "RANGETBLREF" {
        return Err(odd());
    }
    let rtindex = right.int("rtindex")?;
    let term = range_table_entry(query, rtindex)?.node("subquery")?;
    let name = cte.field("ctename");
    let entries = term.nodes("rtable")?;
    let is_reference = |e: &&Node| e.bool("self_reference") && e.field("ctename") == name;
    let place = entries.iter().position(is_reference).ok_or_else(odd)?;
    let place = i64::try_from(place + 1).map_err(|_| odd())?;
    // The columns of joins list those that the clause adds, whether or not they are read.
    let mut read = term.clone();
    read.fields.retain(|(name, _)| name != "rtable");
    let mut added = false;
    super::functions::each_var(&read, 0, &mut |var, depth| {
        let number = |f: &str| var.field(f).as_int().unwrap_or(0);
        let own = number("varno") == place && number("varlevelsup") == depth;
        added |= own && usize::try_from(number("varattno")).is_ok_and(|a| a > width);
    });
    if added || term.optional_node("setOperations").is_some() {
        return Err(odd());
    }
    let mut term = term.clone();
    for (_, value) in term.fields.iter_mut().filter(|(name, _)| name == "targetList") {
        let Value::List(targets) = value else { return Err(odd()) };
        let shown = targets.iter().filter(|t| t.as_node().is_some_and(|t| !t.bool("resjunk"))).count();
        if shown != width {
            return Err(odd());
        }
        for (i, oid) in [BOOL, TEXT_ARRAY].into_iter().enumerate() {
            let ty = TypeInfo { oid, typmod: -1, collation: 0, deterministic: true, class: TypeClass::Other };
            let fields = vec![
                ("expr".to_owned(), Value::Node(Box::new(var_node(place, width + i, &ty)))),
                ("resjunk".to_owned(), Value::Bool(false)),
            ];
            targets.insert(width + i, Value::Node(Box::new(Node { tag: "TARGETENTRY".to_owned(), fields })));
        }
    }
    let mut query = query.clone();
    for (_, value) in query.fields.iter_mut().filter(|(name, _)| name == "rtable") {
        let index = usize::try_from(rtindex - 1).map_err(|_| odd())?;
        let Value::List(entries) = value else { return Err(odd()) };
        let Some(Value::Node(entry)) = entries.get_mut(index) else { return Err(odd()) };
        for (_, subquery) in entry.fields.iter_mut().filter(|(name, _)| name == "subquery") {
            *subquery = Value::Node(Box::new(term.clone()));
        }
    }
    Ok(query)
}

impl Translator<'_> {
    /// The CYCLE clause of a CTE with these columns.
    pub(super) fn cycle(&self, cte: &Node, columns: &[TypeInfo]) -> Step<Option<Cycle>> {
        let Some(clause) = cte.optional_node("cycle_clause") else { return Ok(None) };
        let names: Vec<String> = cte.list("ctecolnames").iter().filter_map(Value::as_text).collect();
        let mut found = Vec::new();
        for name in clause.list("cycle_col_list").iter().filter_map(Value::as_text) {
            let column = names.iter().position(|n| *n == name).filter(|c| *c < columns.len());
            let column = column.ok_or_else(|| unknown_form("a column of CYCLE"))?;
            let ty = &columns[column];
            let one_text = ty.class != TypeClass::Other && self.form_of(ty).is_some_and(|f| f.is_image());
            if !one_text {
                let name = types::type_name(self.facts(), ty.oid);
                return Err(refused(format!(
                    "a column of the CYCLE clause has the type {name}, of which equal values can have several texts"
                )));
            }
            found.push(column);
        }
        let (mark, otherwise) = (clause.node("cycle_mark_value")?, clause.node("cycle_mark_default")?);
        if same(mark, otherwise) {
            return Err(refused("both marks of the CYCLE clause are the same"));
        }
        let number = |f: &str| clause.int(f).ok().and_then(|i| i32::try_from(i).ok()).unwrap_or(-1);
        let collation = clause.oid("cycle_mark_collation")?;
        let ty =
            types::info(self.facts(), clause.oid("cycle_mark_type")?, number("cycle_mark_typmod"), collation);
        Ok(Some(Cycle { columns: found, mark: mark.clone(), otherwise: otherwise.clone(), ty }))
    }

    /// SQL over a stage's columns, for the row of the cycle columns and perhaps the path (column `path`).
    fn on_path(
        &self,
        stage: &Stage,
        cycle: &Cycle,
        path: Option<usize>,
        sql: impl Fn(&str, &str) -> Vec<(String, u32)>,
    ) -> Step<Rel> {
        let used: Vec<usize> = cycle.columns.iter().copied().chain(path).collect();
        let inputs = self.remote_inputs(stage, &used)?;
        let values: Vec<String> = (1..=cycle.columns.len()).map(|i| format!("x.c{i}")).collect();
        let row = format!("(ROW({})::pg_catalog.text COLLATE pg_catalog.\"C\")", values.join(", "));
        let place = format!("x.c{}", used.len());
        let exprs = sql(&row, &place).into_iter().map(|(sql, oid)| RemoteExpr {
            sql,
            result: types::info(self.facts(), oid, -1, 0),
            builtin_only: true,
        });
        let batch = RemoteBatch { inputs, exprs: exprs.collect(), owner_function: None };
        Ok(Rel::Evaluate { input: Box::new(stage.rel.clone()), batch })
    }

    /// The first rows with mark and path.
    pub(super) fn cycle_begun(&self, stage: Stage, cycle: &Cycle) -> Step<Stage> {
        let rel = self.on_path(&stage, cycle, None, |row, _| vec![(format!("ARRAY[{row}]"), TEXT_ARRAY)])?;
        let width = stage.columns.len();
        let mut exprs: Vec<Expr> = (0..width).map(Expr::Column).collect();
        exprs.push(Expr::Literal(Row::from_datums([Datum::Bool(false)])));
        exprs.push(Expr::Column(width));
        let mut columns = stage.columns;
        columns.push(types::boolean(self.facts()));
        columns.push(types::info(self.facts(), TEXT_ARRAY, -1, 0));
        Ok(Stage::new(Rel::Project { input: Box::new(rel), exprs }, columns))
    }

    /// Rows of the step, which have mark and path of the row that they follow, with their own.
    pub(super) fn cycle_followed(&self, stage: Stage, cycle: &Cycle) -> Step<Rel> {
        let width = stage.columns.len();
        let (mark, path) = (width - 2, width - 1);
        let rel = self.on_path(&stage, cycle, Some(path), |row, path| {
            vec![
                (format!("({row} OPERATOR(pg_catalog.=) ANY ({path}))"), BOOL),
                (format!("pg_catalog.array_append({path}, {row})"), TEXT_ARRAY),
            ]
        })?;
        let mut exprs: Vec<Expr> = (0..mark).map(Expr::Column).collect();
        exprs.extend([Expr::Column(width), Expr::Column(width + 1)]);
        Ok(Rel::Project { input: Box::new(rel), exprs })
    }

    /// The rows with the mark that the query asks for, without the path.
    pub(super) fn cycle_shown(&mut self, stage: Stage, cycle: &Cycle) -> Step<Stage> {
        let width = stage.columns.len() - 2;
        let (mut stage, marks) = self.columns_for(stage, &[cycle.mark.clone(), cycle.otherwise.clone()])?;
        let branches = vec![(Expr::Column(width), Expr::Column(marks[0]))];
        let mark = Expr::Case { branches, otherwise: Box::new(Expr::Column(marks[1])) };
        let mut exprs: Vec<Expr> = (0..width).map(Expr::Column).collect();
        exprs.push(mark);
        stage.columns.truncate(width);
        stage.columns.push(cycle.ty.clone());
        Ok(Stage::new(Rel::Project { input: Box::new(stage.rel), exprs }, stage.columns))
    }
}
