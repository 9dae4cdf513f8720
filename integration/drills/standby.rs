//! The primary is lost and a standby takes over, without slots and with slots that were kept in step.

use pgtrickle::postgres::cluster::StopMode;

use super::physical::{base_backup, borrowed};
use super::proof::{Before, Expect, PATIENCE, prove, prove_served};
use super::scene::{Database, NAME, Scene};
use super::tools::{Drill, When, blocking, drill, drill_on, give};
use crate::harness::servers::{SUPERUSER, Server};
use crate::harness::wait::wait_until;

/// A standby of the scene's server, streaming from it.
async fn standby(drill: &Drill, scene: &Scene, more: &[(&'static str, &str)]) -> Server {
    let folder = drill.subfolder("standby");
    base_backup(drill, scene.db.port, &folder).await;
    let signal = folder.join("data/standby.signal");
    std::fs::write(&signal, "").expect("standby.signal");
    give(&signal);
    let primary = format!("host=127.0.0.1 port={} user={SUPERUSER} dbname=postgres", scene.db.port);
    let mut settings = vec![("primary_conninfo", primary)];
    settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    drill.restored(&folder, &borrowed(&settings)).await
}

/// Waits until the standby has replayed what the primary holds now.
async fn caught_up(primary: &Database, standby: &Database) {
    let target = primary.value("pg_current_wal_lsn()").await.expect("a position");
    wait_until("the standby to catch up", PATIENCE, || async {
        match standby.value(&format!("pg_last_wal_replay_lsn() >= '{target}'")).await.as_deref() {
            Some("true") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The primary crashes under load and never comes back; the standby becomes the primary.
async fn fail_over(scene: &mut Scene, standby: &Database) {
    caught_up(&scene.db, standby).await;
    blocking(|| scene.server.cluster.stop(StopMode::Immediate)).expect("it stops");
    scene.sidecar.kill9();
    assert_eq!(standby.value("pg_promote()").await.as_deref(), Some("true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_without_slots_is_promoted() {
    drill("promotion", When::Always, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let standby = standby(drill, &scene, &[]).await;
        let copy = Database::new(&standby, NAME);
        scene.load.progress(20).await;
        fail_over(&mut scene, &copy).await;
        scene.load.stop().await;
        prove(drill, &copy, Expect::Repair).await;
    })
    .await;
}

/// A read replica answers what the primary answers, stream tables and snapshots alike; a sidecar that is sent there says
/// that it belongs on the primary.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_replica_shows_stream_tables_and_snapshots() {
    drill("read-replica", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        let (name, _) = super::scene::STREAMS[0];
        let app = scene.db.as_app().await;
        app.execute("select pgtrickle.snapshot_stream_table($1, 'app.kept')", &[&name]).await.expect("a snapshot");
        let standby = standby(drill, &scene, &[]).await;
        let copy = Database::new(&standby, NAME);
        scene.load.progress(40).await;
        let Scene { server: _server, db, mut sidecar, load } = scene;
        load.stop().await;
        super::proof::check_equal(&db).await;
        caught_up(&db, &copy).await;
        super::proof::become_equal(&copy).await;
        let listed = "select string_agg(snapshot_table || ' ' || row_count, ',') from pgtrickle.list_snapshots()";
        assert_eq!(copy.value(listed).await, db.value(listed).await, "snapshots on the replica");
        let check = "select severity || ': ' || detail from pgtrickle.health_check() where check_name = 'scheduler_running'";
        let said = copy.value(check).await.expect("health");
        assert!(said.starts_with("OK: a standby"), "{said}");
        let lost = crate::harness::database::pgtrickle(&["run", "--database-url", &copy.url(crate::harness::database::SIDECAR)]);
        assert_eq!(lost.status.code(), Some(6), "{}", crate::harness::database::printed(&lost));
        assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

/// A standby whose slots follow the primary's (17 and newer).
async fn with_failover_slots(drill: &Drill) -> (Scene, Server) {
    let scene = Scene::set(drill, &[]).await;
    let dba = scene.db.as_dba().await;
    dba.batch_execute("select pg_create_physical_replication_slot('standby')").await.expect("a slot");
    let more =
        [("primary_slot_name", "standby"), ("hot_standby_feedback", "on"), ("sync_replication_slots", "on")];
    let standby = standby(drill, &scene, &more).await;
    dba.batch_execute("alter system set synchronized_standby_slots = 'standby'").await.expect("a setting");
    dba.batch_execute("select pg_reload_conf()").await.expect("a reload");
    let copy = Database::new(&standby, NAME);
    wait_until("the slot to be kept in step", PATIENCE, || async {
        // The primary's slot must pass the point where the standby began.
        scene.db.value("pg_log_standby_snapshot()").await;
        let slots =
            "select string_agg(concat_ws(' ', slot_name, synced, temporary, invalidation_reason), ', ')
            from pg_replication_slots where slot_type = 'logical' and not (synced and not temporary)";
        let count = "select count(*) from pg_replication_slots where slot_type = 'logical'";
        match (copy.value(slots).await, copy.value(count).await.as_deref()) {
            (None, Some("1")) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    scene.load.progress(40).await;
    (scene, standby)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_with_failover_slots_is_promoted() {
    drill_on("promotion-failover-slots", When::All, &[17, 18], async |drill| {
        let (mut scene, standby) = with_failover_slots(drill).await;
        let copy = Database::new(&standby, NAME);
        fail_over(&mut scene, &copy).await;
        scene.load.stop().await;
        prove(drill, &copy, Expect::Either).await;
    })
    .await;
}

/// The standby's slot is further than what the promoted database has stored: the changes between can't be had.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_slot_is_ahead_of_the_promoted_database() {
    drill_on("promotion-slot-ahead", When::All, &[17, 18], async |drill| {
        let (mut scene, standby) = with_failover_slots(drill).await;
        let copy = Database::new(&standby, NAME);
        fail_over(&mut scene, &copy).await;
        scene.load.stop().await;
        // The race itself takes a network that breaks between two messages; its outcome is made by hand.
        copy.write(20).await;
        let advance =
            "select pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) from pg_replication_slots
            where slot_type = 'logical'";
        copy.value(advance).await;
        prove(drill, &copy, Expect::Repair).await;
    })
    .await;
}

/// Sidecar and application know one address; behind it another server takes over.
#[tokio::test(flavor = "multi_thread")]
async fn the_primary_is_switched_behind_one_address() {
    drill("switch-over", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let (proxy, address, mut sidecar) = scene.behind_proxy().await;
        let standby = standby(drill, &scene, &[]).await;
        let copy = Database::new(&standby, NAME);
        scene.load.progress(20).await;
        scene.load.stop().await;
        let before = Before::begin(&scene.db).await;
        caught_up(&scene.db, &copy).await;
        blocking(|| scene.server.cluster.stop(StopMode::Fast)).expect("it stops");
        assert_eq!(copy.value("pg_promote()").await.as_deref(), Some("true"));
        proxy.retarget(copy.port);
        let before = before.mark(&address).await;
        prove_served(drill, &address, &mut sidecar, before, Expect::Repair).await;
        assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}
