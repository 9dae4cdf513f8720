//! The sidecar as a real process, so that it can really be killed.
//!
//! Invariant: it ends with the test, also when the test process is killed (a watchdog sees to that). When a test fails,
//! the end of its log is printed.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgtrickle::postgres::cluster::tail;
use pgtrickle::postgres::watchdog::Watchdog;

use super::database::{SIDECAR, TestDatabase};
use super::wait::wait_until;

/// A running `pgtrickle run`.
pub struct Sidecar {
    program: PathBuf,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
    process: Child,
    /// Length of the log when it was started last.
    told_before: usize,
    watchdog: Option<Watchdog>,
}

impl Sidecar {
    /// Starts it for one database, as the role `pgtrickle`; returns at once.
    pub fn start(database: &TestDatabase, extra: &[&str]) -> Sidecar {
        Self::start_with_url(&database.url(SIDECAR), extra)
    }

    /// As [`Sidecar::start`] with a URL of the test's choice, for example through a proxy.
    pub fn start_with_url(url: &str, extra: &[&str]) -> Sidecar {
        let mut arguments = vec!["run".to_owned(), "--database-url".to_owned(), url.to_owned()];
        arguments.extend(extra.iter().map(|argument| (*argument).to_owned()));
        Self::start_program(PathBuf::from(env!("CARGO_BIN_EXE_pgtrickle")), arguments)
    }

    /// Any program in the sidecar's place: the harness tests itself with a shell.
    pub fn start_program(program: PathBuf, arguments: Vec<String>) -> Sidecar {
        let folder =
            tempfile::Builder::new().prefix("pgtrickle-sidecar-").tempdir().expect("a folder for the log");
        let mut watchdog = Watchdog::start("KILL", None, Some(folder.path())).expect("a watchdog");
        let process = spawn(&program, &arguments, &folder);
        watchdog.watch(process.id());
        Sidecar { program, arguments, folder, process, told_before: 0, watchdog: Some(watchdog) }
    }

    /// Waits until it serves the database. The one place that knows how it says so.
    pub async fn wait_ready(&mut self, deadline: Duration) {
        let (log, before) = (self.log_path(), self.told_before);
        wait_until("the sidecar to be ready", deadline, || {
            let ended = self.process.try_wait().expect("its state can be asked for");
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            async move {
                if let Some(status) = ended {
                    panic!("the sidecar ended with {status} before it was ready");
                }
                let ready = text.get(before..).unwrap_or_default().lines().any(is_ready);
                if ready { Ok(()) } else { Err(text.lines().last().unwrap_or("an empty log").to_owned()) }
            }
        })
        .await;
    }

    /// SIGKILL: nothing of it runs any more when this returns.
    pub fn kill9(&mut self) {
        self.forget();
        let _ = self.process.kill();
        self.process.wait().expect("it ends");
    }

    /// SIGTERM, and its exit code (`None` when a signal ended it). Fails when it takes longer than `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) -> Option<i32> {
        if let Ok(None) = self.process.try_wait() {
            signal(self.process.id(), "TERM");
        }
        self.wait_exit(deadline).await
    }

    /// Waits until it ends by itself.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("its state can be asked for") {
                self.forget();
                return status.code();
            }
            assert!(start.elapsed() < deadline, "the sidecar did not end within {deadline:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops it in place (SIGSTOP), as a virtual machine that is paused; [`Sidecar::resume`] lets it go on.
    pub fn pause(&self) {
        signal(self.process.id(), "STOP");
    }

    /// Lets a paused sidecar go on.
    pub fn resume(&self) {
        signal(self.process.id(), "CONT");
    }

    /// Starts it again after its end, with the same arguments; the log goes on in the same file.
    pub fn start_again(&mut self) {
        assert!(matches!(self.process.try_wait(), Ok(Some(_))), "the sidecar still runs");
        self.told_before = self.logs().len();
        self.process = spawn(&self.program, &self.arguments, &self.folder);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.watch(self.process.id());
        }
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Everything it has logged.
    pub fn logs(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn forget(&mut self) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.forget();
        }
    }
}

/// Whether a line of the log, text or JSON, says that the database is served.
fn is_ready(line: &str) -> bool {
    let message = serde_json::from_str::<serde_json::Value>(line)
        .ok()
        .and_then(|l| Some(l["message"].as_str()?.to_owned()));
    message.as_deref().unwrap_or(line).split_whitespace().any(|word| word == "ready")
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            let _ = self.process.kill();
        }
        self.forget();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- the sidecar's log ends with:\n{}\n---", tail(&self.log_path(), 60));
        }
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.dismiss();
        }
    }
}

fn spawn(program: &PathBuf, arguments: &[String], folder: &tempfile::TempDir) -> Child {
    let path = folder.path().join("log");
    let log = File::options().create(true).append(true).open(path).expect("a log file");
    Command::new(program)
        .args(arguments)
        .env("RUST_LOG", "info,pgtrickle=debug")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("the sidecar starts")
}

/// Sends a signal by name to a child that has not been reaped.
pub fn signal(pid: u32, name: &str) {
    let status =
        Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid.to_string()]).status();
    assert!(status.is_ok_and(|s| s.success()), "SIG{name} could not be sent to {pid}");
}
