//! A statement that changes 100 000 rows: until its last row is visible, beside the statement alone.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::report::{Report, Target, median};
use crate::world::{W1, W2, W3, World};

const ROWS: i64 = 100_000;
const ROUNDS: usize = 3;

pub async fn run(world: &mut World, report: &mut Report) {
    let rows = ROWS.min(world.orders);
    let update = format!("update orders set amount = amount + 1 where id <= {rows}");
    let mut alone = Vec::new();
    for _ in 0..ROUNDS {
        alone.push(world.without.time(&update).await);
        world.without.tidy().await;
    }
    let alone = median(&mut alone);
    report.add("100k-row UPDATE alone", alone, "s", Target::None, json!({ "rows": rows, "rounds": ROUNDS }));
    // Order 4 is open; an apply is one transaction, so one changed value speaks for all.
    let cases = [
        (
            W1,
            "customer_id, total, n",
            "select total::float8 from w1 where customer_id = (select customer_id from orders where id = 4)",
            1.5,
        ),
        (
            W2,
            "region, total, n",
            "select total::float8 from w2 where region = (select c.region from orders o join customers c on c.id = o.customer_id where o.id = 4)",
            0.8,
        ),
        (W3, "id, name, region, amount", "select amount::float8 from w3 where id = 4", 1.5),
    ];
    for (view, columns, probe, target) in cases {
        world.create(view).await;
        world.with.tidy().await;
        let (mut fresh, mut statement) = (Vec::new(), Vec::new());
        let reader = world.with.db.as_app().await;
        let cpu = world.sidecar_cpu();
        for _ in 0..ROUNDS {
            let before: f64 = reader.query_one(probe, &[]).await.unwrap().get(0);
            let start = Instant::now();
            statement.push(world.with.time(&update).await);
            while reader.query_one(probe, &[]).await.unwrap().get::<_, f64>(0) <= before {
                assert!(start.elapsed() < Duration::from_secs(120), "not visible after 120 s");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            fresh.push(start.elapsed().as_secs_f64());
            world.with.tidy().await;
        }
        let name = format!("100k-row UPDATE until fresh, {}", view.0.to_uppercase());
        let details = json!({ "statement_s": median(&mut statement), "alone_s": alone, "all_s": fresh,
            "sidecar_cpu_us_per_row": (world.sidecar_cpu() - cpu) * 1e6 / (rows * ROUNDS as i64) as f64 });
        report.add(&name, median(&mut fresh), "s", Target::AtMost(target), details);
        world.check(view, columns).await;
        world.drop(view.0).await;
    }
}
