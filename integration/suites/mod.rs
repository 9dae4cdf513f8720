//! The suites; each file is one subject.

mod harness;
mod schema;
mod servers;
