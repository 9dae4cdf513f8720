//! One process for all databases of a cluster (D14): finds those that have the schema and runs a supervisor for each.
//!
//! Invariant: databases are isolated. An error or a panic in one ends only its own supervisor, which is started again
//! later; a database that was dropped or renamed ends its supervisor and nothing else. Sessions stay open only in
//! databases that are served, so any other one can be dropped.
//!
//! Memory: the limit belongs to the process. Each database gets an equal part of it, by the next power of two, so that a
//! new database seldom changes the part of the others; when it does, they start again with the smaller part.

mod scan;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::error::{Error, ErrorKind, Result};
use crate::supervisor::{self, RunOptions};

/// How often `pg_database` is read.
const SCAN: Duration = Duration::from_secs(10);
/// How often something is looked after between two scans.
const TICK: Duration = Duration::from_millis(200);
/// First and longest pause before a database that failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_AT_MOST: Duration = Duration::from_secs(300);
/// How long a supervisor must have run for its failures to be forgotten.
const STABLE: Duration = Duration::from_secs(60);

/// What is known about a database.
#[derive(Default)]
struct Place {
    name: String,
    running: Option<Running>,
    /// It has the schema and is not detached.
    wanted: bool,
    /// What went wrong last, said once.
    trouble: Option<String>,
    pause: Duration,
    /// Not looked at or started before.
    not_before: Option<Instant>,
}

struct Running {
    task: JoinHandle<Result<()>>,
    stop: CancellationToken,
    memory: u64,
    since: Instant,
}

struct Launcher {
    options: RunOptions,
    shutdown: CancellationToken,
    /// By OID: a name may move from one database to another.
    places: BTreeMap<u32, Place>,
    scan_trouble: Option<String>,
    announced: bool,
}

/// Serves every database that has the schema until `shutdown`. `options` is the template: its database is only where
/// `pg_database` is read, its memory limit that of the process.
///
/// # Errors
/// Those of the first scan; later ones are logged and tried again.
pub async fn run(options: RunOptions, shutdown: CancellationToken) -> Result<()> {
    let mut launcher = Launcher {
        options,
        shutdown: shutdown.clone(),
        places: BTreeMap::new(),
        scan_trouble: None,
        announced: false,
    };
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut scanned: Option<Instant> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = ticks.tick() => {}
        }
        launcher.reap().await;
        if scanned.is_none_or(|at| at.elapsed() >= SCAN) {
            scanned = Some(Instant::now());
            tokio::select! {
                () = shutdown.cancelled() => break,
                outcome = launcher.scan() => outcome?,
            }
        }
        launcher.start_wanted();
    }
    launcher.end().await;
    Ok(())
}

impl Launcher {
    async fn scan(&mut self) -> Result<()> {
        let found = match scan::databases(&self.options.target).await {
            Ok(found) => found,
            Err(e) if !self.announced => return Err(e),
            Err(e) => {
                // The supervisors go on by themselves.
                if self.scan_trouble.replace(e.to_string()).as_ref() != self.scan_trouble.as_ref() {
                    tracing::warn!(error = %e, hint = e.hint(), "the databases can't be listed; trying again");
                }
                return Ok(());
            }
        };
        self.scan_trouble = None;
        let gone: Vec<u32> = self
            .places
            .iter()
            .filter(|(oid, place)| !found.iter().any(|d| d.oid == **oid && d.name == place.name))
            .map(|(oid, _)| *oid)
            .collect();
        for oid in gone {
            if let Some(mut place) = self.places.remove(&oid)
                && let Some(running) = place.running.take()
            {
                tracing::info!(database = %place.name, "dropped, renamed or closed to connections: no longer served");
                running.stop.cancel();
                // Its end is not waited for: a session that hangs must not hold up the others.
                tokio::spawn(running.task);
            }
        }
        let now = Instant::now();
        let due: Vec<scan::Database> = found
            .into_iter()
            .filter(|d| {
                let place = self.places.entry(d.oid).or_default();
                place.name.clone_from(&d.name);
                place.running.is_none() && place.not_before.is_none_or(|at| at <= now)
            })
            .collect();
        for (database, outcome) in scan::look(&self.options.target, &self.options.pipeline, due).await {
            let Some(place) = self.places.get_mut(&database.oid) else { continue };
            match outcome {
                Ok(wanted) => place.wanted = wanted,
                Err(e) => place.fails(&e, "skipped"),
            }
        }
        let served = self.places.values().filter(|p| p.wanted).count();
        if !std::mem::replace(&mut self.announced, true) {
            tracing::info!(databases = self.places.len(), with_schema = served, "databases scanned");
        }
        Ok(())
    }

    /// The part of the memory that each database gets now.
    fn part(&self) -> u64 {
        let wanted = self.places.values().filter(|p| p.wanted).count();
        self.options.memory_limit / wanted.max(1).next_power_of_two() as u64
    }

    fn start_wanted(&mut self) {
        let (part, now) = (self.part(), Instant::now());
        for place in self.places.values_mut().filter(|p| p.wanted) {
            match &place.running {
                Some(running) if running.memory > part && !running.stop.is_cancelled() => {
                    tracing::info!(database = %place.name, memory_limit_mb = part >> 20,
                        "there are more databases now: it starts again with its part of the memory");
                    running.stop.cancel();
                }
                Some(_) => {}
                None if place.not_before.is_some_and(|at| at > now) => {}
                None => {
                    let stop = self.shutdown.child_token();
                    let options = RunOptions {
                        target: self.options.target.with_database(&place.name),
                        memory_limit: part,
                        ..self.options.clone()
                    };
                    let span = tracing::info_span!("database", name = %place.name);
                    let task = tokio::spawn(supervisor::run(options, stop.clone()).instrument(span));
                    place.running = Some(Running { task, stop, memory: part, since: now });
                }
            }
        }
    }

    /// Takes note of supervisors that have ended.
    async fn reap(&mut self) {
        for place in self.places.values_mut() {
            let Some(running) = place.running.take_if(|r| r.task.is_finished()) else { continue };
            if running.since.elapsed() > STABLE {
                place.pause = Duration::ZERO;
            }
            let asked = running.stop.is_cancelled();
            match running.task.await {
                // For less memory: at once.
                Ok(Ok(())) if asked => {}
                // By itself: it was detached. The next scan looks again.
                Ok(Ok(())) => place.wanted = false,
                Ok(Err(e)) => place.fails(&e, "its supervisor ended"),
                Err(e) => {
                    place.fails(
                        &Error::internal("its supervisor failed").with_source(e),
                        "its supervisor ended",
                    );
                }
            }
        }
    }

    /// Waits until every supervisor has ended; their tokens are children of the shutdown.
    async fn end(mut self) {
        for place in self.places.values_mut() {
            let Some(running) = place.running.take() else { continue };
            match running.task.await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::warn!(database = %place.name, error = %e, "its supervisor ended"),
                Err(e) => tracing::error!(database = %place.name, error = %e, "its supervisor failed"),
            }
        }
        tracing::info!("all databases stopped");
    }
}

impl Place {
    /// One line per trouble, and a pause that grows.
    fn fails(&mut self, e: &Error, what: &str) {
        self.wanted = false;
        // Another sidecar may end at any time, then this one takes over.
        let spare = e.kind() == ErrorKind::LeaseHeld;
        self.pause = if spare { AGAIN } else { (self.pause * 2).clamp(AGAIN, AGAIN_AT_MOST) };
        self.not_before = Some(Instant::now() + self.pause);
        let again_in_s = self.pause.as_secs();
        if self.trouble.as_deref() == Some(e.context()) {
            tracing::debug!(database = %self.name, error = %e, again_in_s, "{what}");
        } else {
            tracing::warn!(database = %self.name, error = %e, hint = e.hint(), again_in_s, "{what}");
        }
        self.trouble = Some(e.context().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::sessions::Target;

    fn launcher(served: usize) -> Launcher {
        let options = RunOptions {
            target: Target::new(tokio_postgres::Config::new(), "main"),
            pipeline: "main".to_owned(),
            workers: 1,
            memory_limit: 1 << 30,
            cdc_mode: None,
            observed: None,
        };
        let place = |wanted| Place { wanted, ..Place::default() };
        let places = (0..served as u32).map(|oid| (oid, place(true))).chain([(99, place(false))]).collect();
        Launcher { options, shutdown: CancellationToken::new(), places, scan_trouble: None, announced: true }
    }

    #[test]
    fn the_parts_never_exceed_the_limit_and_seldom_change() {
        let parts = [0, 1, 2, 3, 4, 5, 8].map(|served| launcher(served).part() >> 20);
        assert_eq!(parts, [1024, 1024, 512, 256, 256, 128, 128]);
    }

    #[tokio::test]
    async fn a_panic_in_one_database_is_its_own_affair() {
        let mut launcher = launcher(2);
        let running =
            |task| Running { task, stop: CancellationToken::new(), memory: 1, since: Instant::now() };
        let panics = tokio::spawn(async { panic!("a bug") });
        while !panics.is_finished() {
            tokio::task::yield_now().await;
        }
        let serves = tokio::spawn(std::future::pending());
        for (oid, task) in [(0, panics), (1, serves)] {
            if let Some(place) = launcher.places.get_mut(&oid) {
                place.running = Some(running(task));
            }
        }
        launcher.reap().await;
        let of = |oid: u32| &launcher.places[&oid];
        assert!(of(0).running.is_none() && of(0).not_before.is_some() && of(0).trouble.is_some());
        assert!(of(1).running.is_some() && of(1).trouble.is_none());
    }

    #[test]
    fn a_database_that_fails_is_tried_ever_more_slowly_and_a_spare_one_is_not() {
        let mut place = Place::default();
        let broken = Error::new(ErrorKind::SchemaVersion, "newer");
        let pauses: Vec<u64> = (0..7)
            .map(|_| {
                place.fails(&broken, "x");
                place.pause.as_secs()
            })
            .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
        place.fails(&Error::new(ErrorKind::LeaseHeld, "held"), "x");
        assert_eq!(place.pause, AGAIN);
    }
}
