//! Integer kernels with the server's overflow errors (`utils/adt/int.c`, `int8.c`).

use crate::plan::expr::IntWidth;
use crate::row::{Fault, Numeric};

/// `value` if it fits `width`.
pub(super) fn fit(width: IntWidth, value: Option<i64>) -> Result<i64, Fault> {
    let range = match width {
        IntWidth::I2 => i64::from(i16::MIN)..=i64::from(i16::MAX),
        IntWidth::I4 => i64::from(i32::MIN)..=i64::from(i32::MAX),
        IntWidth::I8 => i64::MIN..=i64::MAX,
    };
    value.filter(|v| range.contains(v)).ok_or(out_of_range(width))
}

fn out_of_range(width: IntWidth) -> Fault {
    match width {
        IntWidth::I2 => Fault::SMALLINT_RANGE,
        IntWidth::I4 => Fault::INTEGER_RANGE,
        IntWidth::I8 => Fault::BIGINT_RANGE,
    }
}

/// Truncating quotient.
pub(super) fn divide(width: IntWidth, a: i64, b: i64) -> Result<i64, Fault> {
    if b == 0 {
        return Err(Fault::DIVISION_BY_ZERO);
    }
    fit(width, a.checked_div(b))
}

/// Remainder with the sign of the dividend; the smallest integer modulo -1 is 0, not an overflow.
pub(super) fn remainder(a: i64, b: i64) -> Result<i64, Fault> {
    if b == 0 {
        return Err(Fault::DIVISION_BY_ZERO);
    }
    Ok(a.wrapping_rem(b))
}

/// numeric -> int2, int4, int8.
pub(super) fn from_numeric(width: IntWidth, value: &Numeric) -> Result<i64, Fault> {
    match value {
        Numeric::NaN => Err(match width {
            IntWidth::I2 => Fault::NAN_TO_SMALLINT,
            IntWidth::I4 => Fault::NAN_TO_INTEGER,
            IntWidth::I8 => Fault::NAN_TO_BIGINT,
        }),
        Numeric::PosInf | Numeric::NegInf => Err(match width {
            IntWidth::I2 => Fault::INFINITY_TO_SMALLINT,
            IntWidth::I4 => Fault::INFINITY_TO_INTEGER,
            IntWidth::I8 => Fault::INFINITY_TO_BIGINT,
        }),
        Numeric::Finite { .. } => fit(width, value.to_i64()),
    }
}
