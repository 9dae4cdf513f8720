//! Large transactions go through the dataflow while they arrive.
//!
//! The server sends a transaction when it has committed, row by row; a hundred thousand rows take it most of a second.
//! What has arrived is fed as an epoch of its own, so that the end of the transaction finds nearly everything computed,
//! and what is held of it is bounded.
//!
//! Invariant: nothing of a transaction is written, kept for a schedule or seen by a new stream table before its end has
//! been computed (invariant 2). Deltas of parts stay here until then, and no other epoch is fed in between.

use std::collections::BTreeMap;
use std::time::Duration;

use super::engine::Engine;
use super::feed::{EPOCH_BYTES, PENDING_ROWS};
use super::kept::Delta;
use super::sources::Feed;
use super::stream::Stream;
use crate::apply::Progress;
use crate::dataflow::ViewDelta;
use crate::error::Result;
use crate::pgoutput::{Transaction, widen_xid};
use crate::plan::ViewId;

/// Changes from which a part is worth an epoch. Debug builds have many small ones, so that tests meet them.
const PART: usize = if cfg!(debug_assertions) { 20 } else { 5_000 };
/// A part that takes this long, and so long for each change, makes the next ones larger: some operators compute whole
/// groups anew in every epoch.
const LONG: Duration = Duration::from_millis(100);
const LONG_PER_CHANGE: Duration = Duration::from_micros(200);

/// The parts of the open transaction that were fed.
pub(super) struct Parts {
    /// Some were fed, and the end was not computed yet.
    open: bool,
    /// Changes of the next part.
    least: usize,
    deltas: BTreeMap<ViewId, Delta>,
}

impl Default for Parts {
    fn default() -> Parts {
        Parts { open: false, least: PART, deltas: BTreeMap::new() }
    }
}

impl Parts {
    /// A part of so many changes is through the dataflow.
    pub fn passed(&mut self, changes: usize, took: Duration, deltas: Vec<ViewDelta>) {
        for delta in deltas {
            self.deltas.entry(delta.view).or_default().add(delta.rows);
        }
        let usual = LONG_PER_CHANGE.saturating_mul(u32::try_from(changes).unwrap_or(u32::MAX));
        if took > LONG.max(usual) {
            self.least = changes.max(self.least).saturating_mul(4);
        }
    }

    /// The end of the transaction is through the dataflow: what all of it changed.
    pub fn close(&mut self, last: Vec<ViewDelta>) -> Vec<ViewDelta> {
        if !self.open {
            return last;
        }
        let mut deltas = std::mem::take(self).deltas;
        for delta in last {
            deltas.entry(delta.view).or_default().add(delta.rows);
        }
        let whole = |(view, mut delta): (ViewId, Delta)| {
            delta.consolidate();
            ViewDelta { view, rows: delta.rows }
        };
        deltas.into_iter().map(whole).collect()
    }

    pub fn forget(&mut self, view: ViewId) {
        self.deltas.remove(&view);
    }

    /// Rows and bytes that wait for the end.
    fn size(&self) -> (usize, usize) {
        self.deltas.values().fold((0, 0), |(rows, bytes), d| (rows + d.rows.len(), bytes + d.bytes))
    }
}

impl Engine {
    /// Feeds what has arrived of the open transaction. True: nothing else may be fed before its end.
    pub(super) fn feed_part(&mut self) -> Result<bool> {
        if !self.may_feed_parts() {
            return Ok(self.parts.open);
        }
        let bytes = self.assembler.open_bytes();
        let (Some(xid), Some(changes)) =
            (self.assembler.open_xid(), self.assembler.take_part(self.parts.least, self.part_bytes()))
        else {
            return Ok(self.parts.open);
        };
        self.parts.open = true;
        let count = changes.len();
        let mut feed: Feed = std::mem::take(&mut self.carry);
        let part = Transaction { changes, ..Transaction::default() };
        self.sources.feed(part, widen_xid(xid, self.near), &mut feed)?;
        let progress = Progress { frontier: self.fed, ..Progress::default() };
        let traced = self.gathering.fed(0, bytes);
        self.step(feed, progress, Vec::new(), Some(count), traced)?;
        Ok(true)
    }

    /// Whether the open transaction may be fed before its end is there: its deltas have to be held until then.
    fn may_feed_parts(&self) -> bool {
        let (rows, bytes) = self.parts.size();
        matches!(self.stream, Stream::Slot(_))
            && self.settled
            && !self.skipping
            && (self.parts.open || self.preparing.is_none())
            && (rows <= PENDING_ROWS && bytes <= self.input_limit())
            && !self.recursion_is_touched()
    }

    /// Bytes of changes that are fed as a part in any case.
    fn part_bytes(&self) -> usize {
        (self.input_limit() / 4).min(EPOCH_BYTES / 2)
    }

    /// Whether as much of the open transaction has arrived as should be held while the dataflow is busy.
    pub(super) fn parts_are_behind(&self) -> bool {
        let busy = !self.flights.is_empty() || self.is_writer_behind();
        self.assembler.open_bytes() >= self.part_bytes() && busy && self.may_feed_parts()
    }
}
