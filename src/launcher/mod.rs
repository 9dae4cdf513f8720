//! One process for all databases of a cluster (D14): finds those that have the schema and runs a supervisor for each of
//! their pipelines.
//!
//! Invariant: databases are isolated. An error or a panic in one ends only its own supervisor, which is started again
//! later; a database that was dropped or renamed ends its supervisor and nothing else. Sessions stay open only in
//! databases that are served, so any other one can be dropped.
//!
//! Memory: the limit belongs to the process. Each pipeline gets an equal part of it, by the next power of two, so that a
//! new one seldom changes the part of the others; when it does, they start again with the smaller part.

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::error::{Error, ErrorKind, Result};
use crate::observe::Key;
use crate::supervisor::{self, RunOptions};

/// How often `pg_database` is read.
const SCAN: Duration = Duration::from_secs(10);
/// How often something is looked after between two scans.
const TICK: Duration = Duration::from_millis(200);
/// First and longest pause before a database that failed is tried again: whoever mends one waits no longer than that.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);
/// How long a supervisor must have run for its failures to be forgotten.
const STABLE: Duration = Duration::from_secs(60);
/// How long a supervisor must have run to be the one that serves, where another sidecar did.
const TAKEN_OVER: Duration = Duration::from_secs(3);

/// What is known about a pipeline of a database, or (without a pipeline) about looking at the database.
#[derive(Default)]
struct Place {
    name: String,
    pipeline: String,
    running: Option<Running>,
    /// It is there and not detached. One that fails keeps its part of the memory: the others need not start again when it
    /// comes back.
    wanted: bool,
    /// What went wrong last, said once.
    trouble: Option<String>,
    pause: Duration,
    /// Not looked at or started before.
    not_before: Option<Instant>,
    /// Another sidecar serves it: it is watched there.
    spare: bool,
}

struct Running {
    task: JoinHandle<Result<()>>,
    stop: CancellationToken,
    memory: u64,
    since: Instant,
}

struct Launcher {
    options: RunOptions,
    /// Serve this pipeline alone.
    only: Option<String>,
    shutdown: CancellationToken,
    /// By the database's OID (a name may move from one to another) and pipeline; an empty one for the look.
    places: BTreeMap<(u32, String), Place>,
    scan_trouble: Option<String>,
    announced: bool,
}

/// Serves every pipeline (`only` one of a name, where it is given) of every database that has the schema until `shutdown`.
/// `options` is the template: its database is only where `pg_database` is read, its memory limit that of the process.
///
/// # Errors
/// Those of the first scan; later ones are logged and tried again.
pub async fn run(options: RunOptions, only: Option<String>, shutdown: CancellationToken) -> Result<()> {
    let mut launcher = Launcher {
        options,
        only,
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
        launcher.tell();
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
        let gone: Vec<(u32, String)> = self
            .places
            .iter()
            .filter(|((oid, _), place)| !found.iter().any(|d| d.oid == *oid && d.name == place.name))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            if let Some(mut place) = self.places.remove(&key)
                && let Some(running) = place.running.take()
            {
                tracing::info!(database = %place.name, pipeline = %place.pipeline, "dropped, renamed or closed to connections: no longer served");
                running.stop.cancel();
                // Its end is not waited for: a session that hangs must not hold up the others.
                tokio::spawn(running.task);
            }
        }
        let now = Instant::now();
        let due: Vec<scan::Database> = found
            .into_iter()
            .filter(|d| {
                let place = self.places.entry((d.oid, String::new())).or_default();
                place.name.clone_from(&d.name);
                place.not_before.is_none_or(|at| at <= now)
            })
            .collect();
        for (database, outcome) in scan::look(&self.options.target, self.only.as_deref(), due).await {
            match outcome {
                Ok(pipelines) => self.found(&database, &pipelines),
                Err(e) => {
                    if let Some(place) = self.places.get_mut(&(database.oid, String::new())) {
                        place.fails(&e, "skipped");
                    }
                }
            }
        }
        if !std::mem::replace(&mut self.announced, true) {
            let databases = self.places.keys().filter(|(_, pipeline)| pipeline.is_empty()).count();
            let pipelines = self.places.values().filter(|p| p.wanted).count();
            tracing::info!(databases, pipelines, "databases scanned");
        }
        Ok(())
    }

    /// Takes note of the pipelines that a database has and that are not detached.
    fn found(&mut self, database: &scan::Database, pipelines: &[String]) {
        if let Some(look) = self.places.get_mut(&(database.oid, String::new())) {
            (look.trouble, look.pause, look.not_before) = (None, Duration::ZERO, None);
        }
        for pipeline in pipelines {
            let place = self.places.entry((database.oid, pipeline.clone())).or_default();
            place.name.clone_from(&database.name);
            place.pipeline.clone_from(pipeline);
            place.wanted = true;
        }
        // One that is detached while it is served waits for its return by itself; it is not started again, for whatever
        // reason it ends.
        self.places.retain(|(oid, pipeline), place| {
            let listed = *oid != database.oid || pipeline.is_empty() || pipelines.contains(pipeline);
            place.wanted &= listed;
            listed || place.running.is_some()
        });
    }

    /// Those who watch know what to miss, once it is known; one that fails stays among it.
    fn tell(&self) {
        let Some(observed) = self.options.observed.as_ref().filter(|_| self.announced) else { return };
        let is_ours = |place: &&Place| match &place.running {
            Some(running) => !place.spare || running.since.elapsed() > TAKEN_OVER,
            None => place.wanted && !place.spare,
        };
        let ours = self.places.values().filter(|place| !place.pipeline.is_empty()).filter(is_ours);
        observed.serves(ours.map(Place::key).collect::<BTreeSet<_>>());
    }

    /// The part of the memory that each pipeline gets now.
    fn part(&self) -> u64 {
        let wanted = self.places.values().filter(|p| p.wanted).count();
        self.options.memory_limit / wanted.max(1).next_power_of_two() as u64
    }

    fn start_wanted(&mut self) {
        let (part, now) = (self.part(), Instant::now());
        for place in self.places.values_mut().filter(|p| p.wanted) {
            match &place.running {
                Some(running) if running.memory > part && !running.stop.is_cancelled() => {
                    tracing::info!(database = %place.name, pipeline = %place.pipeline, memory_limit_mb = part >> 20,
                        "there are more databases or pipelines now: it starts again with its part of the memory");
                    running.stop.cancel();
                }
                Some(_) => {}
                None if place.not_before.is_some_and(|at| at > now) => {}
                None => {
                    let stop = self.shutdown.child_token();
                    let options = RunOptions {
                        target: self.options.target.with_database(&place.name).with_pipeline(&place.pipeline),
                        pipeline: place.pipeline.clone(),
                        memory_limit: part,
                        ..self.options.clone()
                    };
                    let span =
                        tracing::info_span!("database", name = %place.name, pipeline = tracing::field::Empty);
                    if place.pipeline != "main" {
                        span.record("pipeline", tracing::field::display(&place.pipeline));
                    }
                    let task = tokio::spawn(supervisor::run(options, stop.clone()).instrument(span));
                    place.running = Some(Running { task, stop, memory: part, since: now });
                }
            }
        }
    }

    /// Takes note of supervisors that have ended.
    async fn reap(&mut self) {
        let observed = self.options.observed.clone();
        for place in self.places.values_mut() {
            place.spare &= place.running.as_ref().is_none_or(|r| r.since.elapsed() <= TAKEN_OVER);
            let Some(running) = place.running.take_if(|r| r.task.is_finished()) else { continue };
            if running.since.elapsed() > STABLE {
                place.pause = Duration::ZERO;
            }
            let asked = running.stop.is_cancelled();
            let failure = match running.task.await {
                // For less memory: at once.
                Ok(Ok(())) if asked => continue,
                // By itself: it was detached. The next scan looks again.
                Ok(Ok(())) => {
                    place.wanted = false;
                    continue;
                }
                Ok(Err(e)) => e,
                Err(e) => Error::internal("its supervisor failed").with_source(e),
            };
            place.fails(&failure, "its supervisor ended");
            if let Some(observed) = observed.as_ref().filter(|_| !place.spare) {
                observed.fails(&place.key(), format!("its supervisor ended: {failure}"));
            }
        }
    }

    /// Waits until every supervisor has ended; their tokens are children of the shutdown.
    async fn end(mut self) {
        for place in self.places.values_mut() {
            let Some(running) = place.running.take() else { continue };
            match running.task.await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => {
                    tracing::warn!(database = %place.name, pipeline = %place.pipeline, error = %e, "its supervisor ended")
                }
                Err(e) => {
                    tracing::error!(database = %place.name, pipeline = %place.pipeline, error = %e, "its supervisor failed")
                }
            }
        }
        tracing::info!("all databases stopped");
    }
}

impl Place {
    /// How those who watch name it.
    fn key(&self) -> Key {
        (self.name.clone(), self.pipeline.clone())
    }

    /// One line per trouble, and a pause that grows.
    fn fails(&mut self, e: &Error, what: &str) {
        // Another sidecar may end at any time, then this one takes over.
        self.spare = e.kind() == ErrorKind::LeaseHeld;
        self.pause = if self.spare { AGAIN } else { (self.pause * 2).clamp(AGAIN, AGAIN_AT_MOST) };
        self.not_before = Some(Instant::now() + self.pause);
        let again_in_s = self.pause.as_secs();
        if self.trouble.as_deref() == Some(e.context()) {
            tracing::debug!(database = %self.name, pipeline = %self.pipeline, error = %e, again_in_s, "{what}");
        } else {
            tracing::warn!(database = %self.name, pipeline = %self.pipeline, error = %e, hint = e.hint(), again_in_s, "{what}");
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
            standby: false,
            workers: 1,
            memory_limit: 1 << 30,
            cdc_mode: None,
            evaluation: crate::evaluate::Limits::default(),
            cluster: None,
            observed: None,
            positions: std::sync::Arc::default(),
            counters: Default::default(),
        };
        let place = |wanted| Place { wanted, ..Place::default() };
        let key = |oid: u32| (oid, "main".to_owned());
        let places =
            (0..served as u32).map(|oid| (key(oid), place(true))).chain([(key(99), place(false))]).collect();
        let shutdown = CancellationToken::new();
        Launcher { options, only: None, shutdown, places, scan_trouble: None, announced: true }
    }

    #[test]
    fn the_parts_never_exceed_the_limit_and_seldom_change() {
        let parts = [0, 1, 2, 3, 4, 5, 8].map(|served| launcher(served).part() >> 20);
        assert_eq!(parts, [1024, 1024, 512, 256, 256, 128, 128]);
    }

    #[tokio::test]
    async fn a_pipeline_that_fails_is_missed_until_it_is_gone_and_one_that_another_serves_is_not() {
        let mut launcher = launcher(0);
        let observed = std::sync::Arc::new(crate::observe::Observed::default());
        launcher.options.observed = Some(observed.clone());
        let database = scan::Database { oid: 5, name: "shop".to_owned() };
        let names = ["main".to_owned(), "b".to_owned()];
        launcher.found(&database, &names);
        launcher.tell();
        assert_eq!(observed.obstacles().len(), 2, "neither was looked at: {:?}", observed.obstacles());
        for (pipeline, kind) in [("main", ErrorKind::SchemaVersion), ("b", ErrorKind::LeaseHeld)] {
            let task = tokio::spawn(async move { Err(Error::new(kind, "newer")) });
            while !task.is_finished() {
                tokio::task::yield_now().await;
            }
            if let Some(place) = launcher.places.get_mut(&(5, pipeline.to_owned())) {
                let stop = CancellationToken::new();
                place.running = Some(Running { task, stop, memory: 1, since: Instant::now() });
            }
        }
        launcher.reap().await;
        launcher.tell();
        assert_eq!(observed.obstacles(), ["shop (main): its supervisor ended: newer"]);
        assert!(crate::observe::metrics::render(&observed).is_ok_and(|text| text.contains("pgtrickle_up{")));
        launcher.found(&database, &[]);
        launcher.tell();
        assert!(observed.obstacles().is_empty() && observed.looks().is_empty());
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
            if let Some(place) = launcher.places.get_mut(&(oid, "main".to_owned())) {
                place.running = Some(running(task));
            }
        }
        launcher.reap().await;
        let of = |oid: u32| &launcher.places[&(oid, "main".to_owned())];
        assert!(of(0).running.is_none() && of(0).not_before.is_some() && of(0).trouble.is_some());
        assert!(of(1).running.is_some() && of(1).trouble.is_none());
    }

    #[test]
    fn pipelines_come_and_go_and_one_that_is_served_stays() {
        let mut launcher = launcher(0);
        let database = scan::Database { oid: 5, name: "shop".to_owned() };
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let known = |launcher: &Launcher| {
            let here = launcher.places.iter().filter(|((oid, _), place)| *oid == 5 && place.wanted);
            here.map(|((_, pipeline), _)| pipeline.clone()).collect::<Vec<_>>()
        };
        launcher.found(&database, &names(&["main", "b"]));
        assert_eq!(known(&launcher), ["b", "main"]);
        assert_eq!(launcher.part() >> 20, 512);
        launcher.found(&database, &names(&["main"]));
        assert_eq!(known(&launcher), ["main"]);
        // One that failed is not started before its time, and keeps its part of the memory.
        if let Some(place) = launcher.places.get_mut(&(5, "main".to_owned())) {
            place.fails(&Error::new(ErrorKind::SchemaVersion, "newer"), "x");
        }
        launcher.found(&database, &names(&["main"]));
        launcher.start_wanted();
        assert!(launcher.places.values().all(|place| place.running.is_none()));
        assert_eq!(known(&launcher), ["main"]);
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
        assert_eq!(pauses, [10, 20, 40, 60, 60, 60, 60]);
        place.fails(&Error::new(ErrorKind::LeaseHeld, "held"), "x");
        assert_eq!(place.pause, AGAIN);
    }
}
