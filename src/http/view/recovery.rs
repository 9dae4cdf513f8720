//! The log of what was diagnosed and repaired, over all pipelines.

use serde::Serialize;

use crate::http::units::{Count, Moment, Seconds};
use crate::observe::{Recoveries, Recovery, Refresh, Severity};

/// A diagnosis for one source.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    pub database: String,
    pub pipeline: String,
    pub source: String,
    pub diagnosis: String,
    pub severity: Severity,
    pub cause: String,
    pub action: String,
    pub detected_at: Moment,
    pub completed_at: Moment,
    pub acknowledged_at: Moment,
    pub took_seconds: Seconds,
    pub rows_inserted: Count,
    pub rows_updated: Count,
    pub rows_deleted: Count,
}

/// What a reconcile wrote: the drift between what a stream table held and what it should have held.
#[derive(Debug, Clone, Serialize)]
pub struct Reconcile {
    pub database: String,
    pub pipeline: String,
    pub stream_table: String,
    pub severity: Severity,
    pub status: String,
    pub start_time: Moment,
    pub took_seconds: Seconds,
    pub rows_inserted: Count,
    pub rows_updated: Count,
    pub rows_deleted: Count,
    pub reason: Option<String>,
    pub error: Option<String>,
}

/// The page of recoveries.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RecoveryLog {
    pub recoveries: Vec<Entry>,
    pub reconciles: Vec<Reconcile>,
    /// Pipelines whose log could not be read, and why.
    pub errors: Vec<String>,
    /// How many pipelines' logs were read.
    pub pipelines: usize,
}

impl RecoveryLog {
    pub fn add(&mut self, database: &str, pipeline: &str, log: Recoveries) {
        self.pipelines += 1;
        let place = || (database.to_owned(), pipeline.to_owned());
        self.recoveries.extend(log.recoveries.into_iter().map(|r| entry(place(), r)));
        self.reconciles.extend(log.reconciles.into_iter().map(|r| reconcile(place(), r)));
    }

    /// Whether everything there is was read; nothing was before the first look.
    pub fn is_whole(&self) -> bool {
        self.errors.is_empty() && self.pipelines > 0
    }

    /// Newest first, whatever pipeline.
    pub fn sort(&mut self) {
        self.recoveries.sort_by_key(|entry| std::cmp::Reverse(entry.detected_at.0));
        self.reconciles.sort_by_key(|entry| std::cmp::Reverse(entry.start_time.0));
    }

    pub fn open(&self) -> usize {
        self.recoveries.iter().filter(|entry| !entry.completed_at.is_known()).count()
    }
}

fn entry((database, pipeline): (String, String), r: Recovery) -> Entry {
    let took =
        r.detected_at.zip(r.completed_at).map(|(from, to)| (to - from).num_milliseconds() as f64 / 1000.0);
    let severity = match (r.completed_at, r.acknowledged_at) {
        (None, _) => Severity::Critical,
        (Some(_), None) => Severity::Warning,
        (Some(_), Some(_)) => Severity::Ok,
    };
    Entry {
        database,
        pipeline,
        severity,
        source: r.source,
        diagnosis: r.diagnosis,
        cause: r.cause,
        action: r.action,
        detected_at: Moment(r.detected_at),
        completed_at: Moment(r.completed_at),
        acknowledged_at: Moment(r.acknowledged_at),
        took_seconds: Seconds(took),
        rows_inserted: Count(r.rows_inserted),
        rows_updated: Count(r.rows_updated),
        rows_deleted: Count(r.rows_deleted),
    }
}

fn reconcile((database, pipeline): (String, String), r: Refresh) -> Reconcile {
    let severity = match r.status.as_str() {
        "COMPLETED" => Severity::Ok,
        "FAILED" => Severity::Warning,
        _ => Severity::Notice,
    };
    Reconcile {
        database,
        pipeline,
        severity,
        stream_table: r.stream_table,
        status: r.status,
        start_time: Moment(r.start_time),
        took_seconds: Seconds(r.duration_seconds),
        rows_inserted: Count(r.rows_inserted),
        rows_updated: Count(r.rows_updated),
        rows_deleted: Count(r.rows_deleted),
        reason: r.reason,
        error: r.error,
    }
}
