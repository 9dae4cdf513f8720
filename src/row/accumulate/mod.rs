//! Sums that are linear: what was added can be taken away again, in any order.
//!
//! Purpose: the state of `sum` and `avg`. Invariant: each accumulator is a commutative group under
//! `merge`, with `times` copies of a value as its multiples, and equal states are equal values (one representation).
//! So a state depends only on the net multiset of inputs, and the type can be a difference of the dataflow.
//! Counts and integer sums wrap, which is exact for every state that a table can reach.

mod float_sum;
mod int_sum;
mod numeric_sum;

pub use float_sum::FloatSum;
pub use int_sum::IntSum;
pub use numeric_sum::NumericSum;
