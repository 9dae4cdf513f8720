//! UNION, INTERSECT and EXCEPT, with and without ALL.
//!
//! The tree does not hold the casts of leaf columns to the common type; only the node's column types tell of them
//! (`parser/analyze.c`, `transformSetOperationTree`). They are added here: natively, or by the
//! server where they are known to be built in and immutable.

use crate::analyzer::deparse;
use crate::analyzer::node::{Node, Value};
use crate::plan::expr::{Expr, IntWidth, Kernel};
use crate::plan::{Rel, RemoteBatch, RemoteExpr, RemoteInput, SetOpKind};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row, TypeClass, TypeInfo};

use super::frame::{Frame, Level};
use super::refusal::{Refusal, Step};
use super::stage::Stage;
use super::{Translator, range_table_entry, types, unknown_form};

/// Implicit, immutable casts of `pg_cast` without a native form: integers and numeric to float4, numeric to float8, date to
/// timestamp, time to interval, "char" and name to text, texts to name, integers to oid, bit to varbit and back, cidr to inet,
/// macaddr to macaddr8 and back.
const SERVER_CASTS: &[(u32, u32)] = &[
    (21, 700),
    (23, 700),
    (20, 700),
    (1700, 700),
    (1700, 701),
    (1082, 1114),
    (1083, 1186),
    (18, 25),
    (19, 25),
    (25, 19),
    (1042, 19),
    (1043, 19),
    (21, 26),
    (23, 26),
    (20, 26),
    (1560, 1562),
    (1562, 1560),
    (650, 869),
    (829, 774),
    (774, 829),
];

/// Those that read TimeZone: date and timestamp to timestamptz. Time to timetz also asks for the present day.
const CASTS_BY_TIME_ZONE: &[(u32, u32)] = &[(1082, 1184), (1114, 1184)];

impl Translator<'_> {
    pub(super) fn set_operation(&mut self, frame: &Level) -> Step<Stage> {
        self.set_operand(frame, frame.query.node("setOperations")?, false)
    }

    /// `distinct`: to the operation above, equal rows are one anyway, which makes an inner Distinct superfluous.
    pub(super) fn set_operand(&mut self, frame: &Level, node: &Node, distinct: bool) -> Step<Stage> {
        if node.tag == "RANGETBLREF" {
            let entry = range_table_entry(&frame.query, node.int("rtindex")?)?;
            // All operands work per row of the same domain, whether they refer to it or not.
            let query = entry.node("subquery")?;
            return self.query(&Frame::below(frame, query, frame.inherited()));
        }
        if node.tag != "SETOPERATIONSTMT" {
            return Err(unknown_form("a set operation"));
        }
        let all = node.bool("all");
        let mut columns = self.set_columns(node)?;
        let visible = columns.len();
        let mut operands = Vec::new();
        for side in ["larg", "rarg"] {
            let below = !all || (distinct && node.int("op")? == 1);
            let stage = self.set_operand(frame, node.node(side)?, below)?;
            operands.push(self.coerce(stage, &columns)?);
        }
        columns.extend(frame.domain().iter().flat_map(|d| d.columns.iter().cloned()));
        let hashable: Vec<bool> = node.nodes("groupClauses")?.iter().map(|c| c.bool("hashable")).collect();
        let kind = match node.int("op")? {
            1 => {
                let inputs = operands.into_iter().flat_map(|rel| match rel {
                    Rel::UnionAll { inputs } => inputs,
                    rel => vec![rel],
                });
                let rel = Rel::UnionAll { inputs: inputs.collect() };
                let stage = Stage::new(rel, columns).with_outer(visible);
                if all || distinct {
                    return Ok(stage);
                }
                return self.distinct_rows(stage, &hashable);
            }
            2 => SetOpKind::Intersect,
            3 => SetOpKind::Except,
            _ => return Err(unknown_form("a kind of set operation")),
        };
        let mut sides = operands.into_iter();
        let (Some(left), Some(right)) = (sides.next(), sides.next()) else {
            return Err(unknown_form("a set operation"));
        };
        let (left, right, keys) = self.compared(left, right, &columns, visible, &hashable)?;
        let rel = Rel::SetOp { kind, all, left: Box::new(left), right: Box::new(right), keys };
        Ok(Stage::new(rel, columns).with_outer(visible))
    }

    /// Both sides with columns whose equality is native. What only the server can compare is compared over both together.
    fn compared(
        &mut self,
        left: Rel,
        right: Rel,
        columns: &[TypeInfo],
        visible: usize,
        hashable: &[bool],
    ) -> Step<(Rel, Rel, Vec<KeyForm>)> {
        let form = |(i, ty): (usize, &TypeInfo)| match i < visible {
            true => self.form_of(ty),
            false => Some(KeyForm::by_image(ty)),
        };
        if let Some(keys) = columns.iter().enumerate().map(form).collect::<Option<Vec<_>>>() {
            return Ok((left, right, keys));
        }
        let width = columns.len();
        let marked = |rel: Rel, mark: bool| {
            let literal = Expr::Literal(Row::from_datums([Datum::Bool(mark)]));
            let exprs = (0..width).map(Expr::Column).chain([literal]).collect();
            Rel::Project { input: Box::new(rel), exprs }
        };
        let mut all = columns.to_vec();
        all.push(types::boolean(self.facts()));
        let inputs = vec![marked(left, true), marked(right, false)];
        let by: Vec<(usize, bool)> =
            (0..visible).map(|c| (c, hashable.get(c).copied().unwrap_or(false))).collect();
        let (stage, keys) = self.key_columns(Stage::new(Rel::UnionAll { inputs }, all), &by)?;
        let shown: Vec<usize> = keys.iter().map(|k| k.column).chain(visible..width).collect();
        let side = |predicate: Expr| {
            let exprs = shown.iter().map(|&c| Expr::Column(c)).collect();
            let input = Rel::Filter { input: Box::new(stage.rel.clone()), predicate };
            Rel::Project { input: Box::new(input), exprs }
        };
        let mut forms: Vec<KeyForm> = keys.iter().map(|k| k.form).collect();
        forms.extend(columns[visible..].iter().map(KeyForm::by_image));
        Ok((side(Expr::Column(width)), side(Expr::Not(Box::new(Expr::Column(width)))), forms))
    }

    pub(super) fn set_columns(&self, node: &Node) -> Step<Vec<TypeInfo>> {
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

    /// The stage's rows with columns of the given types, those of outer references behind them.
    pub(super) fn coerce(&mut self, stage: Stage, to: &[TypeInfo]) -> Step<Rel> {
        if stage.visible() != to.len() {
            return Err(unknown_form("columns of a set operation"));
        }
        let (mut exprs, mut remote) = (Vec::with_capacity(to.len()), RemoteBatch::default());
        let width = stage.columns.len();
        for (i, (from, to)) in stage.columns.iter().zip(to).enumerate() {
            let by_time_zone = CASTS_BY_TIME_ZONE.contains(&(from.oid, to.oid));
            if by_time_zone || SERVER_CASTS.contains(&(from.oid, to.oid)) {
                let type_name = deparse::type_name(self.facts(), from.oid, from.typmod)?;
                let target = deparse::type_name(self.facts(), to.oid, -1)?;
                remote.inputs.push(RemoteInput { column: i, type_name, collate: String::new() });
                let sql = format!("x.c{}::{target}", remote.inputs.len());
                exprs.push(Expr::Column(width + remote.exprs.len()));
                // The owner's function has the settings of the creation.
                let builtin_only = !by_time_zone;
                remote.exprs.push(RemoteExpr { sql, result: to.clone(), builtin_only });
                continue;
            }
            exprs.push(self.cast(i, from, to)?);
        }
        exprs.extend((to.len()..width).map(Expr::Column));
        if exprs.iter().enumerate().all(|(i, e)| *e == Expr::Column(i)) {
            return Ok(stage.rel);
        }
        let input = match remote.exprs.is_empty() {
            true => stage.rel,
            false => Rel::Evaluate { input: Box::new(stage.rel), batch: remote },
        };
        Ok(Rel::Project { input: Box::new(input), exprs })
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
            (Float4, Float8) => Ok(call(Kernel::Float4To8)),
            (Bpchar, b) if string(b) => Ok(call(Kernel::BpcharToText)),
            (a, b) if string(a) && string(b) => Ok(input),
            // The same text, of which blanks at its end no longer count: what was unique need not be so any more.
            (a, Bpchar) if string(a) => Ok(call(Kernel::Relabel)),
            // From a domain to its base type.
            (a, b) if a == b && a != Other && self.base(from) == self.base(to) => Ok(input),
            _ => {
                let (f, t) =
                    (types::type_name(self.facts(), from.oid), types::type_name(self.facts(), to.oid));
                Err(Refusal::new(
                    "unsupported.set_operation_cast",
                    format!("a set operation casts column {} from {f} to {t} implicitly", column + 1),
                )
                .hint(format!("write the cast to {t} into that part of the query")))
            }
        }
    }

    fn base(&self, ty: &TypeInfo) -> u32 {
        self.facts().types.get(&ty.oid).map_or(ty.oid, |t| t.base)
    }
}
