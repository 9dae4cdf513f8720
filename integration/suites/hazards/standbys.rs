//! The sidecar's walsender beside synchronous standbys.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::Scene;
use crate::harness::database::SIDECAR;
use crate::harness::servers::{SUPERUSER, each, own_cluster};
use crate::harness::wait::{SOON, wait_until};

/// `*` takes the walsender of the sidecar for a synchronous standby. It confirms a commit when it has written what follows
/// from it, which waits until the commit is visible, which waits for the confirmation.
#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_takes_every_walsender_for_a_standby_does_not_stop_the_writers() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let program = server.cluster.install().program("pg_receivewal");
        if !program.is_file() {
            println!("LEFT OUT: PostgreSQL {major} comes without pg_receivewal here");
            return;
        }
        let mut scene = Scene::start(
            &server,
            "create table t (id int primary key, v int not null); insert into t select i, i from generate_series(1, 50) i",
        )
        .await;
        scene.create("sums", "select v % 5 as k, sum(v) as s from t group by 1").await;
        // A real one that comes later: the first walsender of the list is chosen.
        let folder = tempfile::tempdir().unwrap();
        let mut standby = Command::new(&program)
            .args(["--synchronous", "--no-loop", "--no-password", "-D"])
            .arg(folder.path())
            .args(["-d", &server.cluster.conninfo("postgres", SUPERUSER)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let outcome = tokio::time::timeout(SOON, writes_go_on(&mut scene)).await;
        let ended = standby.kill().and_then(|()| standby.wait());
        // Whoever still waits for a standby goes on.
        let reset = "alter system reset synchronous_standby_names";
        scene.dba.batch_execute(reset).await.unwrap();
        scene.dba.batch_execute("select pg_reload_conf()").await.unwrap();
        outcome.expect("a commit still waits for the sidecar");
        ended.unwrap();
        scene.check(&["sums"]).await;
        wait_until("the stream to come back", SOON, || async {
            match scene.dba.query_one("select delivery from pgtrickle.pgt_pipelines", &[]).await.unwrap().get(0) {
                "slot" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        scene.run("update t set v = v + 1").await;
        scene.check(&["sums"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

async fn writes_go_on(scene: &mut Scene) {
    wait_until("two walsenders", SOON, || async {
        let sql = "select count(*) from pg_stat_replication where state = 'streaming'";
        let n: i64 = scene.dba.query_one(sql, &[]).await.unwrap().get(0);
        if n == 2 { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    scene.dba.batch_execute("alter system set synchronous_standby_names = '*'").await.unwrap();
    scene.dba.batch_execute("select pg_reload_conf()").await.unwrap();
    wait_until("the sidecar to let go of its slot", SOON, || async {
        let write =
            scene.app.batch_execute("update t set v = v + 1 where id % 3 = 0; set synchronous_commit = on");
        let waited = tokio::time::timeout(Duration::from_secs(20), write).await;
        waited.map_err(|_| "a commit waits".to_owned())?.map_err(|e| e.to_string())?;
        let sql = "select delivery || ' ' || coalesce(delivery_reason, '') from pgtrickle.pgt_pipelines";
        let delivery: String = scene.dba.query_one(sql, &[]).await.unwrap().get(0);
        if delivery.starts_with("poll synchronous_standby_names (*)") { Ok(()) } else { Err(delivery) }
    })
    .await;
    scene.check(&["sums"]).await;
}

/// An apply of what was kept for a schedule commits for as long as a standby likes. A stream table of it that is prepared anew
/// meanwhile must not read its rows before: the difference would be written on top.
#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_waits_for_the_apply_under_way() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let mut scene = Scene::start(
            &server,
            "create table t (id int primary key, v int not null); insert into t select i, i from generate_series(1, 20) i;
             create function third(v int) returns int immutable language plpgsql as 'begin return v % 3; end'",
        )
        .await;
        scene.run("select pgtrickle.create_stream_table('bag', 'select third(v) as k from t', schedule => '5s')").await;
        scene.wait_status("bag", "ACTIVE DIFFERENTIAL").await;
        for client in [&scene.app, &scene.dba] {
            client.batch_execute("set synchronous_commit = local").await.unwrap();
        }
        scene.run("insert into t select i, i from generate_series(100, 130) i").await;
        // The frontier goes on, the rows wait for their schedule: no position tells the apply that writes them from an earlier one.
        scene.run("create table inserted as select pg_current_wal_lsn() as lsn").await;
        const KEPT: &str = "select frontier >= lsn from pgtrickle.pgt_pipelines, app.inserted";
        holds(&scene, "the frontier to go on", KEPT).await;
        // Whoever connects from here on waits for no standby; the session that writes stream tables does.
        let nobody = "alter system set synchronous_standby_names = 'nobody'";
        scene.dba.batch_execute(nobody).await.unwrap();
        scene.dba.batch_execute(&format!("alter role {SIDECAR} set synchronous_commit = local; select pg_reload_conf()")).await.unwrap();
        const WRITING: &str = "select count(*) = 1 from pg_stat_activity
            where application_name = 'pgtrickle:main:apply' and wait_event = 'SyncRep'";
        holds(&scene, "the apply to wait for a standby", WRITING).await;
        scene
            .run("create table replaced as select clock_timestamp() as at;
                create or replace function third(v int) returns int immutable language plpgsql as 'begin return v % 3; end'")
            .await;
        // Its plan is stored, and its preparation waits; or it has gone on already.
        const PLANNED: &str = "select exists (select from pg_stat_activity, app.replaced
            where application_name = 'pgtrickle:main:analyze' and state = 'idle' and query_start > at
            and query like '%(refresh_mode, refresh_reason) is distinct from%')
            or exists (select from pgtrickle.pgt_refresh_history where action = 'REINITIALIZE')";
        holds(&scene, "the new plan of bag to be stored", PLANNED).await;
        // Turns of the loop: time enough to read the rows of bag for whoever does not wait.
        for _ in 0..4 {
            scene.run("drop table if exists turn; create table turn as select clock_timestamp() as at").await;
            const TURN: &str = "select exists (select from pg_stat_activity, app.turn
                where application_name = 'pgtrickle:main:control' and query_start > at)";
            holds(&scene, "the loop to turn", TURN).await;
        }
        scene.dba.batch_execute("alter system reset synchronous_standby_names").await.unwrap();
        scene.dba.batch_execute("select pg_reload_conf()").await.unwrap();
        holds(&scene, "bag to be prepared", "select exists (select from pgtrickle.pgt_refresh_history where action = 'REINITIALIZE')").await;
        scene.check_in_time(&["bag"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// Waits until a query says true.
async fn holds(scene: &Scene, what: &str, sql: &str) {
    wait_until(what, SOON, || async {
        let holds: bool = scene.dba.query_one(sql, &[]).await.unwrap().get(0);
        if holds { Ok(()) } else { Err(scene.sidecar.logs()) }
    })
    .await;
}
