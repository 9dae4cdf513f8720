//! What PostgreSQL computes over whole groups of rows, and the native first rows of an order.

use serde::{Deserialize, Serialize};

use super::{RemoteBatch, RemoteExpr, RemoteInput, expr};

/// Expressions over the rows of a group: aggregates without a native form, window functions, functions that return
/// sets. They read the relation `x` with the columns `c1`, `c2`, ... (the inputs), `g` (number of the group) and `o`
/// (position of the row in its group, in the order of the rows' images).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupBatch {
    pub inputs: Vec<RemoteInput>,
    /// Verified SQL; one result column each.
    pub exprs: Vec<RemoteExpr>,
    /// What follows `from ... x`: nothing, or a lateral item that the expressions read.
    pub tail: String,
    pub form: GroupForm,
    /// More than 1: each group is spread over so many by the images of its rows. What is computed then holds for a part
    /// of the group, which is enough to sort out rows that can't be among the first ones.
    pub spread: u32,
    /// Users' code runs only inside `pgtrickle_queries.evaluate_<pgt_id>_<number>`, as for
    /// [`super::RemoteBatch`].
    pub owner_function: Option<u32>,
}

/// How the answer belongs to the group, and so what the operator puts out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GroupForm {
    /// One row of results, of the only group, which exists without rows too: the results.
    Global,
    /// One row of results per group: the key columns (smallest image), then the results.
    Aggregates,
    /// One row of results per row of the group: the input's columns, then the results.
    Windows,
    /// Any number of rows of results for each distinct image of the inputs (there are no keys): the input's columns,
    /// then the results.
    Sets,
}

impl GroupForm {
    /// Whether the input's columns are put out.
    pub fn keeps_rows(self) -> bool {
        matches!(self, GroupForm::Windows | GroupForm::Sets)
    }
}

impl GroupBatch {
    /// Whether it can run users' code.
    pub fn calls_users(&self) -> bool {
        self.exprs.iter().any(|e| !e.builtin_only)
    }
}

/// One column of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SortKey {
    pub column: usize,
    pub order: expr::Order,
    pub descending: bool,
    pub nulls_first: bool,
}

/// A statement that PostgreSQL runs for an operator of a plan.
#[derive(Debug, Clone, Copy)]
pub enum RemoteWork<'a> {
    Rows(&'a RemoteBatch),
    Groups(&'a GroupBatch),
}

impl RemoteWork<'_> {
    /// Number of the owner's function that it runs in, if it calls users' code.
    pub fn owner_function(&self) -> Option<u32> {
        match self {
            RemoteWork::Rows(batch) => batch.owner_function,
            RemoteWork::Groups(batch) => batch.owner_function,
        }
    }

    /// Number of `text[]` parameters of the statement.
    pub fn parameters(&self) -> usize {
        match self {
            RemoteWork::Rows(batch) => batch.inputs.len().max(1),
            RemoteWork::Groups(batch) => batch.inputs.len() + 2,
        }
    }
}
