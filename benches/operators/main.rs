//! What each class of operator costs: the real program beside a real server with fsync, one stream table at a time.
//!
//! One JSON object per class on stdout, a table on stderr. Chosen by the environment:
//!
//! - `PGTRICKLE_BENCH_ORDERS`: rows of `orders` (100 000), a twentieth of it customers
//! - `PGTRICKLE_BENCH_ROUNDS`: rounds per class (5); figures are medians
//! - `PGTRICKLE_BENCH_ONLY`: comma-separated names of classes
//! - `PGTRICKLE_TEST_PG`: major version, as for the tests
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(dead_code, unused_imports)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../integration/harness/mod.rs"]
mod harness;

mod classes;

use classes::{Figures, World};
use common::number;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let orders = number("PGTRICKLE_BENCH_ORDERS", 100_000);
    let rounds = number("PGTRICKLE_BENCH_ROUNDS", 5) as usize;
    let only = std::env::var("PGTRICKLE_BENCH_ONLY").unwrap_or_default();
    let settings = [("fsync", "on"), ("shared_buffers", "512MB"), ("jit", "off"), ("max_wal_size", "4GB")];
    let server = harness::servers::own_cluster(harness::servers::majors()[0], &settings).await;
    let mut world = World::start(&server, orders).await;
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["class", "changes/s", "CPU us/change", "own B/row", "shared B/row", "load"]);
    for class in classes::CLASSES {
        if !only.is_empty() && !only.split(',').any(|name| name.trim() == class.name) {
            continue;
        }
        let figures: Figures = world.measure(class, rounds).await;
        println!("{}", figures.json());
        table.add_row(figures.cells());
    }
    world.stop().await;
    eprintln!("{table}");
}
