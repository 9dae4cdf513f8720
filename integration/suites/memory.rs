//! Memory has a limit: what does not fit is recomputed, what comes at once is bounded or read as rows instead.

use super::monitoring::{free_port, get, value_of};
use crate::harness::database::TestDatabase;
use crate::harness::oracle::assert_equal;
use crate::harness::servers::for_each_major;
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};

const ROWS: i32 = 60_000;
const QUERY: &str = "select id, v, pad from t where v % 2 = 0";

async fn prepared(server: &crate::harness::servers::Server) -> (TestDatabase, tokio_postgres::Client) {
    let db = TestDatabase::create(server).await;
    db.install();
    let app = db.as_app().await;
    app.batch_execute(&format!(
        "create table t (id int primary key, v int, pad text);
         insert into t select i, i, repeat(md5(i::text), 10) from generate_series(1, {ROWS}) i;
         create table small (id int primary key, v int);
         insert into small select i, i from generate_series(1, 10) i;
         analyze"
    ))
    .await
    .unwrap();
    (db, app)
}

async fn status(app: &tokio_postgres::Client) -> String {
    const SQL: &str = "select string_agg(concat_ws(' ', pgt_name, status, refresh_mode, refresh_reason), '; ' order by pgt_name)
        from pgtrickle.stream_tables_info";
    app.query_one(SQL, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_table_that_does_not_fit_is_recomputed_and_says_why() {
    for_each_major(async |server| {
        let (db, app) = prepared(server).await;
        let mut sidecar = Sidecar::start(&db, &["--memory-limit", "16MiB"]);
        sidecar.wait_ready(SOON).await;
        app.execute("select pgtrickle.create_stream_table('big', $1)", &[&QUERY]).await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('little', 'select id, v from small')")
            .await
            .unwrap();
        wait_until("both are active", SOON, || async {
            let now = status(&app).await;
            match now.contains("big ACTIVE FULL its sources need about")
                && now.contains("little ACTIVE DIFFERENTIAL")
            {
                true => Ok(()),
                false => Err(now),
            }
        })
        .await;
        app.batch_execute(
            "update t set v = v + 1 where id < 100; select pgtrickle.refresh_stream_table('big')",
        )
        .await
        .unwrap_err(); // One batch is one transaction: it can't wait for itself.
        app.batch_execute("update t set v = v + 1 where id < 100").await.unwrap();
        app.batch_execute("select pgtrickle.refresh_stream_table('big')").await.unwrap();
        assert_equal(&app, QUERY, "big", "id, v, pad").await;
        let refused = app
            .execute(
                "select pgtrickle.create_stream_table('no', $1, refresh_mode => 'DIFFERENTIAL')",
                &[&QUERY],
            )
            .await
            .unwrap_err();
        assert_eq!(refused.code().map(|c| c.code()), Some("53200"), "{refused:?}");
    })
    .await;
}

/// Peak resident memory of a process, in MB.
fn peak_mb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_and_a_long_backlog_stay_within_the_limit() {
    for_each_major(async |server| {
        let (db, app) = prepared(server).await;
        const LIMIT_MB: u64 = 160;
        let limit = format!("{LIMIT_MB}MB");
        let http = free_port();
        let address = format!("127.0.0.1:{http}");
        let mut sidecar = Sidecar::start(&db, &["--memory-limit", &limit, "--http", &address]);
        sidecar.wait_ready(SOON).await;
        app.execute(
            "select pgtrickle.create_stream_table('st', $1, refresh_mode => 'DIFFERENTIAL')",
            &[&QUERY],
        )
        .await
        .unwrap();
        let fresh = async || {
            let sql = "select pgtrickle.wait_for(timeout => interval '60 s')";
            let passed: bool = app.query_one(sql, &[]).await.unwrap().get(0);
            assert!(passed, "the frontier did not pass");
            wait_until("the stream table is active", SOON, || async {
                let now = status(&app).await;
                if now.contains("st ACTIVE DIFFERENTIAL") { Ok(()) } else { Err(now) }
            })
            .await;
            assert_equal(&app, QUERY, "st", "id, v, pad").await;
        };
        fresh().await;
        // One transaction of several times its budget (an eighth of the limit).
        app.batch_execute(
            "begin; update t set v = v + 1; update t set v = v + 2; update t set v = v + 1; commit",
        )
        .await
        .unwrap();
        fresh().await;
        // A backlog of ten times the table while the sidecar is away.
        sidecar.kill9();
        for _ in 0..10 {
            app.batch_execute("update t set v = v + 1").await.unwrap();
        }
        sidecar.start_again();
        sidecar.wait_ready(SOON).await;
        fresh().await;
        // And one that arrives while it can't read.
        sidecar.pause();
        for _ in 0..10 {
            app.batch_execute("update t set v = v + 1 where id % 3 = 0").await.unwrap();
        }
        sidecar.resume();
        fresh().await;
        let peak = peak_mb(sidecar.pid());
        // It was not taken in at once, and whoever watches is told so.
        let metrics = get(http, "/metrics").await.unwrap();
        let held_back = value_of(&metrics, "backpressure_seconds_total");
        assert!(held_back > 0.0, "{metrics}");
        assert_eq!(value_of(&metrics, "memory_backpressure_active"), 0.0);
        println!("PostgreSQL {}: held back for {held_back:.1} s", server.major);
        println!("PostgreSQL {}: peak memory {peak} MB under a limit of {LIMIT_MB} MB", server.major);
        assert!(peak < 2 * LIMIT_MB, "peak memory {peak} MB under a limit of {LIMIT_MB} MB");
    })
    .await;
}
