//! What a start (or a reconnect) finds on the server, and what is to be done about it: a decision table, and the states
//! of a source's capture. Pure: observations in, decisions out.
//!
//! Invariant: a slot never tells that changes are missing (a start below its position is forwarded, one above the
//! server's WAL is accepted), so positions and identities are compared before anything is streamed. A needless
//! reconcile costs time, never correctness: in doubt the table takes that side.

use crate::error::{Error, ErrorKind, Result};

pub mod decision;
pub mod states;

pub use decision::{Action, Diagnosis, Observation, Rule, SlotFacts, Stored, decide};
pub use states::{Capture, StateEvent, TRANSITIONS, Transition};

/// How changes may be captured (`cdc_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CdcMode {
    /// From the WAL where possible, by triggers until it is possible again.
    #[default]
    Auto,
    /// From the WAL; a first start where that is impossible is refused.
    Wal,
    /// By triggers.
    Trigger,
}

impl std::str::FromStr for CdcMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<CdcMode> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(CdcMode::Auto),
            "wal" => Ok(CdcMode::Wal),
            "trigger" => Ok(CdcMode::Trigger),
            other => Err(Error::new(ErrorKind::Config, format!("{other:?} is no capture mode"))
                .with_hint("use auto, wal or trigger")),
        }
    }
}
