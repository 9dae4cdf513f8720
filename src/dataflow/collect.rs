//! Groups that PostgreSQL computes: the rows of each group are kept, and when some change the whole group is computed
//! anew (D3).
//!
//! Invariant: after an epoch, what was put out for a group is what the service answered for the group's rows; the
//! difference to the answer before is the operator's output, so what was put out is always taken back exactly. Epochs
//! are answered in order; one that waits holds back what is downstream and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::oneshot::{Receiver, channel};

use differential_dataflow::AsCollection;
use differential_dataflow::consolidation::consolidate;
use rustc_hash::FxHashMap;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use super::account::{Held, MAP_ENTRY, row_bytes};
use super::evaluate::{EvaluationReply, EvaluationRequest, RequestSender};
use super::keyed::{Incomplete, KeyedRow, Rows, route};
use super::protocol::Epoch;
use crate::plan::{GroupBatch, GroupForm, GroupKey, ViewId};
use crate::row::{Datum, Row, RowBuilder};

/// Payload of a group with fewer than no copies of a row.
const NEGATIVE: &[u8] = b"XX000:a group has a negative number of rows";
/// Payload of an answer that does not fit its group.
const UNFIT: &[u8] = b"XX000:the computed rows are not those of the group";

#[derive(Default)]
struct Collected {
    rows: BTreeMap<Row, i64>,
    emitted: Vec<(Row, i64)>,
}

/// The groups of one worker.
struct Groups {
    keys: Vec<usize>,
    batch: Arc<GroupBatch>,
    columns: Vec<usize>,
    held: FxHashMap<Row, Collected>,
    counter: Held,
    /// The rows that come in are nobody else's.
    fresh: bool,
}

/// The updates of an epoch that has all of them.
type Complete = (Capability<Epoch>, Vec<(KeyedRow, i64)>);

/// The epoch that waits for its answer.
struct Asked {
    capability: Capability<Epoch>,
    /// Keys of the asked groups, in the order of the request.
    keys: Vec<Row>,
    answer: Receiver<Vec<Vec<Row>>>,
    /// What is known without asking.
    output: Vec<(Row, i64)>,
}

/// Renders [`crate::plan::Rel::Group`] except for sets. `first` is the epoch at which the operator starts; `owner`: this
/// worker holds the group of the empty key.
pub(super) fn group<'s>(
    input: Rows<'s>,
    view: ViewId,
    keys: Vec<GroupKey>,
    batch: GroupBatch,
    requests: RequestSender,
    (first, owner): (Epoch, bool),
    (counter, fresh): (Held, bool),
) -> Rows<'s> {
    let forms: Vec<_> = keys.iter().map(|k| (k.column, k.form)).collect();
    let spread = u64::from(batch.spread);
    let by_key = input.map(move |row| {
        let key = super::aggregate::group_key(&row, &forms);
        let part = i64::try_from(route(&row) % spread.max(1)).unwrap_or(0);
        (if spread > 1 { key.concat(&Row::from_datums([Datum::Int(part)])) } else { key }, row)
    });
    let speaks = batch.form == GroupForm::Global && owner;
    let columns = batch.inputs.iter().map(|i| i.column).collect();
    let keys = keys.iter().map(|k| k.column).collect();
    let batch = Arc::new(batch);
    let mut groups =
        Groups { keys, batch: batch.clone(), columns, held: FxHashMap::default(), counter, fresh };
    let pact = Exchange::new(|((key, _), _, _): &(KeyedRow, Epoch, i64)| route(key));
    let scope = by_key.inner.scope();
    by_key
        .inner
        .unary_frontier::<CapacityContainerBuilder<Vec<(Row, Epoch, i64)>>, _, _, _>(
            pact,
            "Group",
            move |capability, info| {
                let mut pending: Incomplete<KeyedRow> = BTreeMap::new();
                if speaks {
                    pending.insert(first, (capability.delayed(&first), Vec::new()));
                }
                drop(capability);
                let mut queue: VecDeque<Complete> = VecDeque::new();
                let mut waiting: Option<Asked> = None;
                let mut start = speaks;
                let activator = scope.worker().sync_activator_for(info.address.to_vec());
                move |(input, frontier), output| {
                    input.for_each_stamp(|capability, data| {
                        let updates = data.flat_map(|b| b.drain(..));
                        let Some(least) = capability.retain_least(output.output_index()) else { return };
                        for (row, time, diff) in updates {
                            let slot =
                                pending.entry(time).or_insert_with(|| (least.delayed(&time), Vec::new()));
                            slot.1.push((row, diff));
                        }
                    });
                    while let Some(entry) = pending.first_entry() {
                        if frontier.less_equal(entry.key()) {
                            break;
                        }
                        let (capability, mut updates) = entry.remove();
                        consolidate(&mut updates);
                        queue.push_back((capability, updates));
                    }
                    loop {
                        let mut asked = match waiting.take() {
                            Some(asked) => asked,
                            None => {
                                let Some((capability, updates)) = queue.pop_front() else { return };
                                let also = std::mem::take(&mut start).then(Row::empty);
                                let (keys, bags, output) = groups.change(updates, also);
                                let (sender, answer) = channel();
                                if keys.is_empty() {
                                    // Nothing to ask: answered by nobody.
                                    let _ = sender.send(Vec::new());
                                } else {
                                    let reply = EvaluationReply::new(sender, activator.clone());
                                    let batch = batch.clone();
                                    let request =
                                        EvaluationRequest::Groups { view, batch, groups: bags, reply };
                                    if !requests.send(request) {
                                        return; // The pipeline is ending; the epoch never completes.
                                    }
                                }
                                Asked { capability, keys, answer, output }
                            }
                        };
                        let answers = match asked.answer.try_recv() {
                            Ok(answers) => answers,
                            Err(TryRecvError::Empty) => {
                                waiting = Some(asked);
                                return;
                            }
                            // The service has ended: so does the pipeline, and the epoch never completes.
                            Err(TryRecvError::Closed) => {
                                waiting = Some(asked);
                                return;
                            }
                        };
                        let Asked { capability, keys, output: mut produced, .. } = asked;
                        for (key, answer) in keys.into_iter().zip(answers) {
                            groups.answered(key, answer, &mut produced);
                        }
                        groups.counter.settle();
                        let time = *capability.time();
                        let mut session = output.session(&capability);
                        session.give_iterator(produced.into_iter().map(|(row, diff)| (row, time, diff)));
                    }
                }
            },
        )
        .as_collection()
}

/// Keys and rows of the groups to ask for, and the output of those that need no asking.
type Change = (Vec<Row>, Vec<Vec<Row>>, Vec<(Row, i64)>);

impl Groups {
    /// Takes in an epoch's updates.
    fn change(&mut self, updates: Vec<(KeyedRow, i64)>, also: Option<Row>) -> Change {
        let mut touched: Vec<Row> = also.into_iter().collect();
        for ((key, row), diff) in updates {
            let bytes = MAP_ENTRY + if self.fresh { row_bytes(&row) } else { 0 };
            let group = self.held.entry(key.clone()).or_default();
            let count = group.rows.entry(row.clone()).or_insert(0);
            let (before, after) = (*count, *count + diff);
            *count = after;
            if before == 0 {
                self.counter.add(1, bytes);
            }
            if after == 0 {
                group.rows.remove(&row);
                self.counter.add(-1, -bytes);
            }
            touched.push(key);
        }
        touched.sort();
        touched.dedup();
        self.counter.settle();
        let (mut keys, mut bags, mut output) = (Vec::new(), Vec::new(), Vec::new());
        for key in touched {
            let group = self.held.entry(key.clone()).or_default();
            let global = self.batch.form == GroupForm::Global;
            let broken = group.rows.values().any(|c| *c < 0).then(|| NEGATIVE.to_vec());
            let broken = broken.or_else(|| {
                let mut inputs =
                    group.rows.keys().filter(|r| r.has_error()).map(|r| r.project(&self.columns));
                inputs.find_map(|r| match r.iter().find(Datum::is_error) {
                    Some(Datum::Error(payload)) => Some(payload.to_vec()),
                    _ => None,
                })
            });
            if group.rows.is_empty() && !global {
                self.replace(key, Vec::new(), &mut output);
            } else if let Some(payload) = broken {
                let rows = self.failed(&key, &payload);
                self.replace(key, rows, &mut output);
            } else {
                let columns = &self.columns;
                bags.push(expanded(&group.rows).map(|r| r.project(columns)).collect());
                keys.push(key);
            }
        }
        (keys, bags, output)
    }

    /// What a group puts out whose results are errors.
    fn failed(&self, key: &Row, payload: &[u8]) -> Vec<(Row, i64)> {
        let errors = Row::from_datums(self.batch.exprs.iter().map(|_| Datum::Error(payload)));
        let Some(group) = self.held.get(key) else { return Vec::new() };
        match self.batch.form {
            GroupForm::Windows => expanded(&group.rows).map(|r| (r.concat(&errors), 1)).collect(),
            _ => vec![(self.shown(group).concat(&errors), 1)],
        }
    }

    /// The key columns as the group shows them: those of its smallest image.
    fn shown(&self, group: &Collected) -> Row {
        let columns = &self.keys;
        group.rows.keys().map(|r| r.project(columns)).min().unwrap_or_else(Row::empty)
    }

    fn answered(&mut self, key: Row, answer: Vec<Row>, output: &mut Vec<(Row, i64)>) {
        let Some(group) = self.held.get(&key) else { return };
        let rows = match (self.batch.form, answer.as_slice()) {
            (GroupForm::Windows, answer) => {
                let members: Vec<&Row> = expanded(&group.rows).collect();
                let mut seen = vec![false; members.len()];
                let mut rows = Vec::with_capacity(members.len());
                for result in answer {
                    let Datum::Int(position) = result.get(0) else { break };
                    let Some(place) = usize::try_from(position).ok().filter(|p| *p < members.len()) else {
                        break;
                    };
                    if !std::mem::replace(&mut seen[place], true) {
                        let mut row = RowBuilder::default();
                        row.extend(members[place]);
                        result.iter().skip(1).for_each(|d| row.push(d));
                        rows.push((row.finish(), 1));
                    }
                }
                match rows.len() == members.len() {
                    true => rows,
                    false => self.failed(&key, error_of(answer).unwrap_or(UNFIT)),
                }
            }
            (_, [result]) => vec![(self.shown(group).concat(result), 1)],
            (_, answer) => self.failed(&key, error_of(answer).unwrap_or(UNFIT)),
        };
        self.replace(key, rows, output);
    }

    /// Puts out the difference to what the group gave before.
    fn replace(&mut self, key: Row, mut rows: Vec<(Row, i64)>, output: &mut Vec<(Row, i64)>) {
        consolidate(&mut rows);
        let Some(group) = self.held.get_mut(&key) else { return };
        let before = std::mem::replace(&mut group.emitted, rows.clone());
        let bytes = |rows: &[(Row, i64)]| rows.iter().map(|(r, _)| 24 + row_bytes(r)).sum::<i64>();
        self.counter.add(rows.len() as i64 - before.len() as i64, bytes(&rows) - bytes(&before));
        rows.extend(before.into_iter().map(|(row, diff)| (row, -diff)));
        consolidate(&mut rows);
        output.append(&mut rows);
        if group.rows.is_empty() && group.emitted.is_empty() {
            self.held.remove(&key);
        }
    }
}

/// The group's rows in the order of their images, each as often as it is there.
fn expanded(rows: &BTreeMap<Row, i64>) -> impl Iterator<Item = &Row> {
    rows.iter().flat_map(|(row, count)| std::iter::repeat_n(row, usize::try_from(*count).unwrap_or(0)))
}

/// The payload of an answer that is an error.
fn error_of(answer: &[Row]) -> Option<&[u8]> {
    answer.iter().flat_map(Row::iter).find_map(|d| match d {
        Datum::Error(payload) => Some(payload),
        _ => None,
    })
}
