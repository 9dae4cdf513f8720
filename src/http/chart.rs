//! Charts as SVG without a script: a line with its area, thresholds, and the same in words for those who do not see it.
//!
//! The drawing is stretched to its place, so words are HTML around it. Gaps stay gaps.

use std::fmt::Write;

use askama::Template;
use chrono::{DateTime, Utc};

use super::units;
use crate::observe::{Point, Severity};

/// Width and height of the drawing's own coordinates.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;

/// What the values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    BytesPerSecond,
    Seconds,
    RowsPerSecond,
}

impl Unit {
    fn format(self, value: f64) -> String {
        match self {
            Unit::Bytes => units::bytes(value),
            Unit::BytesPerSecond => format!("{}/s", units::bytes(value)),
            Unit::Seconds => units::seconds(value),
            Unit::RowsPerSecond => format!("{}/s", units::rate(value)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Unit::Bytes => "bytes",
            Unit::BytesPerSecond => "bytes_per_second",
            Unit::Seconds => "seconds",
            Unit::RowsPerSecond => "rows_per_second",
        }
    }

    /// The smallest top of the scale: noise near zero is no mountain.
    fn least(self) -> f64 {
        match self {
            Unit::Bytes => 1_048_576.0,
            Unit::BytesPerSecond => 1024.0,
            Unit::Seconds => 1.0,
            Unit::RowsPerSecond => 10.0,
        }
    }

    /// The next round number in this unit.
    fn round_up(self, value: f64) -> f64 {
        let base: f64 = match self {
            Unit::Bytes | Unit::BytesPerSecond => 1024.0,
            Unit::Seconds | Unit::RowsPerSecond => 1.0,
        };
        let scale = if base > 1.0 { base.powi(value.log(base).floor() as i32) } else { 1.0 };
        let value = value / scale;
        let power = 10f64.powf(value.log10().floor());
        let steps = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
        let step = steps.iter().find(|step| **step * power >= value).unwrap_or(&10.0);
        step * power * scale
    }
}

/// A level that matters.
#[derive(Debug, Clone)]
pub struct Threshold {
    pub name: &'static str,
    pub value: f64,
    pub severity: Severity,
}

/// What is drawn.
pub struct Chart<'a> {
    pub title: &'a str,
    pub unit: Unit,
    pub points: Vec<Point>,
    pub thresholds: Vec<Threshold>,
    /// Seconds that were asked for.
    pub range: i64,
    /// Colour of the line.
    pub severity: Severity,
}

/// A chart in parts that a template puts together.
#[derive(Debug, Clone, Default, Template)]
#[template(path = "chart.html")]
pub struct Drawn {
    pub title: String,
    /// The same in words.
    pub summary: String,
    pub newest: String,
    pub class: &'static str,
    pub line: String,
    pub area: String,
    /// Vertical place of a threshold inside the drawing, its name, value and class.
    pub levels: Vec<(String, String, &'static str)>,
    /// Thresholds above the drawing.
    pub beyond: Vec<String>,
    /// Labels of the vertical axis, highest first, and of the horizontal one, oldest first.
    pub high: String,
    pub middle: String,
    pub oldest: String,
    /// Points for the script: `[[seconds, value], ...]`, and their unit.
    pub data: String,
    pub unit: &'static str,
}

impl Chart<'_> {
    pub fn draw(self) -> Drawn {
        let known: Vec<(i64, f64)> =
            self.points.iter().filter_map(|(at, value)| Some((*at, (*value)?))).collect();
        let unit = self.unit;
        let mut drawn = Drawn {
            title: self.title.to_owned(),
            class: self.severity.name(),
            unit: unit.name(),
            ..Drawn::default()
        };
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            drawn.summary = format!("{}: nothing has been measured yet", self.title);
            drawn.newest = "–".to_owned();
            return drawn;
        };
        let highest = known.iter().map(|(_, v)| *v).fold(0.0, f64::max);
        let mut top = unit.round_up((highest * 1.05).max(unit.least()));
        // A threshold that is near belongs into the drawing; one that is far away would flatten the line.
        for level in &self.thresholds {
            if level.value > top && level.value <= highest * 3.0 {
                top = unit.round_up(level.value * 1.05);
            }
        }
        // A young process has a short past: it fills the drawing from the start.
        let (from, to) = (first.0, last.0.max(first.0 + 60));
        let x = |at: i64| (at - from) as f64 / (to - from) as f64 * WIDTH;
        let y = |value: f64| HEIGHT - (value / top).clamp(0.0, 1.0) * HEIGHT;
        for run in self.points.split(|(_, value)| value.is_none()) {
            let mut path = String::new();
            for (n, (at, value)) in run.iter().filter_map(|(at, v)| Some((at, (*v)?))).enumerate() {
                let letter = if n == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{letter}{:.1} {:.1}", x(*at), y(value));
            }
            if let (Some((start, _)), Some((end, _))) = (run.first(), run.last()) {
                let _ = write!(drawn.area, "{path}L{:.1} {HEIGHT:.1}L{:.1} {HEIGHT:.1}Z", x(*end), x(*start));
                drawn.line.push_str(&path);
            }
        }
        for level in &self.thresholds {
            let words = format!("{} at {}", level.name, unit.format(level.value));
            match level.value <= top {
                true => drawn.levels.push((format!("{:.1}", y(level.value)), words, level.severity.name())),
                false => drawn.beyond.push(words),
            }
        }
        drawn.newest = last.1.map_or_else(|| "–".to_owned(), |v| unit.format(v));
        drawn.high = unit.format(top);
        drawn.middle = unit.format(top / 2.0);
        let oldest = DateTime::<Utc>::from_timestamp(from, 0).unwrap_or_default();
        let form = if to - from > 86_400 { "%b %d %H:%M" } else { "%H:%M" };
        drawn.oldest = oldest.format(form).to_string();
        let span = units::seconds(((to - from) as f64).min(self.range as f64));
        drawn.summary = match known.last() {
            Some((_, newest)) => format!(
                "{} over the last {span}: now {}, highest {}",
                self.title,
                unit.format(*newest),
                unit.format(highest)
            ),
            None => format!("{} over the last {span}: unknown", self.title),
        };
        let values = self.points.iter().map(|(at, value)| match value {
            Some(value) => format!("[{at},{}]", (value * 1000.0).round() / 1000.0),
            None => format!("[{at},null]"),
        });
        drawn.data = format!("[{}]", values.collect::<Vec<_>>().join(","));
        drawn
    }
}

/// A small line without axes, 100 wide and 24 high; empty where nothing is known.
pub fn spark(points: &[Point], least: f64) -> String {
    let known = points.iter().filter_map(|(_, value)| *value);
    let top = known.fold(least, f64::max);
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return String::new() };
    let span = (last.0 - first.0).max(60) as f64;
    let mut path = String::new();
    let mut broken = true;
    for (at, value) in points {
        let Some(value) = value else {
            broken = true;
            continue;
        };
        let letter = if std::mem::take(&mut broken) { 'M' } else { 'L' };
        let x = (at - first.0) as f64 / span * 100.0;
        let _ = write!(path, "{letter}{x:.1} {:.1}", 23.0 - value / top * 22.0);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<Point>, thresholds: Vec<Threshold>) -> Drawn {
        let severity = Severity::Ok;
        Chart { title: "Retained WAL", unit: Unit::Bytes, points, thresholds, range: 3600, severity }.draw()
    }

    const MIB: f64 = 1_048_576.0;

    #[test]
    fn a_gap_stays_a_gap_and_the_words_say_what_the_line_shows() {
        let drawn = chart(
            vec![(0, Some(0.0)), (60, Some(2.0 * MIB)), (120, None), (180, Some(MIB)), (240, Some(MIB))],
            vec![],
        );
        assert_eq!(drawn.line.matches('M').count(), 2);
        assert_eq!(drawn.summary, "Retained WAL over the last 4 min: now 1.0 MiB, highest 2.0 MiB");
        assert!(drawn.data.contains("[120,null]"));
        assert_eq!((drawn.high.as_str(), drawn.middle.as_str()), ("3.0 MiB", "1.5 MiB"));
    }

    #[test]
    fn a_threshold_is_drawn_where_it_is_near_and_named_where_it_is_far() {
        let threshold =
            |value: f64| vec![Threshold { name: "warning", value: value * MIB, severity: Severity::Warning }];
        let points = vec![(0, Some(50.0 * MIB)), (60, Some(60.0 * MIB))];
        let near = chart(points.clone(), threshold(100.0));
        assert_eq!((near.levels.len(), near.beyond.len()), (1, 0));
        let far = chart(points, threshold(1000.0));
        assert_eq!(far.beyond, ["warning at 1000 MiB"]);
    }

    #[test]
    fn nothing_measured_is_said_and_not_drawn_as_zero() {
        let drawn = chart(vec![], vec![]);
        assert!(drawn.line.is_empty() && drawn.summary.contains("nothing has been measured"));
        let unknown = chart(vec![(0, None), (60, None)], vec![]);
        assert!(unknown.line.is_empty() && unknown.summary.ends_with("unknown"));
        assert_eq!(unknown.newest, "–");
    }

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!(Unit::Bytes.round_up(1.2 * MIB), 1.5 * MIB);
        assert_eq!(Unit::Seconds.round_up(11.0), 15.0);
        assert_eq!(Unit::RowsPerSecond.round_up(620.0), 800.0);
    }
}
