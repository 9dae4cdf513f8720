//! The relational plan of a stream table: what the analyzer makes of a defining query, and what the dataflow renders.
//!
//! Invariant: a plan is closed data (no OIDs to look up, no server needed to render it), and every construct in it is
//! one the dataflow maintains exactly; whatever is not is an `Unsupported` error before a plan exists.
//! Place in the data's way: analyzer -> **plan** -> dataflow; `explain` prints it.

pub mod explain;
pub mod expr;
mod group;
pub mod key;

use serde::{Deserialize, Serialize};

use crate::row::key::KeyForm;
use crate::row::{Row, TypeInfo};
pub use expr::Expr;
pub use group::{GroupBatch, GroupForm, RemoteWork, SortKey};

/// OID of a captured relation: a table that stores rows, without those of its children.
pub type SourceId = u32;

/// Identity of a stream table: `pgt_stream_tables.pgt_id`.
pub type ViewId = i64;

/// A relational operator. Rows are positional; each variant's comment says which columns it puts out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Rel {
    /// The given attributes (`attnum`, ascending is not required) of a captured relation.
    Source { source: SourceId, attributes: Vec<i16> },
    /// The given output columns (0-based, without row-id) of another stream table of the same pipeline.
    StreamTable { view: ViewId, columns: Vec<usize> },
    /// Rows known at planning.
    Constant { rows: Vec<Row> },
    /// The input's columns; rows whose predicate is true.
    Filter { input: Box<Rel>, predicate: Expr },
    /// One column per expression.
    Project { input: Box<Rel>, exprs: Vec<Expr> },
    /// The input's columns, then one column per expression that PostgreSQL computes.
    Evaluate { input: Box<Rel>, batch: RemoteBatch },
    /// The left columns, then the right ones (Semi and Anti: the left columns only).
    Join { kind: JoinKind, left: Box<Rel>, right: Box<Rel>, on: Vec<JoinKey>, residual: Option<Expr> },
    /// The group columns, then one column per aggregate. Without group columns there is always exactly one row.
    Aggregate { input: Box<Rel>, group: Vec<GroupKey>, aggregates: Vec<Aggregate> },
    /// The input's columns; equal rows (by key) once, shown by their smallest image.
    Distinct { input: Box<Rel>, keys: Vec<KeyForm> },
    /// Rows of all inputs; all have the same columns.
    UnionAll { inputs: Vec<Rel> },
    /// WITH RECURSIVE: the base's columns; the least fixed point of `base + step`, where the step reads the result so far
    /// as [`Rel::RecursiveReference`] with the same `id`. `distinct`: the keys of UNION; `None`: UNION ALL.
    Recursive { id: usize, base: Box<Rel>, step: Box<Rel>, distinct: Option<Vec<KeyForm>> },
    /// What the recursion `id` around it has so far.
    RecursiveReference { id: usize, width: usize },
    /// INTERSECT or EXCEPT by key; both inputs have the same columns. Rows are shown by images of the left side, the
    /// smallest first.
    SetOp { kind: SetOpKind, all: bool, left: Box<Rel>, right: Box<Rel>, keys: Vec<KeyForm> },
    /// Collects the rows of each group and lets PostgreSQL compute what depends on all of them; [`GroupForm`] says
    /// which columns come out.
    Group { input: Box<Rel>, keys: Vec<GroupKey>, batch: GroupBatch },
    /// The input's columns; of each partition the rows past the first `offset`, at most `limit` of them (`None`: all),
    /// with ties also those equal to the last one by `order`. Rows that are equal by `order` come in the order of their
    /// images.
    TopK {
        input: Box<Rel>,
        partition: Vec<GroupKey>,
        order: Vec<SortKey>,
        offset: u64,
        limit: Option<u64>,
        with_ties: bool,
    },
    /// The given attributes of a partitioned table: the rows of its leaf partitions, of which there may be none.
    Partitioned { root: SourceId, attributes: Vec<i16>, leaves: Vec<Rel> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JoinKind {
    Inner,
    /// Left rows without a match (after the residual) appear once per occurrence with NULLs on the right.
    Left,
    /// As Left, and right rows without a match appear once per occurrence with NULLs on the left.
    Full,
    /// Left rows with at least one match.
    Semi,
    /// Left rows without a match.
    Anti,
}

impl JoinKind {
    /// Whether only left columns are put out.
    pub fn is_left_only(self) -> bool {
        matches!(self, JoinKind::Semi | JoinKind::Anti)
    }
}

/// `left column = right column` under one equality.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JoinKey {
    pub left: usize,
    pub right: usize,
    pub form: KeyForm,
    /// NULL matches NULL (`IS NOT DISTINCT FROM`); else NULL keys match nothing.
    #[serde(default)]
    pub nulls_match: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SetOpKind {
    /// Once if both sides have the row; with ALL as often as the side that has it less often.
    Intersect,
    /// Once if only the left side has the row; with ALL as often as the left side has it more often.
    Except,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupKey {
    pub column: usize,
    pub form: KeyForm,
}

/// One aggregate over columns of the input (expressions are projected below it).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Aggregate {
    pub function: AggregateFunction,
    /// Input column; `None` for `count(*)`.
    pub argument: Option<usize>,
    /// Boolean input column of FILTER (WHERE ...).
    pub filter: Option<usize>,
    /// `agg(distinct x)`: equality of the argument.
    pub distinct: Option<KeyForm>,
}

/// Aggregates with an exact native form. Result types are the server's: sum(int2|int4) is int8, sum(int8) and
/// sum(numeric) are numeric, avg of integers and numeric is numeric, float results follow their class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AggregateFunction {
    CountStar,
    Count,
    /// Integers into int8 (22003 on overflow): sum(int2), sum(int4).
    SumInt8,
    /// Integers into numeric: sum(int8).
    SumIntNumeric,
    SumNumeric,
    SumFloat4,
    SumFloat8,
    AvgInt,
    AvgNumeric,
    /// avg(float4), a float8 of the widened values.
    AvgFloat4,
    AvgFloat8,
    Min(expr::Order),
    Max(expr::Order),
    BoolAnd,
    BoolOr,
    /// The value of the only row, NULL included; NULL without rows, error 21000 with several: a scalar subquery.
    Single,
}

/// Expressions that PostgreSQL evaluates over batches of changed rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteBatch {
    /// Input columns that the expressions read, as `x.c1`, `x.c2`, ... in this order.
    pub inputs: Vec<RemoteInput>,
    pub exprs: Vec<RemoteExpr>,
    /// Users' code runs only inside `pgtrickle_queries.evaluate_<pgt_id>_<number>`, a definer function of the stream
    /// table's owner (D7). `None`: everything in it is built in.
    pub owner_function: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteInput {
    pub column: usize,
    /// Schema-qualified type to cast the text to, with typmod, e.g. `pg_catalog."numeric"(8,3)`.
    pub type_name: String,
    /// ` COLLATE "s"."c"` where the column's collation is not its type's default, else empty.
    pub collate: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteExpr {
    /// Verified SQL over `x.c1` ...
    pub sql: String,
    pub result: TypeInfo,
    /// All functions, operators, types and casts in it are built in (`pg_catalog`), so it can't run users' code.
    pub builtin_only: bool,
}

/// A column of the stream table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputColumn {
    pub name: String,
    pub ty: TypeInfo,
    /// `format_type` text, for messages and casts.
    pub type_name: String,
}

/// A base relation that the plan reads, and the attributes it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceUse {
    pub source: SourceId,
    /// Ascending attnums.
    pub attributes: Vec<i16>,
}

/// The plan of one defining query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub rel: Rel,
    pub columns: Vec<OutputColumn>,
    /// Output columns that are proven unique and NOT NULL (D17), smallest set found; `None`: row-id form.
    pub key: Option<Vec<usize>>,
    pub sources: Vec<SourceUse>,
    /// Stream tables that the query reads through the dataflow.
    pub upstreams: Vec<ViewId>,
    /// Things worth telling at creation (an ORDER BY that a table can't keep, a cross join ...).
    pub notices: Vec<String>,
}

/// Number of output columns of an operator (a [`Rel::Constant`] without rows has none).
pub fn width(rel: &Rel) -> usize {
    match rel {
        Rel::Source { attributes, .. } => attributes.len(),
        Rel::StreamTable { columns, .. } => columns.len(),
        Rel::Constant { rows } => rows.first().map_or(0, |r| r.iter().count()),
        Rel::Filter { input, .. } => width(input),
        Rel::Project { exprs, .. } => exprs.len(),
        Rel::Evaluate { input, batch } => width(input) + batch.exprs.len(),
        Rel::Join { kind, left, .. } if kind.is_left_only() => width(left),
        Rel::Join { left, right, .. } => width(left) + width(right),
        Rel::SetOp { keys, .. } => keys.len(),
        Rel::Aggregate { group, aggregates, .. } => group.len() + aggregates.len(),
        Rel::Distinct { keys, .. } => keys.len(),
        Rel::Recursive { base, .. } => width(base),
        Rel::RecursiveReference { width, .. } => *width,
        Rel::Group { input, keys, batch } => match batch.form.keeps_rows() {
            true => width(input) + batch.exprs.len(),
            false => keys.len() + batch.exprs.len(),
        },
        Rel::TopK { input, .. } => width(input),
        Rel::UnionAll { inputs } => inputs.first().map_or(0, width),
        Rel::Partitioned { attributes, .. } => attributes.len(),
    }
}

impl Rel {
    /// The operators directly below.
    pub fn inputs(&self) -> Vec<&Rel> {
        match self {
            Rel::Source { .. }
            | Rel::StreamTable { .. }
            | Rel::Constant { .. }
            | Rel::RecursiveReference { .. } => Vec::new(),
            Rel::Filter { input, .. }
            | Rel::Project { input, .. }
            | Rel::Evaluate { input, .. }
            | Rel::Aggregate { input, .. }
            | Rel::Group { input, .. }
            | Rel::TopK { input, .. }
            | Rel::Distinct { input, .. } => vec![input],
            Rel::Join { left, right, .. } | Rel::SetOp { left, right, .. } => vec![left, right],
            Rel::Recursive { base, step, .. } => vec![base, step],
            Rel::UnionAll { inputs } | Rel::Partitioned { leaves: inputs, .. } => inputs.iter().collect(),
        }
    }

    /// What PostgreSQL computes, in the order of a walk.
    pub fn remote_work(&self) -> Vec<RemoteWork<'_>> {
        let mut work = Vec::new();
        self.walk(&mut |rel| match rel {
            Rel::Evaluate { batch, .. } => work.push(RemoteWork::Rows(batch)),
            Rel::Group { batch, .. } => work.push(RemoteWork::Groups(batch)),
            _ => {}
        });
        work
    }

    /// Statements for the functions of users' batches, in the order of their numbers.
    pub fn user_work(&self) -> Vec<RemoteWork<'_>> {
        let mut work = self.remote_work();
        work.retain(|w| w.owner_function().is_some());
        work.sort_by_key(RemoteWork::owner_function);
        work.dedup_by_key(|w| w.owner_function());
        work
    }

    /// Numbers the batches that call users' code, from 0 in the order of a walk: each has a function of its owner's.
    /// Equal batches share one, so that equal subtrees stay equal.
    pub fn number_user_batches(&mut self) {
        #[derive(PartialEq)]
        enum Known {
            Rows(RemoteBatch),
            Group(GroupBatch),
        }
        /// The number of an equal batch met before, or the next one.
        fn number(batch: Known, known: &mut Vec<Known>) -> Option<u32> {
            let position = known.iter().position(|k| *k == batch).unwrap_or_else(|| {
                known.push(batch);
                known.len() - 1
            });
            u32::try_from(position).ok()
        }
        fn walk(rel: &mut Rel, next: &mut Vec<Known>) {
            match rel {
                Rel::Evaluate { batch, .. } if batch.exprs.iter().any(|e| !e.builtin_only) => {
                    batch.owner_function = number(Known::Rows(batch.clone()), next);
                }
                Rel::Group { batch, .. } if batch.calls_users() => {
                    batch.owner_function = number(Known::Group(batch.clone()), next);
                }
                _ => {}
            }
            match rel {
                Rel::Source { .. }
                | Rel::StreamTable { .. }
                | Rel::Constant { .. }
                | Rel::RecursiveReference { .. } => {}
                Rel::Recursive { base, step, .. } => {
                    walk(base, next);
                    walk(step, next);
                }
                Rel::Filter { input, .. }
                | Rel::Project { input, .. }
                | Rel::Evaluate { input, .. }
                | Rel::Aggregate { input, .. }
                | Rel::Group { input, .. }
                | Rel::TopK { input, .. }
                | Rel::Distinct { input, .. } => walk(input, next),
                Rel::Join { left, right, .. } | Rel::SetOp { left, right, .. } => {
                    walk(left, next);
                    walk(right, next);
                }
                Rel::UnionAll { inputs } | Rel::Partitioned { leaves: inputs, .. } => {
                    inputs.iter_mut().for_each(|i| walk(i, next));
                }
            }
        }
        walk(self, &mut Vec::new());
    }

    /// Whether the reference of recursion `id` is below (a recursion inside with the same `id` is another one).
    pub fn reads_recursion(&self, id: usize) -> bool {
        match self {
            Rel::RecursiveReference { id: other, .. } => *other == id,
            Rel::Recursive { id: other, .. } if *other == id => false,
            rel => rel.inputs().iter().any(|i| i.reads_recursion(id)),
        }
    }

    /// Calls `visit` for this operator and all below, from the top.
    pub fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Rel)) {
        visit(self);
        self.inputs().into_iter().for_each(|i| i.walk(visit));
    }
}
