//! One writer per pipeline (D14): a session advisory lock, and a generation number in every apply.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::RunOptions;
use crate::catalog::migrate;
use crate::catalog::store::{self, Identity, PipelineRow};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{PINNED, error};
use crate::replication::PipelineNames;

/// `classid` of the advisory lock; `objid` is `hashtext(pipeline)`. The SQL functions look it up in `pg_locks`.
pub const LEASE_CLASS: i32 = 1_346_852_939;

/// The pipeline is ours as long as the session that took the lock lives.
#[derive(Clone)]
pub struct Lease {
    pub identity: Identity,
    pub names: PipelineNames,
    pub generation: i64,
    /// What was stored before we took over.
    pub before: PipelineRow,
}

/// How often a spare tries. It does not queue for the lock: a statement that waits would hold VACUUM up.
const LOOK: Duration = Duration::from_millis(250);

/// As [`acquire`]; a spare (`options.standby`) waits until whoever serves the pipeline has gone. `None`: `shutdown`.
pub async fn wait(
    control: &Client,
    options: &RunOptions,
    shutdown: &CancellationToken,
    life: &mut super::Life,
) -> Result<Option<Lease>> {
    let mut waited: Option<Instant> = None;
    loop {
        let taken = acquire(control, &options.pipeline).await;
        let error = match taken {
            Err(e) if e.kind() == ErrorKind::LeaseHeld && options.standby => e,
            taken => {
                if let (Ok(_), Some(since)) = (&taken, waited) {
                    let seconds = since.elapsed().as_secs();
                    tracing::info!(seconds, "the pipeline is free: this spare takes over");
                }
                return taken.map(Some);
            }
        };
        if waited.is_none() {
            waited = Some(Instant::now());
            // A server that goes away meanwhile is waited for, as by one that has served.
            life.served = true;
            tracing::info!(because = %error, "standing by");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
    }
}

/// Checks the server and takes the pipeline's lock on `control`. Nothing is written yet.
///
/// Errors: `ServerSetup` (standby, version, encoding, a pooler), `SchemaVersion` and `Privilege` (no or another schema,
/// no rights on it), `LeaseHeld` (a second sidecar).
pub async fn acquire(control: &Client, pipeline: &str) -> Result<Lease> {
    check_settings(control).await?;
    let identity = store::identity(control).await?;
    check_server(&identity)?;
    check_no_restore(control).await?;
    migrate::check_installed(control).await?;
    const LOCK: &str = "select pg_catalog.pg_try_advisory_lock($1, pg_catalog.hashtext($2))";
    if !control.query_one(LOCK, &[&LEASE_CLASS, &pipeline]).await.map_err(error)?.get::<_, bool>(0) {
        return Err(held(control, pipeline).await?);
    }
    let before = store::pipeline(control, pipeline).await?;
    let names = PipelineNames::new(identity.database_oid, &before.install_id, pipeline)?;
    Ok(Lease { identity, names, generation: 0, before })
}

impl Lease {
    /// Raises the generation, which fences off every earlier writer, and stores who we are.
    pub async fn take_over(&mut self, control: &Client, pipeline: &str) -> Result<()> {
        let sidecar = format!("{}:{} {}", hostname(), std::process::id(), env!("CARGO_PKG_VERSION"));
        self.generation = store::take_over(control, pipeline, &self.identity, &self.names, &sidecar).await?;
        Ok(())
    }
}

/// A pooler may swallow the startup options: then nothing is pinned, and sessions may be shared as well.
async fn check_settings(control: &Client) -> Result<()> {
    for (name, value) in
        PINNED.iter().filter(|(name, _)| ["intervalstyle", "extra_float_digits"].contains(name))
    {
        let row = control.query_one("select pg_catalog.current_setting($1)", &[name]).await.map_err(error)?;
        if row.get::<_, String>(0) != *value {
            return Err(Error::new(
                ErrorKind::ServerSetup,
                "the startup options of the session were dropped: a connection pooler is in between",
            )
            .with_hint("connect to the server directly: replication can't pass through a pooler"));
        }
    }
    Ok(())
}

/// Between its sections a restore has neither keys nor all rows: nothing could be prepared rightly, and what we create
/// would be in its way.
async fn check_no_restore(control: &Client) -> Result<()> {
    const RUNNING: &str = "select min(pid) from pg_catalog.pg_stat_activity
        where datname = pg_catalog.current_database() and application_name = 'pg_restore'";
    match control.query_one(RUNNING, &[]).await.map_err(error)?.get::<_, Option<i32>>(0) {
        None => Ok(()),
        Some(pid) => Err(Error::new(
            ErrorKind::Contention,
            format!("pg_restore (process {pid}) works on this database: waiting for its end"),
        )),
    }
}

fn check_server(identity: &Identity) -> Result<()> {
    let refuse = |context: &str, hint: &str| Err(Error::new(ErrorKind::ServerSetup, context).with_hint(hint));
    if identity.in_recovery {
        return refuse(
            "the server is a standby",
            "connect to the primary, by a name that follows a failover",
        );
    }
    if !(14..=18).contains(&identity.major) {
        let context = format!("PostgreSQL {} is not supported", identity.major);
        return refuse(&context, "use PostgreSQL 14 to 18");
    }
    if identity.encoding == "SQL_ASCII" {
        return refuse(
            "the database's encoding is SQL_ASCII",
            "its text can't be read as UTF-8: use a database with a real encoding",
        );
    }
    Ok(())
}

async fn held(control: &Client, pipeline: &str) -> Result<Error> {
    const HOLDER: &str = "select a.pid, a.application_name, a.client_addr::text from pg_catalog.pg_locks l
        join pg_catalog.pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'advisory' and l.classid::bigint = $1::int::bigint and l.granted and l.objsubid = 2
          and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
          and l.objid::bigint = (pg_catalog.hashtext($2)::bigint & 4294967295)";
    let row = control.query_opt(HOLDER, &[&LEASE_CLASS, &pipeline]).await.map_err(error)?;
    let who = row.map_or_else(String::new, |r| {
        let (pid, address): (i32, Option<String>) = (r.get(0), r.get(2));
        format!(" (pid {pid} from {})", address.unwrap_or_else(|| "a local socket".to_owned()))
    });
    Ok(Error::new(ErrorKind::LeaseHeld, format!("another sidecar serves the pipeline {pipeline}{who}"))
        .with_hint("run one sidecar per pipeline; with --standby a second one waits and takes over when the first has ended"))
}

fn hostname() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map_or_else(|| "unknown".to_owned(), |h| h.trim().to_owned())
}
