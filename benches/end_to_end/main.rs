//! The numbers of the whole: a real server with fsync, the real program, the workloads of the peers.
//!
//! One JSON object per measurement on stdout, a table on stderr. Chosen by the environment:
//!
//! - `PGTRICKLE_BENCH_ORDERS`: rows of `orders` (200 000; 1 000 000 for figures to publish), a twentieth of it customers
//! - `PGTRICKLE_BENCH_ONLY`: comma-separated parts of `memory,freshness,tps,bulk,drain,chain`
//! - `PGTRICKLE_BENCH_SECONDS`: length of one run of load (5)
//! - `PGTRICKLE_BENCH_WORKERS`: dataflow workers (1)
//! - `PGTRICKLE_BENCH_CDC`: how changes are captured: `wal` or `trigger` (the sidecar's default)
//! - `PGTRICKLE_TEST_PG`: major version, as for the tests
//!
//! Figures of one run belong together: what is compared runs in turns in the same process on the same machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(dead_code, unused_imports)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../integration/harness/mod.rs"]
mod harness;

mod bulk;
mod chain;
mod drain;
mod freshness;
mod load;
mod memory;
mod report;
mod world;

use common::number;
use report::Report;
use world::World;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let orders = number("PGTRICKLE_BENCH_ORDERS", 200_000);
    let seconds = number("PGTRICKLE_BENCH_SECONDS", 5).unsigned_abs();
    let only = std::env::var("PGTRICKLE_BENCH_ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|p| p.trim() == part);
    let workers = number("PGTRICKLE_BENCH_WORKERS", 1).unsigned_abs();
    let mut report = Report::default();
    let mut world = World::start(orders, workers).await;
    eprintln!("PostgreSQL {}, {orders} orders, {} customers", world.version().await, world.customers);
    if wanted("memory") {
        memory::run(&mut world, &mut report).await;
    }
    if wanted("freshness") {
        freshness::run(&mut world, &mut report).await;
    }
    if wanted("chain") {
        chain::run(&mut world, &mut report).await;
    }
    if wanted("bulk") {
        bulk::run(&mut world, &mut report).await;
    }
    if wanted("drain") {
        drain::run(&mut world, &mut report).await;
    }
    if wanted("tps") {
        load::run(&mut world, &mut report, seconds).await;
    }
    world.stop().await;
    report.table();
}
