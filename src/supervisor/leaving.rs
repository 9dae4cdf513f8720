//! How stream tables leave the dataflow: for a while, with an error, or for good.
//!
//! Invariant: what leaves takes with it what reads it, and nothing of it stays in what waits to be written. No frontier is
//! stored past one that has left before the catalog says that it is not there.

use std::time::{Duration, Instant};

use super::engine::Engine;
use super::rights;
use super::views::{SUSPEND_AFTER, State, retry_at, retry_slowly};
use crate::catalog::behind::Complete;
use crate::catalog::store::{self, Noted};
use crate::dataflow::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;

/// How long what could not be written is left alone when the catalog tells of a change that is still to be followed.
const AFTER_CHANGE: Duration = Duration::from_secs(1);

impl Engine {
    pub(super) fn set_failed(&mut self, id: ViewId, again: Option<Instant>) {
        if let Some(view) = self.views.0.get_mut(&id) {
            view.state = State::Failed { again };
        }
    }

    /// Takes a view out of the dataflow, with those that read it (they are prepared again). What it read stays until the
    /// next preparation is over, if one is due: it may be read by it.
    pub(super) fn remove(&mut self, id: ViewId) -> Result<()> {
        self.leave(id, None)
    }

    /// As [`Engine::remove`]; it comes back at `again`.
    pub(super) fn leave(&mut self, id: ViewId, again: Option<Instant>) -> Result<()> {
        let downstream = self.views.downstream(id);
        for view in std::iter::once(id).chain(downstream.iter().copied()) {
            if self.views.installed(view).is_some() {
                self.dataflow.send(Command::DropView { view })?;
                self.is_behind(view);
            }
            if let Some(writer) = &mut self.writer {
                writer.forget(view);
            }
            self.kept.forget(view);
            self.parts.forget(view);
            if let Some(pending) = &mut self.pending {
                pending.deltas.remove(&view);
                pending.installs.retain(|i| *i != view);
            }
        }
        for view in downstream {
            self.set_failed(view, Some(Instant::now()));
        }
        self.set_failed(id, again);
        self.drop_unused()
    }

    /// It is out of the dataflow: no frontier is stored past it before the catalog says so.
    pub(super) fn is_behind(&mut self, view: ViewId) {
        let complete = self.complete_until();
        self.watched.behind.entry(view).or_insert(complete);
        self.watched.untold = true;
    }

    /// A stream table can't be written or computed: it leaves, the others go on.
    pub async fn take_out(&mut self, id: ViewId, e: Error, complete: Complete) -> Result<()> {
        // Not up to where the apply that left it out has come.
        for view in self.views.downstream(id).into_iter().chain([id]) {
            if self.views.installed(view).is_some() {
                self.watched.behind.entry(view).or_insert(complete);
            }
        }
        self.remove(id)?;
        self.fail_at(id, e, Some(complete)).await
    }

    pub async fn fail(&mut self, id: ViewId, e: Error) -> Result<()> {
        self.fail_at(id, e, None).await
    }

    async fn fail_at(&mut self, id: ViewId, e: Error, complete: Option<Complete>) -> Result<()> {
        let now = self.complete_until();
        // What has failed again was not complete any further in between.
        let complete = self.watched.behind.get(&id).copied().or(complete);
        if self.is_behind_catalog(id, &e).await? {
            return self.leave(id, Some(Instant::now() + AFTER_CHANGE));
        }
        let Some(view) = self.views.0.get_mut(&id) else { return Ok(()) };
        view.row.errors += 1;
        let again = match e.kind() {
            _ if rights::is_lost_right(&e) => None,
            // A lock ends by itself: it is waited for as long as it takes (hazard B3).
            ErrorKind::Contention => retry_at(view.row.errors.min(SUSPEND_AFTER - 1)),
            // Computed again it would take as long again, and hold up the others as long.
            _ if e.sqlstate() == Some("57014") => None,
            // So does a full disk, once somebody has made room; each attempt reads the sources, so ever more slowly.
            _ if e.sqlstate() == Some("53100") => retry_slowly(view.row.errors),
            _ => retry_at(view.row.errors),
        };
        let status = if again.is_some() { "ERROR" } else { "SUSPENDED" };
        view.row.status = status.to_owned();
        view.state = State::Failed { again };
        self.tell_repaired(id, Err(&e));
        let Some(view) = self.views.0.get(&id) else { return Ok(()) };
        let name = view.row.qualified();
        self.options.counters.refreshed(&name, &view.row.mode, false);
        match store::fail(&self.control, id, status, &e, complete).await? {
            Noted::Stored => {
                let error = e.for_logs();
                tracing::warn!(stream_table = %name, %error, hint = e.hint(), status, "a stream table was taken out");
            }
            Noted::Locked => {
                let error = e.for_logs();
                tracing::warn!(stream_table = %name, %error, "a stream table was taken out; its catalog row is locked");
                self.watched.unsaved.insert(id, (status, e, complete));
                // Its row still says that it is as fresh as the pipeline.
                self.watched.behind.entry(id).or_insert(complete.unwrap_or(now));
                self.tell_behind().await?;
            }
            // It was dropped under us; the next look at the catalog removes it.
            Noted::Gone => {
                tracing::debug!(stream_table = %name, error = %e.for_logs(), "a dropped stream table failed");
            }
        }
        self.announce();
        Ok(())
    }
}
