//! The suites; each file is one subject.

mod analyzer_deparse;
mod analyzer_load;
mod analyzer_meaning;
mod analyzer_plans;
mod analyzer_proof;
mod analyzer_support;
mod bad_catalog;
mod bad_input;
mod bad_setup;
mod capture;
mod cli;
mod crash;
mod disk_full;
mod expressions;
mod harness;
mod hazards;
mod layout;
mod maintenance;
mod memory;
mod oracle;
mod pipeline;
mod rights;
mod schema;
mod servers;
mod snapshots;
mod stand_in;
