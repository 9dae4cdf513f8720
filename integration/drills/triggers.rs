//! Trigger capture: its buffers and triggers are part of every backup, and what happens to them is noticed.

use pgtrickle::postgres::cluster::StopMode;

use super::logical::beside;
use super::physical::base_backup;
use super::proof::{Before, Expect, PATIENCE, prove, prove_served};
use super::scene::{BOSS, Database, NAME, Scene};
use super::tools::{When, blocking, drill};
use crate::harness::database::SIDECAR;
use crate::harness::wait::wait_until;

/// The sidecar dies, and the application goes on: the buffers fill.
async fn fill(scene: &mut Scene) {
    scene.sidecar.kill9();
    scene.load.progress(30).await;
    let full = "select count(*) from pg_class where relnamespace = 'pgtrickle_changes'::regnamespace
        and relkind = 'r' and pg_relation_size(oid) > 0";
    assert_eq!(scene.db.value(full).await.as_deref(), Some("3"), "sources whose buffers hold changes");
}

const DUMP: &str = "pg_dump --format=custom --file=mydb.dump mydb
    createdb mydb_restored
    pg_restore --dbname=mydb_restored --jobs=4 mydb.dump";

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_with_empty_buffers_is_restored() {
    drill("triggers-dump", When::All, async |drill| {
        let scene = Scene::with_triggers(drill, &[]).await;
        beside(drill, scene, DUMP).await;
    })
    .await;
}

/// Buffers, transaction ids and all: what they hold is foreign to the database that they come to.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_with_full_buffers_is_restored() {
    drill("triggers-dump-full", When::Always, async |drill| {
        let mut scene = Scene::with_triggers(drill, &[]).await;
        fill(&mut scene).await;
        drill.shell(scene.db.port, DUMP).await;
        prove(drill, &scene.db.sibling("mydb_restored"), Expect::Repair).await;
        // The original has lost nothing: its buffers hold what was written.
        scene.sidecar.start_again();
        scene.finish().await;
    })
    .await;
}

/// The triggers of the restored schema would record every row of the load.
#[tokio::test(flavor = "multi_thread")]
async fn data_is_loaded_under_capture_triggers() {
    drill("triggers-data-only", When::All, async |drill| {
        let scene = Scene::with_triggers(drill, &[]).await;
        let commands = "pg_dump --format=custom --file=schema.dump --schema-only mydb
             pg_dump --format=custom --file=data.dump --data-only mydb
             createdb mydb_restored
             pg_restore --dbname=mydb_restored schema.dump
             pg_restore --dbname=mydb_restored --data-only data.dump
             psql -X -q -d mydb_restored -c 'refresh materialized view app.order_counts'";
        beside(drill, scene, commands).await;
    })
    .await;
}

/// `--disable-triggers` leaves our triggers enabled in another way than they were, and they have seen nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_sources_are_loaded_with_disabled_triggers() {
    drill("triggers-data-over-live", When::All, async |drill| {
        let mut scene = Scene::with_triggers(drill, &[]).await;
        let tables = "-t app.customers -t app.orders -t app.events";
        let dump = format!("pg_dump --format=custom --file=data.dump --data-only {tables} {NAME}");
        drill.shell(scene.db.port, &dump).await;
        scene.load.progress(20).await;
        scene.load.stop().await;
        let before = Before::begin(&scene.db).await;
        let dba = scene.db.as_dba().await;
        dba.batch_execute("truncate app.customers, app.orders, app.events")
            .await
            .expect("they can be emptied");
        let restore = format!("pg_restore --dbname={NAME} --data-only --disable-triggers data.dump");
        drill.shell(scene.db.port, &restore).await;
        super::proof::become_equal(&scene.db).await;
        let before = before.mark(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Repair).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

/// Everything rolls back together: buffers, results and what was consumed.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_with_full_buffers_goes_on() {
    drill("triggers-basebackup", When::All, async |drill| {
        let mut scene = Scene::with_triggers(drill, &[]).await;
        fill(&mut scene).await;
        let folder = drill.subfolder("restored");
        base_backup(drill, scene.db.port, &folder).await;
        scene.load.progress(20).await;
        let restored = drill.restored(&folder, &[]).await;
        prove(drill, &Database::new(&restored, NAME), Expect::Resume).await;
        scene.sidecar.start_again();
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_crashes_under_trigger_capture() {
    drill("triggers-crash", When::All, async |drill| {
        let mut scene = Scene::with_triggers(drill, &[]).await;
        let before = Before::begin(&scene.db).await;
        blocking(|| scene.server.cluster.restart(StopMode::Immediate)).expect("it comes back");
        scene.load.progress(20).await;
        scene.load.stop().await;
        let before = before.mark(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Resume).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

/// Somebody switches all triggers of the sources off, writes, and deals with them in one way or another.
async fn tampered(name: &'static str, when: When, first: &str, last: &str) {
    drill(name, when, async |drill| {
        let mut scene = Scene::with_triggers(drill, &[]).await;
        let before = Before::begin(&scene.db).await;
        let app = scene.db.as_app().await;
        for table in ["customers", "orders", "events"] {
            let triggers = "select string_agg(quote_ident(tgname), ',') from pg_trigger
                where tgrelid = to_regclass($1) and tgname like 'pgtrickle_capture%'";
            let triggers: String = app.query_one(triggers, &[&table]).await.expect("its triggers").get(0);
            for trigger in triggers.split(',') {
                let statement = first.replace("TABLE_NAME", table).replace("TRIGGER_NAME", trigger);
                app.batch_execute(&statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
            }
        }
        scene.load.progress(20).await;
        for table in ["customers", "orders", "events"] {
            let statement = last.replace("TABLE_NAME", table);
            app.batch_execute(&statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
        }
        scene.load.progress(10).await;
        scene.load.stop().await;
        super::proof::become_equal(&scene.db).await;
        let before = before.mark(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Repair).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_triggers_are_disabled_and_enabled_again() {
    let disable = "alter table TABLE_NAME disable trigger TRIGGER_NAME";
    tampered("triggers-disabled", When::Always, disable, "alter table TABLE_NAME enable trigger user").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_triggers_are_dropped() {
    tampered("triggers-dropped", When::All, "drop trigger TRIGGER_NAME on TABLE_NAME", "select 1").await;
}

/// A managed service restores the data at a new endpoint: no superuser, no logical decoding, no right to replicate.
#[tokio::test(flavor = "multi_thread")]
async fn a_managed_service_restores_the_database_without_logical_decoding() {
    drill("managed-restore", When::Always, async |drill| {
        let server = drill.server(&[], true).await;
        let mut scene = Scene::on(server, BOSS).await;
        let dump = format!("PGUSER={BOSS} pg_dump --format=custom --file=mydb.dump {NAME}");
        drill.shell(scene.db.port, &dump).await;
        scene.load.stop().await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
        let mut managed = drill.server(&[("wal_level", "replica")], false).await;
        let restore = format!(
            "psql -X -q -d postgres -c 'alter role {SIDECAR} noreplication'
             createdb --owner={BOSS} {NAME}
             PGUSER={BOSS} pg_restore --dbname={NAME} --jobs=2 mydb.dump
             psql -X -q -d {NAME} -c 'alter database {NAME} set search_path = app, public'"
        );
        drill.shell(managed.cluster.port(), &restore).await;
        let copy = Database { owner: BOSS, ..Database::new(&managed, NAME) };
        prove(drill, &copy, Expect::Repair).await;
        // Later the service gets it: capture goes back to the WAL by itself.
        managed.cluster.set("wal_level", "logical");
        blocking(|| managed.cluster.restart(StopMode::Fast)).expect("it comes back");
        let right = format!("alter role {SIDECAR} replication");
        copy.as_dba().await.batch_execute(&right).await.expect("the right");
        let mut sidecar = copy.sidecar();
        let load = copy.workload();
        wait_until("capture from the WAL", PATIENCE, || async {
            match copy
                .value("select string_agg(distinct capture, ',') from pgtrickle.pgt_sources")
                .await
                .as_deref()
            {
                Some("wal") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        load.progress(20).await;
        load.stop().await;
        super::proof::check_equal(&copy).await;
        assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}
