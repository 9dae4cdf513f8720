//! From a defining query, as the server analysed it, to a plan.
//!
//! Purpose: read `pg_rewrite.ev_action` (PostgreSQL 14 to 18), look up what it names, translate it to [`crate::plan`],
//! and give back verified SQL for expressions that PostgreSQL computes. Invariant: an unknown node or field value is an
//! `Unsupported` error, never a guess. Place in the data's way: control path only; runs when a stream table is created
//! or installed.

mod analysis;
pub mod deparse;
pub mod facts;
mod json;
pub mod literals;
pub mod load;
mod lookup;
pub mod node;
mod oids;
pub mod settings;
pub mod translate;
pub mod verify;
pub mod volatility;
pub mod window;

pub use analysis::{Analysis, SourceFacts, TreeSource, analyze};
