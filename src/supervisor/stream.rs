//! Where a pipeline's changes come from: the slot, or the change buffers.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::capture::poll::{self, Polled};
use crate::error::{Error, Result};
use crate::postgres::session::SqlSession;
use crate::replication::{Session, StreamEvent};

/// Pause after a look that found something: what comes meanwhile is the next epoch.
const BUSY: Duration = Duration::from_millis(2);
/// Longest pause of an idle pipeline.
const IDLE: Duration = Duration::from_millis(200);
/// An idle pipeline spends at most this part of its time with looking.
const DUTY: u32 = 10;

/// How changes reach the pipeline.
pub(super) enum Stream {
    Slot(Box<Session>),
    Poll(Box<Polling>),
}

/// Something that arrived.
pub(super) enum Arrived {
    Event(StreamEvent),
    Polled(Box<Polled>),
    /// It is time to look into the buffers.
    Due,
}

/// The session that reads the change buffers.
pub(super) struct Polling {
    client: Option<SqlSession>,
    running: Option<JoinHandle<(SqlSession, Result<Polled>)>>,
    next: Instant,
    pause: Duration,
    /// What the last look found is not applied yet: nothing else is read before.
    pub outstanding: bool,
}

impl Polling {
    pub fn new(client: SqlSession) -> Polling {
        Polling { client: Some(client), running: None, next: Instant::now(), pause: BUSY, outstanding: false }
    }

    /// Starts to read, unless a look is under way.
    pub fn start(&mut self, sources: Vec<i64>, limit: usize) {
        if let Some(client) = self.client.take() {
            self.running = Some(super::spawn(async move {
                let polled = poll::read(&client, &sources, limit).await;
                (client, polled)
            }));
        }
    }

    /// Looks at once: somebody waits.
    pub fn hurry(&mut self) {
        self.next = Instant::now();
        self.pause = BUSY;
    }

    /// What was read is durable.
    fn applied(&mut self) {
        self.outstanding = false;
        self.next = Instant::now() + self.pause;
    }

    async fn next(&mut self) -> Result<Arrived> {
        let Some(running) = &mut self.running else {
            tokio::time::sleep_until(self.next.into()).await;
            return Ok(Arrived::Due);
        };
        let ended = running.await;
        self.running = None;
        let (client, polled) =
            ended.map_err(|e| Error::internal("a look at the change buffers failed").with_source(e))?;
        let polled = polled.map_err(|e| e.during("reading the change buffers"))?;
        self.client = Some(client);
        self.outstanding = !polled.consumed.is_empty();
        self.pause = match self.outstanding {
            true => BUSY,
            false => (self.pause * 2).max(polled.cost * (DUTY - 1)).min(IDLE.max(polled.cost * (DUTY - 1))),
        };
        self.next = Instant::now() + self.pause;
        Ok(Arrived::Polled(Box::new(polled)))
    }
}

impl Stream {
    /// The next arrival. May be cancelled without losing anything.
    pub async fn next(&mut self) -> Result<Arrived> {
        match self {
            Stream::Slot(session) => session.next().await.map(Arrived::Event),
            Stream::Poll(polling) => polling.next().await,
        }
    }

    /// What has arrived already.
    pub fn ready(&mut self) -> Option<Result<Arrived>> {
        match self {
            Stream::Slot(session) => {
                futures_util::FutureExt::now_or_never(session.next()).map(|e| e.map(Arrived::Event))
            }
            Stream::Poll(_) => None,
        }
    }

    pub fn is_poll(&self) -> bool {
        matches!(self, Stream::Poll(_))
    }

    pub fn polling(&mut self) -> Option<&mut Polling> {
        match self {
            Stream::Slot(_) => None,
            Stream::Poll(polling) => Some(polling),
        }
    }

    /// Whatever arrives waits: the reader has no room for it.
    pub fn is_not_read(&mut self) {
        if let Stream::Slot(session) = self {
            session.is_not_read();
        }
    }

    /// For how long the server has been silent, if that says something.
    pub fn silence(&self) -> Option<Duration> {
        match self {
            Stream::Slot(session) => session.silence(),
            Stream::Poll(_) => None,
        }
    }

    /// An apply is durable: the frontier is acknowledged to the slot; what it `consumed` may be followed by the next look.
    pub fn applied(&mut self, frontier: u64, consumed: bool) {
        match self {
            Stream::Slot(session) => session.acknowledge(frontier),
            Stream::Poll(polling) if consumed => polling.applied(),
            Stream::Poll(_) => {}
        }
    }

    pub async fn close(self, frontier: u64, patience: Duration) {
        match self {
            Stream::Slot(session) => session.close(frontier, patience).await,
            Stream::Poll(polling) => (*polling).abort(),
        }
    }

    pub fn abort(self) {
        match self {
            Stream::Slot(session) => session.abort(),
            Stream::Poll(polling) => (*polling).abort(),
        }
    }
}

impl Polling {
    fn abort(self) {
        if let Some(running) = self.running {
            running.abort();
        }
    }
}
