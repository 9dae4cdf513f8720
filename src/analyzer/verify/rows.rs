//! Proof of whole rows (`NAMEDROW`): the server has taken each column of the row, in order and under its name.

use super::{Comparison, Difference};
use crate::analyzer::deparse::RECORD;
use crate::analyzer::node::{Node, Value};

fn other(again: &Node) -> Difference {
    format!("a whole row came back as {}", again.tag)
}

impl Comparison<'_> {
    pub(super) fn whole_row(&self, original: &Node, again: &Node) -> Result<(), Difference> {
        let unread = |e: crate::error::Error| e.context().to_owned();
        let row = match original.optional_node("present") {
            None => again,
            Some(present) => {
                let branches = again.nodes("args").map_err(unread)?;
                let nothing = again.optional_node("defresult").is_none_or(|n| n.bool("constisnull"));
                let [branch] = branches.as_slice() else { return Err(other(again)) };
                if again.tag != "CASEEXPR" || again.optional_node("arg").is_some() || !nothing {
                    return Err(other(again));
                }
                self.nodes(present, branch.node("expr").map_err(unread)?, 0)?;
                branch.node("result").map_err(unread)?
            }
        };
        let args = original.nodes("args").map_err(unread)?;
        let ty = original.oid("row_typeid").map_err(unread)?;
        if ty != RECORD {
            let row = match row.nodes("args").map_err(unread)?.as_slice() {
                [value] if row.tag == "COALESCEEXPR" => *value,
                _ => return Err(other(row)),
            };
            // Dropped columns are NULLs.
            let values = row.nodes("args").map_err(unread)?;
            let values: Vec<&Node> = values.into_iter().filter(|n| !n.bool("constisnull")).collect();
            if row.tag != "ROWEXPR" || row.oid("row_typeid").ok() != Some(ty) || values.len() != args.len() {
                return Err(other(row));
            }
            return args.iter().zip(values).try_for_each(|(l, r)| self.nodes(l, r, 0));
        }
        let of_scalar = row.tag == "SUBLINK" && row.field("subLinkType") == &Value::Int(4);
        let outer = row.optional_node("subselect").filter(|_| of_scalar).ok_or_else(|| other(row))?;
        let tables = outer.nodes("rtable").map_err(unread)?;
        let shown = outer.nodes("targetList").map_err(unread)?;
        let ([table], [shown]) = (tables.as_slice(), shown.as_slice()) else { return Err(other(row)) };
        let shown = shown.node("expr").map_err(unread)?;
        if shown.tag != "VAR" || shown.field("varattno") != &Value::Int(0) {
            return Err(other(row));
        }
        let targets = table.node("subquery").and_then(|q| q.nodes("targetList")).map_err(unread)?;
        let names = original.list("colnames");
        if targets.len() != args.len() || names.len() != args.len() {
            return Err(other(row));
        }
        for ((arg, target), name) in args.iter().zip(targets).zip(names) {
            if target.text("resname") != name.as_text() {
                return Err(other(row));
            }
            self.nodes(arg, target.node("expr").map_err(unread)?, 2)?;
        }
        Ok(())
    }
}
