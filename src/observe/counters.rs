//! What the engine of a pipeline has done since the process started: counters that it raises itself.
//!
//! Invariant: counters only grow, and are lost with the process (Prometheus knows that); nothing is read back by the engine.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::metrics::escaped;

type Labels = Vec<(String, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Recomputed, or reconciled.
const MODES: [&str; 2] = ["FULL", "DIFFERENTIAL"];

/// 1 ms to 33 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// 10 ms to 12 hours: a recomputation takes what its query takes.
fn long_durations() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 4.0, 12))
}

/// 1 to 4 million.
fn amounts() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 4.0, 12))
}

/// The families of all pipelines of a process. Clones share their numbers.
#[derive(Clone)]
pub(super) struct Families {
    lease: Family<Labels, Gauge>,
    transactions: Family<Labels, Counter>,
    transaction_changes: Histograms,
    changes: Family<Labels, Counter>,
    undecodable: Family<Labels, Counter>,
    reconnects: Family<Labels, Counter>,
    full: Family<Labels, Gauge>,
    held_back: Family<Labels, Counter<f64, AtomicU64>>,
    loaded: Family<Labels, Counter>,
    applies: Histograms,
    batches: Histograms,
    conflicts: Family<Labels, Counter>,
    rows: Family<Labels, Counter>,
    refreshes: Family<Labels, Counter>,
    refresh_durations: Histograms,
}

impl Default for Families {
    fn default() -> Self {
        Families {
            lease: Family::default(),
            transactions: Family::default(),
            transaction_changes: Family::new_with_constructor(amounts),
            changes: Family::default(),
            undecodable: Family::default(),
            reconnects: Family::default(),
            full: Family::default(),
            held_back: Family::default(),
            loaded: Family::default(),
            applies: Family::new_with_constructor(durations),
            batches: Family::new_with_constructor(amounts),
            conflicts: Family::default(),
            rows: Family::default(),
            refreshes: Family::default(),
            refresh_durations: Family::new_with_constructor(long_durations),
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
        registry.register("transaction_changes", "Changes in one such transaction", all.transaction_changes);
        registry.register("decoded_changes", "Changes in those transactions", all.changes);
        registry.register(
            "decode_errors",
            "Lives of the pipeline that ended because what the server sent could not be decoded",
            all.undecodable,
        );
        registry.register(
            "replication_reconnects",
            "Lost streams that were resumed, and lives of the pipeline that ended and were started again",
            all.reconnects,
        );
        registry.register(
            "memory_backpressure_active",
            "1 while nothing is received because what waits in memory has reached its bound",
            all.full,
        );
        registry.register("backpressure_seconds", "Time in which that was so", all.held_back);
        registry.register("hydration_rows", "Rows of sources that were read to load them", all.loaded);
        registry.register(
            "apply_duration_seconds",
            "Time of the transactions that write stream tables",
            all.applies,
        );
        registry.register("apply_batch_rows", "Rows that such a transaction wrote, if any", all.batches);
        registry.register(
            "apply_conflicts",
            "Attempts of such a transaction that gave way to a lock, a deadlock or a serialization failure",
            all.conflicts,
        );
        registry.register("stream_table_rows", "Rows written to a stream table", all.rows);
        registry.register(
            "stream_table_refreshes",
            "Recomputations and reconciles of a stream table",
            all.refreshes,
        );
        registry.register(
            "stream_table_refresh_duration_seconds",
            "Time of the recomputations and reconciles that completed",
            all.refresh_durations,
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
        let (all, base) = (&counters.families, &counters.base);
        for gauge in [&all.lease, &all.full] {
            drop(gauge.get_or_create(base));
        }
        for count in [&all.transactions, &all.changes, &all.undecodable, &all.loaded, &all.conflicts] {
            drop(count.get_or_create(base));
        }
        drop(all.held_back.get_or_create(base));
        for histogram in [&all.transaction_changes, &all.applies, &all.batches] {
            drop(histogram.get_or_create(base));
        }
        for mode in MODES {
            drop(all.refresh_durations.get_or_create(&counters.with(&[("mode", mode)])));
        }
        for outcome in ["resumed", "restarted"] {
            drop(all.reconnects.get_or_create(&counters.with(&[("outcome", outcome)])));
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
        self.families.transaction_changes.get_or_create(&self.base).observe(changes as f64);
        self.families.changes.get_or_create(&self.base).inc_by(changes as u64);
    }

    pub fn reconnect(&self, how: Reconnect) {
        let outcome = match how {
            Reconnect::Resumed => "resumed",
            Reconnect::Restarted => "restarted",
        };
        self.families.reconnects.get_or_create(&self.with(&[("outcome", outcome)])).inc();
    }

    /// What the server sent could not be decoded.
    pub fn undecodable(&self) {
        self.families.undecodable.get_or_create(&self.base).inc();
    }

    /// Whether memory has no room for what the server would send.
    pub fn full(&self, full: bool) {
        self.families.full.get_or_create(&self.base).set(i64::from(full));
    }

    /// It had none for so long.
    pub fn held_back(&self, time: Duration) {
        self.families.held_back.get_or_create(&self.base).inc_by(time.as_secs_f64());
    }

    /// Rows of a source were read.
    pub fn loaded(&self, rows: usize) {
        self.families.loaded.get_or_create(&self.base).inc_by(rows as u64);
    }

    /// An apply has committed after `conflicts` attempts that gave way, and has written `rows`.
    pub fn applied(&self, took: Duration, rows: i64, conflicts: u64) {
        self.families.applies.get_or_create(&self.base).observe(took.as_secs_f64());
        // Most applies of an idle database only move the frontier.
        if rows > 0 {
            self.families.batches.get_or_create(&self.base).observe(rows as f64);
        }
        self.families.conflicts.get_or_create(&self.base).inc_by(conflicts);
    }

    /// Rows that were inserted, updated and deleted in a stream table.
    pub fn rows(&self, stream_table: &str, written: [i64; 3]) {
        self.name(stream_table);
        for (operation, rows) in ["insert", "update", "delete"].into_iter().zip(written) {
            let labels = self.with(&[("stream_table", stream_table), ("operation", operation)]);
            self.families.rows.get_or_create(&labels).inc_by(u64::try_from(rows).unwrap_or(0));
        }
    }

    /// How long a recomputation or a reconcile took that has completed. Not by stream table: there may be thousands.
    pub fn refresh_took(&self, mode: &str, took: Duration) {
        let labels = self.with(&[("mode", mode)]);
        self.families.refresh_durations.get_or_create(&labels).observe(took.as_secs_f64());
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
        for mode in MODES {
            for outcome in ["completed", "failed"] {
                let labels = [("stream_table", stream_table), ("mode", mode), ("outcome", outcome)];
                self.families.refreshes.remove(&self.with(&labels));
            }
        }
    }
}
