//! How far it goes: many stream tables, many sources, wide tables, long chains, wide joins, one huge transaction, a huge
//! backlog; and how long: a mixed load.
//!
//! One JSON object per measurement on stdout. The real program beside a real server. Chosen by the environment:
//!
//! - `PGTRICKLE_BENCH_ONLY`: comma-separated parts of `tables,sources,columns,chain,join,transaction,backlog,day`; all but
//!   `day` without it
//! - `PGTRICKLE_BENCH_TABLES` (1000), `PGTRICKLE_BENCH_SOURCES` (200), `PGTRICKLE_BENCH_COLUMNS` (1600),
//!   `PGTRICKLE_BENCH_CHAIN` (50), `PGTRICKLE_BENCH_JOIN` (16), `PGTRICKLE_BENCH_ROWS` (10 000 000: of the
//!   transaction, and changes of the backlog)
//! - `PGTRICKLE_BENCH_MINUTES` (60) and `PGTRICKLE_BENCH_RATE` (100 transactions per second): the mixed load of `day`
//! - `PGTRICKLE_TEST_PG`: major version, as for the tests
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(dead_code, unused_imports)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../integration/harness/mod.rs"]
mod harness;

mod curve;
mod day;
mod parts;
mod world;

use common::number;
use world::World;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = [
        ("fsync", "on"),
        ("shared_buffers", "512MB"),
        ("jit", "off"),
        ("max_wal_size", "8GB"),
        ("max_locks_per_transaction", "1024"),
        ("wal_sender_timeout", "0"),
    ];
    let server = harness::servers::own_cluster(harness::servers::majors()[0], &settings).await;
    let only = std::env::var("PGTRICKLE_BENCH_ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|p| p.trim() == part);
    if wanted("tables") {
        parts::tables(World::start(&server).await, number("PGTRICKLE_BENCH_TABLES", 1000)).await;
    }
    if wanted("sources") {
        parts::sources(World::start(&server).await, number("PGTRICKLE_BENCH_SOURCES", 200)).await;
    }
    if wanted("columns") {
        parts::columns(World::start(&server).await, number("PGTRICKLE_BENCH_COLUMNS", 1600)).await;
    }
    if wanted("chain") {
        parts::chain(World::start(&server).await, number("PGTRICKLE_BENCH_CHAIN", 50)).await;
    }
    if wanted("join") {
        parts::join(World::start(&server).await, number("PGTRICKLE_BENCH_JOIN", 16)).await;
    }
    if wanted("transaction") {
        parts::transaction(World::start(&server).await, number("PGTRICKLE_BENCH_ROWS", 10_000_000)).await;
    }
    if wanted("backlog") {
        parts::backlog(World::start(&server).await, number("PGTRICKLE_BENCH_ROWS", 10_000_000)).await;
    }
    if only.split(',').any(|p| p.trim() == "day") {
        let minutes = number("PGTRICKLE_BENCH_MINUTES", 60);
        day::run(World::start(&server).await, minutes, number("PGTRICKLE_BENCH_RATE", 100)).await;
    }
}
