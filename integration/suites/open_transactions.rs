//! Somebody changes a stream table in a transaction that stays open: the others go on, and nothing is wrong afterwards.

use super::hazards::Scene;
use super::maintenance::verify;
use super::snapshots::{T, Writers, failure, value};
use crate::harness::servers::{each, for_each_major};
use crate::harness::wait::{SOON, wait_until};
use crate::harness::{Sidecar, TestDatabase, own_cluster};

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_on_one_stream_table_does_not_stop_the_others() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.create("bag", "select v, n from t").await;
        scene.create("keyed", "select id, v, n from t").await;
        scene.create("other", "select v % 5 as k, count(*) as c from t group by 1").await;
        scene.run("select pgtrickle.snapshot_stream_table('bag', 'b1')").await;
        let generation = scene.generation().await;
        let writers = Writers::start(&scene.db).await;
        let holder = scene.db.as_app().await;
        for (statement, end) in [
            ("select pgtrickle.restore_from_snapshot('bag', 'b1')", "commit"),
            ("select pgtrickle.restore_from_snapshot('bag', 'b1')", "rollback"),
            ("select pgtrickle.suspend_stream_table('bag')", "commit"),
            ("select pgtrickle.resume_stream_table('bag')", "commit"),
            ("select pgtrickle.alter_stream_table('bag', query => 'select v, n from t where v > 0')", "commit"),
            ("select pgtrickle.alter_stream_table('bag', schedule => '1s')", "rollback"),
            ("select pgtrickle.drop_stream_table('bag')", "rollback"),
        ] {
            holder.batch_execute(&format!("begin; {statement}")).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
            // Longer than an apply waits for a lock, as often as not.
            for _ in 0..3 {
                assert_eq!(verify(&scene.app, "other").await, "t 0 0", "{statement}");
                scene.run("select pgtrickle.refresh_stream_table('keyed'), pgtrickle.refresh_stream_table('other')").await;
                wait_until("an apply to give up on a lock", SOON, || async {
                    let waited = "select clock_timestamp() - xact_start > interval '2 s' from pg_stat_activity where pid = $1";
                    let pid: i32 = holder.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
                    match scene.dba.query_one(waited, &[&pid]).await.unwrap().get(0) {
                        true => Ok(()),
                        false => Err("not yet".to_owned()),
                    }
                })
                .await;
            }
            holder.batch_execute(end).await.unwrap();
            if !statement.contains("suspend_stream_table") {
                scene.wait_status("bag", "ACTIVE").await;
            }
        }
        assert!(writers.stop().await > 0);
        scene.check_in_time(&["bag", "keyed", "other"]).await;
        assert_eq!(scene.generation().await, generation, "the pipeline was started again");
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_checks_and_repairs_work_where_changes_are_polled() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(T).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "trigger"]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('keyed', 'select id, v, n from t'), pgtrickle.create_stream_table('bag', 'select v, n from t')")
            .await
            .unwrap();
        let active = async || {
            wait_until("both to be active", SOON, || async {
                let told = value(&app, "select string_agg(status || ' ' || refresh_mode, ',') from pgtrickle.pgt_status()").await;
                if told == "ACTIVE DIFFERENTIAL,ACTIVE DIFFERENTIAL" { Ok(()) } else { Err(told) }
            })
            .await;
        };
        active().await;
        app.batch_execute("select pgtrickle.snapshot_stream_table('keyed', 'k1'), pgtrickle.snapshot_stream_table('bag', 'b1')").await.unwrap();
        let writers = Writers::start(&db).await;
        for _ in 0..3 {
            for name in ["keyed", "bag"] {
                assert_eq!(verify(&app, name).await, "t 0 0", "{name}");
            }
            app.batch_execute("select pgtrickle.restore_from_snapshot('keyed', 'k1')").await.unwrap();
            app.batch_execute("select pgtrickle.restore_from_snapshot('bag', 'b1')").await.unwrap();
            active().await;
        }
        app.batch_execute("select pgtrickle.suspend_stream_table('bag')").await.unwrap();
        app.batch_execute("select pgtrickle.restore_from_snapshot('bag', 'b1')").await.unwrap();
        app.batch_execute("select pgtrickle.wait_for()").await.unwrap();
        assert_eq!(value(&app, "select count(*) from (table b1 except all select v, n from bag) x").await, "0");
        app.batch_execute("select pgtrickle.resume_stream_table('bag')").await.unwrap();
        active().await;
        assert!(writers.stop().await > 0);
        app.batch_execute("select pgtrickle.wait_for()").await.unwrap();
        dba.batch_execute("begin; set local session_replication_role = replica; delete from app.bag where ctid = (select min(ctid) from app.bag);
            insert into app.keyed values (-1, 0, 0); commit").await.unwrap();
        assert_eq!(verify(&app, "bag").await, "f 1 0");
        assert_eq!(verify(&app, "keyed").await, "f 0 1");
        for name in ["keyed", "bag"] {
            let told = value(&app, &format!("select pgtrickle.repair_stream_table('{name}')")).await;
            assert!(told.ends_with("after the commit"), "{told}");
        }
        active().await;
        for name in ["keyed", "bag"] {
            assert_eq!(verify(&app, name).await, "t 0 0", "{name}");
        }
        assert_eq!(failure(&app, "select pgtrickle.repair_stream_table('nosuch')").await.0, "42P01");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A slot that is being made waits for every transaction that has written. Whoever creates a stream table meanwhile waits for the
/// slot first, and one that has written already does not wait for what waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_table_that_is_created_while_the_slot_is_made_waits_for_it_and_does_not_hold_it_up() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, writer, dba) = (db.as_app().await, db.as_app().await, db.as_dba().await);
        app.batch_execute("create table t (id int primary key, v int); insert into t values (1, 1)")
            .await
            .unwrap();
        writer.batch_execute("begin; insert into t values (2, 2)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        wait_until("the slot to be under way", SOON, || async {
            let made = "select count(*) from pg_replication_slots where confirmed_flush_lsn is null";
            if value(&dba, made).await == "1" { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
        // It has written: decided without an answer, and at once, for the slot waits for this very transaction.
        writer
            .batch_execute(
                "select pgtrickle.create_stream_table('early', 'select id, v from t', initialize => false)",
            )
            .await
            .unwrap();
        let late = "select pgtrickle.create_stream_table('late', 'select id, v from t')";
        let creation = tokio::spawn(async move { app.batch_execute(late).await });
        wait_until("the creation to wait", SOON, || async {
            let asleep =
                "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and query like '%late%'";
            if value(&dba, asleep).await == "1" { Ok(()) } else { Err("it does not".to_owned()) }
        })
        .await;
        writer.batch_execute("commit").await.unwrap();
        creation.await.unwrap().unwrap();
        sidecar.wait_ready(SOON).await;
        let key = "select key_columns::text from pgtrickle.stream_tables_info where pgt_name = 'late'";
        assert_eq!(value(&dba, key).await, "{id}", "the sidecar was asked");
        wait_until("both to be active", SOON, || async {
            let active = "select count(*) from pgtrickle.stream_tables_info where status = 'ACTIVE'";
            if value(&dba, active).await == "2" { Ok(()) } else { Err("they are not".to_owned()) }
        })
        .await;
        for name in ["early", "late"] {
            assert_eq!(value(&dba, &format!("select count(*) from app.{name}")).await, "2");
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// Somebody changes several stream tables in one transaction while they become live: no apply makes that a deadlock.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_over_several_stream_tables_meets_no_deadlock() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba, holder) = (db.as_app().await, db.as_dba().await, db.as_dba().await);
        app.batch_execute(T).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        // Making the slot would wait for the transaction below, so it is there before.
        let slot = "select count(*) from pg_replication_slots where database = current_database() and active";
        wait_until("the slot to be read", SOON, || async {
            if value(&dba, slot).await == "1" { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
        dba.batch_execute("update pgtrickle.settings set value = '1 s' where key = 'analysis_timeout'").await.unwrap();
        sidecar.pause();
        for name in ["first", "second", "third"] {
            app.execute("select pgtrickle.create_stream_table($1, 'select id, v from t')", &[&name]).await.unwrap();
        }
        let take = |names: &str| format!("select from pgtrickle.pgt_stream_tables where pgt_name in ({names}) for no key update");
        holder.batch_execute(&format!("begin; {}", take("'second', 'third'"))).await.unwrap();
        sidecar.resume();
        // The apply waits for the other two. Taken and given back until it has gone on without them.
        wait_until("the first one to be live", SOON, || async {
            let sql = format!("savepoint s; {}; rollback to savepoint s", take("'first'"));
            holder.batch_execute(&sql).await.unwrap_or_else(|e| panic!("{e:?}"));
            let told = "select status || ' ' || refresh_mode from pgtrickle.stream_tables_info where pgt_name = 'first'";
            match value(&dba, told).await.as_str() {
                "ACTIVE DIFFERENTIAL" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        holder.batch_execute("commit").await.unwrap();
        wait_until("all to be live", SOON, || async {
            let told = "select string_agg(pgt_name || ' ' || status, ',') from pgtrickle.pgt_stream_tables where status <> 'ACTIVE'";
            let told = value(&dba, told).await;
            if told.is_empty() { Ok(()) } else { Err(told) }
        })
        .await;
        assert_eq!(verify(&app, "third").await, "t 0 0");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
