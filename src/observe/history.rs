//! What was measured of one pipeline over time.
//!
//! In memory only: after a restart the charts begin anew, as do the numbers of the metrics.

use std::collections::BTreeMap;

use super::Sample;
use super::series::{Fold, OF_PIPELINES, OF_TABLES, Point, Series};

/// Stream tables beyond this many have no history.
const MOST_TABLES: usize = 2000;
/// Slots beyond this many have no history.
const MOST_SLOTS: usize = 64;
/// A growth rate is that of so many seconds.
const GROWTH: i64 = 300;

/// And needs so many. A server under load lets go of WAL in steps (its background writer notes what runs every 15 s):
/// before there are several, a slot that is read in time looks as if it grew.
const STEPS: i64 = 120;
/// What was not seen for so many seconds is forgotten.
const FORGOTTEN: i64 = 86_400;

/// What a series is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Pipeline,
    Slot(String),
    Table(String),
}

/// What a series measures; the name is that of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    RetainedBytes,
    ConfirmedFlushLagBytes,
    AppliedLagBytes,
    FreshnessSeconds,
    WalBytesPerSecond,
    RowsPerSecond,
}

impl Measure {
    pub const ALL: [Measure; 6] = [
        Measure::RetainedBytes,
        Measure::ConfirmedFlushLagBytes,
        Measure::AppliedLagBytes,
        Measure::FreshnessSeconds,
        Measure::WalBytesPerSecond,
        Measure::RowsPerSecond,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Measure::RetainedBytes => "retained_bytes",
            Measure::ConfirmedFlushLagBytes => "confirmed_flush_lag_bytes",
            Measure::AppliedLagBytes => "applied_lag_bytes",
            Measure::FreshnessSeconds => "freshness_seconds",
            Measure::WalBytesPerSecond => "wal_bytes_per_second",
            Measure::RowsPerSecond => "rows_per_second",
        }
    }

    fn fold(self) -> Fold {
        match self {
            Measure::WalBytesPerSecond | Measure::RowsPerSecond => Fold::Mean,
            _ => Fold::Peak,
        }
    }
}

/// The past of one pipeline.
#[derive(Debug, Default)]
pub struct History {
    series: BTreeMap<(Subject, Measure), Series>,
    /// Counters at the last look, and when that was: rates are their differences.
    counters: BTreeMap<Subject, (i64, i64)>,
}

/// Bytes of a position such as `0/5A31F8`.
pub fn lsn(text: &str) -> Option<i64> {
    let (high, low) = text.split_once('/')?;
    let high = u64::from_str_radix(high, 16).ok()?;
    let low = u64::from_str_radix(low, 16).ok()?;
    i64::try_from((high << 32).checked_add(low)?).ok()
}

impl History {
    /// Notes a look; `None`: nothing could be seen, which leaves gaps.
    pub fn note(&mut self, at: i64, sample: Option<&Sample>) {
        let Some(sample) = sample else {
            for series in self.series.values_mut() {
                series.push(at, None);
            }
            return;
        };
        let slot = sample.slot.as_ref();
        let float = |v: Option<i64>| v.map(|v| v as f64);
        let wal = self.rate(at, &Subject::Pipeline, sample.wal_lsn.as_deref().and_then(lsn));
        let pipeline = [
            (Measure::RetainedBytes, float(slot.and_then(|s| s.retained_bytes))),
            (Measure::ConfirmedFlushLagBytes, float(slot.and_then(|s| s.lag_bytes))),
            (Measure::AppliedLagBytes, float(sample.applied_lag_bytes)),
            (Measure::FreshnessSeconds, sample.freshness_seconds),
            (Measure::WalBytesPerSecond, wal),
        ];
        for (measure, value) in pipeline {
            self.push(at, Subject::Pipeline, measure, value);
        }
        for slot in sample.server_slots.iter().take(MOST_SLOTS) {
            let value = float(slot.retained_bytes);
            self.push(at, Subject::Slot(slot.name.clone()), Measure::RetainedBytes, value);
        }
        for table in sample.stream_tables.iter().take(MOST_TABLES) {
            let subject = Subject::Table(table.name.clone());
            let rows = self.rate(at, &subject, table.rows_written);
            self.push(at, subject.clone(), Measure::FreshnessSeconds, table.freshness_seconds);
            self.push(at, subject, Measure::RowsPerSecond, rows);
        }
        self.series.retain(|_, series| at - series.last() < FORGOTTEN);
        self.counters.retain(|_, (_, noted)| at - *noted < FORGOTTEN);
    }

    fn push(&mut self, at: i64, subject: Subject, measure: Measure, value: Option<f64>) {
        let resolutions = if matches!(subject, Subject::Table(_)) { OF_TABLES } else { OF_PIPELINES };
        let new = || Series::new(measure.fold(), resolutions);
        self.series.entry((subject, measure)).or_insert_with(new).push(at, value);
    }

    /// Change of a counter per second since the last look; absent when it went back (a restore, new statistics).
    fn rate(&mut self, at: i64, subject: &Subject, counter: Option<i64>) -> Option<f64> {
        let counter = counter?;
        let (before, when) = self.counters.insert(subject.clone(), (counter, at))?;
        (counter >= before && at > when).then(|| (counter - before) as f64 / (at - when) as f64)
    }

    /// What is known of the last `seconds`.
    pub fn points(&self, subject: &Subject, measure: Measure, now: i64, seconds: i64) -> Vec<Point> {
        let series = self.series.get(&(subject.clone(), measure));
        series.map(|series| series.points(now, seconds)).unwrap_or_default()
    }

    /// The newest value, if the last look brought one.
    pub fn newest(&self, subject: &Subject, measure: Measure, now: i64) -> Option<f64> {
        self.points(subject, measure, now, 30).last().and_then(|(_, value)| *value)
    }

    /// Bytes per second by which what a slot retains has grown in the last minutes.
    pub fn growth(&self, slot: &str, now: i64) -> Option<f64> {
        let key = (Subject::Slot(slot.to_owned()), Measure::RetainedBytes);
        self.series.get(&key)?.slope(now, GROWTH, STEPS)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ServerSlot, StreamTable};
    use super::*;

    fn look(position: &str, retained: Option<i64>, written: i64) -> Sample {
        Sample {
            wal_lsn: Some(position.to_owned()),
            server_slots: vec![ServerSlot {
                name: "s".to_owned(),
                retained_bytes: retained,
                ..ServerSlot::default()
            }],
            stream_tables: vec![StreamTable {
                name: "a.t".to_owned(),
                rows_written: Some(written),
                ..StreamTable::default()
            }],
            ..Sample::default()
        }
    }

    #[test]
    fn positions_are_bytes() {
        assert_eq!(lsn("1/10"), Some((1 << 32) + 16));
        assert_eq!(lsn("x"), None);
    }

    #[test]
    fn rates_are_differences_and_a_counter_that_went_back_has_none() {
        let mut history = History::default();
        let table = Subject::Table("a.t".to_owned());
        history.note(100, Some(&look("0/0", Some(100), 50)));
        history.note(110, Some(&look("0/64", Some(200), 70)));
        assert_eq!(history.newest(&table, Measure::RowsPerSecond, 110), Some(2.0));
        assert_eq!(history.newest(&Subject::Pipeline, Measure::WalBytesPerSecond, 110), Some(10.0));
        history.note(120, Some(&look("0/C8", Some(300), 3)));
        assert_eq!(history.newest(&table, Measure::RowsPerSecond, 120), None);
        assert_eq!(history.growth("s", 120), None, "too short a time");
        history.note(220, Some(&look("0/C8", Some(1300), 3)));
        assert!((history.growth("s", 220).unwrap() - 10.0).abs() < 1e-9);
        history.note(130, None);
        assert_eq!(history.newest(&Subject::Pipeline, Measure::RetainedBytes, 130), None);
        assert_eq!(history.growth("unknown", 130), None);
    }
}
