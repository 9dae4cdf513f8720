//! The catalog in the database: its schema files and how they get there.
//!
//! Invariant: everything durable is in plain SQL objects of the schemas `pgtrickle`, `pgtrickle_queries` and
//! `pgtrickle_changes`; the binary keeps nothing of its own.

pub mod migrate;
pub mod store;
