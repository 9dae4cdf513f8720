//! The suites; each file is one subject.

mod analyzer_deparse;
mod analyzer_load;
mod analyzer_meaning;
mod analyzer_plans;
mod analyzer_proof;
mod analyzer_support;
mod cli;
mod expressions;
mod harness;
mod layout;
mod pipeline;
mod schema;
mod servers;
