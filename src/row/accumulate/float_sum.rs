//! Exact sum of float4 and float8.
//!
//! The server adds in the order of arrival and rounds each time, so it has many right answers; this one is the exact
//! sum rounded once (half to even), which no order changes and from which every input can be taken away again.

use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive};
use serde::{Deserialize, Serialize};

use crate::row::Fault;
use crate::row::float::split;

/// Sum, count and special values of floats. The sum is `mantissa * 2^exponent` with an odd mantissa, or 0 with
/// exponent 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FloatSum {
    mantissa: Mantissa,
    exponent: i32,
    /// Inputs that are not NULL.
    count: i64,
    /// `None` if all are zero.
    specials: Option<Box<Specials>>,
}

/// `Small` whenever it fits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
enum Mantissa {
    Small(i128),
    Big(BigInt),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Specials {
    nan: i64,
    positive: i64,
    negative: i64,
    /// A sum is -0 only if all its inputs are.
    negative_zero: i64,
}

impl Default for FloatSum {
    fn default() -> Self {
        FloatSum { mantissa: Mantissa::Small(0), exponent: 0, count: 0, specials: None }
    }
}

impl FloatSum {
    /// Adds `times` copies of `value`; negative `times` takes them away. A float4 is added as the equal float8.
    pub fn add(&mut self, value: f64, times: i64) {
        self.count = self.count.wrapping_add(times);
        if value.is_finite() && value != 0.0 {
            let (mantissa, exponent) = split(value.abs());
            let product = i128::from(mantissa) * i128::from(times);
            self.add_scaled(if value < 0.0 { -product } else { product }, exponent);
            return;
        }
        let mut more = Specials::default();
        match value {
            _ if value.is_nan() => more.nan = times,
            f64::INFINITY => more.positive = times,
            f64::NEG_INFINITY => more.negative = times,
            _ if value.is_sign_negative() => more.negative_zero = times,
            _ => return,
        }
        self.add_specials(more);
    }

    /// Adds `times` copies of a value in the server's text; false if it is not a float.
    #[must_use]
    pub fn add_text(&mut self, text: &[u8], times: i64) -> bool {
        match crate::row::float::parse_f64(text) {
            Some(value) => {
                self.add(value, times);
                true
            }
            None => false,
        }
    }

    /// [`FloatSum::add_text`] for a float4: its text is shortest among float4, so it is read as one.
    #[must_use]
    pub fn add_text4(&mut self, text: &[u8], times: i64) -> bool {
        match crate::row::float::parse_f32(text) {
            Some(value) => {
                self.add(value.into(), times);
                true
            }
            None => false,
        }
    }

    fn add_scaled(&mut self, value: i128, exponent: i32) {
        if value == 0 {
            return;
        }
        if let Mantissa::Small(own) = self.mantissa {
            if own == 0 {
                (self.mantissa, self.exponent) = normalized(value, exponent);
                return;
            }
            let low = exponent.min(self.exponent);
            if let (Some(a), Some(b)) = (shifted(own, self.exponent - low), shifted(value, exponent - low))
                && let Some(sum) = a.checked_add(b)
            {
                (self.mantissa, self.exponent) = normalized(sum, low);
                return;
            }
        }
        self.add_big(BigInt::from(value), exponent);
    }

    fn add_big(&mut self, value: BigInt, exponent: i32) {
        let own = match std::mem::replace(&mut self.mantissa, Mantissa::Small(0)) {
            Mantissa::Small(v) => BigInt::from(v),
            Mantissa::Big(v) => v,
        };
        let low = exponent.min(self.exponent);
        let sum = (own << (self.exponent - low) as u32) + (value << (exponent - low) as u32);
        let zeros = sum.trailing_zeros().unwrap_or(0);
        let sum: BigInt = sum >> zeros;
        (self.mantissa, self.exponent) = match sum.to_i128() {
            Some(0) => (Mantissa::Small(0), 0),
            Some(small) => (Mantissa::Small(small), low + zeros as i32),
            None => (Mantissa::Big(sum), low + zeros as i32),
        };
    }

    fn add_specials(&mut self, more: Specials) {
        let mut all = self.specials.as_deref().copied().unwrap_or_default();
        all.nan = all.nan.wrapping_add(more.nan);
        all.positive = all.positive.wrapping_add(more.positive);
        all.negative = all.negative.wrapping_add(more.negative);
        all.negative_zero = all.negative_zero.wrapping_add(more.negative_zero);
        self.specials = (all != Specials::default()).then(|| Box::new(all));
    }

    pub fn merge(&mut self, other: &FloatSum) {
        self.count = self.count.wrapping_add(other.count);
        match &other.mantissa {
            Mantissa::Small(v) => self.add_scaled(*v, other.exponent),
            Mantissa::Big(v) => self.add_big(v.clone(), other.exponent),
        }
        if let Some(specials) = &other.specials {
            self.add_specials(**specials);
        }
    }

    /// `times` copies of this state.
    pub fn multiply(&self, times: i64) -> FloatSum {
        let mut product = FloatSum { count: self.count.wrapping_mul(times), ..FloatSum::default() };
        match &self.mantissa {
            Mantissa::Small(v) => match v.checked_mul(times.into()) {
                Some(v) => product.add_scaled(v, self.exponent),
                None => product.add_big(BigInt::from(*v) * times, self.exponent),
            },
            Mantissa::Big(v) => product.add_big(v * times, self.exponent),
        }
        if let Some(s) = &self.specials {
            product.add_specials(Specials {
                nan: s.nan.wrapping_mul(times),
                positive: s.positive.wrapping_mul(times),
                negative: s.negative.wrapping_mul(times),
                negative_zero: s.negative_zero.wrapping_mul(times),
            });
        }
        product
    }

    pub fn is_zero(&self) -> bool {
        self.count == 0 && self.mantissa == Mantissa::Small(0) && self.specials.is_none()
    }

    /// Number of inputs that are not NULL.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// sum(float8); `None` (NULL) without inputs, 22003 if the sum of finite inputs leaves the type.
    pub fn sum_f64(&self) -> Result<Option<f64>, Fault> {
        if self.count == 0 {
            return Ok(None);
        }
        self.total(53, -1074, f64::MAX).map(Some)
    }

    /// sum(float4), rounded to float4.
    pub fn sum_f32(&self) -> Result<Option<f32>, Fault> {
        if self.count == 0 {
            return Ok(None);
        }
        // The total has 24 bits, so this conversion is exact.
        self.total(24, -149, f32::MAX.into()).map(|v| Some(v as f32))
    }

    /// avg of either type: float8. The server starts from +0, so an average is never -0 because of its inputs' zeros.
    /// It also sums squares (`float8_accum`) and fails with 22003 where those overflow, beyond differences of 1e154;
    /// this average does not.
    pub fn avg(&self) -> Result<Option<f64>, Fault> {
        let Some(sum) = self.sum_f64()? else { return Ok(None) };
        Ok(Some((sum + 0.0) / self.count as f64))
    }

    fn total(&self, precision: i64, lowest: i64, max: f64) -> Result<f64, Fault> {
        let s = self.specials.as_deref().copied().unwrap_or_default();
        match (s.nan != 0, s.positive != 0, s.negative != 0) {
            (true, _, _) | (_, true, true) => return Ok(f64::NAN),
            (_, true, false) => return Ok(f64::INFINITY),
            (_, false, true) => return Ok(f64::NEG_INFINITY),
            (false, false, false) => {}
        }
        let (negative, magnitude) = match &self.mantissa {
            Mantissa::Small(0) => return Ok(if s.negative_zero == self.count { -0.0 } else { 0.0 }),
            Mantissa::Small(v) => rounded_small(*v, self.exponent, precision, lowest),
            Mantissa::Big(v) => rounded(v, self.exponent, precision, lowest),
        };
        let (mantissa, exponent) = magnitude;
        let value = compose(mantissa, exponent);
        if value > max {
            return Err(Fault::FLOAT_OVERFLOW);
        }
        Ok(if negative { -value } else { value })
    }
}

fn normalized(value: i128, exponent: i32) -> (Mantissa, i32) {
    if value == 0 {
        return (Mantissa::Small(0), 0);
    }
    let zeros = value.trailing_zeros();
    (Mantissa::Small(value >> zeros), exponent + zeros as i32)
}

/// `value << by` if no bit is lost.
fn shifted(value: i128, by: i32) -> Option<i128> {
    let room = value.unsigned_abs().leading_zeros() as i32 - 1;
    (by < room).then(|| value << by)
}

/// How many low bits to round away from a magnitude of `bits` bits at `2^exponent`.
fn excess(bits: i64, exponent: i32, precision: i64, lowest: i64) -> i64 {
    (bits - precision).max(lowest - i64::from(exponent)).max(0)
}

/// Sign, and the magnitude rounded half to even to `precision` bits, none below `2^lowest`.
fn rounded_small(value: i128, exponent: i32, precision: i64, lowest: i64) -> (bool, (u64, i64)) {
    let magnitude = value.unsigned_abs();
    let bits = i64::from(128 - magnitude.leading_zeros());
    let drop = excess(bits, exponent, precision, lowest);
    let kept = magnitude.checked_shr(drop as u32).unwrap_or(0);
    let rest = magnitude - kept.checked_shl(drop as u32).unwrap_or(0);
    let half = if drop == 0 { u128::MAX } else { 1u128.checked_shl(drop as u32 - 1).unwrap_or(u128::MAX) };
    let up = rest > half || (rest == half && kept % 2 == 1);
    (value < 0, (kept as u64 + u64::from(up), i64::from(exponent) + drop))
}

fn rounded(value: &BigInt, exponent: i32, precision: i64, lowest: i64) -> (bool, (u64, i64)) {
    let magnitude = value.magnitude();
    let drop = excess(magnitude.bits() as i64, exponent, precision, lowest) as u64;
    let kept = (magnitude >> drop).to_u64().unwrap_or(0);
    // The mantissa is odd: its lowest bit decides whether anything lies below the half bit.
    let up = drop > 0 && magnitude.bit(drop - 1) && (drop > 1 || kept % 2 == 1);
    (value.is_negative(), (kept + u64::from(up), i64::from(exponent) + drop as i64))
}

/// `mantissa * 2^exponent`; infinite if it is too large. Exact: the mantissa has at most 53 bits or is 2^53.
fn compose(mantissa: u64, exponent: i64) -> f64 {
    let bits = i64::from(64 - mantissa.leading_zeros());
    if bits + exponent > 1024 {
        return f64::INFINITY;
    }
    // Two factors, because 2^exponent alone may leave the range.
    let half = exponent / 2;
    mantissa as f64 * power_of_two(half) * power_of_two(exponent - half)
}

/// 2^e for -1022 <= e <= 1023.
fn power_of_two(e: i64) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests;
