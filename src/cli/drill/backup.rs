//! The copy of the user's server: what must be right before, and pg_basebackup.
//!
//! Invariant: the password goes to pg_basebackup by its environment, never on a command line that others can read.

use std::path::{Path, PathBuf};

use tokio_postgres::config::Host;

use super::say;
use crate::catalog::migrate;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::account;
use crate::postgres::binaries::{PgInstall, Search, find};
use crate::postgres::cluster::{Cluster, tail};
use crate::postgres::sessions::{Purpose, Target, error};
use crate::postgres::tls::Mode;
use crate::postgres::watchdog::Watchdog;

/// What is asked of the server before anything is copied.
pub(super) struct Facts {
    pub major: u32,
    pub version: String,
    pub stream_tables: i64,
    /// Folders of tablespaces, which need a place of their own in the copy.
    tablespaces: Vec<String>,
    /// Settings that a start from the backup needs as large as they were.
    pub settings: Vec<(String, String)>,
}

/// A folder that goes with the drill, also when it is killed.
pub(super) struct Copy {
    folder: PathBuf,
    keep: bool,
    watchdog: Option<Watchdog>,
}

/// Looks at the user's server.
///
/// # Errors
/// `SchemaVersion` without the schema, `Privilege` without REPLICATION, `Config` without stream tables.
pub(super) async fn facts(target: &Target, pipeline: &str) -> Result<Facts> {
    const SERVER: &str = "select pg_catalog.current_setting('server_version_num')::int / 10000,
            pg_catalog.current_setting('server_version'), r.rolreplication or r.rolsuper, r.rolname::text,
            array(select t from (select pg_catalog.pg_tablespace_location(oid) as t from pg_catalog.pg_tablespace) t
                   where t like '/%')
        from pg_catalog.pg_roles r where r.rolname = current_user";
    const LIMITS: &str = "select name, setting from pg_catalog.pg_settings where name in ('max_connections',
        'max_prepared_transactions', 'max_locks_per_transaction', 'max_worker_processes')";
    const TABLES: &str = "select count(*) from pgtrickle.pgt_stream_tables where pipeline = $1";
    let client = target.connect(Purpose::Tool).await?;
    let row = client.query_one(SERVER, &[]).await.map_err(error)?;
    let (may, role): (bool, String) = (row.get(2), row.get(3));
    if !may {
        return Err(Error::new(
            ErrorKind::Privilege,
            format!("the role {role} may not take a base backup: it lacks REPLICATION"),
        )
        .with_sqlstate("42501")
        .with_hint(format!("connect as the sidecar's role, or run: alter role {role} replication")));
    }
    migrate::check_installed(&client).await?;
    let stream_tables: i64 = client.query_one(TABLES, &[&pipeline]).await.map_err(error)?.get(0);
    if stream_tables == 0 {
        return Err(Error::new(
            ErrorKind::Config,
            format!("{} has no stream tables that this role can see", target.describe()),
        )
        .with_hint("connect as the sidecar's role or a superuser, to the database that holds them"));
    }
    let limits = client.query(LIMITS, &[]).await.map_err(error)?;
    Ok(Facts {
        major: row.get::<_, i32>(0).unsigned_abs(),
        version: row.get(1),
        stream_tables,
        tablespaces: row.get(4),
        settings: limits.iter().map(|r| (r.get(0), r.get(1))).collect(),
    })
}

/// Programs of the server's major version with pg_basebackup.
///
/// # Errors
/// `Config` for a named folder of another version, `ServerSetup` when there are none or pg_basebackup is missing.
pub(super) fn install(named: Option<&Path>, major: u32) -> Result<PgInstall> {
    let search = Search { bin_dir: named.map(Path::to_owned), ..Search::default() };
    let found = find(&search)?;
    let mut fitting = found.iter().filter(|i| i.major == major).peekable();
    if fitting.peek().is_none() {
        let others: Vec<&str> = found.iter().map(|i| i.version.as_str()).collect();
        let what = match (named, others.as_slice()) {
            (Some(folder), _) => {
                format!("{} holds PostgreSQL {}, the server is {major}", folder.display(), others.join(", "))
            }
            (None, []) => format!("there are no programs of PostgreSQL {major} on this machine"),
            (None, _) => format!(
                "there are no programs of PostgreSQL {major} on this machine, only of {}",
                others.join(", ")
            ),
        };
        let kind = if named.is_some() { ErrorKind::Config } else { ErrorKind::ServerSetup };
        return Err(Error::new(kind, what).with_hint(format!(
            "a base backup starts only with programs of its own major version: install PostgreSQL {major} (Debian: \
             postgresql-{major}), or name their folder with --pg-bindir"
        )));
    }
    let first = fitting.peek().map(|i| i.bin_dir.clone()).unwrap_or_default();
    match fitting.find(|i| i.program("pg_basebackup").is_file()) {
        Some(install) => Ok(install.clone()),
        None => Err(Error::new(
            ErrorKind::ServerSetup,
            format!("the program pg_basebackup is not in {}", first.display()),
        )
        .with_hint(format!(
            "install PostgreSQL's client programs (Debian: postgresql-client-{major}), or name their folder with --pg-bindir"
        ))),
    }
}

impl Copy {
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Hands the folder over to a server that removes it itself.
    pub(super) fn into_parts(mut self) -> (PathBuf, bool) {
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.dismiss();
        }
        let parts = (self.folder.clone(), self.keep);
        self.keep = true;
        parts
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.dismiss();
        }
    }
}

/// Runs pg_basebackup into `dir` or a fresh folder.
///
/// # Errors
/// `Config` for a folder that is not empty; otherwise by what pg_basebackup says.
pub(super) async fn take(
    target: &Target,
    server: &Facts,
    install: &PgInstall,
    dir: Option<&Path>,
    keep: bool,
) -> Result<Copy> {
    let folder = Cluster::empty_folder(dir)?;
    let mut copy = Copy { watchdog: None, keep, folder };
    if !keep {
        copy.watchdog = Some(Watchdog::start("KILL", None, Some(&copy.folder))?);
    }
    let program = install.program("pg_basebackup");
    let mut command = account::command(&program, account::server_account()?);
    command.arg("--pgdata").arg(copy.data());
    command.args(["--wal-method=stream", "--checkpoint=fast", "--no-sync", "--no-password"]);
    for (number, tablespace) in server.tablespaces.iter().enumerate() {
        let place = copy.folder.join(format!("tablespace_{number}"));
        let escaped = |path: &str| path.replace('=', "\\=");
        let mapping = format!("{}={}", escaped(tablespace), escaped(&place.to_string_lossy()));
        command.arg("--tablespace-mapping").arg(mapping);
    }
    command.arg("--dbname").arg(connection_string(target)?);
    let config = target.login()?;
    if let Some(password) = config.get_password() {
        command.env("PGPASSWORD", String::from_utf8_lossy(password).as_ref());
    }
    command.current_dir(&copy.folder);
    let log = copy.folder.join("pg_basebackup.log");
    let file = std::fs::File::create(&log)
        .map_err(|e| Error::new(ErrorKind::ServerSetup, format!("can't write {}: {e}", log.display())))?;
    command.stdout(std::process::Stdio::null()).stderr(file);
    say("copying the server with pg_basebackup");
    let mut command = tokio::process::Command::from(command);
    let status = command
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|e| Error::new(ErrorKind::ServerSetup, format!("pg_basebackup can't be run: {e}")))?;
    match status.success() {
        true => Ok(copy),
        false => Err(refused(&tail(&log, 5))),
    }
}

/// As libpq wants it, without the password.
fn connection_string(target: &Target) -> Result<String> {
    let config = target.config();
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            Host::Unix(path) => path.to_string_lossy().into_owned(),
        })
        .collect();
    let ports: Vec<String> = config.get_ports().iter().map(u16::to_string).collect();
    let mut parts = vec![format!("host={}", quoted(&hosts.join(",")))];
    if !ports.is_empty() {
        parts.push(format!("port={}", quoted(&ports.join(","))));
    }
    if let Some(user) = config.get_user() {
        parts.push(format!("user={}", quoted(user)));
    }
    let addresses: Vec<String> = config.get_hostaddrs().iter().map(ToString::to_string).collect();
    if !addresses.is_empty() {
        parts.push(format!("hostaddr={}", quoted(&addresses.join(","))));
    }
    let tls = target.tls();
    parts.push(format!("sslmode={}", tls.mode));
    let path = |path: &Path| quoted(&path.to_string_lossy());
    // Programs before 16 don't know `system`: they get the file.
    if tls.mode >= Mode::VerifyCa {
        parts.push(format!("sslrootcert={}", path(&tls.roots_file()?)));
    }
    if let Some(identity) = tls.identity.as_ref().filter(|_| tls.mode > Mode::Disable) {
        parts.push(format!("sslcert={} sslkey={}", path(&identity.certificate), path(&identity.key)));
    }
    parts.push("application_name='pgtrickle drill'".to_owned());
    Ok(parts.join(" "))
}

fn refused(log: &str) -> Error {
    let (kind, hint) = if log.contains("no pg_hba.conf entry") || log.contains("pg_hba.conf rejects") {
        (
            ErrorKind::Authentication,
            "a base backup needs a line of its own in the server's pg_hba.conf, with the database replication",
        )
    } else if log.contains("password authentication failed") || log.contains("no password supplied") {
        (ErrorKind::Authentication, "set the password in the URL, in PGPASSWORD or in a password file")
    } else if log.contains("must be superuser or replication role") || log.contains("permission denied") {
        (ErrorKind::Privilege, "the role needs the attribute REPLICATION")
    } else if log.contains("max_wal_senders") || log.contains("replication slots are in use") {
        (
            ErrorKind::ServerSetup,
            "a base backup needs two free entries of max_wal_senders and one free replication slot",
        )
    } else if log.contains("No space left on device") {
        (ErrorKind::ServerSetup, "name a folder with --dir that has room for the whole server")
    } else {
        (ErrorKind::ServerSetup, "run it by hand to see more; managed servers often allow no base backup")
    };
    Error::new(kind, format!("pg_basebackup failed: {}", log.trim())).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_string_holds_no_password_and_quotes_its_values() {
        let config: tokio_postgres::Config =
            "postgresql://o%27hara:geheim@h1:5433,h2:5434/db?sslmode=disable".parse().unwrap();
        let said = connection_string(&Target::new(config, "main")).unwrap();
        assert_eq!(
            said,
            "host='h1,h2' port='5433,5434' user='o\\'hara' sslmode=disable application_name='pgtrickle drill'"
        );
    }

    #[test]
    fn what_pg_basebackup_says_decides_the_kind() {
        let kind = |log| refused(log).kind();
        assert_eq!(
            kind("FATAL:  no pg_hba.conf entry for replication connection"),
            ErrorKind::Authentication
        );
        assert_eq!(
            kind("FATAL:  must be superuser or replication role to start walsender"),
            ErrorKind::Privilege
        );
        assert_eq!(kind("could not write to file: No space left on device"), ErrorKind::ServerSetup);
    }
}
