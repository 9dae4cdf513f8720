//! Verifying, repairing, refreshing with a suspended stream table around, mending after a restore, detaching.

use std::sync::{Arc, Mutex};

use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::hazards::Scene;
use super::snapshots::{T, Writers, failure, value};
use crate::harness::database::{APP, TestDatabase, connect};
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};

/// `equal missing surplus` of a verification.
pub(super) async fn verify(client: &Client, name: &str) -> String {
    const SQL: &str =
        "select concat_ws(' ', equal, missing_rows, surplus_rows) from pgtrickle.verify_stream_table($1)";
    let row = client.query_one(SQL, &[&name]).await;
    row.unwrap_or_else(|e| panic!("{name}: {e:?}")).get(0)
}

/// A session that keeps the messages below errors.
async fn listening(url: &str) -> (Client, Arc<Mutex<Vec<String>>>) {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = heard.clone();
    tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notice(n))) => {
                    ear.lock().unwrap().push(format!("{} {}", n.severity(), n.message()));
                }
                Some(Ok(_)) => {}
                _ => return,
            }
        }
    });
    (client, heard)
}

/// Rows that the writers leave alone.
const REST: &str = "insert into t select i, i % 2, 5 from generate_series(901, 920) i;
    create table flag (id int primary key, up boolean); insert into flag values (1, true);";

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_row_is_found_under_live_writes_and_none_is_invented() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, &format!("{T} {REST}")).await;
        scene.create("keyed", "select id, v, n from t").await;
        scene.create("bag", "select v, n from t where id > 200 and id < 1000").await;
        scene.create("sums", "select v % 7 as k, sum(n) as s, count(*) as c from t group by 1").await;
        scene.create("flags", "select id, up from flag").await;
        let names = ["keyed", "bag", "sums", "flags"];
        let writers = Writers::start(&scene.db).await;
        // Two images that take turns: what is missing now may be missing again at the next look.
        let toggler = scene.db.as_app().await;
        let toggling = tokio::spawn(async move {
            while toggler.batch_execute("update flag set up = not up").await.is_ok() {}
        });
        for _ in 0..6 {
            for name in names {
                assert_eq!(verify(&scene.app, name).await, "t 0 0", "{name}");
            }
        }
        scene
            .dba
            .batch_execute(
                "begin; set local session_replication_role = replica;
                 update app.keyed set n = 6 where id = 901; delete from app.keyed where id in (902, 903);
                 delete from app.bag where ctid = (select min(ctid) from app.bag); insert into app.bag (v, n) values (44, 1), (44, 1);
                 insert into app.sums values (-1, 0, 0); commit",
            )
            .await
            .unwrap();
        for _ in 0..3 {
            assert_eq!(verify(&scene.app, "keyed").await, "f 3 1");
            assert_eq!(verify(&scene.app, "bag").await, "f 1 2");
            assert_eq!(verify(&scene.app, "sums").await, "f 0 1");
            assert_eq!(verify(&scene.app, "flags").await, "t 0 0");
        }
        for name in ["keyed", "bag", "sums"] {
            let told = value(&scene.app, &format!("select pgtrickle.repair_stream_table('{name}')")).await;
            assert!(told.starts_with(&format!("app.{name}: ")) && told.ends_with(" deleted"), "{told}");
            assert_eq!(verify(&scene.app, name).await, "t 0 0", "{name}");
        }
        toggling.abort();
        assert!(writers.stop().await > 0);
        scene.check(&names).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_writes_nothing_to_an_intact_stream_table_and_the_difference_to_a_broken_one() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.create("keyed", "select id, v, n from t").await;
        scene.create("bag", "select v, n from t").await;
        scene.run("select pgtrickle.create_stream_table('whole', 'select v, n from t', refresh_mode => 'FULL')").await;
        scene.wait_status("whole", "ACTIVE FULL").await;
        let repair = async |name: &str| value(&scene.app, &format!("select pgtrickle.repair_stream_table('{name}')")).await;
        for name in ["keyed", "bag", "whole"] {
            assert_eq!(repair(name).await, format!("app.{name}: no difference"));
        }
        let damage = "begin; set local session_replication_role = replica; update app.keyed set n = n + 1 where id in (1, 2);
            delete from app.keyed where id = 3; insert into app.keyed values (7777, 1, 1); delete from app.bag where v = 1;
            update app.whole set n = n + 1 where v = 2; commit";
        scene.dba.batch_execute(damage).await.unwrap();
        assert_eq!(repair("keyed").await, "app.keyed: 1 rows inserted, 2 updated, 1 deleted");
        assert_eq!(repair("bag").await, "app.bag: 40 rows inserted, 0 updated, 0 deleted");
        assert_eq!(repair("whole").await, "app.whole: 40 rows inserted, 0 updated, 40 deleted");
        scene.check(&["keyed", "bag"]).await;
        for (sql, state) in [
            ("begin isolation level repeatable read; select pgtrickle.repair_stream_table('bag')", "25001"),
            ("begin isolation level repeatable read; select * from pgtrickle.verify_stream_table('bag')", "25001"),
            ("begin; insert into t values (5000, 1, 1); select pgtrickle.repair_stream_table('bag')", "25001"),
        ] {
            assert_eq!(failure(&scene.app, sql).await.0, state, "{sql}");
            scene.run("rollback").await;
        }
        // What is missing around it comes back; the sidecar can only see that after the commit.
        let id = scene.column("bag", "pgt_id").await.unwrap();
        scene
            .dba
            .batch_execute(&format!(
                "drop function pgtrickle_queries.apply_{id}; drop trigger pgtrickle_guard on app.bag; revoke select on app.bag from pgtrickle;
                 set session_replication_role = replica; delete from app.bag where v = 3"
            ))
            .await
            .unwrap();
        let told = repair("bag").await;
        assert!(told.contains(&format!("made again: function apply_{id}, guard")) && told.contains("after the commit"), "{told}");
        scene.check_in_time(&["bag"]).await;
        assert_eq!(failure(&scene.app, "delete from bag").await.0, "55000");
        scene.run("select pgtrickle.suspend_stream_table('bag')").await;
        assert_eq!(failure(&scene.app, "select pgtrickle.repair_stream_table('bag')").await.0, "22023");
        assert_eq!(failure(&scene.app, "select pgtrickle.repair_stream_table('nosuch')").await.0, "42P01");
        scene.run("select pgtrickle.resume_stream_table('bag')").await;
        scene.check_in_time(&["bag", "keyed"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        // Without a sidecar the functions do the work themselves.
        scene.dba.batch_execute(damage).await.unwrap();
        assert_eq!(verify(&scene.app, "keyed").await, "f 3 3");
        assert_eq!(repair("keyed").await, "app.keyed: 1 rows inserted, 2 updated, 1 deleted");
        assert_eq!(repair("keyed").await, "app.keyed: no difference");
        assert_eq!(verify(&scene.app, "keyed").await, "t 0 0");
        scene.sidecar.start_again();
        scene.check_in_time(&["bag", "keyed"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_suspended_stream_table_does_not_keep_the_others_from_being_refreshed() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let dba = db.as_dba().await;
        dba.batch_execute("create schema elsewhere authorization app; grant usage on schema elsewhere to pgtrickle").await.unwrap();
        let (app, heard) = listening(&db.url(APP)).await;
        app.batch_execute(
            "create table t (id int primary key);
             select pgtrickle.create_stream_table('a', 'select id from t');
             select pgtrickle.create_stream_table('b', 'select id from t');
             select pgtrickle.create_stream_table('gone', 'select id from t');
             select pgtrickle.create_stream_table('elsewhere.unique_there', 'select id from app.t');
             select pgtrickle.create_stream_table('elsewhere.\"B d\"', 'select id from app.t');
             select pgtrickle.create_stream_table('elsewhere.a', 'select id from app.t');
             insert into t values (1); select pgtrickle.suspend_stream_table('b'); drop table gone;
             set search_path = public",
        )
        .await
        .unwrap();
        heard.lock().unwrap().clear();
        app.batch_execute("select pgtrickle.refresh_stream_table(pgt_name) from pgtrickle.stream_tables_info").await.unwrap();
        for (table, rows) in [("app.a", "1"), ("elsewhere.a", "1"), ("app.b", "0"), ("elsewhere.unique_there", "1"), ("elsewhere.\"B d\"", "1")] {
            assert_eq!(value(&app, &format!("select count(*) from {table}")).await, rows, "{table}");
        }
        let heard: Vec<String> = std::mem::take(&mut *heard.lock().unwrap());
        assert!(heard.iter().all(|m| m.starts_with("WARNING ")), "{heard:?}");
        assert!(heard.iter().any(|m| m.contains("app.b was not refreshed: its status is SUSPENDED")), "{heard:?}");
        assert!(heard.iter().any(|m| m.contains("app.gone was not refreshed: its table was dropped")), "{heard:?}");
        assert!(heard.iter().any(|m| m.contains("elsewhere.a was recomputed; no sidecar is running")), "{heard:?}");
        let skipped = "select string_agg(pgt_name || ' ' || status || ' ' || sqlstate, ', ' order by pgt_name) from pgtrickle.pgt_refresh_history where action = 'SKIP'";
        assert_eq!(value(&app, skipped).await, "b SKIPPED 55000, gone SKIPPED 42P01");
        assert_eq!(failure(&app, "select pgtrickle.refresh_stream_table('nosuch')").await.0, "42P01");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restore_left_out_is_made_again_and_ids_go_on() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let bob = format!("bob_{}", db.name);
        dba.batch_execute(&format!("create role {bob} login; select pgtrickle.grant_usage('{bob}'); create schema bob authorization {bob}")).await.unwrap();
        let other = connect(&db.url(&bob)).await;
        other
            .batch_execute("create table bob.t (id int primary key); select pgtrickle.create_stream_table('bob.st', 'select id from bob.t')")
            .await
            .unwrap();
        app.batch_execute(&format!("{T} select pgtrickle.create_stream_table('bag', 'select v, n from t');
            select pgtrickle.create_stream_table('lost', 'select id from t where v = 1')")).await.unwrap();
        let report = async |client: &Client| {
            value(client, "select string_agg(stream_table || ': ' || result, E'\\n' order by stream_table) from pgtrickle.restore_stream_tables()").await
        };
        assert_eq!(report(&dba).await, "app.bag: intact\napp.lost: intact\nbob.st: intact");
        dba.batch_execute(
            "drop function pgtrickle_queries.recompute_2(); drop trigger pgtrickle_guard on app.bag; drop index app.bag___pgt_row_id_idx;
             revoke all on app.bag from pgtrickle; drop table app.lost; drop view pgtrickle_queries.lost_3;
             insert into pgtrickle.pgt_refresh_history (refresh_id, pgt_id, action, status) values (5000, 2, 'FULL', 'RUNNING');
             alter sequence pgtrickle.pgt_stream_tables_pgt_id_seq restart",
        )
        .await
        .unwrap();
        // Each for the own ones: the sequences and histories are everybody's.
        let told = report(&other).await;
        assert!(told.contains("(catalog): sequences raised: ") && told.ends_with("bob.st: intact"), "{told}");
        assert!(told.contains("1 interrupted refreshes marked as failed"), "{told}");
        assert_eq!(
            report(&dba).await,
            "app.bag: made again: function recompute_2, guard, index of row ids, grants to pgtrickle\n\
             app.lost: made again: view, table, guard, grants to pgtrickle\nbob.st: intact"
        );
        assert_eq!(report(&app).await, "app.bag: intact\napp.lost: intact");
        let owners = "select string_agg(distinct o, ',') from (select relowner::regrole::text from pg_class where relname in ('bag', 'lost', 'lost_3')
            union all select proowner::regrole::text from pg_proc where pronamespace = 'pgtrickle_queries'::regnamespace and proname !~ '_1$') x (o)";
        assert_eq!(value(&dba, owners).await, "app");
        app.batch_execute("select pgtrickle.create_stream_table('next', 'select id from t'); select pgtrickle.refresh_stream_table('lost')").await.unwrap();
        assert_eq!(value(&app, "select max(pgt_id) || ' ' || (select count(*) from lost) from pgtrickle.pgt_stream_tables").await, "4 40");
        assert_eq!(value(&dba, "select min(refresh_id) > 5000 from pgtrickle.pgt_refresh_history where pgt_name = 'next'").await, "true");
        assert_eq!(value(&dba, "select status || ' ' || error_message from pgtrickle.pgt_refresh_history where refresh_id = 5000").await, "FAILED interrupted; run again at the next start");
        // One that cannot be mended does not stop the others.
        dba.batch_execute("drop table app.lost; create table app.lost (x int); drop trigger pgtrickle_guard on app.bag").await.unwrap();
        let told = report(&app).await;
        assert!(told.contains("app.lost: failed: table app.lost is not the one of the stream table") && told.contains("app.bag: made again: guard"), "{told}");
        dba.batch_execute("drop table app.lost").await.unwrap();
        assert!(report(&app).await.contains("app.lost: made again: table, guard"));
        // All of it is there for the sidecar.
        let mut sidecar = crate::harness::Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        for name in ["bag", "lost"] {
            wait_until("the stream tables to be right", SOON, || async {
                let told = verify(&app, name).await;
                if told == "t 0 0" { Ok(()) } else { Err(told) }
            })
            .await;
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        drop(other);
        dba.batch_execute(&format!("drop owned by {bob} cascade; drop role {bob}")).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_pipeline_leaves_no_slot_behind_and_touches_no_other() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.create("bag", "select v, n from t").await;
        let detach = "select pgtrickle.detach('main', '200 ms')";
        let refused = scene.app.batch_execute(detach).await.unwrap_err();
        assert_eq!(refused.code().map(|c| c.code()), Some("42501"));
        assert_eq!(failure(&scene.dba, "select pgtrickle.detach('nosuch')").await.0, "22023");
        let told = value(&scene.dba, detach).await;
        assert!(told.starts_with("detaching: the sidecar"), "{told}");
        let since = value(&scene.dba, "select detached_at from pgtrickle.pgt_pipelines").await;
        assert!(!since.is_empty());
        // Whether it has left by now is the sidecar's affair; here it is ended.
        scene.sidecar.kill9();
        let strange = format!("other_{}", scene.db.name);
        scene
            .dba
            .execute("select pg_create_logical_replication_slot($1::text::name, 'pgoutput')", &[&strange])
            .await
            .unwrap();
        let sidecar = scene.db.as_sidecar().await;
        let told = value(&sidecar, "select pgtrickle.detach()").await;
        assert!(told.starts_with("detached: "), "{told}");
        let slots =
            "select string_agg(slot_name, ',') from pg_replication_slots where database = current_database()";
        assert_eq!(value(&scene.dba, slots).await, strange);
        // A slot under our name in the catalog that is not of our form stays.
        scene.dba.execute("update pgtrickle.pgt_pipelines set slot_name = $1", &[&strange]).await.unwrap();
        assert!(value(&scene.dba, "select pgtrickle.detach()").await.contains("no replication slot"));
        assert_eq!(value(&scene.dba, slots).await, strange);
        let attach = "select pgtrickle.attach()";
        assert!(value(&scene.dba, attach).await.starts_with("attached: "));
        assert!(value(&scene.dba, attach).await.contains("was not detached"));
        scene.run("insert into t values (999, 9, 9)").await;
        scene.sidecar.start_again();
        scene.check_in_time(&["bag"]).await;
    })
    .await;
}
