//! What a service manager is told, over a real datagram socket; and the healthcheck of a sidecar that serves HTTPS.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::certificates::{Authority, write_private};
use crate::harness::database::{SIDECAR, TestDatabase, connect, printed};
use crate::harness::servers::{SUPERUSER, for_each_major};
use crate::harness::{SOON, Sidecar, wait_until};
use crate::suites::http::client::free_port;

/// The other end of `NOTIFY_SOCKET`: every message with the time at which it came.
struct Manager {
    folder: tempfile::TempDir,
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Manager {
    fn start() -> Manager {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        let heard: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
        let list = Arc::downgrade(&heard);
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Some(list) = list.upgrade() {
                if let Ok(length) = socket.recv(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    let mut list = list.lock().expect("the list");
                    list.extend(text.lines().map(|line| (Instant::now(), line.to_owned())));
                }
            }
        });
        Manager { folder, heard }
    }

    fn heard(&self) -> Vec<(Instant, String)> {
        self.heard.lock().expect("the list").clone()
    }

    /// Where a message stands in the order in which they came.
    fn place(&self, message: &str) -> Option<usize> {
        self.heard().iter().position(|(_, heard)| heard == message)
    }

    async fn hears(&self, message: &str) {
        wait_until(&format!("the message {message}"), SOON, || async {
            self.place(message).map(drop).ok_or_else(|| format!("{:?}", self.heard()))
        })
        .await;
    }

    /// A sidecar as systemd starts it.
    fn sidecar(&self, database: &TestDatabase, watchdog: Duration) -> Sidecar {
        let arguments = [
            format!("NOTIFY_SOCKET={}", self.folder.path().join("notify").display()),
            format!("WATCHDOG_USEC={}", watchdog.as_micros()),
            env!("CARGO_BIN_EXE_pgtrickle").to_owned(),
            "run".to_owned(),
            "--database-url".to_owned(),
            database.url(SIDECAR),
            "--http".to_owned(),
            "off".to_owned(),
        ];
        Sidecar::start_program(PathBuf::from("env"), arguments.to_vec())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_when_it_is_ready_that_it_lives_and_when_it_stops() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        database.install();
        let app = database.as_app().await;
        app.batch_execute("create table t (id int primary key); insert into t values (1)").await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('st', 'select id from t')").await.unwrap();
        // Nobody may read the source: the start takes until this ends.
        let lock = connect(&database.url(SUPERUSER)).await;
        lock.batch_execute("begin; lock table app.t in access exclusive mode").await.unwrap();
        let manager = Manager::start();
        let watchdog = Duration::from_secs(2);
        let mut sidecar = manager.sidecar(&database, watchdog);
        manager.hears("EXTEND_TIMEOUT_USEC=30000000").await;
        wait_until("a reason for the wait", SOON, || async {
            let heard = manager.heard();
            let said = heard.iter().any(|(_, m)| m.starts_with("STATUS=starting: "));
            if said { Ok(()) } else { Err(format!("{heard:?}")) }
        })
        .await;
        assert!(manager.place("READY=1").is_none(), "it is not ready: {:?}", manager.heard());
        lock.batch_execute("rollback").await.unwrap();
        manager.hears("READY=1").await;
        manager.hears("STATUS=serving").await;
        // Signs of life come in time, also over a while.
        let enough = manager.heard().iter().filter(|(_, m)| m == "WATCHDOG=1").count() + 4;
        wait_until("signs of life", SOON, || async {
            let seen = manager.heard().iter().filter(|(_, m)| m == "WATCHDOG=1").count();
            if seen >= enough { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
        let signs: Vec<Instant> =
            manager.heard().iter().filter(|(_, m)| m == "WATCHDOG=1").map(|(at, _)| *at).collect();
        let longest = signs.windows(2).map(|pair| pair[1] - pair[0]).max().expect("signs of life");
        println!(
            "  {} signs of life, at most {longest:.1?} apart (the watchdog bites after {watchdog:?})",
            signs.len()
        );
        // A pause is planned: it is said, and nothing else happens.
        let dba = database.as_dba().await;
        dba.batch_execute("select pgtrickle.pause(now() + interval '1 hour')").await.unwrap();
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        manager.hears("STOPPING=1").await;
        assert!(manager.place("READY=1") < manager.place("STOPPING=1"));
        assert_eq!(manager.heard().iter().filter(|(_, m)| m == "READY=1").count(), 1);
        // Paused from the start: whoever waits for the unit is not kept waiting.
        let manager = Manager::start();
        let mut sidecar = manager.sidecar(&database, watchdog);
        manager.hears("READY=1").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthcheck_asks_by_https_where_that_is_served() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        database.install();
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("authority");
        let (certificate, key) = authority.server(&["pgtrickle.example"]).write(folder.path(), "http");
        let token = folder.path().join("token");
        write_private(&token, "0123456789abcdef0123");
        let http = free_port();
        let environment = [
            ("PGTRICKLE_HTTP", format!("0.0.0.0:{http}")),
            ("PGTRICKLE_HTTP_TLS_CERT", certificate.display().to_string()),
            ("PGTRICKLE_HTTP_TLS_KEY", key.display().to_string()),
            ("PGTRICKLE_HTTP_TOKEN_FILE", token.display().to_string()),
        ];
        let mut arguments: Vec<String> = environment.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let program = env!("CARGO_BIN_EXE_pgtrickle");
        arguments.extend([program, "run", "--database-url", &database.url(SIDECAR)].map(str::to_owned));
        let mut sidecar = Sidecar::start_program(PathBuf::from("env"), arguments);
        let healthcheck = |more: &[&str]| {
            Command::new(program).arg("healthcheck").args(more).envs(environment.clone()).output().unwrap()
        };
        wait_until("the healthcheck to be content", SOON, || async {
            let output = healthcheck(&["--ready"]);
            if output.status.success() { Ok(()) } else { Err(printed(&output)) }
        })
        .await;
        assert!(healthcheck(&[]).status.success());
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        let output = healthcheck(&[]);
        assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
        assert!(
            printed(&output).contains(&format!("unhealthy: https://127.0.0.1:{http}/healthz")),
            "{}",
            printed(&output)
        );
    })
    .await;
}

const UNIT: &str = "deploy/systemd/pgtrickle.service";

/// Values of a key in the unit, in their order.
fn unit(key: &str) -> Vec<String> {
    let text = super::text(UNIT);
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

#[test]
fn the_unit_waits_for_ready_watches_and_lets_the_drain_end() {
    assert_eq!(unit("Type"), ["notify"]);
    assert_eq!(unit("NotifyAccess"), ["main"]);
    assert_eq!(unit("KillSignal"), ["SIGTERM"]);
    let seconds = |key: &str| unit(key)[0].trim_end_matches('s').parse::<u64>().expect("seconds");
    assert!(seconds("WatchdogSec") >= 10);
    assert!(seconds("TimeoutStopSec") > 20, "the program ends its drain by itself after 20 s");
    assert_eq!(unit("ExecStart"), ["/usr/bin/pgtrickle run"]);
    // What another attempt can't mend: see docs/exit-codes.md.
    assert_eq!(unit("RestartPreventExitStatus"), ["2 12"]);
}

#[test]
fn systemd_accepts_the_unit() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        crate::harness::left_out("there is no systemd-analyze here (Debian's package systemd)");
        return;
    };
    println!("  {}", String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default());
    // The program must be where the unit says.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("pgtrickle.service");
    let text = super::text(UNIT).replace("/usr/bin/pgtrickle", env!("CARGO_BIN_EXE_pgtrickle"));
    std::fs::write(&copy, text).unwrap();
    let run = |arguments: &[&str], path: &Path| {
        Command::new("systemd-analyze").args(arguments).arg(path).output().expect("systemd-analyze starts")
    };
    let output = run(&["verify", "--man=no"], &copy);
    let said = printed(&output);
    assert!(output.status.success() && !said.contains("pgtrickle.service:"), "{}: {said}", output.status);
    let output = run(&["security", "--offline=true", "--threshold=20"], &copy);
    let said = printed(&output);
    println!("  {}", said.lines().last().unwrap_or_default());
    // 2.0 of 10, where 0 is no exposure at all.
    assert!(output.status.success(), "{said}");
}
