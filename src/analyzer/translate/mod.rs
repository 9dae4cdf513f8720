//! From an analysed query tree to a relational plan.
//!
//! Purpose: translate a QUERY node and the views below it to [`Rel`], natively where a kernel is exact and through
//! [`Rel::Evaluate`] where PostgreSQL computes. Invariant: nothing of the query is dropped silently: each clause and
//! node is translated, proven irrelevant, or a [`Refusal`]. Place in the data's way: control path, after `load`, before
//! `prune` and the key derivation.

mod aggregate;
mod array;
mod attach;
mod check;
mod collect;
mod compute;
mod constants;
mod cycle;
mod equality;
mod extremes;
mod frame;
mod from;
mod functions;
mod grouping_sets;
mod guards;
mod hashed;
mod inline;
mod join;
mod kernels;
mod lateral;
mod native;
mod prune;
mod recursion;
mod refusal;
mod scalar;
mod select;
mod semi;
mod setop;
mod source;
mod stage;
mod subquery;
mod types;
mod whole_row;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::deparse::{RECORD, RECORD_ARRAY};
use super::facts::Facts;
use super::node::{Node, Value};
use crate::plan::key::KeyFacts;
use crate::plan::{Rel, ViewId};
use crate::row::TypeInfo;

pub use compute::{Remote, input_of};
use frame::{Frame, Level};
pub use prune::prune;
pub use refusal::{Refusal, Step};
use stage::{OUTER, Stage, rewrite};
use subquery::Subquery;
pub use types::info as type_info;

/// Nesting of query levels and views past this is refused.
const MAX_DEPTH: usize = 64;

/// Name of the trailing column of stream tables in row-id form; it is no column of the query.
pub const ROW_ID: &str = "__pgt_row_id";

/// The inputs of a translation; all of them are plain data.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub facts: &'a Facts,
    /// QUERY nodes of views by OID.
    pub views: &'a HashMap<u32, Node>,
    /// Expressions of generated columns.
    pub generated: &'a HashMap<(u32, i16), Node>,
    /// Owner of the defining view, if it is one.
    pub owner: Option<u32>,
    /// Unique and NOT NULL columns.
    pub keys: &'a KeyFacts,
}

/// The result: an unpruned operator tree and what was met on the way.
#[derive(Debug)]
pub struct Translated {
    pub rel: Rel,
    pub upstreams: Vec<ViewId>,
    pub notices: Vec<String>,
    /// Expressions for PostgreSQL, to be verified by re-analysis before the plan is used.
    pub remote: Vec<Remote>,
}

/// Translates the defining query.
pub fn translate(inputs: Inputs<'_>, query: &Node) -> Step<Translated> {
    let mut translator = Translator {
        inputs,
        notices: Vec::new(),
        upstreams: Vec::new(),
        remote: Vec::new(),
        subqueries: RefCell::new(Vec::new()),
        recursions: Vec::new(),
        depth: 0,
    };
    let stage = translator.query(&Frame::top(&inline::correlated_ctes(query)?))?;
    let Translator { notices, mut upstreams, remote, .. } = translator;
    upstreams.sort_unstable();
    upstreams.dedup();
    Ok(Translated { rel: stage.rel, upstreams, notices, remote })
}

struct Translator<'a> {
    inputs: Inputs<'a>,
    notices: Vec<String>,
    upstreams: Vec<ViewId>,
    remote: Vec<Remote>,
    /// The subqueries in expressions met so far; SUBPLAN nodes name them by position.
    subqueries: RefCell<Vec<Rc<Subquery>>>,
    /// Recursions around what is being translated, outermost first.
    recursions: Vec<recursion::Recursion>,
    depth: usize,
}

impl<'a> Translator<'a> {
    fn facts(&self) -> &'a Facts {
        self.inputs.facts
    }

    fn type_of(&self, node: &Node) -> Step<TypeInfo> {
        types::type_of(self.facts(), node)
    }

    fn notice(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }

    /// One query level: its output columns are those of its target list that are not junk, then, where the query
    /// refers to others around it, the values of those references (block [`OUTER`]).
    fn query(&mut self, frame: &Level) -> Step<Stage> {
        if self.depth >= MAX_DEPTH {
            return Err(Refusal::new("unsupported.depth", "the query or its views are nested too deeply"));
        }
        self.depth += 1;
        let stage = self.level(frame);
        self.depth -= 1;
        stage
    }

    fn level(&mut self, frame: &Level) -> Step<Stage> {
        let query = &frame.query;
        refuse_clauses(query)?;
        if self.depth == 1 && !query.list("sortClause").is_empty() {
            self.notice("ORDER BY has no effect: a table keeps no order; order the rows when you read them");
        }
        let entries = self.entries(query)?;
        if query.optional_node("setOperations").is_some() {
            let stage = self.set_operation(frame)?;
            return self.finish(frame, &entries, stage);
        }
        let tree = query.node("jointree")?;
        let mut conditions = Vec::new();
        if let Some(quals) = tree.optional_node("quals") {
            self.conjuncts(frame, quals, &mut conditions)?;
        }
        let stage = self.rows_of_items(frame, &tree.nodes("fromlist")?, conditions, frame.is_dependent())?;
        let mut targets = Vec::new();
        for entry in &entries {
            targets.push(stage.place(&self.expand(frame, entry.node("expr")?)?)?);
        }
        for node in frame.outer_nodes() {
            targets.push(stage.place(&node)?);
        }
        let grouped = query.bool("hasAggs")
            || !query.list("groupClause").is_empty()
            || !query.list("groupingSets").is_empty()
            || query.optional_node("havingQual").is_some();
        let (stage, targets) = match grouped {
            true => self.aggregate(frame, stage, targets)?,
            false => (stage, targets),
        };
        let (stage, targets) = self.windows(query, &entries, stage, targets)?;
        let stage = self.select(stage, &targets)?.with_outer(entries.len());
        self.finish(frame, &entries, stage)
    }

    /// `node` with join columns and group references replaced by what they stand for, so that every Var names a base
    /// entry of this level's range table.
    fn expand(&self, frame: &Level, node: &Node) -> Step<Node> {
        rewrite(node, &mut |n| match n.tag.as_str() {
            "VAR" => self.expand_var(frame, n).map(Some),
            "SUBLINK" => self.subplan(frame, n).map(Some),
            "AGGREF" if n.int("agglevelsup")? != 0 => self.outer_reference(frame, n).map(Some),
            "NULLTEST" if n.bool("argisrow") => self.row_null_test(frame, n),
            _ => Ok(None),
        })
    }

    fn expand_var(&self, frame: &Level, var: &Node) -> Step<Node> {
        if var.int("varlevelsup")? != 0 {
            return self.outer_reference(frame, var);
        }
        let (rtindex, attribute) = (var.int("varno")?, var.int("varattno")?);
        if rtindex == OUTER {
            return Ok(var.clone());
        }
        let entry = range_table_entry(&frame.query, rtindex)?;
        let alias = match entry.int("rtekind")? {
            2 => Some("joinaliasvars"),
            9 => Some("groupexprs"),
            _ => None,
        };
        if attribute == 0 {
            return self.whole_row(frame, var);
        }
        if attribute < 0 {
            return Err(Refusal::new(
                "unsupported.system_column",
                format!("the query refers to a system column of {}", entry_name(entry)),
            ));
        }
        if entry.int("rtekind")? == 6 && matches!(var.oid("vartype")?, RECORD | RECORD_ARRAY) {
            return Err(Refusal::new(
                "unsupported.recursive_query",
                "the query reads the column of SEARCH or the path of CYCLE, which are for sorting",
            ));
        }
        if let Some(field) = alias {
            let index = usize::try_from(attribute - 1).unwrap_or(usize::MAX);
            let target = entry.list(field).get(index).and_then(Value::as_node);
            let target = target.ok_or_else(|| unknown_form("a join column stands for nothing"))?;
            return self.expand(frame, target);
        }
        let keep = ["varno", "varattno", "vartype", "vartypmod", "varcollid", "varlevelsup"];
        let fields = keep.iter().map(|k| ((*k).to_owned(), var.field(k).clone())).collect();
        Ok(Node { tag: var.tag.clone(), fields })
    }
}

/// Clauses that no later step looks at.
fn refuse_clauses(query: &Node) -> Step<()> {
    if query.tag != "QUERY" || query.int("commandType")? != 1 || query.optional_node("utilityStmt").is_some()
    {
        return Err(Refusal::new("unsupported.statement", "the query is no SELECT"));
    }
    let present = |field: &str| !query.list(field).is_empty() || query.optional_node(field).is_some();
    let refusal = if query.bool("hasModifyingCTE") {
        Some(Refusal::new("unsupported.statement", "WITH contains a statement that writes"))
    } else if query.bool("hasForUpdate") || present("rowMarks") {
        Some(Refusal::new(
            "unsupported.row_locks",
            "FOR UPDATE and FOR SHARE lock rows, which a stream table cannot",
        ))
    } else {
        None
    };
    match refusal {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}

fn refused_window() -> Refusal {
    Refusal::new("unsupported.window_function", "a window function stands where only rows could be computed")
}

fn unknown_form(what: &str) -> Refusal {
    Refusal::new("unsupported.tree", format!("the server's query tree has an unknown form: {what}"))
}

/// Entry `rtindex` (1-based) of the range table.
fn range_table_entry(query: &Node, rtindex: i64) -> Step<&Node> {
    let index = usize::try_from(rtindex - 1).unwrap_or(usize::MAX);
    let entry = query.list("rtable").get(index).and_then(Value::as_node);
    entry.ok_or_else(|| unknown_form("a reference past the range table"))
}

fn entry_name(entry: &Node) -> String {
    entry.optional_node("eref").and_then(|e| e.text("aliasname")).unwrap_or_else(|| "a table".to_owned())
}
