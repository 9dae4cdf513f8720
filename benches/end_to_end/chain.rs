//! A chain of ten stream tables against one.

use serde_json::json;

use crate::freshness::sample;
use crate::report::{Report, Target, percentile};
use crate::world::{W1, World};

const LENGTH: usize = 10;

pub async fn run(world: &mut World, report: &mut Report) {
    world.create(W1).await;
    let mut one = sample(world, W1.0, 50, 500).await;
    let mut before = W1.0.to_owned();
    let mut names = Vec::new();
    for n in 2..=LENGTH {
        let name = format!("chain_{n}");
        let query = format!("select customer_id, total, n from {before} where n > 0");
        world.create((&name, &query)).await;
        let index = format!("create index on {name} (customer_id)");
        world.with.app.batch_execute(&index).await.unwrap();
        before = name.clone();
        names.push(name);
    }
    sample(world, &before, 50, 100).await;
    let mut ten = sample(world, &before, 50, 500).await;
    let (one50, ten50) = (percentile(&mut one, 0.5), percentile(&mut ten, 0.5));
    let details = json!({
        "one_p50_ms": one50, "ten_p50_ms": ten50, "one_p99_ms": percentile(&mut one, 0.99),
        "ten_p99_ms": percentile(&mut ten, 0.99),
    });
    report.add("chain of 10: latency against one", ten50 / one50, "x", Target::AtMost(2.0), details);
    for name in names.iter().rev() {
        world.drop(name).await;
    }
    world.drop(W1.0).await;
}
