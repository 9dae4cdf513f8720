//! Ends a private process and removes its folder when the process that started it dies in any way.
//!
//! A destructor does not run after `kill -9`, nor for a static. A small shell reads a pipe whose other end only we hold:
//! when we are gone, it reads the end of the file and cleans up.
//! Invariant: it never signals a process number that may have been given to another process: it is told before a child
//! is reaped ([`Watchdog::forget`]), and a number is not reused before that.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// Arguments: signal, file that exists while the process runs (or empty), folder to remove (or empty).
const SCRIPT: &str = r#"
trap '' INT TERM HUP
pid=
while read -r word number; do
  case $word in
    watch) pid=$number ;;
    forget) pid= ;;
    leave) exit 0 ;;
  esac
done
if [ -n "$pid" ] && kill -s "$1" "$pid" 2>/dev/null; then
  turn=0
  while kill -s 0 "$pid" 2>/dev/null; do
    if [ -n "$2" ] && [ ! -e "$2" ]; then break; fi
    turn=$((turn + 1))
    if [ "$turn" -eq 200 ]; then kill -s KILL "$pid"; fi
    if [ "$turn" -gt 220 ]; then break; fi
    sleep 0.05 2>/dev/null || sleep 1
  done
fi
if [ -n "$3" ]; then
  rm -rf -- "$3" || { sleep 1; rm -rf -- "$3"; }
fi
"#;

/// The watching shell; dropping it without [`Watchdog::dismiss`] makes it clean up.
pub struct Watchdog {
    shell: Child,
}

impl Watchdog {
    /// Starts the shell.
    ///
    /// `signal` is a name without `SIG`; `alive` a file that exists as long as the process runs; `folder` is removed
    /// after the process has ended.
    ///
    /// # Errors
    /// `ServerSetup` when no shell can be started.
    pub fn start(signal: &str, alive: Option<&Path>, folder: Option<&Path>) -> Result<Watchdog> {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "pgtrickle-watchdog", signal])
            .arg(alive.unwrap_or(Path::new("")))
            .arg(folder.unwrap_or(Path::new("")))
            .current_dir("/")
            .stdin(Stdio::piped())
            // Whoever reads our output must not wait for the shell.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal is for us, not for it.
            .process_group(0)
            .spawn()
            .map_err(|e| {
                Error::new(ErrorKind::ServerSetup, "can't start the watching shell").with_source(e)
            })?;
        Ok(Watchdog { shell })
    }

    /// From now on this process is ended with us.
    pub fn watch(&mut self, pid: u32) {
        self.tell(&format!("watch {pid}\n"));
    }

    /// The process is about to be reaped. Call it before `wait`.
    pub fn forget(&mut self) {
        self.tell("forget\n");
    }

    /// Everything is cleaned up, or shall stay: the shell ends without doing anything.
    pub fn dismiss(mut self) {
        self.tell("leave\n");
        let _ = self.shell.wait();
    }

    fn tell(&mut self, words: &str) {
        // It fails only when the shell is gone; then there is nobody to tell.
        if let Some(pipe) = &mut self.shell.stdin {
            let _ = pipe.write_all(words.as_bytes());
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_process_and_its_folder_end_with_the_watchdog() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
        // The zombie of our own child still answers signal 0: the file stands for the process, as postmaster.pid does.
        let mut watchdog = Watchdog::start("KILL", Some(&folder.join("absent")), Some(&folder)).unwrap();
        watchdog.watch(process.id());
        drop(watchdog);
        assert!(!process.wait().unwrap().success());
        assert!(!folder.exists());
    }

    #[test]
    fn a_dismissed_watchdog_leaves_everything_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut watchdog = Watchdog::start("KILL", None, Some(scratch.path())).unwrap();
        watchdog.watch(process.id());
        watchdog.dismiss();
        assert!(process.try_wait().unwrap().is_none());
        assert!(scratch.path().exists());
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
