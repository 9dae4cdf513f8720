//! The held sources of a pipeline: which changes each of them still needs.
//!
//! Invariant: a change reaches an instance exactly once: by the snapshot it was loaded from, or by the stream. While an
//! instance loads, its changes wait with their transaction; afterwards those that the snapshot shows are dropped, until
//! the stream has passed the position read after the load (D5, hazard C2).

use std::collections::BTreeMap;

use crate::capture::trigger::{self, Captured};
use crate::capture::{SourceSpec, change};
use crate::dataflow::{InstanceId, RowChange};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::{ChangeKind, Snapshot, Transaction};
use crate::row::Row;

#[derive(Default)]
pub struct Sources {
    by_oid: BTreeMap<u32, Source>,
    last_instance: InstanceId,
    held_bytes: usize,
    /// Proves that a message was written by a capture trigger.
    pub token: String,
}

struct Source {
    layout: SourceSpec,
    /// With what columns triggers record its rows, as of its boundary.
    shape: i64,
    instances: BTreeMap<InstanceId, Instance>,
}

struct Instance {
    /// It holds the first `width` columns of the layout.
    width: usize,
    phase: Phase,
}

enum Phase {
    /// `unread`: transactions that could not be followed; fine if the snapshot shows them.
    Loading {
        snapshot: Option<Snapshot>,
        held: Vec<(u64, Vec<RowChange>)>,
        captured: Vec<Captured>,
        unread: Vec<u64>,
    },
    CatchingUp {
        snapshot: Snapshot,
        until: u64,
    },
    Live,
}

/// Changes per instance, in order.
pub type Feed = Vec<(InstanceId, Vec<RowChange>)>;

/// Where a requirement is met.
#[derive(Debug, Clone)]
pub struct Assigned {
    pub instance: InstanceId,
    /// The columns that the instance holds.
    pub spec: SourceSpec,
    /// It was made just now and has to be loaded.
    pub fresh: bool,
}

impl Sources {
    /// An instance that holds what `spec` asks for; a new one if there is none.
    ///
    /// Errors: `Identity` if the source is captured in another way at present, or its columns are other ones now: a start
    /// decides for all.
    pub fn require(&mut self, spec: &SourceSpec) -> Result<Assigned> {
        let source = self.by_oid.entry(spec.oid).or_insert_with(|| Source {
            layout: spec.clone(),
            shape: 0,
            instances: BTreeMap::new(),
        });
        if source.layout.captured_by != spec.captured_by {
            let context = format!("{} is to be captured in another way", spec.qualified());
            return Err(Error::new(ErrorKind::Identity, context));
        }
        if source.layout.contradicts(spec) {
            let context = format!("{} changed its shape", spec.qualified());
            return Err(Error::new(ErrorKind::Identity, context));
        }
        if let Some((id, instance)) =
            source.instances.iter().find(|(_, i)| source.layout.covers(i.width, spec))
        {
            let held = cut(&source.layout, instance.width);
            return Ok(Assigned { instance: *id, spec: held, fresh: false });
        }
        source.layout.extend(spec);
        self.last_instance += 1;
        let width = source.layout.columns.len();
        let phase =
            Phase::Loading { snapshot: None, held: Vec::new(), captured: Vec::new(), unread: Vec::new() };
        source.instances.insert(self.last_instance, Instance { width, phase });
        Ok(Assigned { instance: self.last_instance, spec: source.layout.clone(), fresh: true })
    }

    /// Sources captured by triggers whose triggers are installed: relation and id.
    pub fn triggered(&self) -> Vec<(u32, i64)> {
        let installed = |i: &Instance| !matches!(i.phase, Phase::Loading { snapshot: None, .. });
        self.by_oid
            .iter()
            .filter(|(_, s)| s.instances.values().any(installed))
            .filter_map(|(oid, s)| Some((*oid, s.layout.triggers()?.source_id)))
            .collect()
    }

    /// The layout in which changes of a relation are to be decoded.
    pub fn layout(&self, oid: u32) -> Option<&SourceSpec> {
        self.by_oid.get(&oid).map(|s| &s.layout)
    }

    /// The layouts of all sources.
    pub fn layouts(&self) -> Vec<SourceSpec> {
        self.by_oid.values().map(|s| s.layout.clone()).collect()
    }

    /// Everything held: relation and attributes.
    pub fn held(&self) -> Vec<(u32, Vec<i16>)> {
        let attributes = |s: &Source| s.layout.columns.iter().map(|c| c.attnum).collect();
        self.by_oid.iter().map(|(oid, s)| (*oid, attributes(s))).collect()
    }

    /// Instances that are not loaded.
    pub fn unloaded(&self) -> Vec<InstanceId> {
        let instances = self.by_oid.values().flat_map(|s| &s.instances);
        instances.filter(|(_, i)| matches!(i.phase, Phase::Loading { .. })).map(|(id, _)| *id).collect()
    }

    /// Whether any of them waits for the stream to pass a position.
    pub fn are_catching_up(&self) -> bool {
        let mut instances = self.by_oid.values().flat_map(|s| s.instances.values());
        instances.any(|i| matches!(i.phase, Phase::CatchingUp { .. }))
    }

    pub fn is_live(&self, instance: InstanceId) -> bool {
        self.find(instance).is_some_and(|i| matches!(i.phase, Phase::Live))
    }

    pub fn instances(&self) -> Vec<InstanceId> {
        self.by_oid.values().flat_map(|s| s.instances.keys().copied()).collect()
    }

    pub fn instances_of(&self, oid: u32) -> Vec<InstanceId> {
        self.by_oid.get(&oid).map(|s| s.instances.keys().copied().collect()).unwrap_or_default()
    }

    /// Bytes of changes that wait for a load.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn find(&self, instance: InstanceId) -> Option<&Instance> {
        self.by_oid.values().find_map(|s| s.instances.get(&instance))
    }

    fn find_mut(&mut self, instance: InstanceId) -> Option<&mut Instance> {
        self.by_oid.values_mut().find_map(|s| s.instances.get_mut(&instance))
    }

    /// Drops an instance that no view reads. Returns the relation if it was its last one.
    pub fn release(&mut self, instance: InstanceId) -> Option<u32> {
        let (oid, source) = self.by_oid.iter_mut().find(|(_, s)| s.instances.contains_key(&instance))?;
        let oid = *oid;
        let removed = source.instances.remove(&instance);
        // What waited for its load waits no more: counted for ever, it would keep the stream from being read one day.
        let waited = removed.map_or(0, |i| i.phase.held_bytes());
        self.held_bytes = self.held_bytes.saturating_sub(waited);
        source.instances.is_empty().then(|| self.by_oid.remove(&oid)).flatten().map(|_| oid)
    }

    /// A new instance in the place of one whose load was given up: with the same columns, and with what waited for that
    /// load, since the next snapshot need not show it (hazard A2). What an earlier snapshot shows, each later one does,
    /// so nothing else is missing. `None`: there is no such instance, or its load is over.
    pub fn renew(&mut self, given_up: InstanceId) -> Option<Assigned> {
        let source = self.by_oid.values_mut().find(|s| s.instances.contains_key(&given_up))?;
        let Instance { width, mut phase } = source.instances.remove(&given_up)?;
        let Phase::Loading { snapshot, .. } = &mut phase else { return None };
        *snapshot = None;
        self.last_instance += 1;
        source.instances.insert(self.last_instance, Instance { width, phase });
        Some(Assigned { instance: self.last_instance, spec: cut(&source.layout, width), fresh: true })
    }

    /// Adds a transaction's changes to `feed`.
    ///
    /// Errors: `Identity` where memory can't follow (a transaction over the budget, a changed relation): the pipeline
    /// starts anew from a later snapshot, in which the transaction is visible.
    pub fn feed(&mut self, transaction: Transaction, xid: u64, feed: &mut Feed) -> Result<()> {
        for oid in transaction.to_reread() {
            if self.loses(oid, xid)
                && let Some(source) = self.by_oid.get(&oid)
            {
                return Err(reread(&transaction, source));
            }
        }
        let mut messages: BTreeMap<i64, Vec<Captured>> = BTreeMap::new();
        if transaction.dropped_messages > 0 {
            self.lost_messages(&transaction, xid)?;
        }
        for change in transaction.changes {
            if let ChangeKind::Message { prefix, content } = &change.kind {
                if let Some(id) = trigger::source_of(prefix)
                    && let Some(captured) = trigger::parse_message(content, &self.token, xid)
                {
                    messages.entry(id).or_default().push(captured);
                }
                continue;
            }
            let Some(source) = self.by_oid.get_mut(&change.relation) else { continue };
            let (decoded, identity) = (source.layout.columns.len(), source.layout.identity);
            let last = source.instances.len();
            let mut kind = Some(change.kind);
            for (n, (id, instance)) in source.instances.iter_mut().enumerate() {
                if !instance.phase.wants(xid) {
                    continue;
                }
                let kind = if n + 1 == last { kind.take() } else { kind.clone() };
                let Some(kind) = kind else { continue };
                let Some(row_change) = change::row_change(kind, identity, instance.width, decoded)? else {
                    continue;
                };
                match &mut instance.phase {
                    Phase::Loading { held, .. } => {
                        self.held_bytes += change::size(&row_change);
                        match held.last_mut() {
                            Some((last, changes)) if *last == xid => changes.push(row_change),
                            _ => held.push((xid, vec![row_change])),
                        }
                    }
                    _ => push(feed, *id, row_change),
                }
            }
        }
        for (id, captured) in messages {
            self.feed_captured(id, captured, feed)?;
        }
        Ok(())
    }

    /// Whether a transaction's changes of a source that can't be followed are lost: no snapshot shows them.
    pub fn loses(&mut self, oid: u32, xid: u64) -> bool {
        let mut lost = false;
        for instance in self.by_oid.get_mut(&oid).into_iter().flat_map(|s| s.instances.values_mut()) {
            match &mut instance.phase {
                // A start meets again what made it necessary: the snapshot to come decides.
                Phase::Loading { snapshot: None, unread, .. } => unread.push(xid),
                phase => lost |= phase.wants(xid),
            }
        }
        lost
    }

    /// Messages of an oversized transaction: sources captured by triggers can't be followed across it.
    fn lost_messages(&mut self, transaction: &Transaction, xid: u64) -> Result<()> {
        let triggered: Vec<u32> =
            self.by_oid.iter().filter(|(_, s)| s.layout.triggers().is_some()).map(|(oid, _)| *oid).collect();
        for oid in triggered {
            if self.loses(oid, xid)
                && let Some(source) = self.by_oid.get(&oid)
            {
                return Err(reread(transaction, source));
            }
        }
        Ok(())
    }

    /// Adds what triggers recorded of one source, in any number of transactions that became visible together.
    pub fn feed_captured(&mut self, id: i64, captured: Vec<Captured>, feed: &mut Feed) -> Result<()> {
        let of = |s: &&mut Source| s.layout.triggers().is_some_and(|t| t.source_id == id);
        let Some(source) = self.by_oid.values_mut().find(of) else { return Ok(()) };
        for (instance_id, instance) in &mut source.instances {
            let wanted: Vec<Captured> =
                captured.iter().filter(|c| instance.phase.wants(c.xid)).cloned().collect();
            match &mut instance.phase {
                Phase::Loading { captured, .. } => {
                    self.held_bytes += wanted.iter().map(Captured::size).sum::<usize>();
                    captured.extend(wanted);
                }
                _ => {
                    let (width, layout) = (instance.width, &source.layout);
                    for change in cut_changes(trigger::net(&wanted, layout, source.shape)?, width, layout) {
                        push(feed, *instance_id, change);
                    }
                }
            }
        }
        Ok(())
    }

    /// The snapshot of a load is known: what it shows need not wait any longer.
    ///
    /// Errors: `Identity` if it does not show a transaction that could not be followed.
    pub fn snapshot(&mut self, instances: &[InstanceId], taken: &Snapshot) -> Result<()> {
        let mut freed = 0;
        for id in instances {
            if let Some(Instance { phase: Phase::Loading { snapshot, held, captured, unread }, .. }) =
                self.find_mut(*id)
            {
                if unread.iter().any(|xid| !taken.is_visible(*xid)) {
                    let context = "a transaction that has to be read as rows is not visible yet";
                    return Err(Error::new(ErrorKind::Identity, context));
                }
                held.retain(|(xid, changes)| {
                    let keep = !taken.is_visible(*xid);
                    if !keep {
                        freed += changes.iter().map(change::size).sum::<usize>();
                    }
                    keep
                });
                captured.retain(|row| {
                    let keep = !taken.is_visible(row.xid);
                    freed += if keep { 0 } else { row.size() };
                    keep
                });
                *snapshot = Some(taken.clone());
            }
        }
        self.held_bytes = self.held_bytes.saturating_sub(freed);
        Ok(())
    }

    /// The rows are loaded: feeds what waited, and catches up until `until`. `shapes`: with what columns triggers record
    /// rows since the boundary, by relation.
    ///
    /// Errors: `Identity` if rows that waited were recorded with other columns.
    pub fn loaded(
        &mut self,
        instances: &[InstanceId],
        until: u64,
        shapes: &BTreeMap<u32, i64>,
        feed: &mut Feed,
    ) -> Result<()> {
        let mut freed = 0;
        for (oid, source) in &mut self.by_oid {
            for (id, instance) in &mut source.instances {
                if !instances.contains(id) {
                    continue;
                }
                source.shape = shapes.get(oid).copied().unwrap_or(source.shape);
                let before = std::mem::replace(&mut instance.phase, Phase::Live);
                let Phase::Loading { snapshot: Some(snapshot), held, captured, .. } = before else {
                    continue;
                };
                instance.phase = Phase::CatchingUp { snapshot, until };
                for change in held.into_iter().flat_map(|(_, changes)| changes) {
                    freed += change::size(&change);
                    push(feed, *id, change);
                }
                if !captured.is_empty() {
                    freed += captured.iter().map(Captured::size).sum::<usize>();
                    let changes = trigger::net(&captured, &source.layout, source.shape)?;
                    for change in cut_changes(changes, instance.width, &source.layout) {
                        push(feed, *id, change);
                    }
                }
            }
        }
        self.held_bytes = self.held_bytes.saturating_sub(freed);
        Ok(())
    }

    /// From here on changes come from somewhere else: what `cut` shows was delivered already, everything else is
    /// delivered by the new way. Holds until the new way has passed `until`.
    pub fn hand_over(&mut self, cut: &Snapshot, until: u64, published: impl Fn(&mut SourceSpec)) {
        // Called between two preparations: no instance is being loaded.
        for source in self.by_oid.values_mut() {
            published(&mut source.layout);
            for instance in source.instances.values_mut() {
                instance.phase = Phase::CatchingUp { snapshot: cut.clone(), until };
            }
        }
    }

    /// Everything up to `position` has been fed.
    pub fn passed(&mut self, position: u64) {
        for instance in self.by_oid.values_mut().flat_map(|s| s.instances.values_mut()) {
            if matches!(instance.phase, Phase::CatchingUp { until, .. } if until <= position) {
                instance.phase = Phase::Live;
            }
        }
    }
}

impl Phase {
    /// Bytes of changes that wait for the load.
    fn held_bytes(&self) -> usize {
        let Phase::Loading { held, captured, .. } = self else { return 0 };
        let of_wal: usize = held.iter().flat_map(|(_, changes)| changes).map(change::size).sum();
        of_wal + captured.iter().map(Captured::size).sum::<usize>()
    }

    /// Whether a transaction's changes are to be fed to (or held for) the instance.
    fn wants(&self, xid: u64) -> bool {
        match self {
            Phase::Loading { snapshot: None, .. } | Phase::Live => true,
            Phase::Loading { snapshot: Some(snapshot), .. } | Phase::CatchingUp { snapshot, .. } => {
                !snapshot.is_visible(xid)
            }
        }
    }
}

fn cut(layout: &SourceSpec, width: usize) -> SourceSpec {
    let mut spec = layout.clone();
    spec.columns.truncate(width);
    spec
}

/// The changes as an instance of `width` columns holds them.
fn cut_changes(changes: Vec<RowChange>, width: usize, layout: &SourceSpec) -> Vec<RowChange> {
    if width == layout.columns.len() {
        return changes;
    }
    let short = |row: Row| Row::from_datums(row.iter().take(width));
    let change = |c: RowChange| match c {
        RowChange::Insert(row) => RowChange::Insert(short(row)),
        RowChange::Delete(row) => RowChange::Delete(short(row)),
        other => other,
    };
    changes.into_iter().map(change).collect()
}

fn push(feed: &mut Feed, instance: InstanceId, change: RowChange) {
    match feed.last_mut() {
        Some((last, changes)) if *last == instance => changes.push(change),
        _ => match feed.iter_mut().find(|(id, _)| *id == instance) {
            Some((_, changes)) => changes.push(change),
            None => feed.push((instance, vec![change])),
        },
    }
}

fn reread(transaction: &Transaction, source: &Source) -> Error {
    let reason = match transaction.oversized {
        true => format!(
            "a transaction of more than {} MB of changes is read as rows instead",
            transaction.bytes >> 20
        ),
        false => format!("{} changed its shape", source.layout.qualified()),
    };
    Error::new(ErrorKind::Identity, reason)
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
