//! Scalar expressions with an exact native form.
//!
//! Invariant: a kernel exists here only if its result, including errors, NULLs and display scale, is bit for bit what
//! the server gives (D3). Everything else is a [`super::RemoteExpr`].

use serde::{Deserialize, Serialize};

use crate::row::{Row, TypeClass};

/// A native expression over the columns of one row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Expr {
    Column(usize),
    /// A one-column row.
    Literal(Row),
    /// Strict: NULL if any argument is NULL, the first error if any argument is an error.
    Call {
        kernel: Kernel,
        args: Vec<Expr>,
    },
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    IsNull(Box<Expr>),
    IsNotNull(Box<Expr>),
    /// `x IS [NOT] TRUE | FALSE | UNKNOWN`, which is never NULL.
    BooleanTest {
        arg: Box<Expr>,
        test: BooleanTest,
    },
    /// Searched CASE; branches are tried in order and later ones are not evaluated.
    Case {
        branches: Vec<(Expr, Expr)>,
        otherwise: Box<Expr>,
    },
    Coalesce(Vec<Expr>),
    /// `a IS DISTINCT FROM b` (negate with `Not`); never NULL.
    Distinct {
        order: Order,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    /// `NULLIF(a, b)`.
    NullIf {
        order: Order,
        left: Box<Expr>,
        right: Box<Expr>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BooleanTest {
    IsTrue,
    IsNotTrue,
    IsFalse,
    IsNotFalse,
    IsUnknown,
    IsNotUnknown,
}

/// How two values of one type compare natively. `Bytes` is equality only under a deterministic collation that is not
/// "C": the planner uses it for `=` and `<>`, never for `<`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Order {
    Bool,
    Int,
    Numeric,
    /// float4 and float8: NaN equals NaN and is the largest, -0 equals 0.
    Float,
    /// Bytewise: text under "C"/POSIX collations, uuid, bytea (hex text), name; and equality of any deterministic text.
    Bytes,
    /// bpchar: trailing blanks do not count.
    Bpchar,
    Date,
    Time,
    /// timestamp and timestamptz (printed in UTC).
    Timestamp,
    Interval,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Width of an integer operation: decides overflow (22003).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IntWidth {
    I2,
    I4,
    I8,
}

/// Strict native functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kernel {
    Compare(Order, Comparison),
    /// `a + b` with overflow at `width`.
    IntAdd(IntWidth),
    IntSub(IntWidth),
    IntMul(IntWidth),
    /// Truncating; 22012 on zero.
    IntDiv(IntWidth),
    IntMod(IntWidth),
    IntNeg(IntWidth),
    IntAbs(IntWidth),
    /// int2/int4/int8 -> another integer width; 22003 when out of range.
    IntCast(IntWidth),
    IntToNumeric,
    /// Rounds half away from zero; 22003 out of range, 0A000 for NaN and infinities.
    NumericToInt(IntWidth),
    NumericAdd,
    NumericSub,
    NumericMul,
    /// Scale by the server's `select_div_scale`; 22012 on zero.
    NumericDiv,
    NumericNeg,
    NumericAbs,
    /// `round(numeric, int)`, half away from zero.
    NumericRound,
    /// Applies a numeric typmod (`atttypmod`); 22003 on overflow.
    NumericTypmod(i32),
    IntToFloat8,
    FloatAdd(TypeClass),
    FloatSub(TypeClass),
    FloatMul(TypeClass),
    FloatDiv(TypeClass),
    FloatNeg,
    /// float4 -> float8.
    Float4To8,
    /// `text || text`.
    TextConcat,
    /// varchar(n) and text relabels: no change of the image.
    Relabel,
    /// bpchar -> text or varchar: without trailing blanks.
    BpcharToText,
    /// `length(text)`: characters.
    TextLength,
    /// `text LIKE text` (`false`: NOT LIKE) under a deterministic collation.
    TextLike(bool),
    /// `starts_with(text, text)`.
    TextStartsWith,
    /// timestamp/timestamptz -> date is not here: it depends on settings and on formatting; PostgreSQL does it.
    /// `date - date` -> int4.
    DateSub,
}

impl Kernel {
    /// Whether the kernel never raises an error on arguments that are not errors.
    pub fn is_infallible(self) -> bool {
        matches!(
            self,
            Kernel::Compare(..)
                | Kernel::IntCast(IntWidth::I8)
                | Kernel::Float4To8
                | Kernel::BpcharToText
                | Kernel::IntToNumeric
                | Kernel::IntToFloat8
                | Kernel::NumericNeg
                | Kernel::NumericAbs
                | Kernel::FloatNeg
                | Kernel::TextConcat
                | Kernel::Relabel
                | Kernel::TextLength
                | Kernel::TextStartsWith
        )
    }
}

impl Expr {
    /// Whether evaluating the expression can't raise an error; only such expressions may move across filters and joins
    /// (hazard B1).
    pub fn is_infallible(&self) -> bool {
        let all = |exprs: &[Expr]| exprs.iter().all(Expr::is_infallible);
        match self {
            Expr::Column(_) | Expr::Literal(_) => true,
            Expr::Call { kernel, args } => kernel.is_infallible() && all(args),
            Expr::And(args) | Expr::Or(args) | Expr::Coalesce(args) => all(args),
            Expr::Not(arg) | Expr::IsNull(arg) | Expr::IsNotNull(arg) => arg.is_infallible(),
            Expr::BooleanTest { arg, .. } => arg.is_infallible(),
            Expr::Case { branches, otherwise } => {
                branches.iter().all(|(when, then)| when.is_infallible() && then.is_infallible())
                    && otherwise.is_infallible()
            }
            Expr::Distinct { left, right, .. } | Expr::NullIf { left, right, .. } => {
                left.is_infallible() && right.is_infallible()
            }
        }
    }
}

impl Expr {
    /// Calls `visit` with every column the expression reads (once per mention).
    pub fn each_column(&self, visit: &mut impl FnMut(usize)) {
        match self {
            Expr::Column(c) => visit(*c),
            Expr::Literal(_) => {}
            Expr::Call { args, .. } | Expr::And(args) | Expr::Or(args) | Expr::Coalesce(args) => {
                args.iter().for_each(|a| a.each_column(visit));
            }
            Expr::Not(a) | Expr::IsNull(a) | Expr::IsNotNull(a) | Expr::BooleanTest { arg: a, .. } => {
                a.each_column(visit);
            }
            Expr::Case { branches, otherwise } => {
                for (when, then) in branches {
                    when.each_column(visit);
                    then.each_column(visit);
                }
                otherwise.each_column(visit);
            }
            Expr::Distinct { left, right, .. } | Expr::NullIf { left, right, .. } => {
                left.each_column(visit);
                right.each_column(visit);
            }
        }
    }

    /// The expression with every column replaced.
    pub fn replace_columns(self, with: &impl Fn(usize) -> Expr) -> Expr {
        let boxed = |e: Box<Expr>| Box::new(e.replace_columns(with));
        let all = |v: Vec<Expr>| v.into_iter().map(|e| e.replace_columns(with)).collect();
        match self {
            Expr::Column(c) => with(c),
            Expr::Literal(row) => Expr::Literal(row),
            Expr::Call { kernel, args } => Expr::Call { kernel, args: all(args) },
            Expr::And(args) => Expr::And(all(args)),
            Expr::Or(args) => Expr::Or(all(args)),
            Expr::Coalesce(args) => Expr::Coalesce(all(args)),
            Expr::Not(arg) => Expr::Not(boxed(arg)),
            Expr::IsNull(arg) => Expr::IsNull(boxed(arg)),
            Expr::IsNotNull(arg) => Expr::IsNotNull(boxed(arg)),
            Expr::BooleanTest { arg, test } => Expr::BooleanTest { arg: boxed(arg), test },
            Expr::Case { branches, otherwise } => Expr::Case {
                branches: branches
                    .into_iter()
                    .map(|(w, t)| (w.replace_columns(with), t.replace_columns(with)))
                    .collect(),
                otherwise: boxed(otherwise),
            },
            Expr::Distinct { order, left, right } => {
                Expr::Distinct { order, left: boxed(left), right: boxed(right) }
            }
            Expr::NullIf { order, left, right } => {
                Expr::NullIf { order, left: boxed(left), right: boxed(right) }
            }
        }
    }
}
