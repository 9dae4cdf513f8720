//! What a machine can't do is left out, and said where everybody sees it.

use std::io::Write;

/// Says what is left out and why. Not by `println!`: the output of a test that passes is not shown.
pub fn left_out(why: &str) {
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {why}");
}
