//! What the engine of a pipeline has done since the process started: counters that it raises itself.
//!
//! Invariant: counters only grow, and are lost with the process (Prometheus knows that); nothing is read back by the engine.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::metrics::escaped;

type Labels = Vec<(String, String)>;

/// 1 ms to 33 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// The families of all pipelines of a process. Clones share their numbers.
#[derive(Clone)]
pub(super) struct Families {
    lease: Family<Labels, Gauge>,
    transactions: Family<Labels, Counter>,
    changes: Family<Labels, Counter>,
    reconnects: Family<Labels, Counter>,
    applies: Family<Labels, Histogram, fn() -> Histogram>,
    rows: Family<Labels, Counter>,
    refreshes: Family<Labels, Counter>,
}

impl Default for Families {
    fn default() -> Self {
        Families {
            lease: Family::default(),
            transactions: Family::default(),
            changes: Family::default(),
            reconnects: Family::default(),
            applies: Family::new_with_constructor(durations),
            rows: Family::default(),
            refreshes: Family::default(),
        }
    }
}

impl Families {
    pub(super) fn register(&self, registry: &mut Registry) {
        let all = self.clone();
        registry.register("lease_held", "1 while this process serves the pipeline", all.lease);
        registry.register(
            "transactions",
            "Transactions that were decoded from the slot and changed a source",
            all.transactions,
        );
        registry.register("decoded_changes", "Changes in those transactions", all.changes);
        registry.register(
            "replication_reconnects",
            "Lost streams that were resumed, and lives of the pipeline that ended and were started again",
            all.reconnects,
        );
        registry.register(
            "apply_duration_seconds",
            "Time of the transactions that write stream tables",
            all.applies,
        );
        registry.register("stream_table_rows", "Rows written to a stream table", all.rows);
        registry.register(
            "stream_table_refreshes",
            "Recomputations and reconciles of a stream table",
            all.refreshes,
        );
    }
}

/// How a life of the pipeline went on after the stream was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// Memory was still right.
    Resumed,
    /// Everything was made anew.
    Restarted,
}

/// The counters of one pipeline.
#[derive(Clone, Default)]
pub struct Counters {
    base: Labels,
    families: Families,
    /// Stream tables that have series.
    named: Arc<Mutex<BTreeSet<String>>>,
}

impl Counters {
    /// Counters with `base` as their labels; they are there with 0 from now on.
    pub(super) fn new(families: Families, base: Labels) -> Counters {
        let counters = Counters { base, families, named: Arc::default() };
        drop(counters.families.lease.get_or_create(&counters.base));
        drop(counters.families.transactions.get_or_create(&counters.base));
        drop(counters.families.changes.get_or_create(&counters.base));
        drop(counters.families.applies.get_or_create(&counters.base));
        for outcome in ["resumed", "restarted"] {
            drop(counters.families.reconnects.get_or_create(&counters.with(&[("outcome", outcome)])));
        }
        counters
    }

    fn with(&self, more: &[(&str, &str)]) -> Labels {
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), escaped(value)));
        self.base.iter().cloned().chain(more).collect()
    }

    /// Whether this process serves the pipeline.
    pub fn lease(&self, held: bool) {
        self.families.lease.get_or_create(&self.base).set(i64::from(held));
    }

    /// A transaction of the slot that changed a source.
    pub fn transaction(&self, changes: usize) {
        self.families.transactions.get_or_create(&self.base).inc();
        self.families.changes.get_or_create(&self.base).inc_by(changes as u64);
    }

    pub fn reconnect(&self, how: Reconnect) {
        let outcome = match how {
            Reconnect::Resumed => "resumed",
            Reconnect::Restarted => "restarted",
        };
        self.families.reconnects.get_or_create(&self.with(&[("outcome", outcome)])).inc();
    }

    /// An apply has committed.
    pub fn applied(&self, took: Duration) {
        self.families.applies.get_or_create(&self.base).observe(took.as_secs_f64());
    }

    /// Rows that were inserted, updated and deleted in a stream table.
    pub fn rows(&self, stream_table: &str, written: [i64; 3]) {
        self.name(stream_table);
        for (operation, rows) in ["insert", "update", "delete"].into_iter().zip(written) {
            let labels = self.with(&[("stream_table", stream_table), ("operation", operation)]);
            self.families.rows.get_or_create(&labels).inc_by(u64::try_from(rows).unwrap_or(0));
        }
    }

    /// A recomputation (`FULL`) or a reconcile (`DIFFERENTIAL`) has ended.
    pub fn refreshed(&self, stream_table: &str, mode: &str, completed: bool) {
        self.name(stream_table);
        let outcome = if completed { "completed" } else { "failed" };
        let labels = self.with(&[("stream_table", stream_table), ("mode", mode), ("outcome", outcome)]);
        self.families.refreshes.get_or_create(&labels).inc();
    }

    fn name(&self, stream_table: &str) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if !named.contains(stream_table) {
            named.insert(stream_table.to_owned());
        }
    }

    /// The stream table is gone, and its series with it.
    pub fn forget(&self, stream_table: &str) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if !named.remove(stream_table) {
            return;
        }
        for operation in ["insert", "update", "delete"] {
            let labels = self.with(&[("stream_table", stream_table), ("operation", operation)]);
            self.families.rows.remove(&labels);
        }
        for mode in ["FULL", "DIFFERENTIAL"] {
            for outcome in ["completed", "failed"] {
                let labels = [("stream_table", stream_table), ("mode", mode), ("outcome", outcome)];
                self.families.refreshes.remove(&self.with(&labels));
            }
        }
    }
}
