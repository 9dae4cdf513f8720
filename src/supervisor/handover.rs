//! The way back from change buffers to the slot, under load and without reading any source again.
//!
//! The slot and the publication are made while triggers capture, and writers that were there before are waited for. Then
//! one snapshot separates the two ways: what it shows was polled, everything else comes through the stream. Both sides
//! are exact, so nothing is missed and nothing comes twice. A source that can't be published makes the pipeline start
//! anew instead: its triggers have to change to messages under a lock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::diagnose;
use super::engine::Engine;
use super::lease::Lease;
use super::start::open_stream;
use super::stream::Stream;
use super::{RunOptions, load};
use crate::capture::hydrate::insert_position;
use crate::capture::{CapturedBy, SourceSpec, publication, trigger, writers};
use crate::catalog::store;
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::Snapshot;
use crate::postgres::sessions::Purpose;
use crate::recovery::{Capture, CdcMode, StateEvent};
use crate::replication::{Session, slot};

/// How often it is tried.
const EVERY: Duration = Duration::from_secs(5);
/// After a failure that lasts: the attempt creates and drops a slot.
const SLOWLY: Duration = Duration::from_secs(10);

/// How long locks and earlier writers are waited for in one attempt.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the way back stands.
#[derive(Default)]
pub(super) struct Handover {
    next: Option<Instant>,
    running: Option<JoinHandle<Result<Option<Ready>>>>,
    ready: Option<Ready>,
    /// The look under way was started after everything was ready, and while nothing was prepared: its snapshot may be the
    /// cut. An earlier one could be older than the slot's start, and what lies between would come in neither way. Number
    /// of the preparations until then: one that has begun since may have read a source at a later snapshot than the cut,
    /// and what lies between would come twice.
    armed: Option<u64>,
    /// An attempt was given up: slot and publication are left.
    left: bool,
    /// The snapshot that separates polled from streamed; nothing is polled after it.
    pub cut: Option<Snapshot>,
    /// What was last said about why it is not possible.
    said: Option<String>,
}

/// The slot streams, and the publication holds these sources.
struct Ready {
    session: Option<Session>,
    start: u64,
    sources: Vec<u32>,
    members: BTreeMap<u32, u32>,
}

impl Handover {
    /// A look at the buffers begins.
    pub fn look_begins(&mut self, preparing: bool, preparations: u64) {
        self.armed = (self.ready.is_some() && !preparing).then_some(preparations);
    }

    /// The snapshot of the look that has ended.
    pub fn looked(&mut self, snapshot: &Snapshot) {
        if self.armed.is_some() && self.ready.is_some() && self.cut.is_none() {
            self.cut = Some(snapshot.clone());
        }
    }

    /// The slot is ready, and the look that it waits for has not been taken.
    pub fn can_be_given_up(&self) -> bool {
        self.ready.is_some() && self.cut.is_none()
    }

    pub fn abort(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }
}

impl Engine {
    /// One step on the way back to the slot.
    pub(super) async fn hand_over(&mut self) -> Result<()> {
        if !self.stream.is_poll() || !self.settled {
            return Ok(());
        }
        if self.handover.cut.is_some() {
            return self.switch().await;
        }
        if self.handover.ready.is_some() {
            if let Some(polling) = self.stream.polling() {
                polling.hurry();
            }
            return Ok(());
        }
        match &mut self.handover.running {
            Some(running) if running.is_finished() => {
                let ended = running.await;
                self.handover.running = None;
                let ended =
                    ended.map_err(|e| Error::internal("the way back to the slot failed").with_source(e))?;
                self.made_ready(ended)
            }
            Some(_) => Ok(()),
            None => self.begin().await,
        }
    }

    /// Starts to make the slot ready when it is time and nothing else is being changed.
    async fn begin(&mut self) -> Result<()> {
        let due = self.handover.next.is_none_or(|at| at <= Instant::now());
        if !due {
            return Ok(());
        }
        self.handover.next = Some(Instant::now() + EVERY);
        if self.preparing.is_some() {
            // For as long as that takes, a slot that was given up would keep WAL.
            return self.tidy().await;
        }
        let mode = diagnose::cdc_mode(&self.control, &self.options).await?;
        if mode == CdcMode::Trigger {
            return self.tidy().await;
        }
        if !self.may_return().await? {
            self.say("the slot was given up because it retained too much WAL; it is made again later");
            return self.tidy().await;
        }
        if let Some(reason) = diagnose::cannot_stream(&self.control).await? {
            self.say(&reason);
            return self.tidy().await;
        }
        self.handover.left = false;
        let specs = self.sources.layouts();
        let (options, lease) = (self.options.clone(), self.lease.clone());
        self.handover.running = Some(super::spawn(async move { make_ready(options, lease, specs).await }));
        Ok(())
    }

    /// What an attempt that was given up left behind would keep WAL, and make updates fail that have no identity.
    async fn tidy(&mut self) -> Result<()> {
        if self.handover.left {
            let name = self.lease.names.slot();
            slot::drop_ours(&self.control, name).await?;
            publication::remove(&self.control, self.lease.names.publication()).await?;
            // Its walsender may not have ended yet.
            self.handover.left = slot::read(&self.control, name).await?.is_some();
        }
        Ok(())
    }

    /// The slot that was made ready goes; triggers go on.
    pub(super) async fn give_up_handover(&mut self, reason: &str) -> Result<()> {
        if let Some(session) = self.handover.ready.take().and_then(|ready| ready.session) {
            session.abort();
        }
        self.handover.armed = None;
        self.handover.next = Some(Instant::now() + EVERY);
        // Dropped by `tidy` once its walsender has ended.
        self.handover.left = true;
        self.say(reason);
        for (_, id) in self.sources.triggered() {
            note(&self.control, id, Capture::Transitioning, StateEvent::HandoverFailed, Some(reason)).await?;
        }
        Ok(())
    }

    fn say(&mut self, reason: &str) {
        if self.handover.said.as_deref() != Some(reason) {
            self.handover.said = Some(reason.to_owned());
            tracing::info!(reason, "changes stay captured by triggers");
        }
    }

    fn made_ready(&mut self, outcome: Result<Option<Ready>>) -> Result<()> {
        match outcome {
            Ok(Some(ready)) if ready.session.is_some() => {
                self.handover.ready = Some(ready);
                Ok(())
            }
            // The slot is stored as the way of the next life.
            Ok(Some(_)) => Err(Error::new(
                ErrorKind::Identity,
                "the slot can be used again; sources that can't be published change to messages",
            )),
            Ok(None) => Ok(()),
            // Somebody may have ended the session that made it: that concerns nobody else.
            Err(e) if e.kind() == ErrorKind::Connection && self.control.is_closed() => Err(e),
            Err(e) => {
                self.say(e.context());
                self.handover.next = Some(Instant::now() + SLOWLY);
                Ok(())
            }
        }
    }

    /// Everything that the cut shows has been fed: from here on the stream delivers.
    async fn switch(&mut self) -> Result<()> {
        // Also everything that was polled is applied: its rows are still to be deleted from the buffers.
        let drained = self.polled.is_none()
            && self.flights.is_empty()
            && self.pending.is_none()
            && self.applying.is_none();
        if !drained {
            return Ok(());
        }
        let (Some(cut), Some(ready)) = (self.handover.cut.take(), self.handover.ready.take()) else {
            return Ok(());
        };
        let mut held: Vec<u32> = self.sources.layouts().iter().map(|s| s.oid).collect();
        held.sort_unstable();
        let Some(session) = ready.session else { return Ok(()) };
        if held != ready.sources || self.preparing.is_some() || self.handover.armed != Some(self.preparations)
        {
            // A stream table came or went meanwhile: once more, with its sources.
            session.abort();
            self.handover.next = None;
            self.handover.left = true;
            return Ok(());
        }
        // Strictly beyond everything that was polled: only the stream itself can pass it. Were it a position that a look
        // has reported, the filter would end before the stream has delivered what was polled, and it would come twice.
        load::force_flush(&self.control).await?;
        let until = insert_position(&self.control).await?.max(self.received + 1);
        load::force_flush(&self.control).await?;
        let ids: Vec<i64> = self.sources.triggered().into_iter().map(|(_, id)| id).collect();
        self.sources.hand_over(&cut, until, |layout| layout.captured_by = CapturedBy::Wal);
        (self.start, self.last_commit) = (ready.start, ready.start);
        self.stream = Stream::Slot(Box::new(session));
        self.delivery_reason = None;
        self.watched.shrunk = false;
        self.watched.members = ready.members;
        // Everything up to the cut is applied, and the slot begins before it: the next start must find it so.
        self.frontier = self.frontier.max(self.received);
        store::reset_frontier(&self.control, &self.options.pipeline, self.frontier).await?;
        diagnose::deliver_by_slot(&self.control, &self.options, &self.lease).await?;
        for id in &ids {
            note(&self.control, *id, Capture::Transitioning, StateEvent::HandedOver, None).await?;
        }
        tracing::info!(
            slot = self.lease.names.slot(),
            sources = ids.len(),
            "changes come from the WAL again"
        );
        self.watched.triggers = None;
        Ok(())
    }
}

impl Engine {
    /// Once after each start, when all stream tables are right again: what incidents had changed is noted.
    pub(super) async fn complete(&mut self) -> Result<()> {
        store::complete_recoveries(&self.control, &self.options.pipeline).await?;
        Ok(())
    }

    /// Takes off triggers that nothing needs: after the way back, of sources that nobody reads any more, of an earlier
    /// life. In the loop, so that no preparation can come to rely on them meanwhile; each attempt gives way quickly.
    pub(super) async fn take_off_triggers(&mut self) -> Result<()> {
        if self.preparing.is_some() || !self.announced {
            return Ok(());
        }
        let needed: Vec<i64> = self.sources.triggered().into_iter().map(|(_, id)| id).collect();
        for id in trigger::left_over(&self.control, &self.options.pipeline, &needed).await? {
            match trigger::remove(&self.control, id, Duration::ZERO).await {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) => tracing::debug!(error = %e, source_id = id, "capture triggers stay for now"),
            }
        }
        trigger::forget_unused(&self.control, &self.options.pipeline).await
    }
}

/// Where the state machine leads from `from`; stored.
async fn note(
    client: &tokio_postgres::Client,
    source_id: i64,
    from: Capture,
    event: StateEvent,
    reason: Option<&str>,
) -> Result<()> {
    let Some(to) = Capture::after(Some(from), event) else {
        return Err(Error::internal(format!("a source in state {} met {event:?}", from.name())));
    };
    trigger::note_capture(client, source_id, to.name(), reason).await
}

/// Slot, publication, the wait for earlier writers, the streaming session. `None`: nothing to be done now.
async fn make_ready(options: RunOptions, lease: Lease, specs: Vec<SourceSpec>) -> Result<Option<Ready>> {
    let client = options.target.connect(Purpose::Tool).await?;
    let ids: Vec<i64> = specs.iter().filter_map(|s| Some(s.triggers()?.source_id)).collect();
    for id in &ids {
        note(&client, *id, Capture::Trigger, StateEvent::WalPossible, Some("the slot is being made")).await?;
    }
    let outcome = slot_and_publication(&client, &options, &lease, &specs).await;
    if let Err(e) = &outcome {
        for id in &ids {
            note(&client, *id, Capture::Transitioning, StateEvent::HandoverFailed, Some(e.context())).await?;
        }
        slot::drop_ours(&client, lease.names.slot()).await?;
        publication::remove(&client, lease.names.publication()).await?;
    }
    outcome.map(Some)
}

async fn slot_and_publication(
    client: &tokio_postgres::Client,
    options: &RunOptions,
    lease: &Lease,
    specs: &[SourceSpec],
) -> Result<Ready> {
    slot::drop_ours(client, lease.names.slot()).await?;
    let start = diagnose::make_slot(client, options, lease).await?;
    let mut sources: Vec<u32> = specs.iter().map(|s| s.oid).collect();
    sources.sort_unstable();
    let mut publishable = true;
    for spec in specs {
        let wanted = super::obstacle::requested(client, &options.pipeline, spec.oid).await?;
        publishable &= spec.triggers().is_none_or(|t| t.from_wal) && !wanted.iter().any(|m| m == "trigger");
        publishable &= super::obstacle::unpublishable(client, &options.pipeline, spec.oid).await?.is_none();
    }
    if !publishable {
        diagnose::begin_at(client, &options.pipeline, start).await?;
        diagnose::deliver_by_slot(client, options, lease).await?;
        return Ok(Ready { session: None, start, sources, members: BTreeMap::new() });
    }
    let name = lease.names.publication();
    publication::add_tables(client, name, specs, PATIENCE).await?;
    let members = publication::members(client, name).await?;
    if let Some((_, blocked)) = writers::wait(client, name, &sources, &[], PATIENCE).await?.pop_first() {
        return Err(blocked);
    }
    let session = open_stream(options, lease, start).await?;
    Ok(Ready { session: Some(session), start, sources, members })
}
