//! Stream tables for any PostgreSQL, kept fresh from outside the server.
#![forbid(unsafe_code)]

pub mod error;
pub mod pgoutput;
pub mod plan;
pub mod row;

pub use error::{Error, ErrorKind, Result};
