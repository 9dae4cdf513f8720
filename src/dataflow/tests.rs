//! The engine against recomputation: random changes into two sources, four views, one and two workers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::*;
use crate::plan::expr::{Comparison, Kernel, Order};
use crate::plan::{Aggregate, AggregateFunction, Expr, GroupKey, JoinKey, JoinKind, Rel};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row};

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

async fn run(workers: usize) {
    let (mut flow, _requests) = Dataflow::start(DataflowOptions { workers }).unwrap();
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
            flow.send(Command::AddView { view, rel: Arc::new(rel), bindings: bindings.clone() }).unwrap();
            held.insert(view, BTreeMap::new());
        }
        if epoch == 45 {
            flow.send(Command::DropView { view: 3 }).unwrap();
            held.remove(&3);
            let (view, rel) = views().remove(2);
            flow.send(Command::AddView { view, rel: Arc::new(rel), bindings: bindings.clone() }).unwrap();
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
                "view {view}, epoch {epoch}, {workers} workers"
            );
        }
    }
}

#[tokio::test]
async fn views_equal_recomputation_at_every_epoch_with_one_worker() {
    run(1).await;
}

#[tokio::test]
async fn views_equal_recomputation_at_every_epoch_with_two_workers() {
    run(2).await;
}
