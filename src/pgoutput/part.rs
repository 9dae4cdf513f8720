//! Parts of a transaction that is still being received.
//!
//! Invariant: the parts and what the commit brings are together the transaction's changes, in message order. A
//! transaction with messages, or with a relation that has to be read again, stays together from then on.

use super::transaction::{Assembler, Change};

impl Assembler {
    /// Bytes that the open transaction takes.
    pub fn open_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, |t| t.bytes)
    }

    /// Registered relations that the open transaction has changed, also in what was taken.
    pub fn open_touched(&self) -> &[u32] {
        self.open.as_ref().map_or(&[], |t| &t.touched)
    }

    /// Whether changes of the open transaction have been taken.
    pub fn is_in_parts(&self) -> bool {
        self.open.as_ref().is_some_and(|t| t.taken > 0)
    }

    /// Takes the changes of the open transaction so far, if there are `least` of them or so many `bytes`.
    pub fn take_part(&mut self, least: usize, bytes: usize) -> Option<Vec<Change>> {
        let open = self.open.as_mut().filter(|t| t.changes.len() >= least || t.bytes >= bytes)?;
        if open.oversized || open.changes.is_empty() || !open.reread.is_empty() || self.with_messages {
            return None;
        }
        open.taken += open.changes.len();
        open.bytes = 0;
        Some(std::mem::take(&mut open.changes))
    }
}
