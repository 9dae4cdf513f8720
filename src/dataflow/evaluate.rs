//! The operator that asks PostgreSQL: expressions without a native kernel, in batches, inside the dataflow (D3).
//!
//! Invariant: a result is computed once per distinct input row and remembered while the row is there; a retraction puts
//! out exactly what the insertion put out, whatever became of the function body in between (hazard A6). Epochs are
//! answered in order; while one waits, its capability holds back what is downstream and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use differential_dataflow::consolidation::consolidate;
use differential_dataflow::lattice::Lattice;
use differential_dataflow::{AsCollection, VecCollection};
use rustc_hash::FxHashMap;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;
use timely::progress::Timestamp;
use timely::scheduling::SyncActivator;
use tokio::sync::oneshot::{Receiver, Sender, channel};

use super::account::{Held, MAP_ENTRY, row_bytes};
use super::keyed::{Incomplete, route};
use crate::plan::{GroupBatch, RemoteBatch, ViewId};
use crate::row::{Datum, Row};

/// What operators ask; the answer goes back with [`EvaluationReply::send`].
pub enum EvaluationRequest {
    /// Expressions over rows.
    Rows {
        view: ViewId,
        batch: Arc<RemoteBatch>,
        /// The input columns of the batch, per distinct row.
        rows: Vec<Row>,
        /// One row of results per row, in the same order.
        reply: EvaluationReply<Vec<Row>>,
    },
    /// Expressions over groups.
    Groups {
        view: ViewId,
        batch: Arc<GroupBatch>,
        /// The input columns of the batch, per row of each group, in the order of positions.
        groups: Vec<Vec<Row>>,
        /// The rows of results of each group, in the same order; where answers belong to rows ([`crate::plan::GroupForm::Windows`])
        /// the first column is the row's position from 0. A failed group has one row of errors.
        reply: EvaluationReply<Vec<Vec<Row>>>,
    },
}

impl EvaluationRequest {
    /// The stream table that asks.
    pub fn view(&self) -> ViewId {
        match self {
            EvaluationRequest::Rows { view, .. } | EvaluationRequest::Groups { view, .. } => *view,
        }
    }
}

/// Where the results of one request go.
pub struct EvaluationReply<T>(To<T>);

enum To<T> {
    /// An operator of this process, and what wakes its worker.
    Operator(Sender<T>, SyncActivator),
    Elsewhere(Box<dyn FnOnce(T) + Send>),
}

impl<T: Send + 'static> EvaluationReply<T> {
    pub(super) fn new(sender: Sender<T>, activator: SyncActivator) -> EvaluationReply<T> {
        EvaluationReply(To::Operator(sender, activator))
    }

    /// A reply that goes somewhere else: to the process whose operator asked.
    pub fn to(receiver: impl FnOnce(T) + Send + 'static) -> EvaluationReply<T> {
        EvaluationReply(To::Elsewhere(Box::new(receiver)))
    }

    /// Hands the results to the operator and wakes its worker.
    pub fn send(self, results: T) {
        match self.0 {
            To::Operator(sender, activator) => {
                // A closed channel or worker means that the view is gone; nobody waits for the answer then.
                let _ = sender.send(results);
                let _ = activator.activate();
            }
            To::Elsewhere(receiver) => receiver(results),
        }
    }

    /// Ends when nobody waits for the answer any more, as far as this process knows.
    pub async fn unwanted(&mut self) {
        match &mut self.0 {
            To::Operator(sender, _) => sender.closed().await,
            To::Elsewhere(_) => std::future::pending().await,
        }
    }
}

/// How operators reach the evaluation service.
#[derive(Clone)]
pub(super) struct RequestSender {
    sender: tokio::sync::mpsc::UnboundedSender<EvaluationRequest>,
}

impl RequestSender {
    pub fn new(sender: tokio::sync::mpsc::UnboundedSender<EvaluationRequest>) -> RequestSender {
        RequestSender { sender }
    }

    /// Whether the service took the request.
    pub fn send(&self, request: EvaluationRequest) -> bool {
        self.sender.send(request).is_ok()
    }
}

/// What an Evaluate operator asks for each distinct input.
#[derive(Clone)]
pub(super) enum Work {
    /// One row of results.
    Row(Arc<RemoteBatch>),
    /// Any number of them.
    Set(Arc<GroupBatch>),
}

enum Answer {
    Row(Receiver<Vec<Row>>),
    Set(Receiver<Vec<Vec<Row>>>),
}

impl Work {
    fn columns(&self) -> Vec<usize> {
        match self {
            Work::Row(batch) => batch.inputs.iter().map(|i| i.column).collect(),
            Work::Set(batch) => batch.inputs.iter().map(|i| i.column).collect(),
        }
    }

    /// Sends the inputs to the service. `None`: it has ended.
    fn ask(
        &self,
        view: ViewId,
        inputs: Vec<Row>,
        requests: &RequestSender,
        activator: SyncActivator,
    ) -> Option<Answer> {
        match self {
            Work::Row(batch) => {
                let (sender, receiver) = channel();
                let reply = EvaluationReply::new(sender, activator);
                let request = EvaluationRequest::Rows { view, batch: batch.clone(), rows: inputs, reply };
                requests.send(request).then_some(Answer::Row(receiver))
            }
            Work::Set(batch) => {
                let (sender, receiver) = channel();
                let reply = EvaluationReply::new(sender, activator);
                let groups = inputs.into_iter().map(|row| vec![row]).collect();
                let request = EvaluationRequest::Groups { view, batch: batch.clone(), groups, reply };
                requests.send(request).then_some(Answer::Set(receiver))
            }
        }
    }

    /// An input with an error hands it on.
    fn failed(&self, input: &Row) -> Option<Row> {
        let Work::Set(batch) = self else { return None };
        let error = input.iter().find(Datum::is_error)?;
        Some(Row::from_datums(batch.exprs.iter().map(|_| error)))
    }
}

impl Answer {
    /// The results per input, if they are here.
    fn poll(&mut self) -> Option<Vec<Vec<Row>>> {
        match self {
            Answer::Row(receiver) => {
                receiver.try_recv().ok().map(|rows| rows.into_iter().map(|row| vec![row]).collect())
            }
            Answer::Set(receiver) => receiver.try_recv().ok(),
        }
    }
}

struct Remembered {
    results: Vec<Row>,
    count: i64,
}

/// Bytes of a remembered answer: its input, its results, and their places.
fn remembered_bytes(input: &Row, results: &[Row]) -> i64 {
    let results: i64 = results.iter().map(|row| 16 + row_bytes(row)).sum();
    MAP_ENTRY + row_bytes(input) + results
}

/// The answers of one worker.
struct Known {
    answers: FxHashMap<Row, Remembered>,
    held: Held,
}

impl Known {
    fn insert(&mut self, input: Row, results: Vec<Row>) {
        self.held.add(1, remembered_bytes(&input, &results));
        self.answers.insert(input, Remembered { results, count: 0 });
    }

    fn remove(&mut self, input: &Row) {
        if let Some(entry) = self.answers.remove(input) {
            self.held.add(-1, -remembered_bytes(input, &entry.results));
        }
    }
}

struct Waiting<T: Timestamp> {
    capability: Capability<T>,
    updates: Vec<(Row, i64)>,
    answer: Option<(Vec<Row>, Answer)>,
}

/// Appends the results of `work` to each row, as often as it has rows of results.
/// Inside a loop times are partially ordered: they are answered in the order of their pairs, which respects causes.
pub(super) fn evaluate<'s, T: Timestamp + Lattice>(
    input: VecCollection<'s, T, Row, i64>,
    view: ViewId,
    work: Work,
    requests: RequestSender,
    held: Held,
) -> VecCollection<'s, T, Row, i64> {
    let columns = work.columns();
    let pact = Exchange::new(|(row, _, _): &(Row, T, i64)| route(row));
    let scope = input.inner.scope();
    input
        .inner
        .unary_frontier::<CapacityContainerBuilder<Vec<(Row, T, i64)>>, _, _, _>(
            pact,
            "Evaluate",
            move |_, info| {
                let mut pending: Incomplete<Row, T> = BTreeMap::new();
                let mut queue: VecDeque<Waiting<T>> = VecDeque::new();
                let mut known = Known { answers: FxHashMap::default(), held };
                let activator = scope.worker().sync_activator_for(info.address.to_vec());
                move |(input, frontier), output| {
                    input.for_each_stamp(|capability, data| {
                        let updates = data.flat_map(|b| b.drain(..));
                        if capability.stamp().iter().next().is_none() {
                            return;
                        }
                        for (row, time, diff) in updates {
                            pending
                                .entry(time.clone())
                                .or_insert_with(|| {
                                    (capability.delayed(&time, output.output_index()), Vec::new())
                                })
                                .1
                                .push((row, diff));
                        }
                    });
                    while let Some(entry) = pending.first_entry() {
                        if frontier.less_equal(entry.key()) {
                            break;
                        }
                        let (capability, mut updates) = entry.remove();
                        consolidate(&mut updates);
                        queue.push_back(Waiting { capability, updates, answer: None });
                    }
                    while let Some(head) = queue.front_mut() {
                        if head.answer.is_none() {
                            let mut asked = head.ask(&columns, &known.answers);
                            asked.retain(|input| match work.failed(input) {
                                Some(error) => {
                                    known.insert(input.clone(), vec![error]);
                                    false
                                }
                                None => true,
                            });
                            if !asked.is_empty() {
                                let activator = activator.clone();
                                let Some(answer) = work.ask(view, asked.clone(), &requests, activator) else {
                                    return; // The pipeline is ending; the epoch never completes.
                                };
                                head.answer = Some((asked, answer));
                            }
                        }
                        if let Some((asked, answer)) = &mut head.answer {
                            let Some(results) = answer.poll() else { break };
                            for (input, results) in std::mem::take(asked).into_iter().zip(results) {
                                known.insert(input, results);
                            }
                        }
                        let Some(Waiting { capability, updates, .. }) = queue.pop_front() else { break };
                        let time = capability.time().clone();
                        let mut session = output.session(&capability);
                        let mut unused = Vec::new();
                        for (row, diff) in updates {
                            let input = row.project(&columns);
                            let Some(entry) = known.answers.get_mut(&input) else { continue };
                            entry.count += diff;
                            for results in &entry.results {
                                session.give((row.concat(results), time.clone(), diff));
                            }
                            if entry.count == 0 {
                                unused.push(input);
                            }
                        }
                        for input in unused {
                            if known.answers.get(&input).is_some_and(|entry| entry.count == 0) {
                                known.remove(&input);
                            }
                        }
                        known.held.settle();
                    }
                }
            },
        )
        .as_collection()
}

impl<T: Timestamp> Waiting<T> {
    /// Distinct inputs of this epoch without a remembered result.
    fn ask(&self, columns: &[usize], known: &FxHashMap<Row, Remembered>) -> Vec<Row> {
        let mut asked: Vec<Row> = self
            .updates
            .iter()
            .map(|(row, _)| row.project(columns))
            .filter(|input| !known.contains_key(input))
            .collect();
        asked.sort();
        asked.dedup();
        asked
    }
}
