//! Sum of int2, int4 and int8.

use serde::{Deserialize, Serialize};

use crate::row::{Fault, Numeric, numeric::Unscaled};

/// Sum and count of integers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IntSum {
    sum: i128,
    count: i64,
}

impl IntSum {
    /// Adds `times` copies of `value`; negative `times` takes them away.
    pub fn add(&mut self, value: i64, times: i64) {
        self.sum = self.sum.wrapping_add(i128::from(value) * i128::from(times));
        self.count = self.count.wrapping_add(times);
    }

    pub fn merge(&mut self, other: &IntSum) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.count = self.count.wrapping_add(other.count);
    }

    /// `times` copies of this state.
    pub fn multiply(&self, times: i64) -> IntSum {
        IntSum { sum: self.sum.wrapping_mul(times.into()), count: self.count.wrapping_mul(times) }
    }

    pub fn is_zero(&self) -> bool {
        *self == IntSum::default()
    }

    /// Number of inputs that are not NULL.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// sum(int2), sum(int4): int8, `None` (NULL) without inputs.
    pub fn sum_int8(&self) -> Result<Option<i64>, Fault> {
        if self.count == 0 {
            return Ok(None);
        }
        i64::try_from(self.sum).map(Some).map_err(|_| Fault::BIGINT_RANGE)
    }

    /// sum(int8): numeric.
    pub fn sum_numeric(&self) -> Option<Numeric> {
        (self.count != 0).then_some(Numeric::Finite { unscaled: Unscaled::Small(self.sum), scale: 0 })
    }

    /// avg of integers: numeric.
    pub fn avg(&self) -> Result<Option<Numeric>, Fault> {
        self.sum_numeric().map(|sum| sum.div(&Numeric::from(self.count))).transpose()
    }
}
