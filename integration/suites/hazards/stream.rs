//! The stream itself: its publication, positions, and transactions of every kind.

use std::time::{Duration, Instant};

use super::{Scene, sqlstate};
use crate::harness::database::TestDatabase;
use crate::harness::servers::{Server, each, for_each_major, own_cluster};
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};

const T: &str = "create table t (id int primary key, v int not null); insert into t select i, i from generate_series(1, 50) i;
    create table u (id int primary key, v int not null); insert into u select i, i from generate_series(1, 50) i;";

async fn publication(scene: &Scene) -> String {
    scene.dba.query_one("select publication_name from pgtrickle.pgt_pipelines", &[]).await.unwrap().get(0)
}

/// A table that somebody takes out of the publication sends nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn b7_a_table_is_taken_out_of_the_publication() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("copy", "select id, v from t").await;
        let name = publication(&scene).await;
        scene.dba.batch_execute(&format!("alter publication {name} drop table app.t")).await.unwrap();
        scene.run("update t set v = -v where id < 10; delete from t where id = 20").await;
        scene.check_in_time(&["copy"]).await;
    })
    .await;
}

/// Older servers can't decode from before a publication's re-creation; newer ones go on without its changes.
#[tokio::test(flavor = "multi_thread")]
async fn b7_the_publication_is_dropped() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("copy", "select id, v from t").await;
        let name = publication(&scene).await;
        scene.run("update t set v = 0 where id = 1").await;
        scene.dba.batch_execute(&format!("drop publication {name}")).await.unwrap();
        scene.run("update t set v = -v where id < 10; delete from t where id = 20").await;
        scene.check_in_time(&["copy"]).await;
        scene.run("update t set v = 7").await;
        scene.check(&["copy"]).await;
    })
    .await;
}

/// A row filter, a column list, or fewer kinds of changes drop data without a word.
#[tokio::test(flavor = "multi_thread")]
async fn the_publication_is_reduced_by_hand() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("copy", "select id, v from t").await;
        let name = publication(&scene).await;
        let mut ways = vec![format!("alter publication {name} set (publish = 'insert')")];
        if server.major >= 15 {
            ways.push(format!("alter publication {name} set table app.t where (id < 5)"));
            ways.push(format!("alter publication {name} set table app.t (id)"));
        }
        for way in ways {
            scene.dba.batch_execute(&way).await.unwrap();
            scene.run("update t set v = v + 1; delete from t where id = (select max(id) from t)").await;
            scene.check_in_time(&["copy"]).await;
            scene.run("update t set v = v + 1; delete from t where id = (select max(id) from t)").await;
            scene.check(&["copy"]).await;
        }
    })
    .await;
}

/// An idle server flushes a logical message late, and a REPEATABLE READ caller never sees the frontier move.
#[tokio::test(flavor = "multi_thread")]
async fn b8_waiting_on_an_idle_server_is_quick_and_a_caller_that_would_wait_for_ever_is_told() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("copy", "select id, v from t").await;
        scene.run("insert into t values (1000, 1)").await;
        for _ in 0..5 {
            let started = Instant::now();
            scene.passed().await;
            scene.run("select pgtrickle.refresh_stream_table('copy')").await;
            assert!(started.elapsed() < Duration::from_secs(4), "waiting took {:?}", started.elapsed());
        }
        for level in ["repeatable read", "serializable"] {
            scene.run(&format!("begin isolation level {level}; select 1 from t")).await;
            scene.dba.batch_execute("insert into app.t select max(id) + 1, 1 from app.t").await.unwrap();
            let outcome = scene.app.query("select pgtrickle.wait_for()", &[]).await;
            assert_eq!(sqlstate(outcome), "25001", "{level}");
            scene.run("rollback").await;
        }
        scene.run("begin; insert into t values (2000, 1)").await;
        assert_eq!(
            sqlstate(scene.app.query("select pgtrickle.refresh_stream_table('copy')", &[]).await),
            "25001"
        );
        scene.run("rollback").await;
        // It holds a lock that the apply waits for: no deadlock is ever seen by the server.
        scene.run("begin; select 1 from copy for update").await;
        scene.dba.batch_execute("update app.t set v = v + 1").await.unwrap();
        let started = Instant::now();
        let outcome = scene.app.query("select pgtrickle.wait_for()", &[]).await;
        let (state, took) = (sqlstate(outcome), started.elapsed());
        assert!(
            ["55P03", ""].contains(&state.as_str()) && took < Duration::from_secs(15),
            "{state} after {took:?}"
        );
        scene.run("rollback").await;
        scene.check_in_time(&["copy"]).await;
    })
    .await;
}

/// An idle pipeline's frontier moves, so that the slot holds no WAL for it, and the acknowledgement stays behind it.
#[tokio::test(flavor = "multi_thread")]
async fn c1_the_acknowledgement_never_passes_the_stored_frontier() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("copy", "select id, v from t").await;
        scene.dba.batch_execute("create table public.noise (i int)").await.unwrap();
        // The slot is read first: what it shows was stored before.
        const SQL: &str = "select confirmed_flush_lsn, pg_current_wal_insert_lsn() from pg_replication_slots where database = current_database()";
        const STORED: &str = "select frontier from pgtrickle.pgt_pipelines";
        use tokio_postgres::types::PgLsn;
        let start: PgLsn = scene.dba.query_one(STORED, &[]).await.unwrap().get(0);
        let began = Instant::now();
        let target = loop {
            scene.dba.batch_execute("insert into public.noise select generate_series(1, 100)").await.unwrap();
            if began.elapsed().as_millis().is_multiple_of(3) {
                scene.run("update t set v = v + 1 where id = 1").await;
            }
            let slot = scene.dba.query_one(SQL, &[]).await.unwrap();
            let (acknowledged, current): (PgLsn, PgLsn) = (slot.get(0), slot.get(1));
            let stored: PgLsn = scene.dba.query_one(STORED, &[]).await.unwrap().get(0);
            assert!(acknowledged <= stored, "acknowledged {acknowledged}, stored {stored}");
            if began.elapsed() > Duration::from_secs(2) {
                break current;
            }
        };
        // Now idle for the sources: others' WAL must not be held back.
        assert!(target > start);
        wait_until("the slot to pass others' WAL", SOON, || async {
            let slot = scene.dba.query_one(SQL, &[]).await.unwrap();
            let stored: PgLsn = scene.dba.query_one(STORED, &[]).await.unwrap().get(0);
            let acknowledged: PgLsn = slot.get(0);
            assert!(acknowledged <= stored, "acknowledged {acknowledged}, stored {stored}");
            if acknowledged >= target { Ok(()) } else { Err(format!("{acknowledged} < {target}")) }
        })
        .await;
    })
    .await;
}

/// Prepared, spilled, sub- and rolled back transactions; TRUNCATE; keys that move through each other.
#[tokio::test(flavor = "multi_thread")]
async fn c8_transactions_of_every_kind_arrive_whole() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("copy", "select id, v from t").await;
        scene.create("joined", "select t.id, t.v, u.v as w from t left join u on u.id = t.id").await;
        scene.create("sums", "select v % 5 as k, count(*) as n, sum(id) as s from t group by 1").await;
        let names = ["copy", "joined", "sums"];
        scene.run("begin; update t set v = 1 where id = 1; prepare transaction 'c8'; update t set v = 2 where id = 2").await;
        scene.check(&names).await;
        scene.run("commit prepared 'c8'").await;
        scene.run("begin; insert into t values (100, 1); savepoint a; insert into t values (101, 1); savepoint b; delete from t where id = 3;
            rollback to a; insert into t values (102, 1); release a; commit").await;
        scene.run("begin; delete from t; rollback").await;
        scene.check(&names).await;
        // Larger than logical_decoding_work_mem can be.
        scene.dba.batch_execute("insert into app.t select i, i from generate_series(1000, 9000) i").await.unwrap();
        scene.run("update t set id = -id where id >= 1000").await;
        scene.run("begin; truncate t, u; insert into t values (1, 1), (2, 2), (3, 3); insert into u values (2, 2); commit").await;
        scene.check(&names).await;
        scene.run("begin; update t set id = 9 where id = 1; update t set id = 1 where id = 2; update t set id = 2 where id = 9;
            delete from t where id = 3; insert into t values (3, 33); commit").await;
        scene.run("truncate u").await;
        scene.check(&names).await;
    })
    .await;
}

/// Triggers may sleep, the WAL does not: replication roles and replicated changes are captured.
#[tokio::test(flavor = "multi_thread")]
async fn a4_changes_made_as_a_replica_or_by_a_subscription_are_captured() {
    for_each_major(async |server| {
        for arguments in [&[][..], &["--cdc-mode", "trigger"]] {
            as_a_replica_or_by_a_subscription(server, arguments).await;
        }
    })
    .await;
}

async fn as_a_replica_or_by_a_subscription(server: &'static Server, arguments: &[&str]) {
    let scene = Scene::start_with(server, T, arguments).await;
    scene.create("copy", "select id, v from t").await;
    scene.dba.batch_execute("set session_replication_role = replica; update app.t set v = -v where id < 5; delete from app.t where id = 9; set session_replication_role = origin").await.unwrap();
    scene.check(&["copy"]).await;

    let origin = crate::harness::database::TestDatabase::create(server).await;
    let there = origin.as_dba().await;
    there
        .batch_execute(
            "create table app.t (id int primary key, v int not null); create publication p for table app.t",
        )
        .await
        .unwrap();
    let slot = format!("sub_{}", origin.name);
    there.execute("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.unwrap();
    let subscription = format!(
        "create subscription s connection 'host=127.0.0.1 port={} user=dba dbname={}' publication p with (create_slot = false, slot_name = '{slot}', copy_data = false)",
        origin.port(),
        origin.name
    );
    scene.dba.batch_execute(&subscription).await.unwrap();
    if !arguments.is_empty() {
        // What arrives through a subscription fires row triggers only; the sidecar notices within a second or two.
        wait_until("row triggers", SOON, || async {
            const ROW: &str = "select count(*) from pg_trigger where tgrelid = 'app.t'::regclass
                and tgname like 'pgtrickle_capture%' and tgtype & 1 = 1 and tgenabled = 'A'";
            let n: i64 = scene.dba.query_one(ROW, &[]).await.unwrap().get(0);
            if n == 3 { Ok(()) } else { Err(n.to_string()) }
        })
        .await;
        scene.check_in_time(&["copy"]).await;
    }
    there.batch_execute("insert into app.t select i, i from generate_series(500, 600) i; update app.t set v = 0 where id < 550; delete from app.t where id = 599").await.unwrap();
    wait_until("the subscription to deliver", SOON, || async {
        let n: i64 =
            scene.dba.query_one("select count(*) from app.t where id >= 500", &[]).await.unwrap().get(0);
        if n == 100 { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    scene.check(&["copy"]).await;
    scene
        .dba
        .batch_execute(
            "alter subscription s disable; alter subscription s set (slot_name = none); drop subscription s",
        )
        .await
        .unwrap();
}

/// A request has a transaction id, and making a slot waits for everybody who has one.
#[tokio::test(flavor = "multi_thread")]
async fn b8_a_caller_that_waits_does_not_hold_up_the_slot_that_it_waits_for() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, dba, writer) = (db.as_app().await, db.as_dba().await, db.as_app().await);
        app.batch_execute(T).await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('copy', 'select id, v from t')").await.unwrap();
        writer.batch_execute("begin; insert into t values (100, 100)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        let making = "select count(*) from pg_stat_activity where query like '%pg_create_logical_replication_slot%'
            and application_name = 'pgtrickle:main:control' and wait_event_type = 'Lock'";
        let one = async |sql: &str| dba.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
        wait_until("the slot to wait for the writer", SOON, || async {
            if one(making).await == 1 { Ok(()) } else { Err("it does not".to_owned()) }
        })
        .await;
        let waits = tokio::spawn(async move {
            app.query_one("select pgtrickle.wait_for(timeout => '60 s')", &[]).await.unwrap().get::<_, bool>(0)
        });
        wait_until("the caller to wait", SOON, || async {
            let sleeping = "select count(*) from pg_stat_activity where query like '%wait_for(timeout%' and wait_event = 'PgSleep'";
            if one(sleeping).await == 1 { Ok(()) } else { Err("it does not".to_owned()) }
        })
        .await;
        let ids = "select count(*) from pg_stat_activity where query like '%wait_for(timeout%' and backend_xid is not null
            and pid <> pg_backend_pid()";
        assert_eq!(one(ids).await, 0, "it has a transaction id");
        writer.batch_execute("commit").await.unwrap();
        assert!(waits.await.unwrap(), "the caller and the slot waited for each other");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A reader that comes right after a rename is not in the way of its stream table.
#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_stream_table_is_followed_beside_its_readers() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.create("copy", "select id, v from t").await;
        scene.create("other", "select count(*) as n from u").await;
        let reader = scene.db.as_app().await;
        reader
            .batch_execute("begin; alter table copy rename to renamed; commit; begin; select count(*) from renamed")
            .await
            .unwrap();
        wait_until("the rename to be followed", SOON, || async {
            let sql = "select coalesce(string_agg(pgt_name, ' ' order by pgt_name), '') from pgtrickle.stream_tables_info";
            let names: String = scene.dba.query_one(sql, &[]).await.unwrap().get(0);
            if names == "other renamed" { Ok(()) } else { Err(names) }
        })
        .await;
        scene.run("update t set v = v + 1").await;
        scene.check_in_time(&["renamed", "other"]).await;
        reader.batch_execute("commit").await.unwrap();
        scene.run("insert into t values (100, 100); insert into u values (100, 100)").await;
        scene.check(&["renamed", "other"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
