//! Sum of numerics with the display scale that the server shows.
//!
//! The server's result has the largest scale among its inputs. To be able to take inputs away, the state counts them
//! by scale.

use serde::{Deserialize, Serialize};

use crate::row::numeric::{Unscaled, scaled_times};
use crate::row::{Fault, Numeric};

/// Exact sum, and how many inputs there are of each display scale and each special value.
///
/// One representation per value: `others` is in descending order of scale below `top` and has no zero counts; `scale`
/// is the smallest one that is at least the largest counted scale and shows the sum exactly.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NumericSum {
    sum: Unscaled,
    scale: u16,
    /// Largest scale with a count, and the count; (0, 0) if there is none.
    top: (u16, i64),
    others: Vec<(u16, i64)>,
    /// `None` if all are zero.
    specials: Option<Box<Specials>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Specials {
    nan: i64,
    positive: i64,
    negative: i64,
}

impl Default for NumericSum {
    fn default() -> Self {
        NumericSum { sum: Unscaled::ZERO, scale: 0, top: (0, 0), others: Vec::new(), specials: None }
    }
}

impl NumericSum {
    /// Adds `times` copies of a value in the server's text; false if it is not a numeric.
    #[must_use]
    pub fn add_text(&mut self, text: &[u8], times: i64) -> bool {
        match Numeric::parse(text) {
            Some(value) => {
                self.add(&value, times);
                true
            }
            None => false,
        }
    }

    /// Adds `times` copies of `value`; negative `times` takes them away.
    pub fn add(&mut self, value: &Numeric, times: i64) {
        match value {
            Numeric::Finite { unscaled, scale } => self.add_finite(unscaled, *scale, times),
            Numeric::NaN => self.add_specials(Specials { nan: times, ..Specials::default() }),
            Numeric::PosInf => self.add_specials(Specials { positive: times, ..Specials::default() }),
            Numeric::NegInf => self.add_specials(Specials { negative: times, ..Specials::default() }),
        }
    }

    fn add_finite(&mut self, unscaled: &Unscaled, scale: u16, times: i64) {
        // The common case: a column of one scale.
        if let (Unscaled::Small(sum), Unscaled::Small(value)) = (&mut self.sum, unscaled)
            && scale == self.scale
            && scale == self.top.0
            && let Some(count) = self.top.1.checked_add(times)
            && count != 0
            && let Some(total) = value.checked_mul(times.into()).and_then(|v| sum.checked_add(v))
        {
            *sum = total;
            self.top.1 = count;
            return;
        }
        self.add_sum(unscaled, scale, times);
        self.add_count(scale, times);
        self.normalize();
    }

    /// Adds `times * unscaled / 10^scale` without counting; the scale may be too large afterwards.
    fn add_sum(&mut self, unscaled: &Unscaled, scale: u16, times: i64) {
        if scale > self.scale {
            self.sum = self.sum.scale_up(u32::from(scale - self.scale));
            self.scale = scale;
        }
        self.sum = self.sum.add(&scaled_times(unscaled, u32::from(self.scale - scale), times));
    }

    fn add_count(&mut self, scale: u16, times: i64) {
        if times == 0 {
            return;
        }
        if self.top.1 == 0 {
            self.top = (scale, times);
            return;
        }
        if scale > self.top.0 {
            self.others.insert(0, self.top);
            self.top = (scale, times);
        } else if scale == self.top.0 {
            self.top.1 = self.top.1.wrapping_add(times);
            if self.top.1 == 0 {
                self.top = if self.others.is_empty() { (0, 0) } else { self.others.remove(0) };
            }
        } else {
            match self.others.binary_search_by(|(s, _)| scale.cmp(s)) {
                Ok(i) => {
                    self.others[i].1 = self.others[i].1.wrapping_add(times);
                    if self.others[i].1 == 0 {
                        self.others.remove(i);
                    }
                }
                Err(i) => self.others.insert(i, (scale, times)),
            }
        }
    }

    /// Drops zeros of the fraction that no counted input asks for.
    fn normalize(&mut self) {
        if self.sum.is_zero() || self.scale < self.top.0 {
            self.sum = self.sum.scale_up(u32::from(self.top.0.saturating_sub(self.scale)));
            self.scale = self.top.0;
        }
        if self.scale > self.top.0
            && let Some(all) = self.sum.scale_down_exact(u32::from(self.scale - self.top.0))
        {
            self.sum = all;
            self.scale = self.top.0;
        }
        while self.scale > self.top.0 {
            let Some(shorter) = self.sum.scale_down_exact(1) else { break };
            self.sum = shorter;
            self.scale -= 1;
        }
    }

    fn add_specials(&mut self, more: Specials) {
        let mut all = self.specials.as_deref().copied().unwrap_or_default();
        all.nan = all.nan.wrapping_add(more.nan);
        all.positive = all.positive.wrapping_add(more.positive);
        all.negative = all.negative.wrapping_add(more.negative);
        self.specials = (all != Specials::default()).then(|| Box::new(all));
    }

    pub fn merge(&mut self, other: &NumericSum) {
        if !other.sum.is_zero() {
            self.add_sum(&other.sum, other.scale, 1);
        }
        for &(scale, count) in std::iter::once(&other.top).chain(&other.others) {
            self.add_count(scale, count);
        }
        if let Some(specials) = &other.specials {
            self.add_specials(**specials);
        }
        self.normalize();
    }

    /// `times` copies of this state.
    pub fn multiply(&self, times: i64) -> NumericSum {
        let mut product = NumericSum::default();
        product.add_sum(&self.sum, self.scale, times);
        for &(scale, count) in std::iter::once(&self.top).chain(&self.others) {
            product.add_count(scale, count.wrapping_mul(times));
        }
        if let Some(s) = &self.specials {
            product.add_specials(Specials {
                nan: s.nan.wrapping_mul(times),
                positive: s.positive.wrapping_mul(times),
                negative: s.negative.wrapping_mul(times),
            });
        }
        product.normalize();
        product
    }

    pub fn is_zero(&self) -> bool {
        self.top.1 == 0 && self.sum.is_zero() && self.specials.is_none()
    }

    fn finite_count(&self) -> i64 {
        self.others.iter().fold(self.top.1, |n, (_, count)| n.wrapping_add(*count))
    }

    /// Number of inputs that are not NULL.
    pub fn count(&self) -> i64 {
        let s = self.specials.as_deref().copied().unwrap_or_default();
        self.finite_count().wrapping_add(s.nan).wrapping_add(s.positive).wrapping_add(s.negative)
    }

    /// sum(numeric); `None` (NULL) without inputs. NaN wins, opposite infinities give NaN (`numeric_sum`).
    pub fn sum(&self) -> Result<Option<Numeric>, Fault> {
        if self.count() == 0 {
            return Ok(None);
        }
        if let Some(special) = self.special() {
            return Ok(Some(special));
        }
        Numeric::finite(self.sum.clone(), self.scale.into()).map(Some)
    }

    /// avg(numeric): the sum divided by the count with the server's quotient scale.
    pub fn avg(&self) -> Result<Option<Numeric>, Fault> {
        match (self.special(), self.sum()?) {
            (Some(special), _) => Ok(Some(special)),
            (None, Some(sum)) => sum.div(&Numeric::from(self.finite_count())).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn special(&self) -> Option<Numeric> {
        let s = self.specials.as_deref()?;
        match (s.nan != 0, s.positive != 0, s.negative != 0) {
            (true, _, _) | (_, true, true) => Some(Numeric::NaN),
            (_, true, false) => Some(Numeric::PosInf),
            (_, false, true) => Some(Numeric::NegInf),
            (false, false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(inputs: &[(&str, i64)]) -> NumericSum {
        let mut sum = NumericSum::default();
        for (text, times) in inputs {
            assert!(sum.add_text(text.as_bytes(), *times));
        }
        sum
    }

    fn shown(sum: &NumericSum) -> Option<String> {
        sum.sum().unwrap().map(|v| v.to_text())
    }

    #[test]
    fn the_scale_is_the_largest_present_now() {
        let mut sum = of(&[("5", 1), ("1.00", 1)]);
        assert_eq!(shown(&sum).as_deref(), Some("6.00"));
        assert!(sum.add_text(b"1.00", -1));
        assert_eq!(shown(&sum).as_deref(), Some("5"));
        assert!(sum.add_text(b"5", -1));
        assert_eq!((shown(&sum), sum.is_zero()), (None, true));
    }

    #[test]
    fn special_values_come_and_go() {
        let mut sum = of(&[("1.5", 2), ("Infinity", 1), ("-Infinity", 1)]);
        assert_eq!(shown(&sum).as_deref(), Some("NaN"));
        assert!(sum.add_text(b"-Infinity", -1));
        assert_eq!(shown(&sum).as_deref(), Some("Infinity"));
        assert!(sum.add_text(b"Infinity", -1));
        assert_eq!(shown(&sum).as_deref(), Some("3.0"));
        assert_eq!(sum.avg().unwrap().map(|v| v.to_text()).as_deref(), Some("1.5000000000000000"));
    }

    #[test]
    fn a_difference_without_rows_keeps_its_value() {
        let change = of(&[("12.35", 1), ("-12.3", 1), ("0.05", -1), ("-1.5", -1)]);
        assert_eq!(change.count(), 0);
        assert!(!change.is_zero());
    }

    fn input() -> impl Strategy<Value = (String, i64)> {
        let special =
            prop_oneof![Just("NaN".to_owned()), Just("Infinity".to_owned()), Just("-Infinity".to_owned())];
        let finite = (any::<i64>(), any::<u64>(), 0u16..24).prop_map(|(high, low, scale)| {
            let unscaled = Unscaled::from(high % 1000).mul(&Unscaled::Small(low.into()));
            Numeric::Finite { unscaled, scale }.to_text()
        });
        let huge = "[1-9][0-9]{30,60}[.][0-9]{0,30}0{0,5}[1-9]";
        (prop_oneof![1 => special, 8 => finite, 2 => huge], -3i64..4)
    }

    proptest! {
        #[test]
        fn states_depend_only_on_the_net_inputs(
            mut inputs in proptest::collection::vec(input(), 0..20),
            others in proptest::collection::vec(input(), 0..20),
            seed in any::<u64>(),
        ) {
            let borrowed = |v: &[(String, i64)]| {
                let mut sum = NumericSum::default();
                for (text, times) in v { assert!(sum.add_text(text.as_bytes(), *times)); }
                sum
            };
            let plain = borrowed(&inputs);
            let n = inputs.len().max(1);
            inputs.rotate_left(seed as usize % n);
            let mut mixed = borrowed(&others);
            mixed.merge(&borrowed(&inputs));
            for (text, times) in &others { prop_assert!(mixed.add_text(text.as_bytes(), -times)); }
            prop_assert_eq!(&mixed, &plain);
            let mut gone = plain.clone();
            gone.merge(&plain.multiply(-1));
            prop_assert!(gone.is_zero());
            prop_assert_eq!(gone, NumericSum::default());
        }
    }
}
