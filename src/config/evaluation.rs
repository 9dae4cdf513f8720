//! How PostgreSQL may compute expressions: in how many sessions, and for how long.

use std::time::Duration;

use super::{Origin, Sourced, Sources, options};
use crate::error::Result;
use crate::evaluate::Limits;

/// Most sessions: each is a connection of the server.
const MOST_SESSIONS: usize = 64;

impl Sources {
    /// The limits of the evaluation service.
    ///
    /// # Errors
    /// `Config` with the origin of a value that can't be used.
    pub(super) fn evaluation(&self) -> Result<Sourced<Limits>> {
        let mut limits = Sourced::new(Limits::default(), Origin::Default);
        if let Some(text) = self.text(options::EVALUATION_SESSIONS) {
            match text.value.parse() {
                Ok(number @ 1..=MOST_SESSIONS) => limits.value.sessions = number,
                _ => {
                    let what = format!("{:?} is no number of sessions", text.value);
                    let hint = format!("use a number from 1 to {MOST_SESSIONS}");
                    return Err(text.refuse(what).with_hint(hint));
                }
            }
            limits.origin = text.origin;
        }
        if let Some(text) = self.text(options::EVALUATION_TIMEOUT) {
            limits.value.timeout = match (text.value.as_str(), parse(&text.value)) {
                ("off", _) => None,
                (_, Some(time)) => Some(time),
                _ => {
                    let what = format!("{:?} is no time", text.value);
                    return Err(text.refuse(what).with_hint("write 500ms, 30s, 10min, 1h or off"));
                }
            };
            limits.origin = text.origin;
        }
        Ok(limits)
    }
}

/// `500ms`, `30s`, `10min`, `1h`; at least a millisecond, at most a day.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let millis = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=86_400_000).contains(&millis).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse("10 min"), Some(Duration::from_secs(600)));
        for wrong in ["10", "0s", "-1s", "1d", "25h", ""] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
