//! A network beside that of the test, on the same machine.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace with a cable to this one; both end with this value.
pub struct Namespace {
    pub name: String,
    /// This end of the cable.
    cable: String,
    /// Three parts of the addresses of both ends.
    pub net: String,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Namespace {
    /// `Err`: why this machine does not let us.
    pub fn new() -> Result<Namespace, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = (std::process::id() + 7919 * MADE.fetch_add(1, Ordering::Relaxed)) % 60_000;
        let name = format!("pgtrickle{number}");
        let (cable, inner) = (format!("pgt{number}a"), format!("pgt{number}b"));
        let net = format!("10.{}.{}", 200 + number / 256 % 50, number % 256);
        run("ip", &["netns", "add", &name])?;
        let made = Namespace { name: name.clone(), cable: cable.clone(), net: net.clone() };
        run("ip", &["link", "add", &cable, "type", "veth", "peer", "name", &inner, "netns", &name])?;
        run("ip", &["addr", "add", &format!("{net}.1/24"), "dev", &cable])?;
        run("ip", &["link", "set", &cable, "up"])?;
        run("ip", &["-n", &name, "addr", "add", &format!("{net}.2/24"), "dev", &inner])?;
        run("ip", &["-n", &name, "link", "set", &inner, "up"])?;
        run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
        Ok(made)
    }

    pub fn cut(&self) {
        run("ip", &["link", "set", &self.cable, "down"]).expect("the cable can be cut");
    }

    pub fn mend(&self) {
        run("ip", &["link", "set", &self.cable, "up"]).expect("the cable can be mended");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The cable goes with it.
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}
