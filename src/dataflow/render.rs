//! From plan operators to dataflow operators.
//!
//! Each operator becomes a collection of rows and a list of collections of failures: rows of one error datum, put out
//! by filters and joins that could not decide (hazard B1). Errors inside a row travel with it.

use std::collections::BTreeMap;

use differential_dataflow::input::InputSession;
use timely::dataflow::Scope;

use super::aggregate;
use super::arrangement::{
    ArrangementKey, Button, KeyColumns, RowArrangement, SetTrace, SharedArrangements, arrange, join_key,
    positions,
};
use super::evaluate::{RequestSender, evaluate};
use super::join;
use super::keyed::Rows;
use super::native::Native;
use super::protocol::{Bindings, Epoch, InstanceId};
use crate::error::{Error, Result};
use crate::plan::{JoinKey, JoinKind, Rel, ViewId};
use crate::row::{Datum, Row};

/// A rendered operator.
pub(super) struct Rendered<'s> {
    pub rows: Rows<'s>,
    pub failures: Vec<Rows<'s>>,
    /// No row of it can hold an error: whoever reads it need not look for one.
    pub sound: bool,
}

impl<'s> Rendered<'s> {
    fn sound(rows: Rows<'s>) -> Rendered<'s> {
        Rendered { rows, failures: Vec::new(), sound: true }
    }

    /// The operator `f` over the rows; `safe`: it raises no errors of its own.
    fn map(self, safe: bool, f: impl FnOnce(Rows<'s>) -> Rows<'s>) -> Rendered<'s> {
        Rendered { rows: f(self.rows), failures: self.failures, sound: self.sound && safe }
    }
}

/// What rendering needs and fills.
pub(super) struct Context<'a, 's> {
    pub scope: Scope<'s, Epoch>,
    pub view: ViewId,
    /// The open epoch: what is loaded now carries this time.
    pub now: Epoch,
    pub bindings: &'a Bindings,
    pub shared: &'a mut SharedArrangements,
    pub upstreams: &'a mut BTreeMap<ViewId, SetTrace>,
    pub requests: &'a RequestSender,
    /// Inputs of this view that are fed with a source's deltas directly.
    pub inputs: BTreeMap<InstanceId, (InputSession<Epoch, Row, i64>, Rows<'s>)>,
    pub buttons: Vec<Button>,
    /// Rows of constants, to be inserted once by worker 0.
    pub constants: Vec<(InputSession<Epoch, Row, i64>, Vec<Row>)>,
}

/// The keys of shared arrangements that a plan joins on.
pub(super) fn shared_keys(rel: &Rel, bindings: &Bindings, out: &mut Vec<ArrangementKey>) {
    match rel {
        Rel::Join { kind, left, right, on, .. } => {
            let (l, r) = key_columns(on);
            // The left side of a left join is also needed as a plain collection: it arranges its own.
            if *kind == JoinKind::Inner {
                out.extend(ArrangementKey::of(left, &l, bindings));
            }
            out.extend(ArrangementKey::of(right, &r, bindings));
            shared_keys(left, bindings, out);
            shared_keys(right, bindings, out);
        }
        Rel::Filter { input, .. }
        | Rel::Project { input, .. }
        | Rel::Evaluate { input, .. }
        | Rel::Aggregate { input, .. }
        | Rel::Distinct { input, .. } => shared_keys(input, bindings, out),
        Rel::UnionAll { inputs } | Rel::Partitioned { leaves: inputs, .. } => {
            inputs.iter().for_each(|i| shared_keys(i, bindings, out));
        }
        Rel::Source { .. } | Rel::StreamTable { .. } | Rel::Constant { .. } => {}
    }
}

fn key_columns(on: &[JoinKey]) -> (KeyColumns, KeyColumns) {
    (on.iter().map(|k| (k.left, k.form)).collect(), on.iter().map(|k| (k.right, k.form)).collect())
}

/// Number of columns that an operator puts out.
fn width(rel: &Rel) -> usize {
    match rel {
        Rel::Source { attributes, .. } => attributes.len(),
        Rel::StreamTable { columns, .. } => columns.len(),
        Rel::Constant { rows } => rows.first().map_or(0, |r| r.iter().count()),
        Rel::Filter { input, .. } | Rel::Distinct { input, .. } => width(input),
        Rel::Project { exprs, .. } => exprs.len(),
        Rel::Evaluate { input, batch } => width(input) + batch.exprs.len(),
        Rel::Join { left, right, .. } => width(left) + width(right),
        Rel::Aggregate { group, aggregates, .. } => group.len() + aggregates.len(),
        Rel::UnionAll { inputs } => inputs.first().map_or(0, width),
        Rel::Partitioned { attributes, .. } => attributes.len(),
    }
}

pub(super) fn render<'s>(context: &mut Context<'_, 's>, rel: &Rel) -> Result<Rendered<'s>> {
    Ok(match rel {
        Rel::Source { source, attributes } => {
            let binding =
                context.bindings.get(source).ok_or_else(|| Error::internal("a source is not bound"))?;
            let held = binding.attributes.len();
            let columns = positions(attributes, binding);
            let rows = context.input(binding.instance);
            // What is held is handed on as it is where the query reads just that.
            let rows = match columns.iter().copied().eq(0..held) {
                true => rows,
                false => rows.map(move |row| row.project(&columns)),
            };
            Rendered::sound(rows)
        }
        Rel::StreamTable { view, columns } => {
            let trace = context
                .upstreams
                .get_mut(view)
                .ok_or_else(|| Error::internal("an upstream is not installed"))?;
            let (arranged, button) = trace.import_frontier(context.scope, "Upstream");
            context.buttons.push(button);
            let columns = columns.clone();
            let rows = arranged.as_collection(|row, &()| row.clone()).map(move |row| row.project(&columns));
            Rendered::sound(rows)
        }
        Rel::Constant { rows } => {
            let mut session = InputSession::new();
            session.advance_to(context.now);
            let collection = session.to_collection(context.scope);
            context.constants.push((session, rows.clone()));
            Rendered::sound(collection)
        }
        Rel::Filter { input, predicate } => filter(render(context, input)?, predicate.clone()),
        Rel::Project { input, exprs } => {
            let exprs = exprs.clone();
            let mut native = Native::default();
            let safe = exprs.iter().all(|e| e.is_infallible());
            render(context, input)?.map(safe, |rows| rows.map(move |row| native.project(&exprs, &row)))
        }
        Rel::Evaluate { input, batch } => {
            let requests = context.requests.clone();
            let view = context.view;
            render(context, input)?.map(false, |rows| evaluate(rows, view, batch.clone(), requests))
        }
        Rel::Join { kind, left, right, on, residual } => {
            render_join(context, *kind, left, right, on, residual.clone())?
        }
        Rel::Aggregate { input, group, aggregates } => {
            let (group, aggregates, first) = (group.clone(), aggregates.clone(), context.now);
            let owner = owns_empty_key(context.scope);
            let safe = aggregates.is_empty();
            render(context, input)?
                .map(safe, |rows| aggregate::aggregate(rows, group, aggregates, first, owner))
        }
        Rel::Distinct { input, keys } => {
            let (keys, first) = (keys.clone(), context.now);
            render(context, input)?.map(true, |rows| aggregate::distinct(rows, keys, first))
        }
        Rel::UnionAll { inputs } | Rel::Partitioned { leaves: inputs, .. } => {
            let mut all = inputs.iter().map(|i| render(context, i)).collect::<Result<Vec<_>>>()?.into_iter();
            let Some(first) = all.next() else {
                return render(context, &Rel::Constant { rows: Vec::new() });
            };
            all.fold(first, |sum, next| Rendered {
                rows: sum.rows.concat(next.rows),
                failures: sum.failures.into_iter().chain(next.failures).collect(),
                sound: sum.sound && next.sound,
            })
        }
    })
}

/// Whether this worker holds the group of the empty key (the one row of a global aggregate).
fn owns_empty_key(scope: Scope<'_, Epoch>) -> bool {
    super::keyed::route(&Row::empty()) % scope.peers() as u64 == scope.index() as u64
}

fn filter<'s>(input: Rendered<'s>, predicate: crate::plan::Expr) -> Rendered<'s> {
    let Rendered { rows, mut failures, sound } = input;
    // Also a predicate that can't fail itself may meet an error that an earlier projection left in the row.
    if !(sound && predicate.is_infallible()) {
        let (test, mut native) = (predicate.clone(), Native::default());
        failures.push(rows.clone().flat_map(move |row| {
            native.predicate(&test, &row).err().map(|error| Row::from_datums([Datum::Error(&error)]))
        }));
    }
    let mut native = Native::default();
    let rows = rows.filter(move |row| matches!(native.predicate(&predicate, row), Ok(true)));
    Rendered { rows, failures, sound }
}

fn render_join<'s>(
    context: &mut Context<'_, 's>,
    kind: JoinKind,
    left: &Rel,
    right: &Rel,
    on: &[JoinKey],
    residual: Option<crate::plan::Expr>,
) -> Result<Rendered<'s>> {
    let (left_keys, right_keys) = key_columns(on);
    let mut failures = Vec::new();
    match kind {
        JoinKind::Inner => {
            let (l, left_sound) = side(context, left, &left_keys, &mut failures)?;
            let (r, right_sound) = side(context, right, &right_keys, &mut failures)?;
            let joined = Rendered { rows: join::inner(l, r), failures, sound: left_sound && right_sound };
            Ok(match residual {
                None => joined,
                Some(predicate) => filter(joined, predicate),
            })
        }
        JoinKind::Left => {
            let l = render(context, left)?;
            failures.extend(l.failures);
            let arranged = arrange(l.rows.clone(), left_keys.clone());
            if !l.sound {
                failures.push(key_failures(l.rows.clone(), left_keys.clone()));
            }
            let (r, right_sound) = side(context, right, &right_keys, &mut failures)?;
            let (rows, errors) = join::left(l.rows, arranged, left_keys, r, width(right), residual);
            failures.extend(errors);
            Ok(Rendered { rows, failures, sound: l.sound && right_sound })
        }
    }
}

/// One side of a join by its keys: a shared arrangement where there is one. Also tells whether its rows are sound.
fn side<'s>(
    context: &mut Context<'_, 's>,
    rel: &Rel,
    keys: &KeyColumns,
    failures: &mut Vec<Rows<'s>>,
) -> Result<(RowArrangement<'s>, bool)> {
    let shared =
        ArrangementKey::of(rel, keys, context.bindings).and_then(|k| context.shared.by_key.get_mut(&k));
    if let Some(shared) = shared {
        let (arranged, button) = shared.import(context.scope);
        context.buttons.push(button);
        return Ok((arranged, true));
    }
    let rendered = render(context, rel)?;
    failures.extend(rendered.failures);
    if !rendered.sound {
        failures.push(key_failures(rendered.rows.clone(), keys.clone()));
    }
    Ok((arrange(rendered.rows, keys.clone()), rendered.sound))
}

fn key_failures<'s>(rows: Rows<'s>, keys: KeyColumns) -> Rows<'s> {
    rows.flat_map(move |row| match join_key(&row, &keys) {
        Some(Err(error)) => Some(error),
        _ => None,
    })
}

impl<'s> Context<'_, 's> {
    fn input(&mut self, instance: InstanceId) -> Rows<'s> {
        let (scope, now) = (self.scope, self.now);
        let (_, rows) = self.inputs.entry(instance).or_insert_with(|| {
            let mut session = InputSession::new();
            session.advance_to(now);
            let rows = session.to_collection(scope);
            (session, rows)
        });
        rows.clone()
    }
}
