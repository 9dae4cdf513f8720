//! Keeping a pipeline running: lease, start, loop, restart.
//!
//! Invariant: whatever goes wrong ends in one of four ways, by the kind of the error ([`Directive`]): try again, start
//! from the catalog (a reconcile), take one stream table out, or stop with an exit code.

mod diagnose;
mod engine;
mod feed;
mod full;
mod handover;
mod lease;
mod load;
mod obstacle;
mod polling;
mod prepare;
mod repair;
mod requests;
mod rights;
mod sources;
mod start;
mod stream;
mod validity;
mod views;
mod watch;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::error::{Directive, Error, ErrorKind, Result};
use crate::postgres::sessions::Target;
use crate::recovery::CdcMode;

/// What a sidecar needs to know.
#[derive(Clone)]
pub struct RunOptions {
    pub target: Target,
    pub pipeline: String,
    pub workers: usize,
    /// Bytes that rows and operator state may take.
    pub memory_limit: u64,
    /// `None`: as the database's settings say.
    pub cdc_mode: Option<CdcMode>,
}

/// How long a run must last to count as a success that resets the backoff.
const STABLE: Duration = Duration::from_secs(60);
/// After so many refusals of the stream in a row the slot is given up.
const DISTRUST: u32 = 3;
/// Longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(15);

/// Serves the pipeline until `shutdown`. Returns early only with an error that an operator has to act on.
pub async fn run(options: RunOptions, shutdown: CancellationToken) -> Result<()> {
    let mut pause = Duration::from_millis(100);
    let mut reason = "the sidecar started".to_owned();
    let mut served = false;
    let mut refusals = 0;
    loop {
        let started = tokio::time::Instant::now();
        let distrust = refusals >= DISTRUST;
        let error = match start::serve(&options, &reason, distrust, &shutdown, &mut served).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if started.elapsed() > STABLE {
            pause = Duration::from_millis(100);
        }
        refusals = if refuses(&error) { refusals + 1 } else { 0 };
        if let Some(fatal) = verdict(&error, served) {
            return Err(fatal.unwrap_or(error));
        }
        tracing::warn!(error = %error, hint = error.hint(), again_in_ms = pause.as_millis() as u64, "starting again");
        reason = error.to_string();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        pause = (pause * 2).min(LONGEST);
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
/// password that is changed or a right that was taken comes back; only what needs another binary or other options ends
/// the run.
fn verdict(error: &Error, served: bool) -> Option<Option<Error>> {
    match (error.kind().directive(), error.kind()) {
        (_, ErrorKind::Connection) if !served => Some(None),
        (Directive::Stop, ErrorKind::Config | ErrorKind::SchemaVersion) => Some(None),
        (Directive::Stop, _) if !served => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for kind in [Identity, Protocol, Internal, Contention] {
            assert!(!ends(kind, false) && !ends(kind, true), "{kind:?}");
        }
    }
}
