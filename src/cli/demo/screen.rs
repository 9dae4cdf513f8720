//! What is shown while the workload runs: a page that is drawn again on a terminal, one line per second elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use super::proof::Tally;
use super::views::STREAM_TABLES;
use crate::cli::table::human_bytes;

/// The numbers of one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Frame {
    pub(super) elapsed: Duration,
    pub(super) commits_per_second: f64,
    pub(super) changes_per_second: f64,
    /// 50 % and 99 %.
    pub(super) freshness: Option<(Duration, Duration)>,
    /// Written to the log but not yet confirmed by the sidecar.
    pub(super) slot_lag: Option<u64>,
    /// By stream table, in their order.
    pub(super) rows: Vec<i64>,
    pub(super) proof: Tally,
}

pub(super) struct Screen {
    redraw: bool,
    lines: usize,
}

impl Screen {
    pub(super) fn new() -> Screen {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Screen { redraw: std::io::stdout().is_terminal() && !dumb, lines: 0 }
    }

    /// Time between two frames.
    pub(super) fn pace(&self) -> Duration {
        Duration::from_millis(if self.redraw { 500 } else { 1000 })
    }

    pub(super) fn draw(&mut self, frame: &Frame) {
        let text = if self.redraw { page(frame) } else { line(frame) };
        let mut out = String::new();
        if self.redraw {
            if self.lines > 0 {
                // Up to the first line of the last page.
                let _ = write!(out, "\x1b[{}A", self.lines);
            }
            for line in text.lines() {
                let _ = writeln!(out, "\x1b[2K{line}");
            }
            self.lines = text.lines().count();
        } else {
            out = text;
        }
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush());
    }
}

fn page(frame: &Frame) -> String {
    let mut text = String::from("\n");
    let _ = writeln!(
        text,
        "  pgtrickle demo            {:>8.0} s   (Ctrl-C ends it)",
        frame.elapsed.as_secs_f64()
    );
    let _ = writeln!(text, "  commits/s                 {:>8.0}", frame.commits_per_second);
    let _ = writeln!(text, "  changes/s                 {:>8.0}", frame.changes_per_second);
    let _ = writeln!(text, "  freshness p50 / p99       {:>8} / {}", ms(frame, 0), ms(frame, 1));
    let _ = writeln!(text, "  slot lag                  {:>8}", lag(frame));
    let _ = writeln!(text);
    for (index, (name, _)) in STREAM_TABLES.iter().enumerate() {
        let rows = frame.rows.get(index).map_or_else(|| "-".to_owned(), i64::to_string);
        let mark = if frame.proof.last == Some(name) { "  = its query, checked last" } else { "" };
        let _ = writeln!(text, "  shop.{name:<20} {rows:>8} rows{mark}");
    }
    let _ = writeln!(text);
    let _ = writeln!(text, "  equality: {}", verdict(&frame.proof));
    text
}

fn line(frame: &Frame) -> String {
    let rows: Vec<String> = frame.rows.iter().map(i64::to_string).collect();
    format!(
        "{:>4.0} s  {:.0} commits/s  {:.0} changes/s  freshness p50 {} p99 {}  slot lag {}  rows {}  {}\n",
        frame.elapsed.as_secs_f64(),
        frame.commits_per_second,
        frame.changes_per_second,
        ms(frame, 0),
        ms(frame, 1),
        lag(frame),
        rows.join("/"),
        verdict(&frame.proof),
    )
}

fn ms(frame: &Frame, which: usize) -> String {
    let value = frame.freshness.map(|(p50, p99)| if which == 0 { p50 } else { p99 });
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} ms", value.as_secs_f64() * 1000.0))
}

fn lag(frame: &Frame) -> String {
    frame.slot_lag.map_or_else(|| "-".to_owned(), human_bytes)
}

/// `12 checks, 0 differences`.
pub(super) fn verdict(proof: &Tally) -> String {
    let mut text = format!("{} checks, {} differences", proof.checks, proof.differences.len());
    if proof.late > 0 {
        let _ = write!(text, ", {} times not caught up in time", proof.late);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_without_measurements_shows_dashes_and_the_verdict() {
        let text = line(&Frame::default());
        assert!(text.contains("p50 - p99 -") && text.ends_with("0 checks, 0 differences\n"), "{text}");
        assert_eq!(page(&Frame::default()).lines().count(), 14);
    }
}
