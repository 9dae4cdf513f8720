//! The pipeline's loop in poll delivery: when the buffers are read, and what is fed from them.

use std::time::Instant;

use super::diagnose;
use super::engine::Engine;
use super::obstacle::Capturing;
use super::sources::Feed;
use super::stream::{Arrived, Stream};
use crate::apply::Progress;
use crate::capture::poll::Polled;
use crate::capture::trigger::{self, Mode};
use crate::error::{Error, ErrorKind, Result};

impl Engine {
    /// Whether anything may be received now: what waits in memory is bounded, the rest waits on the server. Nothing is
    /// read before it can be decoded.
    pub(super) fn wants_input(&self) -> bool {
        let limit = self.input_limit();
        let room = self.queue_bytes < limit && self.sources.held_bytes() < limit;
        match &self.stream {
            Stream::Slot(_) => (self.settled || self.registered) && room && !self.parts_are_behind(),
            // Before the stream tables of a start have joined nothing is written, so nothing can be consumed: the
            // buffers are read once everything is loaded.
            Stream::Poll(polling) => {
                !polling.outstanding
                    && self.handover.cut.is_none()
                    && room
                    && (self.settled || self.watched.known && self.preparing.is_none())
            }
        }
    }

    /// Tells those who watch for how long memory has had no room for what the server would send.
    pub(super) fn tell_backpressure(&mut self) {
        let limit = self.input_limit();
        let full = self.queue_bytes >= limit || self.sources.held_bytes() >= limit || self.parts_are_behind();
        let now = Instant::now();
        if let Some(since) = self.full_since {
            // Counted while it lasts: whoever looks meanwhile sees it grow.
            self.options.counters.held_back(now - since);
        }
        if full != self.full_since.is_some() {
            self.options.counters.full(full);
        }
        self.full_since = full.then_some(now);
    }

    pub(super) fn input_limit(&self) -> usize {
        usize::try_from(self.options.memory_limit / 8).unwrap_or(usize::MAX)
    }

    /// Takes what arrived, and what has arrived besides.
    pub(super) fn arrived(&mut self, first: Arrived) -> Result<()> {
        let mut arrived = first;
        // Take what is there already before turning to anything else.
        for _ in 0..2_000 {
            match arrived {
                Arrived::Event(event) => self.receive(event)?,
                Arrived::Polled(polled) => return self.take_polled(*polled),
                Arrived::Due => {
                    // The first look finds all that was captured while the sources were read, and nothing else is held.
                    let share = if self.settled { 1 } else { 4 };
                    let (sources, limit) =
                        (self.sources.triggered(), self.input_limit().saturating_mul(share));
                    self.handover.look_begins(self.preparing.is_some(), self.preparations);
                    if let Some(polling) = self.stream.polling() {
                        polling.start(sources.into_iter().map(|(_, id)| id).collect(), limit);
                    }
                    return Ok(());
                }
            }
            if !self.wants_input() {
                break;
            }
            match self.stream.ready() {
                Some(next) => arrived = next?,
                None => break,
            }
        }
        Ok(())
    }

    /// How sources can be captured in this life.
    pub(super) fn capturing(&self) -> Capturing {
        Capturing {
            pipeline: self.options.pipeline.clone(),
            polled: self.stream.is_poll(),
            memory_limit: self.options.memory_limit,
        }
    }

    /// The seals of capture triggers: a trigger that was off for a moment has missed changes.
    pub(super) async fn check_triggers(&mut self) -> Result<()> {
        let mode = if self.stream.is_poll() { Mode::Buffer } else { Mode::Message };
        let triggered = self.sources.triggered();
        let mut hole = None;
        for (oid, id) in &triggered {
            if let Some(broken) = trigger::broken_seal(&self.control, *id, mode).await? {
                // It got children or a subscription just now: what reads it is prepared anew, which sets other triggers.
                if trigger::needs_other_triggers(&broken) && self.settled && self.preparing.is_none() {
                    let source = self.sources.layout(*oid).map(|l| l.qualified()).unwrap_or_default();
                    tracing::warn!(%source, "it became part of a hierarchy or of a subscription: what was written through the parent since then was not captured, and comes with reading it again");
                    self.read_again(&[*oid])?;
                    continue;
                }
                let name = self.sources.layout(*oid).map(|l| l.qualified()).unwrap_or_default();
                diagnose::tell_triggers_lost(&self.control, &self.options, *id, &broken).await?;
                let context = format!("capture of {name} had a hole: {broken}");
                hole = Some(Error::new(ErrorKind::Identity, context));
            }
        }
        if let Some(hole) = hole {
            return Err(hole);
        }
        if mode == Mode::Message && !triggered.is_empty() {
            let token = trigger::token(&self.control, &self.options.pipeline).await?;
            if token != self.sources.token {
                return Err(Error::new(ErrorKind::Identity, "the proof of captured messages was changed"));
            }
        }
        Ok(())
    }

    fn take_polled(&mut self, polled: Polled) -> Result<()> {
        // A source that has joined since was not looked at: its position is not reached by this look.
        if self.sources.triggered().iter().all(|(_, id)| polled.sources.contains(id)) {
            self.received = self.received.max(polled.position);
        }
        self.server_time = Some(polled.time);
        self.near = self.near.max(polled.snapshot.xmax);
        self.handover.looked(&polled.snapshot);
        if !polled.consumed.is_empty() {
            self.polled = Some(polled);
        }
        Ok(())
    }

    /// Feeds what the last look found.
    pub(super) fn feed_polled(&mut self, feed: &mut Feed, progress: &mut Progress) -> Result<()> {
        let Some(polled) = self.polled.take() else { return Ok(()) };
        for (source, captured) in polled.rows {
            self.sources.feed_captured(source, captured, feed)?;
        }
        progress.consumed = polled.consumed;
        Ok(())
    }
}
