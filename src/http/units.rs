//! Numbers as people read them and as JSON has them.
//!
//! Invariant: what is unknown is shown as a dash and is `null` in JSON; it never becomes a zero.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

/// What stands for a number that is not known.
const UNKNOWN: &str = "–";

/// An amount of memory or WAL.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub Option<i64>);

/// A duration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Seconds(pub Option<f64>);

/// How many.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Count(pub Option<i64>);

/// So many per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Rate(pub Option<f64>);

/// So many bytes per second; negative when it shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(transparent)]
pub struct ByteRate(pub Option<f64>);

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment(pub Option<DateTime<Utc>>);

/// For templates, which hand over references.
pub fn moment(at: &Option<DateTime<Utc>>) -> Moment {
    Moment(*at)
}

pub fn count(number: &Option<i64>) -> Count {
    Count(*number)
}

pub fn size(amount: &Option<i64>) -> Bytes {
    Bytes(*amount)
}

pub fn duration(seconds: &Option<f64>) -> Seconds {
    Seconds(*seconds)
}

/// `1.2 MiB`.
pub(super) fn bytes(amount: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (amount, 0);
    while value.abs() >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit_name = UNITS[unit];
    if unit == 0 || value.abs() >= 100.0 {
        format!("{value:.0} {unit_name}")
    } else {
        format!("{value:.1} {unit_name}")
    }
}

/// `34 ms`, `1.5 s`, `12 min`, `3.2 h`, `4.1 d`.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds.abs() {
        s if s < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        s if s < 10.0 => format!("{seconds:.1} s"),
        s if s < 120.0 => format!("{seconds:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", seconds / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} d", seconds / 86_400.0),
    }
}

/// `1 234 567`, with thin spaces that do not break.
fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    if number < 0 { format!("−{text}") } else { text }
}

/// `0`, `0.3`, `12`, `3.4 k`, `1.2 M`.
pub(super) fn rate(rate: f64) -> String {
    match rate.abs() {
        0.0 => "0".to_owned(),
        r if r < 0.05 => "< 0.1".to_owned(),
        r if r < 10.0 => format!("{rate:.1}"),
        r if r < 1000.0 => format!("{rate:.0}"),
        r if r < 1e6 => format!("{:.1} k", rate / 1e3),
        _ => format!("{:.1} M", rate / 1e6),
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(amount) => f.write_str(&bytes(amount as f64)),
            None => f.write_str(UNKNOWN),
        }
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(amount) => f.write_str(&seconds(amount)),
            None => f.write_str(UNKNOWN),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => f.write_str(&grouped(number)),
            None => f.write_str(UNKNOWN),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "{}/s", rate(number)),
            None => f.write_str(UNKNOWN),
        }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "{}/s", bytes(number)),
            None => f.write_str(UNKNOWN),
        }
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(at) => serializer.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => serializer.serialize_none(),
        }
    }
}

impl Moment {
    pub fn now() -> Moment {
        Moment(Some(Utc::now()))
    }

    pub fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// How long ago it was, with the exact time for machines and on hover. Only digits and fixed words: safe as HTML.
    pub fn html(&self) -> String {
        let Some(at) = self.0 else { return UNKNOWN.to_owned() };
        let age = (Utc::now() - at).num_milliseconds() as f64 / 1000.0;
        let words = match age {
            a if a < 1.5 => "just now".to_owned(),
            a => format!("{} ago", seconds(a)),
        };
        let machine = at.to_rfc3339_opts(SecondsFormat::Millis, true);
        format!(
            "<time datetime=\"{machine}\" title=\"{}\">{words}</time>",
            at.format("%Y-%m-%d %H:%M:%S UTC")
        )
    }

    /// `2026-11-22 18:05:19`, in UTC, with the age on hover; safe as HTML.
    pub fn exact(&self) -> String {
        let Some(at) = self.0 else { return UNKNOWN.to_owned() };
        let machine = at.to_rfc3339_opts(SecondsFormat::Millis, true);
        let age = (Utc::now() - at).num_seconds() as f64;
        let shown = at.format("%Y-%m-%d %H:%M:%S");
        format!("<time datetime=\"{machine}\" title=\"{} ago (UTC)\">{shown}</time>", seconds(age.max(0.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_and_what_is_unknown_is_no_zero() {
        assert_eq!(Bytes(Some(0)).to_string(), "0 B");
        assert_eq!(Bytes(Some(48 << 20)).to_string(), "48.0 MiB");
        assert_eq!(Bytes(Some(1 << 30)).to_string(), "1.0 GiB");
        assert_eq!(Bytes(Some(1_048_570)).to_string(), "1.0 MiB");
        assert_eq!(Bytes(None).to_string(), "–");
        assert_eq!(Seconds(Some(0.034)).to_string(), "34 ms");
        assert_eq!(Seconds(Some(7.25)).to_string(), "7.2 s");
        assert_eq!(Seconds(Some(600.0)).to_string(), "10 min");
        assert_eq!(Seconds(Some(90_000.0)).to_string(), "25.0 h");
        assert_eq!(Count(Some(-1_234_567)).to_string(), "−1\u{202f}234\u{202f}567");
        assert_eq!(Rate(Some(0.0)).to_string(), "0/s");
        assert_eq!(Rate(Some(3400.0)).to_string(), "3.4 k/s");
        assert_eq!(ByteRate(Some(2048.0)).to_string(), "2.0 KiB/s");
        let json = serde_json::json!([Bytes(None), Seconds(Some(0.5)), Count(Some(3)), Moment(None)]);
        assert_eq!(json.to_string(), "[null,0.5,3,null]");
    }

    #[test]
    fn a_moment_tells_its_age_and_keeps_the_exact_time() {
        let at = Utc::now() - chrono::TimeDelta::seconds(90);
        let html = Moment(Some(at)).html();
        assert!(html.contains("90 s ago") && html.contains(&at.format("%H:%M:%S UTC").to_string()), "{html}");
        assert_eq!(Moment(None).html(), "–");
    }
}
