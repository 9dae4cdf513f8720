//! A stream as PostgreSQL 15 sent it (see `testdata/captured_15.sql` and the head of the `.hex` file).

use std::collections::BTreeMap;

use super::messages::{Message, parse};
use super::relation::Observed;
use super::transaction::{Assembler, ChangeKind, Event, RereadReason, Transaction};
use super::tuple::{Misfit, NewTuple, OldRow, WantedAttribute};
use crate::row::{Datum, Row, TypeClass};

/// Hex digits; `(xx*n)` stands for n bytes xx.
fn unpack(line: &str) -> Vec<u8> {
    let byte = |s: &str| u8::from_str_radix(s, 16).unwrap();
    let mut out = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        if let Some(run) = rest.strip_prefix('(') {
            let (run, tail) = run.split_once(')').unwrap();
            let (value, count) = run.split_once('*').unwrap();
            out.resize(out.len() + count.parse::<usize>().unwrap(), byte(value));
            rest = tail;
        } else {
            let (hex, tail) = rest.split_at(2);
            out.push(byte(hex));
            rest = tail;
        }
    }
    out
}

fn captured() -> Vec<Vec<u8>> {
    let lines = include_str!("testdata/captured_15.hex").lines();
    lines.filter(|l| !l.starts_with('#')).map(unpack).collect()
}

/// First OIDs of relations and types, by name.
fn oids(stream: &[Vec<u8>]) -> BTreeMap<String, u32> {
    let mut out = BTreeMap::new();
    for bytes in stream {
        match parse(bytes).unwrap() {
            Message::Relation(r) => {
                assert_eq!(r.schema, "public");
                out.insert(r.name.to_owned(), r.oid);
            }
            Message::Type(t) => {
                assert_eq!(t.schema, "public");
                out.insert(t.name.to_owned(), t.oid);
            }
            _ => {}
        }
    }
    out
}

struct Replay {
    oids: BTreeMap<String, u32>,
    transactions: Vec<Transaction>,
    observed: Vec<(u32, Observed)>,
    messages: Vec<Vec<u8>>,
}

impl Replay {
    fn new() -> Replay {
        let stream = captured();
        let oids = oids(&stream);
        let mut a = Assembler::new(1 << 20).with_message_prefix(b"pgtrickle");
        let wanted = |columns: &[(&str, u32, TypeClass)]| {
            let attribute = |&(name, type_oid, class): &(&str, u32, TypeClass)| WantedAttribute {
                name: name.into(),
                type_oid,
                class,
            };
            columns.iter().map(attribute).collect::<Vec<_>>()
        };
        use TypeClass::*;
        let id = ("id", 23, Int4);
        let mood = ("mood", oids["mood"], Enum);
        a.register(
            oids["item"],
            wanted(&[("ok", 16, Bool), id, ("qty", 20, Int8), ("big", 25, Text), mood, ("name", 25, Text)]),
        );
        a.register(oids["whole"], wanted(&[("b", 25, Text), ("big", 25, Text), ("a", 23, Int4)]));
        a.register(oids["part_low"], wanted(&[id, ("note", 25, Text)]));
        a.register(oids["other"], wanted(&[id, ("extra", 25, Text)]));
        a.register(oids["longkey"], wanted(&[("k", 25, Text), ("note", 25, Text)]));
        let mut replay = Replay { oids, transactions: vec![], observed: vec![], messages: vec![] };
        for bytes in &stream {
            match a.change(bytes).unwrap() {
                Some(Event::Committed(t)) => replay.transactions.push(*t),
                Some(Event::Relation { relation, observed }) => replay.observed.push((relation, observed)),
                Some(Event::Message { content, .. }) => replay.messages.push(content.into()),
                None => {}
            }
        }
        replay
    }

    fn changes(&self, transaction: usize) -> Vec<(u32, ChangeKind)> {
        self.transactions[transaction].changes.iter().map(|c| (c.relation, c.kind.clone())).collect()
    }
}

fn row(datums: &[Datum<'_>]) -> Row {
    Row::from_datums(datums.iter().copied())
}

fn int(i: i64) -> Datum<'static> {
    Datum::Int(i)
}

fn text(t: &str) -> Datum<'_> {
    Datum::Text(t.as_bytes())
}

#[test]
fn transactions_come_in_commit_order_with_ascending_positions() {
    let r = Replay::new();
    assert_eq!(r.transactions.len(), 7);
    for pair in r.transactions.windows(2) {
        assert!(pair[0].end_lsn <= pair[1].commit_lsn && pair[0].xid < pair[1].xid);
    }
    for (i, t) in r.transactions.iter().enumerate() {
        assert!(t.commit_lsn < t.end_lsn && t.skipped.is_empty() && !t.oversized);
        assert_eq!(t.origin.as_deref(), (i == 6).then_some("elsewhere"));
    }
    // 2024-01-02 03:04:05 UTC, set by the replayed transaction.
    assert_eq!(r.transactions[6].commit_time, 757_479_845_000_000);
}

#[test]
fn inserts_carry_every_class_and_leaves_their_own_column_order() {
    let r = Replay::new();
    let big = "x".repeat(2500);
    let one = row(&[Datum::Bool(true), int(1), int(9_000_000_000), text(&big), text("happy"), text("one")]);
    let two = row(&[Datum::Bool(false), int(2), int(-5), text("ü"), Datum::Null, Datum::Null]);
    let leaf = row(&[int(3), text("leaf")]);
    let insert = |table: &str, new| (r.oids[table], ChangeKind::Insert { new });
    assert_eq!(r.changes(0), [insert("item", one), insert("item", two), insert("part_low", leaf)]);
}

#[test]
fn unchanged_toast_is_missing_under_default_identity_also_when_the_key_moves() {
    let r = Replay::new();
    let changes = r.changes(1);
    let old = row(&[Datum::Bool(true), int(1), int(7), text("long"), text("happy"), text("one")]);
    let [(_, first), (_, second), (_, third)] = &changes[..] else { panic!("{changes:?}") };
    let ChangeKind::Update { old: None, new: NewTuple::Partial(p) } = first else { panic!("{first:?}") };
    assert_eq!(p.missing, [3]);
    assert_eq!(p.fill(&old), old);
    let ChangeKind::Update { old: Some(OldRow::Key(k)), new: NewTuple::Partial(p) } = second else {
        panic!("{second:?}")
    };
    assert_eq!((&k.row, &k.columns[..], &p.missing[..]), (&row(&[int(1)]), &[1][..], &[3][..]));
    assert_eq!(p.fill(&old).get(1), int(10));
    assert_eq!(p.fill(&old).get(3), text("long"));
    let ChangeKind::Delete { old: OldRow::Key(k) } = third else { panic!("{third:?}") };
    assert_eq!(k.row, row(&[int(2)]));
}

#[test]
fn full_identity_carries_whole_old_rows_that_complete_the_new_ones() {
    let r = Replay::new();
    let big = "y".repeat(2500);
    let b = row(&[text("b"), text(&big), int(1)]);
    let c = row(&[text("c"), text(&big), int(1)]);
    let nulls = row(&[Datum::Null, Datum::Null, int(1)]);
    let kinds: Vec<_> = r.changes(2).into_iter().map(|(_, kind)| kind).collect();
    assert_eq!(
        kinds,
        [
            ChangeKind::Insert { new: b.clone() },
            ChangeKind::Insert { new: nulls.clone() },
            ChangeKind::Update { old: Some(OldRow::Full(b)), new: NewTuple::Full(c) },
            ChangeKind::Delete { old: OldRow::Full(nulls) },
        ]
    );
}

#[test]
fn an_unchanged_key_stored_out_of_line_is_taken_from_the_old_key() {
    let r = Replay::new();
    let key = "z".repeat(2500);
    let kinds: Vec<_> = r.changes(3).into_iter().map(|(_, kind)| kind).collect();
    let [_, ChangeKind::Update { old: Some(OldRow::Key(k)), new }, ChangeKind::Delete { .. }] = &kinds[..]
    else {
        panic!("{kinds:?}")
    };
    assert_eq!(k.row, row(&[text(&key)]));
    assert_eq!(new, &NewTuple::Full(row(&[text(&key), text("m")])));
}

#[test]
fn a_relation_changed_in_its_transaction_is_seen_and_truncates_list_relations() {
    let r = Replay::new();
    let other = r.oids["other"];
    let reason = RereadReason::Columns(Misfit::Missing { column: "extra".into() });
    assert_eq!(r.transactions[4].reread, [(other, reason)]);
    let seen: Vec<_> = r.observed.iter().filter(|(oid, _)| *oid == other).map(|(_, o)| o).collect();
    let added = Observed::Changed(vec![super::Difference::ColumnAdded("extra".into())]);
    assert_eq!(seen, [&Observed::New, &added, &Observed::Same, &Observed::Same]);
    let truncate = |table: &str, cascade, restart_identity| {
        (r.oids[table], ChangeKind::Truncate { cascade, restart_identity })
    };
    let new = row(&[int(2), text("f")]);
    assert_eq!(
        r.changes(4),
        [
            (other, ChangeKind::Insert { new }),
            truncate("item", false, true),
            truncate("other", false, true),
            truncate("whole", true, false),
        ]
    );
}

#[test]
fn transactional_messages_keep_their_place_and_the_others_come_at_once() {
    let r = Replay::new();
    assert_eq!(r.messages, [b"outside".to_vec()]);
    let [(0, ChangeKind::Message { prefix, content }), (_, ChangeKind::Insert { .. })] = &r.changes(5)[..]
    else {
        panic!()
    };
    assert_eq!((&prefix[..], &content[..]), (&b"pgtrickle"[..], &b"inside"[..]));
}
