//! The suites; each file is one subject.

mod analyzer_deparse;
mod analyzer_load;
mod analyzer_plans;
mod expressions;
mod harness;
mod oracle;
mod servers;
