//! The held sources of a pipeline: which changes each of them still needs.
//!
//! Invariant: a change reaches an instance exactly once: by the snapshot it was loaded from, or by the stream. While an
//! instance loads, its changes wait with their transaction; afterwards those that the snapshot shows are dropped, until
//! the stream has passed the position read after the load (D5, hazard C2).

use std::collections::BTreeMap;

use crate::capture::{SourceSpec, change};
use crate::dataflow::{InstanceId, RowChange};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::{ChangeKind, Snapshot, Transaction};

#[derive(Default)]
pub struct Sources {
    by_oid: BTreeMap<u32, Source>,
    last_instance: InstanceId,
    held_bytes: usize,
}

struct Source {
    layout: SourceSpec,
    instances: BTreeMap<InstanceId, Instance>,
}

struct Instance {
    /// It holds the first `width` columns of the layout.
    width: usize,
    phase: Phase,
}

enum Phase {
    Loading { snapshot: Option<Snapshot>, held: Vec<(u64, Vec<RowChange>)> },
    CatchingUp { snapshot: Snapshot, until: u64 },
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
    pub fn require(&mut self, spec: &SourceSpec) -> Assigned {
        let source = self
            .by_oid
            .entry(spec.oid)
            .or_insert_with(|| Source { layout: spec.clone(), instances: BTreeMap::new() });
        if let Some((id, instance)) =
            source.instances.iter().find(|(_, i)| source.layout.covers(i.width, spec))
        {
            let held = cut(&source.layout, instance.width);
            return Assigned { instance: *id, spec: held, fresh: false };
        }
        source.layout.extend(spec);
        self.last_instance += 1;
        let width = source.layout.columns.len();
        let phase = Phase::Loading { snapshot: None, held: Vec::new() };
        source.instances.insert(self.last_instance, Instance { width, phase });
        Assigned { instance: self.last_instance, spec: source.layout.clone(), fresh: true }
    }

    /// The layout in which changes of a relation are to be decoded.
    pub fn layout(&self, oid: u32) -> Option<&SourceSpec> {
        self.by_oid.get(&oid).map(|s| &s.layout)
    }

    /// Everything held: relation and attributes.
    pub fn held(&self) -> Vec<(u32, Vec<i16>)> {
        let attributes = |s: &Source| s.layout.columns.iter().map(|c| c.attnum).collect();
        self.by_oid.iter().map(|(oid, s)| (*oid, attributes(s))).collect()
    }

    pub fn is_live(&self, instance: InstanceId) -> bool {
        self.find(instance).is_some_and(|i| matches!(i.phase, Phase::Live))
    }

    pub fn instances(&self) -> Vec<InstanceId> {
        self.by_oid.values().flat_map(|s| s.instances.keys().copied()).collect()
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
        source.instances.remove(&instance);
        source.instances.is_empty().then(|| self.by_oid.remove(&oid)).flatten().map(|_| oid)
    }

    /// Adds a transaction's changes to `feed`.
    ///
    /// Errors: `Identity` where memory can't follow (a transaction over the budget, a changed relation): the pipeline
    /// starts anew from a later snapshot, in which the transaction is visible.
    pub fn feed(&mut self, transaction: Transaction, xid: u64, feed: &mut Feed) -> Result<()> {
        for oid in transaction.to_reread() {
            let Some(source) = self.by_oid.get(&oid) else { continue };
            if source.instances.values().any(|i| i.phase.wants(xid)) {
                return Err(reread(&transaction, source));
            }
        }
        for change in transaction.changes {
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
                let Some(row_change) = to_row_change(kind, identity, instance.width, decoded)? else {
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
        Ok(())
    }

    /// The snapshot of a load is known: what it shows need not wait any longer.
    pub fn snapshot(&mut self, instances: &[InstanceId], taken: &Snapshot) {
        let mut freed = 0;
        for id in instances {
            if let Some(Instance { phase: Phase::Loading { snapshot, held }, .. }) = self.find_mut(*id) {
                held.retain(|(xid, changes)| {
                    let keep = !taken.is_visible(*xid);
                    if !keep {
                        freed += changes.iter().map(change::size).sum::<usize>();
                    }
                    keep
                });
                *snapshot = Some(taken.clone());
            }
        }
        self.held_bytes = self.held_bytes.saturating_sub(freed);
    }

    /// The rows are loaded: feeds what waited, and catches up until `until`.
    pub fn loaded(&mut self, instances: &[InstanceId], until: u64, feed: &mut Feed) {
        let mut freed = 0;
        for id in instances {
            let Some(instance) = self.find_mut(*id) else { continue };
            let before = std::mem::replace(&mut instance.phase, Phase::Live);
            if let Phase::Loading { snapshot: Some(snapshot), held } = before {
                instance.phase = Phase::CatchingUp { snapshot, until };
                for change in held.into_iter().flat_map(|(_, changes)| changes) {
                    freed += change::size(&change);
                    push(feed, *id, change);
                }
            }
        }
        self.held_bytes = self.held_bytes.saturating_sub(freed);
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

fn push(feed: &mut Feed, instance: InstanceId, change: RowChange) {
    match feed.last_mut() {
        Some((last, changes)) if *last == instance => changes.push(change),
        _ => match feed.iter_mut().find(|(id, _)| *id == instance) {
            Some((_, changes)) => changes.push(change),
            None => feed.push((instance, vec![change])),
        },
    }
}

fn to_row_change(
    kind: ChangeKind,
    identity: usize,
    width: usize,
    decoded: usize,
) -> Result<Option<RowChange>> {
    change::row_change(kind, identity, width, decoded)
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
mod tests {
    use super::*;
    use crate::capture::source::HeldColumn;
    use crate::pgoutput::Change;
    use crate::row::{Datum, Row, TypeClass};

    fn spec() -> SourceSpec {
        let column = |attnum, name: &str| HeldColumn {
            attnum,
            name: name.to_owned(),
            type_oid: 23,
            class: TypeClass::Int4,
        };
        let columns = vec![column(1, "id"), column(2, "v")];
        SourceSpec { oid: 7, schema: "s".into(), name: "t".into(), identity: 1, columns }
    }

    fn insert(id: i64) -> Transaction {
        let new = Row::from_datums([Datum::Int(id), Datum::Int(0)]);
        let changes = vec![Change { relation: 7, kind: ChangeKind::Insert { new } }];
        Transaction { changes, ..Transaction::default() }
    }

    fn ids(feed: &Feed) -> usize {
        feed.iter().map(|(_, changes)| changes.len()).sum()
    }

    #[test]
    fn a_change_is_fed_only_if_the_snapshot_does_not_show_it() {
        let mut sources = Sources::default();
        let instance = sources.require(&spec()).instance;
        let mut feed = Feed::new();
        // Before, inside and after the snapshot 100:103:101.
        for xid in [99, 101, 102, 103] {
            sources.feed(insert(xid as i64), xid, &mut feed).unwrap();
        }
        assert_eq!(ids(&feed), 0);
        sources.snapshot(&[instance], &"100:103:101".parse().unwrap());
        sources.loaded(&[instance], 500, &mut feed);
        // 101 was in progress, 103 began later.
        assert_eq!(ids(&feed), 2);
        assert_eq!(sources.held_bytes(), 0);
        feed.clear();
        sources.feed(insert(1), 102, &mut feed).unwrap();
        assert_eq!(ids(&feed), 0);
        sources.passed(500);
        assert!(sources.is_live(instance));
        sources.feed(insert(1), 102, &mut feed).unwrap();
        assert_eq!(ids(&feed), 1);
    }

    #[test]
    fn a_need_that_is_met_shares_the_instance_and_a_wider_one_gets_its_own() {
        let mut sources = Sources::default();
        let first = sources.require(&spec());
        assert!(first.fresh && !sources.require(&spec()).fresh);
        let mut wider = spec();
        wider.columns.push(HeldColumn { attnum: 3, name: "w".into(), type_oid: 25, class: TypeClass::Text });
        let second = sources.require(&wider);
        assert!(second.fresh && second.instance != first.instance);
        assert_eq!(sources.layout(7).map(|l| l.columns.len()), Some(3));
        assert_eq!(sources.release(first.instance), None);
        assert_eq!(sources.release(second.instance), Some(7));
    }
}
