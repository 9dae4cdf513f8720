//! What every suite needs: servers, databases, the sidecar process, waits, an oracle and faults.
//!
//! Invariant: a test leaves nothing behind (database, slots, processes, folders), whether it passes, fails or is killed.

pub mod certificates;
pub mod cluster;
pub mod database;
pub mod fault;
pub mod left_out;
pub mod network;
pub mod oracle;
mod reasons;
pub mod servers;
pub mod sidecar;
pub mod wait;

pub use database::TestDatabase;
pub use left_out::left_out;
pub use servers::{Server, for_each_major, own_cluster, shared};
pub use sidecar::Sidecar;
pub use wait::{SOON, wait_until};
