//! FULL stream tables beside each other: everybody's turn comes, and what happens to one concerns that one.

use super::hazards::Scene;
use crate::harness::SOON;
use crate::harness::servers::for_each_major;
use crate::harness::wait::wait_until;

const SETUP: &str = "
    create table t (id int primary key, v int); insert into t values (1, 1), (2, 2);
    create function slowly(x int) returns int language plpgsql as 'begin perform pg_sleep(0.6); return x; end';
    create function gated(x int) returns int language plpgsql as
        'begin perform pg_advisory_lock_shared(4712); perform pg_advisory_unlock_shared(4712); return x; end';";

/// Two that are due again as soon as the other one is through.
#[tokio::test(flavor = "multi_thread")]
async fn the_turn_of_each_comes_however_long_others_take() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, SETUP).await;
        for name in ["a", "b", "c"] {
            let create = "select pgtrickle.create_stream_table($1, 'select id, slowly(v) as v from t', schedule => '1s')";
            scene.app.execute(create, &[&name]).await.unwrap();
        }
        for name in ["a", "b", "c"] {
            scene.wait_status(name, "ACTIVE FULL").await;
        }
        scene.run("update t set v = v + 10").await;
        for name in ["a", "b", "c"] {
            wait_until(&format!("{name} to be recomputed"), SOON, || async {
                let sql = format!("select string_agg(v::text, ' ' order by id) from {name}");
                let rows: String = scene.app.query_one(&sql, &[]).await.unwrap().get(0);
                if rows == "11 12" { Ok(()) } else { Err(rows) }
            })
            .await;
        }
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recomputation_whose_session_is_terminated_concerns_nobody_else() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, SETUP).await;
        scene.create("live", "select v, count(*) as n from t group by v").await;
        scene.run("select pgtrickle.create_stream_table('whole', 'select id, gated(v) as v from t')").await;
        scene.wait_status("whole", "ACTIVE FULL").await;
        let generation = scene.generation().await;
        scene.dba.batch_execute("select pg_advisory_lock(4712)").await.unwrap();
        let refresh = scene.db.as_app().await;
        let refreshed = tokio::spawn(async move {
            refresh.batch_execute("select pgtrickle.refresh_stream_table('whole')").await
        });
        for _ in 0..2 {
            wait_until("a recomputation to be ended", SOON, || async {
                const END: &str = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()
                    and application_name = 'pgtrickle:main:tool' and wait_event = 'advisory'";
                let ended = scene.dba.query(END, &[]).await.unwrap();
                if ended.is_empty() { Err("none runs".to_owned()) } else { Ok(()) }
            })
            .await;
        }
        scene.run("insert into t values (3, 3)").await;
        scene.check(&["live"]).await;
        scene.dba.batch_execute("select pg_advisory_unlock(4712)").await.unwrap();
        // The caller may have been told of the end.
        let _ = refreshed.await.unwrap();
        scene.wait_status("whole", "ACTIVE FULL").await;
        scene.run("select pgtrickle.refresh_stream_table('whole')").await;
        let rows: i64 = scene.app.query_one("select count(*) from whole", &[]).await.unwrap().get(0);
        assert_eq!(rows, 3);
        let told: i64 = scene
            .dba
            .query_one("select count(*) from pgtrickle.pgt_refresh_history where status = 'FAILED' and error_message like '%terminat%'", &[])
            .await
            .unwrap()
            .get(0);
        assert!(told >= 1, "the history tells nothing of it");
        assert_eq!(scene.generation().await, generation, "the pipeline did not start anew");
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
