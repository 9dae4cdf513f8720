//! Loading: rows per second, and what the sidecar takes per source row.

use futures_util::{StreamExt, pin_mut};
use pgtrickle::row::TypeClass;
use pgtrickle::row::copy::CopyDecoder;
use serde_json::json;

use crate::report::{Report, Target};
use crate::world::{Side, W1, W2, W3, World};

/// Packed bytes of all rows of a query.
async fn packed(side: &Side, query: &str, classes: &[TypeClass]) -> f64 {
    let stream = side.app.copy_out(&format!("copy ({query}) to stdout")).await.unwrap();
    pin_mut!(stream);
    let mut decoder = CopyDecoder::new(classes.to_vec());
    let mut bytes = 0;
    while let Some(line) = stream.next().await {
        bytes += decoder.decode(&line.unwrap()).unwrap().byte_len();
    }
    bytes as f64
}

/// Rows and seconds of the last load, from the program's log.
fn loaded(log: &str) -> Option<(f64, f64)> {
    let line = log.lines().rfind(|l| l.contains("sources loaded"))?;
    let field = |name: &str| {
        let rest = line.split_once(&format!("{name}="))?.1;
        rest.split_whitespace().next()?.trim_matches('"').parse::<f64>().ok()
    };
    Some((field("rows")?, field("seconds")?))
}

pub async fn run(world: &mut World, report: &mut Report) {
    let (int, numeric, text) = (TypeClass::Int8, TypeClass::Numeric, TypeClass::Text);
    let orders =
        packed(&world.with, "select id, customer_id, amount from orders", &[int, int, numeric]).await;
    let with_status =
        packed(&world.with, "select id, customer_id, amount, status from orders", &[int, int, numeric, text])
            .await;
    let regions = packed(&world.with, "select id, region from customers", &[int, text]).await;
    let names = packed(&world.with, "select id, name, region from customers", &[int, text, text]).await;
    let (o, c) = (world.orders as f64, world.customers as f64);
    let cases = [
        (W1, orders, o, "customer_id, total, n"),
        (W2, orders + regions, o + c, "region, total, n"),
        (W3, with_status + names, o + c, "id, name, region, amount"),
    ];
    for (view, packed, rows, columns) in cases {
        // A fresh process for each: freed memory of an earlier one would hide what this one takes.
        world.restart().await;
        let before = world.resident();
        let seconds = world.create(view).await;
        let name = view.0.to_uppercase();
        if let Some((rows, load)) = loaded(&world.sidecar.logs()) {
            let cpu = world.sidecar_cpu() * 1e6 / rows;
            let details = json!({
                "rows": rows, "load_s": load, "create_until_active_s": seconds, "sidecar_cpu_us_per_row": cpu,
            });
            report.add(
                &format!("hydration, {name}"),
                rows / load,
                "rows/s",
                Target::AtLeast(300_000.0),
                details,
            );
        }
        let taken = world.resident() - before;
        let details = json!({
            "rss_mb": world.resident() / 1048576.0, "rss_before_mb": before / 1048576.0,
            "bytes_per_source_row": taken / rows, "packed_bytes_per_source_row": packed / rows,
        });
        report.add(
            &format!("memory, {name}: bytes per source row"),
            taken / rows,
            "B",
            Target::None,
            details.clone(),
        );
        report.add(
            &format!("memory, {name}: against packed"),
            taken / packed,
            "x",
            Target::AtMost(3.0),
            details,
        );
        world.check(view, columns).await;
        world.drop(view.0).await;
    }
}
