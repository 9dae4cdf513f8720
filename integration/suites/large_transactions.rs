//! Transactions that go through the dataflow while they arrive: what anybody reads is still one commit boundary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::Client;

use crate::harness::database::TestDatabase;
use crate::harness::oracle::assert_equal;
use crate::harness::servers::for_each_major;
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};

const ROWS: i64 = 1_000;

/// Name, query, columns, schedule.
const VIEWS: [(&str, &str, &str, &str); 4] = [
    ("copied", "select id, v from t", "id, v", "calculated"),
    ("counted", "select v, count(*) as n from t group by v", "v, n", "calculated"),
    ("joined", "select a.id, b.v from t a join t b on b.id = a.id", "id, v", "calculated"),
    ("now_and_then", "select id, v from t where id % 2 = 0", "id, v", "1s"),
];

async fn create(app: &Client, name: &str, query: &str, schedule: &str) {
    let sql = "select pgtrickle.create_stream_table($1, $2, schedule => $3)";
    app.execute(sql, &[&name, &query, &schedule]).await.unwrap();
}

async fn active(app: &Client) {
    wait_until("all stream tables are active", SOON, || async {
        let sql = "select string_agg(concat_ws(' ', pgt_name, status, last_error_message), '; ')
            from pgtrickle.stream_tables_info where status <> 'ACTIVE'";
        let row = app.query_one(sql, &[]).await.map_err(|e| e.to_string())?;
        row.get::<_, Option<String>>(0).map_or(Ok(()), Err)
    })
    .await;
}

/// Looks again and again until told to end; the number of looks. Every row of `t` has the same `v` at every commit.
async fn watch(reader: Client, stop: Arc<AtomicBool>) -> usize {
    let sql = "select v from copied union all select v from counted union all select v from joined";
    let sql = format!("select count(distinct v), min(v), max(v) from ({sql}) s");
    let sql_alone = "select count(distinct v) from now_and_then";
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        let row = reader.query_one(&sql, &[]).await.unwrap();
        let (values, least, most): (i64, i32, i32) = (row.get(0), row.get(1), row.get(2));
        assert_eq!(values, 1, "half a transaction was shown: {least} beside {most}");
        let alone: i64 = reader.query_one(sql_alone, &[]).await.unwrap().get(0);
        assert_eq!(alone, 1, "half a transaction was shown by a stream table with a schedule");
        looks += 1;
    }
    looks
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_large_transactions_whole_while_stream_tables_come_and_go_and_the_stream_breaks() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(&format!(
            "create table t (id int primary key, v int not null);
             insert into t select i, 0 from generate_series(1, {ROWS}) i"
        ))
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        for (name, query, _, schedule) in VIEWS {
            create(&app, name, query, schedule).await;
        }
        active(&app).await;
        let stop = Arc::new(AtomicBool::new(false));
        let watching = tokio::spawn(watch(db.as_app().await, stop.clone()));
        for round in 0..12 {
            app.batch_execute("update t set v = v + 1").await.unwrap();
            match round {
                3 => create(&app, "late", "select v, id from t", "calculated").await,
                6 => {
                    let sql = "select count(pg_terminate_backend(active_pid)) from pg_replication_slots
                        where database = current_database()";
                    dba.execute(sql, &[]).await.unwrap();
                }
                9 => app.batch_execute("select pgtrickle.drop_stream_table('late')").await.unwrap(),
                10 => create(&app, "late", "select v, id from t", "calculated").await,
                _ => {}
            }
        }
        let passed = "select pgtrickle.wait_for(timeout => interval '60 s')";
        assert!(app.query_one(passed, &[]).await.unwrap().get::<_, bool>(0), "the frontier did not pass");
        active(&app).await;
        app.batch_execute("select pgtrickle.refresh_stream_table('now_and_then')").await.unwrap();
        stop.store(true, Ordering::Relaxed);
        let looks = watching.await.unwrap();
        println!("PostgreSQL {}: {looks} looks", server.major);
        assert!(looks > 0);
        for (name, query, columns, _) in VIEWS {
            assert_equal(&app, query, name, columns).await;
        }
        assert_equal(&app, "select v, id from t", "late", "v, id").await;
    })
    .await;
}
