//! A private PostgreSQL server: made, started, stopped and removed by us.
//!
//! Used by the demo and by every integration test. It listens on 127.0.0.1 and on a socket in its own folder, and it
//! trusts every local connection: whoever can log in to this machine can reach it while it runs.
//! Invariant: the server and its folder never outlive this process, unless the folder is to be kept: [`Drop`] ends
//! both, and a [`Watchdog`] does it when no destructor runs.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::account::{self, Account};
use super::binaries::PgInstall;
use super::store::{self, failure};
use super::watchdog::Watchdog;
use crate::error::{Error, ErrorKind, Result};

mod prepare;
mod start;

pub use prepare::forget_prepared;

/// Longest time a start may take; a start after a crash replays the log.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// Longest time a stop may take before it is made harsher.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// TCP port; a free one when absent.
    pub port: Option<u16>,
    /// Folder of the cluster: absent, empty, or made by an earlier run. A fresh one in the system's temporary folder
    /// when absent.
    pub dir: Option<PathBuf>,
    /// Leave the folder when the cluster is dropped. A folder that held a cluster before is left anyway, unless `adopt`.
    pub keep: bool,
    /// A folder that held a cluster before (a restored copy) goes with this one.
    pub adopt: bool,
    /// Settings beyond (and above) those for logical decoding, as `name` and value without quotes.
    pub settings: Vec<(String, String)>,
    /// Name of the superuser.
    pub superuser: String,
    /// Flush to disk. Without it, a crash of the machine (not of the server) may damage the cluster.
    pub fsync: bool,
    /// Copy a data folder prepared earlier in place of a run of initdb. All copies have the same system identifier: say
    /// false where clusters must differ in it.
    pub prepared: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            port: None,
            dir: None,
            keep: false,
            adopt: false,
            settings: Vec::new(),
            superuser: "postgres".to_owned(),
            fsync: true,
            prepared: true,
        }
    }
}

/// How a server is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits until all sessions have ended (SIGTERM).
    Smart,
    /// Ends sessions, writes a checkpoint (SIGINT).
    Fast,
    /// Ends at once; the next start recovers as after a crash (SIGQUIT).
    Immediate,
}

impl StopMode {
    fn signal(self) -> &'static str {
        match self {
            StopMode::Smart => "TERM",
            StopMode::Fast => "INT",
            StopMode::Immediate => "QUIT",
        }
    }
}

/// A private server.
pub struct Cluster {
    install: PgInstall,
    options: ClusterOptions,
    account: Option<Account>,
    folder: PathBuf,
    /// Whether the folder goes with the cluster.
    disposable: bool,
    port: u16,
    server: Option<Child>,
    watchdog: Option<Watchdog>,
}

impl Cluster {
    /// Makes a cluster (or takes the one in `options.dir`) and starts its server; blocks until it accepts connections (a
    /// standby and a recovery accept read-only ones).
    ///
    /// # Errors
    /// `ServerSetup` when initdb or the server fails; the message ends with the last lines of the server's log.
    pub fn start(install: &PgInstall, options: ClusterOptions) -> Result<Cluster> {
        let account = account::server_account()?;
        if !account::may_enter(&install.bin_dir, account) {
            return Err(Error::new(
                ErrorKind::ServerSetup,
                format!("the server's user may not run the programs in {}", install.bin_dir.display()),
            )
            .with_hint("as root the server runs as another user, who must be able to enter this folder"));
        }
        let (folder, existed) = match &options.dir {
            None => (prepare::scratch_folder(account)?, false),
            Some(dir) => prepare::given_folder(dir, account)?,
        };
        let disposable = !options.keep && (!existed || options.adopt);
        // From here on Drop and the watchdog clean up, also after an error.
        let mut cluster = Cluster {
            install: install.clone(),
            account,
            disposable,
            port: options.port.unwrap_or(0),
            server: None,
            watchdog: None,
            folder,
            options,
        };
        let pid_file = cluster.pid_file();
        cluster.watchdog =
            Some(Watchdog::start("QUIT", Some(&pid_file), disposable.then_some(cluster.folder.as_path()))?);
        if !existed {
            prepare::data_folder(&cluster)?;
        }
        cluster.launch(cluster.options.port, Duration::ZERO)?;
        Ok(cluster)
    }

    /// An empty folder that belongs to the server's user, to be filled and given to [`Cluster::start`]: `dir`, or a fresh
    /// one.
    ///
    /// # Errors
    /// `Config` when `dir` is not empty or the server's user can't reach it.
    pub fn empty_folder(dir: Option<&Path>) -> Result<PathBuf> {
        let account = account::server_account()?;
        let folder = match dir {
            None => prepare::scratch_folder(account)?,
            Some(dir) => match prepare::given_folder(dir, account)? {
                (folder, false) => folder,
                (folder, true) => {
                    let what = format!("{} holds a cluster already", folder.display());
                    return Err(Error::new(ErrorKind::Config, what).with_hint("name an empty folder"));
                }
            },
        };
        hand_over(&folder, 0o700, account)?;
        Ok(folder)
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The installation it runs from.
    pub fn install(&self) -> &PgInstall {
        &self.install
    }

    /// Folder of everything that belongs to the cluster.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The server's log file.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// Process number of the postmaster while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Connection URL for a database and a role; the server asks for no password.
    pub fn conninfo(&self, database: &str, user: &str) -> String {
        format!("postgresql://{}@127.0.0.1:{}/{}", percent(user), self.port, percent(database))
    }

    /// The last `lines` lines of the server's log; empty when there is none.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log_path(), lines)
    }

    /// Changes or adds a setting (value without quotes); it counts from the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.options.settings.retain(|(known, _)| known != name);
        self.options.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Whether the server process lives.
    pub fn is_running(&mut self) -> bool {
        let Some(child) = &mut self.server else { return false };
        if matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        // It has been reaped: its number may soon belong to another process.
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.forget();
        }
        self.server = None;
        false
    }

    /// Stops the server and waits for its end; does nothing when it does not run.
    ///
    /// # Errors
    /// `ServerSetup` when it did not end in a minute in the way asked for; it has been killed then.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let Some(mut child) = self.server.take() else { return Ok(()) };
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.forget();
        }
        signal(child.id(), mode.signal());
        if ended(&mut child, STOP_PATIENCE) {
            return Ok(());
        }
        signal(child.id(), StopMode::Immediate.signal());
        if !ended(&mut child, Duration::from_secs(5)) {
            let _ = child.kill();
            let _ = child.wait();
        }
        Err(self.with_log(format!("the server did not stop within {} s ({mode:?})", STOP_PATIENCE.as_secs())))
    }

    /// Starts a stopped or killed server again, on the same port and data.
    ///
    /// # Errors
    /// `ServerSetup` as [`Cluster::start`].
    pub fn start_again(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        // Its own port may be in use for a moment by an outgoing connection of somebody else.
        self.launch(Some(self.port), Duration::from_secs(5))
    }

    /// Stops and starts again.
    ///
    /// # Errors
    /// `ServerSetup` as [`Cluster::stop`] and [`Cluster::start`].
    pub fn restart(&mut self, mode: StopMode) -> Result<()> {
        self.stop(mode)?;
        self.start_again()
    }

    /// Kills the postmaster with SIGKILL; its children notice and end by themselves shortly after.
    ///
    /// # Errors
    /// `ServerSetup` when the process can't be killed.
    pub fn kill9(&mut self) -> Result<()> {
        let Some(mut child) = self.server.take() else { return Ok(()) };
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.forget();
        }
        child
            .kill()
            .and_then(|()| child.wait())
            .map(drop)
            .map_err(|e| Error::new(ErrorKind::ServerSetup, "can't kill the server").with_source(e))
    }

    fn pid_file(&self) -> PathBuf {
        self.data_dir().join("postmaster.pid")
    }

    fn with_log(&self, context: String) -> Error {
        let log = self.log_tail(15);
        let context = if log.is_empty() { context } else { format!("{context}; its log ends with:\n{log}") };
        Error::new(ErrorKind::ServerSetup, context)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mode = if self.disposable { StopMode::Immediate } else { StopMode::Fast };
        let _ = self.stop(mode);
        if self.disposable {
            // Children of a killed server may still be writing; the second turn gets what they left.
            let deadline = Instant::now() + Duration::from_secs(10);
            while fs::remove_dir_all(&self.folder).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound)
                && Instant::now() < deadline
            {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.dismiss();
        }
    }
}

/// Sends a signal by name; the standard library can only kill.
fn signal(pid: u32, name: &str) {
    let _ = Command::new("sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Waits for the end of a child.
fn ended(child: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => return false,
            _ => return true,
        }
    }
}

/// The last lines of a file, looking at no more than its last 64 KB.
pub fn tail(path: &Path, lines: usize) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = fs::File::open(path) {
        let size = file.metadata().map(|facts| facts.len()).unwrap_or(0);
        let _ = file.seek(SeekFrom::Start(size.saturating_sub(64 << 10)));
        let _ = file.read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Percent-encodes everything but letters, digits, `-`, `_` and `.` (RFC 3986, unreserved characters).
fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Makes a file or folder readable by its owner alone and gives it to the server's user.
fn hand_over(path: &Path, mode: u32, account: Option<Account>) -> Result<()> {
    fs::set_permissions(path, PermissionsExt::from_mode(mode))
        .map_err(|e| failure("set the mode of", path, e))?;
    account::give(path, account)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_urls_are_percent_encoded() {
        assert_eq!(percent("a-b_c.d"), "a-b_c.d");
        assert_eq!(percent("my db/é"), "my%20db%2F%C3%A9");
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&path, 2), "two\nthree");
        assert_eq!(tail(&scratch.path().join("absent"), 2), "");
    }
}
