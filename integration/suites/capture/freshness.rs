//! From the commit of one row to its sight in the stream table, and what the writer pays, in both ways of capture side by
//! side. The figures are printed; nothing is asserted about them, because machines differ.

use std::time::Instant;

use tokio_postgres::Client;

use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major};

const CHANGES: i32 = 120;

/// Milliseconds of each commit, and from there until the row is seen.
async fn measure(app: &Client, reader: &Client, from: i32) -> (Vec<f64>, Vec<f64>) {
    let insert = app.prepare("insert into t values ($1, $1)").await.unwrap();
    let look = reader.prepare("select exists (select from st where id = $1)").await.unwrap();
    let (mut written, mut seen) = (Vec::new(), Vec::new());
    for id in from..from + CHANGES {
        let begin = Instant::now();
        app.execute(&insert, &[&id]).await.unwrap();
        written.push(begin.elapsed().as_secs_f64() * 1e3);
        let committed = Instant::now();
        while !reader.query_one(&look, &[&id]).await.unwrap().get::<_, bool>(0) {
            assert!(committed.elapsed() < SOON, "the row {id} is not seen");
        }
        seen.push(committed.elapsed().as_secs_f64() * 1e3);
    }
    (written, seen)
}

/// Median and the value that 95 of 100 do not exceed.
fn quantiles(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.1}/{:.1} ms", values[values.len() / 2], values[values.len() * 95 / 100])
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_is_seen_soon_in_either_way_of_capture() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, reader) = (db.as_app().await, db.as_app().await);
        // The test servers flush late by default, and what is not flushed is not decoded either.
        app.batch_execute("set synchronous_commit = on; create table t (id int primary key, v int)")
            .await
            .unwrap();
        let written = measure_without(&app).await;
        println!(
            "PostgreSQL {}: without pgtrickle a commit takes {} (median/95 %)",
            server.major,
            quantiles(written)
        );
        for (number, mode) in ["wal", "trigger"].into_iter().enumerate() {
            let mut sidecar = Sidecar::start(&db, &["--cdc-mode", mode]);
            sidecar.wait_ready(SOON).await;
            if number == 0 {
                app.batch_execute("select pgtrickle.create_stream_table('st', 'select id, v from t')")
                    .await
                    .unwrap();
            }
            let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
            assert!(passed);
            let (written, seen) = measure(&app, &reader, 10_000 * (number as i32 + 1)).await;
            println!(
                "PostgreSQL {}, capture by {mode}: a commit takes {}, it is seen after {} (median/95 %)",
                server.major,
                quantiles(written),
                quantiles(seen)
            );
            assert_eq!(sidecar.terminate(SOON).await, Some(0));
        }
    })
    .await;
}

async fn measure_without(app: &Client) -> Vec<f64> {
    let insert = app.prepare("insert into t values ($1, $1)").await.unwrap();
    let mut written = Vec::new();
    for id in 0..CHANGES {
        let begin = Instant::now();
        app.execute(&insert, &[&id]).await.unwrap();
        written.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    written
}
