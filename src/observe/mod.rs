//! What can be seen of the pipelines from outside: samples of the catalog and the slots, read by a session of their own.
//!
//! Purpose: numbers for `/metrics`, readiness and pages. Invariant: a sample is what the database says, with the moment it
//! was read; what could not be read is absent, never zero. Place in the data's way: beside it; nothing here is read back by
//! the engine. Readers never cause more than one session and one look at a detail every few seconds per pipeline, however
//! many they are.

mod alerts;
mod counters;
mod detail;
mod findings;
mod history;
mod look;
pub mod metrics;
mod positions;
mod redact;
mod sample;
mod series;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use alerts::{RULES, Rule};
pub use counters::{Counters, Reconnect};
pub use detail::{Detail, OperatorState, ReadDetail, Recoveries, Recovery, Refresh, TableDetail, Wanted};
pub use findings::{Finding, Severity, slot_severity, time_until};
pub use history::{Measure, Subject, lsn};
pub use look::Look;
pub use positions::Positions;
pub use redact::message as redacted;
pub use sample::{Incident, Read, Recent, Sample, ServerSlot, Slot, Source, StreamTable};
pub use series::Point;

use crate::error::Result;
use crate::postgres::sessions::Target;
use look::{PATIENCE, connected, look};

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time before the first one.
const FIRST: Duration = Duration::from_secs(1);
/// A detail younger than this is not read again.
const FRESH: Duration = Duration::from_secs(4);
/// How long a page waits for a detail.
const WAIT: Duration = Duration::from_secs(5);
/// Details are kept for so long after they were read, and so many of them.
const KEPT: Duration = Duration::from_secs(60);
const MOST_DETAILS: usize = 100;

/// Database and pipeline.
pub type Key = (String, String);

/// A pipeline as pages show it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub database: String,
    pub pipeline: String,
    /// When it was last looked at, and how that ended.
    pub looked_at: DateTime<Utc>,
    pub error: Option<String>,
    /// The last look that succeeded, and when that was.
    pub sample: Option<Arc<Sample>>,
    pub sampled_at: Option<DateTime<Utc>>,
    /// Worst first.
    pub findings: Vec<Finding>,
}

impl Seen {
    /// The severity of the worst finding; unknown before anything was seen.
    pub fn severity(&self) -> Severity {
        let worst = self.findings.first().map_or(Severity::Ok, |finding| finding.severity);
        if self.sample.is_none() { worst.max(Severity::Unknown) } else { worst }
    }
}

/// What is known of one pipeline.
struct Watched {
    look: Look,
    looked_at: DateTime<Utc>,
    sample: Option<(DateTime<Utc>, Arc<Sample>)>,
    findings: Vec<Finding>,
    history: history::History,
    /// What was read, when, and whether it was there.
    details: BTreeMap<Wanted, (Instant, Result<Option<Detail>, String>)>,
    wanted: BTreeSet<Wanted>,
    wake: Arc<Notify>,
}

/// The last look at every pipeline that this process serves, by database and pipeline.
#[derive(Default)]
pub struct Observed {
    pipelines: Mutex<BTreeMap<Key, Watched>>,
    /// What has to be looked at, where it is not one pipeline that is known from the start.
    expected: Mutex<Option<BTreeSet<Key>>>,
    /// Counts what was read: whoever waits for something new watches it.
    changes: watch::Sender<u64>,
    counters: counters::Families,
}

impl Observed {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Watched>> {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the engine of a pipeline counts.
    pub fn counters(&self, database: &str, pipeline: &str) -> Counters {
        let labels = [("database", database), ("pipeline", pipeline)];
        let labels = labels.map(|(name, value)| (name.to_owned(), metrics::escaped(value)));
        Counters::new(self.counters.clone(), labels.to_vec())
    }

    fn expected(&self) -> MutexGuard<'_, Option<BTreeSet<Key>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which pipelines this process serves or should serve, maybe none: what else was seen is forgotten. Those who
    /// follow what is not among them have been told to stop.
    pub fn serves(&self, keys: BTreeSet<Key>) {
        let before = {
            let mut pipelines = self.lock();
            let before = pipelines.len();
            pipelines.retain(|key, _| keys.contains(key));
            before - pipelines.len()
        };
        *self.expected() = Some(keys);
        if before > 0 {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// Notes that a pipeline which should be served is not, and why: until somebody looks at it again.
    pub fn fails(&self, key: &Key, why: String) {
        self.note(key, Err(why), &CancellationToken::new());
    }

    /// A look that a test gives.
    #[cfg(test)]
    pub(crate) fn saw(&self, key: &Key, sample: Sample) {
        self.note(key, Ok(Arc::new(sample)), &CancellationToken::new());
    }

    /// A copy of all looks.
    pub fn looks(&self) -> BTreeMap<Key, Look> {
        self.lock().iter().map(|(key, watched)| (key.clone(), watched.look.clone())).collect()
    }

    /// All pipelines, worst first.
    pub fn seen(&self) -> Vec<Seen> {
        let pipelines = self.lock();
        let seen = |((database, pipeline), watched): (&Key, &Watched)| {
            let error = watched.look.current().err();
            let findings = match &error {
                Some(error) => findings::unreachable(pipeline, error),
                None => watched.findings.clone(),
            };
            Seen {
                database: database.clone(),
                pipeline: pipeline.clone(),
                looked_at: watched.looked_at,
                error,
                sample: watched.sample.as_ref().map(|(_, sample)| sample.clone()),
                sampled_at: watched.sample.as_ref().map(|(at, _)| *at),
                findings,
            }
        };
        let mut all: Vec<Seen> = pipelines.iter().map(seen).collect();
        all.sort_by_key(|seen| std::cmp::Reverse(seen.severity()));
        all
    }

    /// What was measured in the last `seconds`; empty where nothing was.
    pub fn points(&self, key: &Key, subject: &Subject, measure: Measure, seconds: i64) -> Vec<Point> {
        let pipelines = self.lock();
        let now = Utc::now().timestamp();
        pipelines.get(key).map(|w| w.history.points(subject, measure, now, seconds)).unwrap_or_default()
    }

    /// The newest value of a measure; absent when the last look brought none.
    pub fn newest(&self, key: &Key, subject: &Subject, measure: Measure) -> Option<f64> {
        self.lock().get(key)?.history.newest(subject, measure, Utc::now().timestamp())
    }

    /// Bytes per second by which what a slot retains has grown in the last minutes.
    pub fn growth(&self, key: &Key, slot: &str) -> Option<f64> {
        self.lock().get(key)?.history.growth(slot, Utc::now().timestamp())
    }

    /// Changes whenever something new was read.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Something that is only read on demand; waits a few seconds for it. `None`: it does not exist.
    ///
    /// # Errors
    /// The reason why it could not be read.
    pub async fn detail(&self, key: &Key, wanted: Wanted) -> Result<Option<Detail>, String> {
        let mut changes = self.changes.subscribe();
        let asked = Instant::now();
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            {
                let mut pipelines = self.lock();
                let watched =
                    pipelines.get_mut(key).ok_or("the pipeline is no longer served here".to_owned())?;
                if let Some((at, detail)) = watched.details.get(&wanted)
                    && (asked.saturating_duration_since(*at) < FRESH)
                {
                    return detail.clone();
                }
                watched.wanted.insert(wanted.clone());
                watched.wake.notify_one();
            }
            if !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return Err(format!("nothing was read within {} s", WAIT.as_secs()));
            }
        }
    }

    /// Why the process is not ready to be relied on; empty if it is.
    pub fn obstacles(&self) -> Vec<String> {
        let looks = self.looks();
        let mut obstacles = Vec::new();
        match &*self.expected() {
            Some(expected) => obstacles.extend(expected.iter().filter(|key| !looks.contains_key(key)).map(
                |(database, pipeline)| format!("{database} ({pipeline}): it has not been looked at yet"),
            )),
            None if looks.is_empty() => obstacles.push("no database has been looked at yet".to_owned()),
            None => {}
        }
        for ((database, pipeline), look) in looks.iter() {
            let name = format!("{database} ({pipeline})");
            match look.current() {
                Err(error) => obstacles.push(format!("{name}: {error}")),
                Ok(sample) => {
                    obstacles.extend(sample.obstacles().into_iter().map(|o| format!("{name}: {o}")))
                }
            }
        }
        obstacles
    }

    /// Why the process can't be relied on yet, for those who wait for its start; `None` once it can. A pipeline that was
    /// paused or detached on purpose keeps nobody waiting.
    pub fn still_starting(&self) -> Option<String> {
        let obstacles = self.obstacles();
        let looks = self.looks();
        let planned = |look: &Look| look.current().is_ok_and(|s| s.is_absent());
        let absent = looks.values().filter(|look| planned(look)).count();
        // A planned absence is one obstacle.
        if obstacles.len() == absent { None } else { obstacles.into_iter().next() }
    }

    /// Looks at a pipeline every few seconds until `shutdown`. What was seen stays.
    pub async fn follow(
        self: Arc<Self>,
        target: Target,
        pipeline: String,
        positions: Arc<Positions>,
        shutdown: CancellationToken,
    ) {
        let key = (target.config().get_dbname().unwrap_or_default().to_owned(), pipeline);
        let (mut session, mut alerts) = (None, alerts::Watch::default());
        // The start has its own words for a database that is not prepared.
        tokio::select! {
            () = tokio::time::sleep(FIRST) => {}
            () = shutdown.cancelled() => return,
        }
        loop {
            let next = tokio::time::Instant::now() + INTERVAL;
            let outcome = tokio::select! {
                outcome = look(&target, &key.1, &positions, &mut session) => outcome,
                () = shutdown.cancelled() => return,
            };
            if let Some(client) = &session {
                match tokio::time::timeout(PATIENCE, alerts.turn(client, &key.1)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => {
                        tracing::warn!(error = %e, hint = e.hint(), "alerts could not be looked after");
                    }
                    Err(_) => {
                        session = None;
                        tracing::warn!("alerts could not be looked after: the server did not answer in time");
                    }
                }
            }
            // Detached, nobody stays connected: the database is renamed, copied or dropped.
            if outcome.as_ref().map_or(true, |sample| sample.detached) {
                session = None;
            }
            let Some(wake) = self.note(&key, outcome, &shutdown) else { return };
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(next) => break,
                    () = wake.notified() => self.read_details(&key, &target, &mut session, next).await,
                    () = shutdown.cancelled() => return,
                }
            }
        }
    }

    /// Notes the outcome of a look; returns what wakes the reader of details. `None`: whoever looked was told to stop, and
    /// what it saw may have been forgotten.
    fn note(
        &self,
        key: &Key,
        outcome: Result<Arc<Sample>, String>,
        shutdown: &CancellationToken,
    ) -> Option<Arc<Notify>> {
        let now = Utc::now();
        let outcome = outcome.map_err(|error| redact::sentence(&error));
        let mut pipelines = self.lock();
        if shutdown.is_cancelled() {
            return None;
        }
        let watched = pipelines.entry(key.clone()).or_insert_with(|| Watched {
            look: Look { taken: Instant::now(), outcome: Err(String::new()) },
            looked_at: now,
            sample: None,
            findings: Vec::new(),
            history: history::History::default(),
            details: BTreeMap::new(),
            wanted: BTreeSet::new(),
            wake: Arc::default(),
        });
        let at = now.timestamp();
        watched.history.note(at, outcome.as_deref().ok());
        watched.findings = match &outcome {
            Ok(sample) => findings::of(&key.1, sample, &watched.history, at),
            Err(error) => findings::unreachable(&key.1, error),
        };
        if let Ok(sample) = &outcome {
            watched.sample = Some((now, sample.clone()));
        }
        watched.look = Look { taken: Instant::now(), outcome };
        watched.looked_at = now;
        watched.details.retain(|_, (at, _)| at.elapsed() < KEPT);
        let wake = watched.wake.clone();
        drop(pipelines);
        self.changes.send_modify(|n| *n += 1);
        Some(wake)
    }

    /// Reads what pages wait for, each thing once however many wait. What is not read before the next look waits for its
    /// end: looks are what health and alerts stand on.
    async fn read_details(
        &self,
        key: &Key,
        target: &Target,
        session: &mut Option<crate::postgres::session::SqlSession>,
        until: tokio::time::Instant,
    ) {
        loop {
            let wanted = {
                let mut pipelines = self.lock();
                let Some(watched) = pipelines.get_mut(key) else { return };
                let Some(wanted) = watched.wanted.pop_first() else { break };
                if tokio::time::Instant::now() >= until {
                    watched.wanted.insert(wanted);
                    watched.wake.notify_one();
                    break;
                }
                wanted
            };
            let read = async {
                let mut client = connected(target, session).await?;
                let detail = detail::read(&mut client, &key.1, &wanted).await.map_err(|e| e.to_string())?;
                *session = Some(client);
                Ok(detail)
            };
            let read = tokio::time::timeout(WAIT, read).await;
            let detail = read.unwrap_or_else(|_| Err("the server did not answer in time".to_owned()));
            if let Some(watched) = self.lock().get_mut(key) {
                if watched.details.len() >= MOST_DETAILS {
                    watched.details.clear();
                }
                watched.details.insert(wanted, (Instant::now(), detail));
            }
        }
        self.changes.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        ("db".to_owned(), "main".to_owned())
    }

    fn note(observed: &Observed, outcome: Result<Sample, String>) {
        observed.note(&key(), outcome.map(Arc::new), &CancellationToken::new());
    }

    #[test]
    fn what_should_be_served_is_missed_and_what_should_not_is_forgotten() {
        let observed = Observed::default();
        assert_eq!(observed.obstacles(), ["no database has been looked at yet"]);
        observed.serves(BTreeSet::from([key()]));
        assert_eq!(observed.obstacles(), ["db (main): it has not been looked at yet"]);
        observed.fails(&key(), "its supervisor ended: newer".to_owned());
        assert_eq!(observed.obstacles(), ["db (main): its supervisor ended: newer"]);
        assert_eq!(observed.seen()[0].severity(), Severity::Critical);
        // A look that ends after whoever looked was told to stop is none.
        let stopped = CancellationToken::new();
        stopped.cancel();
        assert!(observed.note(&key(), Ok(Arc::default()), &stopped).is_none());
        assert_eq!(observed.obstacles().len(), 1);
        observed.serves(BTreeSet::new());
        assert!(observed.obstacles().is_empty() && observed.seen().is_empty());
        assert_eq!(observed.still_starting(), None, "a server without the schema is served as it is");
    }

    #[test]
    fn a_server_that_is_away_leaves_what_was_seen_last_and_is_critical() {
        let observed = Observed::default();
        note(&observed, Ok(Sample { sidecar_alive: true, ..Sample::default() }));
        assert_eq!(observed.seen()[0].severity(), Severity::Ok);
        note(&observed, Err("connection refused".to_owned()));
        let seen = observed.seen();
        assert_eq!(seen[0].severity(), Severity::Critical);
        assert!(seen[0].sample.is_some() && seen[0].error.is_some());
        assert_eq!(observed.obstacles(), ["db (main): connection refused"]);
    }

    #[test]
    fn a_look_that_is_too_old_has_failed_wherever_it_is_shown() {
        let observed = Observed::default();
        note(&observed, Ok(Sample { sidecar_alive: true, paused: true, ..Sample::default() }));
        let up = |observed: &Observed, metric: &str, value: u8| {
            let text = metrics::render(observed).unwrap();
            text.contains(&format!("pgtrickle_{metric}{{database=\"db\",pipeline=\"main\"}} {value}\n"))
        };
        assert!(up(&observed, "up", 1) && up(&observed, "planned_absence", 1));
        for watched in observed.lock().values_mut() {
            watched.look.taken = Instant::now().checked_sub(Duration::from_secs(31)).expect("a past");
        }
        assert_eq!(observed.obstacles(), ["db (main): the last look is 31 s old"]);
        assert_eq!(observed.seen()[0].severity(), Severity::Critical);
        assert!(observed.seen()[0].error.is_some() && up(&observed, "up", 0));
        // What was planned is still planned while nobody can look.
        assert!(up(&observed, "planned_absence", 1));
        note(&observed, Err("connection refused".to_owned()));
        assert!(up(&observed, "planned_absence", 1));
        note(&observed, Ok(Sample::default()));
        note(&observed, Err("bad \"secret\" (SQLSTATE 22P02)".to_owned()));
        assert!(!metrics::render(&observed).unwrap().contains("pgtrickle_planned_absence{"));
        assert!(!observed.obstacles()[0].contains("secret"), "{:?}", observed.obstacles());
    }

    #[tokio::test]
    async fn a_detail_of_a_pipeline_that_is_not_served_is_an_error_at_once() {
        let observed = Observed::default();
        assert!(observed.detail(&key(), Wanted::Recoveries).await.is_err());
    }

    #[tokio::test]
    async fn a_detail_that_nobody_reads_is_given_up() {
        let observed = Observed::default();
        note(&observed, Ok(Sample::default()));
        let outcome = observed.detail(&key(), Wanted::Recoveries).await;
        assert!(outcome.is_err_and(|e| e.contains("5 s")));
    }
}
