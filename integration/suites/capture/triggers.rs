//! What triggers record, in both deliveries.

use tokio_postgres::Client;

use super::world::World;
use super::{CAPTURE, WARNINGS, becomes, text};
use crate::harness::database::{APP, SIDECAR};
use crate::harness::oracle::assert_equal;
use crate::harness::{SOON, Server, Sidecar, TestDatabase, for_each_major, wait_until};

/// A server database with a sidecar in either delivery.
async fn started(server: &'static Server, arguments: &[&str]) -> (TestDatabase, Client, Sidecar) {
    let db = TestDatabase::create(server).await;
    db.install();
    let app = db.as_app().await;
    let mut sidecar = Sidecar::start(&db, arguments);
    sidecar.wait_ready(SOON).await;
    (db, app, sidecar)
}

async fn passed(app: &Client) {
    wait_until("the frontier passes", SOON, || async {
        match app.query_one("select pgtrickle.wait_for(timeout => '5 s')", &[]).await {
            Ok(row) if row.get(0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn active(app: &Client) {
    const SQL: &str = "select coalesce(string_agg(concat_ws(' ', name, status, refresh_mode, refresh_reason, last_error_message), ', '), '')
        from pgtrickle.pgt_status() where status <> 'ACTIVE' or refresh_mode <> 'DIFFERENTIAL'";
    becomes(app, SQL, "").await;
}

/// Both deliveries: messages through the slot, and buffers.
const DELIVERIES: [&[&str]; 2] = [&[], &["--cdc-mode", "trigger"]];

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_identity_is_captured_exactly_and_its_writes_never_fail() {
    for_each_major(async |server| {
        for arguments in DELIVERIES {
            let db = TestDatabase::create(server).await;
            db.install();
            let dba = db.as_dba().await;
            // Somebody else publishes everything.
            dba.batch_execute("create publication everything for all tables with (publish = 'insert')")
                .await
                .unwrap();
            let world = World::new(&db, true).await;
            let mut sidecar = Sidecar::start(&db, arguments);
            sidecar.wait_ready(SOON).await;
            world.create().await;
            world.active().await;
            let writers = world.writers(&db, 3).await;
            writers.more(400).await;
            writers.stop().await;
            world.check().await;
            let expected = if arguments.is_empty() { "trigger wal" } else { "trigger" };
            assert_eq!(text(&dba, CAPTURE).await, expected);
            // A restart finds its triggers and reads everything again.
            sidecar.kill9();
            let writers = world.writers(&db, 2).await;
            writers.more(100).await;
            sidecar.start_again();
            writers.more(100).await;
            writers.stop().await;
            world.active().await;
            world.check().await;
            assert_eq!(sidecar.terminate(SOON).await, Some(0));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_of_the_users_truncates_and_changes_of_shape_are_followed() {
    for_each_major(async |server| {
        for arguments in DELIVERIES {
            let (_db, app, mut sidecar) = started(server, arguments).await;
            app.batch_execute(
                "create table t (a int, b int, c text);
                 create function again() returns trigger language plpgsql as $$
                 begin
                     update t set b = new.b + 100 where a = new.a and b = new.b and b < 50;
                     return null;
                 end $$;
                 create trigger again after update on t for each row execute function again();
                 insert into t select i % 5, i, 'x' from generate_series(1, 20) i",
            )
            .await
            .unwrap();
            let query = "select a, b, c from t";
            app.execute("select pgtrickle.create_stream_table('st', $1)", &[&query]).await.unwrap();
            active(&app).await;
            let steps = [
                "update t set b = b + 1 where a = 2",
                "truncate t",
                "insert into t values (1, 1, null), (1, 1, null), (2, 2, '')",
                "begin; insert into t values (3, 3, 'gone'); truncate t; insert into t values (4, 4, 'kept'); commit",
                "insert into t select i, i, 'a \"b\", (c) \\d' || chr(10) from generate_series(1, 5) i",
                "alter table t add column d int default 7",
                "insert into t values (6, 6, 'six', 6)",
                "alter table t drop column d",
                "insert into t values (7, 7, 'seven')",
                "delete from t where a = 4",
            ];
            for step in steps {
                app.batch_execute(step).await.unwrap();
                if !step.starts_with("alter") {
                    active(&app).await;
                    passed(&app).await;
                    assert_equal(&app, query, "st", "a, b, c").await;
                }
            }
            assert_eq!(sidecar.terminate(SOON).await, Some(0));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_was_off_is_noticed_told_and_repaired() {
    for_each_major(async |server| {
        for arguments in DELIVERIES {
            let (db, app, mut sidecar) = started(server, arguments).await;
            app.batch_execute("create table t (a int, b int); insert into t values (1, 1)").await.unwrap();
            app.execute("select pgtrickle.create_stream_table('st', 'select a, b from t')", &[]).await.unwrap();
            active(&app).await;
            let dba = db.as_dba().await;
            let harms = [
                "alter table app.t disable trigger all; insert into app.t values (2, 2); alter table app.t enable trigger all",
                "do $$ declare t text; begin
                    for t in select tgname from pg_trigger where tgrelid = 'app.t'::regclass and tgname like 'pgtrickle%' loop
                        execute format('drop trigger %I on app.t', t);
                    end loop; end $$; insert into app.t values (3, 3)",
                "do $$ declare f text; begin
                    for f in select oid::regprocedure::text from pg_proc where pronamespace = 'pgtrickle_changes'::regnamespace loop
                        execute format('drop function %s cascade', f);
                    end loop; end $$; insert into app.t values (4, 4)",
            ];
            for (number, harm) in harms.iter().enumerate() {
                dba.batch_execute(harm).await.unwrap();
                let told = format!("select (count(*) = {})::text from pgtrickle.pgt_recoveries where diagnosis = 'TRIGGERS_LOST'", number + 1);
                becomes(&dba, &told, "true").await;
                active(&app).await;
                let rows = "select string_agg(a || '', ',' order by a) from st";
                let expected = ["1,2", "1,2,3", "1,2,3,4"][number];
                becomes(&app, rows, expected).await;
                app.batch_execute("update t set b = b + 1").await.unwrap();
                passed(&app).await;
                assert_equal(&app, "select a, b from t", "st", "a, b").await;
            }
            assert_eq!(text(&dba, WARNINGS).await, ["TRIGGERS_LOST app.t"; 3].join(", "));
            // While nobody looks: the start reads everything, and says it all the same, once.
            app.batch_execute("create table whole (a int)").await.unwrap();
            app.execute("select pgtrickle.create_stream_table('sw', 'select a from whole')", &[]).await.unwrap();
            active(&app).await;
            sidecar.kill9();
            dba.batch_execute(harms[1]).await.unwrap();
            for _ in 0..2 {
                sidecar.start_again();
                becomes(&dba, "select (count(*) = 4)::text from pgtrickle.pgt_recoveries", "true").await;
                active(&app).await;
                app.batch_execute("update t set b = b + 1; insert into whole values (1)").await.unwrap();
                passed(&app).await;
                assert_equal(&app, "select a, b from t", "st", "a, b").await;
                assert_eq!(sidecar.terminate(SOON).await, Some(0));
            }
            assert_eq!(text(&dba, WARNINGS).await, ["TRIGGERS_LOST app.t"; 4].join(", "));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlogged_source_and_a_key_that_is_deferrable_are_captured_by_triggers() {
    for_each_major(async |server| {
        for arguments in DELIVERIES {
            let (db, app, mut sidecar) = started(server, arguments).await;
            app.batch_execute(
                "create unlogged table u (id int primary key, v int);
                 create table d (id int primary key deferrable, v int);
                 insert into u values (1, 1); insert into d values (1, 1)",
            )
            .await
            .unwrap();
            let query = "select u.id, u.v, d.v as w from u join d using (id)";
            app.execute("select pgtrickle.create_stream_table('st', $1)", &[&query]).await.unwrap();
            active(&app).await;
            app.batch_execute("insert into u values (2, 2), (3, 3); insert into d values (2, 5); update d set id = 3 - id; update u set v = v + 1; delete from d where id = 2")
                .await
                .unwrap();
            passed(&app).await;
            assert_equal(&app, query, "st", "id, v, w").await;
            let dba = db.as_dba().await;
            assert_eq!(text(&dba, CAPTURE).await, "trigger");
            assert_eq!(sidecar.terminate(SOON).await, Some(0));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_message_changes_nothing() {
    for_each_major(async |server| {
        let (db, app, mut sidecar) = started(server, &[]).await;
        app.batch_execute("create table t (a int, b int); insert into t values (1, 1)").await.unwrap();
        app.execute("select pgtrickle.create_stream_table('st', 'select a, b from t')", &[]).await.unwrap();
        active(&app).await;
        let dba = db.as_dba().await;
        let facts = text(&dba, "select source_id || ' ' || pgtrickle._shape_of('app.t'::regclass) from pgtrickle.pgt_sources where source_name = 'app.t'").await;
        let (id, shape) = facts.split_once(' ').unwrap();
        let forged = format!("select pg_logical_emit_message(true, 'pgtrickle:{id}', '0123 {shape} I(666,666)')");
        app.batch_execute(&forged).await.unwrap();
        app.batch_execute("insert into t values (2, 2)").await.unwrap();
        passed(&app).await;
        assert_equal(&app, "select a, b from t", "st", "a, b").await;
        let token = app.query("select token from pgtrickle.pgt_tokens", &[]).await;
        assert_eq!(token.unwrap_err().as_db_error().unwrap().code().code(), "42501");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_owners_rights_there_is_recomputation_until_the_owner_attaches() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        let dba = db.as_dba().await;
        // Installed by a role that owns the database and nothing of the application's.
        let role = format!("installer_{}", db.name);
        dba.batch_execute(&format!("create role {role} login; grant create on database {} to {role}", db.name)).await.unwrap();
        let url = db.url(&role);
        let output = crate::harness::database::pgtrickle(&["init", "--database-url", &url, "--sidecar-role", SIDECAR, "--grant-to", APP]);
        assert!(output.status.success(), "{}", crate::harness::database::printed(&output));
        let app = db.as_app().await;
        app.batch_execute("create table t (a int primary key, b int); insert into t values (1, 1)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "trigger"]);
        sidecar.wait_ready(SOON).await;
        app.execute("select pgtrickle.create_stream_table('st', 'select a, b from t', schedule => '1s')", &[]).await.unwrap();
        let mode = "select status || ' ' || refresh_mode || ' ' || coalesce(refresh_reason, '') from pgtrickle.pgt_status()";
        becomes(&app, mode, "ACTIVE FULL changes of app.t can't be captured by triggers: app.t belongs to app, and triggers need its owner").await;
        app.batch_execute("insert into t values (2, 2)").await.unwrap();
        becomes(&app, "select count(*) || '' from st", "2").await;
        app.batch_execute("select pgtrickle.attach_source('t'); select pgtrickle.alter_stream_table('st', schedule => 'calculated')").await.unwrap();
        becomes(&app, mode, "ACTIVE DIFFERENTIAL ").await;
        app.batch_execute("insert into t values (3, 3); delete from t where a = 1").await.unwrap();
        passed(&app).await;
        assert_equal(&app, "select a, b from t", "st", "a, b").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        drop(app);
        dba.batch_execute("drop schema pgtrickle cascade; drop schema pgtrickle_queries cascade; drop schema pgtrickle_changes cascade").await.unwrap();
        dba.batch_execute(&format!("drop owned by {role} cascade; drop role {role}")).await.unwrap();
    })
    .await;
}
