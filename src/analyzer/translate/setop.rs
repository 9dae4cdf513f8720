//! UNION and UNION ALL.
//!
//! The tree does not hold the casts of leaf columns to the common type; only the node's column types tell of them
//! (`parser/analyze.c`, `transformSetOperationTree`). The ones with a native form are added here.

use crate::analyzer::node::{Node, Value};
use crate::plan::Rel;
use crate::plan::expr::{Expr, IntWidth, Kernel};
use crate::row::{TypeClass, TypeInfo};

use super::refusal::{Refusal, Step};
use super::stage::Stage;
use super::{Frame, Translator, range_table_entry, types, unknown_form};

impl Translator<'_> {
    pub(super) fn set_operation(&mut self, frame: &Frame<'_>) -> Step<Stage> {
        self.set_operand(frame, frame.query.node("setOperations")?, false)
    }

    /// `distinct`: the result goes into a Distinct anyway, which makes an inner one superfluous.
    fn set_operand(&mut self, frame: &Frame<'_>, node: &Node, distinct: bool) -> Step<Stage> {
        if node.tag == "RANGETBLREF" {
            let entry = range_table_entry(frame.query, node.int("rtindex")?)?;
            let query = entry.node("subquery")?;
            return self.query(&Frame { query, parent: Some(frame) });
        }
        if node.tag != "SETOPERATIONSTMT" {
            return Err(unknown_form("a set operation"));
        }
        match node.int("op")? {
            1 => {}
            2 | 3 => {
                return Err(Refusal::new(
                    "unsupported.set_operation",
                    "INTERSECT and EXCEPT are not maintained incrementally yet",
                ));
            }
            _ => return Err(unknown_form("a kind of set operation")),
        }
        let all = node.bool("all");
        let columns = self.set_columns(node)?;
        let mut inputs = Vec::new();
        for side in ["larg", "rarg"] {
            let stage = self.set_operand(frame, node.node(side)?, distinct || !all)?;
            match self.coerce(stage, &columns)? {
                Rel::UnionAll { inputs: inner } => inputs.extend(inner),
                rel => inputs.push(rel),
            }
        }
        let stage = Stage::new(Rel::UnionAll { inputs }, columns);
        if all || distinct {
            return Ok(stage);
        }
        let hashable: Vec<bool> = node.nodes("groupClauses")?.iter().map(|c| c.bool("hashable")).collect();
        self.distinct_rows(stage, &hashable)
    }

    fn set_columns(&self, node: &Node) -> Step<Vec<TypeInfo>> {
        let numbers =
            |field: &str| -> Vec<i64> { node.list(field).iter().filter_map(Value::as_int).collect() };
        let (oids, typmods, collations) =
            (numbers("colTypes"), numbers("colTypmods"), numbers("colCollations"));
        if oids.len() != typmods.len() || oids.len() != collations.len() {
            return Err(unknown_form("columns of a set operation"));
        }
        let unsigned = |i: i64| u32::try_from(i).unwrap_or(0);
        let columns = oids.iter().zip(&typmods).zip(&collations);
        Ok(columns
            .map(|((o, t), c)| {
                let typmod = i32::try_from(*t).unwrap_or(-1);
                types::info(self.facts(), unsigned(*o), typmod, unsigned(*c))
            })
            .collect())
    }

    /// The stage's rows with columns of the given types.
    fn coerce(&self, stage: Stage, to: &[TypeInfo]) -> Step<Rel> {
        if stage.columns.len() != to.len() {
            return Err(unknown_form("columns of a set operation"));
        }
        let mut exprs = Vec::with_capacity(to.len());
        for (i, (from, to)) in stage.columns.iter().zip(to).enumerate() {
            exprs.push(self.cast(i, from, to)?);
        }
        if exprs.iter().all(|e| matches!(e, Expr::Column(_))) {
            return Ok(stage.rel);
        }
        Ok(Rel::Project { input: Box::new(stage.rel), exprs })
    }

    fn cast(&self, column: usize, from: &TypeInfo, to: &TypeInfo) -> Step<Expr> {
        use TypeClass::*;
        let input = Expr::Column(column);
        let call = |kernel| Expr::Call { kernel, args: vec![input.clone()] };
        let string = |c: TypeClass| matches!(c, Text | Varchar);
        match (from.class, to.class) {
            _ if from.oid == to.oid => Ok(input),
            (Int2, Int4) => Ok(call(Kernel::IntCast(IntWidth::I4))),
            (Int2 | Int4, Int8) => Ok(call(Kernel::IntCast(IntWidth::I8))),
            (Int2 | Int4 | Int8, Numeric) => Ok(call(Kernel::IntToNumeric)),
            (Int2 | Int4 | Int8, Float8) => Ok(call(Kernel::IntToFloat8)),
            (a, b) if string(a) && string(b) => Ok(input),
            // From a domain to its base type.
            (a, b) if a == b && a != Other && self.base(from) == self.base(to) => Ok(input),
            _ => {
                let (f, t) =
                    (types::type_name(self.facts(), from.oid), types::type_name(self.facts(), to.oid));
                Err(Refusal::new(
                    "unsupported.set_operation_cast",
                    format!("UNION casts column {} from {f} to {t} implicitly", column + 1),
                )
                .hint(format!("write the cast to {t} into that part of the query")))
            }
        }
    }

    fn base(&self, ty: &TypeInfo) -> u32 {
        self.facts().types.get(&ty.oid).map_or(ty.oid, |t| t.base)
    }
}
