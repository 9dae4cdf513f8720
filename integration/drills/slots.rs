//! Accidents with the slot, the publication and the role.

use std::time::Duration;

use pgtrickle::postgres::cluster::StopMode;
use tokio_postgres::error::SqlState;

use super::proof::{Before, Expect, PATIENCE, become_equal, prove, prove_served};
use super::scene::{Database, NAME, Scene};
use super::tools::{When, blocking, drill, drill_on};
use crate::harness::database::SIDECAR;
use crate::harness::wait::{wait_for_value, wait_until};

/// Name of the pipeline's slot.
async fn slot(db: &Database) -> String {
    db.value("select slot_name from pgtrickle.pgt_pipelines where pipeline = 'main'").await.expect("a slot")
}

/// Name of the pipeline's publication.
async fn publication(db: &Database) -> String {
    db.value("select publication_name from pgtrickle.pgt_pipelines where pipeline = 'main'")
        .await
        .expect("a name")
}

/// The sidecar dies; returns when nothing uses its slot any more.
pub async fn without_sidecar(scene: &mut Scene) {
    scene.sidecar.kill9();
    let free = "select bool_and(active_pid is null) from pg_replication_slots where slot_type = 'logical'";
    wait_for_value("the slot to be free", PATIENCE, Some("true".to_owned()), || scene.db.value(free)).await;
}

/// Does something to the slot of a sidecar that is down, writes, and proves that it comes back right.
async fn accident(name: &'static str, when: When, expect: Expect, sql: &str) {
    drill(name, when, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        without_sidecar(&mut scene).await;
        scene.load.progress(20).await;
        let dba = scene.db.as_dba().await;
        let sql = sql.replace("SLOT", &slot(&scene.db).await);
        for statement in sql.split(';') {
            dba.execute(statement, &[]).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
        }
        scene.load.progress(10).await;
        scene.load.stop().await;
        prove(drill, &scene.db, expect).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_dropped() {
    accident("slot-dropped", When::All, Expect::Repair, "select pg_drop_replication_slot('SLOT')").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_advanced_by_hand() {
    let sql = "select pg_replication_slot_advance('SLOT', pg_current_wal_lsn())";
    accident("slot-advanced", When::All, Expect::Repair, sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_made_again_by_hand() {
    let sql = "select pg_drop_replication_slot('SLOT');
               select pg_create_logical_replication_slot('SLOT', 'pgoutput')";
    accident("slot-recreated", When::All, Expect::Repair, sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_is_off_for_long() {
    drill("sidecar-off", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        without_sidecar(&mut scene).await;
        for _ in 0..4 {
            scene.load.progress(60).await;
            scene.db.value("pg_switch_wal()").await;
        }
        scene.load.stop().await;
        prove(drill, &scene.db, Expect::Resume).await;
    })
    .await;
}

/// The slot goes while the sidecar streams from it.
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_dropped_under_a_running_sidecar() {
    drill("slot-dropped-live", When::Always, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let before = Before::begin(&scene.db).await;
        let dba = scene.db.as_dba().await;
        let slot = slot(&scene.db).await;
        wait_until("the slot to be dropped", PATIENCE, || async {
            let end =
                "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1";
            dba.execute(end, &[&slot]).await.map_err(|e| format!("{e:?}"))?;
            let drop = "select pg_drop_replication_slot($1)";
            dba.execute(drop, &[&slot]).await.map(|_| ()).map_err(|e| format!("{e:?}"))
        })
        .await;
        scene.load.progress(20).await;
        scene.load.stop().await;
        let before = before.mark(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Repair).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

/// Makes WAL and checkpoints until the server has given the slot up.
async fn until_lost(db: &Database) {
    let dba = db.as_dba().await;
    wait_until("the server to give the slot up", PATIENCE, || async {
        dba.batch_execute("insert into app.events values ('wal', -1)").await.map_err(|e| format!("{e:?}"))?;
        dba.batch_execute("select pg_switch_wal()").await.map_err(|e| format!("{e:?}"))?;
        dba.batch_execute("checkpoint").await.map_err(|e| format!("{e:?}"))?;
        match db
            .value("select wal_status from pg_replication_slots where slot_type = 'logical'")
            .await
            .as_deref()
        {
            Some("lost") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_discards_wal_that_the_slot_needs() {
    drill("slot-lost", When::Always, async |drill| {
        let mut scene = Scene::set(drill, &[("max_slot_wal_keep_size", "1MB")]).await;
        without_sidecar(&mut scene).await;
        until_lost(&scene.db).await;
        scene.load.progress(10).await;
        scene.load.stop().await;
        prove(drill, &scene.db, Expect::Repair).await;
    })
    .await;
}

/// The sidecar hangs (a virtual machine that is paused) while its slot is invalidated.
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_lost_under_a_paused_sidecar() {
    drill("slot-lost-paused", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[("max_slot_wal_keep_size", "1MB")]).await;
        let before = Before::begin(&scene.db).await;
        scene.sidecar.pause();
        until_lost(&scene.db).await;
        scene.load.progress(10).await;
        scene.load.stop().await;
        let before = before.mark(&scene.db).await;
        scene.sidecar.resume();
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Repair).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_invalidated_because_nobody_used_it() {
    drill_on("slot-idle", When::All, &[18], async |drill| {
        let mut scene = Scene::set(drill, &[("idle_replication_slot_timeout", "1s")]).await;
        without_sidecar(&mut scene).await;
        until_lost(&scene.db).await;
        scene.load.progress(10).await;
        scene.load.stop().await;
        prove(drill, &scene.db, Expect::Repair).await;
    })
    .await;
}

/// Does something to the publication of a running sidecar.
async fn publication_accident(name: &'static str, when: When, expect: Expect, sql: &str) {
    drill(name, when, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let before = Before::begin(&scene.db).await;
        let sql = sql.replace("PUBLICATION_NAME", &publication(&scene.db).await);
        let dba = scene.db.as_dba().await;
        // Each statement is a transaction, except what stands between begin and commit.
        for statement in sql.split(";;") {
            match dba.batch_execute(statement).await {
                // The sidecar was faster and has made it again itself.
                Err(e) if e.code() == Some(&SqlState::DUPLICATE_OBJECT) => {}
                other => other.unwrap_or_else(|e| panic!("{statement}: {e:?}")),
            }
            scene.load.progress(3).await;
        }
        scene.load.progress(20).await;
        scene.load.stop().await;
        become_equal(&scene.db).await;
        let before = before.mark(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, expect).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_publication_is_dropped() {
    publication_accident(
        "publication-dropped",
        When::All,
        Expect::Repair,
        "drop publication PUBLICATION_NAME",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_publication_is_dropped_and_made_again() {
    let sql = "drop publication PUBLICATION_NAME;;
        create publication PUBLICATION_NAME for table app.customers, app.orders, app.events";
    publication_accident("publication-recreated", When::Always, Expect::Repair, sql).await;
}

/// As [`publication_accident`], while the sidecar is down: nothing but the publication's oid tells.
#[tokio::test(flavor = "multi_thread")]
async fn the_publication_is_made_again_while_the_sidecar_is_down() {
    drill("publication-recreated-off", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        without_sidecar(&mut scene).await;
        let name = publication(&scene.db).await;
        let dba = scene.db.as_dba().await;
        dba.batch_execute(&format!("drop publication {name}")).await.expect("it can be dropped");
        scene.load.progress(20).await;
        let create = format!("create publication {name} for table app.customers, app.orders, app.events");
        dba.batch_execute(&create).await.expect("it can be made again");
        scene.load.progress(10).await;
        scene.load.stop().await;
        prove(drill, &scene.db, Expect::Repair).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_taken_out_of_the_publication() {
    let sql = "alter publication PUBLICATION_NAME drop table app.orders";
    publication_accident("publication-table-removed", When::All, Expect::Either, sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_leaves_the_publication_and_joins_it_again() {
    let sql = "alter publication PUBLICATION_NAME drop table app.orders;;
        update app.orders set amount = amount + 1 where id < 50;;
        alter publication PUBLICATION_NAME add table app.orders";
    publication_accident("publication-table-rejoined", When::All, Expect::Either, sql).await;
}

/// Nobody ever sees the publication without the table; what was written meanwhile is not sent all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_leaves_and_joins_the_publication_in_one_transaction() {
    let sql = "begin; alter publication PUBLICATION_NAME drop table app.orders;
        update app.orders set amount = amount + 1 where id < 50;
        alter publication PUBLICATION_NAME add table app.orders; commit";
    publication_accident("publication-table-rejoined-at-once", When::Always, Expect::Either, sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_publication_is_made_again_in_one_transaction() {
    let sql = "begin; drop publication PUBLICATION_NAME;
        update app.orders set amount = amount + 1 where id < 50;
        create publication PUBLICATION_NAME for table app.customers, app.orders, app.events; commit";
    publication_accident("publication-recreated-at-once", When::All, Expect::Repair, sql).await;
}

/// The slot has to go first, or the server does not start.
#[tokio::test(flavor = "multi_thread")]
async fn wal_level_is_lowered_and_raised_again() {
    drill("wal-level", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        without_sidecar(&mut scene).await;
        let name = slot(&scene.db).await;
        scene.db.value(&format!("pg_drop_replication_slot('{name}')")).await;
        scene.server.cluster.set("wal_level", "replica");
        blocking(|| scene.server.cluster.restart(StopMode::Fast)).expect("it comes back");
        scene.load.progress(20).await;
        scene.server.cluster.set("wal_level", "logical");
        blocking(|| scene.server.cluster.restart(StopMode::Fast)).expect("it comes back");
        scene.load.progress(10).await;
        scene.load.stop().await;
        prove(drill, &scene.db, Expect::Repair).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replication_right_is_revoked_for_a_while() {
    drill("replication-revoked", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let dba = scene.db.as_dba().await;
        dba.batch_execute(&format!("alter role {SIDECAR} noreplication")).await.expect("the right");
        let end = "select count(pg_terminate_backend(active_pid)) from pg_replication_slots where active";
        scene.db.value(end).await;
        scene.load.progress(40).await;
        dba.batch_execute(&format!("alter role {SIDECAR} replication")).await.expect("the right");
        scene.load.stop().await;
        let before = Before::note(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Either).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
        assert_eq!(scene.db.name, NAME);
    })
    .await;
}

/// A walsender decodes for minutes what it need not send: stood still here by a signal, which only the servers' user may send.
#[tokio::test(flavor = "multi_thread")]
async fn the_walsender_is_silent_for_long() {
    drill("walsender-silent", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let generation = scene.db.value("select generation::text from pgtrickle.pgt_pipelines").await;
        let pid = scene
            .db
            .value("select active_pid::text from pg_replication_slots where slot_type = 'logical'")
            .await;
        let pid = pid.expect("a walsender");
        let signal = |name: &str| {
            let status = std::process::Command::new("kill").args([name, &pid]).status().expect("kill starts");
            assert!(status.success(), "kill {name}: {status}");
        };
        signal("-STOP");
        let started = std::time::Instant::now();
        // Longer than a server that rests is silent.
        let still =
            "select (count(*) = 1)::text from pg_replication_slots where slot_type = 'logical' and active";
        while started.elapsed() < Duration::from_secs(85) {
            assert_eq!(scene.db.value(still).await.as_deref(), Some("true"));
            scene.load.progress(1).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        signal("-CONT");
        scene.load.progress(10).await;
        scene.load.stop().await;
        become_equal(&scene.db).await;
        let now = scene.db.value("select generation::text from pgtrickle.pgt_pipelines").await;
        assert_eq!(now, generation, "the pipeline started anew");
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

/// A proxy that acknowledges everything for a server that never answers: no session ends by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_path_to_the_server_is_frozen() {
    drill("path-frozen", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let (proxy, _, mut sidecar) = scene.behind_proxy().await;
        proxy.freeze();
        wait_until("the silence to be noticed", PATIENCE * 3, || async {
            let logs = sidecar.logs();
            if logs.contains("waits in vain") { Ok(()) } else { Err(logs) }
        })
        .await;
        scene.load.progress(20).await;
        proxy.heal();
        scene.load.stop().await;
        become_equal(&scene.db).await;
        assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}
