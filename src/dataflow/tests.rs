//! The engine against recomputation: random changes into two sources, four views, one and two workers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::*;
use crate::plan::expr::{Comparison, Kernel, Order};
use crate::plan::{Aggregate, AggregateFunction, Expr, GroupKey, JoinKey, JoinKind, Rel};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row};

const MUCH: Limits = Limits { bytes: 1 << 40, pairs: 1 << 40 };
const ORDERS: u32 = 100;
const CUSTOMERS: u32 = 200;

fn ints(values: &[Option<i64>]) -> Row {
    Row::from_datums(values.iter().map(|v| v.map_or(Datum::Null, Datum::Int)))
}

fn source(source: u32, attributes: &[i16]) -> Box<Rel> {
    Box::new(Rel::Source { source, attributes: attributes.to_vec() })
}

/// orders(id, customer, amount), customers(id, region).
fn views() -> Vec<(i64, Rel)> {
    let key = |left, right| vec![JoinKey { left, right, form: KeyForm::Image, nulls_match: false }];
    let greater = Expr::Call {
        kernel: Kernel::Compare(Order::Int, Comparison::Gt),
        args: vec![Expr::Column(2), Expr::Literal(ints(&[Some(50)]))],
    };
    let aggregates = |argument| {
        let function = |function, argument| Aggregate { function, argument, filter: None, distinct: None };
        vec![
            function(AggregateFunction::CountStar, None),
            function(AggregateFunction::SumInt8, Some(argument)),
            function(AggregateFunction::Min(Order::Int), Some(argument)),
            function(AggregateFunction::Max(Order::Int), Some(argument)),
        ]
    };
    let join = |kind, residual| Rel::Join {
        kind,
        left: source(ORDERS, &[1, 2, 3]),
        right: source(CUSTOMERS, &[1, 2]),
        on: key(1, 0),
        residual,
    };
    let by_region = Rel::Aggregate {
        input: Box::new(join(JoinKind::Inner, None)),
        group: vec![GroupKey { column: 4, form: KeyForm::Image }],
        aggregates: aggregates(2),
    };
    let region_positive = Expr::Call {
        kernel: Kernel::Compare(Order::Int, Comparison::Gt),
        args: vec![Expr::Column(4), Expr::Literal(ints(&[Some(0)]))],
    };
    vec![
        (1, Rel::Filter { input: source(ORDERS, &[1, 2, 3]), predicate: greater }),
        (2, by_region),
        (3, join(JoinKind::Left, None)),
        (4, join(JoinKind::Left, Some(region_positive))),
        (5, Rel::Aggregate { input: source(ORDERS, &[3]), group: vec![], aggregates: aggregates(0) }),
        (6, Rel::Distinct { input: source(ORDERS, &[2]), keys: vec![KeyForm::Image] }),
        // Over view 2.
        (7, Rel::StreamTable { view: 2, columns: vec![0, 2] }),
    ]
}

type Orders = BTreeMap<i64, (Option<i64>, i64)>;
type Customers = BTreeMap<i64, Option<i64>>;

fn expected(view: i64, orders: &Orders, customers: &Customers) -> BTreeMap<Row, i64> {
    let mut rows = BTreeMap::new();
    let mut add = |row: Row| *rows.entry(row).or_insert(0) += 1;
    let stats = |amounts: &[i64]| {
        [
            Some(amounts.len() as i64),
            (!amounts.is_empty()).then(|| amounts.iter().sum()),
            amounts.iter().min().copied(),
            amounts.iter().max().copied(),
        ]
    };
    match view {
        1 => orders
            .iter()
            .filter(|(_, o)| o.1 > 50)
            .for_each(|(id, o)| add(ints(&[Some(*id), o.0, Some(o.1)]))),
        2 | 7 => {
            let mut regions: BTreeMap<Option<i64>, Vec<i64>> = BTreeMap::new();
            for (customer, amount) in orders.values() {
                if let Some(region) = customer.and_then(|c| customers.get(&c)) {
                    regions.entry(*region).or_default().push(*amount);
                }
            }
            for (region, amounts) in regions {
                let s = stats(&amounts);
                add(if view == 7 { ints(&[region, s[1]]) } else { ints(&[region, s[0], s[1], s[2], s[3]]) });
            }
        }
        3 | 4 => {
            for (id, (customer, amount)) in orders {
                let region = customer.and_then(|c| customers.get(&c).map(|r| (c, *r)));
                let region = region.filter(|(_, r)| view == 3 || r.is_some_and(|r| r > 0));
                add(ints(&[
                    Some(*id),
                    *customer,
                    Some(*amount),
                    region.map(|r| r.0),
                    region.and_then(|r| r.1),
                ]));
            }
        }
        5 => add(ints(&stats(&orders.values().map(|o| o.1).collect::<Vec<_>>()))),
        _ => {
            let mut keys: Vec<_> = orders.values().map(|o| o.0).collect();
            keys.sort();
            keys.dedup();
            keys.into_iter().for_each(|k| add(ints(&[k])));
        }
    }
    rows
}

fn random(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) % below
}

/// Connections between so many processes, all of which are this one.
pub(super) fn meshes(processes: usize) -> Vec<Mesh> {
    let empty = |process| Mesh { process, peers: (0..processes).map(|_| None).collect() };
    let mut meshes: Vec<Mesh> = (0..processes).map(empty).collect();
    for low in 0..processes {
        for high in low + 1..processes {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let here = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            meshes[low].peers[high] = Some(here);
            meshes[high].peers[low] = Some(listener.accept().unwrap().0);
        }
    }
    meshes
}

/// Starts the engine with so many workers in each of so many processes; the first is process 0.
pub(super) fn start(workers: usize, processes: usize) -> (Dataflow, Vec<Dataflow>) {
    let options = DataflowOptions { workers, memory_limit: 1 << 40 };
    if processes == 1 {
        return (Dataflow::start(options, None).unwrap().0, Vec::new());
    }
    let mut all = meshes(processes).into_iter().map(|mesh| Dataflow::start(options, Some(mesh)).unwrap().0);
    (all.next().unwrap(), all.collect())
}

async fn run(workers: usize, processes: usize) {
    let (mut flow, members) = start(workers, processes);
    let bindings: Bindings = [
        (ORDERS, Binding { instance: 1, attributes: vec![1, 2, 3] }),
        (CUSTOMERS, Binding { instance: 2, attributes: vec![1, 2] }),
    ]
    .into();
    flow.send(Command::AddSource { instance: 1, identity: 1 }).unwrap();
    flow.send(Command::AddSource { instance: 2, identity: 1 }).unwrap();
    let (mut orders, mut customers) = (Orders::new(), Customers::new());
    let mut held: HashMap<i64, BTreeMap<Row, i64>> = HashMap::new();
    let mut seed = 7;
    let mut plans = views();
    for epoch in 1..=60u64 {
        // Views come one by one, while data flows; the second of them is dropped and installed again.
        if epoch % 5 == 1 && !plans.is_empty() {
            let (view, rel) = plans.remove(0);
            flow.send(Command::AddView {
                view,
                rel: Arc::new(rel),
                bindings: bindings.clone(),
                limits: MUCH,
            })
            .unwrap();
            held.insert(view, BTreeMap::new());
        }
        if epoch == 45 {
            flow.send(Command::DropView { view: 3 }).unwrap();
            held.remove(&3);
            let (view, rel) = views().remove(2);
            flow.send(Command::AddView {
                view,
                rel: Arc::new(rel),
                bindings: bindings.clone(),
                limits: MUCH,
            })
            .unwrap();
            held.insert(3, BTreeMap::new());
        }
        let (mut order_changes, mut customer_changes) = (Vec::new(), Vec::new());
        for _ in 0..random(&mut seed, 40) {
            let id = random(&mut seed, 50) as i64;
            let row = |o: &(Option<i64>, i64)| ints(&[Some(id), o.0, Some(o.1)]);
            let customer = Some(random(&mut seed, 9) as i64).filter(|c| *c > 0);
            let order = (customer, random(&mut seed, 100) as i64);
            match (orders.contains_key(&id), random(&mut seed, 3)) {
                (true, 0) => {
                    orders.remove(&id);
                    order_changes.push(RowChange::Delete(ints(&[Some(id)])));
                }
                (true, _) => {
                    order_changes.push(RowChange::Update { old: None, new: row(&order), unchanged: vec![] });
                    orders.insert(id, order);
                }
                (false, _) => {
                    order_changes.push(RowChange::Insert(row(&order)));
                    orders.insert(id, order);
                }
            }
        }
        for _ in 0..random(&mut seed, 4) {
            let id = 1 + random(&mut seed, 8) as i64;
            let region = Some(random(&mut seed, 4) as i64).filter(|r| *r != 3);
            let new = ints(&[Some(id), region]);
            let change = match customers.insert(id, region) {
                Some(_) => RowChange::Update { old: None, new, unchanged: vec![] },
                None => RowChange::Insert(new),
            };
            customer_changes.push(change);
        }
        flow.send(Command::Step { epoch, changes: vec![(1, order_changes), (2, customer_changes)] }).unwrap();
        let result = flow.next().await.unwrap();
        assert_eq!((result.epoch, &result.faults), (epoch, &vec![]));
        for delta in result.deltas {
            let table = held.get_mut(&delta.view).unwrap();
            for (row, diff) in delta.rows {
                let n = table.entry(row.clone()).or_insert(0);
                *n += diff;
                if *n == 0 {
                    table.remove(&row);
                }
            }
        }
        for (view, table) in &held {
            assert_eq!(
                table,
                &expected(*view, &orders, &customers),
                "view {view}, epoch {epoch}, {workers} workers in {processes} processes"
            );
        }
    }
    // Everybody holds a part: nothing of it is in one place alone.
    let held: u64 = orders.len() as u64 + customers.len() as u64;
    let own: Vec<u64> = members.iter().chain([&flow]).map(|f| f.port().report().sources.rows).collect();
    assert_eq!(own.iter().sum::<u64>(), held, "{own:?}");
    assert!(own.iter().all(|rows| *rows > 0), "{own:?}");
}

#[tokio::test]
async fn views_equal_recomputation_at_every_epoch_with_one_worker() {
    run(1, 1).await;
}

#[tokio::test]
async fn views_equal_recomputation_at_every_epoch_with_two_workers() {
    run(2, 1).await;
}

#[tokio::test]
async fn views_equal_recomputation_at_every_epoch_in_three_processes() {
    run(1, 3).await;
}

#[tokio::test]
async fn views_equal_recomputation_at_every_epoch_with_four_workers_in_two_processes() {
    run(2, 2).await;
}

/// Rows with a long value that are given other keys without it, over and over, also in a circle within one epoch.
async fn moves(workers: usize, processes: usize) {
    let (mut flow, _members) = start(workers, processes);
    let bindings: Bindings = [(ORDERS, Binding { instance: 1, attributes: vec![1, 2] })].into();
    flow.send(Command::AddSource { instance: 1, identity: 1 }).unwrap();
    let rel = Arc::new(*source(ORDERS, &[1, 2]));
    flow.send(Command::AddView { view: 1, rel, bindings, limits: MUCH }).unwrap();
    let row = |key: i64, value: i64| Row::from_datums([Datum::Int(key), Datum::Int(value)]);
    const ROWS: i64 = 40;
    flow.send(Command::Load { instance: 1, rows: (0..ROWS).map(|k| row(k, 1000 + k)).collect() }).unwrap();
    let mut held: BTreeMap<i64, i64> = (0..ROWS).map(|k| (k, 1000 + k)).collect();
    let mut shown: BTreeMap<Row, i64> = BTreeMap::new();
    let mut seed = 11;
    for epoch in 1..=40u64 {
        let mut changes = Vec::new();
        for _ in 0..random(&mut seed, 60) {
            let (from, to) = (random(&mut seed, 60) as i64, random(&mut seed, 60) as i64);
            if from == to || held.contains_key(&to) {
                continue;
            }
            let Some(value) = held.remove(&from) else { continue };
            held.insert(to, value);
            let old = Some(Row::from_datums([Datum::Int(from)]));
            let new = Row::from_datums([Datum::Int(to), Datum::Null]);
            changes.push(RowChange::Update { old, new, unchanged: vec![1] });
        }
        flow.send(Command::Step { epoch, changes: vec![(1, changes)] }).unwrap();
        let result = flow.next().await.unwrap();
        assert_eq!((result.epoch, &result.faults), (epoch, &vec![]));
        for (row, diff) in result.deltas.into_iter().flat_map(|d| d.rows) {
            *shown.entry(row).or_insert(0) += diff;
        }
        shown.retain(|_, n| *n != 0);
        let want: BTreeMap<Row, i64> = held.iter().map(|(k, v)| (row(*k, *v), 1)).collect();
        assert_eq!(shown, want, "epoch {epoch}");
    }
    // A contradiction is told whichever worker meets it, before anything of its epoch can be written.
    let old = Some(Row::from_datums([Datum::Int(7777)]));
    let lost = RowChange::Update { old, new: row(8888, 0), unchanged: vec![1] };
    let gone = (9000..9020).map(|k| RowChange::Delete(Row::from_datums([Datum::Int(k)])));
    let changes = std::iter::once(lost).chain(gone).collect();
    flow.send(Command::Step { epoch: 41, changes: vec![(1, changes)] }).unwrap();
    assert!(!flow.next().await.unwrap().faults.is_empty());
}

#[tokio::test]
async fn rows_move_between_workers_with_the_values_that_were_not_sent() {
    for (workers, processes) in [(1, 1), (3, 1), (1, 3), (2, 2)] {
        moves(workers, processes).await;
    }
}

#[tokio::test]
async fn when_one_process_ends_the_others_end_with_a_cause_and_complete_nothing() {
    let (mut flow, mut members) = start(1, 3);
    flow.send(Command::AddSource { instance: 1, identity: 1 }).unwrap();
    flow.send(Command::Step { epoch: 1, changes: Vec::new() }).unwrap();
    assert_eq!(flow.next().await.unwrap().epoch, 1);
    drop(members.remove(1));
    flow.send(Command::Step { epoch: 2, changes: Vec::new() }).ok();
    let error = loop {
        // What the process had still done before it ended may be complete.
        match tokio::time::timeout(std::time::Duration::from_secs(20), flow.next()).await.unwrap() {
            Ok(result) => assert_eq!(result.epoch, 2),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), crate::error::ErrorKind::Cluster, "{error}");
    // Process 1 has lost process 2 as well, and may be the first that is seen to have ended for it.
    assert!(error.context().contains("process 2") || error.context().contains("process 1"), "{error}");
    members[0].port().ending().ended().await;
}

#[tokio::test]
async fn a_load_waits_until_the_workers_have_taken_in_what_was_sent_and_then_goes_on() {
    const CHUNKS: i64 = 100;
    const ROWS: i64 = 200;
    let text = vec![b'x'; 100];
    for (workers, processes) in [(1, 1), (3, 1), (1, 3), (2, 2)] {
        let (mut flow, _members) = start(workers, processes);
        flow.send(Command::AddSource { instance: 1, identity: 1 }).unwrap();
        let (loader, credit) = (flow.loader().unwrap(), flow.credit());
        let chunk = |n: i64| -> Vec<Row> {
            (n * ROWS..(n + 1) * ROWS)
                .map(|id| Row::from_datums([Datum::Int(id), Datum::Text(&text)]))
                .collect()
        };
        let load = async {
            for n in 0..CHUNKS {
                loader.load(1, chunk(n)).await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), load)
            .await
            .expect("nobody takes the rows in");
        let rel = Arc::new(*source(ORDERS, &[1]));
        let bindings: Bindings = [(ORDERS, Binding { instance: 1, attributes: vec![1, 2] })].into();
        flow.send(Command::AddView { view: 1, rel, bindings, limits: MUCH }).unwrap();
        flow.send(Command::Step { epoch: 1, changes: Vec::new() }).unwrap();
        let result = flow.next().await.unwrap();
        assert_eq!(
            result.deltas[0].rows.len() as i64,
            CHUNKS * ROWS,
            "{workers} workers, {processes} processes"
        );
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while credit.used() > 0 {
            assert!(std::time::Instant::now() < deadline, "{} bytes are still on their way", credit.used());
            tokio::task::yield_now().await;
        }
    }
}
