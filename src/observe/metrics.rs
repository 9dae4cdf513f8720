//! The samples in the OpenMetrics text format.
//!
//! Names have the prefix `pgtrickle_` and base units; labels are few and bounded: database, pipeline, and the slot, source,
//! stream table or diagnosis that a number is about. What is unknown has no line.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Observed, Sample};

type Labels = Vec<(String, String)>;
type Integers = Family<Labels, Gauge>;
type Reals = Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>;
type Counts = Family<Labels, Counter>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

#[derive(Default)]
struct Families {
    up: Integers,
    absence: Integers,
    freshness: Reals,
    lag: Integers,
    received_lag: Integers,
    slot_active: Integers,
    slot_retained: Integers,
    slot_lag: Integers,
    slot_safe: Integers,
    slot_feedback: Reals,
    slot_status: Integers,
    slot_warning: Integers,
    slot_critical: Integers,
    cdc_state: Integers,
    fallback: Integers,
    buffer: Integers,
    table_freshness: Reals,
    table_state: Integers,
    table_stale: Integers,
    table_errors: Integers,
    table_bytes: Integers,
    table_rows: Integers,
    incidents: Counts,
    open: Integers,
    drift: Counts,
}

/// States that a slot can be in; the one it is in has 1, the others 0.
const SLOT_STATES: &[&str] = &["reserved", "extended", "unreserved", "lost", "missing"];
const CAPTURES: &[&str] = &["wal", "trigger", "transitioning"];
const TABLE_STATES: &[&str] = &["ACTIVE", "INITIALIZING", "SUSPENDED", "ERROR", "OFFLINE"];

/// All samples as text.
///
/// # Errors
/// None in practice: writing into a string does not fail.
pub fn render(observed: &Observed) -> Result<String, std::fmt::Error> {
    let families = Families::default();
    for seen in observed.seen() {
        let base = vec![
            ("database".to_owned(), escaped(&seen.database)),
            ("pipeline".to_owned(), escaped(&seen.pipeline)),
        ];
        let last = seen.sample.as_deref();
        let now = last.filter(|_| seen.error.is_none());
        families.up.get_or_create(&base).set(i64::from(now.is_some_and(|s| s.sidecar_alive)));
        match now {
            Some(sample) => families.fill(&base, sample),
            // What was planned stays planned, also while nobody can look: a database that is moved is away, too.
            None if last.is_some_and(Sample::is_absent) => {
                families.absence.get_or_create(&base).set(1);
            }
            None => {}
        }
    }
    let mut registry = Registry::with_prefix("pgtrickle");
    let build = Family::<Build, Gauge>::default();
    build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
    registry.register("build_info", "Version of the sidecar", build);
    families.register(&mut registry);
    observed.counters.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// A label's value as the text format wants it. The library writes values as they are, and a quoted name alone would
/// make the whole answer unreadable.
pub(super) fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn with(base: &Labels, more: &[(&str, &str)]) -> Labels {
    let more = more.iter().map(|(name, value)| ((*name).to_owned(), escaped(value)));
    base.iter().cloned().chain(more).collect()
}

fn one_of(family: &Integers, base: &Labels, label: &str, states: &[&str], state: &str) {
    for known in states {
        family.get_or_create(&with(base, &[(label, known)])).set(i64::from(*known == state));
    }
    if !states.contains(&state) {
        family.get_or_create(&with(base, &[(label, state)])).set(1);
    }
}

fn known(family: &Integers, labels: &Labels, value: Option<i64>) {
    if let Some(value) = value {
        family.get_or_create(labels).set(value);
    }
}

impl Families {
    fn fill(&self, base: &Labels, sample: &Sample) {
        self.absence.get_or_create(base).set(i64::from(sample.is_absent()));
        if let Some(seconds) = sample.freshness_seconds {
            self.freshness.get_or_create(base).set(seconds);
        }
        known(&self.lag, base, sample.applied_lag_bytes);
        known(&self.received_lag, base, sample.received_lag_bytes());
        if let Some(slot) = &sample.slot {
            let labels = with(base, &[("slot", &slot.name)]);
            self.slot_active.get_or_create(&labels).set(i64::from(slot.active));
            known(&self.slot_retained, &labels, slot.retained_bytes);
            known(&self.slot_lag, &labels, slot.lag_bytes);
            known(&self.slot_safe, &labels, slot.safe_bytes);
            if let Some(seconds) = sample.feedback_age_seconds() {
                self.slot_feedback.get_or_create(&labels).set(seconds);
            }
            known(&self.slot_warning, &labels, Some(slot.warning_bytes));
            known(&self.slot_critical, &labels, Some(slot.critical_bytes));
            if let Some(status) = &slot.wal_status {
                one_of(&self.slot_status, &labels, "status", SLOT_STATES, status);
            }
        }
        for source in &sample.sources {
            let labels = with(base, &[("source", &source.name)]);
            one_of(&self.cdc_state, &labels, "state", CAPTURES, &source.capture);
            self.fallback.get_or_create(&labels).set(i64::from(source.fallback_ready));
            known(&self.buffer, &labels, source.buffer_bytes);
        }
        for table in &sample.stream_tables {
            let labels = with(base, &[("stream_table", &table.name), ("mode", &table.refresh_mode)]);
            if let Some(seconds) = table.freshness_seconds {
                self.table_freshness.get_or_create(&labels).set(seconds);
            }
            let labels = with(base, &[("stream_table", &table.name)]);
            one_of(&self.table_state, &labels, "state", TABLE_STATES, &table.status);
            self.table_stale.get_or_create(&labels).set(i64::from(table.stale));
            self.table_errors.get_or_create(&labels).set(table.consecutive_errors);
            known(&self.table_bytes, &labels, table.state_bytes);
            known(&self.table_rows, &labels, table.state_rows);
        }
        for incident in &sample.incidents {
            let of = [("source", incident.source.as_str()), ("diagnosis", &incident.diagnosis)];
            let labels = with(base, &of);
            count(&self.incidents, &labels, incident.incidents);
            self.open.get_or_create(&labels).set(incident.open);
            let rows = [
                ("insert", incident.rows_inserted),
                ("update", incident.rows_updated),
                ("delete", incident.rows_deleted),
            ];
            for (operation, rows) in rows {
                count(&self.drift, &with(&labels, &[("operation", operation)]), rows);
            }
        }
    }

    fn register(self, registry: &mut Registry) {
        registry.register(
            "up",
            "1 while a sidecar holds the pipeline and the database can be looked at",
            self.up,
        );
        registry.register("planned_absence", "1 while the pipeline is paused or detached", self.absence);
        registry.register(
            "freshness_seconds",
            "Age of the moment up to which the incremental stream tables are complete",
            self.freshness,
        );
        registry.register("applied_lag_bytes", "WAL between the frontier and the end of the WAL", self.lag);
        registry.register(
            "replication_received_lag_bytes",
            "WAL between what this process has received and the end of the WAL",
            self.received_lag,
        );
        registry.register("slot_active", "1 while somebody streams from the slot", self.slot_active);
        registry.register(
            "slot_retained_wal_bytes",
            "WAL that the server keeps for the slot",
            self.slot_retained,
        );
        registry.register(
            "slot_confirmed_flush_lag_bytes",
            "WAL that the slot has not confirmed",
            self.slot_lag,
        );
        registry.register(
            "slot_safe_wal_bytes",
            "WAL that can be written before the slot is in danger of being lost",
            self.slot_safe,
        );
        registry.register(
            "slot_feedback_age_seconds",
            "Time since the server heard from whoever streams from the slot",
            self.slot_feedback,
        );
        registry.register("slot_wal_status", "State of the slot: 1 for the one it is in", self.slot_status);
        registry.register("slot_warning_threshold_bytes", "slot_lag_warning_threshold_mb", self.slot_warning);
        registry.register(
            "slot_critical_threshold_bytes",
            "slot_lag_critical_threshold_mb",
            self.slot_critical,
        );
        registry.register("cdc_state", "How a source is captured: 1 for the state it is in", self.cdc_state);
        registry.register(
            "fallback_ready",
            "1 where triggers could take over if the slot were lost",
            self.fallback,
        );
        registry.register("trigger_buffer_bytes", "Size of a source's change buffer", self.buffer);
        registry.register(
            "stream_table_freshness_seconds",
            "Age of the moment up to which a stream table is complete",
            self.table_freshness,
        );
        registry.register(
            "stream_table_state",
            "State of a stream table: 1 for the one it is in",
            self.table_state,
        );
        registry.register(
            "stream_table_stale",
            "1 while a stream table is not as fresh as its schedule or stale_after promises",
            self.table_stale,
        );
        registry.register(
            "stream_table_consecutive_errors",
            "Failures since the last success",
            self.table_errors,
        );
        registry.register(
            "stream_table_state_bytes",
            "Memory that the sidecar holds for a stream table alone, estimated",
            self.table_bytes,
        );
        registry.register(
            "stream_table_state_rows",
            "Rows that the sidecar holds for a stream table alone",
            self.table_rows,
        );
        registry.register(
            "incidents",
            "Restores, failovers and accidents that were diagnosed",
            self.incidents,
        );
        registry.register("incidents_open", "Incidents whose repair has not ended", self.open);
        registry.register(
            "restore_drift_rows",
            "Rows of stream tables that the reconciles after incidents inserted, updated or deleted",
            self.drift,
        );
    }
}

fn count(family: &Counts, labels: &Labels, value: i64) {
    family.get_or_create(labels).inc_by(u64::try_from(value).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::super::{Incident, ServerSlot, Slot, Source, StreamTable};
    use super::*;

    fn sample() -> Sample {
        Sample {
            server_version: "15.1".to_owned(),
            sidecar_alive: true,
            delivery: Some("slot".to_owned()),
            freshness_seconds: Some(0.5),
            applied_lag_bytes: Some(7),
            wal_lsn: Some("1/20".to_owned()),
            received_lsn: Some("0/FFFFFFF0".to_owned()),
            server_slots: vec![ServerSlot {
                name: "s".to_owned(),
                feedback_age_seconds: Some(0.25),
                ..ServerSlot::default()
            }],
            slot: Some(Slot {
                name: "s".to_owned(),
                active: true,
                wal_status: Some("reserved".to_owned()),
                retained_bytes: Some(1),
                lag_bytes: Some(2),
                safe_bytes: Some(3),
                warning_bytes: 4,
                critical_bytes: 5,
            }),
            sources: vec![Source {
                name: "a.t".to_owned(),
                capture: "wal".to_owned(),
                fallback_ready: true,
                buffer_bytes: Some(8192),
                ..Source::default()
            }],
            stream_tables: vec![StreamTable {
                name: "a.st".to_owned(),
                status: "ACTIVE".to_owned(),
                refresh_mode: "DIFFERENTIAL".to_owned(),
                freshness_seconds: Some(0.1),
                state_rows: Some(1),
                state_bytes: Some(100),
                ..StreamTable::default()
            }],
            incidents: vec![Incident {
                source: "a.t".to_owned(),
                diagnosis: "SLOT_MISSING".to_owned(),
                incidents: 1,
                open: 0,
                rows_inserted: 1,
                rows_updated: 2,
                rows_deleted: 3,
            }],
            ..Sample::default()
        }
    }

    #[test]
    fn the_page_names_exactly_the_metrics_that_there_are() {
        let observed = Observed::default();
        let running = tokio_util::sync::CancellationToken::new();
        observed.note(&("db".to_owned(), "main".to_owned()), Ok(std::sync::Arc::new(sample())), &running);
        let counters = observed.counters("db", "main");
        counters.rows("a.st", [1, 0, 0]);
        counters.refreshed("a.st", "FULL", true);
        let text = render(&observed).unwrap();
        let names = |text: &str| -> std::collections::BTreeSet<String> {
            let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
            let base = |w: &str| {
                let parts = ["_bucket", "_sum", "_count"].into_iter();
                parts.filter_map(|part| w.strip_suffix(part)).next().unwrap_or(w).to_owned()
            };
            words.filter(|w| w.starts_with("pgtrickle_")).map(base).collect()
        };
        let lines: String = text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        assert_eq!(names(&lines), names(include_str!("../../docs/monitoring.md")));
        assert!(text.contains("operation=\"delete\"} 3\n"), "{text}");
        assert!(text.contains("received_lag_bytes{database=\"db\",pipeline=\"main\"} 48\n"), "{text}");
        assert!(text.contains("slot=\"s\"} 0.25\n"), "{text}");
    }

    #[test]
    fn what_waits_is_told_with_its_time_and_a_write_of_nothing_is_no_batch() {
        let observed = Observed::default();
        let counters = observed.counters("db", "main");
        counters.full(true);
        counters.held_back(std::time::Duration::from_millis(1500));
        counters.applied(std::time::Duration::ZERO, 0, 2);
        counters.applied(std::time::Duration::ZERO, 7, 0);
        let text = render(&observed).unwrap();
        for (name, value) in [
            ("memory_backpressure_active", "1"),
            ("backpressure_seconds_total", "1.5"),
            ("apply_conflicts_total", "2"),
            ("apply_batch_rows_count", "1"),
            ("apply_batch_rows_sum", "7.0"),
            ("apply_duration_seconds_count", "2"),
        ] {
            let line = format!("pgtrickle_{name}{{database=\"db\",pipeline=\"main\"}} {value}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
