//! Whole numbers of any size with a fast path in `i128`.
//!
//! Invariant: a value that fits `i128` is always `Small`, so equal numbers have equal representations.

use std::cmp::Ordering;

use num_bigint::{BigInt, Sign};
use num_integer::Integer;
use num_traits::{Signed, ToPrimitive, Zero};
use serde::{Deserialize, Serialize};

/// 10^0 .. 10^38, all that `i128` holds.
pub(super) const POWERS: [i128; 39] = {
    let mut powers = [1i128; 39];
    let mut i = 1;
    while i < 39 {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};

/// A whole number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unscaled {
    Small(i128),
    Big(BigInt),
}

use Unscaled::{Big, Small};

impl Unscaled {
    pub const ZERO: Unscaled = Small(0);

    /// The number, in its one representation.
    pub fn from_big(value: BigInt) -> Unscaled {
        match value.to_i128() {
            Some(small) => Small(small),
            None => Big(value),
        }
    }

    pub fn to_big(&self) -> BigInt {
        match self {
            Small(v) => BigInt::from(*v),
            Big(v) => v.clone(),
        }
    }

    pub fn is_zero(&self) -> bool {
        matches!(self, Small(0))
    }

    /// -1, 0 or 1.
    pub fn signum(&self) -> i32 {
        match self {
            Small(v) => v.signum() as i32,
            Big(v) if v.is_negative() => -1,
            Big(_) => 1,
        }
    }

    pub fn add(&self, other: &Unscaled) -> Unscaled {
        if let (Small(a), Small(b)) = (self, other)
            && let Some(sum) = a.checked_add(*b)
        {
            return Small(sum);
        }
        Unscaled::from_big(self.to_big() + other.to_big())
    }

    pub fn mul(&self, other: &Unscaled) -> Unscaled {
        if let (Small(a), Small(b)) = (self, other)
            && let Some(product) = a.checked_mul(*b)
        {
            return Small(product);
        }
        Unscaled::from_big(self.to_big() * other.to_big())
    }

    pub fn neg(&self) -> Unscaled {
        match self {
            Small(v) => match v.checked_neg() {
                Some(v) => Small(v),
                None => Big(-BigInt::from(*v)),
            },
            Big(v) => Unscaled::from_big(-v),
        }
    }

    /// `self * 10^n`.
    pub fn scale_up(&self, n: u32) -> Unscaled {
        if n == 0 || self.is_zero() {
            return self.clone();
        }
        if let (Small(v), Some(power)) = (self, POWERS.get(n as usize))
            && let Some(product) = v.checked_mul(*power)
        {
            return Small(product);
        }
        Unscaled::from_big(self.to_big() * pow10(n))
    }

    /// `self / 10^n`, rounded half away from zero.
    pub fn scale_down(&self, n: u32) -> Unscaled {
        if n == 0 {
            return self.clone();
        }
        if let (Small(v), Some(power)) = (self, POWERS.get(n as usize)) {
            let (quotient, rest) = (v / power, v % power);
            // |rest| < 10^38, so doubling it stays inside the unsigned range.
            let away = rest.unsigned_abs() * 2 >= power.unsigned_abs();
            return Small(quotient + if away { v.signum() } else { 0 });
        }
        if let Small(_) = self {
            return Unscaled::ZERO;
        }
        div_round(&self.to_big(), &pow10(n))
    }

    /// `self / 10^n` if nothing is lost.
    pub fn scale_down_exact(&self, n: u32) -> Option<Unscaled> {
        match self {
            Small(v) => {
                let power = POWERS.get(n as usize)?;
                (v % power == 0).then(|| Small(v / power))
            }
            Big(v) => {
                let (quotient, rest) = v.div_rem(&pow10(n));
                rest.is_zero().then(|| Unscaled::from_big(quotient))
            }
        }
    }

    /// Number of decimal digits of the absolute value; 0 for zero.
    pub fn digits(&self) -> u32 {
        match self {
            Small(v) => v.unsigned_abs().checked_ilog10().map_or(0, |log| log + 1),
            Big(v) => v.magnitude().to_str_radix(10).len() as u32,
        }
    }

    /// The `n` leading digits (`n` <= 4), as if zeros followed the last one; 0 for zero.
    pub(super) fn leading(&self, n: u32) -> u32 {
        let digits = self.digits();
        if digits <= n {
            return match self {
                Small(v) => (v.unsigned_abs() * POWERS[(n - digits) as usize].unsigned_abs()) as u32,
                Big(_) => 0,
            };
        }
        match self {
            Small(v) => (v.unsigned_abs() / POWERS[(digits - n) as usize].unsigned_abs()) as u32,
            Big(v) => (v.abs() / pow10(digits - n)).to_u32().unwrap_or(0),
        }
    }
}

impl From<i64> for Unscaled {
    fn from(value: i64) -> Self {
        Small(value.into())
    }
}

impl Ord for Unscaled {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Small(a), Small(b)) => a.cmp(b),
            (Big(a), Big(b)) => a.cmp(b),
            // A big number lies outside the range of all small ones.
            (Small(_), Big(b)) if b.sign() == Sign::Minus => Ordering::Greater,
            (Small(_), Big(_)) => Ordering::Less,
            (Big(_), Small(_)) => other.cmp(self).reverse(),
        }
    }
}

impl PartialOrd for Unscaled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// `10^n` as a big number.
pub(super) fn pow10(n: u32) -> BigInt {
    match POWERS.get(n as usize) {
        Some(power) => BigInt::from(*power),
        None => BigInt::from(10).pow(n),
    }
}

/// `a / b` rounded half away from zero; `b` is not zero.
pub(super) fn div_round(a: &BigInt, b: &BigInt) -> Unscaled {
    let (mut quotient, rest) = a.div_rem(b);
    if rest.magnitude() * 2u32 >= *b.magnitude() {
        if a.is_negative() == b.is_negative() {
            quotient += 1;
        } else {
            quotient -= 1;
        }
    }
    Unscaled::from_big(quotient)
}

/// [`div_round`] in machine words, `None` where the rounding step could leave them.
pub(super) fn div_round_small(a: i128, b: i128) -> Option<i128> {
    let (quotient, rest) = (a.checked_div(b)?, a.checked_rem(b)?);
    let away = rest.unsigned_abs() >= b.unsigned_abs() - rest.unsigned_abs();
    if !away {
        return Some(quotient);
    }
    quotient.checked_add(if a.is_negative() == b.is_negative() { 1 } else { -1 })
}
