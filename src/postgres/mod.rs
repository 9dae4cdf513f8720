//! Everything about a PostgreSQL server that is not the data itself: its binaries, private servers, sessions, facts.
//!
//! Invariant: nothing here reads or writes a user's rows.

pub mod account;
pub mod binaries;
pub mod cluster;
pub mod fetch;
pub mod password;
pub mod session;
pub mod sessions;
pub mod store;
pub mod tls;
pub mod watchdog;
