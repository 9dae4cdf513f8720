//! The pipeline's loop: one task that owns the stream, the dataflow and the writer.
//!
//! Batching is natural: while an epoch is in the dataflow or an apply in flight, whole transactions gather; they are
//! the next epoch. The loop never blocks on the server: what takes long runs beside it and reports.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::RunOptions;
use super::answering::Known;
use super::drain::Drain;
use super::feed::{Flight, Step};
use super::handover::Handover;
use super::kept::Kept;
use super::lease::Lease;
use super::parts::Parts;
use super::prepare;
use super::sources::{Assigned, Feed, Sources};
use super::stream::Stream;
use super::trace::Gathering;
use super::views::Views;
use super::watch::Watched;
use crate::apply::{Applied, Progress, Writer};
use crate::capture::SourceSpec;
use crate::capture::fingerprint::Fingerprints;
use crate::capture::poll::Polled;
use crate::dataflow::{Dataflow, Epoch, InstanceId};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::{Assembler, Event as Assembled, Transaction, widen_xid};
use crate::postgres::session::SqlSession;
use crate::replication::StreamEvent;

/// How often the catalog and the request sequence are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Time for a clean end: the current apply, the last acknowledgement.
const DRAIN: Duration = Duration::from_secs(10);

/// A transaction that is decoded and not fed yet.
pub(super) struct Queued {
    pub transaction: Transaction,
    pub xid: u64,
}

/// Instances that a preparation waits for, until everything received before is applied.
pub(super) struct Barrier {
    pub assigned: Vec<Assigned>,
    pub reply: Option<oneshot::Sender<Vec<Assigned>>>,
    /// The apply that must have passed: nothing older is under way then.
    pub received: u64,
    /// The number of applies when one was under way: it may write rows that were kept, at any position.
    pub applying: Option<u64>,
}

/// The end of an apply: the session, what came of it, and what it was to write.
pub(super) type Written = (Writer, Result<Applied>, Step);

/// An apply that runs beside the loop.
pub(super) struct Applying {
    pub task: JoinHandle<Written>,
    pub progress: Progress,
    pub installed: Vec<crate::plan::ViewId>,
    pub started: Instant,
}

pub(super) struct Engine {
    pub options: RunOptions,
    /// Ends the loop as a shutdown does: the pipeline is detached.
    pub stop: CancellationToken,
    pub lease: Lease,
    pub control: SqlSession,
    pub stream: Stream,
    pub writer: Option<Writer>,
    pub dataflow: Dataflow,
    pub assembler: Assembler,
    pub gathering: Gathering,
    pub sources: Sources,
    pub views: Views,
    pub fingerprints: Fingerprints,
    /// Changes that a finished load releases, to be fed before anything newer.
    pub carry: Feed,
    pub queue: VecDeque<Queued>,
    pub queue_bytes: usize,
    /// Memory has had no room since then, as far as it was not counted yet.
    pub full_since: Option<Instant>,
    /// What the last look at the change buffers found.
    pub polled: Option<Polled>,
    /// The next epoch to feed.
    pub epoch: Epoch,
    pub flights: VecDeque<Flight>,
    /// What is computed of a transaction whose end has not arrived.
    pub parts: Parts,
    pub pending: Option<super::feed::Pending>,
    /// Changes of stream tables that are not due.
    pub kept: Kept,
    /// Stream tables join whose sources' children the writer does not watch yet.
    pub hierarchies_stale: bool,
    pub applying: Option<Applying>,
    pub barriers: Vec<Barrier>,
    pub preparing: Option<JoinHandle<()>>,
    pub events: mpsc::UnboundedReceiver<prepare::Event>,
    pub events_sender: mpsc::UnboundedSender<prepare::Event>,
    /// Everything up to here was received, fed, and is durable.
    pub received: u64,
    pub fed: u64,
    pub frontier: u64,
    /// Commits at or below it were applied before this life, or received before the stream was resumed.
    pub start: u64,
    /// End of the last transaction that was received whole.
    pub last_commit: u64,
    pub server_time: Option<chrono::DateTime<chrono::Utc>>,
    /// A recent snapshot's xmax, to widen transaction ids.
    pub near: u64,
    pub reason: String,
    /// Why changes come from buffers.
    pub delivery_reason: Option<String>,
    pub handover: Handover,
    /// Milliseconds that sources were read, for the next life; and since when they are being read now.
    pub loading: Arc<AtomicU64>,
    load_started: Option<Instant>,
    pub watched: Watched,
    pub announced: bool,
    /// The stream tables found at the start have joined, in one apply. Before that nothing is written and the frontier
    /// stands: whoever waits for it must find their rows (invariant 2).
    pub settled: bool,
    pub prepared_once: bool,
    /// The first layouts are registered: from then on changes can be decoded.
    pub registered: bool,
    /// The open transaction was applied before this life, or received before.
    pub(super) skipping: bool,
    /// How many preparations have begun in this life.
    pub(super) preparations: u64,
    /// Seconds of silence after which a walsender that seems to work is given up, for the next life, too.
    pub silence: Arc<AtomicU64>,
    /// Turns of the loop, for those who watch whether it waits in vain.
    turns: Arc<AtomicU64>,
}

/// Microseconds since 2000-01-01 as a time.
pub(super) fn server_time(micros: i64) -> Option<chrono::DateTime<chrono::Utc>> {
    const EPOCH_2000: i64 = 946_684_800_000_000;
    chrono::DateTime::from_timestamp_micros(micros.checked_add(EPOCH_2000)?)
}

impl Engine {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        options: RunOptions,
        lease: Lease,
        control: SqlSession,
        stream: Stream,
        writer: Writer,
        dataflow: Dataflow,
        frontier: u64,
        near: u64,
        reason: &str,
    ) -> Result<Engine> {
        let (events_sender, events) = mpsc::unbounded_channel();
        let budget = usize::try_from(options.memory_limit / 8).unwrap_or(usize::MAX);
        let mut watched = Watched::default();
        watched.data_time = lease.before.data_timestamp;
        Ok(Engine {
            gathering: Gathering::default(),
            assembler: Assembler::new(budget).with_message_prefix(super::requests::PREFIX),
            options,
            stop: CancellationToken::new(),
            lease,
            control,
            stream,
            writer: Some(writer),
            dataflow,
            sources: Sources::default(),
            views: Views::default(),
            fingerprints: Fingerprints::new(),
            carry: Feed::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            full_since: None,
            polled: None,
            epoch: 1,
            flights: VecDeque::new(),
            parts: Parts::default(),
            pending: None,
            kept: Kept::new(budget),
            hierarchies_stale: true,
            applying: None,
            barriers: Vec::new(),
            preparing: None,
            events,
            events_sender,
            received: frontier,
            fed: frontier,
            frontier,
            start: frontier,
            last_commit: frontier,
            server_time: None,
            near,
            reason: reason.to_owned(),
            delivery_reason: None,
            handover: Handover::default(),
            loading: Arc::default(),
            load_started: None,
            watched,
            announced: false,
            settled: false,
            prepared_once: false,
            registered: false,
            skipping: false,
            preparations: 0,
            silence: Arc::default(),
            turns: Arc::default(),
        })
    }

    /// Runs until `shutdown` or an error.
    pub async fn run(
        mut self,
        shutdown: &CancellationToken,
        evaluation: JoinHandle<Result<()>>,
        session: Known,
    ) -> Result<()> {
        let turns = self.turns.clone();
        let outcome = tokio::select! {
            outcome = self.serve(shutdown) => outcome,
            ended = evaluation => match ended {
                Ok(Ok(())) => Err(Error::internal("the evaluation service ended")),
                Ok(Err(e)) => Err(e.during("evaluating expressions")),
                Err(e) => Err(Error::internal("the evaluation service failed").with_source(e)),
            },
            lost = session.lost(Some(turns)) => Err(lost),
        };
        if let Some(task) = self.preparing.take() {
            task.abort();
        }
        self.count_loading();
        self.handover.abort();
        match outcome {
            Ok(()) => self.close().await,
            Err(error) => {
                // A server that shuts down waits for this session for ever: let it go at once.
                self.stream.abort();
                // It holds the lease: the next life must not meet its own.
                self.control.end().await;
                Err(error)
            }
        }
    }

    async fn serve(&mut self, shutdown: &CancellationToken) -> Result<()> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        // Another process can be lost at any time.
        let clustered = self.options.cluster.is_some();
        let mut drain: Option<Drain> = None;
        loop {
            if drain.as_ref().is_some_and(|drain| drain.is_over(self.frontier)) {
                return Ok(());
            }
            let receive = self.wants_input();
            self.turns.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if drain.is_none() => drain = Some(self.begin_drain().await?),
                done = join(&mut self.applying), if self.applying.is_some() => self.applied(done?).await?,
                result = self.dataflow.next(), if !self.flights.is_empty() || clustered => {
                    self.completed(result?).await?;
                }
                event = self.events.recv() => self.prepared(event).await?,
                _ = ticks.tick() => self.tick().await?,
                arrived = self.stream.next(), if receive => {
                    if let Err(e) = arrived.and_then(|a| self.arrived(a)) {
                        if drain.is_some() {
                            return Err(e);
                        }
                        self.reconnect(e).await?;
                    }
                }
            }
            self.watch_hierarchies().await?;
            self.pump()?;
        }
    }

    pub(super) fn receive(&mut self, event: StreamEvent) -> Result<()> {
        match event {
            StreamEvent::Begin { commit_lsn, xid, commit_time } => {
                self.skipping = commit_lsn < self.start;
                self.assembler.begin(commit_lsn, xid, commit_time)
            }
            StreamEvent::Change(bytes) => match self.decode(&bytes)? {
                Some(Assembled::Relation { relation, observed }) if !self.skipping => {
                    self.described(relation, &observed)
                }
                _ => Ok(()),
            },
            StreamEvent::Commit { commit_lsn, end_lsn, commit_time } => {
                let transaction = self.assembler.commit(commit_lsn, end_lsn, commit_time)?;
                self.received = self.received.max(end_lsn);
                self.last_commit = self.last_commit.max(end_lsn);
                if end_lsn > self.start {
                    let xid = widen_xid(transaction.xid, self.near);
                    self.queue_bytes += transaction.bytes;
                    self.queue.push_back(Queued { transaction, xid });
                }
                Ok(())
            }
            StreamEvent::Message { transactional: false, content, prefix, .. }
                if prefix.as_bytes() == super::requests::PREFIX =>
            {
                self.requested(&content);
                Ok(())
            }
            StreamEvent::Message { transactional: true, lsn, prefix, content } => {
                self.assembler.message(true, lsn, prefix.as_bytes(), &content).map(drop)
            }
            StreamEvent::Message { .. } => Ok(()),
            StreamEvent::Position { lsn, server_time: at } => {
                if !self.assembler.in_transaction() {
                    self.received = self.received.max(lsn);
                    self.server_time = server_time(at);
                }
                Ok(())
            }
        }
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<Option<Assembled>> {
        let span = self.gathering.decode();
        span.in_scope(|| self.assembler.change(bytes))
    }

    /// What a preparation reports.
    async fn prepared(&mut self, event: Option<prepare::Event>) -> Result<()> {
        match event {
            None => Err(Error::internal("the preparation channel closed")),
            Some(prepare::Event::Register { specs, reply }) => self.register(specs, reply),
            Some(prepare::Event::Renew { instances, reply }) => self.renew(&instances, reply),
            Some(prepare::Event::Snapshot { instances, snapshot }) => {
                self.near = self.near.max(snapshot.xmax);
                self.count_loading();
                self.load_started = Some(Instant::now());
                self.sources.snapshot(&instances, &snapshot)
            }
            Some(prepare::Event::Loaded { instances, until, fingerprints, shapes, members }) => {
                self.count_loading();
                self.sources.loaded(&instances, until, &shapes, &mut self.carry)?;
                for (oid, member) in members {
                    if fingerprints.contains_key(&oid) {
                        self.watched.members.insert(oid, member);
                    }
                }
                self.fingerprints.extend(fingerprints);
                Ok(())
            }
            Some(prepare::Event::Ready(prepared)) => {
                self.ready(*prepared);
                Ok(())
            }
            Some(prepare::Event::Full { row, validity }) => {
                self.watched.decided(row.view, validity);
                self.becomes_full(row);
                Ok(())
            }
            Some(prepare::Event::Failed { row, error }) => self.fail(row.view, error).await,
            Some(prepare::Event::Again { view, because }) => {
                tracing::info!(view, because = %because.for_logs(), "a stream table is prepared again");
                self.leave(view, Some(Instant::now() + prepare::PAUSE))
            }
            Some(prepare::Event::Recomputed { view, outcome }) => self.recomputed(view, outcome).await,
            Some(prepare::Event::Done(outcome)) => {
                self.preparing = None;
                self.drop_unloaded()?;
                // Also what an earlier life had published and nobody reads any more.
                self.watched.shrunk = false;
                self.drop_unused()?;
                outcome
            }
        }
    }

    /// Time that went into reading sources, also in vain.
    fn count_loading(&mut self) {
        if let Some(started) = self.load_started.take() {
            self.loading.fetch_add(started.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
    }

    fn register(&mut self, specs: Vec<SourceSpec>, reply: oneshot::Sender<Vec<Assigned>>) -> Result<()> {
        self.registered = true;
        let mut assigned = Vec::new();
        for spec in specs {
            // It was altered since it was read for others: they follow with the next preparation.
            if self.sources.layout(spec.oid).is_some_and(|held| held.contradicts(&spec)) {
                self.read_again(&[spec.oid])?;
            }
            let place = self.sources.require(&spec)?;
            if place.fresh {
                let identity = place.spec.identity;
                self.dataflow
                    .send(crate::dataflow::Command::AddSource { instance: place.instance, identity })?;
                if let Some(layout) = self.sources.layout(spec.oid) {
                    self.assembler.register(spec.oid, layout.wanted());
                }
            }
            assigned.push(place);
        }
        // Not where a keepalive has come: while a large transaction is received, that is reached at its end only, and it
        // may be held up by what is to be loaded.
        let received = if self.stream.is_poll() { self.received } else { self.last_commit };
        let applying = self.applying.is_some().then_some(self.watched.applies);
        self.barriers.push(Barrier { assigned, reply: Some(reply), received, applying });
        Ok(())
    }

    fn renew(&mut self, instances: &[InstanceId], reply: oneshot::Sender<Vec<Assigned>>) -> Result<()> {
        let mut assigned = Vec::new();
        for given_up in instances {
            let place = self.sources.renew(*given_up);
            let place =
                place.ok_or_else(|| Error::new(ErrorKind::Identity, "a source went while it was loaded"))?;
            self.dataflow.send(crate::dataflow::Command::DropSource { instance: *given_up })?;
            let (instance, identity) = (place.instance, place.spec.identity);
            self.dataflow.send(crate::dataflow::Command::AddSource { instance, identity })?;
            assigned.push(place);
        }
        // A preparation that was given up does not listen any more.
        let _ = reply.send(assigned);
        Ok(())
    }

    /// Ends cleanly: the apply in flight, and what was computed already; then the last acknowledgement.
    async fn close(mut self) -> Result<()> {
        let finish = async {
            while self.applying.is_some() {
                let done = join(&mut self.applying).await?;
                self.applied(done).await?;
            }
            if let Some(writer) = &mut self.writer {
                let progress = Progress { frontier: self.frontier, ..Progress::default() };
                writer.apply(&progress, &[], &[], true).await?;
            }
            Ok::<(), Error>(())
        };
        match tokio::time::timeout(DRAIN, finish).await {
            Ok(outcome) => outcome?,
            Err(_) => {
                tracing::warn!("the last apply did not end in time; it is done again at the next start")
            }
        }
        self.stream.close(self.frontier, Duration::from_secs(3)).await;
        Ok(())
    }
}

/// The end of the running apply; for ever if there is none. `Err`: the task itself failed, so nothing is known about
/// its transaction and the pipeline starts anew from the catalog.
async fn join(applying: &mut Option<Applying>) -> Result<Written> {
    match applying {
        Some(running) => {
            (&mut running.task).await.map_err(|e| Error::internal("the apply task failed").with_source(e))
        }
        None => std::future::pending().await,
    }
}
