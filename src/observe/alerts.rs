//! When something is told, and when it is taken back.
//!
//! The database says what there is at this moment (`pgtrickle._alert_facts`) and what is told already (`pgt_alerts`); the
//! time in between is kept here. Invariant: one alert per cause and subject. It opens once its cause has been there for
//! [`Rule::after`] without a break, closes once the cause has been away for [`Rule::clear`], and is not told twice, also
//! by another process. While nothing can be known (no sidecar serves, a pause, a restart) nothing opens or closes, and
//! waiting starts anew. Place in the data's way: beside it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use tokio_postgres::Client;

use crate::catalog::alerts::{Change, Open, tell};
use crate::error::{Error, Result};
use crate::postgres::sessions::error;

/// The times of one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub cause: &'static str,
    /// Without a break for so long before it is told.
    pub after: Duration,
    /// Gone for so long before that is told.
    pub clear: Duration,
}

const fn rule(cause: &'static str, after: u64, clear: u64) -> Rule {
    Rule { cause, after: Duration::from_secs(after), clear: Duration::from_secs(clear) }
}

/// All causes. What mends itself within a minute, as a start or a reconnect does, is not told.
pub const RULES: &[Rule] = &[
    rule("slot_lag", 10, 0),
    rule("slot", 60, 10),
    rule("stream_table", 10, 10),
    rule("stale_data", 60, 10),
    rule("fallback_not_ready", 60, 10),
    rule("buffer_growth", 10, 10),
    rule("capture_by_triggers", 60, 10),
    rule("trigger", 30, 10),
    rule("hydration_limited", 0, 0),
];

/// Something that is the case at this moment.
#[derive(Debug, Clone, Deserialize)]
struct Fact {
    cause: String,
    subject: String,
    event: String,
    severity: String,
    /// Below its threshold, but not far enough to close what is open.
    held: bool,
    /// The same for the step from critical down to warning.
    held_critical: bool,
    message: String,
    details: Value,
}

#[derive(Debug, Deserialize)]
struct Facts {
    facts: Vec<Fact>,
    open: Vec<Open>,
    /// Replaces every [`Rule::after`] (setting `alert_after`).
    after_seconds: Option<f64>,
}

type Key = (String, String);

/// The times that one process has measured.
#[derive(Debug, Default)]
pub struct Watch {
    /// Causes that are there and not told yet, since when.
    waiting: BTreeMap<Key, Instant>,
    /// Causes that are told and gone, since when.
    leaving: BTreeMap<Key, Instant>,
}

impl Watch {
    /// One look: what is due is stored, told and logged.
    pub(super) async fn turn(&mut self, client: &Client, pipeline: &str) -> Result<()> {
        let row = client.query_one("select pgtrickle._alert_facts($1)", &[&pipeline]).await;
        let facts: Option<Value> = match row.map_err(error) {
            Ok(row) => row.get(0),
            // A schema that has not been upgraded yet has no alerts.
            Err(e) if e.sqlstate() == Some("42883") => None,
            Err(e) => return Err(e),
        };
        let Some(facts) = facts else {
            *self = Watch::default();
            return Ok(());
        };
        let facts: Facts = serde_json::from_value(facts)
            .map_err(|e| Error::internal(format!("the facts of alerts are odd: {e}")))?;
        let changes = self.step(Instant::now(), &facts);
        if changes.is_empty() {
            return Ok(());
        }
        for told in tell(client, pipeline, &changes).await? {
            let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
            let (event, cause, severity) = (text("event"), text("cause"), text("severity"));
            match text("status").as_str() {
                "resolved" => tracing::info!(event, cause, pipeline, "alert resolved: {}", text("message")),
                _ => tracing::warn!(event, cause, severity, pipeline, "alert: {}", text("message")),
            }
        }
        Ok(())
    }

    fn step(&mut self, now: Instant, at: &Facts) -> Vec<Change> {
        let mut changes = Vec::new();
        let key = |cause: &str, subject: &str| (cause.to_owned(), subject.to_owned());
        let there: BTreeMap<Key, &Fact> = at.facts.iter().map(|f| (key(&f.cause, &f.subject), f)).collect();
        let open: BTreeMap<Key, &Open> = at.open.iter().map(|o| (key(&o.cause, &o.subject), o)).collect();
        self.waiting.retain(|key, _| there.get(key).is_some_and(|f| !f.held) && !open.contains_key(key));
        self.leaving.retain(|key, _| open.contains_key(key) && !there.contains_key(key));
        for (key, fact) in &there {
            match open.get(key) {
                None if fact.held => {}
                None => {
                    let since = *self.waiting.entry(key.clone()).or_insert(now);
                    let after = at
                        .after_seconds
                        .map_or(times(&key.0).after, |s| Duration::from_secs_f64(s.clamp(0.0, 86_400.0)));
                    if now.duration_since(since) >= after {
                        self.waiting.remove(key);
                        changes.push(opened(fact));
                    }
                }
                Some(open) if (&open.event, &open.severity) == (&fact.event, &fact.severity) => {}
                Some(open) if open.severity == "critical" && fact.held_critical => {}
                Some(_) => changes.push(opened(fact)),
            }
        }
        for (key, open) in open.iter().filter(|(key, _)| !there.contains_key(*key)) {
            let since = *self.leaving.entry(key.clone()).or_insert(now);
            if now.duration_since(since) >= times(&key.0).clear {
                self.leaving.remove(key);
                changes.push(Change {
                    open: false,
                    cause: open.cause.clone(),
                    subject: open.subject.clone(),
                    event: open.event.clone(),
                    severity: open.severity.clone(),
                    message: format!("over: {}", open.event),
                    details: Value::Object(serde_json::Map::from_iter([(
                        "subject".to_owned(),
                        open.subject.clone().into(),
                    )])),
                    expires_in: None,
                });
            }
        }
        changes
    }
}

/// The rule of a cause; one that this version does not know (a newer one has opened it) closes at once.
fn times(cause: &str) -> Rule {
    RULES.iter().copied().find(|r| r.cause == cause).unwrap_or(rule("", 0, 0))
}

fn opened(fact: &Fact) -> Change {
    Change {
        open: true,
        cause: fact.cause.clone(),
        subject: fact.subject.clone(),
        event: fact.event.clone(),
        severity: fact.severity.clone(),
        message: fact.message.clone(),
        details: fact.details.clone(),
        expires_in: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(cause: &str, event: &str, severity: &str) -> Fact {
        Fact {
            cause: cause.to_owned(),
            subject: "x".to_owned(),
            event: event.to_owned(),
            severity: severity.to_owned(),
            held: false,
            held_critical: false,
            message: String::new(),
            details: Value::Null,
        }
    }

    /// What a look at each second says, with the table that the changes make.
    struct Play {
        watch: Watch,
        open: Vec<Open>,
        start: Instant,
    }

    impl Play {
        fn new() -> Play {
            Play { watch: Watch::default(), open: Vec::new(), start: Instant::now() }
        }

        fn at(&mut self, second: u64, facts: &[Fact]) -> Vec<String> {
            let at = Facts { facts: facts.to_vec(), open: self.open.clone(), after_seconds: None };
            let changes = self.watch.step(self.start + Duration::from_secs(second), &at);
            for c in &changes {
                self.open.retain(|o| (&o.cause, &o.subject) != (&c.cause, &c.subject));
                if c.open {
                    let Change { cause, subject, event, severity, .. } = c.clone();
                    self.open.push(Open { cause, subject, event, severity });
                }
            }
            changes.iter().map(|c| format!("{}{}", if c.open { "+" } else { "-" }, c.event)).collect()
        }
    }

    #[test]
    fn a_cause_is_told_once_after_its_time_and_taken_back_once() {
        let mut play = Play::new();
        let stale = [fact("stale_data", "stale_data", "warning")];
        assert!(play.at(0, &stale).is_empty() && play.at(59, &stale).is_empty());
        assert_eq!(play.at(60, &stale), ["+stale_data"]);
        assert!(play.at(65, &stale).is_empty() && play.at(900, &stale).is_empty());
        // A gap that is shorter than the clear time changes nothing.
        assert!(play.at(901, &[]).is_empty() && play.at(905, &stale).is_empty());
        assert!(play.at(910, &[]).is_empty());
        assert_eq!(play.at(920, &[]), ["-stale_data"]);
        assert!(play.at(930, &[]).is_empty());
    }

    #[test]
    fn a_break_starts_the_waiting_anew_and_another_process_does_not_repeat_what_is_told() {
        let mut play = Play::new();
        let stale = [fact("stale_data", "stale_data", "warning")];
        assert!(
            play.at(0, &stale).is_empty() && play.at(50, &[]).is_empty() && play.at(55, &stale).is_empty()
        );
        assert!(play.at(114, &stale).is_empty());
        assert_eq!(play.at(115, &stale), ["+stale_data"]);
        play.watch = Watch::default();
        assert!(play.at(120, &stale).is_empty() && play.at(500, &stale).is_empty());
        play.watch = Watch::default();
        assert!(play.at(501, &[]).is_empty());
        assert_eq!(play.at(511, &[]), ["-stale_data"]);
    }

    #[test]
    fn a_level_is_left_downwards_only_with_a_margin() {
        let mut play = Play::new();
        let warning = fact("slot_lag", "slot_lag_warning", "warning");
        let critical = fact("slot_lag", "slot_lag_critical", "critical");
        let held = Fact { held: true, ..warning.clone() };
        let held_critical = Fact { held_critical: true, ..warning.clone() };
        assert!(
            play.at(0, std::slice::from_ref(&held)).is_empty()
                && play.at(20, std::slice::from_ref(&held)).is_empty()
        );
        assert!(play.at(21, std::slice::from_ref(&warning)).is_empty());
        assert_eq!(play.at(31, std::slice::from_ref(&warning)), ["+slot_lag_warning"]);
        assert!(play.at(32, std::slice::from_ref(&held)).is_empty());
        assert_eq!(play.at(33, std::slice::from_ref(&critical)), ["+slot_lag_critical"]);
        assert!(play.at(34, std::slice::from_ref(&held_critical)).is_empty());
        assert_eq!(play.at(35, std::slice::from_ref(&warning)), ["+slot_lag_warning"]);
        assert_eq!(play.at(36, &[]), ["-slot_lag_warning"]);
    }

    #[test]
    fn every_cause_of_the_schema_has_a_rule_and_a_section_in_the_runbook() {
        let schema = include_str!("../../schema/017_alerts.sql");
        let runbook = include_str!("../../docs/runbook.md");
        for rule in RULES {
            let known = rule.cause == "hydration_limited" || schema.contains(&format!("'{}'", rule.cause));
            assert!(known, "{} is no cause in the schema", rule.cause);
            let heading = runbook.lines().any(|l| l == format!("## {}", rule.cause));
            assert!(heading, "docs/runbook.md has no section {}", rule.cause);
        }
    }
}
