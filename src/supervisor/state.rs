//! What stream tables hold in memory: limits, what happens beyond them, and figures for whoever asks.
//!
//! Invariant: a stream table that passed a limit has left the dataflow already; here it is suspended with the figures,
//! and those that read it are prepared anew. Figures are stored only where they changed, a few times a minute at most.

use std::collections::BTreeMap;
use std::time::Duration;

use super::engine::Engine;
use super::views::{SUSPEND_AFTER, State};
use crate::catalog::state::{self, Entry};
use crate::catalog::store::StreamTableRow;
use crate::dataflow::{Command, Exceeded, Excess, Limits, PartUsage};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;

/// How often figures are stored at most.
pub(super) const FIGURES: Duration = Duration::from_secs(30);
/// How soon those of a new stream table are.
pub(super) const SOON: Duration = Duration::from_secs(1);
/// Pairs that the joins of a stream table may make in one step, without a setting: some minutes of work.
const PAIRS: u64 = 1_000_000_000;

/// The limits of a stream table, from its row, the settings and the memory limit of the pipeline.
pub(super) fn limits(row: &StreamTableRow, memory_limit: u64) -> Limits {
    let set = |limit: Option<i64>| limit.and_then(|n| u64::try_from(n).ok());
    Limits {
        bytes: set(row.state_limit_mb).map_or(memory_limit / 2, |mb| mb.saturating_mul(1 << 20)),
        pairs: set(row.join_limit_rows).unwrap_or(PAIRS),
    }
}

/// What was stored last.
#[derive(Default)]
pub(super) struct Figures {
    stored: Option<BTreeMap<(ViewId, i32), Entry>>,
}

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1_048_576.0)
}

/// The line of the plan that a part belongs to, and what it is.
fn described(part: &PartUsage, operators: &[String]) -> String {
    let operator = operators.get(part.operator).map_or("an operator", String::as_str);
    format!("{operator}: {} ({} rows, {})", part.role, part.usage.rows, mb(part.usage.bytes))
}

fn told(exceeded: &Exceeded, operators: &[String], name: &str) -> Error {
    let own = exceeded.usage.own();
    let largest = exceeded.usage.parts.iter().filter(|p| !p.shared).max_by_key(|p| p.usage.bytes);
    let largest = largest.map(|p| format!("; most of it is {}", described(p, operators))).unwrap_or_default();
    let again = format!("then select pgtrickle.resume_stream_table('{name}')");
    let (context, sqlstate, hint) = match exceeded.excess {
        Excess::State { limit } => (
            format!(
                "its state grew to {} in {} rows, the limit is {}{largest}",
                mb(own.bytes),
                own.rows,
                mb(limit)
            ),
            "54000",
            format!(
                "give the query fewer rows to keep, or raise the limit with pgtrickle.set_state_limit, {again}"
            ),
        ),
        Excess::Pairs { limit } => (
            format!(
                "its joins made more than {limit} rows in one step; its state took {}{largest}",
                mb(own.bytes)
            ),
            "54000",
            format!(
                "a join condition is missing or matches too much; or raise the setting join_limit_rows, {again}"
            ),
        ),
        Excess::Total { held, limit } => (
            format!(
                "all stream tables together needed {}, the memory limit is {}; this one held most: {} in {} rows{largest}",
                mb(held),
                mb(limit),
                mb(own.bytes),
                own.rows
            ),
            "53200",
            format!("raise --memory-limit, or give the query fewer rows to keep, {again}"),
        ),
    };
    Error::new(ErrorKind::Memory, context).with_sqlstate(sqlstate).with_hint(hint)
}

impl Engine {
    /// Suspends stream tables that the dataflow had to drop.
    pub(super) async fn suspend_exceeded(&mut self, exceeded: Vec<Exceeded>) -> Result<()> {
        for exceeded in exceeded {
            let id = exceeded.view;
            let operators = self.views.installed(id).map(|i| i.operators.clone()).unwrap_or_default();
            let Some(view) = self.views.0.get_mut(&id) else { continue };
            let error = told(&exceeded, &operators, &view.row.qualified());
            // Trying again would only fill the memory again.
            view.row.errors = SUSPEND_AFTER;
            self.take_out(id, error, self.complete_until()).await?;
        }
        Ok(())
    }

    /// The limits of a stream table may have been changed.
    pub(super) fn follow_limits(&mut self, id: ViewId, before: Limits) -> Result<()> {
        let Some(view) = self.views.0.get(&id) else { return Ok(()) };
        let limits = limits(&view.row, self.options.memory_limit);
        if limits != before && matches!(view.state, State::Active(_) | State::Installing { .. }) {
            self.dataflow.send(Command::SetLimits { view: id, limits })?;
        }
        Ok(())
    }

    /// Stores what every stream table holds, as far as it has changed.
    pub(super) async fn store_figures(&mut self) -> Result<()> {
        let mut now = BTreeMap::new();
        for usage in self.dataflow.usage() {
            let Some(installed) = self.views.installed(usage.view) else { continue };
            let mut parts = usage.parts;
            parts.sort_by_key(|p| (p.operator, p.role));
            for (position, part) in (0..).zip(parts) {
                let entry = Entry {
                    operator: installed.operators.get(part.operator).cloned().unwrap_or_default(),
                    part: part.role.to_owned(),
                    rows: i64::try_from(part.usage.rows).unwrap_or(i64::MAX),
                    bytes: i64::try_from(part.usage.bytes).unwrap_or(i64::MAX),
                    shared: part.shared,
                };
                now.insert((usage.view, position), entry);
            }
        }
        let before = self.watched.figures.stored.as_ref();
        if before != Some(&now) {
            state::store(&self.control, &self.options.pipeline, before, &now).await?;
            self.watched.figures.stored = Some(now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataflow::{Usage, ViewUsage};

    #[test]
    fn a_stream_table_that_is_suspended_for_its_state_is_told_the_figures_and_the_way_out() {
        let part = |operator, role, shared, bytes| PartUsage {
            operator,
            role,
            shared,
            usage: Usage { rows: 7, bytes },
        };
        let parts = vec![part(0, "answer", false, 3 << 20), part(1, "rows", true, 9 << 20)];
        let usage = ViewUsage { view: 1, parts };
        let of = |excess| {
            told(&Exceeded { view: 1, excess, usage: usage.clone() }, &["CrossJoin".to_owned()], "a.b")
        };
        let state = of(Excess::State { limit: 1 << 20 });
        assert_eq!(
            state.context(),
            "its state grew to 3.0 MB in 7 rows, the limit is 1.0 MB; most of it is CrossJoin: answer (7 rows, 3.0 MB)"
        );
        assert_eq!(state.sqlstate(), Some("54000"));
        assert!(state.hint().unwrap().contains("resume_stream_table('a.b')"));
        assert_eq!(of(Excess::Pairs { limit: 9 }).sqlstate(), Some("54000"));
        assert_eq!(of(Excess::Total { held: 9, limit: 8 }).sqlstate(), Some("53200"));
    }
}
