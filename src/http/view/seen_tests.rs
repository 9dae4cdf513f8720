//! What pages say of looks that are given.

use super::{Graph, Order, Overview, RecoveryLog, TablePage, Tables};
use crate::observe::{Key, Observed, Read, Sample, StreamTable, TableDetail};

fn key(pipeline: &str) -> Key {
    ("db".to_owned(), pipeline.to_owned())
}

fn table(name: &str, lag: i64, reads: &[&str]) -> StreamTable {
    let read = |name: &&str| Read { name: (*name).to_owned(), kind: "STREAM_TABLE".to_owned() };
    StreamTable {
        name: name.to_owned(),
        status: "ACTIVE".to_owned(),
        refresh_mode: "DIFFERENTIAL".to_owned(),
        lag_bytes: Some(lag),
        reads: reads.iter().map(read).collect(),
        ..StreamTable::default()
    }
}

fn sample(stream_tables: Vec<StreamTable>) -> Sample {
    Sample { sidecar_alive: true, applied_lag_bytes: Some(1), stream_tables, ..Sample::default() }
}

#[test]
fn what_was_never_seen_is_not_none() {
    let observed = Observed::default();
    assert_eq!(Tables::of(&observed, "", Order::Name).unseen, ["the database"]);
    assert!(!RecoveryLog::default().is_whole());
    observed.fails(&key("main"), "connection refused".to_owned());
    let overview = Overview::of(&observed, 3600);
    assert_eq!(overview.pipelines[0].counts, None);
    assert!(serde_json::to_value(&overview).unwrap()["pipelines"][0]["counts"].is_null());
    assert_eq!(Tables::of(&observed, "", Order::Name).unseen, ["db (main)"]);
    observed.saw(&key("main"), sample(Vec::new()));
    let counts = Overview::of(&observed, 3600).pipelines[0].counts.clone();
    assert_eq!(counts.map(|c| c.stream_tables), Some(0));
    assert!(Tables::of(&observed, "", Order::Name).unseen.is_empty());
}

#[test]
fn a_pause_is_called_so() {
    let observed = Observed::default();
    let offline = StreamTable { status: "OFFLINE".to_owned(), ..table("a.t", 0, &[]) };
    observed.saw(&key("main"), Sample { paused: true, sidecar_alive: false, ..sample(vec![offline]) });
    let overview = Overview::of(&observed, 3600);
    assert_eq!((overview.pipelines[0].state(), overview.pipelines[0].paused), ("paused", true));
    assert_eq!(overview.severity.name(), "warning");
    assert_eq!(Tables::of(&observed, "", Order::Name).stream_tables[0].severity.name(), "warning");
}

#[test]
fn the_lag_of_a_stream_table_is_its_own() {
    let observed = Observed::default();
    observed.saw(&key("main"), sample(vec![table("a.hourly", 77, &[]), table("a.now", 1, &[])]));
    let rows = Tables::of(&observed, "", Order::Name).stream_tables;
    assert_eq!(rows.iter().map(|row| row.lag_bytes.0).collect::<Vec<_>>(), [Some(77), Some(1)]);
    let nodes = &Graph::all(&observed)[0].nodes;
    assert_eq!(nodes.iter().map(|node| node.bytes.0).collect::<Vec<_>>(), [Some(77), Some(1)]);
}

#[test]
fn a_reader_in_another_pipeline_is_linked_where_it_is() {
    let observed = Observed::default();
    observed.saw(&key("main"), sample(vec![table("a.t", 0, &[])]));
    observed.saw(&key("b"), sample(vec![table("a.over_t", 0, &["a.t"])]));
    let read_by = ["a.over_t", "a.elsewhere"].map(str::to_owned).to_vec();
    let detail = TableDetail { read_by, ..TableDetail::default() };
    let page = TablePage::of(&observed, &key("main"), "a.t", 3600, Ok(detail), true).expect("it is there");
    let [(_, over), (_, elsewhere)] = &page.read_by[..] else { panic!("{:?}", page.read_by) };
    assert!(over.as_ref().is_some_and(|url| url.ends_with("?database=db&pipeline=b")), "{over:?}");
    assert_eq!(*elsewhere, None, "no process of ours serves it");
}
