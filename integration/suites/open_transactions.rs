//! Somebody changes a stream table in a transaction that stays open: the others go on, and nothing is wrong afterwards.

use super::hazards::Scene;
use super::maintenance::verify;
use super::snapshots::{T, Writers, failure, value};
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};
use crate::harness::{Sidecar, TestDatabase};

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
