//! Snapshots of stream tables: what they hold, who may use them, and writing them back under a living sidecar.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::hazards::Scene;
use crate::harness::database::{APP, SIDECAR, TestDatabase, connect, pgtrickle, printed};
use crate::harness::servers::{SUPERUSER, for_each_major};
use crate::harness::wait::{SOON, wait_until};

pub(super) const T: &str = "create table t (id int primary key, v int not null, n numeric not null);
    insert into t select i, i % 5, i * 1.10 from generate_series(1, 200) i;";

/// SQLSTATE and message of a statement that must fail.
pub(super) async fn failure(client: &Client, sql: &str) -> (String, String) {
    let error = match client.batch_execute(sql).await {
        Ok(()) => panic!("this should have failed: {sql}"),
        Err(error) => error,
    };
    let db = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    assert!(db.hint().is_some(), "no hint: {sql}: {db}");
    (db.code().code().to_owned(), db.message().to_owned())
}

/// First column of the first row as text.
pub(super) async fn value(client: &Client, sql: &str) -> String {
    let row = client.query_one(&format!("select ({sql})::text"), &[]).await;
    row.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get::<_, Option<String>>(0).unwrap_or_default()
}

/// Rows that only one of two tables has, as a multiset.
async fn differ(client: &Client, left: &str, right: &str, columns: &str) -> i64 {
    let one = |a: &str, b: &str| format!("(select {columns} from {a} except all select {columns} from {b})");
    let sql = format!("select count(*) from ({} union all {}) x", one(left, right), one(right, left));
    client.query_one(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

/// Writes until told to stop.
pub(super) struct Writers {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Writers {
    pub(super) async fn start(db: &TestDatabase) -> Writers {
        let client = db.as_app().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut round = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                let k = round % 200 + 1;
                let sql = format!(
                    "update t set v = v + 1 where id = {k}; update t set n = n + 0.5 where id <= 200 and id % 20 = {};
                     insert into t values ({}, {k}, 1.0); delete from t where id = {}",
                    round % 20,
                    1_000_000 + round,
                    1_000_000 + round as i64 - 50,
                );
                client.batch_execute(&sql).await.unwrap();
                round += 1;
            }
            round
        });
        Writers { stop, task }
    }

    pub(super) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn installed(server: &crate::harness::Server) -> (TestDatabase, Client, Client) {
    let db = TestDatabase::create(server).await;
    db.install();
    let (app, dba) = (db.as_app().await, db.as_dba().await);
    app.batch_execute(T).await.unwrap();
    (db, app, dba)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_a_plain_table_and_what_is_known_about_it_stands_once_beside_it() {
    for_each_major(async |server| {
        let (db, app, dba) = installed(server).await;
        app.batch_execute("select pgtrickle.create_stream_table('bag', 'select v, n from t')").await.unwrap();
        let name = value(&app, "select pgtrickle.snapshot_stream_table('bag')").await;
        assert!(name.starts_with("app.bag_snapshot_2"), "{name}");
        let second = value(&app, "select pgtrickle.snapshot_stream_table('bag')").await;
        assert_ne!(name, second);
        let columns = format!("select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)
            from pg_attribute where attrelid = '{name}'::regclass and attnum > 0");
        assert_eq!(value(&app, &columns).await, "v integer, n numeric");
        assert_eq!(differ(&app, "bag", &name, "v, n").await, 0);
        let kept = "select concat_ws('|', row_count, pgt_name, original_query, data_timestamp is not null, array_to_string(columns, ','))
            from pgtrickle.pgt_snapshots order by 1 limit 1";
        assert_eq!(value(&app, kept).await, "200|bag|select v, n from t|t|v integer,n numeric");
        // Counted, not remembered.
        app.batch_execute(&format!("delete from {second} where v = 1")).await.unwrap();
        let listed = format!("select row_count || ' ' || stream_table || ' ' || (size_bytes > 0) from pgtrickle.list_snapshots('bag') where snapshot_table = '{second}'");
        assert_eq!(value(&app, &listed).await, "160 app.bag true");
        // A target of the caller's choice; without a schema it goes beside the stream table, whatever search_path says.
        app.batch_execute("set search_path = public, app").await.unwrap();
        assert_eq!(value(&app, "select pgtrickle.snapshot_stream_table('bag', 'Mine')").await, "app.mine");
        assert_eq!(value(&app, "select pgtrickle.snapshot_stream_table('app.bag', 'app.\"Mine\"')").await, "app.\"Mine\"");
        // The snapshot belongs to the stream table's owner, whoever makes it, and follows a rename.
        assert_eq!(value(&dba, "select pgtrickle.snapshot_stream_table('app.bag', 'app.by_dba')").await, "app.by_dba");
        assert_eq!(value(&dba, "select relowner::regrole from pg_class where relname = 'by_dba'").await, "app");
        app.batch_execute("alter table by_dba rename to renamed").await.unwrap();
        assert_eq!(value(&app, "select count(*) from pgtrickle.list_snapshots() where snapshot_table = 'app.renamed'").await, "1");
        // One whose table was dropped is not listed, and forgotten with the next.
        app.batch_execute("drop table renamed").await.unwrap();
        assert_eq!(value(&app, "select count(*) from pgtrickle.list_snapshots()").await, "4");
        app.batch_execute("select pgtrickle.snapshot_stream_table('bag', 'again')").await.unwrap();
        assert_eq!(value(&app, "select count(*) from pgtrickle.pgt_snapshots").await, "5");
        app.batch_execute("select pgtrickle.drop_snapshot('again')").await.unwrap();
        assert_eq!(value(&app, "select to_regclass('app.again') is null and count(*) = 4 from pgtrickle.pgt_snapshots").await, "true");
        drop(db);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_snapshots_wrong_columns_and_missing_rights_are_refused_and_change_nothing() {
    for_each_major(async |server| {
        let (db, app, dba) = installed(server).await;
        app.batch_execute(
            "select pgtrickle.create_stream_table('bag', 'select v, n from t');
             select pgtrickle.create_stream_table('other', 'select v, n from t');
             select pgtrickle.create_stream_table('late', 'select v from t', initialize => false);
             select pgtrickle.snapshot_stream_table('bag', 'good'), pgtrickle.snapshot_stream_table('bag', 'fewer'),
                    pgtrickle.snapshot_stream_table('bag', 'wider'), pgtrickle.snapshot_stream_table('other', 'others');
             delete from fewer where v = 1; alter table wider add column x int; create table plain as table bag;
             select pgtrickle.snapshot_stream_table('other', 'kept')",
        )
        .await
        .unwrap_or_else(|e| panic!("{e:?}"));
        let bob = format!("bob_{}", db.name);
        dba.batch_execute(&format!(
            "create role {bob} login; select pgtrickle.grant_usage('{bob}'); grant usage on schema app to {bob};
             alter table app.t add column more int; create schema closed; grant usage on schema closed to app"
        ))
        .await
        .unwrap();
        for (sql, state) in [
            ("snapshot_stream_table('nosuch')", "42P01"),
            ("snapshot_stream_table('late')", "55000"),
            ("snapshot_stream_table('bag', 'good')", "42710"),
            ("snapshot_stream_table('bag', 't')", "42710"),
            ("snapshot_stream_table('bag', 'nosuch.x')", "3F000"),
            ("snapshot_stream_table('bag', 'closed.x')", "42501"),
            ("snapshot_stream_table('bag', 'a.b.c')", "42602"),
            ("restore_from_snapshot('nosuch', 'good')", "42P01"),
            ("restore_from_snapshot('bag', 'nosuch')", "42P01"),
            ("restore_from_snapshot('bag', 'plain')", "42809"),
            ("restore_from_snapshot('bag', 'others')", "42P17"),
            ("restore_from_snapshot('bag', 'fewer')", "42P17"),
            ("restore_from_snapshot('bag', 'wider')", "42P17"),
            ("drop_snapshot('nosuch')", "42P01"),
            ("drop_snapshot('plain')", "42809"),
            ("drop_snapshot('t')", "42809"),
            ("list_snapshots('nosuch')", "42P01"),
        ] {
            let (seen, message) = failure(&app, &format!("select pgtrickle.{sql}")).await;
            assert_eq!(seen, state, "{sql}: {message}");
        }
        let strict = "begin isolation level repeatable read; select pgtrickle.restore_from_snapshot('bag', 'good')";
        assert_eq!(failure(&app, strict).await.0, "25001");
        app.batch_execute("rollback").await.unwrap();
        // Somebody else's.
        let other = connect(&db.url(&bob)).await;
        assert_eq!(value(&other, "select count(*) from pgtrickle.list_snapshots()").await, "0");
        for sql in [
            "snapshot_stream_table('app.bag', 'app.stolen')",
            "restore_from_snapshot('app.bag', 'app.good')",
            "drop_snapshot('app.good')",
        ] {
            assert_eq!(failure(&other, &format!("select pgtrickle.{sql}")).await.0, "42501", "{sql}");
        }
        assert_eq!(differ(&app, "bag", "good", "v, n").await, 0);
        assert_eq!(value(&dba, "select count(*) from pgtrickle.pgt_snapshots").await, "5");
        assert_eq!(value(&dba, "select count(*) from pgtrickle.pgt_refresh_history where action = 'REINITIALIZE'").await, "0");
        dba.batch_execute(&format!("drop owned by {bob}; drop role {bob}")).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_query_is_an_error_unless_the_definition_comes_back_too() {
    for_each_major(async |server| {
        let (_db, app, _dba) = installed(server).await;
        app.batch_execute(
            "set timezone = 'Asia/Tokyo'; select pgtrickle.create_stream_table('st', 'select v, n from t'); set timezone = 'UTC';
             select pgtrickle.snapshot_stream_table('st', 'before');
             select pgtrickle.alter_stream_table('st', query => 'select v, n from t where v > 2')",
        )
        .await
        .unwrap();
        let (state, message) = failure(&app, "select pgtrickle.restore_from_snapshot('st', 'before')").await;
        assert_eq!((state.as_str(), message.contains("another query")), ("42P17", true));
        assert_eq!(value(&app, "select count(*) from st").await, "80");
        app.batch_execute("delete from t where id = 5; select pgtrickle.restore_from_snapshot('st', 'before', restore_definition => true)")
            .await
            .unwrap();
        assert_eq!(value(&app, "select count(*) from st").await, "200");
        let definition = "select original_query || ' ' || (query_settings ->> 'TimeZone') || ' ' || current_setting('timezone') from pgtrickle.pgt_stream_tables";
        assert_eq!(value(&app, definition).await, "select v, n from t Asia/Tokyo UTC");
        // Other columns: the table is made anew.
        app.batch_execute("select pgtrickle.alter_stream_table('st', query => 'select v, sum(n) as s from t group by v')").await.unwrap();
        assert_eq!(failure(&app, "select pgtrickle.restore_from_snapshot('st', 'before')").await.0, "42P17");
        app.batch_execute("select pgtrickle.restore_from_snapshot('st', 'before', true)").await.unwrap();
        assert_eq!(differ(&app, "st", "before", "v, n").await, 0);
        // A query that cannot come back.
        app.batch_execute("select pgtrickle.alter_stream_table('st', query => 'select v from t'); alter table t rename to u").await.unwrap();
        let (state, message) = failure(&app, "select pgtrickle.restore_from_snapshot('st', 'before', true)").await;
        assert_eq!(state, "42P01", "{message}");
        app.batch_execute("alter table u rename to t").await.unwrap();
        // An empty snapshot is a snapshot.
        app.batch_execute(
            "create table e (id int); select pgtrickle.create_stream_table('se', 'select id from e');
             select pgtrickle.snapshot_stream_table('se', 'empty'); insert into e values (1), (1);
             select pgtrickle.refresh_stream_table('se')",
        )
        .await
        .unwrap();
        assert_eq!(value(&app, "select count(*) from se").await, "2");
        app.batch_execute("select pgtrickle.restore_from_snapshot('se', 'empty')").await.unwrap();
        assert_eq!(value(&app, "select count(*) from se").await, "0");
        let last = "select concat_ws(' ', action, rows_inserted, rows_updated, rows_deleted, reason) from pgtrickle.get_refresh_history('se', 1)";
        assert_eq!(value(&app, last).await, "REINITIALIZE 0 0 2 restored from snapshot app.empty");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_one_call_or_of_one_repeatable_read_transaction_show_one_moment() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.create("sums", "select v % 3 as k, sum(n) as s, count(*) as c from t group by 1").await;
        scene.create("bag", "select v, n from t").await;
        let writers = Writers::start(&scene.db).await;
        let same = async |sums: &str, bag: &str| {
            let sql = format!("select (select sum(s) || ' ' || sum(c) from {sums}) = (select sum(n) || ' ' || count(*) from {bag})");
            assert_eq!(value(&scene.app, &sql).await, "true");
            let sql = "select count(distinct frontier) from pgtrickle.pgt_snapshots where snapshot_table in ($1, $2)";
            let frontiers: i64 = scene.app.query_one(sql, &[&sums, &bag]).await.unwrap().get(0);
            assert_eq!(frontiers, 1);
        };
        for round in 0..5 {
            let rows = scene.app.query("select snapshot_table from pgtrickle.snapshot_stream_tables(array['sums', 'bag', 'app.bag'])", &[]).await.unwrap();
            assert_eq!(rows.len(), 2);
            same(rows[0].get(0), rows[1].get(0)).await;
            scene
                .run(&format!(
                    "begin isolation level repeatable read; select pgtrickle.snapshot_stream_table('sums', 's{round}');
                     select pgtrickle.snapshot_stream_table('bag', 'b{round}'); commit"
                ))
                .await;
            same(&format!("app.s{round}"), &format!("app.b{round}")).await;
        }
        assert!(writers.stop().await > 0);
        scene.check(&["sums", "bag"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_under_live_writes_never_end_in_wrong_content() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.create("keyed", "select id, v, n from t").await;
        scene.create("bag", "select v, n from t").await;
        scene.create("above", "select v, count(*) as c from bag group by v").await;
        scene.run("select pgtrickle.snapshot_stream_table('keyed', 'k1'), pgtrickle.snapshot_stream_table('bag', 'b1')").await;
        let before: i64 = scene.dba.query_one("select count(*) from app.t", &[]).await.unwrap().get(0);
        assert_eq!(before, 200);
        let writers = Writers::start(&scene.db).await;
        let reader = scene.db.as_app().await;
        reader.batch_execute("begin; select from keyed, bag limit 1").await.unwrap();
        for round in 0..12 {
            scene.run("select pgtrickle.restore_from_snapshot('keyed', 'k1')").await;
            scene.run("select pgtrickle.restore_from_snapshot('bag', 'b1')").await;
            if round % 3 == 0 {
                for name in ["keyed", "bag", "above"] {
                    scene.wait_status(name, "ACTIVE").await;
                }
            }
        }
        // The open transaction that had read both did not stand in the way.
        reader.batch_execute("select count(*) from keyed; commit").await.unwrap();
        assert!(writers.stop().await > 0);
        scene.check_in_time(&["keyed", "bag", "above"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        // Without a sidecar it keeps the rows; the next start finds them.
        scene.run("select pgtrickle.restore_from_snapshot('bag', 'b1'), pgtrickle.restore_from_snapshot('keyed', 'k1')").await;
        assert_eq!(differ(&scene.app, "bag", "b1", "v, n").await, 0);
        assert_eq!(differ(&scene.app, "keyed", "k1", "id, v, n").await, 0);
        scene.sidecar.start_again();
        scene.check_in_time(&["keyed", "bag", "above"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_stream_table_keeps_the_rows_of_its_snapshot_under_live_writes() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.create("keyed", "select id, v, n from t").await;
        scene.create("bag", "select v, n from t").await;
        scene.create("all", "select id, v from t").await;
        scene.run("select pgtrickle.snapshot_stream_table('keyed', 'k1'), pgtrickle.snapshot_stream_table('bag', 'b1')").await;
        let writers = Writers::start(&scene.db).await;
        for _ in 0..5 {
            scene.run("select pgtrickle.suspend_stream_table('keyed'), pgtrickle.suspend_stream_table('bag')").await;
            scene.run("select pgtrickle.restore_from_snapshot('keyed', 'k1'), pgtrickle.restore_from_snapshot('bag', 'b1')").await;
            // The pipeline has gone on; nothing of it has reached them.
            scene.passed().await;
            // Long enough for another look at the catalog: one more stream table comes.
            scene.run("select pgtrickle.create_stream_table('more', 'select id from t')").await;
            scene.wait_status("more", "ACTIVE").await;
            scene.run("select pgtrickle.drop_stream_table('more')").await;
            assert_eq!(differ(&scene.app, "keyed", "k1", "id, v, n").await, 0);
            assert_eq!(differ(&scene.app, "bag", "b1", "v, n").await, 0);
            assert_eq!(scene.status("bag").await, "SUSPENDED DIFFERENTIAL");
            scene.run("select pgtrickle.resume_stream_table('keyed'), pgtrickle.resume_stream_table('bag')").await;
            for name in ["keyed", "bag"] {
                scene.wait_status(name, "ACTIVE").await;
            }
        }
        assert!(writers.stop().await > 0);
        scene.check_in_time(&["keyed", "bag", "all"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_carries_snapshots_and_may_leave_them_out() {
    for_each_major(async |server| {
        if !server.cluster.install().has_client_tools {
            return;
        }
        let (db, app, _dba) = installed(server).await;
        app.batch_execute(
            "select pgtrickle.create_stream_table('bag', 'select v, n from t');
             select pgtrickle.snapshot_stream_table('bag', 'kept'), pgtrickle.snapshot_stream_table('bag', 'left_out')",
        )
        .await
        .unwrap();
        let copy = TestDatabase::create(server).await;
        let dba = copy.as_dba().await;
        dba.batch_execute("drop schema app").await.unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = std::process::Command::new(server.cluster.install().program(program))
                .args(arguments)
                .output()
                .unwrap();
            assert!(output.status.success(), "{program}: {}", printed(&output));
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dump");
        let file = file.to_str().unwrap();
        run("pg_dump", &["-Fc", "-f", file, "--exclude-table=app.left_out", &db.url(SUPERUSER)]);
        run("pg_restore", &["--exit-on-error", "-d", &copy.url(SUPERUSER), file]);
        let app = copy.as_app().await;
        assert_eq!(value(&app, "select string_agg(snapshot_table || ' ' || row_count, ',') from pgtrickle.list_snapshots()").await, "app.kept 200");
        app.batch_execute("delete from t where id > 10; select pgtrickle.refresh_stream_table('bag')").await.unwrap();
        assert_eq!(value(&app, "select count(*) from bag").await, "10");
        app.batch_execute("select pgtrickle.restore_from_snapshot('bag', 'kept')").await.unwrap();
        assert_eq!(differ(&app, "bag", "kept", "v, n").await, 0);
        // A new one gets a number of its own.
        app.batch_execute("select pgtrickle.snapshot_stream_table('bag', 'newer')").await.unwrap();
        assert_eq!(value(&app, "select count(*) from pgtrickle.list_snapshots('bag')").await, "2");
        let status = pgtrickle(&["status", "--database-url", &copy.url(APP)]);
        assert!(status.status.success(), "{}", printed(&status));
        let _ = (SIDECAR, SOON);
    })
    .await;
}

/// A stream table that is made again on a fresh cluster shows the snapshot's rows before the sidecar has looked at it.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_snapshot_is_seen_before_the_sidecar_has_read_the_sources() {
    for_each_major(async |server| {
        let (db, app, dba) = installed(server).await;
        app.batch_execute(
            "select pgtrickle.create_stream_table('bag', 'select v, n from t');
             select pgtrickle.snapshot_stream_table('bag', 'kept'); select pgtrickle.drop_stream_table('bag');
             select pgtrickle.create_stream_table('bag', 'select v, n from t', initialize => false);
             select pgtrickle.restore_from_snapshot('bag', 'kept'); update t set n = 0 where id <= 3",
        )
        .await
        .unwrap();
        assert_eq!(differ(&app, "bag", "kept", "v, n").await, 0);
        let started = std::time::Instant::now();
        let mut sidecar = crate::harness::Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        println!("rows to read at once; the present answer {:?} after the sidecar's start", started.elapsed());
        wait_until("only the difference to be written", SOON, || async {
            const SQL: &str = "select string_agg(concat_ws(' ', action, rows_inserted, rows_updated, rows_deleted), ', ' order by refresh_id)
                from pgtrickle.pgt_refresh_history where status = 'COMPLETED'";
            let seen = value(&dba, SQL).await;
            if seen == "REINITIALIZE 200 0 0, INITIAL 3 0 3" { Ok(()) } else { Err(seen) }
        })
        .await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
