//! SIGTERM: what was committed before it is written, whatever brings the changes; and what can't come holds up nobody.

use std::time::Instant;

use crate::harness::database::{TestDatabase, connect};
use crate::harness::servers::{SUPERUSER, for_each_major};
use crate::harness::sidecar::signal;
use crate::harness::{SOON, Sidecar, wait_until};
use crate::suites::snapshots::value;

const QUERY: &str = "select k, count(*) as n, sum(v) as total from t group by k";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_before_sigterm_is_written() {
    for_each_major(async |server| {
        for mode in ["wal", "trigger"] {
            let database = TestDatabase::create(server).await;
            database.install();
            let app = database.as_app().await;
            app.batch_execute("create table t (id int primary key, k int, v int)").await.expect("a source");
            let create = format!("select pgtrickle.create_stream_table('st', '{QUERY}')");
            app.batch_execute(&create).await.expect("a stream table");
            let mut sidecar = Sidecar::start(&database, &["--cdc-mode", mode, "--http", "off"]);
            sidecar.wait_ready(SOON).await;
            for n in 0..200 {
                let change =
                    format!("insert into t select {n} * 20 + i, i % 5, i from generate_series(1, 20) i");
                app.batch_execute(&change).await.expect("a change");
            }
            let begin = Instant::now();
            signal(sidecar.pid(), "TERM");
            assert_eq!(sidecar.wait_exit(SOON).await, Some(0));
            println!("  PostgreSQL {}, {mode}: drained within {:.1?}", database.major, begin.elapsed());
            let differs = format!(
                "select count(*) from ((select k, n, total from st except all ({QUERY}))
                    union all (({QUERY}) except all select k, n, total from st)) d"
            );
            assert_eq!(value(&app, &differs).await, "0", "{mode}");
            assert_eq!(value(&app, "select sum(n) from st").await, "4000", "{mode}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_still_loads_ends_at_once() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        database.install();
        let app = database.as_app().await;
        app.batch_execute("create table t (id int primary key, k int, v int)").await.expect("a source");
        let create = format!("select pgtrickle.create_stream_table('st', '{QUERY}')");
        app.batch_execute(&create).await.expect("a stream table");
        let lock = connect(&database.url(SUPERUSER)).await;
        lock.batch_execute("begin; lock table app.t in access exclusive mode").await.expect("a lock");
        let mut sidecar = Sidecar::start(&database, &["--http", "off"]);
        wait_until("the stream to start", SOON, || async {
            let logs = sidecar.logs();
            if logs.contains("starting") { Ok(()) } else { Err(logs) }
        })
        .await;
        let begin = Instant::now();
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        println!("  PostgreSQL {}: ended within {:.1?}", database.major, begin.elapsed());
    })
    .await;
}
