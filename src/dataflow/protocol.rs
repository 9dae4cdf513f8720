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

/// What the engine holds, for limits and `explain`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DataflowStats {
    pub source_rows: u64,
    /// Packed bytes of the held rows plus their table slots.
    pub source_bytes: u64,
    /// Rows, and their packed bytes, in groups that PostgreSQL computes and in partitions of which the first are shown.
    pub group_rows: u64,
    pub group_bytes: u64,
}

/// Everything that epoch `epoch` changed.
#[derive(Debug)]
pub struct EpochResult {
    pub epoch: Epoch,
    pub deltas: Vec<ViewDelta>,
    pub stats: DataflowStats,
    /// Contradictions between the stream and the held rows; any means that memory is not to be trusted.
    pub faults: Vec<String>,
}
