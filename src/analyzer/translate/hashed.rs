//! Equality that only the server knows (citext, jsonb, text under a nondeterministic collation) as a join key.
//!
//! The key is the hash that the type's default operator class gives: equal values have equal hashes. The condition itself
//! is then computed for the pairs whose hashes are equal.

use std::collections::BTreeSet;

use crate::analyzer::node::Node;
use crate::analyzer::{deparse, volatility};
use crate::plan::{Rel, RemoteBatch, RemoteExpr, RemoteInput};
use crate::row::TypeInfo;

use super::from::entries_of;
use super::refusal::Step;
use super::stage::{Stage, column_node};
use super::subquery::has_subplan;
use super::{Translator, types};

/// `pg_type.oid` of int8.
const INT8: u32 = 20;

impl Translator<'_> {
    /// The sides of an equality across `left` and `right` whose values can be hashed by the server.
    pub(super) fn hashed_equality(
        &self,
        node: &Node,
        left: &BTreeSet<i64>,
        right: &BTreeSet<i64>,
    ) -> Option<(Node, Node)> {
        if node.tag != "OPEXPR" || has_subplan(node) || self.equality(node, left, right).is_some() {
            return None;
        }
        let operator = self.facts().operators.get(&node.oid("opno").ok()?).filter(|o| o.is_hash_equality)?;
        let [a, b]: [&Node; 2] = node.nodes("args").ok()?.try_into().ok()?;
        let same_type = |n: &Node| {
            let ty = self.facts().types.get(&self.type_of(n).ok()?.oid)?;
            Some(ty.oid == operator.left && ty.typtype == 'b')
        };
        if same_type(a) != Some(true) || same_type(b) != Some(true) {
            return None;
        }
        let (ea, eb) = (entries_of(a), entries_of(b));
        if ea.is_empty() || eb.is_empty() {
            return None;
        }
        if ea.is_subset(left) && eb.is_subset(right) {
            Some((a.clone(), b.clone()))
        } else if eb.is_subset(left) && ea.is_subset(right) {
            Some((b.clone(), a.clone()))
        } else {
            None
        }
    }

    /// The stage with a column for the hash of each (placed) node under `collation` (0: the type's own), NULL for NULL.
    pub(super) fn with_hashes(&mut self, stage: Stage, nodes: &[(Node, u32)]) -> Step<(Stage, Vec<usize>)> {
        if nodes.is_empty() {
            return Ok((stage, Vec::new()));
        }
        let values: Vec<Node> = nodes.iter().map(|(n, _)| n.clone()).collect();
        let (mut stage, columns) = self.columns_for(stage, &values)?;
        let (mut batch, mut positions) = (RemoteBatch::default(), Vec::with_capacity(columns.len()));
        let result = types::info(self.facts(), INT8, -1, 0);
        for (&column, (_, collation)) in columns.iter().zip(nodes) {
            let ty = TypeInfo { collation: *collation, ..stage.columns[column].clone() };
            let type_name = deparse::type_name(self.facts(), ty.oid, ty.typmod)?;
            let collate = deparse::collate_clause(self.facts(), ty.oid, ty.collation)?;
            batch.inputs.push(RemoteInput { column, type_name, collate });
            let place = batch.inputs.len();
            let sql = format!(
                "CASE WHEN x.c{place} IS NOT NULL THEN pg_catalog.hash_record_extended(row(x.c{place}), 0) END"
            );
            let builtin_only = volatility::builtin_only(&column_node(0, &ty), self.facts());
            batch.exprs.push(RemoteExpr { sql, result: result.clone(), builtin_only });
            positions.push(stage.columns.len() + batch.exprs.len() - 1);
        }
        stage.columns.extend(batch.exprs.iter().map(|e| e.result.clone()));
        stage.rel = Rel::Evaluate { input: Box::new(stage.rel), batch };
        Ok((stage, positions))
    }
}
