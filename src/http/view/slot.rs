//! A replication slot, ours or another's.

use serde::Serialize;

use super::key;
use crate::http::chart::{Chart, Drawn, Threshold, Unit};
use crate::http::units::{ByteRate, Bytes, Moment, Seconds};
use crate::observe::{
    Measure, Observed, Sample, Seen, ServerSlot, Severity, Subject, slot_severity, time_until,
};

/// A slot as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct SlotView {
    pub name: String,
    pub ours: bool,
    pub database: Option<String>,
    pub pipeline: Option<String>,
    pub severity: Severity,
    pub kind: String,
    pub plugin: Option<String>,
    pub active: bool,
    pub pid: Option<i64>,
    pub client: Option<String>,
    pub stream_state: Option<String>,
    pub wal_status: Option<String>,
    pub invalidation_reason: Option<String>,
    pub retained_bytes: Bytes,
    pub confirmed_flush_lag_bytes: Bytes,
    /// WAL until the server invalidates it; absent without max_slot_wal_keep_size.
    pub headroom_bytes: Bytes,
    pub wal_keep_bytes: Bytes,
    pub warning_bytes: Bytes,
    pub critical_bytes: Bytes,
    pub growth_bytes_per_second: ByteRate,
    /// Until the critical threshold at the growth of the last minutes; absent when it does not grow.
    pub critical_in_seconds: Seconds,
    /// Until the server invalidates it at the same growth.
    pub lost_in_seconds: Seconds,
    pub feedback_age_seconds: Seconds,
    pub inactive_since: Moment,
    pub restart_lsn: Option<String>,
    pub confirmed_flush_lsn: Option<String>,
    pub failover: Option<bool>,
    pub synced: Option<bool>,
    #[serde(skip)]
    pub chart: Drawn,
}

impl SlotView {
    /// `in 12 min`, or why there is no such moment.
    pub fn critical_in(&self) -> String {
        match (self.critical_in_seconds.0, self.growth_bytes_per_second.0) {
            (Some(_), _) => format!("in {}", self.critical_in_seconds),
            (None, Some(_)) if self.severity == Severity::Critical => "now".to_owned(),
            (None, Some(_)) => "not growing".to_owned(),
            (None, None) => "–".to_owned(),
        }
    }

    /// What follows from the state of a slot of ours, and the section of the runbook about it.
    pub fn advice(&self) -> Option<(&'static str, &'static str)> {
        let advice = match (self.invalidation_reason.as_deref(), self.wal_status.as_deref()) {
            (Some(_), _) | (_, Some("lost")) => (
                "The server has given it up: a running sidecar makes it anew and writes only the differences.",
                "slot_invalidated",
            ),
            (_, Some("missing")) => (
                "It is not there: a running sidecar makes it anew and writes only the differences.",
                "slot_missing",
            ),
            (_, Some("unreserved")) => {
                ("It is about to be lost: the next checkpoint may remove WAL that it needs.", "slot_lag")
            }
            _ if self.severity == Severity::Unknown => return None,
            _ if !self.active => ("Nobody streams from it, and it keeps WAL.", "slot_inactive"),
            _ if self.severity > Severity::Notice => ("It retains more WAL than it should.", "slot_lag"),
            _ => return None,
        };
        Some(advice)
    }

    /// What follows from the state of a slot of somebody else.
    pub fn note(&self) -> &'static str {
        match (self.invalidation_reason.as_deref(), self.wal_status.as_deref()) {
            (Some(_), _) | (_, Some("lost")) => "lost: drop it, or see who needs it",
            (_, Some("missing")) => "missing",
            (_, Some("unreserved")) => "about to be lost",
            _ if !self.active => "nobody streams from it: it keeps WAL",
            _ => "",
        }
    }
}

/// All slots of the servers behind what was seen: ours first, then the worst.
pub fn slots(observed: &Observed, all: &[Seen], range: i64) -> Vec<SlotView> {
    let mut views: Vec<SlotView> = Vec::new();
    for seen in all {
        let Some(sample) = &seen.sample else { continue };
        let own = sample.slot.as_ref();
        if let Some(own) = own
            && !sample.server_slots.iter().any(|slot| slot.name == own.name)
        {
            // A slot that should be there and is not.
            let missing = ServerSlot {
                name: own.name.clone(),
                ours: true,
                kind: "logical".to_owned(),
                database: Some(seen.database.clone()),
                wal_status: own.wal_status.clone(),
                ..ServerSlot::default()
            };
            views.push(view(observed, seen, sample, &missing, range));
        }
        for slot in &sample.server_slots {
            let view = view(observed, seen, sample, slot, range);
            // Several databases of one server see the same slots; the one it belongs to knows most about it.
            match views.iter_mut().find(|known| known.name == slot.name) {
                Some(known) if view.pipeline.is_some() => *known = view,
                Some(_) => {}
                None => views.push(view),
            }
        }
    }
    views.sort_by(attention);
    views
}

/// Ours first, then the worst, then by name.
fn attention(a: &SlotView, b: &SlotView) -> std::cmp::Ordering {
    b.ours.cmp(&a.ours).then(b.severity.cmp(&a.severity)).then_with(|| a.name.cmp(&b.name))
}

fn view(observed: &Observed, seen: &Seen, sample: &Sample, slot: &ServerSlot, range: i64) -> SlotView {
    let key = key(seen);
    let own = sample.slot.as_ref().filter(|own| own.name == slot.name);
    const MIB: i64 = 1 << 20;
    let (warning, critical) = own.map_or((100 * MIB, 1024 * MIB), |o| (o.warning_bytes, o.critical_bytes));
    let growth = observed.growth(&key, &slot.name);
    let severity = match seen.error {
        // What was seen last says nothing about now.
        Some(_) => Severity::Unknown,
        None => slot_severity(slot, sample.sidecar_alive, warning, critical),
    };
    let until = |limit: Option<i64>| time_until(slot.retained_bytes?, limit?, growth);
    let retained = slot.retained_bytes.unwrap_or(0);
    let subject = Subject::Slot(slot.name.clone());
    let points = observed.points(&key, &subject, Measure::RetainedBytes, range);
    let level = |name, value: i64, severity| Threshold { name, value: value as f64, severity };
    let mut thresholds = Vec::new();
    if own.is_some() {
        thresholds.push(level("warning", warning, Severity::Warning));
        thresholds.push(level("critical", critical, Severity::Critical));
        thresholds.extend(sample.wal_keep_bytes.map(|b| level("lost", b, Severity::Critical)));
    }
    let title = "Retained WAL";
    let chart = Chart { title, unit: Unit::Bytes, points, thresholds, range, severity }.draw();
    SlotView {
        name: slot.name.clone(),
        ours: slot.ours || own.is_some(),
        database: slot.database.clone(),
        pipeline: own.map(|_| seen.pipeline.clone()),
        severity,
        kind: slot.kind.clone(),
        plugin: slot.plugin.clone(),
        active: slot.active,
        pid: slot.pid,
        client: slot.client.clone(),
        stream_state: slot.stream_state.clone(),
        wal_status: slot.wal_status.clone(),
        invalidation_reason: slot.invalidation_reason.clone(),
        retained_bytes: Bytes(slot.retained_bytes),
        confirmed_flush_lag_bytes: Bytes(slot.lag_bytes),
        headroom_bytes: Bytes(slot.safe_bytes),
        wal_keep_bytes: Bytes(sample.wal_keep_bytes),
        warning_bytes: Bytes(own.map(|_| warning)),
        critical_bytes: Bytes(own.map(|_| critical)),
        growth_bytes_per_second: ByteRate(growth),
        critical_in_seconds: Seconds(own.and_then(|_| until(Some(critical)))),
        lost_in_seconds: Seconds(until(slot.safe_bytes.map(|safe| retained + safe))),
        feedback_age_seconds: Seconds(slot.feedback_age_seconds),
        inactive_since: Moment(slot.inactive_since),
        restart_lsn: slot.restart_lsn.clone(),
        confirmed_flush_lsn: slot.confirmed_flush_lsn.clone(),
        failover: slot.failover,
        synced: slot.synced,
        chart,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str, ours: bool, severity: Severity) -> SlotView {
        let sample = Sample::default();
        let observed = Observed::default();
        let seen = Seen {
            database: "app".to_owned(),
            pipeline: "main".to_owned(),
            looked_at: chrono::DateTime::UNIX_EPOCH,
            error: None,
            sample: None,
            sampled_at: None,
            findings: Vec::new(),
        };
        let slot = ServerSlot { name: name.to_owned(), active: true, ..ServerSlot::default() };
        SlotView { ours, severity, ..view(&observed, &seen, &sample, &slot, 900) }
    }

    #[test]
    fn ours_come_first_then_the_worst_then_names() {
        let mut all = [
            slot("other_fine", false, Severity::Ok),
            slot("ours_fine_b", true, Severity::Ok),
            slot("other_bad", false, Severity::Critical),
            slot("ours_bad", true, Severity::Warning),
            slot("ours_fine_a", true, Severity::Ok),
            slot("other_unknown", false, Severity::Unknown),
            slot("ours_worst", true, Severity::Critical),
        ];
        all.sort_by(attention);
        let names: Vec<&str> = all.iter().map(|slot| slot.name.as_str()).collect();
        let ours = ["ours_worst", "ours_bad", "ours_fine_a", "ours_fine_b"];
        assert_eq!(names, [&ours[..], &["other_bad", "other_unknown", "other_fine"]].concat());
    }

    #[test]
    fn trouble_with_a_slot_of_ours_has_its_section_of_the_runbook() {
        let manual = include_str!("../../../docs/runbook.md");
        let fine = slot("a", true, Severity::Ok);
        assert_eq!(fine.advice(), None);
        let with = |status: &str, severity, active| SlotView {
            wal_status: Some(status.to_owned()),
            severity,
            active,
            ..fine.clone()
        };
        let reason = SlotView { invalidation_reason: Some("rows_removed".to_owned()), ..fine.clone() };
        for (view, section) in [
            (reason, "slot_invalidated"),
            (with("lost", Severity::Critical, false), "slot_invalidated"),
            (with("missing", Severity::Critical, false), "slot_missing"),
            (with("unreserved", Severity::Critical, true), "slot_lag"),
            (with("extended", Severity::Critical, true), "slot_lag"),
            (with("reserved", Severity::Warning, false), "slot_inactive"),
        ] {
            assert_eq!(view.advice().map(|(_, section)| section), Some(section), "{:?}", view.wal_status);
            let is_it = |line: &str| line.to_lowercase() == format!("## {section}");
            assert!(manual.lines().any(is_it), "{section} is no section of the runbook");
        }
    }
}
