//! Pipelines and the start page: what needs attention, how far each has come.

use serde::Serialize;

use super::key;
use super::slot::{self, SlotView};
use crate::http::chart::{Chart, Drawn, Unit};
use crate::http::units::{ByteRate, Bytes, Count, Moment, Seconds};
use crate::observe::{Finding, Measure, Observed, Seen, Severity, Subject, lsn};

/// A place in the WAL that something has reached.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    pub name: &'static str,
    /// What it means.
    #[serde(skip)]
    pub meaning: &'static str,
    pub lsn: Option<String>,
    /// Distance to the end of the WAL.
    pub behind_bytes: Bytes,
}

/// How many stream tables are in which state, and how many sources are captured how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub stream_tables: usize,
    pub active: usize,
    pub loading: usize,
    pub failed: usize,
    pub full: usize,
    pub sources: usize,
    pub by_triggers: usize,
    pub without_fallback: usize,
}

/// A pipeline as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct PipelineView {
    pub database: String,
    pub pipeline: String,
    pub severity: Severity,
    pub server_version: Option<String>,
    pub server_started_at: Moment,
    pub sidecar: Option<String>,
    pub sidecar_alive: bool,
    pub generation: Option<i64>,
    pub started_at: Moment,
    pub delivery: Option<String>,
    pub delivery_reason: Option<String>,
    pub detached: bool,
    pub paused: bool,
    pub freshness_seconds: Seconds,
    pub applied_lag_bytes: Bytes,
    pub wal_bytes_per_second: ByteRate,
    pub open_incidents: Count,
    /// Absent before anything was seen.
    pub counts: Option<Counts>,
    pub ladder: Vec<Place>,
    pub looked_at: Moment,
    /// When the numbers here were read; older than `looked_at` while the database cannot be looked at.
    pub sampled_at: Moment,
    pub error: Option<String>,
    pub findings: Vec<Finding>,
    #[serde(skip)]
    pub freshness_chart: Drawn,
    #[serde(skip)]
    pub wal_chart: Drawn,
}

impl PipelineView {
    /// Numbers of a look that failed are those of an earlier one.
    pub fn is_old(&self) -> bool {
        self.error.is_some()
    }

    /// What somebody should look at.
    pub fn pressing(&self) -> Vec<&Finding> {
        self.findings.iter().filter(|f| f.severity > Severity::Notice).collect()
    }

    /// What is only worth knowing.
    pub fn notices(&self) -> Vec<&Finding> {
        self.findings.iter().filter(|f| f.severity <= Severity::Notice).collect()
    }

    pub fn state(&self) -> &'static str {
        match self.severity {
            _ if self.error.is_some() => "unreachable",
            _ if self.detached => "detached",
            _ if self.paused => "paused",
            _ if !self.sidecar_alive => "no sidecar",
            Severity::Critical => "critical",
            Severity::Warning => "needs attention",
            Severity::Unknown => "unknown",
            Severity::Ok | Severity::Notice => "ready",
        }
    }
}

/// The start page.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    pub severity: Severity,
    pub generated_at: Moment,
    pub pipelines: Vec<PipelineView>,
    pub slots: Vec<SlotView>,
}

impl Overview {
    pub fn of(observed: &Observed, range: i64) -> Overview {
        let seen = observed.seen();
        Overview {
            severity: worst(&seen),
            generated_at: Moment::now(),
            pipelines: seen.iter().map(|seen| pipeline(observed, seen, range)).collect(),
            slots: slot::slots(observed, &seen, range),
        }
    }

    pub fn own_slots(&self) -> Vec<&SlotView> {
        self.slots.iter().filter(|slot| slot.ours).collect()
    }

    pub fn other_slots(&self) -> Vec<&SlotView> {
        self.slots.iter().filter(|slot| !slot.ours).collect()
    }
}

/// The worst of all; unknown before anything was seen.
pub fn worst(seen: &[Seen]) -> Severity {
    seen.iter().map(Seen::severity).max().unwrap_or(Severity::Unknown)
}

/// A pipeline with its charts over the last `range` seconds.
pub fn pipeline(observed: &Observed, seen: &Seen, range: i64) -> PipelineView {
    let key = key(seen);
    let sample = seen.sample.as_deref();
    let chart = |title, measure, unit| {
        let points = observed.points(&key, &Subject::Pipeline, measure, range);
        Chart { title, unit, points, thresholds: vec![], range, severity: Severity::Ok }.draw()
    };
    let freshness_chart = chart("Freshness", Measure::FreshnessSeconds, Unit::Seconds);
    let wal_chart = chart("WAL written by the server", Measure::WalBytesPerSecond, Unit::BytesPerSecond);
    let newest = |measure| observed.newest(&key, &Subject::Pipeline, measure);
    PipelineView {
        severity: seen.severity(),
        server_version: sample.map(|s| s.server_version.clone()),
        server_started_at: Moment(sample.and_then(|s| s.server_started_at)),
        sidecar: sample.and_then(|s| s.sidecar.clone()),
        sidecar_alive: seen.error.is_none() && sample.is_some_and(|s| s.sidecar_alive),
        generation: sample.map(|s| s.generation),
        started_at: Moment(sample.and_then(|s| s.started_at)),
        delivery: sample.and_then(|s| s.delivery.clone()),
        delivery_reason: sample.and_then(|s| s.delivery_reason.clone()),
        detached: sample.is_some_and(|s| s.detached),
        paused: sample.is_some_and(|s| s.paused),
        freshness_seconds: Seconds(sample.and_then(|s| s.freshness_seconds)),
        applied_lag_bytes: Bytes(sample.and_then(|s| s.applied_lag_bytes)),
        wal_bytes_per_second: ByteRate(newest(Measure::WalBytesPerSecond)),
        open_incidents: Count(sample.map(|s| s.incidents.iter().map(|i| i.open).sum())),
        counts: sample.map(counts),
        ladder: ladder(seen),
        looked_at: Moment(Some(seen.looked_at)),
        sampled_at: Moment(seen.sampled_at),
        error: seen.findings.iter().find(|f| f.code == "database_unreachable").map(|f| f.detail.clone()),
        findings: seen.findings.clone(),
        freshness_chart,
        wal_chart,
        database: key.0,
        pipeline: key.1,
    }
}

fn counts(sample: &crate::observe::Sample) -> Counts {
    let tables = |status: &[&str]| {
        sample.stream_tables.iter().filter(|table| status.contains(&table.status.as_str())).count()
    };
    Counts {
        stream_tables: sample.stream_tables.len(),
        active: tables(&["ACTIVE"]),
        loading: tables(&["INITIALIZING"]),
        failed: tables(&["ERROR", "SUSPENDED"]),
        full: sample.stream_tables.iter().filter(|table| table.refresh_mode == "FULL").count(),
        sources: sample.sources.len(),
        by_triggers: sample.sources.iter().filter(|source| source.capture != "wal").count(),
        without_fallback: sample.sources.iter().filter(|source| !source.fallback_ready).count(),
    }
}

/// From the end of the WAL to what the slot has confirmed.
pub fn ladder(seen: &Seen) -> Vec<Place> {
    let Some(sample) = seen.sample.as_deref() else { return Vec::new() };
    let end = sample.wal_lsn.as_deref().and_then(lsn);
    let slot = sample.slot.as_ref().and_then(|own| sample.server_slots.iter().find(|s| s.name == own.name));
    let is_poll = sample.delivery.as_deref() == Some("poll");
    let place = |name, meaning, text: Option<&String>| Place {
        name,
        meaning,
        lsn: text.cloned(),
        behind_bytes: Bytes(end.zip(text.and_then(|t| lsn(t))).map(|(end, at)| (end - at).max(0))),
    };
    let mut places = vec![place("server", "written by the server", sample.wal_lsn.as_ref())];
    places.push(place("received", "has reached the sidecar", sample.received_lsn.as_ref()));
    places.push(place("decoded", "handed to the dataflow", sample.decoded_lsn.as_ref()));
    places.push(place("applied", "durable in the stream tables", sample.frontier.as_ref()));
    if !is_poll {
        let confirmed = slot.and_then(|s| s.confirmed_flush_lsn.as_ref());
        places.push(place("acknowledged", "the slot lets go of what is before", confirmed));
    }
    places
}
