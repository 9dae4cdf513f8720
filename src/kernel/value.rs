//! Results of native expressions.
//!
//! Numerics and floats stay numbers between kernels and become the server's text only when a row is built.

use std::borrow::Cow;

use crate::row::{Datum, Fault, Numeric, RowBuilder, float};

/// The value of an expression: borrowed from the row or the plan where possible.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// Server text of a column or a literal, of any class that is not boolean or integer.
    Borrowed(&'a [u8]),
    /// Server text that a kernel made; its buffer comes from [`Scratch`] and goes back by [`Scratch::recycle`].
    Owned(Vec<u8>),
    Numeric(Numeric),
    Float4(f32),
    Float8(f64),
    /// `SQLSTATE:message`.
    Error(Cow<'a, [u8]>),
}

impl<'a> From<Datum<'a>> for Value<'a> {
    fn from(datum: Datum<'a>) -> Self {
        match datum {
            Datum::Null => Value::Null,
            Datum::Bool(b) => Value::Bool(b),
            Datum::Int(i) => Value::Int(i),
            Datum::Text(t) => Value::Borrowed(t),
            Datum::Error(e) => Value::Error(Cow::Borrowed(e)),
        }
    }
}

impl From<Result<Numeric, Fault>> for Value<'_> {
    fn from(result: Result<Numeric, Fault>) -> Self {
        result.map_or_else(Value::fault, Value::Numeric)
    }
}

impl From<Result<f64, Fault>> for Value<'_> {
    fn from(result: Result<f64, Fault>) -> Self {
        result.map_or_else(Value::fault, Value::Float8)
    }
}

impl From<Result<f32, Fault>> for Value<'_> {
    fn from(result: Result<f32, Fault>) -> Self {
        result.map_or_else(Value::fault, Value::Float4)
    }
}

impl From<Result<i64, Fault>> for Value<'_> {
    fn from(result: Result<i64, Fault>) -> Self {
        result.map_or_else(Value::fault, Value::Int)
    }
}

impl<'a> Value<'a> {
    pub fn fault(fault: Fault) -> Value<'a> {
        Value::Error(Cow::Borrowed(fault.payload().as_bytes()))
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Value::Error(_))
    }

    /// For a place that takes booleans: NULL and errors pass, anything else is a planner's bug.
    pub(super) fn null_or_error(self) -> Value<'a> {
        match self {
            Value::Null | Value::Error(_) => self,
            _ => Value::fault(Fault::WRONG_OPERAND),
        }
    }

    /// The text of a string value.
    pub(super) fn bytes(&self) -> Result<&[u8], Fault> {
        match self {
            Value::Borrowed(t) => Ok(t),
            Value::Owned(t) => Ok(t),
            _ => Err(Fault::WRONG_OPERAND),
        }
    }

    pub(super) fn int(&self) -> Result<i64, Fault> {
        match self {
            Value::Int(i) => Ok(*i),
            _ => Err(Fault::WRONG_OPERAND),
        }
    }

    pub(super) fn numeric(&self) -> Result<Cow<'_, Numeric>, Fault> {
        match self {
            Value::Numeric(n) => Ok(Cow::Borrowed(n)),
            other => Numeric::parse(other.bytes()?).map(Cow::Owned).ok_or(Fault::WRONG_OPERAND),
        }
    }

    pub(super) fn float8(&self) -> Result<f64, Fault> {
        match self {
            Value::Float8(v) => Ok(*v),
            other => float::parse_f64(other.bytes()?).ok_or(Fault::WRONG_OPERAND),
        }
    }

    pub(super) fn float4(&self) -> Result<f32, Fault> {
        match self {
            Value::Float4(v) => Ok(*v),
            other => float::parse_f32(other.bytes()?).ok_or(Fault::WRONG_OPERAND),
        }
    }

    /// Appends the value to a row.
    pub fn push_to(&self, builder: &mut RowBuilder, scratch: &mut Scratch) {
        match self {
            Value::Null => builder.push(Datum::Null),
            Value::Bool(b) => builder.push(Datum::Bool(*b)),
            Value::Int(i) => builder.push(Datum::Int(*i)),
            Value::Borrowed(t) => builder.push(Datum::Text(t)),
            Value::Owned(t) => builder.push(Datum::Text(t)),
            Value::Error(e) => builder.push(Datum::Error(e)),
            Value::Numeric(_) | Value::Float4(_) | Value::Float8(_) => {
                let mut text = scratch.buffer();
                self.write_number(&mut text);
                builder.push(Datum::Text(&text));
                scratch.keep(text);
            }
        }
    }

    fn write_number(&self, out: &mut Vec<u8>) {
        match self {
            Value::Numeric(n) => n.write(out),
            Value::Float4(v) => float::write_f32(*v, out),
            Value::Float8(v) => float::write_f64(*v, out),
            _ => {}
        }
    }

    /// The same value as server text where it is a number, so that it can be borrowed as a datum.
    pub fn into_text(self, scratch: &mut Scratch) -> Value<'a> {
        match self {
            Value::Numeric(_) | Value::Float4(_) | Value::Float8(_) => {
                let mut text = scratch.buffer();
                self.write_number(&mut text);
                Value::Owned(text)
            }
            other => other,
        }
    }
}

/// Buffers that text kernels reuse from row to row. One per worker.
#[derive(Debug, Default)]
pub struct Scratch {
    spare: Vec<Vec<u8>>,
}

/// More spare buffers than any expression has text kernels at once are not kept.
const SPARE_BUFFERS: usize = 16;

/// A buffer that once held a large value is given back to the allocator.
const SPARE_CAPACITY: usize = 64 * 1024;

impl Scratch {
    /// An empty buffer.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub(super) fn keep(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS && buffer.capacity() <= SPARE_CAPACITY {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Takes back the buffer of a value that is no longer needed.
    pub fn recycle(&mut self, value: Value<'_>) {
        if let Value::Owned(buffer) = value {
            self.keep(buffer);
        }
    }
}
