//! Commits that are seen too early or vanish: servers of their own.

use std::time::Duration;

use pgtrickle::postgres::cluster::StopMode;

use super::Scene;
use crate::harness::servers::{each, own_cluster};
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};

/// Behind a synchronous standby a commit is decoded long before any snapshot sees it.
#[tokio::test(flavor = "multi_thread")]
async fn a2_a_commit_is_delivered_before_it_is_visible() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let scene = Scene::start(
            &server,
            "create table t (id int primary key, v int not null); insert into t values (1, 1)",
        )
        .await;
        scene.create("early", "select id, v from t").await;
        scene.dba.batch_execute("create table public.probe (i int)").await.unwrap();
        scene.dba.batch_execute("alter system set synchronous_standby_names = 'ghost'").await.unwrap();
        scene.dba.batch_execute("select pg_reload_conf()").await.unwrap();
        wait_until("commits to wait for the standby", SOON, || a_commit_waits(&scene)).await;
        let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and usename = 'app'";
        let writer = scene.db.as_app().await;
        let commit = tokio::spawn(async move { writer.batch_execute("insert into t values (2, 2)").await });
        wait_until("the commit to wait for the standby", SOON, || async {
            let count: i64 = scene.dba.query_one(waiting, &[]).await.unwrap().get(0);
            if count == 1 { Ok(()) } else { Err(count.to_string()) }
        })
        .await;
        // Delivered, and refused by the fence again and again: seen as transactions of the apply session.
        wait_until("the apply to wait", SOON, || async {
            let sql = "select count(*) from pg_stat_activity where application_name = 'pgtrickle:main:apply'
                       and query_start > clock_timestamp() - interval '1 s'";
            let busy: i64 = scene.dba.query_one(sql, &[]).await.unwrap().get(0);
            if busy == 1 { Ok(()) } else { Err("it is idle".to_owned()) }
        })
        .await;
        let shown = "select (select count(*) from app.t) || ' ' || (select count(*) from app.early)";
        let look = async || scene.dba.query_one(shown, &[]).await.unwrap().get::<_, String>(0);
        for _ in 0..20 {
            assert_eq!(look().await, "1 1", "shown before it is visible");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A stream table that is created meanwhile reads a snapshot without the row, which is not sent again.
        let late = scene.db.as_app().await;
        late.batch_execute(
            "set synchronous_commit = local; select pgtrickle.create_stream_table('late', 'select id, v from t')",
        )
        .await
        .unwrap();
        scene.dba.batch_execute("alter system reset synchronous_standby_names").await.unwrap();
        scene.dba.batch_execute("select pg_reload_conf()").await.unwrap();
        commit.await.unwrap().unwrap();
        scene.wait_status("late", "ACTIVE DIFFERENTIAL").await;
        scene.check(&["early", "late"]).await;
        assert_eq!(look().await, "2 2");
    })
    .await;
}

/// The server takes the setting up when its checkpointer comes round to it: a probing commit tells.
async fn a_commit_waits(scene: &Scene) -> Result<(), String> {
    let probe = scene.db.as_dba().await;
    let task = tokio::spawn(async move {
        probe.batch_execute("set application_name = 'probe'; insert into public.probe values (1)").await
    });
    loop {
        const CANCEL: &str = "select pg_cancel_backend(pid) from pg_stat_activity
            where wait_event = 'SyncRep' and application_name = 'probe'";
        if !scene.dba.query(CANCEL, &[]).await.unwrap().is_empty() {
            task.await.unwrap().unwrap();
            return Ok(());
        }
        if task.is_finished() {
            return Err("a commit did not wait".to_owned());
        }
        tokio::task::yield_now().await;
    }
}

/// Asynchronous commits that a load has read vanish with the server, and their transaction ids are used again.
#[tokio::test(flavor = "multi_thread")]
async fn a3_the_server_crashes_with_asynchronous_commits() {
    each(async |major| {
        // The WAL writer sleeps: what is not flushed by a synchronous commit is lost.
        let mut server = own_cluster(major, &[("wal_writer_delay", "10000"), ("synchronous_commit", "off")]).await;
        let mut scene = Scene::start(
            &server,
            "create table t (id int primary key, v int not null); insert into t select i, i from generate_series(1, 300) i",
        )
        .await;
        scene.create("before", "select id, v from t").await;
        for round in 1..=3 {
            let name = format!("late_{round}");
            scene.run(&format!("insert into t select {round} * 1000 + i, i from generate_series(1, 50) i")).await;
            // The creation itself must not be lost.
            scene.run("set synchronous_commit = on").await;
            scene
                .run(&format!(
                    "select pgtrickle.create_stream_table('{name}', 'select v, count(*) as n from t group by v')"
                ))
                .await;
            scene.run("set synchronous_commit = off").await;
            // Not flushed: in the next load's snapshot, or in nobody's.
            for i in 0..20 * round {
                scene.run(&format!("update t set v = v + 1 where id % 20 = {}", i % 20)).await;
            }
            let cluster = &mut server.cluster;
            tokio::task::block_in_place(|| cluster.restart(StopMode::Immediate)).unwrap();
            (scene.app, scene.dba) = (scene.db.as_app().await, scene.db.as_dba().await);
            scene.wait_status(&name, "ACTIVE DIFFERENTIAL").await;
            // Ids of lost transactions come again.
            scene.run("set synchronous_commit = off; update t set v = v + 7 where id % 3 = 0").await;
            scene.check_in_time(&["before", &name]).await;
        }
    })
    .await;
}

/// A restart of the server while changes are under way: the sidecar comes back by itself, with the same rows.
#[tokio::test(flavor = "multi_thread")]
async fn d7_the_server_restarts_fast_while_changes_are_under_way() {
    each(async |major| {
        let mut server = own_cluster(major, &[]).await;
        let mut scene = Scene::start(
            &server,
            "create table t (id int primary key, v int not null); insert into t select i, i from generate_series(1, 300) i",
        )
        .await;
        scene.create("groups", "select v % 7 as k, count(*) as n, sum(v) as s from t group by 1").await;
        for i in 0..30 {
            scene.run(&format!("update t set v = v + {i} where id % 3 = {}", i % 3)).await;
        }
        let cluster = &mut server.cluster;
        tokio::task::block_in_place(|| cluster.restart(StopMode::Fast)).unwrap();
        (scene.app, scene.dba) = (scene.db.as_app().await, scene.db.as_dba().await);
        scene.run("delete from t where id % 10 = 0").await;
        scene.check_in_time(&["groups"]).await;
        let Scene { mut sidecar, .. } = scene;
        stop(&mut sidecar).await;
    })
    .await;
}

async fn stop(sidecar: &mut Sidecar) {
    assert_eq!(sidecar.terminate(SOON).await, Some(0));
}
