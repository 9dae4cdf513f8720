//! From plan operators to dataflow operators.
//!
//! Each operator becomes a collection of rows and a list of collections of failures: rows of one error datum, put out
//! by filters and joins that could not decide (hazard B1). Errors inside a row travel with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use differential_dataflow::input::InputSession;
use timely::dataflow::Scope;

use super::aggregate;
use super::arrangement::{
    ArrangementKey, Button, JoinColumns, RowArrangement, SetTrace, SharedArrangements, arrange, join_key,
    positions,
};
use super::collect;
use super::evaluate::{RequestSender, Work, evaluate};
use super::join;
use super::keyed::Rows;
use super::measure::Measure;
use super::native::Native;
use super::protocol::{Bindings, Epoch, InstanceId};
use super::recursive;
use super::setop::set_operation;
use super::topk::{self, Window};
use crate::error::{Error, Result};
use crate::plan::{Expr, GroupForm, JoinKey, JoinKind, Rel, ViewId, width};
use crate::row::{Datum, Row};

/// A rendered operator.
pub(super) struct Rendered<'s> {
    pub rows: Rows<'s>,
    pub failures: Vec<Rows<'s>>,
    /// No row of it can hold an error: whoever reads it need not look for one.
    pub sound: bool,
    /// Its rows are made anew: whoever keeps them is the only one. Else a source or an operator below holds them.
    pub fresh: bool,
}

impl<'s> Rendered<'s> {
    fn sound(rows: Rows<'s>, fresh: bool) -> Rendered<'s> {
        Rendered { rows, failures: Vec::new(), sound: true, fresh }
    }

    /// The operator `f` over the rows, which keeps what it puts out; `safe`: it raises no errors of its own.
    fn map(self, safe: bool, f: impl FnOnce(Rows<'s>) -> Rows<'s>) -> Rendered<'s> {
        Rendered { rows: f(self.rows), failures: self.failures, sound: self.sound && safe, fresh: false }
    }

    fn made_anew(self) -> Rendered<'s> {
        Rendered { fresh: true, ..self }
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
    pub memo: Memo<'s>,
    pub measure: &'a mut Measure,
}

/// Subtrees that the plan mentions several times are rendered once, and arranged once by each key.
pub(super) struct Memo<'s> {
    repeated: HashSet<Rel>,
    /// Rows, whether they are sound, whether they are fresh.
    rows: HashMap<Rel, (Rows<'s>, bool, bool)>,
    arranged: HashMap<(Rel, JoinColumns), RowArrangement<'s>>,
}

impl Memo<'_> {
    pub fn of(rel: &Rel) -> Self {
        let mut seen: HashMap<&Rel, bool> = HashMap::new();
        rel.walk(&mut |r| {
            seen.entry(r).and_modify(|again| *again = true).or_insert(false);
        });
        // A source has one input anyway.
        let worth = |r: &Rel| !matches!(r, Rel::Source { .. });
        let repeated = seen.into_iter().filter(|(r, again)| *again && worth(r)).map(|(r, _)| r.clone());
        Memo { repeated: repeated.collect(), rows: HashMap::new(), arranged: HashMap::new() }
    }
}

/// The keys of shared arrangements that a plan joins on.
pub(super) fn shared_keys(rel: &Rel, bindings: &Bindings, out: &mut Vec<ArrangementKey>) {
    match rel {
        Rel::Join { kind, left, right, on, residual } => {
            let (l, r) = key_columns(on);
            // A side whose unmatched rows are kept is also needed as a plain collection: it arranges its own.
            if matches!(kind, JoinKind::Inner | JoinKind::Semi) {
                out.extend(ArrangementKey::of(left, &l, bindings));
            }
            if *kind != JoinKind::Full && !only_keys(*kind, residual.as_ref()) {
                out.extend(ArrangementKey::of(right, &r, bindings));
            }
            shared_keys(left, bindings, out);
            shared_keys(right, bindings, out);
        }
        Rel::Filter { input, .. }
        | Rel::Project { input, .. }
        | Rel::Evaluate { input, .. }
        | Rel::Aggregate { input, .. }
        | Rel::Group { input, .. }
        | Rel::TopK { input, .. }
        | Rel::Distinct { input, .. } => shared_keys(input, bindings, out),
        Rel::SetOp { left, right, .. } => {
            shared_keys(left, bindings, out);
            shared_keys(right, bindings, out);
        }
        Rel::UnionAll { inputs } | Rel::Partitioned { leaves: inputs, .. } => {
            inputs.iter().for_each(|i| shared_keys(i, bindings, out));
        }
        Rel::Recursive { base, step, .. } => {
            shared_keys(base, bindings, out);
            shared_keys(step, bindings, out);
        }
        Rel::Source { .. }
        | Rel::StreamTable { .. }
        | Rel::Constant { .. }
        | Rel::RecursiveReference { .. } => {}
    }
}

/// Of the right side of such a join only the keys are needed.
fn only_keys(kind: JoinKind, residual: Option<&Expr>) -> bool {
    kind.is_left_only() && residual.is_none()
}

pub(super) fn key_columns(on: &[JoinKey]) -> (JoinColumns, JoinColumns) {
    let left = on.iter().map(|k| (k.left, k.form, k.nulls_match)).collect();
    (left, on.iter().map(|k| (k.right, k.form, k.nulls_match)).collect())
}

pub(super) fn render<'s>(context: &mut Context<'_, 's>, rel: &Rel) -> Result<Rendered<'s>> {
    if let Some((rows, sound, fresh)) = context.memo.rows.get(rel) {
        // Its failures are told where it was rendered.
        return Ok(Rendered { rows: rows.clone(), failures: Vec::new(), sound: *sound, fresh: *fresh });
    }
    let rendered = operator(context, rel)?;
    if context.memo.repeated.contains(rel) {
        let shown = (rendered.rows.clone(), rendered.sound, rendered.fresh);
        context.memo.rows.insert(rel.clone(), shown);
    }
    Ok(rendered)
}

fn operator<'s>(context: &mut Context<'_, 's>, rel: &Rel) -> Result<Rendered<'s>> {
    Ok(match rel {
        Rel::Source { source, attributes } => {
            let binding =
                context.bindings.get(source).ok_or_else(|| Error::internal("a source is not bound"))?;
            let held = binding.attributes.len();
            let columns = positions(attributes, binding);
            let rows = context.input(binding.instance);
            // What is held is handed on as it is where the query reads just that.
            match columns.iter().copied().eq(0..held) {
                true => Rendered::sound(rows, false),
                false => Rendered::sound(rows.map(move |row| row.project(&columns)), true),
            }
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
            Rendered::sound(rows, true)
        }
        Rel::Constant { rows } => {
            let mut session = InputSession::new();
            session.advance_to(context.now);
            let collection = session.to_collection(context.scope);
            context.constants.push((session, rows.clone()));
            Rendered::sound(collection, false)
        }
        Rel::Filter { input, predicate } => filter(render(context, input)?, predicate.clone()),
        Rel::Project { input, exprs } => {
            let exprs = exprs.clone();
            let mut native = Native::default();
            let safe = exprs.iter().all(|e| e.is_infallible());
            let input = render(context, input)?;
            input.map(safe, |rows| rows.map(move |row| native.project(&exprs, &row))).made_anew()
        }
        Rel::Evaluate { input, batch } => {
            let requests = context.requests.clone();
            let view = context.view;
            let work = Work::Row(Arc::new(batch.clone()));
            let held = context.measure.held(rel, "answers");
            render(context, input)?.map(false, |rows| evaluate(rows, view, work, requests, held)).made_anew()
        }
        Rel::Group { input, batch, .. } if batch.form == GroupForm::Sets => {
            let (requests, view) = (context.requests.clone(), context.view);
            let work = Work::Set(Arc::new(batch.clone()));
            let held = context.measure.held(rel, "answers");
            render(context, input)?.map(false, |rows| evaluate(rows, view, work, requests, held)).made_anew()
        }
        Rel::Group { input, keys, batch } => {
            let (requests, view, first) = (context.requests.clone(), context.view, context.now);
            let owner = owns_empty_key(context.scope);
            let (keys, batch) = (keys.clone(), batch.clone());
            let input = render(context, input)?;
            let held = (context.measure.held(rel, "rows of groups and answers"), input.fresh);
            input.map(false, |rows| collect::group(rows, view, keys, batch, requests, (first, owner), held))
        }
        Rel::TopK { input, partition, order, offset, limit, with_ties } => {
            let window = Window { offset: *offset, limit: *limit, with_ties: *with_ties };
            let (partition, order, first) = (partition.clone(), order.clone(), context.now);
            let input = render(context, input)?;
            let held = (context.measure.held(rel, "rows"), input.fresh);
            let sound = input.sound;
            input.map(sound, |rows| topk::top(rows, partition, order, window, first, held))
        }
        Rel::Join { kind, left, right, on, residual } => {
            render_join(context, rel, *kind, (left, right), on, residual.clone())?
        }
        Rel::Aggregate { input, group, aggregates } => {
            let (group, aggregates, first) = (group.clone(), aggregates.clone(), context.now);
            let owner = owns_empty_key(context.scope);
            let safe = aggregates.is_empty();
            let held = context.measure.held(rel, "groups");
            render(context, input)?
                .map(safe, |rows| aggregate::aggregate(rows, group, aggregates, first, owner, held))
        }
        Rel::Distinct { input, keys } => {
            let (keys, first) = (keys.clone(), context.now);
            let held = context.measure.held(rel, "groups");
            render(context, input)?.map(true, |rows| aggregate::distinct(rows, keys, first, held))
        }
        Rel::SetOp { kind, all, left, right, keys } => {
            let (l, r) = (render(context, left)?, render(context, right)?);
            let (left, right) = (l.rows.clone(), r.rows.clone());
            let held = context.measure.held(rel, "rows");
            let rows = set_operation(left, right, *kind, *all, keys.clone(), context.now, held);
            let mut failures: Vec<_> = l.failures.into_iter().chain(r.failures).collect();
            let all: JoinColumns = keys.iter().enumerate().map(|(c, form)| (c, *form, true)).collect();
            for (side, _) in [(l.rows, l.sound), (r.rows, r.sound)].into_iter().filter(|s| !s.1) {
                failures.push(key_failures(side, all.clone()));
            }
            Rendered { rows, failures, sound: true, fresh: false }
        }
        Rel::Recursive { id, base, step, distinct } => {
            recursive::recursive(context, rel, *id, base, step, distinct.as_deref())?
        }
        Rel::RecursiveReference { .. } => {
            return Err(Error::internal("a recursive reference outside of its recursion"));
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
                fresh: sum.fresh || next.fresh,
            })
        }
    })
}

/// Whether this worker holds the group of the empty key (the one row of a global aggregate).
fn owns_empty_key(scope: Scope<'_, Epoch>) -> bool {
    super::keyed::route(&Row::empty()) % scope.peers() as u64 == scope.index() as u64
}

fn filter<'s>(input: Rendered<'s>, predicate: Expr) -> Rendered<'s> {
    let Rendered { rows, mut failures, sound, fresh } = input;
    // Also a predicate that can't fail itself may meet an error that an earlier projection left in the row.
    if !(sound && predicate.is_infallible()) {
        let (test, mut native) = (predicate.clone(), Native::default());
        failures.push(rows.clone().flat_map(move |row| {
            native.predicate(&test, &row).err().map(|error| Row::from_datums([Datum::Error(&error)]))
        }));
    }
    let mut native = Native::default();
    let rows = rows.filter(move |row| matches!(native.predicate(&predicate, row), Ok(true)));
    Rendered { rows, failures, sound, fresh }
}

fn render_join<'s>(
    context: &mut Context<'_, 's>,
    rel: &Rel,
    kind: JoinKind,
    (left, right): (&Rel, &Rel),
    on: &[JoinKey],
    residual: Option<Expr>,
) -> Result<Rendered<'s>> {
    let (left_keys, right_keys) = key_columns(on);
    let mut failures = Vec::new();
    if kind == JoinKind::Inner {
        let (l, left_sound) = side(context, left, &left_keys, &mut failures)?;
        let (r, right_sound) = side(context, right, &right_keys, &mut failures)?;
        let rows = join::inner(l, r, context.measure.account());
        let joined = Rendered { rows, failures, sound: left_sound && right_sound, fresh: true };
        return Ok(match residual {
            None => joined,
            Some(predicate) => filter(joined, predicate),
        });
    }
    if only_keys(kind, residual.as_ref()) {
        let r = render(context, right)?;
        failures.extend(r.failures);
        if !r.sound {
            failures.push(key_failures(r.rows.clone(), right_keys.clone()));
        }
        let keys = r.rows.flat_map(move |row| join_key(&row, &right_keys)?.ok());
        if kind == JoinKind::Semi {
            let (l, sound) = side(context, left, &left_keys, &mut failures)?;
            let rows =
                context.measure.arranged(context.scope, rel, "keys", |meter| join::with_keys(l, keys, meter));
            return Ok(Rendered { rows, failures, sound, fresh: false });
        }
        let (l, arranged) = kept(context, left, &left_keys, &mut failures)?;
        let matched = context
            .measure
            .arranged(context.scope, rel, "keys", |meter| join::with_keys(arranged, keys, meter));
        let rows = l.rows.concat(matched.negate());
        return Ok(Rendered { rows, failures, sound: l.sound, fresh: false });
    }
    let (left_width, right_width) = (width(left), width(right));
    let (l, arranged) = kept(context, left, &left_keys, &mut failures)?;
    let (r, right_sound, right_rows) = if kind == JoinKind::Full {
        let (r, arranged) = kept(context, right, &right_keys, &mut failures)?;
        (arranged, r.sound, Some(r.rows))
    } else {
        let (arranged, sound) = side(context, right, &right_keys, &mut failures)?;
        (arranged, sound, None)
    };
    let account = context.measure.account();
    let (pairs, errors) = join::pairs(arranged, r, residual, l.sound && right_sound, account);
    failures.extend(errors);
    let matched = pairs.clone().map(|(l, _)| l);
    let partnered = context.measure.arranged(context.scope, rel, "matched left rows", |meter| {
        join::partnered(l.rows.clone(), left_keys, matched, meter)
    });
    let sound = l.sound && (right_sound || kind.is_left_only());
    let rows = match kind {
        JoinKind::Semi => partnered,
        JoinKind::Anti => l.rows.concat(partnered.negate()),
        _ => {
            let unmatched = l.rows.concat(partnered.negate());
            let unmatched = unmatched.map(move |row| join::pad(&row, right_width, false));
            let rows = pairs.clone().map(|(l, r)| l.concat(&r)).concat(unmatched);
            match right_rows {
                None => rows,
                Some(all) => {
                    let matched = pairs.map(|(_, r)| r);
                    let partnered =
                        context.measure.arranged(context.scope, rel, "matched right rows", |meter| {
                            join::partnered(all.clone(), right_keys, matched, meter)
                        });
                    let unmatched = all.concat(partnered.negate());
                    rows.concat(unmatched.map(move |row| join::pad(&row, left_width, true)))
                }
            }
        }
    };
    Ok(Rendered { rows, failures, sound, fresh: !kind.is_left_only() })
}

/// A side whose rows are needed as they are, too.
fn kept<'s>(
    context: &mut Context<'_, 's>,
    rel: &Rel,
    keys: &JoinColumns,
    failures: &mut Vec<Rows<'s>>,
) -> Result<(Rendered<'s>, RowArrangement<'s>)> {
    let mut rendered = render(context, rel)?;
    failures.append(&mut rendered.failures);
    let arranged = arranged(context, rel, &rendered, keys, failures);
    Ok((rendered, arranged))
}

/// The rendered rows by key, arranged once for all that want them so.
fn arranged<'s>(
    context: &mut Context<'_, 's>,
    rel: &Rel,
    rendered: &Rendered<'s>,
    keys: &JoinColumns,
    failures: &mut Vec<Rows<'s>>,
) -> RowArrangement<'s> {
    let repeated = context.memo.repeated.contains(rel).then(|| (rel.clone(), keys.clone()));
    if let Some(known) = repeated.as_ref().and_then(|key| context.memo.arranged.get(key)) {
        return known.clone();
    }
    if !rendered.sound {
        failures.push(key_failures(rendered.rows.clone(), keys.clone()));
    }
    let (rows, fresh) = (rendered.rows.clone(), rendered.fresh);
    let arranged = context
        .measure
        .arranged(context.scope, rel, "rows by key", |meter| arrange(rows, keys.clone(), fresh, meter));
    if let Some(key) = repeated {
        context.memo.arranged.insert(key, arranged.clone());
    }
    arranged
}

/// One side of a join by its keys: a shared arrangement where there is one. Also tells whether its rows are sound.
pub(super) fn side<'s>(
    context: &mut Context<'_, 's>,
    rel: &Rel,
    keys: &JoinColumns,
    failures: &mut Vec<Rows<'s>>,
) -> Result<(RowArrangement<'s>, bool)> {
    let shared =
        ArrangementKey::of(rel, keys, context.bindings).and_then(|k| context.shared.by_key.get_mut(&k));
    if let Some(shared) = shared {
        let (arranged, button) = shared.import(context.scope);
        context.measure.uses(rel, "rows by key", shared.part());
        context.buttons.push(button);
        return Ok((arranged, true));
    }
    let (rendered, arranged) = kept(context, rel, keys, failures)?;
    Ok((arranged, rendered.sound))
}

fn key_failures<'s>(rows: Rows<'s>, keys: JoinColumns) -> Rows<'s> {
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
