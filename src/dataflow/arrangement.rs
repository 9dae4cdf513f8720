//! Arrangements: rows indexed by join key, shared between views where they stand on a source alone.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use differential_dataflow::input::InputSession;
use differential_dataflow::operators::arrange::{Arranged, ShutdownButton, TraceAgent};
use differential_dataflow::trace::TraceReader;
use differential_dataflow::trace::implementations::{KeySpine, ValSpine};
use differential_dataflow::trace::wrappers::frontier::TraceFrontier;
use timely::dataflow::operators::CapabilitySet;
use timely::progress::Antichain;

use super::account::{Accounts, KEYED_ENTRY, Part, row_bytes};
use super::keyed::{KeyedRow, Rows};
use super::ledger::Meter;
use super::measure::Ledgers;
use super::native::Native;
use super::protocol::{Binding, Bindings, Epoch, InstanceId};
use crate::plan::{Rel, SourceId};
use crate::row::key::KeyForm;
use crate::row::{Row, RowBuilder};

/// Rows by key.
pub(super) type RowTrace = TraceAgent<ValSpine<Row, Row, Epoch, i64>>;
/// A set of rows.
pub(super) type SetTrace = TraceAgent<KeySpine<Row, Epoch, i64>>;
pub(super) type Button = ShutdownButton<CapabilitySet<Epoch>>;

/// An arrangement of this dataflow, or one imported from another.
#[derive(Clone)]
pub(super) enum RowArrangement<'s> {
    Local(Arranged<'s, RowTrace>),
    Imported(Arranged<'s, TraceFrontier<RowTrace>>),
}

/// Columns and forms of a key, in order.
pub(super) type KeyColumns = Vec<(usize, KeyForm)>;

/// Columns and forms of a join key, in order; `true`: NULL is a value like others.
pub(super) type JoinColumns = Vec<(usize, KeyForm, bool)>;

/// The key of a row, or `None` if a part is NULL and matches nothing. An error in the key is the `Err` row.
pub(super) fn join_key(row: &Row, columns: &[(usize, KeyForm, bool)]) -> Option<Result<Row, Row>> {
    let datums = row.unpack();
    let mut key = RowBuilder::default();
    for &(column, form, nulls_match) in columns {
        let datum = datums.get(column).copied()?;
        if datum.is_null() && !nulls_match {
            return None;
        }
        if datum.is_error() {
            return Some(Err(Row::from_datums([datum])));
        }
        form.push(datum, &mut key);
    }
    Some(Ok(key.finish()))
}

/// What a shared arrangement holds: a chain of native operators over one source, by key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct ArrangementKey {
    rel: Rel,
    instance: InstanceId,
    columns: JoinColumns,
}

impl ArrangementKey {
    /// `Some` if `rel` stands on one source alone and can't fail, so that its arrangement can be shared.
    pub fn of(rel: &Rel, columns: &JoinColumns, bindings: &Bindings) -> Option<ArrangementKey> {
        let source = chain_source(rel)?;
        let instance = bindings.get(&source)?.instance;
        Some(ArrangementKey { rel: rel.clone(), instance, columns: columns.clone() })
    }
}

impl ArrangementKey {
    pub fn is_over(&self, instance: InstanceId) -> bool {
        self.instance == instance
    }

    /// The same on all workers, so that they count in one place.
    fn fingerprint(&self) -> u64 {
        let mut hasher = rustc_hash::FxHasher::default();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

fn chain_source(rel: &Rel) -> Option<SourceId> {
    match rel {
        Rel::Source { source, .. } => Some(*source),
        Rel::Filter { input, predicate } if predicate.is_infallible() => chain_source(input),
        Rel::Project { input, exprs } if exprs.iter().all(|e| e.is_infallible()) => chain_source(input),
        _ => None,
    }
}

/// Applies such a chain to one held row.
fn chain_row(rel: &Rel, binding: &Binding, held: &Row, native: &mut Native) -> Option<Row> {
    match rel {
        Rel::Source { attributes, .. } if *attributes == binding.attributes => Some(held.clone()),
        Rel::Source { attributes, .. } => Some(held.project(&positions(attributes, binding))),
        Rel::Filter { input, predicate } => {
            let row = chain_row(input, binding, held, native)?;
            matches!(native.predicate(predicate, &row), Ok(true)).then_some(row)
        }
        Rel::Project { input, exprs } => {
            let row = chain_row(input, binding, held, native)?;
            Some(native.project(exprs, &row))
        }
        _ => None,
    }
}

/// Positions of attributes in the held rows.
pub(super) fn positions(attributes: &[i16], binding: &Binding) -> Vec<usize> {
    let held = |a: &i16| binding.attributes.iter().position(|h| h == a).unwrap_or(usize::MAX);
    attributes.iter().map(held).collect()
}

/// A shared arrangement: its own small dataflow, fed with the deltas of one source.
pub(super) struct Shared {
    pub session: InputSession<Epoch, KeyedRow, i64>,
    trace: RowTrace,
    binding: Binding,
    rel: Rel,
    columns: JoinColumns,
    native: Native,
    pub users: usize,
    /// Not everything that its source held went in: nothing may be computed from it.
    pub partial: bool,
    meter: Meter,
    part: Arc<Part>,
    /// Its first operator in the ledger.
    start: usize,
}

impl Shared {
    /// Feeds one delta of the source.
    pub fn update(&mut self, held: &Row, diff: i64) {
        let Some(row) = chain_row(&self.rel, &self.binding, held, &mut self.native) else { return };
        if let Some(Ok(key)) = join_key(&row, &self.columns) {
            // What is handed on as it is held belongs to the source.
            let own = if row.as_bytes().as_ptr() == held.as_bytes().as_ptr() { 0 } else { row_bytes(&row) };
            self.meter.note(KEYED_ENTRY + row_bytes(&key) + own);
            self.session.update((key, row), diff);
        }
    }

    pub fn instance(&self) -> InstanceId {
        self.binding.instance
    }

    /// What it holds.
    pub fn part(&self) -> Arc<Part> {
        self.part.clone()
    }

    /// Lets the trace forget the difference between times before `epoch`.
    pub fn compact(&mut self, epoch: Epoch) {
        let frontier = Antichain::from_elem(epoch);
        self.trace.set_logical_compaction(frontier.borrow());
        self.trace.set_physical_compaction(frontier.borrow());
    }

    pub fn import<'s>(&mut self, scope: timely::dataflow::Scope<'s, Epoch>) -> (RowArrangement<'s>, Button) {
        let (arranged, button) = self.trace.import_frontier(scope, "SharedArrangement");
        (RowArrangement::Imported(arranged), button)
    }
}

/// The shared arrangements of one worker.
pub(super) struct SharedArrangements {
    pub by_key: HashMap<ArrangementKey, Shared>,
    accounts: Accounts,
    ledger: Ledgers,
}

impl SharedArrangements {
    pub fn new(accounts: Accounts, ledger: Ledgers) -> SharedArrangements {
        SharedArrangements { by_key: HashMap::new(), accounts, ledger }
    }

    /// Makes the arrangement if it is not there yet. Returns true if it is new and wants the source's current rows.
    pub fn ensure(
        &mut self,
        key: &ArrangementKey,
        binding: &Binding,
        now: Epoch,
        worker: &mut timely::worker::Worker,
    ) -> bool {
        if let Some(shared) = self.by_key.get_mut(key) {
            shared.users += 1;
            return false;
        }
        let mut session = InputSession::new();
        session.advance_to(now);
        let part = self.accounts.shared(key.fingerprint());
        let (meter, start) = (Meter::new(part.clone()), worker.peek_identifier());
        let trace = worker.dataflow_named::<Epoch, _, _>("Arrangement", |scope| {
            session.to_collection(scope).arrange_by_key_named("Arrange").trace
        });
        let charge = self.accounts.common(part.clone());
        self.ledger.borrow_mut().enter(start, worker.peek_identifier(), meter.clone(), charge);
        let shared = Shared {
            session,
            trace,
            binding: binding.clone(),
            rel: key.rel.clone(),
            columns: key.columns.clone(),
            native: Native::default(),
            users: 1,
            partial: false,
            meter,
            part,
            start,
        };
        self.by_key.insert(key.clone(), shared);
        true
    }

    /// Gives up one use; an unused arrangement ends.
    pub fn release(&mut self, key: &ArrangementKey) {
        if let Some(shared) = self.by_key.get_mut(key) {
            shared.users -= 1;
            if shared.users == 0 {
                self.ledger.borrow_mut().leave(&[shared.start]);
                self.by_key.remove(key);
            }
        }
    }
}

/// Arranges rows of this dataflow by `columns`; rows whose key matches nothing are left out. `fresh`: the rows are
/// nobody else's.
pub(super) fn arrange<'s>(
    rows: Rows<'s>,
    columns: JoinColumns,
    fresh: bool,
    meter: Meter,
) -> RowArrangement<'s> {
    let keyed = rows.flat_map(move |row| match join_key(&row, &columns) {
        Some(Ok(key)) => {
            meter.note(KEYED_ENTRY + row_bytes(&key) + if fresh { row_bytes(&row) } else { 0 });
            Some((key, row))
        }
        _ => None,
    });
    RowArrangement::Local(keyed.arrange_by_key_named("Arrange"))
}
