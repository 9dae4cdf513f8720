//! One look at a pipeline: a single statement, so one snapshot of the catalog.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::history::lsn;
use super::redact;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::error;

/// A pipeline as the database shows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sample {
    pub server_version: String,
    pub server_started_at: Option<DateTime<Utc>>,
    pub is_standby: bool,
    /// Where the WAL ends: written, or replayed on a standby.
    pub wal_lsn: Option<String>,
    /// `max_slot_wal_keep_size`; absent where it is not limited.
    pub wal_keep_bytes: Option<i64>,
    pub sidecar_alive: bool,
    /// Who holds the pipeline, or held it last.
    pub sidecar: Option<String>,
    pub generation: i64,
    pub started_at: Option<DateTime<Utc>>,
    pub heartbeat_at: Option<DateTime<Utc>>,
    /// `slot` or `poll`; absent before the first start.
    pub delivery: Option<String>,
    pub delivery_reason: Option<String>,
    pub detached: bool,
    /// The sidecar has left for a time and keeps its slot.
    pub paused: bool,
    pub detached_at: Option<DateTime<Utc>>,
    pub publication: Option<String>,
    /// Everything up to here is contained in the incremental stream tables.
    pub frontier: Option<String>,
    pub data_timestamp: Option<DateTime<Utc>>,
    /// How far this process has received and handed to the dataflow; absent where another one serves.
    #[serde(default)]
    pub received_lsn: Option<String>,
    #[serde(default)]
    pub decoded_lsn: Option<String>,
    /// Seconds since the moment up to which the incremental stream tables are known to be complete.
    pub freshness_seconds: Option<f64>,
    /// WAL from the frontier to the end, in bytes.
    pub applied_lag_bytes: Option<i64>,
    pub slot: Option<Slot>,
    pub server_slots: Vec<ServerSlot>,
    pub sources: Vec<Source>,
    pub stream_tables: Vec<StreamTable>,
    pub incidents: Vec<Incident>,
    pub recent: Vec<Recent>,
}

/// The pipeline's slot; absent numbers are unknown to the server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Slot {
    pub name: String,
    pub active: bool,
    /// reserved, extended, unreserved, lost, missing, or why the server invalidated it.
    pub wal_status: Option<String>,
    pub retained_bytes: Option<i64>,
    pub lag_bytes: Option<i64>,
    pub safe_bytes: Option<i64>,
    /// Thresholds of this database (`slot_lag_..._threshold_mb`).
    pub warning_bytes: i64,
    pub critical_bytes: i64,
}

/// A replication slot as the server shows it, ours or another's. Sizes in bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ServerSlot {
    pub name: String,
    /// A pipeline of this database streams from it.
    pub ours: bool,
    /// logical or physical.
    pub kind: String,
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub temporary: bool,
    pub active: bool,
    pub pid: Option<i64>,
    pub wal_status: Option<String>,
    pub retained_bytes: Option<i64>,
    pub lag_bytes: Option<i64>,
    /// WAL until the server invalidates it.
    pub safe_bytes: Option<i64>,
    pub restart_lsn: Option<String>,
    pub confirmed_flush_lsn: Option<String>,
    /// Servers from 17 on.
    pub inactive_since: Option<DateTime<Utc>>,
    pub invalidation_reason: Option<String>,
    pub failover: Option<bool>,
    pub synced: Option<bool>,
    /// `application_name` and state of whoever streams, where this role may see it.
    pub client: Option<String>,
    pub stream_state: Option<String>,
    pub sent_lsn: Option<String>,
    /// Since the last sign of whoever streams.
    pub feedback_age_seconds: Option<f64>,
}

/// A table whose changes are captured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Source {
    pub name: String,
    /// wal, trigger or transitioning.
    pub capture: String,
    /// Why it is not wal.
    pub capture_reason: Option<String>,
    pub capture_since: Option<DateTime<Utc>>,
    /// Triggers record nothing since then.
    pub gap_since: Option<DateTime<Utc>>,
    /// Why triggers could not take over.
    pub fallback_reason: Option<String>,
    /// Whether capture by triggers could be installed if the slot were lost.
    pub fallback_ready: bool,
    pub buffer_bytes: Option<i64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StreamTable {
    pub name: String,
    pub owner: String,
    pub status: String,
    pub refresh_mode: String,
    pub requested_mode: String,
    pub schedule: String,
    pub is_populated: bool,
    /// Why it is not incremental.
    pub reason: Option<String>,
    pub stale: bool,
    pub data_timestamp: Option<DateTime<Utc>>,
    pub last_refresh_at: Option<DateTime<Utc>>,
    pub sqlstate: Option<String>,
    /// The server's words; they may quote values, so whoever shows them redacts them.
    #[serde(skip_serializing)]
    pub error: Option<String>,
    pub error_at: Option<DateTime<Utc>>,
    /// The server's estimate.
    pub rows: Option<i64>,
    /// Rows inserted, updated and deleted since the server's statistics began.
    pub rows_written: Option<i64>,
    pub reads: Vec<Read>,
    pub freshness_seconds: Option<f64>,
    /// WAL from its own frontier to the end, in bytes; only one that is incremental has a frontier.
    pub lag_bytes: Option<i64>,
    pub consecutive_errors: i64,
    /// Rows and bytes that it holds in the sidecar's memory; absent while it is not incremental.
    pub state_rows: Option<i64>,
    pub state_bytes: Option<i64>,
}

/// Something that a stream table reads.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Read {
    pub name: String,
    /// TABLE, PARTITIONED_TABLE, STREAM_TABLE, VIEW, MATVIEW or FOREIGN_TABLE.
    pub kind: String,
}

/// An incident that is being repaired, or was repaired and nobody has acknowledged.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Recent {
    pub diagnosis: String,
    pub cause: String,
    pub action: String,
    pub detected_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    /// How many sources it affected, and the first of them.
    pub sources: i64,
    pub source: String,
    pub rows_inserted: Option<i64>,
    pub rows_updated: Option<i64>,
    pub rows_deleted: Option<i64>,
}

/// A diagnosis with the drift that its reconcile repaired, added up over incidents of one source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Incident {
    pub source: String,
    pub diagnosis: String,
    pub incidents: i64,
    pub open: i64,
    pub rows_inserted: i64,
    pub rows_updated: i64,
    pub rows_deleted: i64,
}

const SQL: &str = include_str!("sample.sql");

/// Reads a sample.
///
/// # Errors
/// `Config` when the pipeline is not in the database; else what the server says.
pub(super) async fn read(client: &Client, pipeline: &str) -> Result<Sample> {
    let row = client.query_opt(SQL, &[&pipeline]).await.map_err(error)?;
    let row = row.ok_or_else(|| Error::new(ErrorKind::Config, format!("there is no pipeline {pipeline}")))?;
    let value: serde_json::Value = row.get(0);
    let mut sample: Sample = serde_json::from_value(value)
        .map_err(|e| Error::internal(format!("a sample of the catalog is odd: {e}")))?;
    sample.redact();
    Ok(sample)
}

impl Sample {
    /// Reasons are sentences of ours that may end with a server's message. `StreamTable::error` is the server's alone: who
    /// shows it knows its SQLSTATE.
    fn redact(&mut self) {
        let some = |text: &mut Option<String>| *text = text.take().map(|text| redact::sentence(&text));
        some(&mut self.delivery_reason);
        for source in &mut self.sources {
            some(&mut source.capture_reason);
            some(&mut source.fallback_reason);
        }
        for table in &mut self.stream_tables {
            some(&mut table.reason);
        }
        for recent in &mut self.recent {
            recent.cause = redact::sentence(&recent.cause);
            recent.action = redact::sentence(&recent.action);
        }
    }

    /// WAL that this process has not received; unknown where another one serves. Both positions were read one after the
    /// other, so the end of the WAL may be the earlier one.
    pub(super) fn received_lag_bytes(&self) -> Option<i64> {
        Some((lsn(self.wal_lsn.as_ref()?)? - lsn(self.received_lsn.as_ref()?)?).max(0))
    }

    /// Since the server heard from whoever streams from the pipeline's slot; unknown without `pg_monitor`.
    pub(super) fn feedback_age_seconds(&self) -> Option<f64> {
        let name = &self.slot.as_ref()?.name;
        self.server_slots.iter().find(|slot| slot.name == *name)?.feedback_age_seconds
    }

    /// Nobody serves it, on purpose.
    pub(super) fn is_absent(&self) -> bool {
        self.detached || self.paused
    }

    /// Why the pipeline cannot be relied on at this moment.
    pub(super) fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if self.detached {
            return vec!["detached; pgtrickle attach brings it back".to_owned()];
        }
        if self.paused {
            return vec!["paused; pgtrickle unpause ends it".to_owned()];
        }
        if !self.sidecar_alive {
            obstacles.push("no sidecar holds the pipeline".to_owned());
        }
        match &self.slot {
            Some(slot) if !slot.active => {
                let status = slot.wal_status.as_deref().unwrap_or("of unknown state");
                obstacles.push(format!("the slot {} is {status} and nobody streams from it", slot.name));
            }
            _ if self.delivery.is_none() => obstacles.push("the pipeline has not started yet".to_owned()),
            _ => {}
        }
        let waiting = self.stream_tables.iter().filter(|s| s.status == "INITIALIZING");
        obstacles.extend(waiting.map(|s| format!("{} is being loaded", s.name)));
        obstacles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reason_of_a_sample_quotes_a_row() {
        let words = || "apply: bad value \"secret\" (SQLSTATE 22P02)".to_owned();
        let mut sample = Sample {
            delivery_reason: Some(words()),
            sources: vec![Source {
                capture_reason: Some(words()),
                fallback_reason: Some(words()),
                ..Source::default()
            }],
            stream_tables: vec![StreamTable {
                reason: Some(words()),
                error: Some(words()),
                ..StreamTable::default()
            }],
            recent: vec![Recent { cause: words(), action: words(), ..Recent::default() }],
            ..Sample::default()
        };
        sample.redact();
        let shown = serde_json::to_string(&sample).unwrap();
        assert!(!shown.contains("secret") && shown.contains("22P02"), "{shown}");
    }
}
