//! Proof that the SQL given to PostgreSQL means what the user's expression means.
//!
//! Purpose: the statement that will run is analysed by the server as a temporary view, and each expression in it is
//! compared with the original, node by node. Invariant: only what is not part of the meaning is left out of the
//! comparison (positions in the text, the form in which a cast is displayed). Runs in a transaction that is rolled
//! back; it needs only the right TEMPORARY on the database, not even SELECT on a table.
//!
//! The statement is analysed under `search_path = pg_catalog, pg_temp`. Sessions that run it must have the same, and so
//! must those that print its inputs: the text of `regclass` and its like depends on it.

mod groups;
mod rows;

use tokio_postgres::GenericClient;

use super::deparse::{Inputs, collation_of, length_coercion, type_of, typmod_of};
use super::facts::Facts;
use super::load::query_of;
use super::lookup;
use super::node::{self, Node, Value};
use super::oids::FIRST_NORMAL;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{RemoteBatch, RemoteInput, RemoteWork};
pub use groups::{GroupOriginals, group_sql, verify_group};

/// The statement that evaluates a batch. Parameters: one `text[]` per input column, in order (one array of NULLs if
/// there is no input), all of the same length: the text of each value. Result: one row per element: `o` int8, counted
/// from 1, and `r` record: the expressions' values. Rows come in any order. The record becomes text outside, so that an
/// owner's function with settings of its own computes values, and the sidecar's session prints them.
pub fn evaluation_sql(batch: &RemoteBatch) -> String {
    statement(batch, |i| format!("${i}"), "")
}

/// The statement of any work of a plan.
pub fn work_sql(work: RemoteWork<'_>) -> String {
    match work {
        RemoteWork::Rows(batch) => evaluation_sql(batch),
        RemoteWork::Groups(batch) => group_sql(batch),
    }
}

/// `cast` follows the record.
fn statement(batch: &RemoteBatch, parameter: impl Fn(usize) -> String, cast: &str) -> String {
    let count = batch.inputs.len().max(1);
    let arrays: Vec<_> =
        (1..=count).map(|i| format!("pg_catalog.unnest({}::pg_catalog.text[])", parameter(i))).collect();
    let names: Vec<_> = (1..=count).map(|i| format!("c{i}")).collect();
    let casts = batch.inputs.iter().enumerate();
    let casts: Vec<_> =
        casts.map(|(i, c)| format!("(u.c{n})::{}{} as c{n}, ", c.type_name, c.collate, n = i + 1)).collect();
    let exprs: Vec<_> = batch.exprs.iter().map(|e| e.sql.as_str()).collect();
    // OFFSET 0 keeps the casts below: pulled up, they would be computed once per use.
    format!(
        "select x.o, (row({})){cast} as r from (select {}u.o from rows from ({}) with ordinality \
         as u({}, o) offset 0) x",
        exprs.join(", "),
        casts.concat(),
        arrays.join(", "),
        names.join(", ")
    )
}

const PROBE_TREE: &str = "select r.ev_action::pg_catalog.text from pg_catalog.pg_rewrite r \
    where r.ev_class operator(pg_catalog.=) 'pg_temp.pgtrickle_probe'::pg_catalog.regclass \
      and r.rulename operator(pg_catalog.=) '_RETURN'";

/// The QUERY node of `select`, as the server analyses it. Nothing is left behind.
pub(super) async fn probe<C: GenericClient>(client: &mut C, select: &str) -> Result<Node> {
    let transaction = client.transaction().await.map_err(|e| lookup::failed(e, "analyse an expression"))?;
    let tree = probe_in(&transaction, select).await;
    transaction.rollback().await.map_err(|e| lookup::failed(e, "analyse an expression"))?;
    query_of(&node::parse(&tree?)?).cloned()
}

async fn probe_in(transaction: &tokio_postgres::Transaction<'_>, select: &str) -> Result<String> {
    let set = "set local search_path = pg_catalog, pg_temp";
    transaction.batch_execute(set).await.map_err(|e| lookup::failed(e, "analyse an expression"))?;
    let create = format!("create temporary view pgtrickle_probe as {select}");
    transaction.batch_execute(&create).await.map_err(refused)?;
    let row = transaction.query_one(PROBE_TREE, &[]).await.map_err(|e| lookup::failed(e, "read a view"))?;
    Ok(row.get(0))
}

/// Why the temporary view could not be made: a missing right and a standby are for the operator, all else says that
/// the expression can't be given back.
fn refused(error: tokio_postgres::Error) -> Error {
    let state = error.code().map(|c| c.code().to_owned()).unwrap_or_default();
    let said = error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().to_owned());
    match state.as_str() {
        "42501" if said.contains("temporary") => Error::new(
            ErrorKind::Privilege,
            "expressions are checked in a temporary view, which this role can't make",
        )
        .with_sqlstate(state)
        .with_hint("grant temporary on the database to the role of the sidecar"),
        "42501" => {
            Error::unsupported(format!("the sidecar may not name everything in an expression: {said}"))
                .with_hint(
                    "grant usage on the schemas of the query's functions, operators and types to its role",
                )
        }
        "25006" => {
            Error::new(ErrorKind::ServerSetup, "the server is read-only: expressions can't be checked")
                .with_sqlstate(state)
                .with_hint("connect to the primary")
        }
        s if s.starts_with("42") || s.starts_with("22") || s.starts_with("0A") || s.starts_with("54") => {
            Error::unsupported(format!("PostgreSQL does not take an expression back: {said}"))
        }
        _ => lookup::failed(error, "analyse an expression"),
    }
}

/// Proves every expression of `batch` equal to its original (same order). `inputs` says which input column stands for
/// a node of the originals, as it did for [`super::deparse::expression`]; Vars of joins and groups are resolved before.
pub async fn verify<C: GenericClient>(
    client: &mut C,
    facts: &Facts,
    batch: &RemoteBatch,
    originals: &[&Node],
    inputs: Inputs<'_>,
) -> Result<()> {
    if originals.len() != batch.exprs.len() {
        return Err(Error::internal("a batch with another number of expressions than originals"));
    }
    // No view holds a record.
    let probed = statement(batch, |_| "null".to_owned(), "::pg_catalog.text");
    let query = probe(client, &probed).await?;
    let odd = || Error::unsupported("the check of an expression gave a tree of an unknown form");
    let tables = query.nodes("rtable")?;
    let source = tables.iter().position(|t| t.field("rtekind") == &Value::Int(1)).ok_or_else(odd)?;
    check_inputs(facts, &batch.inputs, tables[source].node("subquery")?)?;
    let targets = query.nodes("targetList")?;
    let record = targets.get(1).ok_or_else(odd)?.node("expr")?;
    let row = if record.tag == "COERCEVIAIO" { record.node("arg")? } else { return Err(odd()) };
    let again = row.nodes("args")?;
    if row.tag != "ROWEXPR" || again.len() != originals.len() {
        return Err(odd());
    }
    let comparison = Comparison { inputs, source: source as i64 + 1 };
    for ((original, again), remote) in originals.iter().zip(again).zip(&batch.exprs) {
        comparison.nodes(original, again, 0).map_err(|difference| {
            Error::unsupported(format!(
                "the expression {} could not be proven equal ({difference})",
                remote.sql
            ))
        })?;
    }
    Ok(())
}

/// A value's text must come back through its type's input function. A cast from text that somebody defined, or that
/// takes the text's bytes as the value, is only the same for the string types.
fn check_inputs(facts: &Facts, inputs: &[RemoteInput], source: &Node) -> Result<()> {
    for (target, input) in source.nodes("targetList")?.iter().zip(inputs) {
        let mut faithful = true;
        target.node("expr")?.walk(&mut |n| {
            faithful &= match n.tag.as_str() {
                "VAR" | "CONST" | "COERCEVIAIO" | "COLLATEEXPR" | "COERCETODOMAIN" => true,
                // The length of an array's elements; what it does to each of them is below it.
                "ARRAYCOERCEEXPR" | "CASETESTEXPR" => true,
                "FUNCEXPR" => n.oid("funcid").is_ok_and(|f| f < FIRST_NORMAL) || is_length(n),
                "RELABELTYPE" => n.oid("resulttype").is_ok_and(|t| reads_text(facts, t)),
                _ => false,
            };
        });
        if !faithful {
            return Err(Error::unsupported(format!(
                "a value of type {} can't be given back as text",
                input.type_name
            )));
        }
    }
    Ok(())
}

/// The type's own length coercion, which the stored value has been through before.
fn is_length(cast: &Node) -> bool {
    let arg = cast.nodes("args").ok().and_then(|args| args.first().and_then(|a| type_of(a).ok()));
    length_coercion(cast).is_some() && arg.is_some() && arg == cast.oid("funcresulttype").ok()
}

/// The type's input function takes the text as it is.
fn reads_text(facts: &Facts, ty: u32) -> bool {
    let input = facts.types.get(&ty).and_then(|t| facts.types.get(&t.base)).map(|t| t.input);
    let input = input.and_then(|f| facts.functions.get(&f));
    matches!(ty, 25 | 1042 | 1043)
        || input.is_some_and(|f| {
            f.language == "internal" && matches!(f.source.as_str(), "textin" | "varcharin" | "bpcharin")
        })
}

/// Fields that are not part of an expression's meaning.
const IGNORED: &[&str] = &[
    "location",
    "list_start",
    "list_end",
    "funcformat",
    "relabelformat",
    "coercionformat",
    "convertformat",
    "coerceformat",
    "row_format",
    // Filled by the planner, or the number of a clause that is compared itself.
    "aggno",
    "aggtransno",
    "aggpresorted",
    "runCondition",
    "winref",
];

struct Comparison<'a> {
    inputs: Inputs<'a>,
    /// The range table index of `x`.
    source: i64,
}

/// The arguments of AND or OR with nested ones of the same kind taken in, in order: the parser flattens what was
/// bracketed to the left (`makeAndExpr` in `gram.y`), which changes neither value nor order of evaluation.
fn flattened(node: &Node) -> Option<Vec<&Node>> {
    let operator = node.text("boolop").filter(|op| node.tag == "BOOLEXPR" && op != "not")?;
    let mut flat = Vec::new();
    for arg in node.nodes("args").ok()? {
        match flattened(arg) {
            Some(inner) if arg.text("boolop").as_ref() == Some(&operator) => flat.extend(inner),
            _ => flat.push(arg),
        }
    }
    Some(flat)
}

/// Where two trees differ, in words.
type Difference = String;

impl Comparison<'_> {
    /// `depth`: query levels that the node has been moved into.
    fn nodes(&self, original: &Node, again: &Node, depth: i64) -> Result<(), Difference> {
        if let Some(input) = (self.inputs)(original) {
            return match self.is_input(original, again, input, depth) {
                Ok(true) => Ok(()),
                _ => Err(format!("input column c{}", input + 1)),
            };
        }
        if original.tag == "NAMEDROW" {
            return self.whole_row(original, again);
        }
        if original.tag != again.tag || original.tag == "VAR" {
            return Err(format!("{} came back as {}", original.tag, again.tag));
        }
        if let (Some(left), Some(right)) = (flattened(original), flattened(again)) {
            if original.text("boolop") != again.text("boolop") || left.len() != right.len() {
                return Err("BOOLEXPR.args".to_owned());
            }
            return left.iter().zip(right).try_for_each(|(l, r)| self.nodes(l, r, depth));
        }
        let compared = |n: &&(String, Value)| !IGNORED.contains(&n.0.as_str());
        let names = |n: &Node| n.fields.iter().filter(compared).map(|f| f.0.clone()).collect::<Vec<_>>();
        if names(original) != names(again) {
            return Err(format!("fields of {}", original.tag));
        }
        for (name, value) in original.fields.iter().filter(compared) {
            self.values(value, again.field(name), &original.tag, name, depth)?;
        }
        Ok(())
    }

    fn values(
        &self,
        original: &Value,
        again: &Value,
        tag: &str,
        field: &str,
        depth: i64,
    ) -> Result<(), Difference> {
        match (original, again) {
            (Value::Node(original), Value::Node(again)) => self.nodes(original, again, depth),
            (Value::List(left), Value::List(right)) if left.len() == right.len() => {
                left.iter().zip(right).try_for_each(|(l, r)| self.values(l, r, tag, field, depth))
            }
            (original, again) if original == again && !matches!(original, Value::List(_)) => Ok(()),
            _ => Err(format!("{tag}.{field}")),
        }
    }

    /// The Var has the type, collation and length of what it stands for. A length that the server derives (of an
    /// aggregate, say) may be absent, so the input must then be unrestricted.
    fn is_input(&self, original: &Node, again: &Node, input: usize, depth: i64) -> Result<bool> {
        let typmod = typmod_of(again);
        Ok(again.tag == "VAR"
            && again.int("varno")? == self.source
            && again.int("varattno")? == input as i64 + 1
            && again.int("varlevelsup")? == depth
            && type_of(original)? == type_of(again)?
            && collation_of(original)? == collation_of(again)?
            && (typmod == typmod_of(original) || (typmod == -1 && original.tag != "VAR")))
    }
}
