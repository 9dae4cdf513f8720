//! From a built-in function's C symbol (`pg_proc.prosrc`) to the kernel that gives exactly its result.
//!
//! The symbol says which operation it is, whatever SQL name or operator stands for it. A symbol that is not here is
//! computed by PostgreSQL.

use crate::plan::expr::{Comparison, IntWidth, Kernel, Order};
use crate::row::TypeClass;

/// What the arguments' collation allows.
#[derive(Debug, Clone, Copy)]
pub struct CollationRules {
    /// Equality is bytewise.
    pub deterministic: bool,
    /// Order is bytewise.
    pub bytewise: bool,
}

/// The kernel of a built-in function, `None` if PostgreSQL has to compute it.
pub fn kernel(symbol: &str, collation: CollationRules) -> Option<Kernel> {
    if let Some((order, comparison)) = comparison(symbol, collation) {
        return Some(Kernel::Compare(order, comparison));
    }
    if let Some(kernel) = integer(symbol) {
        return Some(kernel);
    }
    Some(match symbol {
        "int2_numeric" | "int4_numeric" | "int8_numeric" => Kernel::IntToNumeric,
        "numeric_int2" => Kernel::NumericToInt(IntWidth::I2),
        "numeric_int4" => Kernel::NumericToInt(IntWidth::I4),
        "numeric_int8" => Kernel::NumericToInt(IntWidth::I8),
        "numeric_add" => Kernel::NumericAdd,
        "numeric_sub" => Kernel::NumericSub,
        "numeric_mul" => Kernel::NumericMul,
        "numeric_div" => Kernel::NumericDiv,
        "numeric_uminus" => Kernel::NumericNeg,
        "numeric_abs" => Kernel::NumericAbs,
        "numeric_round" => Kernel::NumericRound,
        "i2tod" | "i4tod" | "i8tod" => Kernel::IntToFloat8,
        "ftod" => Kernel::Float4To8,
        "float4pl" => Kernel::FloatAdd(TypeClass::Float4),
        "float4mi" => Kernel::FloatSub(TypeClass::Float4),
        "float4mul" => Kernel::FloatMul(TypeClass::Float4),
        "float4div" => Kernel::FloatDiv(TypeClass::Float4),
        "float8pl" => Kernel::FloatAdd(TypeClass::Float8),
        "float8mi" => Kernel::FloatSub(TypeClass::Float8),
        "float8mul" => Kernel::FloatMul(TypeClass::Float8),
        "float8div" => Kernel::FloatDiv(TypeClass::Float8),
        "float4um" | "float8um" => Kernel::FloatNeg,
        // text(bpchar) and rtrim(text).
        "rtrim1" => Kernel::BpcharToText,
        "textcat" => Kernel::TextConcat,
        "textlen" => Kernel::TextLength,
        "textlike" if collation.deterministic => Kernel::TextLike(true),
        "textnlike" if collation.deterministic => Kernel::TextLike(false),
        "text_starts_with" if collation.deterministic => Kernel::TextStartsWith,
        "date_mi" => Kernel::DateSub,
        _ => return None,
    })
}

/// The comparison a symbol stands for: `int4eq`, `numeric_lt`, `text_ge`, `bpcharne` ...
pub fn comparison(symbol: &str, collation: CollationRules) -> Option<(Order, Comparison)> {
    const SUFFIXES: [(&str, Comparison); 6] = [
        ("eq", Comparison::Eq),
        ("ne", Comparison::Ne),
        ("lt", Comparison::Lt),
        ("le", Comparison::Le),
        ("gt", Comparison::Gt),
        ("ge", Comparison::Ge),
    ];
    let (stem, comparison) = SUFFIXES.iter().find_map(|(s, c)| Some((symbol.strip_suffix(s)?, *c)))?;
    let equality = matches!(comparison, Comparison::Eq | Comparison::Ne);
    let order = match stem {
        "bool" => Order::Bool,
        "int2" | "int4" | "int8" | "int24" | "int42" | "int28" | "int82" | "int48" | "int84" | "oid" => {
            Order::Int
        }
        "numeric_" => Order::Numeric,
        // float48 and its like widen the narrower value first, whose shortest text is not that of the wider one.
        "float4" | "float8" => Order::Float,
        "text" if equality && collation.deterministic => Order::Bytes,
        "text_" if collation.bytewise => Order::Bytes,
        "bpchar" if collation.bytewise || (equality && collation.deterministic) => Order::Bpchar,
        "name" if collation.bytewise || (equality && collation.deterministic) => Order::Bytes,
        "uuid_" | "bytea" => Order::Bytes,
        // Enum labels and "char" are not ordered by their text.
        "enum_" | "char" if equality => Order::Bytes,
        "date_" => Order::Date,
        "time_" => Order::Time,
        "timestamp_" => Order::Timestamp,
        "interval_" => Order::Interval,
        _ => return None,
    };
    Some((order, comparison))
}

fn integer(symbol: &str) -> Option<Kernel> {
    use IntWidth::*;
    let cast = match symbol {
        "i4toi2" | "int82" => Some(I2),
        "i2toi4" | "int84" => Some(I4),
        "int28" | "int48" | "oidtoi8" => Some(I8),
        _ => None,
    };
    if let Some(width) = cast {
        return Some(Kernel::IntCast(width));
    }
    let digits = symbol.strip_prefix("int")?;
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    let width = match &digits[..end] {
        "2" => I2,
        "4" | "24" | "42" => I4,
        "8" | "28" | "82" | "48" | "84" => I8,
        _ => return None,
    };
    let same_width = end == 1;
    Some(match &digits[end..] {
        "pl" => Kernel::IntAdd(width),
        "mi" => Kernel::IntSub(width),
        "mul" => Kernel::IntMul(width),
        "div" => Kernel::IntDiv(width),
        "mod" if same_width => Kernel::IntMod(width),
        "um" if same_width => Kernel::IntNeg(width),
        "abs" if same_width => Kernel::IntAbs(width),
        _ => return None,
    })
}

/// How `min` and `max` compare values of a class; `bytewise` says so of the collation.
pub fn order_of(class: TypeClass, bytewise: bool) -> Option<Order> {
    use TypeClass::*;
    Some(match class {
        Bool => Order::Bool,
        Int2 | Int4 | Int8 | Oid => Order::Int,
        Numeric => Order::Numeric,
        Float4 | Float8 => Order::Float,
        Text | Varchar | Name if bytewise => Order::Bytes,
        Bpchar if bytewise => Order::Bpchar,
        Bytea | Uuid => Order::Bytes,
        Date => Order::Date,
        Time => Order::Time,
        Timestamp | Timestamptz => Order::Timestamp,
        Interval => Order::Interval,
        Text | Varchar | Name | Bpchar | Char | Enum | Other => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBC: CollationRules = CollationRules { deterministic: true, bytewise: false };

    #[test]
    fn symbols_give_the_operation_and_the_width_of_its_overflow() {
        assert_eq!(kernel("int24pl", LIBC), Some(Kernel::IntAdd(IntWidth::I4)));
        assert_eq!(kernel("int84mi", LIBC), Some(Kernel::IntSub(IntWidth::I8)));
        assert_eq!(kernel("int28", LIBC), Some(Kernel::IntCast(IntWidth::I8)));
        assert_eq!(kernel("int84", LIBC), Some(Kernel::IntCast(IntWidth::I4)));
        assert_eq!(kernel("int84eq", LIBC), Some(Kernel::Compare(Order::Int, Comparison::Eq)));
        assert_eq!(kernel("int4shl", LIBC), None);
        assert_eq!(kernel("float48eq", LIBC), None);
    }

    #[test]
    fn text_is_ordered_natively_only_by_bytes() {
        assert_eq!(kernel("texteq", LIBC), Some(Kernel::Compare(Order::Bytes, Comparison::Eq)));
        assert_eq!(kernel("text_lt", LIBC), None);
        let c = CollationRules { deterministic: true, bytewise: true };
        assert_eq!(kernel("text_lt", c), Some(Kernel::Compare(Order::Bytes, Comparison::Lt)));
        let custom = CollationRules { deterministic: false, bytewise: false };
        assert_eq!(kernel("texteq", custom), None);
        assert_eq!(kernel("bpchareq", custom), None);
    }
}
