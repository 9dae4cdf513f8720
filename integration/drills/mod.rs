//! Drills: what operators do to a database, done to a real server while writes go on.
//!
//! Each drill has a cluster of its own, with the schema installed by `pgtrickle init`, the least-privilege role for the
//! sidecar, stream tables of every kind and an application that writes all the time. Something happens; the server that
//! comes out of it gets a sidecar; more is written; and in the end every stream table must equal its query exactly.
//! Invariant: a drill ends only by that comparison ([`proof`]), and leaves no server, slot, folder or process behind.
//!
//! `cargo test` runs the quick ones. `PGTRICKLE_DRILLS=all` runs all; those that need a program that is not part of
//! PostgreSQL (pgBackRest, barman) say so and are skipped where it is missing.

mod copies;
mod databases;
mod external;
mod logical;
mod logical_parts;
mod page;
mod physical;
mod proof;
mod scene;
mod slots;
mod snapshots;
mod standby;
mod tools;
mod triggers;
mod upgrade;
mod workload;
