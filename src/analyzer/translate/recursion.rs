//! WITH RECURSIVE: a base, a step that reads what is there already, and their union.
//!
//! Invariant: the step is linear in the recursive reference, that is, each of its rows comes from one row of the
//! reference; only then is the fixed point what the server's rounds add up to (`executor/nodeRecursiveunion.c`).

use crate::analyzer::node::Node;
use crate::plan::{JoinKind, Rel};
use crate::row::TypeInfo;

use super::frame::{Frame, Level};
use super::refusal::{Refusal, Step};
use super::stage::Stage;
use super::subquery::free_references;
use super::{Translator, cycle, unknown_form};

/// A recursion whose step is being translated.
pub(super) struct Recursion {
    name: Option<String>,
    columns: Vec<TypeInfo>,
    /// It has a CYCLE clause: rows that close a cycle are not followed.
    cycle: bool,
}

pub(super) fn refused(reason: impl Into<String>) -> Refusal {
    Refusal::new("unsupported.recursive_query", reason.into())
}

impl Translator<'_> {
    /// The rows of a recursive CTE of `level`, and the attribute numbers of its columns.
    pub(super) fn recursion(&mut self, level: &Level, cte: &Node) -> Step<(Stage, Vec<i16>)> {
        let query = cte.node("ctequery")?;
        if !free_references(query)?.is_empty() {
            return Err(refused("WITH RECURSIVE refers to a row outside of it"));
        }
        let operation = query.node("setOperations")?;
        if operation.tag != "SETOPERATIONSTMT" || operation.int("op")? != 1 {
            return Err(unknown_form("a recursive CTE that is no UNION"));
        }
        let (all, mut columns) = (operation.bool("all"), self.set_columns(operation)?);
        let width = columns.len();
        // What SEARCH adds can only be sorted by, which a table does not keep; but UNION compares it.
        let searched = cte.optional_node("search_clause").is_some();
        if searched && !all {
            return Err(refused("the SEARCH clause of WITH RECURSIVE makes rows of UNION different"));
        }
        let cycle = self.cycle(cte, &columns)?;
        let step_query = match &cycle {
            Some(_) => cycle::with_carried_columns(query, operation, cte, width)?,
            None => query.clone(),
        };
        let frame = Frame::below(level, &step_query, None);
        let mut base = self.set_operand(&frame, operation.node("larg")?, !all)?;
        base = Stage::new(self.coerce(base, &columns)?, columns.clone());
        if let Some(cycle) = &cycle {
            base = self.cycle_begun(base, cycle)?;
            columns = base.columns.clone();
        }
        let base = Box::new(base.rel);
        let id = self.recursions.len();
        let name = cte.text("ctename");
        self.recursions.push(Recursion { name, columns: columns.clone(), cycle: cycle.is_some() });
        let step = self.set_operand(&frame, operation.node("rarg")?, !all);
        let step = step.and_then(|stage| self.coerce(stage, &columns));
        self.recursions.pop();
        let mut step = step?;
        if !all {
            step = without_distinct(step, id);
        }
        linear(&step, id)?;
        if let Some(cycle) = &cycle {
            step = self.cycle_followed(Stage::new(step, columns.clone()), cycle)?;
        }
        let distinct = match all {
            true => None,
            false => {
                let forms = columns.iter().map(|ty| self.form_of(ty)).collect::<Option<Vec<_>>>();
                let odd = || {
                    refused("UNION of WITH RECURSIVE compares a type whose equality only the server knows")
                };
                Some(forms.ok_or_else(odd)?)
            }
        };
        let stage = Stage::new(Rel::Recursive { id, base, step: Box::new(step), distinct }, columns);
        let mut attributes: Vec<i16> = (1..).take(width).collect();
        let Some(cycle) = cycle else { return Ok((stage, attributes)) };
        attributes.push(i16::try_from(width + 1 + usize::from(searched)).unwrap_or(i16::MAX));
        Ok((self.cycle_shown(stage, &cycle)?, attributes))
    }

    /// The recursive reference in the step.
    pub(super) fn recursive_reference(&self, entry: &Node) -> Step<Stage> {
        let name = entry.text("ctename");
        let id = self.recursions.iter().rposition(|r| r.name == name);
        let id = id.ok_or_else(|| unknown_form("a recursive reference outside of its step"))?;
        let columns = self.recursions[id].columns.clone();
        let mut rel = Rel::RecursiveReference { id, width: columns.len() };
        if self.recursions[id].cycle {
            rel = cycle::followed(rel, &columns);
        }
        Ok(Stage::new(rel, columns))
    }
}

/// The step without DISTINCT over rows of the recursion: UNION makes its rows distinct anyway.
fn without_distinct(rel: Rel, id: usize) -> Rel {
    let below = |input: Box<Rel>| Box::new(without_distinct(*input, id));
    match rel {
        rel if !rel.reads_recursion(id) => rel,
        Rel::Distinct { input, .. } => *below(input),
        Rel::Filter { input, predicate } => Rel::Filter { input: below(input), predicate },
        Rel::Project { input, exprs } => Rel::Project { input: below(input), exprs },
        Rel::Evaluate { input, batch } => Rel::Evaluate { input: below(input), batch },
        Rel::UnionAll { inputs } => {
            Rel::UnionAll { inputs: inputs.into_iter().map(|i| without_distinct(i, id)).collect() }
        }
        Rel::Join { kind: JoinKind::Inner, left, right, on, residual } => {
            Rel::Join { kind: JoinKind::Inner, left: below(left), right: below(right), on, residual }
        }
        rel => rel,
    }
}

fn linear(rel: &Rel, id: usize) -> Step<()> {
    if !rel.reads_recursion(id) {
        return Ok(());
    }
    match rel {
        Rel::RecursiveReference { .. } => Ok(()),
        Rel::Filter { input, .. } | Rel::Project { input, .. } | Rel::Evaluate { input, .. } => {
            linear(input, id)
        }
        Rel::UnionAll { inputs } => inputs.iter().try_for_each(|i| linear(i, id)),
        Rel::Join { kind: JoinKind::Inner, left, right, .. }
            if !(left.reads_recursion(id) && right.reads_recursion(id)) =>
        {
            linear(left, id)?;
            linear(right, id)
        }
        _ => Err(refused(
            "the recursive term does more with the recursive reference than filter, compute and join it \
             (an outer join, a subquery, DISTINCT, a window function ...)",
        )),
    }
}
