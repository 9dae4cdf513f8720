//! What the other processes of a cluster hold, and their marks.
//!
//! Each process counts for itself. Those that hold shards report to process 0, which adds up; a stream table that is marked
//! in one process is marked in all, by its installation, so that every worker stops it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::{Account, Accounts, BYTES, lock};
use crate::dataflow::protocol::{Excess, Usage, ViewUsage};
use crate::plan::ViewId;

/// What one process holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Everything, in bytes.
    pub bytes: u64,
    /// Its rows of the sources.
    pub sources: Usage,
    views: Vec<ViewReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ViewReport {
    view: ViewId,
    installation: u64,
    /// Operator, role, whether it is shared, and how much.
    parts: Vec<(usize, String, bool, Usage)>,
}

/// A stream table that passed a limit in some process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    view: ViewId,
    installation: u64,
    excess: Excess,
}

#[derive(Default)]
pub(super) struct Elsewhere {
    reports: Mutex<BTreeMap<usize, Report>>,
    /// Marks of installations that this process has not made yet.
    early: Mutex<BTreeMap<ViewId, Marked>>,
    /// Marks of this process that the others were not told; `None`: there are no others.
    untold: Mutex<Option<Vec<Marked>>>,
}

impl Elsewhere {
    /// Adds what the other processes hold of the same parts.
    pub fn add_to(&self, usage: &mut ViewUsage, installation: u64) {
        let reports = lock(&self.reports);
        let same = |r: &&ViewReport| r.view == usage.view && r.installation == installation;
        for report in reports.values().flat_map(|r| &r.views).filter(same) {
            for (operator, role, shared, held) in &report.parts {
                let same = usage
                    .parts
                    .iter_mut()
                    .find(|p| p.operator == *operator && p.role == role && p.shared == *shared);
                if let Some(part) = same {
                    part.usage.rows += held.rows;
                    part.usage.bytes += held.bytes;
                }
            }
        }
    }
}

impl Accounts {
    /// From now on marks are kept for other processes ([`Accounts::untold`]).
    pub fn share(&self) {
        lock(&self.0.elsewhere.untold).get_or_insert_default();
    }

    /// Marks that were made since the last call.
    pub fn untold(&self) -> Vec<Marked> {
        lock(&self.0.elsewhere.untold).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// What this process holds.
    pub fn report(&self) -> Report {
        let accounts: Vec<_> = lock(&self.0.views).values().cloned().collect();
        let views = accounts.iter().map(|account| {
            let parts = lock(&account.parts);
            let list =
                |l: &super::Listed| (l.place.operator, l.place.role.to_owned(), l.shared, l.part.usage());
            ViewReport {
                view: account.view,
                installation: account.installation,
                parts: parts.iter().map(list).collect(),
            }
        });
        Report { bytes: self.total(), sources: self.sources(), views: views.collect() }
    }

    fn sources(&self) -> Usage {
        lock(&self.0.sources).values().map(|part| part.usage()).fold(Usage::default(), |sum, part| Usage {
            rows: sum.rows + part.rows,
            bytes: sum.bytes + part.bytes,
        })
    }

    /// Notes what another process holds; a stream table whose state is too large in all of them together is marked.
    pub fn reported(&self, process: usize, report: Report) {
        let changed: Vec<ViewId> = report.views.iter().map(|v| v.view).collect();
        lock(&self.0.elsewhere.reports).insert(process, report);
        let accounts: Vec<_> = lock(&self.0.views).values().cloned().collect();
        for account in accounts.iter().filter(|a| changed.contains(&a.view)) {
            if account.usage().own().bytes > account.limit.load(std::sync::atomic::Ordering::Relaxed) {
                account.mark(BYTES);
            }
        }
    }

    /// Bytes of everything, and the rows of the sources, in all processes.
    pub fn everywhere(&self) -> (u64, Usage) {
        let reports = lock(&self.0.elsewhere.reports);
        reports.values().fold((self.total(), self.sources()), |(bytes, sources), report| {
            let sources = Usage {
                rows: sources.rows + report.sources.rows,
                bytes: sources.bytes + report.sources.bytes,
            };
            (bytes + report.bytes, sources)
        })
    }

    /// Bytes of everything and rows of the sources, by process; this one is 0.
    pub fn by_process(&self) -> Vec<(usize, u64, u64)> {
        let reports = lock(&self.0.elsewhere.reports);
        let own = (0, self.total(), self.sources().rows);
        let others = reports.iter().map(|(process, r)| (*process, r.bytes, r.sources.rows));
        std::iter::once(own).chain(others).collect()
    }

    /// Takes over the mark of another process.
    pub fn mark(&self, marked: Marked) {
        let account = lock(&self.0.views).get(&marked.view).cloned();
        match account {
            Some(account) if account.installation == marked.installation => account.mark_as(marked),
            Some(account) if account.installation > marked.installation => {}
            _ => {
                lock(&self.0.elsewhere.early).insert(marked.view, marked);
            }
        }
    }

    /// Marks an account for which a mark came before it.
    pub(super) fn mark_early(&self, account: &Account) {
        let mut early = lock(&self.0.elsewhere.early);
        if early.get(&account.view).is_some_and(|m| m.installation <= account.installation)
            && let Some(marked) = early.remove(&account.view)
        {
            drop(early);
            if marked.installation == account.installation {
                account.mark_as(marked);
            }
        }
    }
}

impl Account {
    fn mark_as(&self, marked: Marked) {
        // Set before the mark is seen; a second reason changes nothing.
        let _ = self.reason.set(marked.excess);
        self.mark(BYTES);
    }

    /// Keeps the mark for the other processes.
    pub(super) fn tell(&self) {
        if let Some(untold) = &mut *lock(&self.accounts.0.elsewhere.untold)
            && let Some(excess) = self.exceeded()
        {
            untold.push(Marked { view: self.view, installation: self.installation, excess });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Limits, Place};
    use super::*;

    const PLACE: Place = Place { operator: 0, role: "rows" };

    #[test]
    fn a_mark_of_one_process_reaches_the_same_installation_in_another_and_no_other() {
        let limits = Limits { bytes: 1000, pairs: 10 };
        let (here, there) = (Accounts::new(1 << 40), Accounts::new(1 << 40));
        here.share();
        let mut held = here.open(7, 3, limits).held(PLACE);
        held.set(1, 2000);
        let marks = here.untold();
        assert_eq!(marks.len(), 1);
        let older = there.open(7, 2, limits);
        there.mark(marks[0]);
        assert_eq!(older.exceeded(), None);
        there.close(&older);
        let same = there.open(7, 3, Limits { bytes: 1 << 30, pairs: 1 });
        assert_eq!((same.exceeded(), there.marks()), (Some(Excess::State { limit: 1000 }), 1));
        let newer = there.open(7, 4, limits);
        there.mark(marks[0]);
        assert_eq!(newer.exceeded(), None);
    }

    #[test]
    fn what_all_processes_hold_together_counts_against_the_limit_of_a_stream_table() {
        let limits = Limits { bytes: 1000, pairs: 10 };
        let (leader, member) = (Accounts::new(1 << 40), Accounts::new(1 << 40));
        let account = leader.open(1, 1, limits);
        let mut here = account.held(PLACE);
        let mut there = member.open(1, 1, limits).held(PLACE);
        here.set(2, 600);
        there.set(3, 300);
        leader.reported(1, member.report());
        assert_eq!((account.usage().own(), account.exceeded()), (Usage { rows: 5, bytes: 900 }, None));
        assert_eq!(leader.everywhere().0, 900);
        there.set(3, 500);
        leader.reported(1, member.report());
        assert_eq!(account.exceeded(), Some(Excess::State { limit: 1000 }));
    }
}
