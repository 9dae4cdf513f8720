//! Window function calls that carry their window: what `winref` points to is put into the node, so that a call can be
//! moved, written and compared alone.
//!
//! The window is a node `OVER` in the field `over`: `order` (nodes `SORTITEM` with `expr`), the frame's fields, and
//! `by_position`: equal rows come in the order of their images, where that changes nothing that the query fixes.

use super::node::{Node, Value};
use crate::error::{Error, Result};

const FRAME: &[&str] = &[
    "frameOptions",
    "startOffset",
    "endOffset",
    "startInRangeFunc",
    "endInRangeFunc",
    "inRangeColl",
    "inRangeAsc",
    "inRangeNullsFirst",
];
/// Fields of an item that say how it is ordered.
const SORT: &[&str] = &["eqop", "sortop", "nulls_first"];
/// Fields of a call that are not kept: the reference itself, and what only the planner fills.
const DROPPED: &[&str] = &["winref", "over", "runCondition"];

/// Functions that ignore the frame and tell rows apart that are equal by the order: any order of those is right.
const BY_ROW: &[&str] = &["row_number", "ntile", "lag", "lead"];
/// Functions that ignore the frame and see equal rows as equal.
const BY_PEERS: &[&str] = &["rank", "dense_rank", "percent_rank", "cume_dist"];

fn odd(what: &str) -> Error {
    Error::unsupported(format!("a window has an unknown form: {what}"))
}

/// The WINDOWCLAUSE that a call refers to.
pub fn clause_of<'a>(query: &'a Node, call: &Node) -> Result<&'a Node> {
    let clauses = query.nodes("windowClause")?;
    let found = clauses.into_iter().find(|c| c.field("winref") == call.field("winref"));
    found.ok_or_else(|| odd("no clause"))
}

/// The expressions that a list of SORTGROUPCLAUSE refers to in the target list of `query`, with their clauses.
pub fn sorted_by<'a>(query: &'a Node, clauses: &'a [Value]) -> Result<Vec<(&'a Node, &'a Node)>> {
    let targets = query.nodes("targetList")?;
    let find = |clause: &'a Node| {
        let reference = clause.field("tleSortGroupRef");
        let target = targets.iter().find(|t| t.field("ressortgroupref") == reference);
        Ok((target.ok_or_else(|| odd("a reference to no column"))?.node("expr")?, clause))
    };
    clauses.iter().filter_map(Value::as_node).map(find).collect()
}

/// The call with its window inside. `by_position`: the last item of its order is `x.o`, which is left out (a call that
/// is read back), else it is decided here (`name` is the function's, if it is built in).
pub fn resolved(query: &Node, call: &Node, name: Option<&str>, read_back: bool) -> Result<Node> {
    let clause = clause_of(query, call)?;
    let mut order = Vec::new();
    for (expr, sort) in sorted_by(query, clause.list("orderClause"))? {
        let mut fields = vec![("expr".to_owned(), Value::Node(Box::new(expr.clone())))];
        fields.extend(SORT.iter().map(|f| ((*f).to_owned(), sort.field(f).clone())));
        order.push(Value::Node(Box::new(Node { tag: "SORTITEM".to_owned(), fields })));
    }
    let by_position = !read_back && ties_are_free(clause, name);
    let mut over =
        vec![("order".to_owned(), Value::List(order)), ("by_position".to_owned(), Value::Bool(by_position))];
    over.extend(FRAME.iter().map(|f| ((*f).to_owned(), clause.field(f).clone())));
    let mut fields: Vec<_> =
        call.fields.iter().filter(|(n, _)| !DROPPED.contains(&n.as_str())).cloned().collect();
    fields.push(("over".to_owned(), Value::Node(Box::new(Node { tag: "OVER".to_owned(), fields: over }))));
    Ok(Node { tag: call.tag.clone(), fields })
}

fn ties_are_free(clause: &Node, name: Option<&str>) -> bool {
    const ROWS: i64 = 0x4;
    const EXCLUDE_PEERS: i64 = 0x10000 | 0x20000;
    let options = clause.field("frameOptions").as_int().unwrap_or(0);
    match name {
        Some(name) if BY_ROW.contains(&name) => options & (0x8 | 0x800 | 0x1000 | 0x2000 | 0x4000) == 0,
        Some(name) if BY_PEERS.contains(&name) => false,
        _ => options & ROWS != 0 && options & EXCLUDE_PEERS == 0,
    }
}
