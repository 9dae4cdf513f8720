//! All integration tests in one binary: real servers, real sockets, the real `pgtrickle` program.
//!
//! `PGTRICKLE_TEST_PG=15,18` chooses the major versions; without it the newest server of this machine is used.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Parts of the harness wait for the suite that will use them.
#![allow(dead_code, unused_imports)]

mod drills;
mod harness;
mod suites;
