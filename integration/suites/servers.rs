//! Private servers: they start, stop, survive crashes, and never outlive the process that made them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgtrickle::ErrorKind;
use pgtrickle::postgres::cluster::{Cluster, ClusterOptions, StopMode};
use pgtrickle::postgres::fetch::fetch;

use crate::harness::database::connect;
use crate::harness::servers::{SUPERUSER, each, install, majors, own_cluster};
use crate::harness::wait::{SOON, wait_until};

fn quick() -> ClusterOptions {
    ClusterOptions { fsync: false, ..ClusterOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_with_logical_decoding_and_leaves_nothing_behind() {
    each(async |major| {
        let start = Instant::now();
        let mut cluster = Cluster::start(&install(major), quick()).unwrap();
        let made = start.elapsed();
        cluster.restart(StopMode::Fast).unwrap();
        eprintln!("PostgreSQL {major}: made in {made:?}, restarted in {:?}", start.elapsed() - made);
        let (folder, pid) = (cluster.folder().to_path_buf(), cluster.pid().unwrap());
        let client = connect(&cluster.conninfo("postgres", "postgres")).await;
        let row = client
            .query_one(
                "select current_setting('server_version_num')::int / 10000, current_setting('wal_level'),
                        current_setting('server_encoding'), current_setting('listen_addresses'),
                        datcollate from pg_database where datname = current_database()",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, i32>(0) as u32, major);
        assert_eq!(row.get::<_, &str>(1), "logical");
        assert_eq!(row.get::<_, &str>(2), "UTF8");
        assert_eq!(row.get::<_, &str>(3), "127.0.0.1");
        assert!(row.get::<_, &str>(4).starts_with('C'));
        client
            .batch_execute("select pg_create_logical_replication_slot('s', 'pgoutput'); select pg_drop_replication_slot('s')")
            .await
            .unwrap();
        drop(cluster);
        assert!(!folder.exists(), "{} is left", folder.display());
        assert!(!alive(pid), "the server is left");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_survives_restarts_in_every_mode_and_kill_9_of_the_postmaster() {
    each(async |major| {
        let mut server = own_cluster(major, &[]).await;
        let cluster = &mut server.cluster;
        let url = cluster.conninfo("postgres", SUPERUSER);
        connect(&url).await.batch_execute("create table t (n int)").await.unwrap();
        for round in 0..4 {
            connect(&url).await.batch_execute("insert into t values (1)").await.unwrap();
            match round {
                0 => cluster.restart(StopMode::Fast).unwrap(),
                1 => cluster.restart(StopMode::Smart).unwrap(),
                2 => cluster.restart(StopMode::Immediate).unwrap(),
                _ => {
                    // A session that is at work ends later than its postmaster: the start has to wait for it.
                    let busy = connect(&url).await;
                    let query = tokio::spawn(async move { busy.batch_execute("select pg_sleep(60)").await });
                    cluster.kill9().unwrap();
                    assert!(!cluster.is_running());
                    cluster.start_again().unwrap();
                    assert!(query.await.unwrap().is_err());
                }
            }
            let count: i64 =
                connect(&url).await.query_one("select count(*) from t", &[]).await.unwrap().get(0);
            assert_eq!(count, round + 1);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_folder_is_taken_up_again_and_an_alien_folder_is_refused() {
    let scratch = tempfile::Builder::new().permissions(open()).tempdir().unwrap();
    let dir = scratch.path().join("cluster");
    // With flushing: the way of a demo whose data is to stay.
    let options = ClusterOptions { dir: Some(dir.clone()), keep: true, fsync: true, ..quick() };
    let install = install(majors()[0]);
    let cluster = Cluster::start(&install, options.clone()).unwrap();
    let client = connect(&cluster.conninfo("postgres", "postgres")).await;
    client.batch_execute("create table kept ()").await.unwrap();
    drop((client, cluster));
    assert!(dir.join("data/PG_VERSION").exists());
    // Also without `keep`: it was there before.
    let cluster = Cluster::start(&install, ClusterOptions { keep: false, ..options }).unwrap();
    let client = connect(&cluster.conninfo("postgres", "postgres")).await;
    client.batch_execute("select from kept").await.unwrap();
    drop((client, cluster));
    assert!(dir.join("data/PG_VERSION").exists());

    std::fs::write(scratch.path().join("letter"), "dear diary").unwrap();
    let alien = ClusterOptions { dir: Some(scratch.path().to_path_buf()), ..quick() };
    let error = Cluster::start(&install, alien).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(scratch.path().join("letter").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_not_start_shows_its_log_and_leaves_nothing_behind() {
    let scratch = tempfile::Builder::new().permissions(open()).tempdir().unwrap();
    let dir = scratch.path().join("cluster");
    let settings = vec![("shared_buffers".to_owned(), "a lot".to_owned())];
    let options = ClusterOptions { settings, dir: Some(dir.clone()), ..quick() };
    let error = Cluster::start(&install(majors()[0]), options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ServerSetup);
    assert!(error.to_string().contains("shared_buffers"), "{error}");
    assert!(!dir.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_an_error_when_it_was_asked_for() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = ClusterOptions { port: Some(port), ..quick() };
    let error = Cluster::start(&install(majors()[0]), options).err().unwrap();
    assert!(error.to_string().contains("in use"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_made_without_a_prepared_folder_differ_in_their_identity() {
    let options = ClusterOptions { prepared: false, ..quick() };
    let install = install(majors()[0]);
    let mut identities = Vec::new();
    for _ in 0..2 {
        let cluster = Cluster::start(&install, options.clone()).unwrap();
        let client = connect(&cluster.conninfo("postgres", "postgres")).await;
        let row = client.query_one("select system_identifier from pg_control_system()", &[]).await.unwrap();
        identities.push(row.get::<_, i64>(0));
    }
    assert_ne!(identities[0], identities[1]);
}

/// Set for the child process of the next test.
const OWNER: &str = "PGTRICKLE_TEST_OWNER_OF_A_SERVER";

/// Not a test: with the variable set, it starts a server, says where it is, and waits for its death.
#[test]
fn the_owner_of_a_server_waits_to_be_killed() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let cluster = Cluster::start(&install(majors()[0]), quick()).unwrap();
    println!("\nserver {} {} {}", cluster.pid().unwrap(), cluster.port(), cluster.folder().display());
    // Ends only if the parent test ends before it has killed us.
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_owner_leaves_no_server_and_no_folder() {
    let (mut owner, pid, port, folder) = start_owner();
    assert!(alive(pid) && folder.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_until("the server to end and its folder to go", SOON, || async {
        match (alive(pid), folder.exists()) {
            (false, false) => Ok(()),
            (server, folder) => Err(format!("server alive: {server}, folder there: {folder}")),
        }
    })
    .await;
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

fn start_owner() -> (Child, u32, u16, PathBuf) {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "suites::servers::the_owner_of_a_server_waits_to_be_killed", "--nocapture"])
        .env(OWNER, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let words = lines.find_map(|line| line.unwrap().strip_prefix("server ").map(str::to_owned)).unwrap();
    let words: Vec<&str> = words.splitn(3, ' ').collect();
    (owner, words[0].parse().unwrap(), words[1].parse().unwrap(), PathBuf::from(words[2]))
}

#[test]
fn offline_forbids_a_fetch_and_says_what_to_do() {
    // A cache of its own, so that nothing is found in it: the environment of this process must not change.
    if std::env::var_os(OWNER).is_some() {
        match fetch(18, true, |line| println!("{line}")) {
            Ok(install) => println!("\nfound {}", install.bin_dir.display()),
            Err(error) => println!("\nkind {:?} {error} | {}", error.kind(), error.hint().unwrap()),
        }
        return;
    }
    let empty = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "suites::servers::offline_forbids_a_fetch_and_says_what_to_do", "--nocapture"])
        .env(OWNER, "1")
        .env("XDG_CACHE_HOME", empty.path())
        .env("TMPDIR", empty.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("kind ")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.starts_with("kind Config") && line.contains("--offline"), "{line}");
    assert!(line.contains("--pg-bindir"), "{line}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "something was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_servers_started_at_once_get_ports_of_their_own() {
    let install = install(majors()[0]);
    let starts: Vec<_> = (0..4)
        .map(|_| {
            let install = install.clone();
            tokio::task::spawn_blocking(move || Cluster::start(&install, quick()).unwrap())
        })
        .collect();
    let mut clusters = Vec::new();
    for start in starts {
        clusters.push(tokio::time::timeout(Duration::from_secs(120), start).await.unwrap().unwrap());
    }
    for cluster in &clusters {
        let client = connect(&cluster.conninfo("postgres", "postgres")).await;
        let row = client.query_one("select current_setting('data_directory')", &[]).await.unwrap();
        assert_eq!(Path::new(row.get::<_, &str>(0)), cluster.data_dir());
    }
}

/// A folder that the server's user may enter, whoever runs the tests.
fn open() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

/// Whether a process has this number; a zombie counts as dead.
fn alive(pid: u32) -> bool {
    let output = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    !state.is_empty() && !state.starts_with('Z')
}
