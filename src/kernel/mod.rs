//! Native evaluation of [`Expr`] over the columns of one row.
//!
//! Purpose: the expressions whose result this program computes itself, bit for bit what the server gives. Invariant:
//! evaluation never panics and never fails as a whole; a failing expression is a [`Value::Error`] with the server's
//! SQLSTATE and message, produced exactly where the server would have evaluated it (left to right, AND, OR, CASE and
//! COALESCE stop early). Integers, booleans and plain columns do not allocate. Place in the data's way:
//! dataflow operators call it per row.

mod arithmetic;
mod call;
mod like;
pub mod order;
mod value;

use std::cmp::Ordering;

use crate::plan::expr::{BooleanTest, Expr, Order};
use crate::row::{Datum, Fault, Row, RowBuilder};
pub use order::compare;
pub use value::{Scratch, Value};

/// The value of `expr` over `row`. A column past the end of the row is a planner's bug and gives an error value.
pub fn evaluate<'a>(expr: &'a Expr, row: &[Datum<'a>], scratch: &mut Scratch) -> Value<'a> {
    match expr {
        Expr::Column(index) => {
            row.get(*index).map_or(Value::fault(Fault::WRONG_OPERAND), |d| Value::from(*d))
        }
        Expr::Literal(literal) => Value::from(literal.get(0)),
        Expr::Call { kernel, args } => call::call(*kernel, args, row, scratch),
        Expr::And(args) => junction(args, false, row, scratch),
        Expr::Or(args) => junction(args, true, row, scratch),
        Expr::Not(arg) => match evaluate(arg, row, scratch) {
            Value::Bool(b) => Value::Bool(!b),
            other => other.null_or_error(),
        },
        Expr::IsNull(arg) => null_test(evaluate(arg, row, scratch), true, scratch),
        Expr::IsNotNull(arg) => null_test(evaluate(arg, row, scratch), false, scratch),
        Expr::BooleanTest { arg, test } => boolean_test(evaluate(arg, row, scratch), *test),
        Expr::Case { branches, otherwise } => {
            for (condition, result) in branches {
                match evaluate(condition, row, scratch) {
                    Value::Bool(true) => return evaluate(result, row, scratch),
                    Value::Bool(false) | Value::Null => {}
                    other => return other.null_or_error(),
                }
            }
            evaluate(otherwise, row, scratch)
        }
        Expr::Coalesce(args) => {
            for arg in args {
                match evaluate(arg, row, scratch) {
                    Value::Null => {}
                    other => return other,
                }
            }
            Value::Null
        }
        Expr::Distinct { order, left, right } => match pair(*order, left, right, row, scratch) {
            Ok((_, _, ordering)) => Value::Bool(ordering != Some(Ordering::Equal)),
            Err(error) => error,
        },
        Expr::NullIf { order, left, right } => match pair(*order, left, right, row, scratch) {
            // Two NULLs are not distinct, and the result is NULL either way.
            Ok((_, _, Some(Ordering::Equal))) => Value::Null,
            Ok((left, right, _)) => {
                scratch.recycle(right);
                left
            }
            Err(error) => error,
        },
    }
}

/// Whether a filter keeps the row: true, not NULL. The error of a failed predicate is its payload.
pub fn is_true<'a>(expr: &'a Expr, row: &[Datum<'a>], scratch: &mut Scratch) -> Result<bool, Vec<u8>> {
    match evaluate(expr, row, scratch) {
        Value::Bool(b) => Ok(b),
        Value::Null => Ok(false),
        Value::Error(payload) => Err(payload.into_owned()),
        other => {
            scratch.recycle(other);
            Err(Fault::WRONG_OPERAND.payload().as_bytes().to_vec())
        }
    }
}

/// One row of the values of `exprs`.
pub fn project(exprs: &[Expr], row: &[Datum<'_>], scratch: &mut Scratch) -> Row {
    let mut builder = RowBuilder::default();
    project_into(exprs, row, scratch, &mut builder);
    builder.finish()
}

/// Appends the values of `exprs` to a row that the caller builds (and whose buffer it keeps).
pub fn project_into(exprs: &[Expr], row: &[Datum<'_>], scratch: &mut Scratch, builder: &mut RowBuilder) {
    for expr in exprs {
        let value = evaluate(expr, row, scratch);
        value.push_to(builder, scratch);
        scratch.recycle(value);
    }
}

/// AND (`stop` false) and OR (`stop` true): the first `stop` or error ends the evaluation (`ExecEvalBoolAnd`).
fn junction<'a>(args: &'a [Expr], stop: bool, row: &[Datum<'a>], scratch: &mut Scratch) -> Value<'a> {
    let mut unknown = false;
    for arg in args {
        match evaluate(arg, row, scratch) {
            Value::Bool(b) if b == stop => return Value::Bool(stop),
            Value::Bool(_) => {}
            Value::Null => unknown = true,
            other => return other.null_or_error(),
        }
    }
    if unknown { Value::Null } else { Value::Bool(!stop) }
}

fn null_test<'a>(value: Value<'a>, wanted: bool, scratch: &mut Scratch) -> Value<'a> {
    match value {
        Value::Error(_) => value,
        Value::Null => Value::Bool(wanted),
        other => {
            scratch.recycle(other);
            Value::Bool(!wanted)
        }
    }
}

fn boolean_test(value: Value<'_>, test: BooleanTest) -> Value<'_> {
    let truth = match value {
        Value::Bool(b) => Some(b),
        Value::Null => None,
        other => return other.null_or_error(),
    };
    Value::Bool(match test {
        BooleanTest::IsTrue => truth == Some(true),
        BooleanTest::IsNotTrue => truth != Some(true),
        BooleanTest::IsFalse => truth == Some(false),
        BooleanTest::IsNotFalse => truth != Some(false),
        BooleanTest::IsUnknown => truth.is_none(),
        BooleanTest::IsNotUnknown => truth.is_some(),
    })
}

/// Both values and how they compare, where two NULLs are equal and one NULL is not comparable (`None`).
type Pair<'a> = (Value<'a>, Value<'a>, Option<Ordering>);

fn pair<'a>(
    order: Order,
    left: &'a Expr,
    right: &'a Expr,
    row: &[Datum<'a>],
    scratch: &mut Scratch,
) -> Result<Pair<'a>, Value<'a>> {
    let left = evaluate(left, row, scratch);
    if left.is_error() {
        return Err(left);
    }
    let right = evaluate(right, row, scratch);
    if right.is_error() {
        return Err(right);
    }
    let ordering = match (left.is_null(), right.is_null()) {
        (true, true) => Some(Ordering::Equal),
        (true, false) | (false, true) => None,
        (false, false) => Some(order::compare_values(order, &left, &right).map_err(Value::fault)?),
    };
    Ok((left, right, ordering))
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
