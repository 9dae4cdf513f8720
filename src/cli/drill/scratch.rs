//! The server that is started from the copy.
//!
//! The user's configuration files are not used: their paths, archive commands, subscriptions and preloaded libraries
//! belong to the original. Everybody who can log in to this machine could reach a server that trusts local connections,
//! and this one holds real data: TCP connections need a password made for this run, the socket stands in a folder that
//! only the server's user can enter.

use std::path::Path;

use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use super::backup::{Copy, Facts};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::account;
use crate::postgres::binaries::PgInstall;
use crate::postgres::cluster::{Cluster, ClusterOptions};
use crate::postgres::sessions::{Purpose, Target, error};
use crate::postgres::store;

/// Who may come in.
const HBA: &str = "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n\
                   host replication all 127.0.0.1/32 scram-sha-256\n";

/// The running copy; ended and removed when dropped.
pub(super) struct Scratch {
    cluster: Cluster,
    target: Target,
}

impl Scratch {
    pub(super) fn port(&self) -> u16 {
        self.cluster.port()
    }

    pub(super) fn folder(&self) -> &Path {
        self.cluster.folder()
    }

    /// The copy of the database, as the same role.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }
}

/// Starts the copy and gives the role of `original` a password for this run.
pub(super) async fn start(
    copy: Copy,
    install: &PgInstall,
    server: &Facts,
    original: &Target,
    port: Option<u16>,
) -> Result<Scratch> {
    configure(&copy.data())?;
    let mut settings: Vec<(String, String)> = server.settings.clone();
    for (name, value) in [
        ("archive_mode", "off"),
        ("max_logical_replication_workers", "0"),
        ("synchronous_standby_names", ""),
        ("password_encryption", "scram-sha-256"),
        ("fsync", "off"),
    ] {
        settings.push((name.to_owned(), value.to_owned()));
    }
    let (folder, keep) = copy.into_parts();
    let options =
        ClusterOptions { port, dir: Some(folder), keep, adopt: true, settings, ..ClusterOptions::default() };
    let install = install.clone();
    let cluster = tokio::task::spawn_blocking(move || Cluster::start(&install, options))
        .await
        .map_err(|e| Error::internal("the start of the copy failed").with_source(e))??;
    let user = original.config().get_user().unwrap_or("postgres").to_owned();
    let database = original.config().get_dbname().unwrap_or("postgres").to_owned();
    let password: String = (0..4).map(|_| format!("{:016x}", store::random())).collect();
    let mut config = Config::new();
    config.user(&user).dbname(&database).port(cluster.port()).ssl_mode(SslMode::Disable);
    let mut by_socket = config.clone();
    by_socket.host_path(cluster.folder());
    set_password(by_socket, &user, &password).await?;
    config.host("127.0.0.1").password(&password);
    Ok(Scratch { cluster, target: Target::new(config, original.pipeline()) })
}

/// Before 16 a role with REPLICATION may not even change its own password: a superuser of the copy does it, through the
/// socket.
async fn set_password(mut by_socket: Config, user: &str, password: &str) -> Result<()> {
    const SUPERUSER: &str = "select rolname::text from pg_catalog.pg_roles where rolsuper and rolcanlogin
        order by rolname <> current_user, oid limit 1";
    let client = Target::new(by_socket.clone(), "drill").connect(Purpose::Tool).await?;
    let row = client.query_opt(SUPERUSER, &[]).await.map_err(error)?;
    let superuser: String = row.map(|r| r.get(0)).ok_or_else(|| {
        Error::new(ErrorKind::ServerSetup, "the copy has no superuser that can log in").with_hint(
            "a rehearsal sets a password for its own role on the copy, which takes a superuser of it",
        )
    })?;
    by_socket.user(&superuser);
    let client = Target::new(by_socket, "drill").connect(Purpose::Tool).await?;
    let role = format!("\"{}\"", user.replace('"', "\"\""));
    let set = format!("alter role {role} password '{password}' valid until 'infinity'");
    client.batch_execute(&set).await.map_err(error)
}

/// Puts our own files in the place of the user's.
fn configure(data: &Path) -> Result<()> {
    let server = account::server_account()?;
    for (name, text) in [
        ("postgresql.conf", "include_if_exists 'pgtrickle.conf'\n"),
        ("postgresql.auto.conf", ""),
        ("pg_hba.conf", HBA),
        ("pg_ident.conf", ""),
        ("pgtrickle.conf", ""),
    ] {
        let path = data.join(name);
        let failed =
            |e| Error::new(ErrorKind::ServerSetup, format!("can't write {}", path.display())).with_source(e);
        // Where the original has a link to a file elsewhere, that one is not ours to change.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        std::fs::write(&path, text).map_err(failed)?;
        account::give(&path, server)?;
    }
    for signal in ["standby.signal", "recovery.signal"] {
        // A base backup of a standby is started as a server of its own.
        let _ = std::fs::remove_file(data.join(signal));
    }
    Ok(())
}
