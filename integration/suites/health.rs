//! What the health functions say, and that it is what the server shows.

use tokio_postgres::Client;

use super::hazards::Scene;
use super::snapshots::value;
use crate::harness::database::{TestDatabase, connect};
use crate::harness::servers::{each, for_each_major};
use crate::harness::wait::{SOON, wait_until};
use crate::harness::{Server, Sidecar, own_cluster};

/// Severity and detail of a check; several rows in one line each.
async fn check(client: &Client, name: &str) -> String {
    value(
        client,
        &format!(
            "select string_agg(severity || ' ' || detail, E'\\n' order by severity, detail)
        from pgtrickle.health_check() where check_name = '{name}'"
        ),
    )
    .await
}

/// Waits until a check says something that contains `wanted`.
async fn becomes(client: &Client, name: &str, wanted: &str) {
    wait_until(&format!("{name} to say {wanted:?}"), SOON, || async {
        let said = check(client, name).await;
        if said.contains(wanted) { Ok(()) } else { Err(said) }
    })
    .await;
}

/// `column type` of a function's result.
async fn columns(client: &Client, function: &str) -> String {
    value(client, &format!("select pg_get_function_result('pgtrickle.{function}()'::regprocedure)")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_results_have_the_columns_that_users_know() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        for (function, wanted) in [
            ("health_check", "check_name text, severity text, detail text"),
            ("slot_health", "slot_name text, source_relid bigint, active boolean, retained_wal_bytes bigint, wal_status text"),
            ("check_cdc_health", "source_relid bigint, source_table text, cdc_mode text, slot_name text, lag_bytes bigint, confirmed_lsn text, alert text, selective_capture boolean"),
            ("wal_source_status", "source_relid bigint, source_name text, cdc_mode text, slot_name text, slot_lag_bytes bigint, publication_name text, blocked_reason text, transition_started_at text, decoder_confirmed_lsn text"),
            ("trigger_inventory", "source_table text, source_oid bigint, trigger_name text, trigger_type text, present boolean, enabled boolean"),
            ("change_buffer_sizes", "stream_table text, source_table text, source_oid bigint, cdc_mode text, pending_rows bigint, buffer_bytes bigint"),
        ] {
            assert_eq!(columns(&app, function).await, format!("TABLE({wanted})"), "{function}");
            // With nothing there yet it runs for everybody who was granted.
            app.batch_execute(&format!("select * from pgtrickle.{function}()")).await.unwrap();
        }
        let names = "select string_agg(distinct check_name, ' ' order by check_name) from pgtrickle.health_check()";
        assert_eq!(
            value(&app, names).await,
            "buffer_growth capture consecutive_errors error_tables fallback_ready foreign_keys guards needs_reinit recoveries scheduler_running stale_tables user_rules user_triggers"
        );
        assert!(check(&app, "scheduler_running").await.starts_with("ERROR no sidecar serves pipeline main; last seen: never"));
    })
    .await;
}

async fn scene(server: &Server) -> Scene {
    let scene = Scene::start(server, "create table t (id int primary key, v int not null); insert into t select i, i from generate_series(1, 20) i").await;
    scene.create("st", "select id, v from t").await;
    scene.passed().await;
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_pipeline_is_all_ok_and_a_missing_sidecar_slot_or_publication_is_not() {
    each(async |major| {
        // What a slot retains is the cluster's: nobody else may write.
        let server = own_cluster(major, &[]).await;
        let mut scene = scene(&server).await;
        let bad = "select coalesce(string_agg(check_name || ' ' || severity || ' ' || detail, E'\\n'), '') from pgtrickle.health_check() where severity <> 'OK'";
        wait_until("everything to be OK", SOON, || async {
            let told = value(&scene.app, bad).await;
            if told.is_empty() { Ok(()) } else { Err(told) }
        })
        .await;
        let slot = "select active || ' ' || (retained_wal_bytes >= 0) || ' ' || wal_status from pgtrickle.slot_health()";
        assert_eq!(value(&scene.app, slot).await, "true true reserved");
        let cdc = "select concat_ws(' ', source_table, cdc_mode, lag_bytes >= 0, confirmed_lsn is not null, alert) from pgtrickle.check_cdc_health()";
        assert_eq!(value(&scene.app, cdc).await, "app.t wal t t");
        let wal = "select concat_ws(' ', source_name, cdc_mode, publication_name = (select publication_name from pgtrickle.pgt_pipelines), blocked_reason) from pgtrickle.wal_source_status()";
        assert_eq!(value(&scene.app, wal).await, "app.t wal t");
        assert_eq!(value(&scene.app, "select count(*) from pgtrickle.trigger_inventory()").await, "0");
        let buffers = "select concat_ws(' ', stream_table, source_table, cdc_mode, pending_rows, buffer_bytes) from pgtrickle.change_buffer_sizes()";
        assert_eq!(value(&scene.app, buffers).await, "app.st app.t wal 0 0");
        // Somebody else learns the health, not what is read.
        let bob = format!("bob_{}", scene.db.name);
        scene.dba.batch_execute(&format!("create role {bob} login; select pgtrickle.grant_usage('{bob}')")).await.unwrap();
        let other = connect(&scene.db.url(&bob)).await;
        assert_eq!(value(&other, "select count(*) || ' ' || count(source_table) from pgtrickle.check_cdc_health()").await, "1 0");
        assert_eq!(value(&other, "select count(*) from pgtrickle.change_buffer_sizes()").await, "0");
        assert_eq!(value(&other, bad).await, "");
        // Retained WAL against the thresholds, while nobody reads it.
        scene.sidecar.pause();
        scene.dba.batch_execute("insert into pgtrickle.settings values ('slot_lag_warning_threshold_mb', '1'), ('slot_lag_critical_threshold_mb', '4')").await.unwrap();
        let fill = "create table if not exists filler (t text); insert into filler select repeat('x', 1000) from generate_series(1, 1500)";
        for wanted in ["WARN ", "ERROR "] {
            wait_until("the slot to retain more", SOON, || async {
                scene.run(fill).await;
                let told = check(&other, "slot_lag").await;
                if told.starts_with(wanted) { Ok(()) } else { Err(told) }
            })
            .await;
        }
        assert!(value(&other, "select alert from pgtrickle.check_cdc_health()").await.starts_with("slot_lag_exceeds_threshold: "));
        scene.dba.batch_execute("delete from pgtrickle.settings where key like 'slot_lag%'").await.unwrap();
        scene.sidecar.resume();
        scene.sidecar.kill9();
        becomes(&other, "scheduler_running", "ERROR no sidecar serves pipeline main; last seen: 2").await;
        wait_until("the slot to be free", SOON, || async {
            let told = value(&other, slot).await;
            if told.starts_with("false ") { Ok(()) } else { Err(told) }
        })
        .await;
        scene.dba.batch_execute("select pg_drop_replication_slot(slot_name) from pgtrickle.pgt_pipelines").await.unwrap();
        assert_eq!(value(&other, "select concat_ws(' ', active, retained_wal_bytes, wal_status) from pgtrickle.slot_health()").await, "f missing");
        assert_eq!(value(&other, "select alert from pgtrickle.check_cdc_health()").await, "replication_slot_missing");
        assert!(check(&other, "slot_lag").await.starts_with("ERROR the replication slot "));
        assert!(check(&other, "capture").await.contains("ERROR a source of another role: captured by wal: replication_slot_missing"));
        assert!(check(&scene.app, "capture").await.contains("ERROR app.t: captured by wal: replication_slot_missing"));
        // The loss is told until somebody has seen it.
        scene.sidecar.start_again();
        scene.check_in_time(&["st"]).await;
        becomes(&scene.app, "recoveries", "WARN app.t: ").await;
        becomes(&scene.app, "recoveries", "repaired: ").await;
        assert_eq!(value(&scene.dba, "select pgtrickle.acknowledge_recoveries() > 0").await, "true");
        assert!(check(&scene.app, "recoveries").await.starts_with("OK "));
        assert!(scene.app.batch_execute("select pgtrickle.acknowledge_recoveries()").await.is_err());
        drop(other);
        scene.dba.batch_execute(&format!("drop owned by {bob}; drop role {bob}")).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_tables_that_fail_wait_or_carry_what_users_put_on_them_are_named() {
    for_each_major(async |server| {
        let scene = scene(server).await;
        scene.create("quotients", "select id, 10 / v as q from t").await;
        scene.run("update t set v = 0 where id = 3").await;
        becomes(&scene.app, "consecutive_errors", "WARN failures in a row: app.quotients (").await;
        scene.wait_status("quotients", "SUSPENDED").await;
        assert_eq!(check(&scene.app, "error_tables").await, "WARN suspended: app.quotients");
        scene
            .run(
                "create table child (id int references st);
                 create function noop() returns trigger language plpgsql as 'begin return new; end';
                 create trigger mine before insert on st for each row execute function noop();
                 create rule nothing as on insert to st where new.id < 0 do also select 1;
                 drop trigger pgtrickle_guard on st",
            )
            .await;
        assert!(check(&scene.app, "foreign_keys").await.starts_with("WARN ") && check(&scene.app, "foreign_keys").await.contains("app.st: child_id_fkey on"));
        assert!(check(&scene.app, "user_triggers").await.contains("WARN ") && check(&scene.app, "user_triggers").await.contains("app.st: mine"));
        assert!(check(&scene.app, "user_rules").await.contains("app.st: nothing"));
        assert!(check(&scene.app, "guards").await.starts_with("WARN ") && check(&scene.app, "guards").await.ends_with(": app.st"));
        scene.run("drop rule nothing on st; drop trigger mine on st; drop table child; select pgtrickle.repair_stream_table('st')").await;
        for name in ["foreign_keys", "user_triggers", "user_rules", "guards"] {
            assert!(check(&scene.app, name).await.starts_with("OK "), "{name}");
        }
        scene.dba.batch_execute("update pgtrickle.pgt_stream_tables set status = 'INITIALIZING' where pgt_name = 'quotients'").await.unwrap();
        assert!(check(&scene.app, "needs_reinit").await.contains("app.quotients"));
        scene.dba.batch_execute("drop table app.quotients").await.unwrap();
        assert!(check(&scene.app, "error_tables").await.contains("ERROR in status ERROR: app.quotients"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_and_buffers_are_looked_at_and_not_believed() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute("create table t (id int primary key, v int); insert into t values (1, 1)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "trigger"]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('st', 'select id, v from t')").await.unwrap();
        let inventory = "select string_agg(concat_ws(' ', source_table, trigger_type, present, enabled), ', ' order by trigger_type) from pgtrickle.trigger_inventory()";
        let sound = "app.t AFTER DELETE STATEMENT t t, app.t AFTER INSERT STATEMENT t t, app.t AFTER TRUNCATE STATEMENT t t, app.t AFTER UPDATE STATEMENT t t";
        wait_until("the triggers to be there", SOON, || async {
            let told = value(&app, inventory).await;
            if told == sound { Ok(()) } else { Err(told) }
        })
        .await;
        becomes(&app, "capture", "WARN app.t: captured by trigger").await;
        let cdc = "select concat_ws('|', cdc_mode, slot_name, lag_bytes, alert) from pgtrickle.check_cdc_health()";
        wait_until("the source to be captured", SOON, || async {
            let told = value(&app, cdc).await;
            if told == "trigger" { Ok(()) } else { Err(told) }
        })
        .await;
        assert_eq!(value(&app, "select count(*) from pgtrickle.slot_health()").await, "0");
        assert!(!value(&app, "select blocked_reason from pgtrickle.wal_source_status()").await.is_empty());
        sidecar.kill9();
        app.batch_execute("insert into t select i, i from generate_series(2, 12000) i").await.unwrap();
        let buffers = "select concat_ws(' ', stream_table, source_table, cdc_mode, pending_rows, buffer_bytes > 100000) from pgtrickle.change_buffer_sizes()";
        assert_eq!(value(&app, buffers).await, "app.st app.t trigger 11999 t");
        assert!(check(&app, "buffer_growth").await.starts_with("WARN large: app.t (more than 10000 rows"), "{}", check(&app, "buffer_growth").await);
        assert_eq!(value(&app, cdc).await, "trigger|sidecar_not_running");
        // ENABLE is not ENABLE ALWAYS.
        let name = value(&dba, "select tgname from pg_trigger where tgname like 'pgtrickle_capture_insert%'").await;
        dba.batch_execute(&format!("alter table app.t enable trigger {name}")).await.unwrap();
        assert_eq!(value(&app, inventory).await, sound.replace("INSERT STATEMENT t t", "INSERT STATEMENT t f"));
        assert!(value(&app, cdc).await.starts_with("trigger|trigger_broken: "));
        assert!(check(&app, "capture").await.starts_with("ERROR app.t: captured by trigger: trigger_broken: "));
        dba.batch_execute(&format!("drop trigger {name} on app.t")).await.unwrap();
        assert_eq!(value(&app, inventory).await, sound.replace("INSERT STATEMENT t t", "INSERT STATEMENT f f"));
        sidecar.start_again();
        wait_until("the triggers to be there again", SOON, || async {
            let told = value(&app, inventory).await;
            if told == sound { Ok(()) } else { Err(told) }
        })
        .await;
        wait_until("nothing to be pending", SOON, || async {
            let told = value(&app, "select sum(pending_rows) from pgtrickle.change_buffer_sizes()").await;
            if told == "0" { Ok(()) } else { Err(told) }
        })
        .await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
