//! Native expressions over packed rows, with the scratch space that keeps them from allocating.

use crate::kernel::{self, Scratch};
use crate::plan::Expr;
use crate::row::Row;

/// Evaluates native expressions; one per operator.
#[derive(Default)]
pub(super) struct Native(Scratch);

impl Native {
    /// Whether the predicate is true; `Err` is the payload of an error (`SQLSTATE:message`).
    pub fn predicate(&mut self, predicate: &Expr, row: &Row) -> Result<bool, Vec<u8>> {
        kernel::is_true(predicate, &row.unpack(), &mut self.0)
    }

    /// One column per expression.
    pub fn project(&mut self, exprs: &[Expr], row: &Row) -> Row {
        kernel::project(exprs, &row.unpack(), &mut self.0)
    }
}
