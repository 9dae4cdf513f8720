//! A database with its sidecar, and what is measured of both.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::common::cpu_of;
use crate::harness::database::TestDatabase;
use crate::harness::servers::Server;
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::wait_until;

const LONG: Duration = Duration::from_secs(3600);

pub struct World {
    pub app: Client,
    pub sidecar: Sidecar,
    pub dba: Client,
    pub database: TestDatabase,
    postmaster: u32,
}

impl World {
    pub async fn start(server: &Server) -> World {
        let database = TestDatabase::create(server).await;
        database.install();
        let (app, dba) = (database.as_app().await, database.as_dba().await);
        let mut sidecar = Sidecar::start(&database, &[]);
        sidecar.wait_ready(LONG).await;
        World { app, sidecar, dba, database, postmaster: server.cluster.pid().unwrap_or_default() }
    }

    pub async fn run(&self, sql: &str) {
        self.app.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Creates an incremental stream table and waits until it is maintained; seconds, or what was said against it.
    pub async fn create(&self, name: &str, query: &str) -> Result<f64, String> {
        let started = Instant::now();
        let sql = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
        if let Err(e) = self.app.execute(sql, &[&name, &query]).await {
            return Err(e.as_db_error().map_or_else(|| e.to_string(), |e| e.message().to_owned()));
        }
        self.active().await;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Waits until all stream tables are maintained.
    pub async fn active(&self) {
        wait_until("all stream tables to be active", LONG, || async {
            let sql = "select count(*), min(last_error_message) from pgtrickle.stream_tables_info where status <> 'ACTIVE'";
            let row = self.app.query_one(sql, &[]).await.map_err(|e| e.to_string())?;
            match row.get::<_, i64>(0) {
                0 => Ok(()),
                n => Err(format!("{n} are not: {:?}", row.get::<_, Option<String>>(1))),
            }
        })
        .await;
    }

    /// Seconds until everything committed so far is applied.
    pub async fn passed(&self) -> f64 {
        let started = Instant::now();
        let sql = "select pgtrickle.wait_for(null, interval '1 hour')";
        assert!(self.app.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "not fresh within an hour");
        started.elapsed().as_secs_f64()
    }

    /// Milliseconds from the commit of a change until it is applied; the median of several.
    pub async fn latency(&self, change: &str) -> f64 {
        let mut times = Vec::new();
        for _ in 0..15 {
            self.run(change).await;
            times.push(self.passed().await * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    /// Starts a new process; seconds until it is ready.
    pub async fn restart(&mut self) -> f64 {
        self.sidecar.terminate(Duration::from_secs(60)).await;
        let ready = |log: String| log.matches(" ready ").count();
        let before = ready(self.sidecar.logs());
        let started = Instant::now();
        self.sidecar.start_again();
        wait_until("the new process to be ready", LONG, || async {
            if ready(self.sidecar.logs()) > before { Ok(()) } else { Err("not ready".to_owned()) }
        })
        .await;
        started.elapsed().as_secs_f64()
    }

    /// Resident memory of the sidecar in MB: now, and at most.
    pub fn memory(&self) -> (f64, f64) {
        let path = format!("/proc/{}/status", self.sidecar.pid());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0");
            line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// CPU seconds so far: of the sidecar, and of the server with its children.
    pub fn cpu(&self) -> (f64, f64) {
        let mut server = cpu_of(self.postmaster, true).1;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let (parent, cpu) = cpu_of(pid, false);
            server += if parent == self.postmaster { cpu } else { 0.0 };
        }
        (cpu_of(self.sidecar.pid(), false).1, server)
    }

    /// Percent of a core that the sidecar and the server use while nothing happens.
    pub async fn idle(&self) -> (f64, f64) {
        let (started, before) = (Instant::now(), self.cpu());
        tokio::time::sleep(Duration::from_secs(15)).await;
        let (after, seconds) = (self.cpu(), started.elapsed().as_secs_f64());
        ((after.0 - before.0) * 100.0 / seconds, (after.1 - before.1) * 100.0 / seconds)
    }

    pub async fn text(&self, sql: &str) -> String {
        let row = self.app.query_one(sql, &[]).await.unwrap();
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }
}

pub fn print(what: &str, mut figures: serde_json::Value) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    figures["what"] = what.into();
    figures["load_1min"] = load.split(' ').next().unwrap_or_default().into();
    println!("{figures}");
}
