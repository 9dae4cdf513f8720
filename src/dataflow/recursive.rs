//! WITH RECURSIVE on differential iteration.
//!
//! The result is the least fixed point of `base + step(result)`, by set or by multiset; the step is linear in the
//! recursive reference (the translation sees to it), so this is what the server's working table adds up to. Deletions are
//! exact, also in cycles: a row stays only while a derivation of finite length holds it. Invariant: a recursion that does
//! not end is cut off after a number of rounds or rows and puts out an error, so the worker lives on.

use std::sync::Arc;

use differential_dataflow::operators::iterate::VecVariable;
use differential_dataflow::{AsCollection, VecCollection};
use timely::dataflow::Scope;
use timely::dataflow::operators::vec::Map;
use timely::order::Product;

use super::account::{Held, KEYED_ENTRY, row_bytes};
use super::arrangement::{JoinColumns, RowArrangement, join_key};
use super::evaluate::{RequestSender, Work, evaluate};
use super::keyed::Rows;
use super::native::Native;
use super::protocol::Epoch;
use super::render::{Context, Rendered, key_columns, render, side};
use crate::error::{Error, Result};
use crate::plan::{Expr, JoinKind, Rel, ViewId};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row, RowBuilder};

/// An epoch and the round of the iteration in it.
type Round = Product<Epoch, u64>;
type LoopRows<'n> = VecCollection<'n, Round, Row, i64>;

/// A recursion that needs more rounds is cut off.
const MOST_ROUNDS: u64 = 20_000;
/// A recursion that makes more rows in one epoch is cut off.
const MOST_ROWS: u64 = 5_000_000;
const RUNAWAY: &[u8] =
    b"54001:the recursion of the query does not end or goes too deep (20000 rounds, 5000000 rows)";

/// A step of the recursion, with everything that does not read the recursion rendered outside of the loop.
enum Part<'s> {
    Reference,
    Outside(Rows<'s>),
    Filter(Box<Part<'s>>, Expr),
    Project(Box<Part<'s>>, Vec<Expr>),
    Evaluate(Box<Part<'s>>, Work, Held),
    Union(Vec<Part<'s>>),
    Join(Box<Joined<'s>>),
}

/// A join of what goes round with what is outside.
struct Joined<'s> {
    inside: Part<'s>,
    keys: JoinColumns,
    outside: RowArrangement<'s>,
    /// Whether the inside is the left side.
    first: bool,
    residual: Option<Expr>,
}

/// Renders a recursion; `id` is that of its reference in `step`, `distinct` the keys of UNION.
pub(super) fn recursive<'s>(
    context: &mut Context<'_, 's>,
    rel: &Rel,
    id: usize,
    base: &Rel,
    step: &Rel,
    distinct: Option<&[KeyForm]>,
) -> Result<Rendered<'s>> {
    let base = render(context, base)?;
    let mut failures = base.failures;
    let part = prepare(context, id, step, &mut failures)?;
    let (view, requests) = (context.view, context.requests.clone());
    let outer = context.scope;
    let (rows, failed) = context.measure.arranged(outer, rel, "rows of all rounds", |meter| {
        outer.scoped::<Round, _, _>("Recursive", |nested| {
            let (variable, result) = VecVariable::new(nested, Product::new(Default::default(), 1));
            let (current, runaway) = bounded(result);
            let mut inner = Loop { nested, current, view, requests, failures: vec![runaway] };
            let next = inner.enter(part);
            let all = base.rows.enter(nested).concat(next);
            let all = all.inspect(move |(row, _, _)| meter.note(KEYED_ENTRY + row_bytes(row)));
            let all = match distinct {
                Some(keys) => once(all, keys.to_vec()),
                None => all.consolidate(),
            };
            variable.set(all.clone());
            let failures = inner.failures.into_iter().map(|f| f.leave(outer)).collect::<Vec<_>>();
            (all.leave(outer), failures)
        })
    });
    failures.extend(failed);
    Ok(Rendered { rows, failures, sound: false, fresh: false })
}

/// Renders what is outside of the loop.
fn prepare<'s>(
    context: &mut Context<'_, 's>,
    id: usize,
    rel: &Rel,
    failures: &mut Vec<Rows<'s>>,
) -> Result<Part<'s>> {
    if !rel.reads_recursion(id) {
        let rendered = render(context, rel)?;
        failures.extend(rendered.failures);
        return Ok(Part::Outside(rendered.rows));
    }
    Ok(match rel {
        Rel::RecursiveReference { .. } => Part::Reference,
        Rel::Filter { input, predicate } => {
            Part::Filter(Box::new(prepare(context, id, input, failures)?), predicate.clone())
        }
        Rel::Project { input, exprs } => {
            Part::Project(Box::new(prepare(context, id, input, failures)?), exprs.clone())
        }
        Rel::Evaluate { input, batch } => Part::Evaluate(
            Box::new(prepare(context, id, input, failures)?),
            Work::Row(Arc::new(batch.clone())),
            context.measure.held(rel, "answers"),
        ),
        Rel::UnionAll { inputs } => {
            let parts = inputs.iter().map(|i| prepare(context, id, i, failures));
            Part::Union(parts.collect::<Result<_>>()?)
        }
        Rel::Join { kind: JoinKind::Inner, left, right, on, residual } => {
            let (left_keys, right_keys) = key_columns(on);
            let first = left.reads_recursion(id);
            let (inside, keys, outside, outside_keys) = match first {
                true => (left, left_keys, right, right_keys),
                false => (right, right_keys, left, left_keys),
            };
            let (outside, _) = side(context, outside, &outside_keys, failures)?;
            let inside = prepare(context, id, inside, failures)?;
            Part::Join(Box::new(Joined { inside, keys, outside, first, residual: residual.clone() }))
        }
        _ => return Err(Error::internal("a step of a recursion that is not linear")),
    })
}

/// The rows that go round, without those of a recursion that does not end, and an error for each of these.
fn bounded(rows: LoopRows<'_>) -> (LoopRows<'_>, LoopRows<'_>) {
    let within = || {
        let (mut epoch, mut seen) = (0, 0u64);
        move |time: &Round| {
            if time.outer != epoch {
                (epoch, seen) = (time.outer, 0);
            }
            seen += 1;
            time.inner <= MOST_ROUNDS && seen <= MOST_ROWS
        }
    };
    let (mut keep, mut refuse) = (within(), within());
    let kept = rows.inner.clone().flat_map(move |(row, time, diff)| keep(&time).then_some((row, time, diff)));
    let errors = rows.inner.flat_map(move |(_, time, diff): (Row, Round, i64)| {
        // Never taken back: what was cut off is not known any more.
        let error = || Row::from_datums([Datum::Error(RUNAWAY)]);
        (!refuse(&time)).then(|| (error(), time, diff.abs()))
    });
    (kept.as_collection(), errors.as_collection())
}

/// Each row once, by key, in its smallest image.
fn once(rows: LoopRows<'_>, keys: Vec<KeyForm>) -> LoopRows<'_> {
    if keys.iter().all(|form| form.is_image()) {
        return rows.distinct_core();
    }
    let keyed = rows.map(move |row| {
        let mut key = RowBuilder::default();
        row.iter().zip(&keys).for_each(|(datum, form)| form.push(datum, &mut key));
        (key.finish(), row)
    });
    keyed
        .reduce(|_key, images, output| {
            if let Some((image, _)) = images.first() {
                output.push(((*image).clone(), 1i64));
            }
        })
        .map(|(_key, image)| image)
}

struct Loop<'n> {
    nested: Scope<'n, Round>,
    current: LoopRows<'n>,
    view: ViewId,
    requests: RequestSender,
    failures: Vec<LoopRows<'n>>,
}

impl<'n> Loop<'n> {
    fn enter(&mut self, part: Part<'_>) -> LoopRows<'n> {
        match part {
            Part::Reference => self.current.clone(),
            Part::Outside(rows) => rows.enter(self.nested),
            Part::Filter(input, predicate) => {
                let rows = self.enter(*input);
                self.filter(rows, predicate)
            }
            Part::Project(input, exprs) => {
                let mut native = Native::default();
                self.enter(*input).map(move |row| native.project(&exprs, &row))
            }
            Part::Evaluate(input, work, held) => {
                let rows = self.enter(*input);
                evaluate(rows, self.view, work, self.requests.clone(), held)
            }
            Part::Union(parts) => {
                let mut all = parts.into_iter().map(|p| self.enter(p)).collect::<Vec<_>>().into_iter();
                let first = all.next().unwrap_or_else(|| self.current.clone().filter(|_| false));
                all.fold(first, |sum, next| sum.concat(next))
            }
            Part::Join(joined) => {
                let Joined { inside, keys, outside, first, residual } = *joined;
                let rows = self.enter(inside);
                let test = keys.clone();
                self.failures.push(rows.clone().flat_map(move |row| match join_key(&row, &test) {
                    Some(Err(error)) => Some(error),
                    _ => None,
                }));
                let keyed = rows.flat_map(move |row| match join_key(&row, &keys) {
                    Some(Ok(key)) => Some((key, row)),
                    _ => None,
                });
                let keyed = keyed.arrange_by_key_named("Recursive");
                let pair =
                    move |_key: &Row, l: &Row, r: &Row| Some(if first { l.concat(r) } else { r.concat(l) });
                let joined = match outside {
                    RowArrangement::Local(outside) => keyed.join_core(outside.enter(self.nested), pair),
                    RowArrangement::Imported(outside) => keyed.join_core(outside.enter(self.nested), pair),
                };
                match residual {
                    None => joined,
                    Some(predicate) => self.filter(joined, predicate),
                }
            }
        }
    }

    fn filter(&mut self, rows: LoopRows<'n>, predicate: Expr) -> LoopRows<'n> {
        let (test, mut native) = (predicate.clone(), Native::default());
        self.failures.push(rows.clone().flat_map(move |row| {
            native.predicate(&test, &row).err().map(|error| Row::from_datums([Datum::Error(&error)]))
        }));
        let mut native = Native::default();
        rows.filter(move |row| matches!(native.predicate(&predicate, row), Ok(true)))
    }
}
