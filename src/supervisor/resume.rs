//! A broken replication session is opened again where memory is still right: nothing is read again (D6).
//!
//! Invariant: memory holds every commit that was received whole, and nothing else. It may only be gone on with when the
//! SQL session lived on (so the server process is the same, and no transaction id was used twice), the slot still stands
//! at or before the durable frontier, and no load is under way: a boundary counts only after a later commit of ours.

use std::time::Duration;

use super::diagnose;
use super::engine::Engine;
use super::start::open_stream;
use super::stream::Stream;
use super::views::State;
use crate::catalog::store;
use crate::error::{Error, ErrorKind, Result};
use crate::observe::Reconnect;
use crate::recovery::{Action, CdcMode, Diagnosis, decide};

/// How long the loop may be held up; then everything starts anew.
const PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// Opens the stream again after `cause`, or returns it.
    pub(super) async fn reconnect(&mut self, cause: Error) -> Result<()> {
        let broken = cause.kind() == ErrorKind::Connection && !self.stream.is_poll();
        if !broken || !self.is_at_rest() {
            return Err(cause);
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(20);
        loop {
            match self.try_to_resume().await {
                Ok(true) => {
                    self.options.counters.reconnect(Reconnect::Resumed);
                    return Ok(());
                }
                // Another diagnosis, or the server is going down: the next start sees to it.
                Ok(false) => return Err(cause),
                Err(e) if tokio::time::Instant::now() > deadline || e.kind() != ErrorKind::Connection => {
                    tracing::debug!(error = %e, "the stream can't be resumed");
                    return Err(cause);
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// No load and no handover is under way, and what is installed has been applied. After a handover the slot still has to
    /// deliver what lies before the stored frontier and was not visible at the cut.
    fn is_at_rest(&self) -> bool {
        let moving = |s: &State| matches!(s, State::Preparing | State::Waiting(_) | State::Installing { .. });
        // A part of a transaction that is in the dataflow already would come a second time.
        let whole = !self.assembler.is_in_parts();
        self.settled
            && whole
            && !self.sources.are_catching_up()
            && self.preparing.is_none()
            && !self.views.0.values().any(|v| moving(&v.state))
    }

    /// `Err(Connection)`: not yet. False: not at all.
    async fn try_to_resume(&mut self) -> Result<bool> {
        let mut lease = self.lease.clone();
        // A dead SQL session ends the attempt: then it may have been another server process.
        lease.before = store::pipeline(&self.control, &self.options.pipeline)
            .await
            .map_err(|e| Error::new(ErrorKind::Identity, "the SQL session is gone as well").with_source(e))?;
        if lease.before.generation != self.lease.generation {
            return Ok(false);
        }
        let observation =
            diagnose::observe(&self.control, &self.options.pipeline, &lease, CdcMode::Auto).await?;
        let rule = decide(&observation);
        if rule.diagnosis == Diagnosis::SlotActive {
            return Err(Error::new(ErrorKind::Connection, "the old walsender has not ended yet"));
        }
        if rule.action != Action::Resume {
            return Ok(false);
        }
        let session = open_stream(&self.options, &self.lease, self.frontier).await?;
        self.assembler.reconnected();
        // What was received whole is in memory; the transaction that was cut off comes again from its start.
        self.start = self.last_commit;
        std::mem::replace(&mut self.stream, Stream::Slot(Box::new(session))).abort();
        tracing::info!("the stream was interrupted and goes on; nothing had to be read again");
        Ok(true)
    }
}
