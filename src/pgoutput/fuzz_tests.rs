//! Arbitrary, mutated and truncated messages, and the round trip through the encoder.

use proptest::collection::vec;
use proptest::prelude::*;

use super::encode::{self, Cell};
use super::messages::{ColumnMessage, Message, OldTuple, Tuple, Value, parse};
use super::transaction::Assembler;
use super::tuple::WantedAttribute;
use crate::row::TypeClass;

#[derive(Debug, Clone)]
enum Model {
    Begin(u64, i64, u32),
    Commit(u64, u64, i64),
    Origin(u64, String),
    Relation(u32, String, char, Vec<(bool, String, u32, i32)>),
    Type(u32, String),
    Insert(u32, Vec<Cell>),
    Update(u32, Option<(bool, Vec<Cell>)>, Vec<Cell>),
    Delete(u32, bool, Vec<Cell>),
    Truncate(u8, Vec<u32>),
    Logical(bool, u64, Vec<u8>, Vec<u8>),
}

impl Model {
    fn encode(&self) -> Vec<u8> {
        let kind = |full: bool| if full { b'O' } else { b'K' };
        match self {
            Model::Begin(lsn, time, xid) => encode::begin(*lsn, *time, *xid),
            Model::Commit(lsn, end, time) => encode::commit(*lsn, *end, *time),
            Model::Origin(lsn, name) => encode::origin(*lsn, name),
            Model::Relation(oid, name, identity, columns) => {
                let columns: Vec<_> = columns.iter().map(|(k, n, t, m)| (*k, n.as_str(), *t, *m)).collect();
                encode::relation(*oid, "s", name, *identity, &columns)
            }
            Model::Type(oid, name) => encode::type_name(*oid, "s", name),
            Model::Insert(oid, new) => encode::insert(*oid, new),
            Model::Update(oid, old, new) => {
                encode::update(*oid, old.as_ref().map(|(full, cells)| (kind(*full), cells.as_slice())), new)
            }
            Model::Delete(oid, full, old) => encode::delete(*oid, kind(*full), old),
            Model::Truncate(flags, relations) => encode::truncate(*flags, relations),
            Model::Logical(transactional, lsn, prefix, content) => {
                encode::logical(*transactional, *lsn, prefix, content)
            }
        }
    }

    fn decode(message: &Message<'_>) -> Model {
        let old = |o: &OldTuple<'_>| match o {
            OldTuple::Key(t) => (false, cells(t)),
            OldTuple::Full(t) => (true, cells(t)),
        };
        match message {
            Message::Begin(b) => Model::Begin(b.final_lsn, b.commit_time, b.xid),
            Message::Commit(c) => Model::Commit(c.lsn, c.end_lsn, c.commit_time),
            Message::Origin(o) => Model::Origin(o.lsn, o.name.to_owned()),
            Message::Relation(r) => {
                let column = |c: ColumnMessage<'_>| (c.is_key, c.name.to_owned(), c.type_oid, c.typmod);
                assert_eq!((r.schema, r.columns().count()), ("s", r.len()));
                Model::Relation(
                    r.oid,
                    r.name.to_owned(),
                    r.replica_identity,
                    r.columns().map(column).collect(),
                )
            }
            Message::Type(t) => Model::Type(t.oid, t.name.to_owned()),
            Message::Insert { relation, new } => Model::Insert(*relation, cells(new)),
            Message::Update { relation, old: o, new } => {
                Model::Update(*relation, o.as_ref().map(old), cells(new))
            }
            Message::Delete { relation, old: o } => {
                let (full, cells) = old(o);
                Model::Delete(*relation, full, cells)
            }
            Message::Truncate(t) => Model::Truncate(
                u8::from(t.cascade) | (u8::from(t.restart_identity) << 1),
                t.relations().collect(),
            ),
            Message::Logical(m) => {
                Model::Logical(m.transactional, m.lsn, m.prefix.to_vec(), m.content.to_vec())
            }
        }
    }
}

fn cells(tuple: &Tuple<'_>) -> Vec<Cell> {
    let cells: Vec<Cell> = tuple
        .values()
        .map(|v| match v {
            Value::Null => Cell::Null,
            Value::UnchangedToast => Cell::Toast,
            Value::Text(t) => Cell::Text(t.to_vec()),
        })
        .collect();
    assert_eq!(cells.len(), tuple.len());
    cells
}

fn row() -> impl Strategy<Value = Vec<Cell>> {
    let cell = prop_oneof![
        Just(Cell::Null),
        Just(Cell::Toast),
        vec(any::<u8>(), 0..40).prop_map(Cell::Text),
        "-?[0-9]{1,12}".prop_map(|s| Cell::Text(s.into_bytes())),
    ];
    vec(cell, 0..6)
}

/// Relation OIDs are few, so that rows meet descriptions.
fn model() -> impl Strategy<Value = Model> {
    let name = "[a-zé]{0,3}";
    let column = (any::<bool>(), "[ab]", prop_oneof![Just(23u32), Just(25)], -1..9i32);
    prop_oneof![
        (0..3u64, any::<i64>(), any::<u32>()).prop_map(|(a, b, c)| Model::Begin(a, b, c)),
        (0..3u64, any::<u64>(), any::<i64>()).prop_map(|(a, b, c)| Model::Commit(a, b, c)),
        (any::<u64>(), name).prop_map(|(a, b)| Model::Origin(a, b)),
        (0..3u32, name, prop_oneof![Just('d'), Just('n'), Just('f'), Just('i')], vec(column, 0..5))
            .prop_map(|(a, b, c, d)| Model::Relation(a, b, c, d)),
        (any::<u32>(), name).prop_map(|(a, b)| Model::Type(a, b)),
        (0..3u32, row()).prop_map(|(a, b)| Model::Insert(a, b)),
        (0..3u32, proptest::option::of((any::<bool>(), row())), row())
            .prop_map(|(a, b, c)| Model::Update(a, b, c)),
        (0..3u32, any::<bool>(), row()).prop_map(|(a, b, c)| Model::Delete(a, b, c)),
        (0..4u8, vec(0..4u32, 0..5)).prop_map(|(a, b)| Model::Truncate(a, b)),
        (any::<bool>(), any::<u64>(), vec(1..255u8, 0..5), vec(any::<u8>(), 0..50))
            .prop_map(|(a, b, c, d)| Model::Logical(a, b, c, d)),
    ]
}

fn assembler(limit: usize) -> Assembler {
    let mut assembler = Assembler::new(limit);
    let wanted = |name: &str, type_oid, class| WantedAttribute { name: name.into(), type_oid, class };
    assembler.register(0, vec![wanted("b", 25, TypeClass::Text), wanted("a", 23, TypeClass::Int4)]);
    assembler.register(1, vec![wanted("a", 25, TypeClass::Text)]);
    assembler
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(model in model()) {
        let bytes = model.encode();
        let back = Model::decode(&parse(&bytes).unwrap());
        prop_assert_eq!(format!("{back:?}"), format!("{model:?}"));
    }

    #[test]
    fn every_proper_prefix_of_a_message_is_an_error(model in model()) {
        let bytes = model.encode();
        for n in 0..bytes.len() {
            prop_assert!(parse(&bytes[..n]).is_err(), "{n} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..200), kind in "[BCORYIUDTM]") {
        let _ = parse(&bytes).map(|m| Model::decode(&m).encode());
        let mut bytes = bytes;
        bytes.insert(0, kind.as_bytes()[0]);
        if let Ok(message) = parse(&bytes) {
            let _ = format!("{message:?}");
        }
    }

    #[test]
    fn mutated_messages_are_messages_or_errors(
        model in model(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = model.encode();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(message) = parse(&bytes) {
            // The iterators end with what was counted, whatever the bytes are.
            if let Message::Insert { new, .. } = &message {
                prop_assert_eq!(new.values().count(), new.len());
            }
            if let Message::Relation(r) = &message {
                prop_assert_eq!(r.columns().count(), r.len());
            }
        }
    }

    #[test]
    fn any_order_of_messages_is_assembled_or_refused_and_never_loses_a_change_silently(
        models in vec(model(), 0..60),
        limit in prop_oneof![Just(usize::MAX), 0..2000usize],
    ) {
        let mut assembler = assembler(limit);
        for model in &models {
            // Every error ends a connection.
            match assembler.change(&model.encode()) {
                Err(_) => assembler.reconnected(),
                Ok(Some(super::Event::Committed(t))) => {
                    prop_assert!(!t.oversized || t.changes.is_empty());
                    prop_assert!(t.oversized || t.bytes <= limit);
                    let listed: Vec<u32> = t.to_reread().collect();
                    for relation in &t.touched {
                        let collected = t.changes.iter().any(|c| c.relation == *relation);
                        prop_assert!(collected || listed.contains(relation));
                    }
                }
                Ok(_) => {}
            }
        }
    }
}
