//! Keeping a pipeline running: lease, start, loop, restart.
//!
//! Invariant: whatever goes wrong ends in one of four ways, by the kind of the error ([`Directive`]): try again, start
//! from the catalog (a reconcile), take one stream table out, or stop with an exit code.

mod answering;
mod detach;
mod diagnose;
mod drain;
mod engine;
mod feed;
mod full;
mod guard;
mod handover;
mod hierarchy;
mod kept;
mod lease;
mod leaving;
mod load;
mod moved;
mod obstacle;
mod parts;
mod polling;
mod prepare;
mod recursion;
mod repair;
mod requests;
mod resume;
mod rights;
mod schedule;
mod shape;
mod sources;
mod start;
mod state;
mod stream;
mod trace;
mod validity;
mod views;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::catalog::alerts::{self, Change};
use crate::error::{Directive, Error, ErrorKind, Result};
use crate::observe::{Counters, Observed, Positions, Reconnect};
use crate::postgres::sessions::Target;

use crate::recovery::CdcMode;
pub use trace::TARGET as TRACES;

/// What a sidecar needs to know.
#[derive(Clone)]
pub struct RunOptions {
    pub target: Target,
    pub pipeline: String,
    /// Wait while another sidecar serves the pipeline, instead of ending.
    pub standby: bool,
    pub workers: usize,
    /// Bytes that rows and operator state may take.
    pub memory_limit: u64,
    /// `None`: as the database's settings say.
    pub cdc_mode: Option<CdcMode>,
    /// How PostgreSQL may compute expressions.
    pub evaluation: crate::evaluate::Limits,
    /// The other processes that hold shards of the state; this is process 0.
    pub cluster: Option<crate::cluster::Settings>,
    /// Where looks at the pipeline are put for those who watch it.
    pub observed: Option<Arc<Observed>>,
    /// How far the engine has come, for those who watch it.
    pub positions: Arc<Positions>,
    /// What the engine counts for those who watch it.
    pub counters: Counters,
}

/// How long a run must last to count as a success that resets the backoff.
const STABLE: Duration = Duration::from_secs(60);
/// After so many refusals of the stream in a row the slot is given up.
const DISTRUST: u32 = 3;
/// Readings of all sources per hour without a rest.
const FREE_LOADS: usize = 3;
const HOUR: Duration = Duration::from_secs(3600);
/// Longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(15);

/// Serves the pipeline until `shutdown`. Returns early only with an error that an operator has to act on.
pub async fn run(mut options: RunOptions, shutdown: CancellationToken) -> Result<()> {
    let watching = shutdown.child_token();
    let _watching = watching.clone().drop_guard();
    if let Some(observed) = options.observed.clone() {
        // Each pipeline has its own, also where one process serves many.
        options.positions = Arc::default();
        let database = options.target.config().get_dbname().unwrap_or_default();
        options.counters = observed.counters(database, &options.pipeline);
        let (target, positions) = (options.target.clone(), options.positions.clone());
        tokio::spawn(observed.follow(target, options.pipeline.clone(), positions, watching));
    }
    let mut pause = Duration::from_millis(100);
    let mut reason = "the sidecar started".to_owned();
    let mut life = Life::default();
    let mut refusals = 0;
    let mut loads = VecDeque::new();
    loop {
        let started = tokio::time::Instant::now();
        let distrust = refusals >= DISTRUST;
        let served = start::serve(&options, &reason, distrust, &shutdown, &mut life).await;
        options.counters.lease(false);
        options.counters.full(false);
        let error = match served {
            Ok(start::End::Stopped) => return Ok(()),
            Ok(start::End::Left(absence)) => {
                if !detach::wait_back(&options.target, &options.pipeline, absence, &shutdown).await {
                    return Ok(());
                }
                reason = match absence {
                    detach::Absence::Detached => "the pipeline was attached again".to_owned(),
                    detach::Absence::Paused => "the pause is over".to_owned(),
                };
                continue;
            }
            Err(error) => error,
        };
        if error.kind() == ErrorKind::Protocol {
            options.counters.undecodable();
        }
        if shutdown.is_cancelled() {
            tracing::warn!(error = %error.for_logs(), "stopped by an error during the drain; the next start goes on");
            return Ok(());
        }
        if started.elapsed() > STABLE {
            pause = Duration::from_millis(100);
        }
        refusals = if refuses(&error) { refusals + 1 } else { 0 };
        if let Some(fatal) = verdict(&error, life.served) {
            return Err(fatal.unwrap_or(error));
        }
        let took = Duration::from_millis(life.loading.swap(0, Ordering::Relaxed));
        let wait = pause.max(rest_after(&mut loads, tokio::time::Instant::now(), took));
        let again_in_ms = wait.as_millis() as u64;
        tracing::warn!(error = %error.for_logs(), hint = error.hint(), again_in_ms, "starting again");
        if wait > pause {
            tell_rest(&options, wait).await;
        }
        options.counters.reconnect(Reconnect::Restarted);
        reason = error.to_string();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return Ok(()),
            never = guard::unattended(&options) => match never {},
        }
        pause = (pause * 2).min(LONGEST);
    }
}

/// What one life of the pipeline leaves to the next.
#[derive(Default)]
struct Life {
    /// The stream has started once: what is wrong later may come right again.
    served: bool,
    /// Milliseconds that sources were read in this life.
    loading: Arc<AtomicU64>,
    /// Seconds of silence after which a walsender is given up; 0: as at first.
    silence: Arc<AtomicU64>,
}

/// How long to wait before the sources are read again. A few times an hour are free; beyond that reading takes at most a
/// tenth of the time: a cause that comes back must not become a loop of full reads of the primary.
fn rest_after(
    loads: &mut VecDeque<tokio::time::Instant>,
    now: tokio::time::Instant,
    took: Duration,
) -> Duration {
    if took.is_zero() {
        return Duration::ZERO;
    }
    loads.push_back(now);
    while loads.front().is_some_and(|first| now.duration_since(*first) > HOUR) {
        loads.pop_front();
    }
    if loads.len() <= FREE_LOADS { Duration::ZERO } else { (took * 9).min(HOUR) }
}

/// Operators are told: until then the stream tables stay as they are.
async fn tell_rest(options: &RunOptions, wait: Duration) {
    let seconds = wait.as_secs();
    tracing::warn!(
        seconds,
        event = "hydration_limited",
        "the sources were read more than {FREE_LOADS} times within an hour: resting before they are read again"
    );
    let change = Change {
        open: true,
        cause: "hydration_limited".to_owned(),
        subject: String::new(),
        event: "hydration_limited".to_owned(),
        severity: "warning".to_owned(),
        message: format!(
            "the sources were read more than {FREE_LOADS} times within an hour: resting for {seconds} s"
        ),
        details: serde_json::json!({ "seconds": seconds }),
        expires_in: Some(seconds),
    };
    let told = async {
        let client = options.target.connect(crate::postgres::sessions::Purpose::Tool).await?;
        alerts::tell(&client, &options.pipeline, &[change]).await
    };
    if let Err(e) = told.await {
        tracing::debug!(error = %e, "nobody could be alerted");
    }
}

/// The server can't decode what the slot stands at (a publication that was not there at that moment, WAL or catalog
/// rows that are gone): it will say so for ever.
fn refuses(error: &Error) -> bool {
    error.kind() == ErrorKind::Identity && matches!(error.sqlstate(), Some("42704" | "55000" | "58P01"))
}

/// A task of this pipeline: its log lines carry the same span (the database, where several are served).
fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task.in_current_span())
}

/// `Some` if the run ends (with the error inside, or the one at hand); `None`: start again.
///
/// Before it has served for the first time a wrong setup or address is reported at once. Later a server that is away, a
/// password that is changed, a right that was taken or a database that was renamed comes back; only what needs another binary or other options ends
/// the run.
fn verdict(error: &Error, served: bool) -> Option<Option<Error>> {
    match (error.kind().directive(), error.kind()) {
        (_, ErrorKind::Connection) if !served => Some(None),
        // A database that is renamed, or being replaced by a restore: its name comes back.
        (_, ErrorKind::Config) if served && error.sqlstate() == Some("3D000") => None,
        (Directive::Stop, ErrorKind::Config | ErrorKind::SchemaVersion) => Some(None),
        (Directive::Stop, _) if !served => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_all_sources_again_and_again_is_limited_to_a_tenth_of_the_time() {
        let mut loads = VecDeque::new();
        let now = tokio::time::Instant::now();
        let second = Duration::from_secs(1);
        let rests: Vec<Duration> = (0..5).map(|_| rest_after(&mut loads, now, second)).collect();
        assert_eq!(rests, [0, 0, 0, 9, 9].map(|n| second * n));
        // A life that read nothing costs nothing; an hour later all is forgotten.
        assert_eq!(rest_after(&mut loads, now, Duration::ZERO), Duration::ZERO);
        assert_eq!(rest_after(&mut loads, now + HOUR + second, second), Duration::ZERO);
    }

    #[test]
    fn a_wrong_setup_ends_the_first_start_and_is_tried_again_once_it_has_served() {
        let ends = |kind, served| verdict(&Error::new(kind, "x"), served).is_some();
        use ErrorKind::*;
        for kind in [Connection, Authentication, Privilege, ServerSetup, LeaseHeld, NotInstalled] {
            assert!(ends(kind, false) && !ends(kind, true), "{kind:?}");
        }
        for kind in [Config, SchemaVersion] {
            assert!(ends(kind, false) && ends(kind, true), "{kind:?}");
        }
        let missing = Error::new(Config, "database \"app\" does not exist").with_sqlstate("3D000");
        assert!(verdict(&missing, false).is_some() && verdict(&missing, true).is_none());
        for kind in [Identity, Protocol, Internal, Contention] {
            assert!(!ends(kind, false) && !ends(kind, true), "{kind:?}");
        }
    }
}
