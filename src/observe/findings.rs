//! What somebody should know about a pipeline, worst first: pure functions from a look to sentences.
//!
//! Invariant: what is unknown is a finding of its own and never counts as fine. Every finding names a section of
//! `docs/runbook.md`; a test checks that it exists.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::history::History;
use super::{Sample, ServerSlot, redact};

/// How bad something is; the order is that of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    #[default]
    Ok,
    /// Worth knowing, nothing to do now.
    Notice,
    Unknown,
    Warning,
    Critical,
}

impl Severity {
    /// The same for a whole: what has nothing but notices is fine.
    pub fn calm(self) -> Severity {
        if self == Severity::Notice { Severity::Ok } else { self }
    }

    pub fn name(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Notice => "notice",
            Severity::Unknown => "unknown",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Something that somebody should know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub code: &'static str,
    /// The slot, stream table, source or pipeline.
    pub about: String,
    pub title: String,
    pub detail: String,
    /// What pgtrickle has done about it by itself.
    pub done: Option<String>,
    pub since: Option<DateTime<Utc>>,
    /// Heading of the runbook, as a link anchor.
    pub runbook: String,
}

impl Finding {
    fn new(severity: Severity, code: &'static str, about: &str, title: impl Into<String>) -> Finding {
        Finding {
            severity,
            code,
            about: about.to_owned(),
            title: title.into(),
            detail: String::new(),
            done: None,
            since: None,
            runbook: code.to_lowercase(),
        }
    }

    fn detail(mut self, detail: impl Into<String>) -> Finding {
        self.detail = detail.into();
        self
    }

    fn since(mut self, since: Option<DateTime<Utc>>) -> Finding {
        self.since = since;
        self
    }
}

/// The state of a pipeline whose last look failed.
pub fn unreachable(pipeline: &str, error: &str) -> Vec<Finding> {
    vec![
        Finding::new(
            Severity::Critical,
            "database_unreachable",
            pipeline,
            "The database cannot be looked at",
        )
        .detail(redact::sentence(error)),
    ]
}

/// All findings of a look, worst first.
pub fn of(pipeline: &str, sample: &Sample, history: &History, now: i64) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(sidecar(pipeline, sample));
    found.extend(slots(sample, history, now));
    found.extend(sample.recent.iter().map(incident));
    stream_tables(sample, &mut found);
    sources(sample, &mut found);
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

fn sidecar(pipeline: &str, sample: &Sample) -> Option<Finding> {
    use Severity::*;
    if sample.detached {
        let title = "Detached: nobody captures changes";
        return Some(
            Finding::new(Warning, "detached", pipeline, title)
                .detail("pgtrickle attach, or select pgtrickle.attach(), brings the pipeline back")
                .since(sample.detached_at),
        );
    }
    if sample.paused {
        let title = "Paused: the slot keeps the WAL that is not read";
        return Some(
            Finding::new(Warning, "paused", pipeline, title)
                .detail("pgtrickle unpause, or select pgtrickle.unpause(), ends the pause before its time"),
        );
    }
    if sample.is_standby {
        let title = "This server is a standby";
        let detail = "the sidecar works on the primary; numbers here are those that were replicated";
        return Some(Finding::new(Notice, "standby", pipeline, title).detail(detail));
    }
    if !sample.sidecar_alive {
        let title = "No sidecar serves this pipeline";
        return Some(
            Finding::new(Critical, "sidecar_not_running", pipeline, title)
                .detail("stream tables stay as they are, and the slot keeps the WAL that was not read")
                .since(sample.heartbeat_at),
        );
    }
    None
}

/// How a slot of ours stands. `alive`: a sidecar holds the pipeline, so somebody should stream.
pub fn slot_severity(slot: &ServerSlot, alive: bool, warning: i64, critical: i64) -> Severity {
    match slot.wal_status.as_deref() {
        _ if slot.invalidation_reason.is_some() => Severity::Critical,
        Some("reserved" | "extended") => match slot.retained_bytes {
            Some(bytes) if bytes > critical => Severity::Critical,
            Some(bytes) if bytes > warning => Severity::Warning,
            _ if alive && !slot.active => Severity::Warning,
            Some(_) => Severity::Ok,
            None => Severity::Unknown,
        },
        Some(_) => Severity::Critical,
        None => Severity::Unknown,
    }
}

/// Seconds until `limit` at the growth of the last minutes; absent when it does not grow.
pub fn time_until(bytes: i64, limit: i64, growth: Option<f64>) -> Option<f64> {
    // Less than this is noise: keepalives and checkpoints move positions.
    const STILL: f64 = 1024.0;
    let growth = growth.filter(|g| *g > STILL)?;
    (limit > bytes).then(|| (limit - bytes) as f64 / growth)
}

fn slots(sample: &Sample, history: &History, now: i64) -> Vec<Finding> {
    use Severity::*;
    let mut found = Vec::new();
    let Some(own) = sample.slot.as_ref().filter(|_| !sample.detached) else { return found };
    let server = sample.server_slots.iter().find(|slot| slot.name == own.name);
    let status = own.wal_status.as_deref().unwrap_or("unknown");
    let lost = !matches!(status, "reserved" | "extended" | "unreserved" | "unknown");
    if lost {
        let title = match status {
            "missing" => format!("The replication slot {} does not exist", own.name),
            "lost" => format!("The replication slot {} is lost", own.name),
            _ => format!("The replication slot {} is lost ({status})", own.name),
        };
        let mut finding = Finding::new(Critical, "slot_invalidated", &own.name, title)
            .detail("changes since it was lost cannot be read from the WAL")
            .since(server.and_then(|s| s.inactive_since));
        finding.done = Some(
            "The sidecar makes the slot anew, captures by triggers meanwhile, reads the sources again and writes only \
             the differences."
                .to_owned(),
        );
        if status == "missing" {
            finding.runbook = "slot_missing".to_owned();
        }
        found.push(finding);
        return found;
    }
    if status == "unreserved" {
        let title = format!("The slot {} is about to be lost", own.name);
        let detail = "it is past max_slot_wal_keep_size: the next checkpoint may remove WAL that it needs";
        found.push(
            Finding::new(Critical, "slot_lag_critical", &own.name, title).detail(detail).runbook("slot_lag"),
        );
    }
    let growth = history.growth(&own.name, now);
    match own.retained_bytes {
        None => {
            let title = format!("It is not known how much WAL {} retains", own.name);
            found.push(Finding::new(Unknown, "slot_lag_warning", &own.name, title).runbook("slot_lag"));
        }
        Some(bytes) if bytes > own.warning_bytes => {
            let (severity, code, threshold) = match bytes > own.critical_bytes {
                true => (Critical, "slot_lag_critical", "slot_lag_critical_threshold_mb"),
                false => (Warning, "slot_lag_warning", "slot_lag_warning_threshold_mb"),
            };
            let title = format!("{} retains {} MiB of WAL", own.name, bytes >> 20);
            let detail = format!("more than {threshold}; most often a transaction is open for long");
            found.push(Finding::new(severity, code, &own.name, title).detail(detail).runbook("slot_lag"));
        }
        Some(bytes) => {
            // A slot that retains little is no danger, however steep the first minutes after a start are.
            let near = bytes > own.warning_bytes / 2;
            let seconds = time_until(bytes, own.critical_bytes, growth).filter(|s| near && *s < 3600.0);
            if let Some(seconds) = seconds {
                let minutes = (seconds / 60.0).ceil();
                let title = format!(
                    "{} reaches the critical threshold in {minutes:.0} minutes at this rate",
                    own.name
                );
                let detail =
                    format!("it retains {} MiB; most often a transaction is open for long", bytes >> 20);
                found.push(
                    Finding::new(Warning, "slot_lag_warning", &own.name, title)
                        .detail(detail)
                        .runbook("slot_lag"),
                );
            }
        }
    }
    if sample.sidecar_alive && !own.active {
        let title = format!("Nobody streams from {}", own.name);
        let since = server.and_then(|s| s.inactive_since);
        let detail = "a sidecar holds the pipeline but is not connected to the slot";
        found.push(
            Finding::new(Warning, "slot_inactive", &own.name, title)
                .detail(detail)
                .since(since)
                .runbook("slot_lag"),
        );
    }
    if sample.wal_keep_bytes.is_none() {
        let title = "max_slot_wal_keep_size is not limited";
        let detail = "a sidecar that stays away lets the WAL grow until the disk is full";
        found.push(Finding::new(Notice, "wal_keep_unlimited", &own.name, title).detail(detail));
    }
    found
}

impl Finding {
    fn runbook(mut self, section: &str) -> Finding {
        self.runbook = section.to_owned();
        self
    }
}

fn incident(recent: &super::Recent) -> Finding {
    let tables = match recent.sources {
        1 => recent.source.clone(),
        n => format!("{} and {} more sources", recent.source, n - 1),
    };
    let severity = if recent.completed_at.is_none() { Severity::Critical } else { Severity::Warning };
    let title = match recent.completed_at {
        None => format!("Being repaired: {}", recent.diagnosis),
        Some(_) => format!("Repaired: {}", recent.diagnosis),
    };
    let drift = match (recent.rows_inserted, recent.rows_updated, recent.rows_deleted) {
        (Some(i), Some(u), Some(d)) => {
            format!("; the repair wrote {i} missing, {u} changed and {d} surplus rows")
        }
        _ => String::new(),
    };
    let mut finding = Finding::new(severity, "incident", &tables, title)
        .detail(redact::sentence(&recent.cause))
        .since(recent.detected_at)
        .runbook(&recent.diagnosis.to_lowercase());
    finding.done = Some(format!("{}{drift}", redact::sentence(&recent.action)));
    finding
}

fn stream_tables(sample: &Sample, found: &mut Vec<Finding>) {
    use Severity::*;
    for table in &sample.stream_tables {
        let state = table.sqlstate.as_deref();
        let said = redact::message(state, table.error.as_deref()).unwrap_or_default();
        let said = match state {
            Some(state) => format!("{said} (SQLSTATE {state})"),
            None => said,
        };
        let name = &table.name;
        let finding = match table.status.as_str() {
            "ERROR" => Finding::new(Critical, "stream_table_error", name, format!("{name} has failed"))
                .detail(said)
                .since(table.error_at),
            "SUSPENDED" => {
                Finding::new(Warning, "stream_table_suspended", name, format!("{name} is suspended"))
                    .detail(said)
                    .since(table.error_at)
            }
            "INITIALIZING" => {
                Finding::new(Notice, "stream_table_initializing", name, format!("{name} is being loaded"))
            }
            _ if table.consecutive_errors > 0 => {
                let title = format!("{name} failed {} times in a row", table.consecutive_errors);
                Finding::new(Warning, "stream_table_error", name, title).detail(said).since(table.error_at)
            }
            _ if table.stale && sample.sidecar_alive => Finding::new(
                Warning,
                "stream_table_stale",
                name,
                format!("{name} is not as fresh as it should be"),
            )
            .since(table.data_timestamp),
            _ => continue,
        };
        found.push(finding);
    }
}

fn sources(sample: &Sample, found: &mut Vec<Finding>) {
    use Severity::*;
    for source in &sample.sources {
        let name = &source.name;
        if source.gap_since.is_some() {
            let title = format!("Triggers on {name} record nothing");
            let detail = "the change buffer reached its bound; the source is read again";
            found.push(
                Finding::new(Warning, "capture_gap", name, title).detail(detail).since(source.gap_since),
            );
        } else if source.capture == "trigger" {
            let title = format!("{name} is captured by triggers");
            let reason = source.capture_reason.as_deref().or(sample.delivery_reason.as_deref());
            found.push(
                Finding::new(Notice, "capture_by_triggers", name, title)
                    .detail(redact::sentence(reason.unwrap_or_default()))
                    .since(source.capture_since),
            );
        } else if !source.fallback_ready && source.fallback_reason.is_some() {
            let title = format!("Triggers could not take over for {name}");
            let reason = source.fallback_reason.as_deref().unwrap_or_default();
            found.push(
                Finding::new(Notice, "fallback_not_ready", name, title).detail(redact::sentence(reason)),
            );
        }
    }
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
