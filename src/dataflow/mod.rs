//! The incremental engine: plans rendered on timely and differential dataflow.
//!
//! Purpose: hold the sources' rows and the operators' state, take one epoch of source changes after the other, and give
//! back each stream table's delta. Invariant: after epoch `e` completed, the sum of all deltas of a view up to `e` is
//! the answer of its plan over the sources' rows at `e`. Place in the data's way: capture -> **dataflow** -> apply.
//!
//! ```text
//!  pipeline ──Command──▶ worker 0 ──command dataflow──▶ every worker, one order
//!                           │ source states (rows by identity) ─deltas─▶ inputs of arrangements and views
//!                           ▼                                               │
//!  pipeline ◀─EpochResult── sink ◀──────────── filter, join, aggregate ... ─┘
//! ```
//!
//! All state hangs on one time, the epoch (`u64`). Rows enter at worker 0 and are spread by key where an operator needs
//! it. Arrangements of sources are shared between the views of a pipeline.

mod aggregate;
mod arrangement;
mod collect;
mod evaluate;
mod group;
mod join;
mod keyed;
mod native;
mod protocol;
mod recursive;
mod render;
mod runtime;
mod setop;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod topk;
mod worker;

pub use evaluate::{EvaluationReply, EvaluationRequest};
pub use protocol::{
    Binding, Bindings, Command, DataflowStats, Epoch, EpochResult, InstanceId, RowChange, ViewDelta,
};
pub use runtime::{Dataflow, DataflowOptions, Loader};
