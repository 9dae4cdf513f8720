//! Statements over groups of rows, and their proof.
//!
//! What is compared: every result expression with its original; the window of each call, which must be partitioned by
//! the group alone; the functions of a lateral item; and that nothing else is in the statement.

use tokio_postgres::GenericClient;

use super::{Comparison, Difference, check_inputs, probe};
use crate::analyzer::deparse::Inputs;
use crate::analyzer::facts::Facts;
use crate::analyzer::node::{Node, Value};
use crate::analyzer::window;
use crate::error::{Error, Result};
use crate::plan::{GroupBatch, GroupForm};

/// What a batch stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupOriginals {
    /// One per expression; windows are resolved ([`window::resolved`]).
    pub exprs: Vec<Node>,
    /// The range table entry of the functions in the lateral item; the expressions are then its columns (attnums).
    pub functions: Option<(Node, Vec<i64>)>,
}

/// The statement that computes a batch. Parameters: `text[]`s of one length: number of the group, position in it, then
/// one per input. Result: `o` int8, the number of the group, and `r` record: the results, behind the
/// row's position where the answer belongs to rows.
pub fn group_sql(batch: &GroupBatch) -> String {
    statement(batch, |i| format!("${i}"), "")
}

/// `cast` follows the record.
fn statement(batch: &GroupBatch, parameter: impl Fn(usize) -> String, cast: &str) -> String {
    let count = batch.inputs.len() + 2;
    let arrays: Vec<_> =
        (1..=count).map(|i| format!("pg_catalog.unnest({}::pg_catalog.text[])", parameter(i))).collect();
    let mut names = vec!["g".to_owned(), "o".to_owned()];
    names.extend((1..=batch.inputs.len()).map(|i| format!("c{i}")));
    let casts: String = (batch.inputs.iter().enumerate())
        .map(|(i, c)| format!("(u.c{n})::{}{} as c{n}, ", c.type_name, c.collate, n = i + 1))
        .collect();
    let (group, position) = ("(u.g)::pg_catalog.int8", "(u.o)::pg_catalog.int8");
    // OFFSET 0 keeps the casts and the order below.
    let source = format!(
        "select {casts}{group} as g, {position} as o from rows from ({}) as u({}) order by {group}, {position} offset 0",
        arrays.join(", "),
        names.join(", ")
    );
    let mut exprs: Vec<&str> = batch.exprs.iter().map(|e| e.sql.as_str()).collect();
    if batch.form == GroupForm::Windows {
        exprs.insert(0, "x.o");
    }
    let number = if batch.form == GroupForm::Global { "0::pg_catalog.int8" } else { "x.g" };
    let by = if batch.form == GroupForm::Aggregates { " group by x.g" } else { "" };
    format!(
        "select {number} as o, (row({})){cast} as r from ({source}) x{}{by}",
        exprs.join(", "),
        batch.tail
    )
}

fn odd() -> Error {
    Error::unsupported("the check of a group's expressions gave a tree of an unknown form")
}

/// Proves `batch` equal to what it stands for, as [`super::verify`] does for expressions over single rows. Without
/// originals only the inputs are looked at.
pub async fn verify_group<C: GenericClient>(
    client: &mut C,
    facts: &Facts,
    batch: &GroupBatch,
    originals: Option<&GroupOriginals>,
    inputs: Inputs<'_>,
) -> Result<()> {
    if originals.is_some_and(|o| o.exprs.len() != batch.exprs.len()) {
        return Err(Error::internal("a batch with another number of expressions than originals"));
    }
    let query = probe(client, &statement(batch, |_| "null".to_owned(), "::pg_catalog.text")).await?;
    let tables = query.nodes("rtable")?;
    let source = tables.iter().position(|t| t.field("rtekind") == &Value::Int(1)).ok_or_else(odd)?;
    check_inputs(facts, &batch.inputs, tables[source].node("subquery")?)?;
    let Some(originals) = originals else { return Ok(()) };
    let source = source as i64 + 1;
    let targets = query.nodes("targetList")?;
    let record = targets.get(1).ok_or_else(odd)?.node("expr")?;
    let row = if record.tag == "COERCEVIAIO" { record.node("arg")? } else { return Err(odd()) };
    if row.tag != "ROWEXPR" {
        return Err(odd());
    }
    let mut again = row.nodes("args")?;
    if batch.form == GroupForm::Windows {
        let first = if again.is_empty() { return Err(odd()) } else { again.remove(0) };
        if !is_column(first, source, batch.inputs.len() + 2) {
            return Err(odd());
        }
    }
    if again.len() != originals.exprs.len() {
        return Err(odd());
    }
    let comparison = Comparison { inputs, source };
    let failed = |sql: &str, difference: Difference| {
        Error::unsupported(format!("the expression {sql} could not be proven equal ({difference})"))
    };
    if let Some((entry, columns)) = &originals.functions {
        let place = tables.iter().position(|t| t.field("rtekind") == &Value::Int(3)).ok_or_else(odd)?;
        for field in ["functions", "funcordinality"] {
            let same =
                comparison.values(entry.field(field), tables[place].field(field), "RANGETBLENTRY", field, 0);
            same.map_err(|d| failed(&batch.tail, d))?;
        }
        for ((column, again), original) in columns.iter().zip(again).zip(&originals.exprs) {
            let ty = |n: &Node| (n.field("vartype").clone(), n.field("varcollid").clone());
            let here = again.tag == "VAR"
                && again.int("varno")? == place as i64 + 1
                && again.int("varattno")? == *column
                && ty(again) == ty(original);
            if !here {
                return Err(failed(&batch.tail, format!("column {column}")));
            }
        }
        return Ok(());
    }
    for ((original, again), remote) in originals.exprs.iter().zip(again).zip(&batch.exprs) {
        let read = resolve_windows(&query, again, source, batch.inputs.len(), original)?;
        comparison.nodes(original, &read, 0).map_err(|d| failed(&remote.sql, d))?;
    }
    Ok(())
}

fn is_column(node: &Node, source: i64, attribute: usize) -> bool {
    node.tag == "VAR"
        && node.field("varno") == &Value::Int(source)
        && node.field("varattno") == &Value::Int(attribute as i64)
        && node.field("varlevelsup") == &Value::Int(0)
}

/// A window call read back, in the form of its original. (Only whole calls are sent, never expressions over them.)
fn resolve_windows(query: &Node, again: &Node, source: i64, width: usize, original: &Node) -> Result<Node> {
    if again.tag != "WINDOWFUNC" {
        return Ok(again.clone());
    }
    let partition = window::sorted_by(query, window::clause_of(query, again)?.list("partitionClause"))?;
    match partition.as_slice() {
        [(expr, _)] if is_column(expr, source, width + 1) => {}
        _ => return Err(odd()),
    }
    let by_position = original.optional_node("over").is_some_and(|o| o.bool("by_position"));
    let mut read = window::resolved(query, again, None, true)?;
    for (_, over) in read.fields.iter_mut().filter(|(n, _)| n == "over") {
        let Value::Node(over) = over else { return Err(odd()) };
        for (name, value) in &mut over.fields {
            match (name.as_str(), value) {
                ("order", Value::List(items)) if by_position => {
                    let last = items.pop();
                    let expr = last.as_ref().and_then(Value::as_node).and_then(|i| i.optional_node("expr"));
                    if !expr.is_some_and(|e| is_column(e, source, width + 2)) {
                        return Err(odd());
                    }
                }
                ("by_position", value) => *value = Value::Bool(by_position),
                _ => {}
            }
        }
    }
    Ok(read)
}
