//! Two servers with the same tables: one with a sidecar beside it, one without.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::common::{cpu_of, shop};
use crate::harness::database::TestDatabase;
use crate::harness::servers::{Server, majors, own_cluster};
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::wait_until;

/// Patience with what takes seconds.
pub const LONG: Duration = Duration::from_secs(300);

/// Sum and count per customer.
pub const W1: (&str, &str) =
    ("w1", "select customer_id, sum(amount) as total, count(*) as n from orders group by customer_id");
/// Join, then sum per region.
pub const W2: (&str, &str) = (
    "w2",
    "select c.region, sum(o.amount) as total, count(*) as n
     from orders o join customers c on c.id = o.customer_id group by c.region",
);
/// A filtered join that returns rows: a quarter of the orders.
pub const W3: (&str, &str) = (
    "w3",
    "select o.id, c.name, c.region, o.amount
     from orders o join customers c on c.id = o.customer_id where o.status = 'open'",
);

const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "1GB"),
    ("work_mem", "64MB"),
    ("maintenance_work_mem", "512MB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "15min"),
    ("jit", "off"),
    ("wal_sender_timeout", "0"),
];

/// A server, its database and a session of the application.
pub struct Side {
    // Before the server: it is dropped first.
    pub app: Client,
    pub db: TestDatabase,
    pub server: Server,
}

impl Side {
    async fn start(orders: i64, customers: i64) -> Side {
        let server = own_cluster(majors()[0], SETTINGS).await;
        let db = TestDatabase::create(&server).await;
        let app = db.as_app().await;
        app.batch_execute(&shop(orders, customers)).await.unwrap();
        let side = Side { app, db, server };
        side.tidy().await;
        side
    }

    /// Seconds that a statement takes.
    pub async fn time(&self, sql: &str) -> f64 {
        let start = Instant::now();
        self.app.batch_execute(sql).await.unwrap();
        start.elapsed().as_secs_f64()
    }

    /// CPU seconds of the server so far: postmaster, its children, and those that have ended. Steadier than times.
    pub fn cpu(&self) -> f64 {
        let Some(postmaster) = self.server.cluster.pid() else { return f64::NAN };
        let mut total = cpu_of(postmaster, true).1;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let (parent, cpu) = cpu_of(pid, false);
            if parent == postmaster {
                total += cpu;
            }
        }
        total
    }

    /// Between runs: dead rows and dirty pages of one run do not burden the next.
    pub async fn tidy(&self) {
        let dba = self.db.as_dba().await;
        // Each alone: VACUUM refuses to share a message with others.
        dba.batch_execute("vacuum analyze").await.unwrap();
        dba.batch_execute("checkpoint").await.unwrap();
    }
}

pub struct World {
    pub sidecar: Sidecar,
    pub with: Side,
    pub without: Side,
    pub orders: i64,
    pub customers: i64,
}

impl World {
    pub async fn start(orders: i64, workers: u64) -> World {
        let customers = (orders / 20).max(100);
        let with = Side::start(orders, customers).await;
        let without = Side::start(orders, customers).await;
        with.db.install();
        let workers = workers.to_string();
        let mut arguments = vec!["--workers", &workers];
        let capture = std::env::var("PGTRICKLE_BENCH_CDC").unwrap_or_default();
        if !capture.is_empty() {
            arguments.extend(["--cdc-mode", &capture]);
        }
        let mut sidecar = Sidecar::start(&with.db, &arguments);
        sidecar.wait_ready(LONG).await;
        World { sidecar, with, without, orders, customers }
    }

    pub async fn version(&self) -> String {
        let row = self
            .with
            .app
            .query_one("select current_setting('server_version'), current_setting('fsync')", &[]);
        let row = row.await.unwrap();
        format!("{} (fsync {})", row.get::<_, String>(0), row.get::<_, String>(1))
    }

    /// Creates a stream table and waits until the sidecar maintains it; returns the seconds from the call.
    pub async fn create(&self, (name, query): (&str, &str)) -> f64 {
        let start = Instant::now();
        let sql = "select pgtrickle.create_stream_table($1, $2)";
        self.with.app.execute(sql, &[&name, &query]).await.unwrap();
        wait_until("the stream table to be active", LONG, || async {
            let sql =
                "select status || ' ' || refresh_mode from pgtrickle.pgt_status() where name like '%' || $1";
            let row = self.with.app.query_one(sql, &[&name]).await.map_err(|e| e.to_string())?;
            match row.get::<_, String>(0).as_str() {
                "ACTIVE DIFFERENTIAL" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        self.passed().await;
        start.elapsed().as_secs_f64()
    }

    pub async fn drop(&self, name: &str) {
        self.with.app.execute("select pgtrickle.drop_stream_table($1)", &[&name]).await.unwrap();
    }

    /// Waits until everything committed so far is in the stream tables; returns the seconds.
    pub async fn passed(&self) -> f64 {
        let start = Instant::now();
        let sql = "select pgtrickle.wait_for(null, interval '300 s')";
        assert!(self.with.app.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "not fresh within 300 s");
        start.elapsed().as_secs_f64()
    }

    /// Fails unless a stream table equals its query.
    pub async fn check(&self, (name, query): (&str, &str), columns: &str) {
        self.passed().await;
        crate::harness::oracle::assert_equal(&self.with.app, query, name, columns).await;
    }

    /// Ends the sidecar and starts a new process; for a database without stream tables.
    pub async fn restart(&mut self) {
        let dba = self.with.db.as_dba().await;
        wait_until("the publication to be empty", LONG, || async {
            let sql = "select count(*) from pg_publication_tables";
            match dba.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get::<_, i64>(0) {
                0 => Ok(()),
                n => Err(format!("{n} tables")),
            }
        })
        .await;
        self.sidecar.terminate(Duration::from_secs(30)).await;
        let ready = |log: String| log.matches(" ready ").count();
        let before = ready(self.sidecar.logs());
        self.sidecar.start_again();
        wait_until("the new process to be ready", LONG, || async {
            if ready(self.sidecar.logs()) > before { Ok(()) } else { Err("not ready".to_owned()) }
        })
        .await;
    }

    /// CPU seconds of the sidecar so far.
    pub fn sidecar_cpu(&self) -> f64 {
        cpu_of(self.sidecar.pid(), false).1
    }

    /// Resident memory of the sidecar in bytes.
    pub fn resident(&self) -> f64 {
        let text =
            std::fs::read_to_string(format!("/proc/{}/status", self.sidecar.pid())).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
        line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
    }

    /// A client program of the server's installation.
    pub fn program(&self, name: &str) -> PathBuf {
        self.with.server.cluster.install().bin_dir.join(name)
    }

    pub async fn stop(mut self) {
        self.sidecar.terminate(Duration::from_secs(30)).await;
    }
}
