//! Several processes as one engine (D16): who they are, how they trust each other, what they tell each other.
//!
//! Purpose: connect the workers of all processes and carry what timely does not (evaluations, limits, figures, signs of
//! life). Invariant: whatever goes wrong between two processes ends the run in all of them; process 0 starts the next one.
//! No process but 0 has a session with PostgreSQL. Place in the data's way: around the dataflow.
//!
//! ```text
//!            ┌──control: questions of Evaluate, figures, marks, signs of life──┐
//!  process 0 ┤                                                                 ├ process 1, 2 ... (listen)
//!            └──mesh: rows and progress between workers (timely)───────────────┘
//! ```
//!
//! The lower number connects to the higher, so nothing listens at process 0. Every connection begins with the proof of the
//! shared secret and a comparison of binary and hosts file ([`handshake`]). What follows is neither encrypted nor signed.

mod handshake;
mod hosts;
mod leader;
mod member;
mod wire;

use std::fmt;
use std::time::Duration;

pub use handshake::{Secret, build_of_this_program};
pub use hosts::Hosts;
pub use leader::Led;
pub use member::serve;

/// The place of this process among the others.
#[derive(Clone)]
pub struct Settings {
    /// Its number: its line in the hosts file, from 0.
    pub process: usize,
    pub hosts: Hosts,
    pub secret: Secret,
    /// How long another process may be silent.
    pub timeout: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("process", &self.process).field("hosts", &self.hosts).finish()
    }
}
