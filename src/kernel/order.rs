//! Comparison of values as the server's btree operators order them.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::value::Value;
use crate::plan::expr::Order;
use crate::row::{Datum, Fault, Numeric, TypeClass, TypeInfo, temporal};

/// OIDs of the collations `"C"` and `"POSIX"` (`pg_collation.dat`), fixed in all versions.
pub const C_COLLATION: u32 = 950;
pub const POSIX_COLLATION: u32 = 951;

impl Order {
    /// The native order of a type, `None` where only PostgreSQL knows it. `c_collation`: the type's collation (or the
    /// database's, for the default collation) orders bytewise. Other deterministic collations get no order here; their
    /// equality is [`Order::for_equality`].
    pub fn for_type(ty: &TypeInfo, c_collation: bool) -> Option<Order> {
        use TypeClass::*;
        Some(match ty.class {
            Bool => Order::Bool,
            Int2 | Int4 | Int8 | Oid => Order::Int,
            TypeClass::Numeric => Order::Numeric,
            Float4 | Float8 => Order::Float,
            Text | Varchar | Name if c_collation => Order::Bytes,
            TypeClass::Bpchar if c_collation => Order::Bpchar,
            // Lower-case hexadecimal digits sort as the bytes that they stand for.
            Bytea | Uuid => Order::Bytes,
            TypeClass::Date => Order::Date,
            TypeClass::Time => Order::Time,
            TypeClass::Timestamp | Timestamptz => Order::Timestamp,
            TypeClass::Interval => Order::Interval,
            // "char" prints high bytes as octal, enums sort by their catalog.
            Text | Varchar | Name | TypeClass::Bpchar | Char | Enum | Other => return None,
        })
    }

    /// The native equality of a type: its order, or bytes for strings under any deterministic collation, enums and
    /// `"char"`. Not to be used for `<`.
    pub fn for_equality(ty: &TypeInfo) -> Option<Order> {
        match ty.class {
            class if class.is_string() && !ty.deterministic => None,
            TypeClass::Bpchar => Some(Order::Bpchar),
            TypeClass::Text | TypeClass::Varchar | TypeClass::Name | TypeClass::Char | TypeClass::Enum => {
                Some(Order::Bytes)
            }
            _ => Order::for_type(ty, false),
        }
    }
}

/// Compares two values of one type that are neither NULL nor errors. Values that the order does not know (which no
/// plan produces) compare by their packed form, so that the order stays total.
pub fn compare(order: Order, a: Datum<'_>, b: Datum<'_>) -> Ordering {
    compare_values(order, &Value::from(a), &Value::from(b)).unwrap_or_else(|_| a.cmp(&b))
}

/// [`compare`] for intermediate values.
pub(super) fn compare_values(order: Order, a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, Fault> {
    match order {
        Order::Bool => match (a, b) {
            (Value::Bool(a), Value::Bool(b)) => Ok(a.cmp(b)),
            _ => Err(Fault::WRONG_OPERAND),
        },
        Order::Int => Ok(a.int()?.cmp(&b.int()?)),
        Order::Numeric => compare_numeric(a, b),
        // A float4 that a kernel computed meets the text of a float4, which reads as another float8.
        Order::Float if matches!(a, Value::Float4(_)) || matches!(b, Value::Float4(_)) => {
            Ok(compare_floats(a.float4()?.into(), b.float4()?.into()))
        }
        Order::Float => Ok(compare_floats(a.float8()?, b.float8()?)),
        Order::Bytes => Ok(a.bytes()?.cmp(b.bytes()?)),
        Order::Bpchar => Ok(trim(a.bytes()?).cmp(trim(b.bytes()?))),
        Order::Date => by(a, b, temporal::date_days),
        Order::Time => by(a, b, temporal::time_micros),
        Order::Timestamp => by(a, b, temporal::timestamp_micros),
        Order::Interval => by(a, b, temporal::interval_micros),
    }
}

fn compare_numeric(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, Fault> {
    if let (Value::Borrowed(a), Value::Borrowed(b)) = (a, b)
        && a == b
    {
        return Ok(Ordering::Equal);
    }
    let (a, b): (Cow<'_, Numeric>, Cow<'_, Numeric>) = (a.numeric()?, b.numeric()?);
    Ok(a.compare(&b))
}

/// NaN is the largest and equals itself; -0 equals 0 (`float8_cmp_internal`).
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn by<T: Ord>(a: &Value<'_>, b: &Value<'_>, read: impl Fn(&[u8]) -> Option<T>) -> Result<Ordering, Fault> {
    let (a, b) = (a.bytes()?, b.bytes()?);
    if a == b {
        return Ok(Ordering::Equal);
    }
    match (read(a), read(b)) {
        (Some(a), Some(b)) => Ok(a.cmp(&b)),
        _ => Err(Fault::WRONG_OPERAND),
    }
}

/// Without trailing blanks, which `char(n)` does not compare (`bpchartruelen`).
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let blanks = text.iter().rev().take_while(|&&b| b == b' ').count();
    &text[..text.len() - blanks]
}
