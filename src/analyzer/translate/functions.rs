//! Functions in FROM: for each row that they read, the rows that PostgreSQL computes.

use crate::analyzer::deparse::{self, Scope};
use crate::analyzer::node::{Node, Value};
use crate::analyzer::settings::{self, Dependence};
use crate::analyzer::verify::GroupOriginals;
use crate::analyzer::volatility;
use crate::plan::{GroupForm, RemoteExpr};
use crate::row::TypeInfo;

use super::collect::{Sql, as_scalar, at_inputs, used_columns};
use super::compute::input_of;
use super::frame::Level;
use super::refusal::{Refusal, Step};
use super::stage::{Block, Stage, column_node, var_node};
use super::{Translator, check, range_table_entry, types, unknown_form};

impl Translator<'_> {
    /// The functions of entry `rtindex`, expanded: a node with the fields `functions` and `funcordinality`.
    pub(super) fn function_calls(&self, frame: &Level, rtindex: i64) -> Step<Node> {
        let entry = range_table_entry(&frame.query, rtindex)?;
        let fields = ["functions", "funcordinality"].map(|f| (f.to_owned(), entry.field(f).clone()));
        self.expand(frame, &Node { tag: entry.tag.clone(), fields: fields.to_vec() })
    }

    /// The stage's rows, each with the rows of the functions of entry `rtindex`; `optional`: once with NULLs where those
    /// give none.
    pub(super) fn with_functions(
        &mut self,
        frame: &Level,
        rtindex: i64,
        stage: Stage,
        optional: bool,
    ) -> Step<Stage> {
        let calls = stage.place(&self.function_calls(frame, rtindex)?)?;
        let (stage, calls) = self.attach(stage, &[calls])?;
        let calls = calls.into_iter().next().ok_or_else(|| unknown_form("a function in FROM"))?;
        let columns: Vec<(i64, TypeInfo)> = function_columns(&frame.query, rtindex)
            .into_iter()
            .map(|(a, ty)| (a, types::info(self.facts(), ty.oid, ty.typmod, ty.collation)))
            .collect();
        let used = used_columns(std::slice::from_ref(&calls));
        let calls = at_inputs(&calls, &used, &stage)?;
        let scope = Scope { facts: self.facts(), inputs: &input_of };
        let (mut texts, mut builtin_only) = (Vec::new(), true);
        for function in calls.nodes("functions")? {
            let call = as_scalar(function.node("funcexpr")?);
            let defined = self.check_defined(function, &call)?;
            let mut text = deparse::expression(&call, scope)
                .map_err(|e| Refusal::new("unsupported.function_in_from", e.context()))?;
            let definitions = self.column_definitions(function)?;
            if !definitions.is_empty() {
                text += &format!(" AS ({})", definitions.join(", "));
            }
            texts.push(text);
            builtin_only &= volatility::builtin_only(&call, self.facts());
            builtin_only &= match defined {
                true => call.nodes("args")?.iter().all(|a| !settings::reads_settings(self.facts(), a)),
                false => !settings::reads_settings(self.facts(), &call),
            };
        }
        let join = if optional { "LEFT JOIN" } else { "CROSS JOIN" };
        let ordinality = if calls.bool("funcordinality") { " WITH ORDINALITY" } else { "" };
        let last = columns.iter().map(|(attribute, _)| *attribute).max().unwrap_or(0);
        let names: Vec<String> = (1..=last).map(|i| format!("f{i}")).collect();
        let names = if names.is_empty() { String::new() } else { format!("({})", names.join(", ")) };
        let on = if optional { " ON true" } else { "" };
        let tail = format!(" {join} LATERAL ROWS FROM ({}){ordinality} AS f{names}{on}", texts.join(", "));
        let start = stage.columns.len();
        let (mut exprs, mut originals) = (Vec::new(), Vec::new());
        for (attribute, ty) in &columns {
            exprs.push(RemoteExpr { sql: format!("f.f{attribute}"), result: ty.clone(), builtin_only });
            originals.push(var_node(rtindex, usize::try_from(attribute - 1).unwrap_or(0), ty));
        }
        if exprs.is_empty() {
            // Nobody reads a column: by this one it is seen that the functions fail, and whose code they run.
            let result = types::boolean(self.facts());
            originals.push(column_node(0, &result));
            exprs.push(RemoteExpr { sql: "true".to_owned(), result, builtin_only });
        }
        let attributes: Vec<i64> = columns.iter().map(|(a, _)| *a).collect();
        let block = Block {
            rtindex,
            start,
            attributes: attributes.iter().filter_map(|a| i16::try_from(*a).ok()).collect(),
        };
        let originals = Some(GroupOriginals { exprs: originals, functions: Some((calls, attributes)) });
        let mut stage =
            self.group(stage, Vec::new(), GroupForm::Sets, Sql { used, exprs, tail, originals, spread: 1 })?;
        stage.blocks.push(block);
        Ok(stage)
    }

    /// Refuses calls that depend on more than the row and settings. Whether the columns that the query defines make a
    /// stable function one of its arguments alone.
    fn check_defined(&self, function: &Node, call: &Node) -> Step<bool> {
        let columns = function.list("funccoltypes").iter().filter_map(Value::as_int);
        let columns: Vec<u32> = columns.filter_map(|c| u32::try_from(c).ok()).collect();
        let called = call.oid("funcid").ok().and_then(|f| self.facts().functions.get(&f));
        let of = called.map(|f| settings::of_definition(self.facts(), f, &columns));
        if call.tag == "FUNCEXPR" && of == Some(Dependence::Nothing) {
            call.nodes("args")?.iter().try_for_each(|a| check::scalar(self.facts(), a))?;
            return Ok(true);
        }
        check::scalar(self.facts(), call)?;
        Ok(false)
    }

    /// `"name" type` of a function whose columns the query defines.
    fn column_definitions(&self, function: &Node) -> Step<Vec<String>> {
        let numbers = |f: &str| -> Vec<i64> { function.list(f).iter().filter_map(Value::as_int).collect() };
        let (oids, typmods) = (numbers("funccoltypes"), numbers("funccoltypmods"));
        let collations = numbers("funccolcollations");
        let mut definitions = Vec::with_capacity(oids.len());
        for (i, name) in function.list("funccolnames").iter().enumerate() {
            let name = name.as_text().ok_or_else(|| unknown_form("a column definition"))?;
            let oid = oids.get(i).and_then(|o| u32::try_from(*o).ok()).unwrap_or(0);
            let typmod = typmods.get(i).and_then(|t| i32::try_from(*t).ok()).unwrap_or(-1);
            let collation = collations.get(i).and_then(|c| u32::try_from(*c).ok()).unwrap_or(0);
            definitions.push(format!(
                "{} {}{}",
                deparse::quote_identifier(&name),
                deparse::type_name(self.facts(), oid, typmod)?,
                deparse::collate_clause(self.facts(), oid, collation)?
            ));
        }
        Ok(definitions)
    }
}

/// The columns of an entry that the query mentions: what the functions give besides is nobody's business. Their types
/// are those of the Vars, for the tree has no other place for them.
fn function_columns(query: &Node, rtindex: i64) -> Vec<(i64, TypeInfo)> {
    let mut found: Vec<(i64, TypeInfo)> = Vec::new();
    each_var(query, 0, &mut |var, depth| {
        let number = |field: &str| var.field(field).as_int().unwrap_or(0);
        let here = number("varno") == rtindex && number("varlevelsup") == depth && number("varattno") > 0;
        if here && !found.iter().any(|(a, _)| *a == number("varattno")) {
            let unsigned = |field: &str| u32::try_from(number(field)).unwrap_or(0);
            let ty = TypeInfo {
                oid: unsigned("vartype"),
                typmod: i32::try_from(number("vartypmod")).unwrap_or(-1),
                collation: unsigned("varcollid"),
                deterministic: false,
                class: crate::row::TypeClass::Other,
            };
            found.push((number("varattno"), ty));
        }
    });
    found.sort_by_key(|(a, _)| *a);
    found
}

/// Vars below `node` with the number of query levels between.
pub(super) fn each_var(node: &Node, depth: i64, visit: &mut impl FnMut(&Node, i64)) {
    fn value(v: &Value, depth: i64, visit: &mut impl FnMut(&Node, i64)) {
        match v {
            Value::Node(n) => {
                let depth = if n.tag == "QUERY" { depth + 1 } else { depth };
                each_var(n, depth, visit);
            }
            Value::List(items) => items.iter().for_each(|i| value(i, depth, visit)),
            _ => {}
        }
    }
    if node.tag == "VAR" {
        visit(node, depth);
    }
    node.fields.iter().for_each(|(_, v)| value(v, depth, visit));
}
