//! The operator that asks PostgreSQL: expressions without a native kernel, in batches, inside the dataflow (D3).
//!
//! Invariant: a result is computed once per distinct input row and remembered while the row is there; a retraction puts
//! out exactly what the insertion put out, whatever became of the function body in between (hazard A6). Epochs are
//! answered in order; while one waits, its capability holds back what is downstream and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};

use differential_dataflow::AsCollection;
use differential_dataflow::consolidation::consolidate;
use rustc_hash::FxHashMap;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;
use timely::scheduling::SyncActivator;

use super::keyed::{Incomplete, Rows, route};
use super::protocol::Epoch;
use crate::plan::{RemoteBatch, ViewId};
use crate::row::Row;

/// A batch of rows to evaluate; the answer goes back with [`EvaluationReply::send`].
pub struct EvaluationRequest {
    pub view: ViewId,
    pub batch: std::sync::Arc<RemoteBatch>,
    /// The input columns of the batch, per distinct row.
    pub rows: Vec<Row>,
    pub reply: EvaluationReply,
}

/// Where the results of one request go: one row of results per requested row, in the same order.
pub struct EvaluationReply {
    sender: Sender<Vec<Row>>,
    activator: SyncActivator,
}

impl EvaluationReply {
    /// Hands the results to the operator and wakes its worker.
    pub fn send(self, results: Vec<Row>) {
        // A closed channel or worker means that the view is gone; nobody waits for the answer then.
        let _ = self.sender.send(results);
        let _ = self.activator.activate();
    }
}

/// How operators reach the evaluation service.
pub(super) type RequestSender = tokio::sync::mpsc::UnboundedSender<EvaluationRequest>;

struct Remembered {
    results: Row,
    count: i64,
}

struct Waiting {
    capability: Capability<Epoch>,
    updates: Vec<(Row, i64)>,
    answer: Option<(Vec<Row>, Receiver<Vec<Row>>)>,
}

/// Appends the results of `batch` to each row.
pub(super) fn evaluate<'s>(
    input: Rows<'s>,
    view: ViewId,
    batch: RemoteBatch,
    requests: RequestSender,
) -> Rows<'s> {
    let batch = std::sync::Arc::new(batch);
    let columns: Vec<usize> = batch.inputs.iter().map(|i| i.column).collect();
    let pact = Exchange::new(|(row, _, _): &(Row, Epoch, i64)| route(row));
    let scope = input.inner.scope();
    input
        .inner
        .unary_frontier::<CapacityContainerBuilder<Vec<(Row, Epoch, i64)>>, _, _, _>(
            pact,
            "Evaluate",
            move |_, info| {
                let mut pending: Incomplete<Row> = BTreeMap::new();
                let mut queue: VecDeque<Waiting> = VecDeque::new();
                let mut known: FxHashMap<Row, Remembered> = FxHashMap::default();
                let activator = scope.worker().sync_activator_for(info.address.to_vec());
                move |(input, frontier), output| {
                    input.for_each_stamp(|capability, data| {
                        let updates = data.flat_map(|b| b.drain(..));
                        let Some(least) = capability.retain_least(output.output_index()) else { return };
                        for (row, time, diff) in updates {
                            pending
                                .entry(time)
                                .or_insert_with(|| (least.delayed(&time), Vec::new()))
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
                            let asked = head.ask(&columns, &known);
                            if !asked.is_empty() {
                                let (sender, receiver) = channel();
                                let reply = EvaluationReply { sender, activator: activator.clone() };
                                let (batch, rows) = (batch.clone(), asked.clone());
                                let request = EvaluationRequest { view, batch, rows, reply };
                                if requests.send(request).is_err() {
                                    return; // The pipeline is ending; the epoch never completes.
                                }
                                head.answer = Some((asked, receiver));
                            }
                        }
                        if let Some((asked, receiver)) = &mut head.answer {
                            let Ok(results) = receiver.try_recv() else { break };
                            for (input, results) in std::mem::take(asked).into_iter().zip(results) {
                                known.insert(input, Remembered { results, count: 0 });
                            }
                        }
                        let Some(Waiting { capability, updates, .. }) = queue.pop_front() else { break };
                        let time = *capability.time();
                        let mut session = output.session(&capability);
                        let mut unused = Vec::new();
                        for (row, diff) in updates {
                            let input = row.project(&columns);
                            let Some(entry) = known.get_mut(&input) else { continue };
                            entry.count += diff;
                            session.give((row.concat(&entry.results), time, diff));
                            if entry.count == 0 {
                                unused.push(input);
                            }
                        }
                        for input in unused {
                            if known.get(&input).is_some_and(|entry| entry.count == 0) {
                                known.remove(&input);
                            }
                        }
                    }
                }
            },
        )
        .as_collection()
}

impl Waiting {
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
