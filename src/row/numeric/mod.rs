//! Exact `numeric`: values, text and arithmetic as the server's `utils/adt/numeric.c` defines them.
//!
//! Purpose: sums, averages and expressions over numeric columns whose result has the server's value *and* its display
//! scale. Invariant: [`Numeric::parse`] then [`Numeric::write`] gives the same bytes back for every text that the
//! server prints. Place in the data's way: used by kernels and accumulators on datums of class numeric.

mod arithmetic;
mod text;
mod unscaled;

use std::cmp::Ordering;

use super::fault::Fault;
pub(crate) use arithmetic::scaled_times;
use unscaled::POWERS;
pub use unscaled::Unscaled;

/// Digits before the decimal point that the on-disk format holds (`NUMERIC_WEIGHT_MAX`, base 10000).
const MAX_WHOLE_DIGITS: i64 = (0x7fff + 1) * 4;

/// Digits after the decimal point that the on-disk format holds (`NUMERIC_DSCALE_MAX`).
pub const MAX_STORED_SCALE: u32 = 0x3fff;

/// A numeric value. `==` is sameness of the image: 1.0 and 1.00 differ; [`Numeric::compare`] is the server's order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Numeric {
    NaN,
    PosInf,
    NegInf,
    /// `unscaled / 10^scale`, printed with `scale` digits after the point.
    Finite {
        unscaled: Unscaled,
        scale: u16,
    },
}

use Numeric::{Finite, NaN, NegInf, PosInf};

impl Numeric {
    pub const ZERO: Numeric = Finite { unscaled: Unscaled::ZERO, scale: 0 };

    /// A finite value; 22003 if the server's format can't hold it (`make_result`). `scale` is at most
    /// [`MAX_STORED_SCALE`].
    pub fn finite(unscaled: Unscaled, scale: u32) -> Result<Numeric, Fault> {
        if let Unscaled::Big(big) = &unscaled {
            // 3.3219 bits per digit; the digits are counted only close to the limit.
            let surely_fits = big.bits() < (MAX_WHOLE_DIGITS as u64 + u64::from(scale)) * 332 / 100;
            if !surely_fits && i64::from(unscaled.digits()) - i64::from(scale) > MAX_WHOLE_DIGITS {
                return Err(Fault::NUMERIC_OVERFLOW);
            }
        }
        match u16::try_from(scale) {
            Ok(scale) if u32::from(scale) <= MAX_STORED_SCALE => Ok(Finite { unscaled, scale }),
            _ => Err(Fault::NUMERIC_OVERFLOW),
        }
    }

    /// Digits after the point; `None` for NaN and infinities.
    pub fn scale(&self) -> Option<u16> {
        match self {
            Finite { scale, .. } => Some(*scale),
            _ => None,
        }
    }

    pub fn is_nan(&self) -> bool {
        matches!(self, NaN)
    }

    /// The server's order (`cmp_numerics`): NaN equals NaN and is the largest, trailing zeros do not count.
    pub fn compare(&self, other: &Numeric) -> Ordering {
        let (Finite { unscaled: a, scale: sa }, Finite { unscaled: b, scale: sb }) = (self, other) else {
            return self.rank().cmp(&other.rank());
        };
        match sa.cmp(sb) {
            Ordering::Equal => a.cmp(b),
            _ if a.signum() != b.signum() => a.signum().cmp(&b.signum()),
            Ordering::Less => a.scale_up(u32::from(sb - sa)).cmp(b),
            Ordering::Greater => a.cmp(&b.scale_up(u32::from(sa - sb))),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            NegInf => 0,
            Finite { .. } => 1,
            PosInf => 2,
            NaN => 3,
        }
    }

    /// -1, 0 or 1; `None` for NaN.
    fn sign(&self) -> Option<i32> {
        match self {
            NaN => None,
            PosInf => Some(1),
            NegInf => Some(-1),
            Finite { unscaled, .. } => Some(unscaled.signum()),
        }
    }
}

impl From<i64> for Numeric {
    fn from(value: i64) -> Self {
        Finite { unscaled: value.into(), scale: 0 }
    }
}

#[cfg(test)]
mod tests;
