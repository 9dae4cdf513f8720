//! Writing deltas: from changed rows to one transaction per apply.
//!
//! Invariant (D7): deltas, frontier and history commit together, under the pipeline's generation; the frontier is
//! acknowledged only after that commit. Users' code (triggers, domains, checks on a stream table) runs with its owner's
//! rights, inside the owner's `apply_<id>` function. Place in the data's way: dataflow -> **apply** -> PostgreSQL.

pub mod batch;
pub mod due;
pub mod guarded;
pub mod history;
mod hold;
pub mod owned;
pub mod reconcile;
mod savepoints;
pub mod writer;

pub use batch::{Batch, TableForm};
pub use due::Scheduled;
pub use writer::{Applied, Progress, Writer};
