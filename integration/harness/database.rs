//! A fresh database for one test, with the roles of a real installation.
//!
//! Roles (cluster-wide): `dba` is the superuser; `app` owns the application's schema `app` and its tables; `pgtrickle` is
//! the sidecar's role with the least rights: LOGIN and REPLICATION, nothing else.
//! Invariant: at the end the database and its slots are gone, also after a failure.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use super::servers::{SUPERUSER, Server};

/// Role of the application.
pub const APP: &str = "app";
/// Role of the sidecar.
pub const SIDECAR: &str = "pgtrickle";

/// A database that is dropped with this value.
pub struct TestDatabase {
    pub name: String,
    pub major: u32,
    port: u16,
}

/// Creates the roles once per cluster.
pub async fn create_roles(server: &Server) {
    let client = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
    let roles = format!("create role {APP} login; create role {SIDECAR} login replication");
    client.batch_execute(&roles).await.expect("the roles can be created");
}

/// Connects and leaves the connection to the runtime. The session ends when the client is dropped. It waits for no lock
/// for ever: a test that is in its own way fails there, and does not hold up the server that others share.
pub async fn connect(url: &str) -> Client {
    let mut config: tokio_postgres::Config = url.parse().unwrap_or_else(|e| panic!("{url}: {e}"));
    if config.get_options().is_none() {
        config.options("-c lock_timeout=100s");
    }
    let (client, connection) = config
        .connect(NoTls)
        .await
        .unwrap_or_else(|error| panic!("can't connect to {url}: {error} ({error:?})"));
    // Its error also reaches every pending query of the client.
    tokio::spawn(connection);
    client
}

impl TestDatabase {
    /// A database with the application's schema; `app` finds its tables there by its default `search_path`.
    pub async fn create(server: &Server) -> TestDatabase {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{}_{number}", std::process::id());
        let root = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
        root.batch_execute(&format!("create database {name}")).await.expect("the database can be created");
        let database = TestDatabase { name, major: server.major, port: server.cluster.port() };
        let dba = database.as_dba().await;
        dba.batch_execute(&format!("create schema {APP} authorization {APP}")).await.expect("the schema app");
        // What the documentation asks of the owner of sources: the sidecar may read them.
        let grants = format!(
            "grant usage on schema {APP} to {SIDECAR};
             alter default privileges for role {APP} in schema {APP} grant select on tables to {SIDECAR}"
        );
        dba.batch_execute(&grants).await.expect("the sidecar's rights on the schema app");
        database
    }

    /// Connection URL for a role.
    pub fn url(&self, role: &str) -> String {
        self.url_by(role, self.port)
    }

    /// Connection URL for a role through another port, for example a [`super::fault::Proxy`].
    pub fn url_by(&self, role: &str, port: u16) -> String {
        format!("postgresql://{role}@127.0.0.1:{port}/{}", self.name)
    }

    /// Port of its server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A session of the application.
    pub async fn as_app(&self) -> Client {
        connect(&self.url(APP)).await
    }

    /// A session of the superuser.
    pub async fn as_dba(&self) -> Client {
        connect(&self.url(SUPERUSER)).await
    }

    /// A session with the sidecar's rights.
    pub async fn as_sidecar(&self) -> Client {
        connect(&self.url(SIDECAR)).await
    }

    /// Installs pgtrickle's schema with the program itself, as the superuser.
    pub fn install(&self) {
        let url = self.url(SUPERUSER);
        let output =
            pgtrickle(&["init", "--database-url", &url, "--sidecar-role", SIDECAR, "--grant-to", APP]);
        assert!(output.status.success(), "pgtrickle init failed ({}):\n{}", output.status, printed(&output));
        // A busy machine answers later than a user would wait.
        let patience = "insert into pgtrickle.settings (key, value) values ('analysis_timeout', '60 s')
            on conflict do nothing";
        let set = blocking(async move { connect(&url).await.batch_execute(patience).await });
        set.expect("a thread").expect("a setting");
    }
}

/// Runs the program to its end.
pub fn pgtrickle(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgtrickle"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .expect("the program starts")
}

/// What a program wrote, for messages of failures.
pub fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs it in a thread and a runtime of its own, from wherever it is called.
fn blocking<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> std::thread::Result<T> {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(work)
    };
    std::thread::spawn(run).join()
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let url = format!("postgresql://{SUPERUSER}@127.0.0.1:{}/postgres", self.port);
        let name = self.name.clone();
        let removed =
            async move { tokio::time::timeout(Duration::from_secs(20), remove(&url, &name)).await? };
        // The test's runtime may be shutting down.
        let result = blocking(removed);
        match result {
            Ok(Ok(())) => {}
            // A test that ended its server has nothing to drop; any other leftover goes with the server.
            Ok(Err(error)) => eprintln!("database {} was not dropped: {error}", self.name),
            Err(_) => eprintln!("database {} was not dropped", self.name),
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Ends all sessions of a database, drops its slots, then the database.
async fn remove(url: &str, name: &str) -> Result<(), Failure> {
    let (client, connection) = match tokio_postgres::connect(url, NoTls).await {
        Ok(both) => both,
        // The server is down: by a test of its own, or because the process is ending.
        Err(error) if error.as_db_error().is_none() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let connection = tokio::spawn(connection);
    end_prepared(url, &client, name).await?;
    // From here on no session can come and take a slot again.
    client.batch_execute(&format!("alter database {name} allow_connections false")).await?;
    // A slot is free only when its walsender has ended, which the signal only asks for.
    loop {
        client
            .execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()",
                &[&name],
            )
            .await?;
        // A slot may become active again between the look and the drop: then this turn fails and the next one tries.
        let dropped = client
            .execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                 where database = $1 and active_pid is null",
                &[&name],
            )
            .await;
        let row = client
            .query_one("select count(*) from pg_replication_slots where database = $1", &[&name])
            .await?;
        if dropped.is_ok() && row.get::<_, i64>(0) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if let Some(transaction) = prepared(&client, name).await? {
        eprintln!("the test left the prepared transaction {transaction}; its database stays");
        return Ok(());
    }
    client.batch_execute(&format!("drop database if exists {name} with (force)")).await?;
    drop(client);
    let _ = connection.await;
    Ok(())
}

/// Ends the prepared transactions of a test that failed: no slot of the cluster could be made while they are open. Only a
/// session inside the database can.
async fn end_prepared(url: &str, client: &Client, name: &str) -> Result<(), Failure> {
    let left = client.query("select gid from pg_prepared_xacts where database = $1", &[&name]).await?;
    if left.is_empty() {
        return Ok(());
    }
    let mut config: tokio_postgres::Config = url.parse()?;
    let (inside, connection) = config.dbname(name).connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    for row in left {
        let gid: String = row.get(0);
        inside.batch_execute(&format!("rollback prepared '{}'", gid.replace('\'', "''"))).await?;
    }
    drop(inside);
    let _ = connection.await;
    Ok(())
}

/// A prepared transaction keeps a database from being dropped and can only be ended inside of it.
async fn prepared(client: &Client, name: &str) -> Result<Option<String>, Failure> {
    let row =
        client.query_opt("select min(gid) from pg_prepared_xacts where database = $1", &[&name]).await?;
    Ok(row.and_then(|row| row.get(0)))
}
