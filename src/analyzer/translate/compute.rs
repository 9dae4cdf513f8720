//! Expressions over a stage: natively where possible, else in one Evaluate below the operator that needs them.

use crate::analyzer::deparse::{self, Scope};
use crate::analyzer::node::Node;
use crate::analyzer::verify::GroupOriginals;
use crate::analyzer::{settings, volatility};
use crate::plan::expr::Expr;
use crate::plan::{GroupBatch, Rel, RemoteBatch, RemoteExpr};

use super::collect::{at_inputs, used_columns};
use super::guards::filtered;
use super::refusal::{Refusal, Step};
use super::stage::{Stage, placed_column, same};
use super::subquery::has_subplan;
use super::{Translator, check, native};

/// Expressions for PostgreSQL, with the originals that their verification compares.
#[derive(Debug, Clone, PartialEq)]
pub enum Remote {
    Rows {
        batch: RemoteBatch,
        /// One per expression. Vars have `varno` 1 and the 1-based position in the batch's inputs as `varattno`.
        originals: Vec<Node>,
    },
    Groups {
        batch: GroupBatch,
        /// `None`: the statement is not made from the query's tree; only its inputs are verified.
        originals: Option<GroupOriginals>,
    },
}

/// The input column (0-based) that a node of the originals stands for.
pub fn input_of(node: &Node) -> Option<usize> {
    placed_column(node)
}

impl Translator<'_> {
    /// One expression per placed node, over the columns of the returned stage, which keeps the input's columns (an
    /// Evaluate appends its own).
    pub(super) fn compute(&mut self, stage: Stage, nodes: &[Node]) -> Step<(Stage, Vec<Expr>)> {
        let (stage, nodes) = self.attach(stage, nodes)?;
        let width = stage.columns.len();
        let mut remote: Vec<&Node> = Vec::new();
        let mut exprs = Vec::with_capacity(nodes.len());
        for node in &nodes {
            check::scalar(self.facts(), node)?;
            if let Some(expr) = native::compile(self.facts(), node) {
                exprs.push(expr);
                continue;
            }
            let index = remote.iter().position(|r| same(r, node)).unwrap_or_else(|| {
                remote.push(node);
                remote.len() - 1
            });
            exprs.push(Expr::Column(width + index));
        }
        match remote.is_empty() {
            true => Ok((stage, exprs)),
            false => Ok((self.evaluate(stage, &remote)?, exprs)),
        }
    }

    fn evaluate(&mut self, stage: Stage, nodes: &[&Node]) -> Step<Stage> {
        let nodes: Vec<Node> = nodes.iter().map(|n| (*n).clone()).collect();
        let used = used_columns(&nodes);
        let inputs = self.remote_inputs(&stage, &used)?;
        let (mut exprs, mut columns) = (Vec::with_capacity(nodes.len()), stage.columns.clone());
        let mut originals = Vec::with_capacity(nodes.len());
        let scope = Scope { facts: self.facts(), inputs: &input_of };
        for node in &nodes {
            let node = at_inputs(node, &used, &stage)?;
            let sql = deparse::expression(&node, scope)
                .map_err(|e| Refusal::new("unsupported.expression", e.context()))?;
            // The owner's function runs under the settings of the stream table's creation, the sidecar under its own.
            let builtin_only = volatility::builtin_only(&node, self.facts())
                && !settings::reads_settings(self.facts(), &node);
            let result = self.type_of(&node)?;
            columns.push(result.clone());
            originals.push(node);
            exprs.push(RemoteExpr { sql, result, builtin_only });
        }
        let batch = RemoteBatch { inputs, exprs, owner_function: None };
        self.prove(Remote::Rows { batch: batch.clone(), originals });
        Ok(Stage { rel: Rel::Evaluate { input: Box::new(stage.rel), batch }, columns, blocks: stage.blocks })
    }

    /// Has a batch verified, once.
    pub(super) fn prove(&mut self, remote: Remote) {
        if !self.remote.contains(&remote) {
            self.remote.push(remote);
        }
    }

    /// Columns that hold the values of placed nodes; computed ones are appended to the stage.
    pub(super) fn columns_for(&mut self, stage: Stage, nodes: &[Node]) -> Step<(Stage, Vec<usize>)> {
        let (mut stage, exprs) = self.compute(stage, nodes)?;
        let mut projection: Vec<Expr> = (0..stage.columns.len()).map(Expr::Column).collect();
        let mut columns = Vec::with_capacity(exprs.len());
        for (expr, node) in exprs.into_iter().zip(nodes) {
            if let Expr::Column(column) = expr {
                columns.push(column);
                continue;
            }
            let position = projection.iter().position(|e| *e == expr).unwrap_or_else(|| {
                projection.push(expr);
                projection.len() - 1
            });
            if position >= stage.columns.len() {
                let ty = self.type_of(node)?;
                stage.columns.push(ty);
            }
            columns.push(position);
        }
        if projection.iter().any(|e| !matches!(e, Expr::Column(_))) {
            stage.rel = Rel::Project { input: Box::new(stage.rel), exprs: projection };
        }
        Ok((stage, columns))
    }

    /// Rows for which all placed conditions are true, in the order of the server as far as it can be known: those that cannot
    /// fail and those about no row first; those that run a subquery for each row last.
    pub(super) fn filter(&mut self, mut stage: Stage, conditions: &[Node]) -> Step<Stage> {
        let (mut first, mut gates, mut rest, mut late) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for node in conditions {
            check::scalar(self.facts(), node)?;
            match native::compile(self.facts(), node).filter(Expr::is_infallible) {
                Some(expr) => first.push(expr),
                None if self.is_late(node)? => late.push(node.clone()),
                None if has_subplan(node) && used_columns(std::slice::from_ref(node)).is_empty() => {
                    gates.push(node.clone());
                }
                None => rest.push(node.clone()),
            }
        }
        stage.rel = filtered(stage.rel, first);
        stage = self.by_joins(stage, gates)?;
        stage = self.one_by_one(stage, &rest)?;
        self.by_joins(stage, late)
    }

    /// Conditions with subqueries: by semi and anti joins where those decide.
    fn by_joins(&mut self, mut stage: Stage, conditions: Vec<Node>) -> Step<Stage> {
        let base = stage.clone();
        let mut other = Vec::with_capacity(conditions.len());
        for node in conditions {
            match self.semi(&base, stage, &node)? {
                Ok(reduced) => stage = reduced,
                Err(same) => {
                    stage = same;
                    other.push(node);
                }
            }
        }
        let (mut stage, exprs) = self.compute(stage, &other)?;
        stage.rel = filtered(stage.rel, exprs);
        Ok(stage)
    }
}
