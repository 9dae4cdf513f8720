//! Rows and scalar values as the pipeline holds them.
//!
//! Purpose: one packed row type for the stream, COPY, the dataflow and apply. Invariant: a datum's *image* is exactly
//! the text the server prints under the pinned session settings (integers and booleans are packed, their text is
//! canonical); sameness by image is byte equality of rows. Sameness by *key* (the type's equality) goes through
//! [`key::KeyForm`]. Place in the data's way: produced by decode, COPY and evaluation, consumed by dataflow and apply.

pub mod accumulate;
pub mod copy;
pub mod datum;
pub mod fault;
pub mod float;
pub mod key;
pub mod numeric;
pub mod packed;
pub mod record;
pub mod temporal;
pub mod types;

pub use datum::Datum;
pub use fault::Fault;
pub use numeric::Numeric;
pub use packed::{Row, RowBuilder};
pub use types::{TypeClass, TypeInfo};
