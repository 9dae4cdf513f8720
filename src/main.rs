//! The program: sets up TLS, hands over to the command line, turns its result into an exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // Two TLS providers may be compiled in by dependencies; the first thing said about it counts.
    let _ = rustls::crypto::ring::default_provider().install_default();
    pgtrickle::cli::main()
}
