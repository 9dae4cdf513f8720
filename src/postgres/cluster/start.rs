//! Starting the server of a cluster and waiting until it accepts connections.
//!
//! Invariant: "ready" is said by our own server process. The status line of `postmaster.pid` (the file `pg_ctl -w` reads,
//! `src/bin/pg_ctl/pg_ctl.c`, `wait_for_postmaster_start`) is only believed when its first line is our child's number; a
//! connection to the port would also succeed when another server has taken it.

use std::net::{Ipv4Addr, TcpListener};

use super::*;

/// Ports to choose from: below the range that systems give to outgoing connections, so that a server that is stopped
/// for a moment finds its port free again.
const PORTS: std::ops::Range<u16> = 15000..32000;
/// Longest path of a Unix socket, with the name that the server adds.
const SOCKET_PATH: usize = 107 - ".s.PGSQL.65535.lock".len();

/// Why one attempt failed.
enum Attempt {
    /// Somebody else has the port.
    PortTaken(Error),
    /// Children of a killed predecessor still hold its shared memory (`could not ... pre-existing shared memory block`).
    PredecessorAlive(Error),
    Failed(Error),
}

impl Cluster {
    /// Starts the server on `port`, or on a free one, trying others when it is taken meanwhile. A given port that is
    /// taken is waited for as long as `port_patience`.
    pub(super) fn launch(&mut self, port: Option<u16>, port_patience: Duration) -> Result<()> {
        let begin = Instant::now();
        let deadline = begin + START_PATIENCE;
        let mut other_ports = 20;
        loop {
            self.port = match port {
                Some(port) => port,
                None => free_port()?,
            };
            let (error, pause) = match self.attempt(deadline) {
                Ok(()) => return Ok(()),
                Err(Attempt::Failed(error)) => return Err(error),
                Err(Attempt::PortTaken(error)) => {
                    other_ports -= 1;
                    let give_up = match port {
                        Some(_) => begin.elapsed() >= port_patience,
                        None => other_ports == 0,
                    };
                    if give_up {
                        return Err(error);
                    }
                    (error, if port.is_some() { 100 } else { 0 })
                }
                Err(Attempt::PredecessorAlive(error)) => (error, 20),
            };
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    fn attempt(&mut self, deadline: Instant) -> std::result::Result<(), Attempt> {
        self.write_settings().map_err(Attempt::Failed)?;
        let log_start = fs::metadata(self.log_path()).map(|facts| facts.len()).unwrap_or(0);
        let mut child = self.spawn().map_err(Attempt::Failed)?;
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.watch(child.id());
        }
        loop {
            if self.says_ready(child.id()) {
                self.server = Some(child);
                return Ok(());
            }
            if !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            if Instant::now() > deadline {
                self.server = Some(child);
                let error =
                    self.with_log(format!("the server was not ready within {} s", START_PATIENCE.as_secs()));
                let _ = self.stop(StopMode::Immediate);
                return Err(Attempt::Failed(error));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.forget();
        }
        let error = self.with_log("the server did not start".to_owned());
        let mut said = String::new();
        if let Ok(mut log) = fs::File::open(self.log_path()) {
            let _ = log.seek(SeekFrom::Start(log_start));
            let _ = log.read_to_string(&mut said);
        }
        Err(
            if said.contains("could not create any TCP/IP sockets") || said.contains("Address already in use")
            {
                Attempt::PortTaken(error)
            } else if said.contains("pre-existing shared memory block") {
                Attempt::PredecessorAlive(error)
            } else {
                Attempt::Failed(error)
            },
        )
    }

    fn spawn(&self) -> Result<Child> {
        let log_path = self.log_path();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(|e| failure("open", &log_path, e))?;
        account::give(&log_path, self.account)?;
        let copy = log.try_clone().map_err(|e| failure("open", &log_path, e))?;
        let program = self.install.program("postgres");
        account::command(&program, self.account)
            .arg("-D")
            .arg(self.data_dir())
            .current_dir(&self.folder)
            .stdout(copy)
            .stderr(log)
            // A Ctrl-C in the terminal is for us; we stop the server in our own order.
            .process_group(0)
            .spawn()
            .map_err(|e| failure("run", &program, e))
    }

    /// Line 8 of `postmaster.pid` is the status (`src/include/utils/pidfile.h`, `LOCK_FILE_LINE_PM_STATUS`).
    fn says_ready(&self, pid: u32) -> bool {
        let Ok(text) = fs::read_to_string(self.pid_file()) else { return false };
        let mut lines = text.lines();
        lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid)
            && lines.nth(6).is_some_and(|status| status.trim() == "ready")
    }

    /// Writes `pgtrickle.conf`, which `postgresql.conf` includes; `ALTER SYSTEM` still wins over it.
    fn write_settings(&self) -> Result<()> {
        let folder = self.folder.to_string_lossy();
        // A longer path would keep the server from starting; TCP is enough.
        let socket_folder = if folder.len() <= SOCKET_PATH { folder.as_ref() } else { "" };
        let port = self.port.to_string();
        let on = |yes: bool| if yes { "on" } else { "off" };
        let own: [(&str, &str); 10] = [
            ("port", &port),
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", socket_folder),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
            ("fsync", on(self.options.fsync)),
            ("full_page_writes", on(self.options.fsync)),
        ];
        let given = self.options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut text = String::from("# Written by pgtrickle at every start of the server.\n");
        // Of several lines for one setting the last counts.
        for (name, value) in own.into_iter().chain(given) {
            let value = value.replace('\\', "\\\\").replace('\'', "''");
            text.push_str(&format!("{name} = '{value}'\n"));
        }
        let path = self.data_dir().join("pgtrickle.conf");
        fs::write(&path, text).map_err(|e| failure("write", &path, e))?;
        hand_over(&path, 0o600, self.account)
    }
}

/// A port on which nobody listens now.
fn free_port() -> Result<u16> {
    for _ in 0..200 {
        let span = u64::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(store::random() % span).unwrap_or(0);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new(ErrorKind::ServerSetup, "no free TCP port was found").with_hint("name one with --port"))
}
