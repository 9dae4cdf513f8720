//! Large transactions that change what a recursion reads stay together.
//!
//! A recursion over the first half of a transaction may have no end though it has one at the commit: a tree that is put in
//! another order has cycles in between. What was cut off is not known any more, so the error of such a recursion stays.
//! Invariant: no epoch that ends within a transaction contains a change below a recursion.

use super::engine::Engine;
use super::views::Installed;
use crate::plan::ViewId;
use crate::plan::explain::is_recursion;

impl Engine {
    /// Whether the open transaction has changed what a recursion reads, also by way of other stream tables.
    pub(super) fn recursion_is_touched(&self) -> bool {
        let touched = self.assembler.open_touched();
        if touched.is_empty() {
            return false;
        }
        let instances: Vec<_> = touched.iter().flat_map(|oid| self.sources.instances_of(*oid)).collect();
        let reads = |id: &ViewId| {
            let reads = |i: &Installed| i.instances.iter().any(|i| instances.contains(i));
            self.views.installed(*id).is_some_and(reads)
        };
        let recursive = |id: &&ViewId| {
            let recursive = |i: &Installed| i.operators.iter().any(|line| is_recursion(line));
            self.views.installed(**id).is_some_and(recursive)
        };
        self.views
            .0
            .keys()
            .filter(recursive)
            .any(|id| reads(id) || self.views.upstream(*id).iter().any(reads))
    }
}
