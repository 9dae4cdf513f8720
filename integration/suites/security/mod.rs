//! Attacks on the sidecar's rights, on what it keeps from whom, and on its password.

mod attacks;
mod documented;
mod exchanged;
mod leaks;
mod passwords;
mod timeouts;
