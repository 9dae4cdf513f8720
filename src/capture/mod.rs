//! How the rows and changes of sources reach the dataflow: layouts, publication, hydration.
//!
//! Invariant (D5): for each held source, every committed change is either in the snapshot it was loaded from or fed from
//! the stream, never both and never neither. Place in the data's way: pgoutput and COPY -> **capture** -> dataflow.

pub mod change;
pub mod fingerprint;
pub mod hierarchy;
pub mod hydrate;
pub mod poll;
pub mod publication;
pub mod source;
pub mod trigger;
pub mod writers;

pub use source::{CapturedBy, SourceLayout, SourceSpec};
pub use trigger::{Captured, Op};
