//! Changes through the engine, without a server: 100 000 orders, 5 000 customers, one worker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgtrickle::dataflow::{
    Binding, Bindings, Command, Dataflow, DataflowOptions, EvaluationRequest, Limits, RowChange,
};
use pgtrickle::plan::expr::{Comparison, Kernel, Order};
use pgtrickle::plan::{Aggregate, AggregateFunction, Expr, GroupKey, JoinKey, JoinKind, Rel};
use pgtrickle::row::key::KeyForm;
use pgtrickle::row::{Datum, Row};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ORDERS: u32 = 100;
const CUSTOMERS: u32 = 200;
const HELD: i64 = 100_000;
const KEYS: i64 = 5_000;

/// orders(id, customer_id, amount, status); `turn` makes another amount.
fn order(id: i64, turn: i64) -> Row {
    let amount = format!("{}.{:02}", (id * 37 + turn) % 1000, turn % 100);
    let status: &[u8] = if id % 4 == 0 { b"open" } else { b"done" };
    let customer = 1 + (id * 7919) % KEYS;
    Row::from_datums([
        Datum::Int(id),
        Datum::Int(customer),
        Datum::Text(amount.as_bytes()),
        Datum::Text(status),
    ])
}

/// customers(id, name, region).
fn customer(id: i64) -> Row {
    let (name, region) = (format!("customer {id}"), format!("region {}", id % 25));
    Row::from_datums([Datum::Int(id), Datum::Text(name.as_bytes()), Datum::Text(region.as_bytes())])
}

fn source(source: u32, attributes: &[i16]) -> Box<Rel> {
    Box::new(Rel::Source { source, attributes: attributes.to_vec() })
}

fn sum_and_count(input: Rel, group: usize, amount: usize) -> Rel {
    let aggregate = |function, argument| Aggregate { function, argument, filter: None, distinct: None };
    Rel::Aggregate {
        input: Box::new(input),
        group: vec![GroupKey { column: group, form: KeyForm::Image }],
        aggregates: vec![
            aggregate(AggregateFunction::SumNumeric, Some(amount)),
            aggregate(AggregateFunction::CountStar, None),
        ],
    }
}

fn join(left: Box<Rel>, right: Box<Rel>, l: usize, r: usize) -> Rel {
    let on = vec![JoinKey { left: l, right: r, form: KeyForm::Image, nulls_match: false }];
    Rel::Join { kind: JoinKind::Inner, left, right, on, residual: None }
}

/// The plans of the workloads W1 to W3, as the analyzer makes them.
fn plans() -> [(&'static str, Rel); 3] {
    let open = Expr::Call {
        kernel: Kernel::Compare(Order::Bytes, Comparison::Eq),
        args: vec![Expr::Column(3), Expr::Literal(Row::from_datums([Datum::Text(b"open")]))],
    };
    let filtered = Rel::Filter { input: source(ORDERS, &[1, 2, 3, 4]), predicate: open };
    let columns = |list: &[usize]| list.iter().map(|c| Expr::Column(*c)).collect();
    [
        ("w1 sum per customer", sum_and_count(*source(ORDERS, &[2, 3]), 0, 1)),
        (
            "w2 join, sum per region",
            sum_and_count(join(source(ORDERS, &[2, 3]), source(CUSTOMERS, &[1, 3]), 0, 0), 3, 1),
        ),
        (
            "w3 filtered join",
            Rel::Project {
                input: Box::new(join(Box::new(filtered), source(CUSTOMERS, &[1, 2, 3]), 1, 0)),
                exprs: columns(&[0, 5, 6, 2]),
            },
        ),
    ]
}

struct Engine {
    flow: Dataflow,
    _requests: UnboundedReceiver<EvaluationRequest>,
    epoch: u64,
    turn: i64,
    next: i64,
}

impl Engine {
    fn new(runtime: &Runtime, rel: &Rel) -> Engine {
        let (flow, requests) =
            Dataflow::start(DataflowOptions { workers: 1, memory_limit: 1 << 40 }, None).unwrap();
        let bindings: Bindings = [
            (ORDERS, Binding { instance: 1, attributes: vec![1, 2, 3, 4] }),
            (CUSTOMERS, Binding { instance: 2, attributes: vec![1, 2, 3] }),
        ]
        .into();
        flow.send(Command::AddSource { instance: 1, identity: 1 }).unwrap();
        flow.send(Command::AddSource { instance: 2, identity: 1 }).unwrap();
        flow.send(Command::Load { instance: 1, rows: (1..=HELD).map(|i| order(i, 0)).collect() }).unwrap();
        flow.send(Command::Load { instance: 2, rows: (1..=KEYS).map(customer).collect() }).unwrap();
        let limits = Limits { bytes: 1 << 40, pairs: 1 << 40 };
        flow.send(Command::AddView { view: 1, rel: Arc::new(rel.clone()), bindings, limits }).unwrap();
        let mut engine = Engine { flow, _requests: requests, epoch: 0, turn: 0, next: 0 };
        runtime.block_on(engine.step(Vec::new()));
        engine
    }

    /// Updates of the next `count` orders.
    fn changes(&mut self, count: i64) -> Vec<RowChange> {
        self.turn += 1;
        (0..count)
            .map(|_| {
                self.next = self.next % HELD + 1;
                RowChange::Update { old: None, new: order(self.next, self.turn), unchanged: Vec::new() }
            })
            .collect()
    }

    async fn step(&mut self, changes: Vec<RowChange>) -> usize {
        self.epoch += 1;
        self.flow.send(Command::Step { epoch: self.epoch, changes: vec![(1, changes)] }).unwrap();
        let result = self.flow.next().await.unwrap();
        assert!(result.faults.is_empty());
        result.deltas.iter().map(|d| d.rows.len()).sum()
    }
}

fn steps(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (name, rel) in plans() {
        let engine = std::cell::RefCell::new(Engine::new(&runtime, &rel));
        let mut group = c.benchmark_group(name);
        for count in [1, 100, 10_000] {
            group.throughput(Throughput::Elements(count as u64));
            group.sample_size(if count > 1000 { 20 } else { 50 });
            group.bench_function(format!("{count} updates"), |b| {
                b.iter_batched(
                    || engine.borrow_mut().changes(count),
                    |changes| runtime.block_on(engine.borrow_mut().step(changes)),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

fn load(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut group = c.benchmark_group("load of 100 000 orders");
    group.throughput(Throughput::Elements(HELD as u64));
    group.sample_size(10);
    for (name, rel) in plans() {
        group.bench_function(name, |b| b.iter(|| Engine::new(&runtime, &rel)));
    }
    group.finish();
}

criterion_group!(benches, steps, load);
criterion_main!(benches);
