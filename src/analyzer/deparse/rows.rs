//! Whole rows (`NAMEDROW`, see the translation's `whole_row`): a table's row type by a cast, an anonymous row with names by
//! a subquery of one row, for ROW(...) alone names its fields f1, f2 ...

use super::{Scope, names};
use crate::analyzer::node::{Node, Value};
use crate::error::{Error, Result};

/// `pg_type.oid` of `record`.
pub(in crate::analyzer) const RECORD: u32 = 2249;
/// `pg_type.oid` of `record[]`.
pub(in crate::analyzer) const RECORD_ARRAY: u32 = 2287;

impl Scope<'_> {
    pub(super) fn named_row(&self, node: &Node) -> Result<String> {
        let values = self.items(node, "args")?;
        let row = match node.oid("row_typeid")? {
            RECORD => {
                let columns = node.list("colnames").iter().filter_map(Value::as_text).collect::<Vec<_>>();
                if columns.len() != values.len() {
                    return Err(Error::unsupported("a whole row without names of its columns"));
                }
                // A column of the alias's name would be taken for it.
                let mut alias = "whole row".to_owned();
                while columns.contains(&alias) {
                    alias.push('_');
                }
                let alias = names::quote_identifier(&alias);
                let named = values.iter().zip(&columns);
                let named = named.map(|(v, n)| format!("{v} AS {}", names::quote_identifier(n)));
                let named = named.collect::<Vec<_>>().join(", ");
                format!("(SELECT {alias} FROM (SELECT {named}) {alias})")
            }
            // COALESCE, because the parser compares two rows in sight column by column.
            ty => {
                format!("COALESCE((ROW({}))::{})", values.join(", "), names::type_name(self.facts, ty, -1)?)
            }
        };
        match node.optional_node("present") {
            None => Ok(row),
            Some(present) => Ok(format!("(CASE WHEN {} THEN {row} END)", self.expression(present)?)),
        }
    }
}
