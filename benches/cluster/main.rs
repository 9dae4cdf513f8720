//! One, two and three processes on one machine: what each holds, and how many changes per second they take together.
//!
//! One JSON object per number of processes on stdout. `PGTRICKLE_BENCH_ORDERS`: rows of `orders` (200 000), a twentieth of it
//! customers; `PGTRICKLE_TEST_PG`: major version, as for the tests. The stream tables are those of the other benchmarks
//! (a sum by key, a join with a sum, a filtered join); a step is an UPDATE of a tenth of the orders. All processes and the
//! server share one machine: the figures say what spreading costs, not what several machines bring.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(dead_code, unused_imports)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../integration/harness/mod.rs"]
mod harness;

use std::time::{Duration, Instant};

use harness::cluster::{self, Members};
use harness::servers::{majors, own_cluster};
use harness::{Sidecar, TestDatabase, wait_until};

const LONG: Duration = Duration::from_secs(600);
const STEPS: usize = 5;
const VIEWS: &[(&str, &str)] = &[
    ("w1", "select customer_id, sum(amount) as total, count(*) as n from orders group by customer_id"),
    (
        "w2",
        "select c.region, sum(o.amount) as total, count(*) as n
         from orders o join customers c on c.id = o.customer_id group by c.region",
    ),
    (
        "w3",
        "select o.id, c.name, c.region, o.amount
         from orders o join customers c on c.id = o.customer_id where o.status = 'open'",
    ),
];

/// Megabytes of memory that a process has.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

async fn measure(processes: usize, orders: i64) {
    let server = own_cluster(majors()[0], &[("fsync", "on"), ("max_wal_size", "4GB"), ("jit", "off")]).await;
    let db = TestDatabase::create(&server).await;
    let app = db.as_app().await;
    let customers = (orders / 20).max(100);
    app.batch_execute(&common::shop(orders, customers)).await.unwrap();
    db.install();
    for (name, query) in VIEWS {
        app.execute("select pgtrickle.create_stream_table($1, $2)", &[name, query]).await.unwrap();
    }
    let members = (processes > 1).then(|| Members::start(processes, cluster::PATIENCE));
    let arguments = members.as_ref().map(|m| m.arguments(0)).unwrap_or_default();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let mut sidecar = Sidecar::start(&db, &arguments);
    sidecar.wait_ready(LONG).await;
    let ready = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let mut statements = 0.0;
    for step in 0..STEPS {
        let statement = Instant::now();
        let update = format!("update orders set amount = amount + 1 where id % 10 = {step}");
        app.batch_execute(&update).await.unwrap();
        statements += statement.elapsed().as_secs_f64();
    }
    wait_until("all changes to be there", LONG, || async {
        let fresh = app.query_one("select pgtrickle.wait_for(timeout => '60 s')", &[]).await;
        if fresh.is_ok_and(|row| row.get(0)) { Ok(()) } else { Err("it is not fresh".to_owned()) }
    })
    .await;
    let fresh = begun.elapsed().as_secs_f64();
    let changes = (orders / 10) as f64 * STEPS as f64;
    let figure = |line: &str, name: &str| -> Option<u64> {
        line.split_once(&format!("{name}="))?.1.split_whitespace().next()?.parse().ok()
    };
    let logs = sidecar.logs();
    let (mut bytes, mut rows) = (vec![0; processes], vec![0; processes]);
    for line in logs.lines() {
        if line.contains("state of a process") {
            let Some(process) = figure(line, "process").and_then(|p| usize::try_from(p).ok()) else {
                continue;
            };
            bytes[process] = figure(line, "bytes").unwrap_or(0) >> 20;
            rows[process] = figure(line, "source_rows").unwrap_or(0);
        } else if processes == 1 && line.contains("held_mb=") {
            bytes[0] = figure(line, "held_mb").unwrap_or(0);
            rows[0] = figure(line, "source_rows").unwrap_or(0);
        }
    }
    let pids = std::iter::once(sidecar.pid())
        .chain(members.iter().flat_map(|m| m.processes.iter().map(Sidecar::pid)));
    let resident: Vec<u64> = pids.map(resident).collect();
    println!(
        "{}",
        serde_json::json!({
            "bench": "cluster", "processes": processes, "orders": orders,
            "ready_s": (ready * 100.0).round() / 100.0,
            "changes_per_s": (changes / fresh).round(), "statements_s": (statements * 100.0).round() / 100.0,
            "until_fresh_s": (fresh * 100.0).round() / 100.0,
            "state_mb": bytes, "source_rows": rows, "resident_mb": resident,
        })
    );
    sidecar.terminate(LONG).await;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let orders = common::number("PGTRICKLE_BENCH_ORDERS", 200_000);
    for processes in 1..=3 {
        measure(processes, orders).await;
    }
}
