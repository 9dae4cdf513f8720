//! Changes of stream tables that are not due: computed with everything else, written when their schedule says so.
//!
//! Invariant: stream tables of one schedule are written together, so they always show one commit boundary (invariant 2).
//! What is kept is the consolidated difference between what a stream table stores and what it should hold now. Memory is
//! bounded: past the budget the changes of the schedule that has most of them are dropped, and its stream tables are
//! reconciled when they are due, which costs a comparison and is as right.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use differential_dataflow::consolidation::consolidate;

use super::engine::Engine;
use super::feed::Pending;
use super::schedule::{Cadence, Due};
use super::views::State;
use crate::apply::{Progress, Scheduled};
use crate::error::Result;
use crate::plan::ViewId;
use crate::postgres::sessions::error;
use crate::row::Row;

/// Class of the advisory locks that callers of `refresh_stream_table` hold while they wait: visible at once whatever
/// way changes are delivered. See `pgtrickle._refresh`.
const ASKING: i64 = 1_346_852_940;
/// A frontier that brings nothing new is written this often while changes only gather.
const QUIET: Duration = Duration::from_millis(250);
/// What a row costs beside its bytes.
const OVERHEAD: usize = 40;

/// Stream tables that are due together: those of one schedule; each manual one alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    cadence: Cadence,
    alone: Option<ViewId>,
}

impl Group {
    /// `None`: written with every apply.
    pub fn of(cadence: &Cadence, view: ViewId) -> Option<Group> {
        let alone = match cadence {
            Cadence::Continuous => return None,
            Cadence::Manual => Some(view),
            _ => None,
        };
        Some(Group { cadence: cadence.clone(), alone })
    }
}

/// What waits for its moment.
pub(super) struct Kept {
    groups: BTreeMap<Group, Waiting>,
    /// Bytes that may be kept.
    pub budget: usize,
}

struct Waiting {
    due: Due,
    /// Somebody waits until everything up to here is in; 0: nobody.
    asked: u64,
    /// Changes were dropped: a reconcile brings them.
    lost: bool,
    deltas: BTreeMap<ViewId, Delta>,
}

/// Changes of one stream table, consolidated as they grow.
#[derive(Default)]
pub(super) struct Delta {
    pub rows: Vec<(Row, i64)>,
    /// So many rows were left by the last consolidation.
    clean: usize,
    pub bytes: usize,
}

fn size(rows: &[(Row, i64)]) -> usize {
    rows.iter().map(|(row, _)| row.byte_len() + OVERHEAD).sum()
}

impl Delta {
    pub fn add(&mut self, rows: Vec<(Row, i64)>) {
        self.bytes += size(&rows);
        self.rows.extend(rows);
        // Each row takes part in few consolidations, however often something is added.
        if self.rows.len() > 2 * self.clean + 1_000 {
            self.consolidate();
        }
    }

    pub fn consolidate(&mut self) {
        consolidate(&mut self.rows);
        self.clean = self.rows.len();
        self.bytes = size(&self.rows);
    }
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.deltas.values().map(|d| d.bytes).sum()
    }

    /// Whether it is to be written by an apply that reaches `frontier`.
    fn is_due(&self, frontier: u64) -> bool {
        self.due.has_come() || self.asked > 0 && self.asked <= frontier
    }
}

impl Kept {
    pub fn new(budget: usize) -> Kept {
        Kept { groups: BTreeMap::new(), budget }
    }

    /// A stream table is up to date now and obeys its schedule from here on.
    fn entry(&mut self, group: Group) -> &mut Waiting {
        let due = group.cadence.next();
        self.groups.entry(group).or_insert_with(|| Waiting {
            due,
            asked: 0,
            lost: false,
            deltas: BTreeMap::new(),
        })
    }

    /// Keeps changes. Returns the group whose changes had to be dropped.
    pub fn keep(&mut self, group: Group, view: ViewId, rows: Vec<(Row, i64)>) -> Option<Group> {
        let waiting = self.entry(group);
        if waiting.lost {
            return None;
        }
        waiting.deltas.entry(view).or_default().add(rows);
        if self.bytes() <= self.budget {
            return None;
        }
        for delta in self.groups.values_mut().flat_map(|w| w.deltas.values_mut()) {
            delta.consolidate();
        }
        if self.bytes() <= self.budget {
            return None;
        }
        let (group, largest) = self.groups.iter_mut().max_by_key(|(_, w)| w.bytes())?;
        largest.lost = true;
        largest.deltas.clear();
        Some(group.clone())
    }

    pub fn forget(&mut self, view: ViewId) {
        for waiting in self.groups.values_mut() {
            waiting.deltas.remove(&view);
        }
    }

    /// Bytes of the changes that are kept.
    pub fn bytes(&self) -> usize {
        self.groups.values().map(Waiting::bytes).sum()
    }
}

impl Engine {
    /// The group of a stream table in the dataflow; `None`: it is written with every apply.
    fn group(&self, id: ViewId) -> Option<Group> {
        Group::of(&self.views.installed(id)?.cadence, id)
    }

    fn members(&self, group: &Group) -> Vec<ViewId> {
        let active = |id: &ViewId| self.views.0.get(id).is_some_and(|v| matches!(v.state, State::Active(_)));
        self.views
            .0
            .keys()
            .filter(|id| active(id) && self.group(**id).as_ref() == Some(group))
            .copied()
            .collect()
    }

    /// Whether the first answer of one of them is being written.
    fn is_joining(&self, group: &Group) -> bool {
        let joining =
            |id: &ViewId| self.views.0.get(id).is_some_and(|v| matches!(v.state, State::Installing { .. }));
        self.views.0.keys().any(|id| joining(id) && self.group(*id).as_ref() == Some(group))
    }

    /// The group that a stream table belongs to, or will once it is in the dataflow.
    fn group_to_be(&self, id: ViewId) -> Option<Group> {
        if self.views.installed(id).is_some() {
            return self.group(id);
        }
        Group::of(&Cadence::parse(&self.views.0.get(&id)?.row.schedule).ok()?, id)
    }

    /// Groups that have anybody in the dataflow.
    fn groups(&self) -> BTreeSet<Group> {
        self.views.0.keys().filter_map(|id| self.group(*id)).collect()
    }

    /// Keeps the changes of a stream table that obeys a schedule; gives back those of any other.
    pub(super) fn keep(&mut self, id: ViewId, rows: Vec<(Row, i64)>) -> Option<Vec<(Row, i64)>> {
        let Some(group) = self.group(id) else { return Some(rows) };
        if let Some(dropped) = self.kept.keep(group, id, rows) {
            tracing::info!(
                schedule = ?dropped.cadence,
                budget_mb = self.kept.budget >> 20,
                "more changes than may be kept wait for their schedule: its stream tables will be compared when they are due"
            );
        }
        None
    }

    /// Whether an apply of what is computed is worth its transaction now. Where changes only gather for their schedule, the
    /// frontier may follow more slowly.
    pub(super) fn is_worth_writing(&self, pending: &Pending) -> bool {
        !pending.installs.is_empty()
            || !pending.progress.consumed.is_empty()
            || pending.deltas.values().any(|rows| !rows.is_empty())
            || !self.barriers.is_empty()
            || self.frontier < self.watched.flush_target
            || self.watched.last_write.is_none_or(|at| at.elapsed() >= QUIET)
            || self.kept.groups.is_empty()
            || self.kept.groups.values().any(|w| !w.lost && w.is_due(pending.progress.frontier))
    }

    /// Adds to an apply what is due with it, and says which stream tables it brings up to date. An install brings all
    /// that share its schedule along.
    pub(super) fn take_due(&mut self, pending: &mut Pending) -> Vec<Scheduled> {
        let frontier = pending.progress.frontier;
        let joining: BTreeSet<Group> = pending.installs.iter().filter_map(|id| self.group(*id)).collect();
        let mut scheduled = Vec::new();
        for group in self.groups() {
            let waiting = self.kept.entry(group.clone());
            // What was dropped has to be compared first.
            if !joining.contains(&group) && (waiting.lost || !waiting.is_due(frontier)) {
                continue;
            }
            if waiting.asked <= frontier {
                waiting.asked = 0;
            }
            waiting.due = group.cadence.next();
            let next = waiting.due.moment();
            let lost = waiting.lost;
            let deltas = std::mem::take(&mut waiting.deltas);
            let installing = pending.installs.clone();
            let members = self
                .members(&group)
                .into_iter()
                .filter(|_| !lost)
                .chain(installing.into_iter().filter(|id| self.group(*id).as_ref() == Some(&group)));
            scheduled.extend(members.map(|view| Scheduled { view, next }));
            if lost {
                // One of them joins alone: the others are compared at once, too.
                self.kept.entry(group).due = Due::now();
                continue;
            }
            for (view, mut delta) in deltas {
                delta.consolidate();
                pending.deltas.entry(view).or_default().extend(delta.rows);
            }
        }
        scheduled
    }

    /// What a row of the catalog could not be told: it was held by somebody's transaction. It is told again shortly.
    pub(super) fn tell_again(&mut self, views: &[ViewId]) {
        for group in views.iter().filter_map(|id| self.group(*id)).collect::<BTreeSet<_>>() {
            self.kept.entry(group).due = Due::After(Instant::now() + Duration::from_secs(1));
        }
    }

    /// Looks who waits for a refresh. `position`: the end of the WAL after they asked.
    pub(super) async fn look_who_asks(&mut self, position: u64) -> Result<()> {
        if !self.views.0.keys().any(|id| self.group_to_be(*id).is_some()) {
            return Ok(());
        }
        const SQL: &str = "select distinct l.objid::bigint from pg_catalog.pg_locks l
            where l.locktype = 'advisory' and l.classid::bigint = $1 and l.objsubid = 2 and l.granted
              and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())";
        for row in self.control.query(SQL, &[&ASKING]).await.map_err(error)? {
            let asked: i64 = row.get(0);
            // A lock has 31 bits for the number.
            let views = self.views.0.keys().filter(|id| **id & 0x7fff_ffff == asked);
            for group in views.filter_map(|id| self.group_to_be(*id)).collect::<Vec<_>>() {
                let waiting = self.kept.entry(group);
                waiting.asked = waiting.asked.max(position);
            }
        }
        Ok(())
    }

    /// Sees to what is due while nothing arrives that would bring it along.
    pub(super) fn make_due(&mut self) -> Result<()> {
        if !self.settled {
            return Ok(());
        }
        let due = |w: &Waiting, frontier: u64| w.is_due(frontier);
        let frontier = self.frontier;
        let lost: Vec<Group> = self
            .kept
            .groups
            .iter()
            .filter(|(_, w)| w.lost && due(w, self.received))
            .map(|(g, _)| g.clone())
            .collect();
        for group in lost {
            if self.preparing.is_some() {
                break;
            }
            // The changes of one that is about to join are dropped, too.
            if self.is_joining(&group) {
                continue;
            }
            let members = self.members(&group);
            let waiting = self.kept.entry(group.clone());
            (waiting.lost, waiting.due) = (false, group.cadence.next());
            for id in members {
                self.leave(id, Some(Instant::now()))?;
            }
        }
        let groups = self.groups();
        self.kept.groups.retain(|group, w| groups.contains(group) || w.asked > 0);
        let here = |(group, w): (&Group, &Waiting)| groups.contains(group) && !w.lost && due(w, frontier);
        if self.pending.is_none() && self.applying.is_none() && self.kept.groups.iter().any(here) {
            self.write_frontier();
            if self.pending.is_none() {
                // Something is under way and may take long: what is computed belongs to what is written already.
                let progress = Progress { frontier, ..Progress::default() };
                self.pending = Some(Pending { progress, ..Pending::default() });
            }
        }
        Ok(())
    }

    /// A stream table that reads what another one stores while it could read it through the dataflow (it was suspended,
    /// or had another schedule): it is planned anew and gets back into it.
    pub(super) fn close_gates(&mut self) -> Result<()> {
        if self.preparing.is_some() || !self.settled {
            return Ok(());
        }
        let mut open = Vec::new();
        for (id, view) in &self.views.0 {
            let State::Active(reader) = &view.state else { continue };
            if reader.gates.is_empty() {
                continue;
            }
            let flows = self.views.0.values().any(|u| match (&u.state, u.row.relation) {
                (State::Active(upstream), Some(oid)) => {
                    reader.gates.contains(&oid) && upstream.cadence.flows_into(&reader.cadence)
                }
                _ => false,
            });
            if flows {
                open.push(*id);
            }
        }
        self.prepare_anew(&open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Datum;

    fn row(i: i64) -> Row {
        Row::from_datums([Datum::Int(i)])
    }

    fn group(seconds: u64) -> Group {
        Group { cadence: Cadence::Every(Duration::from_secs(seconds)), alone: None }
    }

    #[test]
    fn what_cancels_out_takes_no_room_and_the_largest_group_is_dropped_first() {
        let mut kept = Kept::new(10_000);
        for i in 0..5_000 {
            assert_eq!(kept.keep(group(1), 1, vec![(row(i), 1)]), None);
            assert_eq!(kept.keep(group(1), 1, vec![(row(i), -1)]), None);
        }
        assert_eq!(kept.keep(group(2), 2, vec![(row(1), 1)]), None);
        let many = (0..1_000).map(|i| (row(i), 1)).collect();
        assert_eq!(kept.keep(group(1), 1, many), Some(group(1)));
        assert!(kept.bytes() > 0 && kept.bytes() < 1_000, "the other group keeps what it has");
        assert_eq!(kept.keep(group(1), 1, vec![(row(1), 1)]), None);
        assert!(kept.bytes() < 1_000, "what is lost is not kept any more");
    }

    #[test]
    fn manual_ones_are_asked_for_one_by_one() {
        assert_ne!(Group::of(&Cadence::Manual, 1), Group::of(&Cadence::Manual, 2));
        let every = Cadence::Every(Duration::from_secs(1));
        assert_eq!(Group::of(&every, 1), Group::of(&every, 2));
        assert_eq!(Group::of(&Cadence::Continuous, 1), None);
    }
}
