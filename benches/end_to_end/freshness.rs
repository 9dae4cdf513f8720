//! From commit to visible: one-row changes at a steady rate, watched by a second session.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc;

use crate::report::{Report, Target, percentile};
use crate::world::{W1, World};

struct Change {
    customer: i64,
    expected: i64,
    committed: Instant,
}

/// Milliseconds from the end of COMMIT at the client to the change seen in `table` (which has W1's columns), for `count`
/// changes begun at `rate` per second whether or not the earlier ones are visible.
pub async fn sample(world: &World, table: &str, rate: u64, count: usize) -> Vec<f64> {
    let writer = world.with.db.as_app().await;
    let reader = world.with.db.as_app().await;
    let sql = format!(
        "select o.id, o.customer_id, (t.total * 100)::bigint
         from (select customer_id, min(id) as id from orders group by customer_id order by 1 limit {count}) o
         join {table} t using (customer_id)"
    );
    let rows = writer.query(&sql, &[]).await.unwrap();
    let update = writer.prepare("update orders set amount = amount + 1 where id = $1").await.unwrap();
    let probe = format!("select (total * 100)::bigint from {table} where customer_id = $1");
    let probe = reader.prepare(&probe).await.unwrap();
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let watching = tokio::spawn(async move {
        let mut samples = Vec::new();
        while let Some(Change { customer, expected, committed }) = receiver.recv().await {
            loop {
                let row = reader.query_one(&probe, &[&customer]).await.unwrap();
                if row.get::<_, i64>(0) >= expected {
                    break;
                }
                assert!(committed.elapsed() < Duration::from_secs(60), "a change was not visible after 60 s");
            }
            samples.push(committed.elapsed().as_secs_f64() * 1000.0);
        }
        samples
    });
    let mut pace = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for row in &rows {
        pace.tick().await;
        writer.execute(&update, &[&row.get::<_, i64>(0)]).await.unwrap();
        let change =
            Change { customer: row.get(1), expected: row.get::<_, i64>(2) + 100, committed: Instant::now() };
        sender.send(change).unwrap();
    }
    drop(sender);
    watching.await.unwrap()
}

pub async fn run(world: &mut World, report: &mut Report) {
    world.create(W1).await;
    sample(world, W1.0, 100, 200).await;
    let mut samples = sample(world, W1.0, 100, 2000).await;
    let (p50, p99) = (percentile(&mut samples, 0.5), percentile(&mut samples, 0.99));
    let details = json!({
        "samples": samples.len(), "p90": percentile(&mut samples, 0.9), "max": percentile(&mut samples, 1.0),
        "rate_per_s": 100,
    });
    report.add("freshness p50, W1, 100 tx/s", p50, "ms", Target::AtMost(5.0), details.clone());
    report.add("freshness p99, W1, 100 tx/s", p99, "ms", Target::AtMost(25.0), details);
    world.check(W1, "customer_id, total, n").await;
    world.drop(W1.0).await;
}
