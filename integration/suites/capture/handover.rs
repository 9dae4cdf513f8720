//! From the WAL to triggers and back, while the application writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::world::World;
use super::{CAPTURE, TRIGGERS, WARNINGS, becomes, text};
use crate::harness::database::SIDECAR;
use crate::harness::servers::{each, own_cluster};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

const DROP_SLOT: &str = "do $$
    begin
        loop
            perform pg_terminate_backend(active_pid) from pg_replication_slots where database = current_database();
            begin
                perform pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database();
                return;
            exception when object_in_use then
                null;
            end;
        end loop;
    end $$";

/// The catalog says `wal` also before the loss is noticed; the log counts.
async fn back_to_wal(sidecar: &Sidecar, times: usize) {
    wait_until("the way back to the WAL", SOON, || async {
        let back = sidecar.logs().matches("changes come from the WAL again").count();
        if back >= times { Ok(()) } else { Err(format!("{back} times")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_is_told_once_per_source_and_comes_back_by_itself() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let world = World::new(&db, false).await;
        let dba = db.as_dba().await;
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        let writers = world.writers(&db, 3).await;
        writers.more(100).await;
        assert_eq!(text(&dba, CAPTURE).await, "wal");
        let sources = "SLOT_MISSING app.accounts, SLOT_MISSING app.holders";
        for round in 1..=2 {
            dba.batch_execute(DROP_SLOT).await.unwrap();
            let count = format!("select (count(*) >= {round} * 2)::text from pgtrickle.pgt_recoveries");
            becomes(&dba, &count, "true").await;
            writers.more(100).await;
            back_to_wal(&sidecar, round).await;
            becomes(&dba, CAPTURE, "wal").await;
            becomes(&dba, TRIGGERS, "0").await;
            writers.more(200).await;
        }
        let commits = writers.stop().await;
        world.active().await;
        world.check().await;
        println!("  {commits} commits");
        assert_eq!(text(&dba, WARNINGS).await, format!("{sources}, {sources}"));
        let told = sidecar.logs().lines().filter(|l| l.contains("WARN") && l.contains("SLOT_MISSING")).count();
        assert_eq!(told, 4, "one line per source and incident");
        let drift = "select bool_and(completed_at is not null and rows_inserted is not null)::text from pgtrickle.pgt_recoveries";
        becomes(&dba, drift, "true").await;
        let reason = "select string_agg(distinct reason, ',') from pgtrickle.pgt_refresh_history
            where action = 'REINITIALIZE' and status = 'COMPLETED' and reason like '%slot is gone%'";
        assert_eq!(text(&dba, reason).await, "the replication slot is gone");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_logical_decoding_and_replication_right_everything_works_by_triggers() {
    each(async |major| {
        let mut server =
            own_cluster(major, &[("wal_level", "replica"), ("max_replication_slots", "4")]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let world = World::new(&db, true).await;
        let dba = db.as_dba().await;
        dba.batch_execute(&format!("alter role {SIDECAR} noreplication")).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        let writers = world.writers(&db, 3).await;
        writers.more(300).await;
        assert_eq!(text(&dba, CAPTURE).await, "trigger");
        let why = text(&dba, "select delivery || ': ' || delivery_reason from pgtrickle.pgt_pipelines").await;
        assert_eq!(why, "poll: wal_level is replica, logical is needed");
        // The cause goes away, half by half.
        let commits = writers.stop().await;
        world.check().await;
        dba.batch_execute(&format!("alter role {SIDECAR} replication")).await.unwrap();
        drop(world);
        drop(dba);
        server.cluster.set("wal_level", "logical");
        server.cluster.restart(pgtrickle::postgres::cluster::StopMode::Fast).unwrap();
        let dba = db.as_dba().await;
        becomes(&dba, "select delivery from pgtrickle.pgt_pipelines", "slot").await;
        let world = World::again(&db, true).await;
        let writers = world.writers(&db, 3).await;
        writers.more(200).await;
        world.active().await;
        // The table without identity stays with triggers, whose messages come through the slot.
        becomes(&dba, CAPTURE, "trigger wal").await;
        println!("  {commits} and {} commits", writers.stop().await);
        world.check().await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_modes_can_be_set_in_the_database_and_on_the_command_line() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let world = World::new(&db, false).await;
        let dba = db.as_dba().await;
        dba.batch_execute("insert into pgtrickle.settings values ('cdc_mode', 'trigger')").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        assert_eq!(text(&dba, CAPTURE).await, "trigger");
        world.check().await;
        // Asked for otherwise, it goes to the WAL while it runs.
        let writers = world.writers(&db, 2).await;
        dba.batch_execute("update pgtrickle.settings set value = 'auto' where key = 'cdc_mode'")
            .await
            .unwrap();
        becomes(&dba, CAPTURE, "wal").await;
        writers.more(100).await;
        dba.batch_execute("update pgtrickle.settings set value = 'trigger' where key = 'cdc_mode'")
            .await
            .unwrap();
        becomes(&dba, CAPTURE, "trigger").await;
        writers.more(100).await;
        dba.batch_execute("delete from pgtrickle.settings where key = 'cdc_mode'").await.unwrap();
        becomes(&dba, CAPTURE, "wal").await;
        writers.more(100).await;
        writers.stop().await;
        world.active().await;
        world.check().await;
        assert_eq!(text(&dba, "select count(*) || '' from pgtrickle.pgt_recoveries").await, "0");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "trigger"]);
        sidecar.wait_ready(SOON).await;
        assert_eq!(text(&dba, CAPTURE).await, "trigger");
        let slots = "select count(*) || '' from pg_replication_slots where database = current_database()";
        assert_eq!(text(&dba, slots).await, "0", "a slot that nobody reads keeps WAL");
        world.check().await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_table_can_ask_for_triggers_while_the_others_stay_with_the_wal() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let world = World::new(&db, false).await;
        let dba = db.as_dba().await;
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        let writers = world.writers(&db, 2).await;
        world.app.batch_execute("create table bare (a int)").await.unwrap();
        let wal = "select pgtrickle.create_stream_table('b', 'select a from bare', cdc_mode => 'wal')";
        let refused = world.app.batch_execute(wal).await.unwrap_err();
        assert_eq!(refused.as_db_error().unwrap().code().code(), "22023", "{refused:?}");
        world.app.batch_execute("select pgtrickle.alter_stream_table('cities', cdc_mode => 'trigger')").await.unwrap();
        let by_source = "select string_agg(source_name || ' ' || capture, ', ' order by source_name) from pgtrickle.pgt_sources";
        becomes(&dba, by_source, "app.accounts wal, app.holders trigger").await;
        writers.more(100).await;
        world.app.batch_execute("select pgtrickle.alter_stream_table('cities', cdc_mode => 'auto')").await.unwrap();
        becomes(&dba, by_source, "app.accounts wal, app.holders wal").await;
        becomes(&dba, TRIGGERS, "0").await;
        writers.more(100).await;
        writers.stop().await;
        world.active().await;
        world.check().await;
        assert_eq!(text(&dba, "select count(*) || '' from pgtrickle.pgt_recoveries").await, "0");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A bag shows every change that is missed or comes twice; a key would hide some.
#[tokio::test(flavor = "multi_thread")]
async fn many_handovers_miss_nothing_and_repeat_nothing() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let dba = db.as_dba().await;
        let app = db.as_app().await;
        app.batch_execute("create table noted (kind text, v int); alter table noted replica identity full").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('bag', 'select kind, v from noted')").await.unwrap();
        becomes(&dba, CAPTURE, "wal").await;
        let writer = db.as_app().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // Single rows with pauses: often nothing else is written around the moment of the switch.
        let writing = tokio::spawn(async move {
            let mut n = 0i32;
            while !stopped.load(Ordering::Relaxed) {
                n += 1;
                writer.execute("insert into noted values ('w', $1)", &[&n]).await.expect("an insert");
                let pause = [1, 40, 3, 120, 10, 250][n as usize % 6];
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            n
        });
        for round in 1..=8 {
            dba.batch_execute(DROP_SLOT).await.unwrap();
            let told = format!("select (count(*) >= {round})::text from pgtrickle.pgt_recoveries");
            becomes(&dba, &told, "true").await;
            back_to_wal(&sidecar, round).await;
            const DIFFERS: &str = "select count(*) || '' from (
                (select kind, v, count(*) from app.noted group by 1, 2 except all select kind, v, count(*) from app.bag group by 1, 2)
                union all (select kind, v, count(*) from app.bag group by 1, 2 except all select kind, v, count(*) from app.noted group by 1, 2)) d";
            // The writer goes on: a difference that is not of a moment stays.
            becomes(&dba, DIFFERS, "0").await;
        }
        stop.store(true, Ordering::Relaxed);
        println!("  {} rows", writing.await.unwrap());
        let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
        assert!(passed);
        crate::harness::oracle::assert_equal(&app, "select kind, v from noted", "bag", "kind, v").await;
        let others = "select count(*) || '' from pgtrickle.pgt_recoveries where diagnosis <> 'SLOT_MISSING'";
        assert_eq!(text(&dba, others).await, "0");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
