//! How a drill is run: on which majors, in which folder, with which programs.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use futures_util::FutureExt;
use pgtrickle::postgres::account;
use pgtrickle::postgres::binaries::PgInstall;
use pgtrickle::postgres::cluster::{Cluster, ClusterOptions};
use pgtrickle::postgres::watchdog::Watchdog;

use super::proof::PATIENCE;
use super::scene::BOSS;
use crate::harness::database::{connect, create_roles, printed};
use crate::harness::servers::{SUPERUSER, Server, install, majors};
use crate::harness::wait::wait_until;

/// Which runs include a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Every `cargo test`.
    Always,
    /// Only with `PGTRICKLE_DRILLS=all`.
    All,
}

/// Drills that fail today, and what they wait for. `PGTRICKLE_DRILLS=open` runs these alone.
const OPEN: &[(&str, &str)] = &[];

/// One drill on one major version.
pub struct Drill {
    pub name: &'static str,
    pub major: u32,
    pub install: PgInstall,
    /// For dumps, backups and restored clusters; the server's user may write to it.
    folder: tempfile::TempDir,
    /// Removes the folder when no destructor runs.
    _watchdog: Watchdog,
}

/// Runs a drill on each chosen major version that has PostgreSQL's client programs; a failure names the version.
pub async fn drill(name: &'static str, when: When, test: impl AsyncFn(&Drill)) {
    drill_on(name, when, &[14, 15, 16, 17, 18], test).await;
}

/// As [`drill`], for what needs a program that is not part of PostgreSQL.
pub async fn drill_with(name: &'static str, when: When, program: &str, test: impl AsyncFn(&Drill)) {
    if !installed(program) {
        println!(
            "drill {name}: skipped; the program {program} is not installed (Debian: apt-get install {program})"
        );
        return;
    }
    // What Debian 12 packages knows servers up to 15.
    drill_on(name, when, &[14, 15], test).await;
}

/// As [`drill`], for what only some major versions have.
pub async fn drill_on(name: &'static str, when: When, with: &[u32], test: impl AsyncFn(&Drill)) {
    let wanted = std::env::var("PGTRICKLE_DRILLS").unwrap_or_default();
    let open = OPEN.iter().find(|(drill, _)| *drill == name);
    if (wanted == "open") != open.is_some() {
        println!("drill {name}: skipped; {}", open.map_or("only open ones are asked for", |(_, why)| why));
        return;
    }
    if when == When::All && !["all", "open"].contains(&wanted.as_str()) {
        println!("drill {name}: skipped; PGTRICKLE_DRILLS=all runs it");
        return;
    }
    let mut failed = Vec::new();
    for &major in majors() {
        if !with.contains(&major) {
            println!("drill {name} on {major}: skipped; it needs PostgreSQL {with:?}");
            continue;
        }
        let install = install(major);
        if !install.has_client_tools {
            println!("drill {name} on {major}: skipped; this installation has no pg_dump and pg_basebackup");
            continue;
        }
        let folder = tempfile::Builder::new().prefix("pgtrickle-drill-").tempdir().expect("a folder");
        give(folder.path());
        let watchdog = Watchdog::start("KILL", None, Some(folder.path())).expect("a watchdog");
        let drill = Drill { name, major, install, folder, _watchdog: watchdog };
        let start = Instant::now();
        let outcome = AssertUnwindSafe(test(&drill)).catch_unwind().await;
        let seconds = start.elapsed().as_secs_f64();
        let verdict = if outcome.is_ok() { "passed" } else { "FAILED" };
        println!("drill {name} on {major}: {verdict} in {:.1} minutes ({seconds:.1} s)", seconds / 60.0);
        if outcome.is_err() {
            failed.push(major);
        }
    }
    assert!(failed.is_empty(), "drill {name} failed on PostgreSQL {failed:?}; see above");
}

/// Whether a program is found.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs what blocks (starting and stopping servers) inside an asynchronous test.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// Hands a folder or file to the user that servers run as.
pub fn give(path: &Path) {
    account::give(path, account::server_account().expect("the server's user"))
        .expect("the folder can be given");
}

impl Drill {
    /// The drill's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A new folder inside of it, for a cluster.
    pub fn subfolder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir(&path).expect("a new folder");
        give(&path);
        path
    }

    /// A new server with the roles of an installation. `twin` says that its system identifier may be that of others.
    pub async fn server(&self, settings: &[(&str, &str)], twin: bool) -> Server {
        let options = ClusterOptions { prepared: twin, ..options(settings) };
        let server = self.start(options).await;
        create_roles(&server).await;
        let root = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
        root.batch_execute(&format!("create role {BOSS} login")).await.expect("a role");
        server
    }

    /// A new server with nothing but its superuser.
    pub async fn empty_server(&self) -> Server {
        self.start(ClusterOptions { prepared: false, ..options(&[]) }).await
    }

    /// Starts the server on a data folder that a restore has made: `<folder>/data`. A recovery from an archive has ended
    /// when this returns.
    pub async fn restored(&self, folder: &Path, settings: &[(&str, &str)]) -> Server {
        let recovers = folder.join("data/recovery.signal").exists();
        let options = ClusterOptions { dir: Some(folder.to_owned()), adopt: true, ..options(settings) };
        let server = self.start(options).await;
        if recovers {
            let root = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
            wait_until("the recovery to end", PATIENCE, || async {
                let row =
                    root.query_one("select pg_is_in_recovery()", &[]).await.map_err(|e| format!("{e:?}"))?;
                if row.get(0) { Err("it goes on".to_owned()) } else { Ok(()) }
            })
            .await;
        }
        server
    }

    /// Makes `folder` recover from the archive at its next start; returns the settings that this takes.
    pub fn recover_from(&self, folder: &Path, archive: &Path) -> Vec<(&'static str, String)> {
        let signal = folder.join("data/recovery.signal");
        std::fs::write(&signal, "").expect("recovery.signal");
        give(&signal);
        vec![
            ("restore_command", format!("cp {}/%f %p", archive.display())),
            ("recovery_target_action", "promote".to_owned()),
        ]
    }

    async fn start(&self, options: ClusterOptions) -> Server {
        let install = self.install.clone();
        let start = move || Cluster::start(&install, options);
        let cluster = tokio::task::spawn_blocking(start).await.expect("the starting thread ends").unwrap();
        Server { major: self.major, cluster }
    }

    /// Lines of a shell as an operator would run them: PostgreSQL's programs of this version are found, and connect to the
    /// server on `port` as the superuser.
    pub fn command(&self, port: u16, lines: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let user = account::server_account().expect("the server's user");
        let mut command = account::command(Path::new("sh"), user);
        command
            .args(["-e", "-c", lines])
            .current_dir(self.folder())
            .env("PATH", format!("{}:{path}", self.install.bin_dir.display()))
            .env("HOME", self.folder())
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", port.to_string())
            .env("PGUSER", SUPERUSER);
        command
    }

    /// Runs lines of a shell; returns what was printed, whatever the exit code.
    pub async fn try_shell(&self, port: u16, lines: &str) -> Output {
        let mut command = self.command(port, lines);
        tokio::task::spawn_blocking(move || command.output())
            .await
            .expect("the thread ends")
            .expect("sh starts")
    }

    /// As [`Drill::try_shell`], for what must succeed without a word on standard error.
    pub async fn shell(&self, port: u16, lines: &str) -> String {
        let output = self.try_shell(port, lines).await;
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "drill {} on {}: ({})\n{lines}\n{}",
            self.name,
            self.major,
            output.status,
            printed(&output)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn options(settings: &[(&str, &str)]) -> ClusterOptions {
    let defaults = [("max_connections", "60"), ("max_prepared_transactions", "10"), ("timezone", "UTC")];
    let settings = defaults.iter().chain(settings).map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    ClusterOptions { superuser: SUPERUSER.to_owned(), fsync: false, settings, ..ClusterOptions::default() }
}
