//! Subqueries in expressions (`SUBLINK`): what they refer to outside, and the SUBPLAN node that stands for them.
//!
//! A SUBPLAN lists the outer expressions that the subquery reads as `args`, so that the steps between the expression
//! and its evaluation (grouping, placing) replace them as they do all others. `attach` and `semi` then turn it into joins.

use std::rc::Rc;

use crate::analyzer::facts::Facts;
use crate::analyzer::node::{Node, Value};
use crate::plan::Expr;
use crate::row::{Datum, TypeInfo};

use super::frame::{Frame, Level, Outer};
use super::refusal::{Refusal, Step};
use super::stage::{OUTER, Stage, rewrite, same, var_node, with_fields};
use super::{Translator, array, native, types, unknown_form};

/// `SubLinkType` (`nodes/primnodes.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Exists,
    All,
    Any,
    /// `(a, b) = (select ...)`.
    Row,
    Scalar,
    /// `ARRAY(select ...)`.
    Array,
}

/// A subquery of an expression.
#[derive(Debug)]
pub(super) struct Subquery {
    /// The level whose expression it is in.
    pub frame: Level,
    pub query: Node,
    pub kind: Kind,
    /// What it refers to, over the entries of `frame`.
    pub references: Vec<Node>,
}

/// A SUBPLAN node taken apart; `test` and `args` are expressions over the stage that it is evaluated for.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub subquery: Rc<Subquery>,
    pub test: Option<Node>,
    pub args: Vec<Node>,
}

pub(super) fn has_subplan(node: &Node) -> bool {
    let mut found = false;
    node.walk(&mut |n| found |= n.tag == "SUBPLAN");
    found
}

/// Result type of a SUBLINK node.
pub(super) fn type_of(facts: &Facts, node: &Node) -> Step<TypeInfo> {
    match node.int("subLinkType")? {
        4 => {
            let targets = node.node("subselect")?.nodes("targetList")?;
            let first = targets.into_iter().find(|t| !t.bool("resjunk"));
            types::type_of(facts, first.ok_or_else(|| unknown_form("a subquery"))?.node("expr")?)
        }
        6 => {
            let targets = node.node("subselect")?.nodes("targetList")?;
            let first = targets.into_iter().find(|t| !t.bool("resjunk"));
            let element =
                types::type_of(facts, first.ok_or_else(|| unknown_form("a subquery"))?.node("expr")?)?;
            array::array_type(facts, &element)
        }
        _ => Ok(types::boolean(facts)),
    }
}

/// References of `query` to levels around it, as they are written in the level directly around it.
pub(super) fn free_references(query: &Node) -> Step<Vec<Node>> {
    let mut free = Vec::new();
    collect(query, 0, &mut free)?;
    Ok(free)
}

fn collect(node: &Node, depth: i64, free: &mut Vec<Node>) -> Step<()> {
    let level = match node.tag.as_str() {
        "VAR" => Some("varlevelsup"),
        "AGGREF" => Some("agglevelsup"),
        _ => None,
    };
    if let Some(field) = level
        && node.int(field)? >= depth
    {
        let node = lowered(node, depth)?;
        if !free.iter().any(|f| same(f, &node)) {
            free.push(node);
        }
        return Ok(());
    }
    let depth = if node.tag == "QUERY" { depth + 1 } else { depth };
    node.fields.iter().try_for_each(|(_, value)| collect_value(value, depth, free))
}

fn collect_value(value: &Value, depth: i64, free: &mut Vec<Node>) -> Step<()> {
    match value {
        Value::Node(n) => collect(n, depth, free),
        Value::List(items) => items.iter().try_for_each(|v| collect_value(v, depth, free)),
        _ => Ok(()),
    }
}

/// `node` as it would be written `by` levels further out.
fn lowered(node: &Node, by: i64) -> Step<Node> {
    rewrite(node, &mut |n| {
        let field = match n.tag.as_str() {
            "VAR" => "varlevelsup",
            "AGGREF" => "agglevelsup",
            "SUBLINK" => {
                return Err(Refusal::new(
                    "unsupported.outer_aggregate",
                    "an aggregate of an outer query level contains a subquery",
                ));
            }
            _ => return Ok(None),
        };
        let lower = with_fields(n, &[(field, n.int(field)? - by)]);
        if n.tag == "VAR" {
            return Ok(Some(lower));
        }
        let mut copy = lower;
        for (_, value) in &mut copy.fields {
            lower_value(value, by)?;
        }
        Ok(Some(copy))
    })
}

fn lower_value(value: &mut Value, by: i64) -> Step<()> {
    match value {
        Value::Node(n) => **n = lowered(n, by)?,
        Value::List(items) => items.iter_mut().try_for_each(|v| lower_value(v, by))?,
        _ => {}
    }
    Ok(())
}

/// EXISTS asks for rows only: what does not decide whether there is one goes away (`simplify_EXISTS_query`).
fn simplified(facts: &Facts, query: &Node) -> Node {
    let empty = |field: &str| query.list(field).is_empty() && query.optional_node(field).is_none();
    let grouped = query.bool("hasAggs") || !empty("groupingSets") || !empty("havingQual");
    if grouped || !empty("setOperations") || query.bool("hasTargetSRFs") || !empty("limitOffset") {
        return query.clone();
    }
    let limited = query.optional_node("limitCount").is_some_and(|n| {
        let value = native::compile(facts, n);
        !matches!(value, Some(Expr::Literal(row)) if matches!(row.get(0), Datum::Null | Datum::Int(1..)))
    });
    if limited {
        return query.clone();
    }
    const DROPPED: &[&str] = &[
        "targetList",
        "sortClause",
        "distinctClause",
        "limitCount",
        "groupClause",
        "windowClause",
        "hasWindowFuncs",
        "hasDistinctOn",
    ];
    let mut copy = query.clone();
    for (name, value) in &mut copy.fields {
        if DROPPED.contains(&name.as_str()) {
            *value = Value::Null;
        }
    }
    copy
}

impl Translator<'_> {
    /// What a query at a level below `frame` refers to there, expanded.
    pub(super) fn references(&self, frame: &Level, query: &Node) -> Step<Vec<Node>> {
        let mut references: Vec<Node> = Vec::new();
        for node in free_references(query)? {
            let node = self.expand(frame, &node)?;
            if !references.iter().any(|r| same(r, &node)) {
                references.push(node);
            }
        }
        Ok(references)
    }

    /// A reference of `frame`'s query to a level around it.
    pub(super) fn outer_reference(&self, frame: &Level, node: &Node) -> Step<Node> {
        let refusal = || {
            Refusal::new(
                "unsupported.lateral",
                "a subquery refers to a table outside of it from where that is not followed",
            )
        };
        let (parent, outer) = frame.parent.as_ref().zip(frame.outer.as_ref()).ok_or_else(refusal)?;
        let expanded = self.expand(parent, &lowered(node, 1)?)?;
        let index = outer.nodes.iter().position(|n| same(n, &expanded)).ok_or_else(refusal)?;
        Ok(var_node(OUTER, index, &outer.types[index]))
    }

    /// The SUBPLAN node for a SUBLINK of `frame`'s query.
    pub(super) fn subplan(&self, frame: &Level, node: &Node) -> Step<Node> {
        let ty = type_of(self.facts(), node)?;
        let kind = match node.int("subLinkType")? {
            0 => Kind::Exists,
            1 => Kind::All,
            2 => Kind::Any,
            3 => Kind::Row,
            4 => Kind::Scalar,
            6 => Kind::Array,
            _ => return Err(unknown_form("a kind of subquery")),
        };
        let query = node.node("subselect")?;
        let query = match kind {
            Kind::Exists => simplified(self.facts(), query),
            Kind::Array => array::with_sort_columns(query),
            _ => query.clone(),
        };
        let references = self.references(frame, &query)?;
        let test = match node.optional_node("testexpr") {
            Some(test) => Value::Node(Box::new(self.expand(frame, test)?)),
            None => Value::Null,
        };
        let known =
            |s: &Rc<Subquery>| Rc::ptr_eq(&s.frame, frame) && s.kind == kind && same(&s.query, &query);
        let args = references.iter().cloned().map(|n| Value::Node(Box::new(n))).collect();
        let mut subqueries = self.subqueries.borrow_mut();
        let index = subqueries.iter().position(known).unwrap_or_else(|| {
            let frame = frame.clone();
            subqueries.push(Rc::new(Subquery { frame, query, kind, references }));
            subqueries.len() - 1
        });
        let int = |i: i64| Value::Int(i);
        let fields = [
            ("plan", int(i64::try_from(index).unwrap_or(i64::MAX))),
            ("testexpr", test),
            ("args", Value::List(args)),
            ("resulttype", int(i64::from(ty.oid))),
            ("resulttypmod", int(i64::from(ty.typmod))),
            ("resultcollid", int(i64::from(ty.collation))),
        ];
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Node { tag: "SUBPLAN".to_owned(), fields })
    }

    pub(super) fn call_of(&self, subplan: &Node) -> Step<Call> {
        let index = usize::try_from(subplan.int("plan")?).unwrap_or(usize::MAX);
        let subquery = self.subqueries.borrow().get(index).cloned();
        let subquery = subquery.ok_or_else(|| unknown_form("a subquery without a number"))?;
        let args = subplan.nodes("args")?.into_iter().cloned().collect();
        Ok(Call { subquery, test: subplan.optional_node("testexpr").cloned(), args })
    }

    /// The rows of the subquery for all rows of `from` at once: its columns, then the values of `args` and `more` (both
    /// over `from`) that they belong to.
    pub(super) fn answer(&mut self, from: &Stage, call: &Call, more: &[Node]) -> Step<Stage> {
        let Subquery { frame, query, references, .. } = &*call.subquery;
        let args: Vec<Node> = call.args.iter().chain(more).cloned().collect();
        if args.is_empty() {
            return self.query(&Frame::below(frame, query, None));
        }
        let domain = self.domain(from, &args)?;
        let nodes = references.iter().chain(more).cloned().collect();
        let outer = Outer { nodes, types: domain.columns.clone(), domain: Some(domain) };
        self.query(&Frame::below(frame, query, Some(outer)))
    }
}
