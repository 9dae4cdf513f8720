//! Arithmetic with the server's display scales, rounding and special values.
//!
//! Sources: `numeric_add_opt_error`, `numeric_mul_opt_error`, `numeric_div_opt_error`, `select_div_scale`,
//! `numeric_round`, `apply_typmod`, `numericvar_to_int64` in `utils/adt/numeric.c`.

use num_bigint::BigInt;

use super::unscaled::{div_round, div_round_small, pow10};
use super::{Finite, MAX_STORED_SCALE, NaN, NegInf, Numeric, PosInf, Unscaled};
use crate::row::fault::Fault;

/// Decimal digits per base digit of the server (`DEC_DIGITS`); quotient scales depend on it.
const BASE_DIGITS: i32 = 4;
/// `NUMERIC_MIN_SIG_DIGITS`.
const MIN_SIGNIFICANT: i32 = 16;
/// `NUMERIC_MAX_DISPLAY_SCALE`.
const MAX_DISPLAY_SCALE: i32 = 1000;
/// `NUMERIC_MAX_RESULT_SCALE`: `round()` clamps its second argument to it before version 17.
pub(crate) const MAX_ROUND: i32 = 2000;
/// `VARHDRSZ`, the offset of every numeric typmod.
const TYPMOD_OFFSET: i32 = 4;

impl Numeric {
    /// `self + other`; scale is the larger one.
    pub fn add(&self, other: &Numeric) -> Result<Numeric, Fault> {
        let (Finite { unscaled: a, scale: sa }, Finite { unscaled: b, scale: sb }) = (self, other) else {
            return Ok(match (self, other) {
                (NaN, _) | (_, NaN) | (PosInf, NegInf) | (NegInf, PosInf) => NaN,
                (PosInf, _) | (_, PosInf) => PosInf,
                _ => NegInf,
            });
        };
        let (sa, sb) = (u32::from(*sa), u32::from(*sb));
        let sum = match sa.cmp(&sb) {
            std::cmp::Ordering::Equal => a.add(b),
            std::cmp::Ordering::Less => a.scale_up(sb - sa).add(b),
            std::cmp::Ordering::Greater => a.add(&b.scale_up(sa - sb)),
        };
        Numeric::finite(sum, sa.max(sb))
    }

    /// `self - other`; scale is the larger one.
    pub fn sub(&self, other: &Numeric) -> Result<Numeric, Fault> {
        self.add(&other.neg())
    }

    /// `self * other`; the scales add up, capped at 16383 digits.
    pub fn mul(&self, other: &Numeric) -> Result<Numeric, Fault> {
        if let (Finite { unscaled: a, scale: sa }, Finite { unscaled: b, scale: sb }) = (self, other) {
            let scale = u32::from(*sa) + u32::from(*sb);
            let product = a.mul(b);
            if scale > MAX_STORED_SCALE {
                return Numeric::finite(product.scale_down(scale - MAX_STORED_SCALE), MAX_STORED_SCALE);
            }
            return Numeric::finite(product, scale);
        }
        let (Some(a), Some(b)) = (self.sign(), other.sign()) else { return Ok(NaN) };
        Ok(infinity(a * b))
    }

    /// `self / other`, rounded half away from zero at the scale that `select_div_scale` chooses.
    pub fn div(&self, other: &Numeric) -> Result<Numeric, Fault> {
        match (self, other) {
            (NaN, _) | (_, NaN) => Ok(NaN),
            (PosInf | NegInf, PosInf | NegInf) => Ok(NaN),
            (Finite { .. }, PosInf | NegInf) => Ok(Numeric::ZERO),
            (_, Finite { unscaled, .. }) if unscaled.is_zero() => Err(Fault::DIVISION_BY_ZERO),
            (PosInf, Finite { unscaled, .. }) => Ok(infinity(unscaled.signum())),
            (NegInf, Finite { unscaled, .. }) => Ok(infinity(-unscaled.signum())),
            (Finite { unscaled: a, scale: sa }, Finite { unscaled: b, scale: sb }) => {
                let (sa, sb) = (i32::from(*sa), i32::from(*sb));
                let scale = division_scale((a, sa), (b, sb));
                Numeric::finite(quotient(a, b, scale + sb - sa), scale as u32)
            }
        }
    }

    pub fn neg(&self) -> Numeric {
        match self {
            NaN => NaN,
            PosInf => NegInf,
            NegInf => PosInf,
            Finite { unscaled, scale } => Finite { unscaled: unscaled.neg(), scale: *scale },
        }
    }

    pub fn abs(&self) -> Numeric {
        match self.sign() {
            Some(-1) => self.neg(),
            _ => self.clone(),
        }
    }

    /// `round(self, digits)`, half away from zero; negative `digits` round before the point. Server versions differ
    /// beyond 2000 digits: such a `digits` is an error.
    pub fn round(&self, digits: i64) -> Result<Numeric, Fault> {
        match self {
            Finite { .. } if digits.unsigned_abs() > MAX_ROUND as u64 => Err(Fault::ROUND_SCALE),
            Finite { unscaled, scale } => round_to(unscaled, i32::from(*scale), digits as i32),
            special => Ok(special.clone()),
        }
    }

    /// Applies `atttypmod` of `numeric(p,s)`; -1 (none) changes nothing. Scales may be negative from version 15 on.
    pub fn apply_typmod(&self, typmod: i32) -> Result<Numeric, Fault> {
        if typmod < TYPMOD_OFFSET {
            return Ok(self.clone());
        }
        let bits = typmod - TYPMOD_OFFSET;
        let precision = (bits >> 16) & 0xffff;
        let scale = ((bits & 0x7ff) ^ 1024) - 1024;
        match self {
            NaN => Ok(NaN),
            PosInf | NegInf => Err(Fault::NUMERIC_FIELD_OVERFLOW),
            Finite { unscaled, scale: from } => {
                let rounded = round_to(unscaled, i32::from(*from), scale)?;
                if let Finite { unscaled, scale: shown } = &rounded
                    && !unscaled.is_zero()
                    && unscaled.digits() as i32 - i32::from(*shown) > precision - scale
                {
                    return Err(Fault::NUMERIC_FIELD_OVERFLOW);
                }
                Ok(rounded)
            }
        }
    }

    /// The nearest whole number, half away from zero; `None` if it is not finite or leaves int8.
    pub fn to_i64(&self) -> Option<i64> {
        let Finite { unscaled, scale } = self else { return None };
        match unscaled.scale_down(u32::from(*scale)) {
            Unscaled::Small(value) => i64::try_from(value).ok(),
            Unscaled::Big(_) => None,
        }
    }
}

/// The infinity of a sign; 0 is NaN, the product of infinity and zero.
fn infinity(sign: i32) -> Numeric {
    match sign {
        0 => NaN,
        1.. => PosInf,
        _ => NegInf,
    }
}

/// `round_var` and the rule that no negative scale is shown.
fn round_to(unscaled: &Unscaled, scale: i32, digits: i32) -> Result<Numeric, Fault> {
    if digits >= scale {
        return Numeric::finite(unscaled.scale_up((digits - scale) as u32), digits as u32);
    }
    let cut = unscaled.scale_down((scale - digits) as u32);
    if digits >= 0 {
        Numeric::finite(cut, digits as u32)
    } else {
        Numeric::finite(cut.scale_up(-digits as u32), 0)
    }
}

/// `a * 10^exponent / b`, rounded half away from zero.
fn quotient(a: &Unscaled, b: &Unscaled, exponent: i32) -> Unscaled {
    let (a, b) = if exponent >= 0 {
        (a.scale_up(exponent as u32), b.clone())
    } else {
        (a.clone(), b.scale_up(exponent.unsigned_abs()))
    };
    if let (Unscaled::Small(a), Unscaled::Small(b)) = (&a, &b)
        && let Some(value) = div_round_small(*a, *b)
    {
        return Unscaled::Small(value);
    }
    div_round(&a.to_big(), &b.to_big())
}

/// The server's guess of a scale that gives 16 significant digits (`select_div_scale`). It works on base-10000 digits,
/// so it depends on where groups of four start.
fn division_scale(a: (&Unscaled, i32), b: (&Unscaled, i32)) -> i32 {
    let (weight_a, first_a) = leading_group(a.0, a.1);
    let (weight_b, first_b) = leading_group(b.0, b.1);
    let mut weight = weight_a - weight_b;
    if first_a <= first_b {
        weight -= 1;
    }
    (MIN_SIGNIFICANT - weight * BASE_DIGITS).max(a.1).max(b.1).clamp(0, MAX_DISPLAY_SCALE)
}

/// Weight and value of the first nonzero base-10000 digit; (0, 0) for zero.
fn leading_group(unscaled: &Unscaled, scale: i32) -> (i32, u32) {
    if unscaled.is_zero() {
        return (0, 0);
    }
    let exponent = unscaled.digits() as i32 - 1 - scale;
    let weight = exponent.div_euclid(BASE_DIGITS);
    (weight, unscaled.leading((exponent - weight * BASE_DIGITS + 1) as u32))
}

/// `value * 10^n * times`, for accumulators.
pub(crate) fn scaled_times(value: &Unscaled, n: u32, times: i64) -> Unscaled {
    if let Unscaled::Small(small) = value
        && n == 0
        && let Some(product) = small.checked_mul(times.into())
    {
        return Unscaled::Small(product);
    }
    Unscaled::from_big(value.to_big() * pow10(n) * BigInt::from(times))
}
