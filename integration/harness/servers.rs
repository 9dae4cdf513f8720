//! The servers that tests run on.
//!
//! One shared server per major version and test process: it is started by the first test that needs it and ended by its
//! watchdog when the process is gone. Tests that stop, crash or fill a server get their own with [`own_cluster`].
//! Invariant: the shared servers are never stopped, restarted or reconfigured by a test.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;

use futures_util::FutureExt;
use pgtrickle::postgres::binaries::{PgInstall, Search, find};
use pgtrickle::postgres::cluster::{Cluster, ClusterOptions};
use pgtrickle::postgres::fetch::{available, fetch};
use tokio::sync::OnceCell;

/// Name of the superuser of every test server.
pub const SUPERUSER: &str = "dba";

/// A running server with the roles `app` and `pgtrickle` (see [`super::database`]).
pub struct Server {
    pub major: u32,
    pub cluster: Cluster,
}

/// The shared server of a major version.
pub async fn shared(major: u32) -> &'static Server {
    static SERVERS: [OnceCell<Server>; 5] = [const { OnceCell::const_new() }; 5];
    let cell = SERVERS.get(major.wrapping_sub(14) as usize).expect("a major version from 14 to 18");
    cell.get_or_init(|| async move {
        let settings = [
            ("max_connections", "300"),
            ("max_replication_slots", "120"),
            ("max_wal_senders", "120"),
            ("max_prepared_transactions", "50"),
            // Many databases come and go: their files need not survive.
            ("synchronous_commit", "off"),
        ];
        own_cluster(major, &settings).await
    })
    .await
}

/// A server for one test alone: it may be stopped, crashed and filled. Ends when dropped.
pub async fn own_cluster(major: u32, settings: &[(&str, &str)]) -> Server {
    let mut options =
        ClusterOptions { superuser: SUPERUSER.to_owned(), fsync: false, ..ClusterOptions::default() };
    let defaults = [("max_connections", "60"), ("max_prepared_transactions", "10"), ("timezone", "UTC")];
    for (name, value) in defaults.iter().chain(settings) {
        options.settings.push(((*name).to_owned(), (*value).to_owned()));
    }
    let start = move || Cluster::start(&install(major), options);
    let cluster = tokio::task::spawn_blocking(start).await.expect("the starting thread ends").unwrap();
    let server = Server { major, cluster };
    super::database::create_roles(&server).await;
    server
}

/// Runs a test on each chosen major version, one after the other; a failure names the version.
pub async fn for_each_major<Test, Run>(test: Test)
where
    Test: Fn(&'static Server) -> Run,
    Run: Future<Output = ()>,
{
    each(async |major| test(shared(major).await).await).await;
}

/// As [`for_each_major`] for tests that make their servers themselves.
pub async fn each(test: impl AsyncFn(u32)) {
    super::reasons::are_said_at_once();
    let mut failed = Vec::new();
    for major in majors() {
        if AssertUnwindSafe(test(*major)).catch_unwind().await.is_err() {
            eprintln!("... this failure was on PostgreSQL {major}");
            failed.push(*major);
        }
    }
    assert!(failed.is_empty(), "failed on PostgreSQL {failed:?} of {:?}; see above", majors());
}

/// The chosen major versions: `PGTRICKLE_TEST_PG`, else the newest found, else 18.
pub fn majors() -> &'static [u32] {
    static MAJORS: LazyLock<Vec<u32>> = LazyLock::new(|| match std::env::var("PGTRICKLE_TEST_PG") {
        Ok(list) if !list.trim().is_empty() => list
            .split(',')
            .map(|m| m.trim().parse().expect("PGTRICKLE_TEST_PG is a list such as 15,18"))
            .collect(),
        _ => vec![newest_found().unwrap_or(18)],
    });
    &MAJORS
}

fn newest_found() -> Option<u32> {
    found().iter().map(|install| install.major).find(|major| (14..=18).contains(major))
}

/// Installations of this machine; asked for once per process.
fn found() -> &'static [PgInstall] {
    static FOUND: LazyLock<Vec<PgInstall>> = LazyLock::new(|| find(&Search::default()).unwrap());
    &FOUND
}

/// An installation of this major version, fetched when the machine has none.
pub fn install(major: u32) -> PgInstall {
    if let Some(install) = found().iter().find(|install| install.major == major) {
        return install.clone();
    }
    assert!(available().contains(&major), "no PostgreSQL {major} on this machine and none to fetch");
    let offline = std::env::var_os("PGTRICKLE_OFFLINE").is_some();
    fetch(major, offline, |line| eprintln!("{line}")).unwrap()
}
