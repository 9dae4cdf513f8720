//! Stream tables for any PostgreSQL, kept fresh from outside the server.
#![forbid(unsafe_code)]

pub mod analyzer;
pub mod error;
pub mod plan;
pub mod postgres;
pub mod row;

pub use error::{Error, ErrorKind, Result};
