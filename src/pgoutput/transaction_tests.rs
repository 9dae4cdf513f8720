//! Assembly: order, columns by name, old images, budget, re-registration, protocol violations.

use proptest::collection::vec;
use proptest::prelude::*;

use super::encode::{self, Cell, text};
use super::relation::{Difference, Observed};
use super::transaction::{Assembler, ChangeKind, Event, RereadReason, Transaction};
use super::tuple::{Misfit, NewTuple, OldRow, WantedAttribute};
use crate::error::ErrorKind;
use crate::row::{Datum, Row, TypeClass};

type Column = (bool, &'static str, u32, i32);

const ID: Column = (true, "id", 23, -1);
const NOTE: Column = (false, "note", 25, -1);
const OK: Column = (false, "ok", 16, -1);

fn wanted(names: &[&str]) -> Vec<WantedAttribute> {
    let attribute = |name: &&str| {
        let (type_oid, class) = match *name {
            "id" => (23, TypeClass::Int4),
            "ok" => (16, TypeClass::Bool),
            _ => (25, TypeClass::Text),
        };
        WantedAttribute { name: (*name).into(), type_oid, class }
    };
    names.iter().map(attribute).collect()
}

/// Relation 7 is registered, described and inside transaction 100.
fn started(identity: char, columns: &[Column], names: &[&str], limit: usize) -> Assembler {
    let mut a = Assembler::new(limit);
    a.register(7, wanted(names));
    a.begin(50, 100, 1).unwrap();
    a.change(&encode::relation(7, "s", "t", identity, columns)).unwrap();
    a
}

fn done(a: &mut Assembler) -> Transaction {
    a.commit(50, 60, 2).unwrap()
}

fn row(datums: &[Datum<'_>]) -> Row {
    Row::from_datums(datums.iter().copied())
}

fn rows(t: &Transaction) -> Vec<&ChangeKind> {
    t.changes.iter().map(|c| &c.kind).collect()
}

#[test]
fn columns_are_found_by_name_whatever_order_a_leaf_sends_them_in() {
    let mut a = started('d', &[OK, NOTE, ID], &["id", "note"], 1 << 20);
    a.change(&encode::insert(7, &[text("t"), text("x"), text("5")])).unwrap();
    let new = row(&[Datum::Int(5), Datum::Text(b"x")]);
    let t = done(&mut a);
    assert_eq!(rows(&t), [&ChangeKind::Insert { new }]);
    assert_eq!((t.xid, t.commit_lsn, t.end_lsn, t.commit_time), (100, 50, 60, 2));
    assert_eq!(t.touched, [7]);
    assert!(t.bytes > 0 && t.to_reread().next().is_none());
}

#[test]
fn an_old_key_holds_only_the_columns_of_the_replica_identity() {
    let mut a = started('d', &[NOTE, ID], &["note", "id"], 1 << 20);
    a.change(&encode::delete(7, b'K', &[Cell::Null, text("5")])).unwrap();
    let t = done(&mut a);
    let ChangeKind::Delete { old: OldRow::Key(key) } = &t.changes[0].kind else { panic!() };
    assert_eq!((&key.row, &key.columns[..]), (&row(&[Datum::Int(5)]), &[1][..]));
    assert_eq!(key.project(&[1]), Some(row(&[Datum::Int(5)])));
    assert_eq!(key.project(&[0]), None);
}

#[test]
fn unchanged_toast_is_filled_from_the_old_row_and_never_read_as_null() {
    let mut a = started('d', &[ID, NOTE, OK], &["ok", "note", "id"], 1 << 20);
    a.change(&encode::update(7, None, &[text("5"), Cell::Toast, Cell::Null])).unwrap();
    let t = done(&mut a);
    let ChangeKind::Update { old: None, new: NewTuple::Partial(p) } = &t.changes[0].kind else { panic!() };
    assert_eq!(p.missing, [1]);
    let old = row(&[Datum::Bool(true), Datum::Text(b"long"), Datum::Int(4)]);
    assert_eq!(p.fill(&old), row(&[Datum::Null, Datum::Text(b"long"), Datum::Int(5)]));
}

#[test]
fn unchanged_toast_of_an_unwanted_column_leaves_a_full_row() {
    let mut a = started('d', &[ID, NOTE], &["id"], 1 << 20);
    a.change(&encode::update(7, None, &[text("5"), Cell::Toast])).unwrap();
    let new = NewTuple::Full(row(&[Datum::Int(5)]));
    assert_eq!(rows(&done(&mut a)), [&ChangeKind::Update { old: None, new }]);
}

#[test]
fn a_full_old_row_completes_the_new_one() {
    let mut a = started('f', &[ID, (true, "note", 25, -1)], &["note", "id"], 1 << 20);
    let old = [text("5"), text("long")];
    a.change(&encode::update(7, Some((b'O', &old)), &[text("6"), Cell::Toast])).unwrap();
    let t = done(&mut a);
    let want = ChangeKind::Update {
        old: Some(OldRow::Full(row(&[Datum::Text(b"long"), Datum::Int(5)]))),
        new: NewTuple::Full(row(&[Datum::Text(b"long"), Datum::Int(6)])),
    };
    assert_eq!(rows(&t), [&want]);
    assert!(a.map(7).unwrap().as_ref().unwrap().key().is_empty());
}

#[test]
fn a_key_of_which_a_column_is_not_wanted_is_not_complete() {
    let a = started('i', &[ID, (true, "note", 25, -1)], &["id"], 1 << 20);
    assert!(!a.map(7).unwrap().as_ref().unwrap().key_complete());
    let a = started('i', &[ID, (true, "note", 25, -1)], &["note", "id"], 1 << 20);
    assert!(a.map(7).unwrap().as_ref().unwrap().key_complete());
    let a = started('n', &[(false, "id", 23, -1)], &["id"], 1 << 20);
    assert!(!a.map(7).unwrap().as_ref().unwrap().key_complete());
}

#[test]
fn values_that_had_to_be_sent_and_were_not_make_the_relation_read_again() {
    let mut a = started('d', &[ID, NOTE], &["id", "note"], 1 << 20);
    a.change(&encode::update(7, None, &[Cell::Toast, text("x")])).unwrap();
    a.change(&encode::insert(7, &[text("1"), Cell::Toast])).unwrap();
    let t = done(&mut a);
    assert_eq!(t.reread, [(7, RereadReason::KeyNotSent)]);
    assert!(t.changes.is_empty());
    assert_eq!(t.to_reread().collect::<Vec<_>>(), [7]);
}

#[test]
fn a_relation_that_lost_or_retyped_a_column_is_read_again_and_changes_after_it_fits_are_kept() {
    let mut a = started('d', &[ID], &["id", "note"], 1 << 20);
    a.change(&encode::insert(7, &[text("1")])).unwrap();
    a.change(&encode::relation(7, "s", "t", 'd', &[ID, (false, "note", 1043, 9)])).unwrap();
    a.change(&encode::insert(7, &[text("2"), text("x")])).unwrap();
    let event = a.change(&encode::relation(7, "s", "t", 'd', &[ID, NOTE])).unwrap();
    let differences = vec![Difference::ColumnType("note".into())];
    assert_eq!(event, Some(Event::Relation { relation: 7, observed: Observed::Changed(differences) }));
    a.change(&encode::insert(7, &[text("3"), text("x")])).unwrap();
    let t = done(&mut a);
    assert_eq!(t.reread, [(7, RereadReason::Columns(Misfit::Missing { column: "note".into() }))]);
    assert_eq!(t.changes.len(), 1);
    a.begin(50, 101, 1).unwrap();
    assert!(done(&mut a).touched.is_empty());
}

#[test]
fn values_that_do_not_fit_their_type_are_errors_that_name_the_column_and_not_the_value() {
    let mut a = started('d', &[ID, NOTE], &["id", "note"], 1 << 20);
    let e = a.change(&encode::insert(7, &[text("secret"), text("x")])).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Protocol);
    assert!(e.to_string().starts_with("s.t column id: "), "{e}");
    assert!(!e.to_string().contains("secret"));
    let e = a.change(&encode::insert(7, &[text("1"), Cell::Text(vec![0xff])])).unwrap_err();
    assert_eq!(e.to_string(), "s.t column note: the value is not valid UTF-8");
    // What the failed row left in the builder is not part of the next one.
    a.change(&encode::insert(7, &[text("1"), text("x")])).unwrap();
    assert_eq!(rows(&done(&mut a)), [&ChangeKind::Insert { new: row(&[Datum::Int(1), Datum::Text(b"x")]) }]);
}

#[test]
fn a_tuple_with_another_number_of_columns_than_described_is_an_error() {
    let mut a = started('d', &[ID, NOTE], &["id"], 1 << 20);
    let e = a.change(&encode::insert(7, &[text("1")])).unwrap_err();
    assert_eq!(e.to_string(), "a tuple of s.t has 1 columns, the relation was described with 2");
}

#[test]
fn relations_that_are_not_registered_are_counted() {
    let mut a = started('d', &[ID], &["id"], 1 << 20);
    a.change(&encode::insert(8, &[text("1")])).unwrap();
    a.change(&encode::delete(8, b'K', &[text("1")])).unwrap();
    a.change(&encode::truncate(0, &[9, 7])).unwrap();
    let t = done(&mut a);
    assert_eq!((t.skipped[&8], t.skipped[&9]), (2, 1));
    assert_eq!(rows(&t), [&ChangeKind::Truncate { cascade: false, restart_identity: false }]);
}

#[test]
fn a_relation_registered_in_the_middle_of_its_transaction_is_read_again() {
    let mut a = started('d', &[ID], &["id"], 1 << 20);
    a.change(&encode::relation(8, "s", "u", 'd', &[ID])).unwrap();
    a.change(&encode::insert(8, &[text("1")])).unwrap();
    a.register(8, wanted(&["id"]));
    a.change(&encode::insert(8, &[text("2")])).unwrap();
    a.change(&encode::insert(7, &[text("2")])).unwrap();
    a.register(7, wanted(&[]));
    let t = done(&mut a);
    assert_eq!(t.reread, [(8, RereadReason::Registered), (7, RereadReason::Registered)]);
    assert_eq!(t.touched, [8, 7]);
    a.begin(50, 101, 1).unwrap();
    a.change(&encode::insert(8, &[text("2")])).unwrap();
    assert_eq!(done(&mut a).to_reread().count(), 0);
}

#[test]
fn a_transaction_past_the_budget_keeps_only_what_it_touched() {
    let mut a = started('d', &[ID, NOTE], &["id", "note"], 1000);
    a.register(8, wanted(&["id"]));
    a.change(&encode::relation(8, "s", "u", 'd', &[ID])).unwrap();
    a.message(true, 1, b"p", b"c").unwrap();
    a.change(&encode::insert(7, &[text("1"), text(&"x".repeat(2000))])).unwrap();
    a.change(&encode::insert(8, &[text("1")])).unwrap();
    a.change(&encode::truncate(0, &[9])).unwrap();
    a.message(true, 1, b"p", b"c").unwrap();
    let t = done(&mut a);
    assert!(t.oversized && t.changes.is_empty() && t.bytes > 2000);
    assert_eq!(t.to_reread().collect::<Vec<_>>(), [7, 8]);
    assert_eq!((t.dropped_messages, t.skipped[&9]), (2, 1));
    a.begin(50, 101, 1).unwrap();
    a.change(&encode::insert(8, &[text("1")])).unwrap();
    let t = done(&mut a);
    assert!(!t.oversized && t.changes.len() == 1);
}

#[test]
fn messages_are_kept_in_order_by_prefix_and_come_at_once_if_not_transactional() {
    let mut a = Assembler::new(1 << 20).with_message_prefix(b"pgtrickle");
    assert_eq!(a.change(&encode::logical(false, 9, b"other", b"x")).unwrap(), None);
    let now = a.change(&encode::logical(false, 9, b"pgtrickle", b"x")).unwrap();
    assert_eq!(now, Some(Event::Message { lsn: 9, prefix: (*b"pgtrickle").into(), content: (*b"x").into() }));
    assert!(a.change(&encode::logical(true, 9, b"pgtrickle", b"x")).is_err());
    a.begin(50, 1, 1).unwrap();
    a.change(&encode::logical(true, 9, b"pgtrickle", b"y")).unwrap();
    a.change(&encode::logical(true, 9, b"other", b"z")).unwrap();
    let t = done(&mut a);
    let kind = ChangeKind::Message { prefix: (*b"pgtrickle").into(), content: (*b"y").into() };
    assert_eq!(rows(&t), [&kind]);
}

#[test]
fn at_every_limit_a_message_is_either_kept_or_counted_as_dropped() {
    for limit in 0..600 {
        let mut a = Assembler::new(limit);
        a.begin(50, 1, 1).unwrap();
        for _ in 0..3 {
            a.change(&encode::logical(true, 9, b"p", b"content")).unwrap();
        }
        let t = done(&mut a);
        assert_eq!(t.changes.len() as u64 + t.dropped_messages, 3, "limit {limit}");
        assert_eq!(t.oversized, t.dropped_messages > 0);
    }
}

#[test]
fn messages_out_of_order_are_refused() {
    let mut a = Assembler::new(1 << 20);
    a.register(7, wanted(&["id"]));
    let insert = encode::insert(7, &[text("1")]);
    assert!(a.change(&insert).unwrap_err().to_string().contains("outside a transaction"));
    assert!(a.commit(1, 2, 3).is_err());
    a.begin(50, 1, 1).unwrap();
    assert!(a.change(&insert).unwrap_err().to_string().contains("before the relation's description"));
    assert!(a.change(&encode::truncate(0, &[7])).is_err());
    let e = a.change(&encode::begin(51, 1, 2)).unwrap_err();
    assert_eq!(e.to_string(), "transaction 2 begins inside transaction 1");
    let e = a.change(&encode::commit(51, 60, 1)).unwrap_err();
    assert!(e.to_string().contains("announced with commit position 32 and commits at 33"), "{e}");
    assert!(!a.in_transaction());
}

#[test]
fn after_a_reconnect_the_open_transaction_and_the_descriptions_come_again() {
    let mut a = started('d', &[ID], &["id"], 1 << 20);
    a.change(&encode::insert(7, &[text("1")])).unwrap();
    a.reconnected();
    assert!(!a.in_transaction() && a.map(7).is_none());
    a.begin(50, 100, 1).unwrap();
    assert!(a.change(&encode::insert(7, &[text("1")])).is_err());
    let event = a.change(&encode::relation(7, "s", "t", 'd', &[ID])).unwrap();
    assert_eq!(event, Some(Event::Relation { relation: 7, observed: Observed::Same }));
    a.change(&encode::insert(7, &[text("1")])).unwrap();
    assert_eq!(done(&mut a).changes.len(), 1);
}

proptest! {
    #[test]
    fn every_change_is_collected_in_order_or_its_relation_is_read_again(
        ops in vec((0u32..4, 0u8..9, 0usize..60), 0..80),
        limit in prop_oneof![Just(usize::MAX), 0..6000usize],
    ) {
        let mut a = Assembler::new(limit);
        a.register(0, wanted(&["note", "id"]));
        a.register(1, wanted(&["id"]));
        a.register(2, wanted(&["id", "note"]));
        a.begin(50, 1, 1).unwrap();
        for oid in 0..4 {
            a.change(&encode::relation(oid, "s", "t", 'd', &[ID, NOTE])).unwrap();
        }
        let mut sent: Vec<(u32, u8)> = Vec::new();
        for &(oid, op, length) in &ops {
            let full = [text("1"), text(&"x".repeat(length))];
            let bytes = match op {
                0..=2 => encode::insert(oid, &full),
                3 => encode::update(oid, None, &[text("1"), Cell::Toast]),
                4 => encode::update(oid, Some((b'K', &[text("2"), Cell::Null])), &full),
                5 => encode::delete(oid, b'K', &[text("2"), Cell::Null]),
                6 => encode::truncate(1, &[oid]),
                // From here on the relation does not fit, or fits again.
                7 => encode::relation(oid, "s", "t", 'd', &[ID, (false, "other", 25, -1)]),
                _ => encode::relation(oid, "s", "t", 'd', &[NOTE, (true, "id", 23, -1)]),
            };
            let bytes = match (op, a.relations().get(oid).map(|r| r.columns[0].name.clone())) {
                (0..=2, Some(first)) if first == "note" => encode::insert(oid, &[text("n"), text("1")]),
                (3..=5, Some(first)) if first == "note" => encode::truncate(1, &[oid]),
                _ => bytes,
            };
            if op < 7 {
                sent.push((oid, bytes[0]));
            }
            a.change(&bytes).unwrap();
        }
        let t = done(&mut a);
        let again: Vec<u32> = t.to_reread().collect();
        let kind = |k: &ChangeKind| match k {
            ChangeKind::Insert { .. } => b'I',
            ChangeKind::Update { .. } => b'U',
            ChangeKind::Delete { .. } => b'D',
            ChangeKind::Truncate { .. } => b'T',
            ChangeKind::Message { .. } => b'M',
        };
        let kept: Vec<(u32, u8)> = t.changes.iter().map(|c| (c.relation, kind(&c.kind))).collect();
        let kept: Vec<_> = kept.into_iter().filter(|(oid, _)| !again.contains(oid)).collect();
        let due: Vec<_> = sent.iter().copied().filter(|(oid, _)| *oid < 3 && !again.contains(oid)).collect();
        prop_assert_eq!(kept, due);
        let skipped = sent.iter().filter(|(oid, _)| *oid == 3).count() as u64;
        prop_assert_eq!(t.skipped.values().sum::<u64>(), skipped);
    }
}

#[test]
fn parts_and_the_rest_are_all_changes_in_order_and_a_taken_part_is_not_held() {
    let mut a = started('d', &[ID], &["id"], 1 << 20);
    let insert = |a: &mut Assembler, id: &str| a.change(&encode::insert(7, &[text(id)])).unwrap();
    insert(&mut a, "1");
    assert_eq!(a.take_part(2, usize::MAX), None);
    insert(&mut a, "2");
    let mut all = a.take_part(2, usize::MAX).unwrap();
    assert_eq!((a.open_bytes(), a.take_part(0, 0)), (0, None));
    insert(&mut a, "3");
    let rest = done(&mut a);
    assert_eq!((rest.taken, rest.touched.as_slice()), (2, &[7][..]));
    all.extend(rest.changes);
    let insert = |id| ChangeKind::Insert { new: row(&[Datum::Int(id)]) };
    assert!(all.iter().map(|c| &c.kind).eq(&[insert(1), insert(2), insert(3)]));
}

#[test]
fn a_transaction_with_messages_or_with_something_to_read_again_stays_together() {
    let mut a = started('d', &[ID], &["id"], 1 << 20);
    a.message(true, 1, b"p", b"x").unwrap();
    a.change(&encode::insert(7, &[text("1")])).unwrap();
    assert_eq!(a.take_part(1, 0), None);
    let mut a = started('d', &[ID], &["id"], 1 << 20);
    a.change(&encode::insert(7, &[text("1")])).unwrap();
    a.register(7, wanted(&["id"]));
    assert_eq!(a.take_part(1, 0), None);
    assert_eq!(done(&mut a).reread.len(), 1);
}
