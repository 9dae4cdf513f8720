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
use super::{Translator, unknown_form};

/// A recursion whose step is being translated.
pub(super) struct Recursion {
    name: Option<String>,
    columns: Vec<TypeInfo>,
}

fn refused(reason: impl Into<String>) -> Refusal {
    Refusal::new("unsupported.recursive_query", reason.into())
}

impl Translator<'_> {
    /// The rows of a recursive CTE of `level`.
    pub(super) fn recursion(&mut self, level: &Level, cte: &Node) -> Step<Stage> {
        let query = cte.node("ctequery")?;
        for (clause, words) in [("search_clause", "SEARCH"), ("cycle_clause", "CYCLE")] {
            if cte.optional_node(clause).is_some() {
                return Err(refused(format!(
                    "the {words} clause of WITH RECURSIVE is not maintained incrementally"
                )));
            }
        }
        if !free_references(query)?.is_empty() {
            return Err(refused("WITH RECURSIVE refers to a row outside of it"));
        }
        let operation = query.node("setOperations")?;
        if operation.tag != "SETOPERATIONSTMT" || operation.int("op")? != 1 {
            return Err(unknown_form("a recursive CTE that is no UNION"));
        }
        let frame = Frame::below(level, query, None);
        let (all, columns) = (operation.bool("all"), self.set_columns(operation)?);
        let base = self.set_operand(&frame, operation.node("larg")?, !all)?;
        let base = Box::new(self.coerce(base, &columns)?);
        let id = self.recursions.len();
        self.recursions.push(Recursion { name: cte.text("ctename"), columns: columns.clone() });
        let step = self.set_operand(&frame, operation.node("rarg")?, !all);
        let step = step.and_then(|stage| self.coerce(stage, &columns));
        self.recursions.pop();
        let step = Box::new(step?);
        linear(&step, id)?;
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
        Ok(Stage::new(Rel::Recursive { id, base, step, distinct }, columns))
    }

    /// The recursive reference in the step.
    pub(super) fn recursive_reference(&self, entry: &Node) -> Step<Stage> {
        let name = entry.text("ctename");
        let id = self.recursions.iter().rposition(|r| r.name == name);
        let id = id.ok_or_else(|| unknown_form("a recursive reference outside of its step"))?;
        let columns = self.recursions[id].columns.clone();
        Ok(Stage::new(Rel::RecursiveReference { id, width: columns.len() }, columns))
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
