//! Common table expressions that refer to rows outside of their query: each mention becomes a subquery of its own, which
//! then is correlated like any other.

use crate::analyzer::node::{Node, Value};

use super::refusal::Step;
use super::stage::rewrite;
use super::subquery::free_references;

/// `query` and all queries in it without correlated CTEs (recursive ones stay).
pub(super) fn correlated_ctes(query: &Node) -> Step<Node> {
    let mut query = query.clone();
    for number in 0..query.list("cteList").len() {
        let Some(cte) = query.list("cteList").get(number).and_then(Value::as_node) else { continue };
        let body = cte.node("ctequery")?;
        if cte.bool("cterecursive") || body.tag != "QUERY" || free_references(body)?.is_empty() {
            continue;
        }
        let (name, body) = (cte.field("ctename").clone(), body.clone());
        query = replaced(&query, 0, &name, &body)?;
    }
    let fields = query.fields.iter().map(|(name, value)| Ok((name.clone(), in_value(value)?)));
    Ok(Node { tag: query.tag.clone(), fields: fields.collect::<Step<_>>()? })
}

fn in_value(value: &Value) -> Step<Value> {
    Ok(match value {
        Value::Node(n) => Value::Node(Box::new(rewrite(n, &mut |n| match n.tag.as_str() {
            "QUERY" => correlated_ctes(n).map(Some),
            _ => Ok(None),
        })?)),
        Value::List(items) => Value::List(items.iter().map(in_value).collect::<Step<_>>()?),
        other => other.clone(),
    })
}

/// The node `depth` levels below the query that has the CTE, with its mentions replaced.
fn replaced(node: &Node, depth: i64, name: &Value, body: &Node) -> Step<Node> {
    let mut fields = Vec::with_capacity(node.fields.len());
    for (field, value) in &node.fields {
        fields.push((field.clone(), replaced_value(value, depth, name, body)?));
    }
    Ok(Node { tag: node.tag.clone(), fields })
}

fn replaced_value(value: &Value, depth: i64, name: &Value, body: &Node) -> Step<Value> {
    Ok(match value {
        Value::Node(n) => {
            let depth = if n.tag == "QUERY" { depth + 1 } else { depth };
            let mentioned = n.tag == "RANGETBLENTRY"
                && n.field("rtekind") == &Value::Int(6)
                && n.field("ctelevelsup") == &Value::Int(depth)
                && n.field("ctename") == name;
            Value::Node(Box::new(match mentioned {
                true => subquery_entry(n, shifted(body, 0, depth)),
                false => replaced(n, depth, name, body)?,
            }))
        }
        Value::List(items) => {
            Value::List(items.iter().map(|v| replaced_value(v, depth, name, body)).collect::<Step<_>>()?)
        }
        other => other.clone(),
    })
}

fn subquery_entry(entry: &Node, body: Node) -> Node {
    let mut entry = entry.clone();
    for (_, kind) in entry.fields.iter_mut().filter(|(name, _)| name == "rtekind") {
        *kind = Value::Int(1);
    }
    entry.fields.push(("subquery".to_owned(), Value::Node(Box::new(body))));
    entry
}

/// `node`, `depth` levels inside of a query that is moved `by` levels further in (`IncrementVarSublevelsUp`).
fn shifted(node: &Node, depth: i64, by: i64) -> Node {
    let fields = node.fields.iter().map(|(name, value)| {
        let levels = matches!(name.as_str(), "varlevelsup" | "agglevelsup" | "ctelevelsup");
        let value = match value {
            Value::Int(up) if levels && *up > depth => Value::Int(up + by),
            other => shifted_value(other, depth, by),
        };
        (name.clone(), value)
    });
    Node { tag: node.tag.clone(), fields: fields.collect() }
}

fn shifted_value(value: &Value, depth: i64, by: i64) -> Value {
    match value {
        Value::Node(n) => {
            let depth = if n.tag == "QUERY" { depth + 1 } else { depth };
            Value::Node(Box::new(shifted(n, depth, by)))
        }
        Value::List(items) => Value::List(items.iter().map(|v| shifted_value(v, depth, by)).collect()),
        other => other.clone(),
    }
}
