//! The logical replication stream of one pipeline: slot, publication names, session.
//!
//! Invariant: nothing is streamed before the server's identity was verified on the same session, and only positions
//! that are durable in the catalog are ever acknowledged. Place in the data's way: PostgreSQL -> **replication** ->
//! pgoutput.

pub mod client;
pub mod names;
pub mod slot;

pub use client::{Session, StreamEvent};
pub use names::PipelineNames;
