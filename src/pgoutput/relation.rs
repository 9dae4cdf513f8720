//! The relation cache: how the server last described each relation, and what a new description changes.
//!
//! Invariant: a tuple is only read with the description that precedes it in the same connection. Place in the data's
//! way: beside the message parser; column maps are made from it.
//!
//! A description that is the same as before is reported as well ([`Observed::Same`]): the server repeats it after any
//! invalidation, and a column dropped and added again under its name and type looks the same here. Fingerprints from
//! the catalog have to be compared on every one of them.

use std::fmt;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

use super::messages::RelationMessage;

/// A relation as tuples refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    /// Empty for `pg_catalog`.
    pub schema: String,
    pub name: String,
    /// `pg_class.relreplident`: `d`, `n`, `f` or `i`.
    pub replica_identity: char,
    /// In the order in which tuples carry them: dropped, unpublished and (before 18) generated columns are missing.
    pub columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    pub name: String,
    pub type_oid: u32,
    /// `atttypmod`, -1 for none.
    pub typmod: i32,
    /// Part of the replica identity; all columns under FULL.
    pub is_key: bool,
}

impl Relation {
    /// An owned copy of the message.
    pub fn from_message(message: &RelationMessage<'_>) -> Relation {
        Relation {
            oid: message.oid,
            schema: message.schema.to_owned(),
            name: message.name.to_owned(),
            replica_identity: message.replica_identity,
            columns: message
                .columns()
                .map(|c| RelationColumn {
                    name: c.name.to_owned(),
                    type_oid: c.type_oid,
                    typmod: c.typmod,
                    is_key: c.is_key,
                })
                .collect(),
        }
    }

    fn is_as_in(&self, message: &RelationMessage<'_>) -> bool {
        self.schema == message.schema
            && self.name == message.name
            && self.replica_identity == message.replica_identity
            && self.columns.len() == message.len()
            && self.columns.iter().zip(message.columns()).all(|(a, b)| {
                a.name == b.name && a.type_oid == b.type_oid && a.typmod == b.typmod && a.is_key == b.is_key
            })
    }

    /// A hash of the whole description, the same in every build; may be stored.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.oid.to_be_bytes());
        // Names cannot contain NUL, which makes the concatenation unambiguous.
        for name in [&self.schema, &self.name] {
            hash.update(name.as_bytes());
            hash.update([0]);
        }
        hash.update(u32::from(self.replica_identity).to_be_bytes());
        for c in &self.columns {
            hash.update(c.name.as_bytes());
            hash.update([0, u8::from(c.is_key)]);
            hash.update(c.type_oid.to_be_bytes());
            hash.update(c.typmod.to_be_bytes());
        }
        let digest = hash.finalize();
        digest.iter().take(8).fold(0, |sum, &byte| (sum << 8) | u64::from(byte))
    }

    /// What is different in `new`.
    pub fn differences(&self, new: &Relation) -> Vec<Difference> {
        let mut out = Vec::new();
        if (&self.schema, &self.name) != (&new.schema, &new.name) {
            out.push(Difference::Renamed { from: self.to_string(), to: new.to_string() });
        }
        if self.replica_identity != new.replica_identity {
            out.push(Difference::ReplicaIdentity { from: self.replica_identity, to: new.replica_identity });
        }
        let in_new: FxHashMap<&str, &RelationColumn> =
            new.columns.iter().map(|c| (c.name.as_str(), c)).collect();
        let in_old: FxHashMap<&str, &RelationColumn> =
            self.columns.iter().map(|c| (c.name.as_str(), c)).collect();
        for old in &self.columns {
            let Some(now) = in_new.get(old.name.as_str()) else {
                out.push(Difference::ColumnRemoved(old.name.clone()));
                continue;
            };
            if (old.type_oid, old.typmod) != (now.type_oid, now.typmod) {
                out.push(Difference::ColumnType(old.name.clone()));
            }
            if old.is_key != now.is_key {
                out.push(Difference::ColumnKey(old.name.clone()));
            }
        }
        for c in new.columns.iter().filter(|c| !in_old.contains_key(c.name.as_str())) {
            out.push(Difference::ColumnAdded(c.name.clone()));
        }
        let stayed = self.columns.iter().filter(|c| in_new.contains_key(c.name.as_str()));
        let stay = new.columns.iter().filter(|c| in_old.contains_key(c.name.as_str()));
        if stayed.zip(stay).any(|(a, b)| a.name != b.name) {
            out.push(Difference::ColumnOrder);
        }
        out
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = if self.schema.is_empty() { "pg_catalog" } else { &self.schema };
        write!(f, "{schema}.{}", self.name)
    }
}

/// One difference between two descriptions of a relation. A renamed column is one removed and one added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    Renamed {
        from: String,
        to: String,
    },
    ReplicaIdentity {
        from: char,
        to: char,
    },
    ColumnAdded(String),
    ColumnRemoved(String),
    /// Type or typmod.
    ColumnType(String),
    /// In or out of the replica identity.
    ColumnKey(String),
    ColumnOrder,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Renamed { from, to } => write!(f, "renamed from {from} to {to}"),
            Difference::ReplicaIdentity { from, to } => {
                write!(f, "replica identity changed from {from} to {to}")
            }
            Difference::ColumnAdded(c) => write!(f, "column {c} added"),
            Difference::ColumnRemoved(c) => write!(f, "column {c} removed"),
            Difference::ColumnType(c) => write!(f, "type of column {c} changed"),
            Difference::ColumnKey(c) => write!(f, "column {c} entered or left the replica identity"),
            Difference::ColumnOrder => write!(f, "order of columns changed"),
        }
    }
}

/// What a relation message means for the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Never seen before by this cache.
    New,
    /// As it was. The definition may have changed all the same (see the module's text).
    Same,
    Changed(Vec<Difference>),
}

struct Entry {
    relation: Arc<Relation>,
    version: u64,
    announced: bool,
}

/// Last known description of every relation, by OID.
#[derive(Default)]
pub struct RelationCache {
    entries: FxHashMap<u32, Entry>,
}

impl RelationCache {
    /// Takes in a relation message.
    pub fn observe(&mut self, message: &RelationMessage<'_>) -> Observed {
        let Some(entry) = self.entries.get_mut(&message.oid) else {
            let relation = Arc::new(Relation::from_message(message));
            self.entries.insert(message.oid, Entry { relation, version: 1, announced: true });
            return Observed::New;
        };
        entry.announced = true;
        if entry.relation.is_as_in(message) {
            return Observed::Same;
        }
        let now = Arc::new(Relation::from_message(message));
        let differences = entry.relation.differences(&now);
        entry.relation = now;
        entry.version += 1;
        Observed::Changed(differences)
    }

    /// The relation, if the server has described it since the last [`RelationCache::reconnected`].
    pub fn get(&self, oid: u32) -> Option<&Arc<Relation>> {
        self.entries.get(&oid).filter(|e| e.announced).map(|e| &e.relation)
    }

    /// Counts the different descriptions seen of a relation, from 1; 0 for an unknown one.
    pub fn version(&self, oid: u32) -> u64 {
        self.entries.get(&oid).map_or(0, |e| e.version)
    }

    /// A new connection describes every relation again before its first change. Until then the old description serves
    /// for comparison only.
    pub fn reconnected(&mut self) {
        for entry in self.entries.values_mut() {
            entry.announced = false;
        }
    }

    /// Forgets a relation that was dropped.
    pub fn forget(&mut self, oid: u32) {
        self.entries.remove(&oid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgoutput::encode;
    use crate::pgoutput::messages::{Message, parse};

    fn observe(
        cache: &mut RelationCache,
        identity: char,
        name: &str,
        columns: &[(bool, &str, u32, i32)],
    ) -> Observed {
        let bytes = encode::relation(7, "s", name, identity, columns);
        match parse(&bytes).unwrap() {
            Message::Relation(r) => cache.observe(&r),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_repeated_description_is_the_same_and_keeps_the_version() {
        let mut cache = RelationCache::default();
        assert_eq!(observe(&mut cache, 'd', "t", &[(true, "id", 23, -1)]), Observed::New);
        let fingerprint = cache.get(7).unwrap().fingerprint();
        assert_eq!(observe(&mut cache, 'd', "t", &[(true, "id", 23, -1)]), Observed::Same);
        assert_eq!((cache.version(7), cache.get(7).unwrap().fingerprint()), (1, fingerprint));
        assert_eq!(cache.version(8), 0);
    }

    #[test]
    fn every_kind_of_change_is_named() {
        let mut cache = RelationCache::default();
        observe(
            &mut cache,
            'd',
            "t",
            &[(true, "id", 23, -1), (false, "n", 1700, 100), (false, "old", 25, -1), (false, "z", 25, -1)],
        );
        let before = cache.get(7).unwrap().fingerprint();
        let seen = observe(
            &mut cache,
            'i',
            "u",
            &[(true, "id", 20, -1), (true, "z", 25, -1), (false, "n", 1700, 200), (false, "new", 25, -1)],
        );
        let Observed::Changed(differences) = seen else { panic!("{seen:?}") };
        let text: Vec<String> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "renamed from s.t to s.u",
                "replica identity changed from d to i",
                "type of column id changed",
                "type of column n changed",
                "column old removed",
                "column z entered or left the replica identity",
                "column new added",
                "order of columns changed"
            ]
        );
        assert_eq!(cache.version(7), 2);
        assert_ne!(cache.get(7).unwrap().fingerprint(), before);
    }

    #[test]
    fn after_a_reconnect_a_relation_is_unknown_until_described_but_still_compared() {
        let mut cache = RelationCache::default();
        observe(&mut cache, 'd', "t", &[(true, "id", 23, -1)]);
        cache.reconnected();
        assert!(cache.get(7).is_none());
        let seen = observe(&mut cache, 'd', "t", &[]);
        assert_eq!(seen, Observed::Changed(vec![Difference::ColumnRemoved("id".into())]));
        assert!(cache.get(7).is_some());
        cache.forget(7);
        assert!(cache.get(7).is_none());
    }
}
