//! A second sidecar of a pipeline stands by and takes over; one that was frozen meanwhile writes nothing when it wakes up.

use std::time::Instant;

use tokio_postgres::Client;

use super::{PATIENCE, live, says};
use crate::harness::oracle::assert_equal;
use crate::harness::{SOON, Server, Sidecar, TestDatabase, for_each_major, wait_until};
use crate::suites::bad_input::{value, wait_value};

const QUERY: &str = "select k, sum(v) as s, count(*) as n from a group by k";
const SESSIONS: &str = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'pgtrickle:main:%'";

/// Each sidecar has one, also a spare.
const CONTROL: &str = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'pgtrickle:main:control'";

async fn generation(dba: &Client) -> i64 {
    dba.query_one("select generation from pgtrickle.pgt_pipelines", &[]).await.unwrap().get(0)
}

async fn served(server: &'static Server) -> (TestDatabase, Sidecar) {
    let db = TestDatabase::create(server).await;
    db.install();
    let app = db.as_app().await;
    app.batch_execute(
        "create table a (id int primary key, k int, v int); insert into a select i, i % 10, i from generate_series(1, 20000) i",
    )
    .await
    .unwrap();
    let mut first = Sidecar::start(&db, &[]);
    first.wait_ready(SOON).await;
    app.execute("select pgtrickle.create_stream_table('sums', $1)", &[&QUERY]).await.unwrap();
    live(&db.as_dba().await).await;
    (db, first)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_takes_over_from_one_that_is_killed() {
    for_each_major(async |server| {
        let (db, mut first) = served(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let before = generation(&dba).await;
        let mut spare = Sidecar::start(&db, &["--standby"]);
        says(&spare, "standing by").await;
        assert_eq!(generation(&dba).await, before, "a spare took the pipeline over");
        let begin = Instant::now();
        first.kill9();
        app.batch_execute("update a set v = v + 1 where id = 7; insert into a values (50000, 3, 1)")
            .await
            .unwrap();
        wait_until("the spare to have written what was committed", PATIENCE, || async {
            let sql = "select (select s from sums where k = 3) = (select sum(v) from a where k = 3)";
            if value(&app, sql).await == "true" { Ok(()) } else { Err("it has not".to_owned()) }
        })
        .await;
        println!("  PostgreSQL {}: fresh {:.2?} after the kill (20 000 rows)", server.major, begin.elapsed());
        assert_equal(&app, QUERY, "sums", "k, s, n").await;
        // Another one stands by, and leaves nothing behind when it is not needed.
        let mut third = Sidecar::start(&db, &["--standby"]);
        says(&third, "standing by").await;
        assert_eq!(value(&dba, CONTROL).await, "2");
        assert_eq!(third.terminate(SOON).await, Some(0));
        wait_value(&dba, CONTROL, "1").await;
        assert_eq!(generation(&dba).await, before + 1);
        assert_eq!(spare.terminate(SOON).await, Some(0));
        wait_value(&dba, SESSIONS, "0").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_frozen_wakes_up_behind_its_successor_and_writes_nothing() {
    for_each_major(async |server| {
        let (db, mut first) = served(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        // It stands still with changes on their way; the server gives its sessions up, as it does after a minute without
        // a sign of the machine.
        app.batch_execute("update a set v = v + 1 where id % 3 = 0").await.unwrap();
        first.pause();
        app.batch_execute("update a set v = v + 1 where id % 3 = 1").await.unwrap();
        dba.batch_execute(
            "select pg_terminate_backend(pid) from pg_stat_activity
              where datname = current_database() and application_name like 'pgtrickle:main:%'",
        )
        .await
        .unwrap();
        let mut spare = Sidecar::start(&db, &["--standby"]);
        spare.wait_ready(PATIENCE).await;
        app.batch_execute("delete from a where id % 4 = 1").await.unwrap();
        let passed = "select pgtrickle.wait_for(timeout => '60 s')";
        assert_eq!(value(&app, passed).await, "true");
        let before = generation(&dba).await;
        first.resume();
        says(&first, "another sidecar serves the pipeline main").await;
        app.batch_execute("update a set v = v + 5 where id % 4 = 2").await.unwrap();
        assert_eq!(value(&app, passed).await, "true");
        assert_equal(&app, QUERY, "sums", "k, s, n").await;
        assert_eq!(generation(&dba).await, before, "the one that woke up took the pipeline over");
        let failed = "select count(*) from pgtrickle.pgt_refresh_history where status = 'FAILED' and start_time > now() - interval '1 min'
            and error_message <> 'interrupted; run again at the next start'";
        assert_eq!(value(&dba, failed).await, "0");
        assert_eq!(first.terminate(SOON).await, Some(0));
        assert_eq!(spare.terminate(SOON).await, Some(0));
    })
    .await;
}
