//! The stage: the private server and the sidecar as a child process.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio_postgres::Config;

use super::{DemoArgs, lost_task, say};
use crate::catalog::migrate;
use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::binaries::{self, PgInstall, SUPPORTED, Search};
use crate::postgres::cluster::{Cluster, ClusterOptions, tail};
use crate::postgres::fetch;
use crate::postgres::session::SqlSession;
use crate::postgres::sessions::{Purpose, Target, error};
use crate::postgres::watchdog::Watchdog;

/// Role that owns the application's tables and stream tables.
const APP: &str = "shop";
/// Role the sidecar logs in as.
const SIDECAR: &str = "pgtrickle";
const SUPERUSER: &str = "postgres";
pub(super) const DATABASE: &str = "shop";

/// Longest time until the sidecar serves the database.
const READY: Duration = Duration::from_secs(60);
/// Longest time the sidecar may take to stop, a little more than it gives itself.
const STOP: Duration = Duration::from_secs(25);

/// Fields are dropped in this order: the sidecar ends before its server.
pub(super) struct Stage {
    sidecar: Option<Sidecar>,
    cluster: Cluster,
    /// Where the sidecar serves its dashboard.
    dashboard: SocketAddr,
}

struct Sidecar {
    process: Child,
    watchdog: Option<Watchdog>,
}

/// Finds or fetches a server, starts it, makes roles and database.
pub(super) async fn build(args: DemoArgs) -> Result<Stage> {
    let starting = tokio::task::spawn_blocking(move || start(&args));
    let stage =
        Stage { sidecar: None, cluster: starting.await.map_err(lost_task)??, dashboard: free_address()? };
    say(&format!("database: psql {}", stage.cluster.conninfo(DATABASE, APP)));
    say(&format!("dashboard: http://{} (once the shop is loaded)", stage.dashboard));
    let root = stage.connect("postgres", SUPERUSER).await?;
    for statement in [
        format!("create role {APP} login"),
        format!("create role {SIDECAR} login replication"),
        format!("create database {DATABASE}"),
    ] {
        root.batch_execute(&statement).await.map_err(error)?;
    }
    let dba = stage.connect(DATABASE, SUPERUSER).await?;
    let schema = format!("create schema {APP} authorization {APP}");
    dba.batch_execute(&schema).await.map_err(error)?;
    let path = format!("alter role {APP} in database {DATABASE} set search_path = {APP}");
    dba.batch_execute(&path).await.map_err(error)?;
    Ok(stage)
}

/// The usual address of a dashboard, or another one where that is in use.
fn free_address() -> Result<SocketAddr> {
    let free = |at: SocketAddr| TcpListener::bind(at).and_then(|listener| listener.local_addr());
    free(config::HTTP).or_else(|_| free(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).map_err(|e| {
        Error::new(ErrorKind::ServerSetup, "no port of this machine is free for the dashboard").with_source(e)
    })
}

fn start(args: &DemoArgs) -> Result<Cluster> {
    let install = install(args)?;
    say(&format!("PostgreSQL {} in {}", install.version, install.bin_dir.display()));
    let settings = [("max_connections", "50"), ("shared_buffers", "256MB"), ("max_wal_size", "2GB")];
    let options = ClusterOptions {
        port: args.port,
        keep: args.keep,
        superuser: SUPERUSER.to_owned(),
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..ClusterOptions::default()
    };
    Cluster::start(&install, options)
}

fn install(args: &DemoArgs) -> Result<PgInstall> {
    let search = Search { bin_dir: args.pg_bindir.clone(), ..Search::default() };
    let found = binaries::find(&search)?;
    if let (Some(_), [install]) = (&args.pg_bindir, found.as_slice())
        && !SUPPORTED.contains(&install.major)
    {
        let what = format!("--pg-bindir holds PostgreSQL {}, which is not supported", install.version);
        return Err(Error::new(ErrorKind::Config, what).with_hint("name one from 14 to 18"));
    }
    match found.into_iter().find(|install| SUPPORTED.contains(&install.major)) {
        Some(install) => Ok(install),
        None => fetch::fetch(*SUPPORTED.end(), args.offline, say),
    }
}

impl Stage {
    pub(super) fn folder(&self) -> PathBuf {
        self.cluster.folder().to_path_buf()
    }

    /// Where the application connects to.
    pub(super) fn app(&self) -> Target {
        self.target(DATABASE, APP)
    }

    fn target(&self, database: &str, user: &str) -> Target {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.cluster.port()).user(user).dbname(database);
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        Target::new(config, "demo")
    }

    async fn connect(&self, database: &str, user: &str) -> Result<SqlSession> {
        self.target(database, user).connect(Purpose::Tool).await
    }

    /// Installs the schema as a DBA would, with the least rights for the sidecar: it may read the shop, nothing else.
    pub(super) async fn install(&self) -> Result<()> {
        let mut dba = self.connect(DATABASE, SUPERUSER).await?;
        let options = migrate::Options {
            sidecar_role: Some(SIDECAR.to_owned()),
            grant_to: vec![APP.to_owned()],
            upgrade: false,
        };
        migrate::migrate(&mut dba, &options).await?;
        let app = self.app().connect(Purpose::Tool).await?;
        let grants = format!(
            "grant usage on schema {APP} to {SIDECAR}; grant select on all tables in schema {APP} to {SIDECAR}"
        );
        app.batch_execute(&grants).await.map_err(error)
    }

    /// Starts `pgtrickle run` as a child with its own log file.
    pub(super) fn start_sidecar(&mut self) -> Result<()> {
        let failed = |e| Error::internal("the sidecar can't be started").with_source(e);
        let program = std::env::current_exe().map_err(failed)?;
        let log = File::options().create(true).append(true).open(self.log_path()).map_err(failed)?;
        let mut watchdog = Watchdog::start("KILL", None, None)?;
        let mut command = Command::new(program);
        // The child's configuration is this command line alone.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("PG") || name == "DATABASE_URL" || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        let url = format!("{}?sslmode=disable", self.cluster.conninfo(DATABASE, SIDECAR));
        let process = command
            .args(["run", "--database-url", &url, "--http", &self.dashboard.to_string()])
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // A Ctrl-C in the terminal is for us; we stop the sidecar before its server.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        watchdog.watch(process.id());
        self.sidecar = Some(Sidecar { process, watchdog: Some(watchdog) });
        Ok(())
    }

    /// Waits until the sidecar holds its lease.
    pub(super) async fn sidecar_ready(&mut self) -> Result<()> {
        let client = self.app().connect(Purpose::Tool).await?;
        let begin = Instant::now();
        loop {
            self.check_sidecar()?;
            let alive =
                client.query_one("select pgtrickle.sidecar_alive('main')", &[]).await.map_err(error)?;
            if alive.get(0) {
                return Ok(());
            }
            if begin.elapsed() > READY {
                return Err(Error::internal(format!(
                    "the sidecar was not ready within {} s",
                    READY.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An error when the sidecar has ended by itself.
    pub(super) fn check_sidecar(&mut self) -> Result<()> {
        match self.sidecar.as_mut().and_then(Sidecar::ended) {
            None => Ok(()),
            Some(status) => Err(Error::internal(format!("the sidecar ended by itself ({status})"))),
        }
    }

    /// Prints the end of the sidecar's log.
    pub(super) fn tell_sidecar_log(&self) {
        let log = tail(&self.log_path(), 15);
        if !log.is_empty() {
            say(&format!("the sidecar's log ends with:\n{log}"));
        }
    }

    fn log_path(&self) -> PathBuf {
        self.cluster.folder().join(Path::new("sidecar.log"))
    }

    /// Stops the sidecar, then the server, and removes the folder unless it is to be kept.
    ///
    /// # Errors
    /// `Internal` when the sidecar did not end by itself, or not with exit code 0.
    pub(super) async fn end(self) -> Result<()> {
        let ending = tokio::task::spawn_blocking(move || {
            let Stage { sidecar, cluster, .. } = self;
            let result = sidecar.map_or(Ok(()), Sidecar::terminate);
            drop(cluster);
            result
        });
        ending.await.map_err(lost_task)?
    }
}

impl Sidecar {
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.try_wait().ok().flatten();
        if status.is_some()
            && let Some(watchdog) = &mut self.watchdog
        {
            watchdog.forget();
        }
        status
    }

    fn terminate(mut self) -> Result<()> {
        let begin = Instant::now();
        if self.ended().is_some() {
            // Told already.
            return Ok(());
        }
        let _ = Command::new("sh")
            .args(["-c", "kill -s TERM \"$1\"", "sh", &self.process.id().to_string()])
            .stderr(Stdio::null())
            .status();
        loop {
            match self.ended() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Error::internal(format!("the sidecar did not stop cleanly ({status})")));
                }
                None if begin.elapsed() > STOP => {
                    return Err(Error::internal(format!(
                        "the sidecar did not stop within {} s",
                        STOP.as_secs()
                    )));
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.process.kill();
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.forget();
            }
            let _ = self.process.wait();
        }
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.dismiss();
        }
    }
}
