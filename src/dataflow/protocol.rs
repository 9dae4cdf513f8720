//! What goes into the workers and what comes back. Commands are plain data, so that they can reach other processes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::plan::{Rel, SourceId, ViewId};
use crate::row::Row;

/// The dataflow's logical time: one step of the pipeline, any number of transactions.
pub type Epoch = u64;

/// One loaded copy of a source's needed columns. A source may be held more than once while views with different needs
/// come and go; a restart merges them.
pub type InstanceId = u64;

/// Where a view finds the rows of a source: the instance, and its columns (attnums) in held order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub instance: InstanceId,
    pub attributes: Vec<i16>,
}

/// Bindings of all sources of a plan.
pub type Bindings = BTreeMap<SourceId, Binding>;

/// A change of one source row, in message order. Rows are in held order: identity columns first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowChange {
    Insert(Row),
    /// Identity columns only for keyed sources, the whole row otherwise.
    Delete(Row),
    /// `old` is present if the identity changed (or always for sources held by image). `unchanged` lists held columns
    /// whose values were not sent (TOAST) and are taken from the held row.
    Update {
        old: Option<Row>,
        new: Row,
        unchanged: Vec<u16>,
    },
    Truncate,
}

/// Commands to the workers, executed in the order sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Starts an empty instance. `identity`: number of leading columns that identify a row; 0 = rows are held by image
    /// with multiplicity.
    AddSource {
        instance: InstanceId,
        identity: usize,
    },
    /// Rows of a hydration. Views that are already installed on the instance see them as inserts of the open epoch.
    Load {
        instance: InstanceId,
        rows: Vec<Row>,
    },
    DropSource {
        instance: InstanceId,
    },
    /// Installs a view over what its sources hold now; its whole answer is part of the next epoch's result.
    AddView {
        view: ViewId,
        rel: Arc<Rel>,
        bindings: Bindings,
        limits: Limits,
    },
    /// Other limits for an installed view.
    SetLimits {
        view: ViewId,
        limits: Limits,
    },
    DropView {
        view: ViewId,
    },
    /// Feeds the changes of one epoch and closes it. Epochs are consecutive, from 1.
    Step {
        epoch: Epoch,
        changes: Vec<(InstanceId, Vec<RowChange>)>,
    },
    Shutdown,
}

/// The change of one stream table in one epoch, consolidated: no row twice, no zero.
#[derive(Debug, Clone)]
pub struct ViewDelta {
    pub view: ViewId,
    pub rows: Vec<(Row, i64)>,
}

/// What one view may take before it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of state of its own.
    pub bytes: u64,
    /// Pairs that its joins may make in one epoch.
    pub pairs: u64,
}

/// Which limit was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Excess {
    /// The view's own state, in bytes.
    State { limit: u64 },
    /// Pairs of its joins in one epoch.
    Pairs { limit: u64 },
    /// All state together, in bytes; the view held most.
    Total { held: u64, limit: u64 },
}

/// A view that was dropped because it passed a limit, with what it held then.
#[derive(Debug, Clone)]
pub struct Exceeded {
    pub view: ViewId,
    pub excess: Excess,
    pub usage: ViewUsage,
}

/// Rows and bytes of some state. Bytes are estimates from the sizes of the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub rows: u64,
    pub bytes: u64,
}

/// A part of an operator's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartUsage {
    /// Place of the operator in a walk over the plan from the top, from 0: the lines of `explain`.
    pub operator: usize,
    /// What is held: `rows`, `left rows`, `groups` ...
    pub role: &'static str,
    /// Other views use it, too; it is not charged to this one.
    pub shared: bool,
    pub usage: Usage,
}

/// The state of one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewUsage {
    pub view: ViewId,
    pub parts: Vec<PartUsage>,
}

impl ViewUsage {
    /// What is its own.
    pub fn own(&self) -> Usage {
        let own = self.parts.iter().filter(|p| !p.shared);
        own.fold(Usage::default(), |sum, p| Usage {
            rows: sum.rows + p.usage.rows,
            bytes: sum.bytes + p.usage.bytes,
        })
    }
}

/// What the engine holds, for limits and logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DataflowStats {
    pub source_rows: u64,
    pub source_bytes: u64,
    /// Everything: sources, arrangements, state of operators.
    pub bytes: u64,
}

/// Everything that epoch `epoch` changed.
#[derive(Debug)]
pub struct EpochResult {
    pub epoch: Epoch,
    pub deltas: Vec<ViewDelta>,
    pub stats: DataflowStats,
    /// Views that are gone, and with them those that read them.
    pub exceeded: Vec<Exceeded>,
    /// Contradictions between the stream and the held rows; any means that memory is not to be trusted.
    pub faults: Vec<String>,
}
