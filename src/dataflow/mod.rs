//! The incremental engine: plans rendered on timely and differential dataflow.
//!
//! Purpose: hold the sources' rows and the operators' state, take one epoch of source changes after the other, and give
//! back each stream table's delta. Invariant: after epoch `e` completed, the sum of all deltas of a view up to `e` is
//! the answer of its plan over the sources' rows at `e`. Place in the data's way: capture -> **dataflow** -> apply.
//!
//! ```text
//!  pipeline ──Command──▶ worker 0 ──command dataflow──▶ every worker of every process, one order
//!                           │      source states (each worker its rows, by identity)
//!                           │               └─deltas─▶ inputs of arrangements and views
//!                           ▼                                               │
//!  pipeline ◀─EpochResult── sink ◀──────────── filter, join, aggregate ... ─┘
//! ```
//!
//! All state hangs on one time, the epoch (`u64`). Rows enter at worker 0, which sends each to the worker that holds its
//! identity; operators spread them by the keys they need. Arrangements of sources are shared between the views of a
//! pipeline. Workers may be threads of several processes ([`Mesh`]); only process 0 has a pipeline.

mod account;
mod aggregate;
mod arrangement;
mod collect;
mod commands;
mod credit;
mod ending;
mod evaluate;
mod group;
mod installed;
mod join;
mod keyed;
mod ledger;
#[cfg(test)]
mod limit_tests;
mod measure;
mod mesh;
mod native;
mod pairs;
mod protocol;
mod recursive;
mod render;
mod runtime;
mod setop;
mod shards;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod topk;
mod worker;

pub use account::{Marked, Report};
pub use ending::Ending;
pub use evaluate::{EvaluationReply, EvaluationRequest};
pub use mesh::Mesh;
pub use protocol::{
    Binding, Bindings, Command, DataflowStats, Epoch, EpochResult, Exceeded, Excess, InstanceId, Limits,
    PartUsage, RowChange, Usage, ViewDelta, ViewUsage,
};
pub use runtime::{Dataflow, DataflowOptions, Loader, Port};
