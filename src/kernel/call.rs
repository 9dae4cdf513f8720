//! Strict kernels: all arguments are evaluated in order, the first error wins, then NULL.

use std::cmp::Ordering;

use crate::plan::expr::{Comparison, Expr, Kernel, Order};
use crate::row::{Datum, Fault, TypeClass, float, temporal};

use super::like::{char_len, like};
use super::order::{compare_values, trim};
use super::value::{Scratch, Value};
use super::{arithmetic, evaluate};

/// Evaluates the arguments and applies `kernel`.
pub(super) fn call<'a>(
    kernel: Kernel,
    args: &'a [Expr],
    row: &[Datum<'a>],
    scratch: &mut Scratch,
) -> Value<'a> {
    match args {
        [arg] => {
            let value = operand(arg, row, scratch);
            match value {
                Value::Null | Value::Error(_) => value,
                value => unary(kernel, value, scratch),
            }
        }
        [left, right] => {
            let left = operand(left, row, scratch);
            if left.is_error() {
                return left;
            }
            let right = operand(right, row, scratch);
            if let (Value::Int(a), Value::Int(b)) = (&left, &right) {
                return integers(kernel, *a, *b);
            }
            if right.is_error() {
                scratch.recycle(left);
                return right;
            }
            let result = if left.is_null() || right.is_null() {
                Value::Null
            } else {
                binary(kernel, &left, &right, scratch).unwrap_or_else(Value::fault)
            };
            scratch.recycle(left);
            scratch.recycle(right);
            result
        }
        _ => Value::fault(Fault::WRONG_OPERAND),
    }
}

/// [`evaluate`] without a call for the leaves, which most operands are.
#[inline]
fn operand<'a>(expr: &'a Expr, row: &[Datum<'a>], scratch: &mut Scratch) -> Value<'a> {
    match expr {
        Expr::Column(index) => match row.get(*index) {
            Some(datum) => Value::from(*datum),
            None => Value::fault(Fault::WRONG_OPERAND),
        },
        Expr::Literal(literal) => Value::from(literal.get(0)),
        _ => evaluate(expr, row, scratch),
    }
}

fn unary<'a>(kernel: Kernel, value: Value<'a>, scratch: &mut Scratch) -> Value<'a> {
    if kernel == Kernel::Relabel {
        return value;
    }
    if kernel == Kernel::BpcharToText
        && let Value::Borrowed(text) = value
    {
        return Value::Borrowed(trim(text));
    }
    let result = unary_number(kernel, &value, scratch).unwrap_or_else(Value::fault);
    scratch.recycle(value);
    result
}

fn unary_number<'a>(kernel: Kernel, value: &Value<'_>, scratch: &mut Scratch) -> Result<Value<'a>, Fault> {
    Ok(match kernel {
        Kernel::IntNeg(width) => arithmetic::fit(width, value.int()?.checked_neg()).into(),
        Kernel::IntAbs(width) => arithmetic::fit(width, value.int()?.checked_abs()).into(),
        Kernel::IntCast(width) => arithmetic::fit(width, Some(value.int()?)).into(),
        Kernel::IntToNumeric => Value::Numeric(value.int()?.into()),
        Kernel::IntToFloat8 => Value::Float8(value.int()? as f64),
        Kernel::NumericToInt(width) => arithmetic::from_numeric(width, &*value.numeric()?).into(),
        Kernel::NumericNeg => Value::Numeric(value.numeric()?.neg()),
        Kernel::NumericAbs => Value::Numeric(value.numeric()?.abs()),
        Kernel::NumericTypmod(typmod) => value.numeric()?.apply_typmod(typmod).into(),
        Kernel::FloatNeg => negate_float(value, scratch)?,
        Kernel::Float4To8 => Value::Float8(value.float4()?.into()),
        Kernel::TextLength => {
            // Characters are counted as the server counts them: by their first bytes.
            let (mut text, mut n) = (value.bytes()?, 0);
            while let [first, ..] = text {
                text = &text[char_len(*first).min(text.len())..];
                n += 1;
            }
            Value::Int(n)
        }
        Kernel::BpcharToText => {
            let mut text = scratch.buffer();
            text.extend_from_slice(trim(value.bytes()?));
            Value::Owned(text)
        }
        _ => Value::fault(Fault::WRONG_OPERAND),
    })
}

/// The text of a float changes only its sign, whatever its width.
fn negate_float<'a>(value: &Value<'_>, scratch: &mut Scratch) -> Result<Value<'a>, Fault> {
    Ok(match value {
        Value::Float4(v) => Value::Float4(-v),
        Value::Float8(v) => Value::Float8(-v),
        other => {
            let from = other.bytes()?;
            let mut text = scratch.buffer();
            match from {
                b"NaN" => text.extend_from_slice(from),
                [b'-', rest @ ..] => text.extend_from_slice(rest),
                _ => {
                    text.push(b'-');
                    text.extend_from_slice(from);
                }
            }
            Value::Owned(text)
        }
    })
}

fn binary<'a>(
    kernel: Kernel,
    a: &Value<'_>,
    b: &Value<'_>,
    scratch: &mut Scratch,
) -> Result<Value<'a>, Fault> {
    Ok(match kernel {
        Kernel::Compare(order, comparison) => Value::Bool(holds(comparison, compare_values(order, a, b)?)),
        Kernel::NumericAdd => a.numeric()?.add(&*b.numeric()?).into(),
        Kernel::NumericSub => a.numeric()?.sub(&*b.numeric()?).into(),
        Kernel::NumericMul => a.numeric()?.mul(&*b.numeric()?).into(),
        Kernel::NumericDiv => a.numeric()?.div(&*b.numeric()?).into(),
        Kernel::NumericRound => a.numeric()?.round(b.int()?).into(),
        Kernel::FloatAdd(class) => floats(class, a, b, float::add_f32, float::add_f64)?,
        Kernel::FloatSub(class) => floats(class, a, b, float::sub_f32, float::sub_f64)?,
        Kernel::FloatMul(class) => floats(class, a, b, float::mul_f32, float::mul_f64)?,
        Kernel::FloatDiv(class) => floats(class, a, b, float::div_f32, float::div_f64)?,
        Kernel::TextConcat => {
            let (a, b) = (a.bytes()?, b.bytes()?);
            let mut text = scratch.buffer();
            text.extend_from_slice(a);
            text.extend_from_slice(b);
            Value::Owned(text)
        }
        Kernel::TextLike(wanted) => Value::Bool(like(a.bytes()?, b.bytes()?)? == wanted),
        Kernel::TextStartsWith => Value::Bool(a.bytes()?.starts_with(b.bytes()?)),
        Kernel::DateSub => date_difference(a.bytes()?, b.bytes()?).into(),
        _ => Value::fault(Fault::WRONG_OPERAND),
    })
}

/// Kernels over two integers, the most frequent ones.
fn integers<'a>(kernel: Kernel, a: i64, b: i64) -> Value<'a> {
    match kernel {
        Kernel::Compare(Order::Int, comparison) => Value::Bool(holds(comparison, a.cmp(&b))),
        Kernel::IntAdd(width) => arithmetic::fit(width, a.checked_add(b)).into(),
        Kernel::IntSub(width) => arithmetic::fit(width, a.checked_sub(b)).into(),
        Kernel::IntMul(width) => arithmetic::fit(width, a.checked_mul(b)).into(),
        Kernel::IntDiv(width) => arithmetic::divide(width, a, b).into(),
        Kernel::IntMod(_) => arithmetic::remainder(a, b).into(),
        _ => Value::fault(Fault::WRONG_OPERAND),
    }
}

fn holds(comparison: Comparison, ordering: Ordering) -> bool {
    match comparison {
        Comparison::Eq => ordering.is_eq(),
        Comparison::Ne => ordering.is_ne(),
        Comparison::Lt => ordering.is_lt(),
        Comparison::Le => ordering.is_le(),
        Comparison::Gt => ordering.is_gt(),
        Comparison::Ge => ordering.is_ge(),
    }
}

fn floats<'a>(
    class: TypeClass,
    a: &Value<'_>,
    b: &Value<'_>,
    narrow: impl Fn(f32, f32) -> Result<f32, Fault>,
    wide: impl Fn(f64, f64) -> Result<f64, Fault>,
) -> Result<Value<'a>, Fault> {
    Ok(if class == TypeClass::Float4 {
        narrow(a.float4()?, b.float4()?).into()
    } else {
        wide(a.float8()?, b.float8()?).into()
    })
}

/// `date_mi`: days between two finite dates.
fn date_difference(a: &[u8], b: &[u8]) -> Result<i64, Fault> {
    let read = |text| temporal::date_days(text).ok_or(Fault::WRONG_OPERAND);
    let (a, b) = (read(a)?, read(b)?);
    if [a, b].iter().any(|d| matches!(*d, i32::MIN | i32::MAX)) {
        return Err(Fault::INFINITE_DATES);
    }
    Ok(i64::from(a) - i64::from(b))
}
