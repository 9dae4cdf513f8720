//! Logical replication messages (pgoutput, protocol 1, text tuples): from bytes to transactions of packed rows.
//!
//! Purpose: parse messages, keep the relation cache, turn tuples into rows by column *name*, and assemble
//! transactions within a memory budget. Invariants: no I/O; no byte sequence panics or loops; nothing is left out
//! silently (what could not be turned into rows is named in [`Transaction::reread`], [`Transaction::skipped`] or
//! [`Transaction::dropped_messages`]). Place in the data's way: replication -> **pgoutput** -> capture -> dataflow.
//!
//! Format: PostgreSQL documentation, "Logical Replication Message Formats"; `src/backend/replication/logical/proto.c`
//! and `src/backend/replication/pgoutput/pgoutput.c`.

pub mod messages;
mod part;
mod reader;
pub mod relation;
pub mod snapshot;
pub mod transaction;
pub mod tuple;

#[cfg(test)]
mod captured_tests;
#[cfg(test)]
mod encode;
#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod message_tests;
#[cfg(test)]
mod transaction_tests;

pub use messages::Message;
pub use relation::{Difference, Observed, Relation, RelationCache};
pub use snapshot::{Snapshot, widen_xid};
pub use transaction::{Assembler, Change, ChangeKind, Event, RereadReason, Transaction};
pub use tuple::{ColumnMap, KeyRow, Misfit, NewTuple, OldRow, PartialRow, WantedAttribute, WantedColumn};
