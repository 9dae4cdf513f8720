//! Limits of state: who passes one leaves in the middle of the step, the others go on, and what was held is given back.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::plan::expr::Order;
use crate::plan::{Aggregate, AggregateFunction, Expr, GroupKey, JoinKey, JoinKind, Rel, SetOpKind, SortKey};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row};

const MUCH: Limits = Limits { bytes: 1 << 40, pairs: 1 << 40 };
const ROWS: i64 = 600;

fn row(id: i64) -> Row {
    Row::from_datums([Datum::Int(id), Datum::Int(id % 10), Datum::Text(b"some text to weigh")])
}

fn source() -> Box<Rel> {
    Box::new(Rel::Source { source: 1, attributes: vec![1, 2, 3] })
}

fn part(attributes: &[i16]) -> Box<Rel> {
    Box::new(Rel::Source { source: 1, attributes: attributes.to_vec() })
}

fn join(kind: JoinKind, on: &[(usize, usize)]) -> Rel {
    let key = |&(left, right)| JoinKey { left, right, form: KeyForm::Image, nulls_match: false };
    Rel::Join { kind, left: source(), right: source(), on: on.iter().map(key).collect(), residual: None }
}

fn count(input: Box<Rel>, group: &[usize], function: AggregateFunction) -> Rel {
    let group = group.iter().map(|&column| GroupKey { column, form: KeyForm::Image }).collect();
    let aggregates = vec![Aggregate { function, argument: Some(0), filter: None, distinct: None }];
    Rel::Aggregate { input, group, aggregates }
}

struct Flow {
    flow: Dataflow,
    _requests: UnboundedReceiver<EvaluationRequest>,
    epoch: Epoch,
}

impl Flow {
    fn new(workers: usize, memory_limit: u64) -> Flow {
        let (flow, requests) = Dataflow::start(DataflowOptions { workers, memory_limit }, None).unwrap();
        flow.send(Command::AddSource { instance: 1, identity: 1 }).unwrap();
        flow.send(Command::Load { instance: 1, rows: (0..ROWS).map(row).collect() }).unwrap();
        Flow { flow, _requests: requests, epoch: 0 }
    }

    fn add(&self, view: i64, rel: Rel, limits: Limits) {
        let bindings: Bindings = [(1, Binding { instance: 1, attributes: vec![1, 2, 3] })].into();
        self.flow.send(Command::AddView { view, rel: Arc::new(rel), bindings, limits }).unwrap();
    }

    async fn step(&mut self, changes: Vec<RowChange>) -> EpochResult {
        self.epoch += 1;
        self.flow.send(Command::Step { epoch: self.epoch, changes: vec![(1, changes)] }).unwrap();
        let result = self.flow.next().await.unwrap();
        assert!(result.faults.is_empty(), "{:?}", result.faults);
        result
    }

    fn own(&self, view: i64) -> Option<Usage> {
        self.flow.usage().iter().find(|u| u.view == view).map(ViewUsage::own)
    }
}

fn rows_of(result: &EpochResult, view: i64) -> usize {
    result.deltas.iter().find(|d| d.view == view).map_or(0, |d| d.rows.len())
}

/// A cross join of all rows beside a view that must not notice.
async fn explosion(workers: usize, limits: Limits, memory_limit: u64) -> Excess {
    let mut flow = Flow::new(workers, memory_limit);
    flow.add(1, count(source(), &[1], AggregateFunction::CountStar), MUCH);
    flow.add(2, join(JoinKind::Inner, &[]), limits);
    flow.add(3, Rel::StreamTable { view: 2, columns: vec![0] }, MUCH);
    let result = flow.step(Vec::new()).await;
    let rows = (rows_of(&result, 1), rows_of(&result, 2), rows_of(&result, 3));
    assert_eq!(rows, (10, 0, 0), "{workers} workers, {limits:?}: {:?}", result.exceeded);
    let [exceeded] = &result.exceeded[..] else { panic!("{:?}", result.exceeded) };
    assert_eq!(exceeded.view, 2);
    let held = exceeded.usage.own();
    // All pairs would be 360 000 rows of 112 bytes and more.
    assert!(held.bytes < 30 << 20, "{held:?}");
    let result = flow.step(vec![RowChange::Delete(Row::from_datums([Datum::Int(5)]))]).await;
    assert_eq!((rows_of(&result, 1), result.exceeded.len()), (2, 0));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while flow.step(Vec::new()).await.stats.bytes >= 1 << 20 {
        assert!(std::time::Instant::now() < deadline, "what was held was not given back");
    }
    // It may come back, with a limit that suffices for another query.
    flow.flow.send(Command::DropView { view: 2 }).unwrap();
    flow.flow.send(Command::DropView { view: 3 }).unwrap();
    flow.add(2, join(JoinKind::Inner, &[(0, 0)]), limits);
    let result = flow.step(Vec::new()).await;
    assert_eq!((rows_of(&result, 2), result.exceeded.len()), (ROWS as usize - 1, 0));
    exceeded.excess
}

#[tokio::test]
async fn a_join_explosion_is_dropped_within_the_step_and_the_others_go_on() {
    for workers in [1, 2] {
        let limits = Limits { bytes: 2 << 20, ..MUCH };
        assert_eq!(explosion(workers, limits, 1 << 40).await, Excess::State { limit: 2 << 20 });
        let limits = Limits { pairs: 20_000, ..MUCH };
        assert_eq!(explosion(workers, limits, 1 << 40).await, Excess::Pairs { limit: 20_000 });
        let Excess::Total { limit, .. } = explosion(workers, MUCH, 3 << 20).await else { panic!() };
        assert_eq!(limit, 3 << 20);
    }
}

#[tokio::test]
async fn a_limit_that_is_lowered_is_looked_at_with_the_next_step() {
    let mut flow = Flow::new(1, 1 << 40);
    flow.add(1, count(source(), &[0], AggregateFunction::CountStar), MUCH);
    assert!(flow.step(Vec::new()).await.exceeded.is_empty());
    flow.flow.send(Command::SetLimits { view: 1, limits: Limits { bytes: 1000, ..MUCH } }).unwrap();
    let exceeded = flow.step(Vec::new()).await.exceeded;
    assert_eq!(exceeded.first().map(|e| (e.view, e.excess)), Some((1, Excess::State { limit: 1000 })));
}

#[tokio::test]
async fn every_operator_tells_what_it_holds_and_holds_nothing_once_its_input_is_empty() {
    let keys = || vec![KeyForm::Image; 3];
    let order = vec![SortKey { column: 0, order: Order::Int, descending: true, nulls_first: false }];
    let partition = vec![GroupKey { column: 1, form: KeyForm::Image }];
    let top = |limit| Rel::TopK {
        input: source(),
        partition: partition.clone(),
        order: order.clone(),
        offset: 0,
        limit: Some(limit),
        with_ties: false,
    };
    let except = Rel::SetOp {
        kind: SetOpKind::Except,
        all: true,
        left: source(),
        right: Box::new(top(1)),
        keys: keys(),
    };
    let cases: Vec<(&str, Rel, &str)> = vec![
        ("inner join", join(JoinKind::Inner, &[(0, 0)]), "answer"),
        ("left join", join(JoinKind::Left, &[(0, 0)]), "matched left rows"),
        ("full join", join(JoinKind::Full, &[(0, 0)]), "matched right rows"),
        ("semi join", join(JoinKind::Semi, &[(0, 1)]), "keys"),
        ("anti join", join(JoinKind::Anti, &[(0, 1)]), "keys"),
        ("count", count(part(&[1, 2]), &[1], AggregateFunction::CountStar), "groups"),
        ("min", count(part(&[1, 2]), &[1], AggregateFunction::Min(Order::Int)), "groups"),
        ("distinct", Rel::Distinct { input: part(&[2]), keys: vec![KeyForm::Image] }, "groups"),
        ("except", except, "rows"),
        ("top", top(3), "rows"),
    ];
    for (name, rel, role) in cases {
        for workers in [1, 2] {
            let mut flow = Flow::new(workers, 1 << 40);
            flow.add(1, rel.clone(), MUCH);
            flow.step(Vec::new()).await;
            let usage = flow.flow.usage().remove(0);
            let own: Vec<&PartUsage> = usage.parts.iter().filter(|p| !p.shared && p.role == role).collect();
            assert!(own.iter().any(|p| p.usage.rows > 0 && p.usage.bytes > 0), "{name}: {usage:?}");
            let shared: Vec<&PartUsage> = usage.parts.iter().filter(|p| p.shared).collect();
            assert!(shared.iter().all(|p| p.usage.rows == ROWS as u64), "{name}: {usage:?}");
            flow.step(vec![RowChange::Truncate]).await;
            // Arrangements drop what cancels out when they merge, with some steps' delay.
            for _ in 0..40 {
                flow.step(Vec::new()).await;
            }
            let left = flow.own(1).unwrap();
            assert_eq!(left, Usage::default(), "{name}: {:?}", flow.flow.usage());
            flow.flow.send(Command::DropView { view: 1 }).unwrap();
            // The second worker lets go when its turn comes.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            loop {
                let held = (flow.step(Vec::new()).await.stats.bytes, flow.own(1));
                if held == (0, None) {
                    break;
                }
                assert!(std::time::Instant::now() < deadline, "{name} still holds {held:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_process_that_has_not_heard_of_a_limit_does_not_take_what_was_cut_short_for_complete() {
    // All pairs have one key, so they are made in one of the processes: with some key in the one that does not lead.
    for key in 0..16 {
        let (mut flow, members) = super::tests::start(1, 2);
        let rows = (0..ROWS).map(|id| Row::from_datums([Datum::Int(id), Datum::Int(key), Datum::Text(b"")]));
        flow.send(Command::AddSource { instance: 1, identity: 1 }).unwrap();
        flow.send(Command::Load { instance: 1, rows: rows.collect() }).unwrap();
        let bindings: Bindings = [(1, Binding { instance: 1, attributes: vec![1, 2, 3] })].into();
        // Passed with the first pairs: nothing downstream holds the epoch open.
        let limits = Limits { pairs: 3, ..MUCH };
        let rel = Arc::new(join(JoinKind::Inner, &[(1, 1)]));
        flow.send(Command::AddView { view: 1, rel, bindings, limits }).unwrap();
        flow.send(Command::Step { epoch: 1, changes: Vec::new() }).unwrap();
        let (leader, member) = (flow.port(), members[0].port());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let (mut here, mut there) = (Vec::new(), Vec::new());
        while here.is_empty() && there.is_empty() {
            (here, there) = (leader.marks(), member.marks());
            assert!(std::time::Instant::now() < deadline, "nobody passed the limit");
            tokio::task::yield_now().await;
        }
        if there.is_empty() {
            continue;
        }
        // Time for what must not happen: nothing else tells that it does not.
        let early = tokio::time::timeout(std::time::Duration::from_millis(500), flow.next()).await;
        assert!(early.is_err(), "{early:?}");
        there.iter().for_each(|mark| leader.mark(*mark));
        let result = flow.next().await.unwrap();
        assert_eq!((result.epoch, rows_of(&result, 1)), (1, 0));
        assert_eq!(result.exceeded.first().map(|e| e.excess), Some(Excess::Pairs { limit: 3 }));
        flow.send(Command::Step { epoch: 2, changes: Vec::new() }).unwrap();
        assert_eq!(flow.next().await.unwrap().epoch, 2);
        return;
    }
    panic!("all keys belong to the process that leads");
}

const MANY: i64 = 20_000;

/// An engine with many rows; adds `rel` beside a view that must not notice, and returns why it was dropped.
async fn filled(workers: usize, rel: Rel, limits: Limits, memory_limit: u64) -> (Flow, Exceeded) {
    let mut flow = Flow::new(workers, memory_limit);
    flow.flow.send(Command::Load { instance: 1, rows: (ROWS..MANY).map(row).collect() }).unwrap();
    flow.add(1, count(part(&[2]), &[0], AggregateFunction::CountStar), MUCH);
    assert_eq!(rows_of(&flow.step(Vec::new()).await, 1), 10);
    flow.add(2, rel, limits);
    let mut result = flow.step(vec![RowChange::Delete(Row::from_datums([Datum::Int(5)]))]).await;
    assert_eq!((rows_of(&result, 1), rows_of(&result, 2), result.exceeded.len()), (2, 0, 1));
    let exceeded = result.exceeded.remove(0);
    assert_eq!(exceeded.view, 2);
    (flow, exceeded)
}

#[tokio::test]
async fn a_view_that_passes_its_limit_is_not_fed_any_further() {
    for workers in [1, 2] {
        let limits = Limits { bytes: 100_000, ..MUCH };
        let (mut flow, exceeded) = filled(workers, *source(), limits, 1 << 40).await;
        assert_eq!(exceeded.excess, Excess::State { limit: 100_000 });
        assert!(exceeded.usage.own().rows > 0, "{workers} workers: {exceeded:?}");
        // With a limit that suffices it is fed in full.
        flow.add(3, *source(), MUCH);
        let result = flow.step(Vec::new()).await;
        assert_eq!((rows_of(&result, 3), result.exceeded.len()), (MANY as usize - 1, 0));
        // The total that is told is that of the moment at which it was stopped.
        let memory_limit = flow.step(Vec::new()).await.stats.bytes - MANY as u64 * 40;
        let (_, exceeded) = filled(workers, *source(), MUCH, memory_limit).await;
        let Excess::Total { held, limit } = exceeded.excess else { panic!("{exceeded:?}") };
        assert!(held < limit + MANY as u64 * 20, "{workers} workers: {held} of {limit}");
    }
}

#[tokio::test]
async fn an_arrangement_that_is_too_much_for_all_ends_the_view_it_is_made_for_and_any_other_that_shares_it() {
    for workers in [1, 2] {
        let before = {
            let mut flow = Flow::new(workers, 1 << 40);
            flow.flow.send(Command::Load { instance: 1, rows: (ROWS..MANY).map(row).collect() }).unwrap();
            flow.step(Vec::new()).await.stats.bytes
        };
        // An entry per row would be more than twice as much.
        let memory_limit = before + MANY as u64 * 40;
        let mut flow = Flow::new(workers, memory_limit);
        flow.flow.send(Command::Load { instance: 1, rows: (ROWS..MANY).map(row).collect() }).unwrap();
        flow.step(Vec::new()).await;
        let joined = |column| {
            let right = Box::new(Rel::Project { input: source(), exprs: vec![Expr::Column(column)] });
            let on = vec![JoinKey { left: 0, right: 0, form: KeyForm::Image, nulls_match: false }];
            Rel::Join { kind: JoinKind::Inner, left: part(&[1]), right, on, residual: None }
        };
        flow.add(2, joined(0), MUCH);
        flow.add(3, joined(1), MUCH);
        let result = flow.step(Vec::new()).await;
        let gone: Vec<i64> = result.exceeded.iter().map(|e| e.view).collect();
        assert_eq!((gone, rows_of(&result, 2), rows_of(&result, 3)), (vec![2, 3], 0, 0), "{workers} workers");
        for exceeded in &result.exceeded {
            let Excess::Total { held, limit } = exceeded.excess else { panic!("{exceeded:?}") };
            assert!(
                limit == memory_limit && held < limit + MANY as u64 * 60,
                "{workers} workers: {held} of {limit}"
            );
        }
        // What was fed in part is gone with them.
        flow.flow.send(Command::DropView { view: 2 }).unwrap();
        flow.flow.send(Command::DropView { view: 3 }).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while flow.step(Vec::new()).await.stats.bytes > before {
            assert!(std::time::Instant::now() < deadline, "what was held was not given back");
        }
        flow.add(4, count(part(&[2]), &[0], AggregateFunction::CountStar), MUCH);
        assert_eq!(rows_of(&flow.step(Vec::new()).await, 4), 10);
    }
}
