//! What a stream table's schedule means: when it is due, and through whom the dataflow reaches it (D13).
//!
//! Invariant: a stream table reads another one through the dataflow only if both are always written in the same
//! transaction; otherwise it reads what the other one stores.

use std::str::FromStr;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use croner::Cron;

use crate::error::{Error, ErrorKind, Result};

/// The longest duration that a schedule may be; the catalog refuses a longer one.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

/// When the changes of a stream table are written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cadence {
    /// With every apply.
    Continuous,
    /// So long after the last time.
    Every(Duration),
    /// At the moments of a cron expression, in UTC.
    Cron(String),
    /// When somebody asks.
    Manual,
}

/// A moment at which something is due. Cron means the wall clock, a duration does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Never,
    After(Instant),
    At(DateTime<Utc>),
}

impl Due {
    pub fn now() -> Due {
        Due::After(Instant::now())
    }

    pub fn has_come(self) -> bool {
        match self {
            Due::Never => false,
            Due::After(moment) => moment <= Instant::now(),
            Due::At(moment) => moment <= Utc::now(),
        }
    }

    /// For how long it has been due; `None`: it is not.
    pub fn overdue(self) -> Option<Duration> {
        match self {
            Due::Never => None,
            Due::After(moment) => Instant::now().checked_duration_since(moment),
            Due::At(moment) => (Utc::now() - moment).to_std().ok(),
        }
    }

    /// As the catalog shows it.
    pub fn moment(self) -> Option<DateTime<Utc>> {
        match self {
            Due::Never => None,
            Due::After(moment) => {
                let left = moment.saturating_duration_since(Instant::now());
                Utc::now().checked_add_signed(chrono::Duration::from_std(left).ok()?)
            }
            Due::At(moment) => Some(moment),
        }
    }
}

impl Cadence {
    /// Reads a schedule as `pgtrickle.parse_schedule` does, which the catalog checks on every write.
    ///
    /// Errors: `Query`, 22023 for what is none.
    pub fn parse(schedule: &str) -> Result<Cadence> {
        let text = schedule.trim().to_lowercase();
        match text.as_str() {
            "" | "calculated" | "continuous" => return Ok(Cadence::Continuous),
            "manual" => return Ok(Cadence::Manual),
            _ => {}
        }
        if let Some(period) = duration(&text) {
            return Ok(Cadence::Every(period));
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let pattern = words.join(" ");
        match cron(&pattern) {
            Some(_) => Ok(Cadence::Cron(pattern)),
            None => {
                Err(Error::new(ErrorKind::Query, format!("the schedule '{schedule}' can't be understood"))
                    .with_sqlstate("22023")
                    .with_hint("give it another one with pgtrickle.alter_stream_table"))
            }
        }
    }

    /// When something is due that was done just now.
    pub fn next(&self) -> Due {
        match self {
            Cadence::Continuous => Due::now(),
            Cadence::Every(period) => match Instant::now().checked_add(*period) {
                Some(moment) => Due::After(moment),
                None => Due::Never,
            },
            Cadence::Cron(pattern) => {
                let next = cron(pattern).and_then(|c| c.find_next_occurrence(&Utc::now(), false).ok());
                next.map_or(Due::Never, Due::At)
            }
            Cadence::Manual => Due::Never,
        }
    }

    /// Whether a stream table of this cadence is written in every transaction that writes one of `downstream`: then the
    /// dataflow goes through. What is continuous is part of every apply; stream tables of one schedule are due together;
    /// manual ones are asked for one by one.
    pub fn flows_into(&self, downstream: &Cadence) -> bool {
        match self {
            Cadence::Continuous => true,
            Cadence::Manual => false,
            Cadence::Every(_) | Cadence::Cron(_) => self == downstream,
        }
    }
}

fn cron(pattern: &str) -> Option<Cron> {
    let pattern = if pattern == "@midnight" { "@daily" } else { pattern };
    Cron::from_str(pattern).ok()
}

/// `5s`, `1h30m`, `2 days`, `1.5 h`, `250 ms`; `None` if it is no duration longer than nothing.
fn duration(text: &str) -> Option<Duration> {
    let (mut total, mut rest) = (Duration::ZERO, text.trim());
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" | "millisecond" | "milliseconds" => 0.001,
            "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600.0,
            "d" | "day" | "days" => 86_400.0,
            "w" | "week" | "weeks" => 604_800.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = rest[letters..].trim_start();
    }
    (!total.is_zero() && total <= LONGEST).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(milliseconds: u64) -> Cadence {
        Cadence::Every(Duration::from_millis(milliseconds))
    }

    #[test]
    fn schedules_are_durations_cron_or_words() {
        for (text, cadence) in [
            ("calculated", Cadence::Continuous),
            ("", Cadence::Continuous),
            (" Manual", Cadence::Manual),
            ("5s", every(5_000)),
            ("1h30m", every(5_400_000)),
            ("2 days", every(172_800_000)),
            ("90 min", every(5_400_000)),
            ("500ms", every(500)),
            ("1.5 s", every(1_500)),
            ("*/5  * * * *", Cadence::Cron("*/5 * * * *".to_owned())),
            ("0 0 * jan mon", Cadence::Cron("0 0 * jan mon".to_owned())),
        ] {
            assert_eq!(Cadence::parse(text).unwrap(), cadence, "{text}");
        }
        for text in ["5 parsecs", "0s", "* * *", "@never", "61 * * * *"] {
            assert_eq!(Cadence::parse(text).unwrap_err().sqlstate(), Some("22023"), "{text}");
        }
    }

    #[test]
    fn cron_has_five_or_six_fields_or_a_name() {
        for text in [
            "* * * * *",
            "*/10 * * * * *",
            "@hourly",
            "@midnight",
            "@yearly",
            "0 9-17/2 * * 1-5",
            "0 0 * * 7",
        ] {
            let Due::At(next) = Cadence::parse(text).unwrap().next() else { panic!("{text}: never due") };
            assert!(next > Utc::now(), "{text}");
        }
        let Due::At(next) = Cadence::parse("* * * * * *").unwrap().next() else { panic!("never due") };
        assert!(next - Utc::now() <= chrono::Duration::seconds(1));
    }

    #[test]
    fn the_dataflow_goes_through_only_what_is_written_in_the_same_transaction() {
        use Cadence::*;
        let hourly = Cron("@hourly".to_owned());
        for (upstream, downstream, flows) in [
            (Continuous, Continuous, true),
            (Continuous, every(1), true),
            (Continuous, Manual, true),
            (every(5), every(5), true),
            (every(5), every(10), false),
            (every(5), Continuous, false),
            (hourly.clone(), hourly.clone(), true),
            (hourly, Manual, false),
            (Manual, Manual, false),
            (Manual, Continuous, false),
        ] {
            assert_eq!(upstream.flows_into(&downstream), flows, "{upstream:?} into {downstream:?}");
        }
    }
}
