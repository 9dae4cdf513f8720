//! The catalog in the database: its schema files and how they get there.
//!
//! Invariant: everything durable is in plain SQL objects of the schemas `pgtrickle`, `pgtrickle_queries` and
//! `pgtrickle_changes`; the binary keeps nothing of its own.

pub mod alerts;
pub mod behind;
pub mod migrate;
pub mod state;
pub mod store;
