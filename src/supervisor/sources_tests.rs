//! What reaches an instance, and what is held for it.

use super::*;
use crate::capture::source::{CapturedBy, HeldColumn};
use crate::pgoutput::Change;
use crate::row::{Datum, TypeClass};

fn spec() -> SourceSpec {
    let column = |attnum, name: &str| HeldColumn {
        attnum,
        name: name.to_owned(),
        type_oid: 23,
        class: TypeClass::Int4,
    };
    let columns = vec![column(1, "id"), column(2, "v")];
    let captured_by = CapturedBy::Wal;
    SourceSpec { oid: 7, schema: "s".into(), name: "t".into(), captured_by, identity: 1, columns }
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
    let instance = sources.require(&spec()).unwrap().instance;
    let mut feed = Feed::new();
    // Before, inside and after the snapshot 100:103:101.
    for xid in [99, 101, 102, 103] {
        sources.feed(insert(xid as i64), xid, &mut feed).unwrap();
    }
    assert_eq!(ids(&feed), 0);
    sources.snapshot(&[instance], &"100:103:101".parse().unwrap()).unwrap();
    sources.loaded(&[instance], 500, &BTreeMap::new(), &mut feed).unwrap();
    // 101 was in progress, 103 began later.
    assert_eq!(ids(&feed), 2);
    assert_eq!((sources.held_bytes(), sources.unloaded()), (0, Vec::new()));
    feed.clear();
    sources.feed(insert(1), 102, &mut feed).unwrap();
    assert_eq!(ids(&feed), 0);
    sources.passed(500);
    assert!(sources.is_live(instance));
    sources.feed(insert(1), 102, &mut feed).unwrap();
    assert_eq!(ids(&feed), 1);
}

#[test]
fn what_waits_for_a_load_that_is_given_up_waits_for_the_next_one() {
    let mut sources = Sources::default();
    let given_up = sources.require(&spec()).unwrap().instance;
    sources.feed(insert(1), 101, &mut Feed::new()).unwrap();
    sources.snapshot(&[given_up], &"100:103:101,102".parse().unwrap()).unwrap();
    sources.feed(insert(2), 102, &mut Feed::new()).unwrap();
    let renewed = sources.renew(given_up).unwrap();
    assert!(renewed.fresh && renewed.instance != given_up && renewed.spec == spec());
    assert!(sources.renew(given_up).is_none());
    // The later snapshot shows one of them.
    sources.snapshot(&[renewed.instance], &"102:104:102".parse().unwrap()).unwrap();
    let mut feed = Feed::new();
    sources.feed(insert(3), 103, &mut feed).unwrap();
    sources.loaded(&[renewed.instance], 500, &BTreeMap::new(), &mut feed).unwrap();
    assert_eq!((ids(&feed), sources.held_bytes()), (1, 0));
}

#[test]
fn what_waits_for_a_load_that_never_ends_is_forgotten_with_it() {
    let mut sources = Sources::default();
    let locked = sources.require(&spec()).unwrap().instance;
    sources.feed(insert(1), 101, &mut Feed::new()).unwrap();
    assert!(sources.held_bytes() > 0);
    assert_eq!(sources.unloaded(), [locked]);
    assert_eq!((sources.release(locked), sources.held_bytes()), (Some(7), 0));
}

#[test]
fn what_can_not_be_followed_before_the_snapshot_is_known_is_decided_by_it() {
    for (xid, fine) in [(99, true), (101, false)] {
        let mut sources = Sources::default();
        let instance = sources.require(&spec()).unwrap().instance;
        let lost = Transaction { oversized: true, touched: vec![7], ..Transaction::default() };
        sources.feed(lost, xid, &mut Feed::new()).unwrap();
        assert_eq!(sources.snapshot(&[instance], &"100:103:101".parse().unwrap()).is_ok(), fine);
    }
}

#[test]
fn a_need_that_is_met_shares_the_instance_and_a_wider_one_gets_its_own() {
    let mut sources = Sources::default();
    let first = sources.require(&spec()).unwrap();
    assert!(first.fresh && !sources.require(&spec()).unwrap().fresh);
    let mut wider = spec();
    wider.columns.push(HeldColumn { attnum: 3, name: "w".into(), type_oid: 25, class: TypeClass::Text });
    let second = sources.require(&wider).unwrap();
    assert!(second.fresh && second.instance != first.instance);
    assert_eq!(sources.layout(7).map(|l| l.columns.len()), Some(3));
    assert_eq!(sources.release(first.instance), None);
    assert_eq!(sources.release(second.instance), Some(7));
}
