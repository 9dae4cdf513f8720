//! Stream tables for any PostgreSQL, kept fresh from outside the server.
#![forbid(unsafe_code)]

pub mod analyzer;
pub mod apply;
pub mod capture;
pub mod catalog;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dataflow;
pub mod error;
pub mod evaluate;
pub mod http;
pub mod kernel;
pub mod launcher;
pub mod observe;
pub mod pgoutput;
pub mod plan;
pub mod postgres;
pub mod recovery;
pub mod replication;
pub mod row;
pub mod supervisor;

pub use error::{Error, ErrorKind, Result};
