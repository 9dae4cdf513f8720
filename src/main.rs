//! The program: sets up TLS, hands over to the command line, turns its result into an exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Rows are allocated by the threads that decode and freed by those that compute.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Two TLS providers may be compiled in by dependencies; the first thing said about it counts.
    let _ = rustls::crypto::ring::default_provider().install_default();
    pgtrickle::cli::main()
}
