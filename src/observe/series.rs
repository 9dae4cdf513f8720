//! One number over time, in memory, at several resolutions.
//!
//! Invariant: the memory of a series is bounded from the start; a moment without a value is a gap, never zero.

use std::collections::VecDeque;

/// What several values within one step become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// The highest: a peak of lag must not vanish in a mean.
    Peak,
    Mean,
}

/// Step in seconds and number of steps of each resolution, finest first.
pub type Resolutions = &'static [(i64, usize)];

/// An hour at 5 s, a day at a minute, a week at a quarter of an hour: 21 KiB.
pub const OF_PIPELINES: Resolutions = &[(5, 720), (60, 1440), (900, 672)];
/// An hour at 10 s, a day at 5 minutes: 5 KiB, because there may be thousands.
pub const OF_TABLES: Resolutions = &[(10, 360), (300, 288)];

/// A point: seconds since 1970, and the value if there was one.
pub type Point = (i64, Option<f64>);

#[derive(Debug, Clone)]
struct Ring {
    step: i64,
    capacity: usize,
    /// Oldest first; NaN where nothing is known.
    values: VecDeque<f64>,
    /// Number of the last step, since 1970.
    last: i64,
    sum: f64,
    count: u32,
}

impl Ring {
    fn push(&mut self, at: i64, value: f64, fold: Fold) {
        let step = at.div_euclid(self.step);
        if self.values.is_empty() || step > self.last {
            let missing = if self.values.is_empty() { 0 } else { step - self.last - 1 };
            // A clock that jumped ahead of everything that is kept leaves nothing of it.
            if missing >= self.capacity as i64 {
                self.values.clear();
            } else {
                self.values.extend((0..missing).map(|_| f64::NAN));
            }
            self.values.push_back(f64::NAN);
            while self.values.len() > self.capacity {
                self.values.pop_front();
            }
            (self.last, self.sum, self.count) = (step, 0.0, 0);
        } else if step < self.last {
            // The clock went back: what was measured then stays where it is.
            return;
        }
        if value.is_nan() {
            return;
        }
        self.sum += value;
        self.count += 1;
        if let Some(newest) = self.values.back_mut() {
            *newest = match fold {
                Fold::Peak if newest.is_nan() => value,
                Fold::Peak => newest.max(value),
                Fold::Mean => self.sum / f64::from(self.count),
            };
        }
    }

    fn points(&self, since: i64) -> Vec<Point> {
        let first = self.last + 1 - self.values.len() as i64;
        let points = self.values.iter().enumerate();
        let points = points.map(|(n, v)| ((first + n as i64) * self.step, (!v.is_nan()).then_some(*v)));
        points.filter(|(at, _)| *at + self.step > since).collect()
    }
}

/// A number over time.
#[derive(Debug, Clone)]
pub struct Series {
    fold: Fold,
    rings: Vec<Ring>,
}

impl Series {
    pub fn new(fold: Fold, resolutions: Resolutions) -> Series {
        let ring =
            |&(step, capacity)| Ring { step, capacity, values: VecDeque::new(), last: 0, sum: 0.0, count: 0 };
        Series { fold, rings: resolutions.iter().map(ring).collect() }
    }

    /// Notes a value (`None`: it could not be had) at a moment in seconds since 1970.
    pub fn push(&mut self, at: i64, value: Option<f64>) {
        for ring in &mut self.rings {
            ring.push(at, value.unwrap_or(f64::NAN), self.fold);
        }
    }

    /// The moment of the last value or gap.
    pub fn last(&self) -> i64 {
        self.rings.first().map_or(0, |ring| ring.last * ring.step)
    }

    /// What is known of the `seconds` before `now`, at the finest resolution that reaches so far; oldest first.
    pub fn points(&self, now: i64, seconds: i64) -> Vec<Point> {
        let reaches = |ring: &&Ring| ring.step * ring.capacity as i64 >= seconds;
        let ring = self.rings.iter().find(reaches).or(self.rings.last());
        ring.map(|ring| ring.points(now - seconds)).unwrap_or_default()
    }

    /// Change per second over the last `seconds`: the slope of a line through the values (least squares). Absent with
    /// fewer than three values, or when they are of less than `least` seconds.
    pub fn slope(&self, now: i64, seconds: i64, least: i64) -> Option<f64> {
        let points = self.points(now, seconds);
        let known: Vec<(f64, f64)> =
            points.iter().filter_map(|(at, v)| Some(((at - now) as f64, (*v)?))).collect();
        let (first, last) = (known.first()?.0, known.last()?.0);
        if known.len() < 3 || last - first < least as f64 {
            return None;
        }
        let n = known.len() as f64;
        let (mean_x, mean_y) =
            (known.iter().map(|p| p.0).sum::<f64>() / n, known.iter().map(|p| p.1).sum::<f64>() / n);
        let spread: f64 = known.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
        let together: f64 = known.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
        (spread > 0.0).then(|| together / spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Resolutions = &[(5, 4), (20, 3)];

    #[test]
    fn each_resolution_keeps_its_own_bounded_past_and_gaps_are_no_zeros() {
        let mut series = Series::new(Fold::Peak, SMALL);
        for (at, value) in [(0, Some(1.0)), (5, Some(9.0)), (10, None), (15, Some(2.0)), (30, Some(3.0))] {
            series.push(at, value);
        }
        assert_eq!(series.points(30, 20), [(15, Some(2.0)), (20, None), (25, None), (30, Some(3.0))]);
        assert_eq!(series.points(30, 60), [(0, Some(9.0)), (20, Some(3.0))]);
        series.push(1_000_000, Some(7.0));
        assert_eq!(series.points(1_000_000, 20), [(1_000_000, Some(7.0))]);
        series.push(5, Some(100.0));
        assert_eq!(series.points(1_000_000, 20), [(1_000_000, Some(7.0))], "a clock that goes back");
    }

    #[test]
    fn a_mean_is_that_of_all_values_of_its_step() {
        let mut series = Series::new(Fold::Mean, SMALL);
        for (at, value) in [(0, 1.0), (1, 2.0), (2, 6.0)] {
            series.push(at, Some(value));
        }
        assert_eq!(series.points(2, 5), [(0, Some(3.0))]);
    }

    #[test]
    fn a_slope_needs_three_values_and_sees_through_gaps() {
        let mut series = Series::new(Fold::Peak, SMALL);
        series.push(0, Some(10.0));
        series.push(5, Some(20.0));
        assert_eq!(series.slope(5, 20, 0), None);
        series.push(15, Some(40.0));
        assert!((series.slope(15, 20, 15).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(series.slope(15, 20, 16), None);
    }
}
