//! News that come at the wrong moment: a failure of what has left already, a stream table that leaves while somebody
//! holds its row of the catalog.

use super::bad_input::wait_value;
use super::hazards::Scene;
use super::snapshots::value;
use crate::harness::{SOON, for_each_major, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn the_late_failure_of_an_apply_does_not_replace_the_reason_for_which_a_stream_table_left() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table t (id int primary key); create table u (id int primary key); create table gate (open int)",
        )
        .await;
        scene.create("st", "select id from t").await;
        scene.create("su", "select id from u").await;
        // The owner's own code holds up the apply, and then fails it.
        scene
            .run(
                "create function late() returns trigger language plpgsql as $$ begin
                    while not exists (select from app.gate) loop perform pg_catalog.pg_sleep(0.02); end loop;
                    raise exception 'too late' using errcode = 'P0001';
                 end $$;
                 create trigger late before insert on st for each row execute function late()",
            )
            .await;
        scene.run("insert into t values (1)").await;
        let held = "select count(*) from pg_stat_activity where application_name = 'pgtrickle:main:apply'
            and datname = current_database() and wait_event = 'PgSleep'";
        wait_value(&scene.dba, held, "1").await;
        scene.run("drop table t cascade").await;
        let state = "select last_error_sqlstate from pgtrickle.pgt_stream_tables where pgt_name = 'st'";
        wait_value(&scene.dba, state, "42P01").await;
        assert_eq!(value(&scene.dba, held).await, "1", "the apply is still under way");
        scene.run("insert into gate values (1); insert into u values (1)").await;
        wait_value(&scene.app, "select count(*) from su", "1").await;
        assert_eq!(value(&scene.dba, state).await, "42P01");
        let told = scene.column("st", "last_error_message").await.unwrap();
        assert!(told.contains("CASCADE"), "{told}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_cannot_be_stored_yet_is_no_fresh_stream_table() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table t (id int primary key, v int); insert into t values (1, 1); create table u (id int primary key)",
        )
        .await;
        scene.create("st", "select id, 10 / v as q from t").await;
        scene.create("su", "select id from u").await;
        scene.passed().await;
        let holder = scene.db.as_app().await;
        holder
            .batch_execute("begin; select from pgtrickle.pgt_stream_tables where pgt_name = 'st' for update")
            .await
            .unwrap();
        scene.run("insert into t values (2, 0)").await;
        let since = value(&scene.dba, "select clock_timestamp()").await;
        scene.run("insert into u values (1)").await;
        wait_value(&scene.app, "select count(*) from su", "1").await;
        wait_until("the stream table to be known as behind", SOON, || async {
            let passed = value(&scene.app, "select pgtrickle.wait_for(timeout => '200 ms')").await;
            assert_eq!(passed, "false", "told that all is in, and the stream table has failed");
            let status = scene.status("st").await;
            if status.starts_with("ACTIVE") { Err(status) } else { Ok(()) }
        })
        .await;
        // What it lacks was committed before: it is not complete up to then, however far the pipeline is.
        let moved = format!("select data_timestamp > '{since}' from pgtrickle.pgt_pipelines");
        wait_value(&scene.dba, &moved, "true").await;
        let fresh = format!(
            "select string_agg(pgt_name || (data_timestamp > '{since}'), ' ' order by pgt_name)
               from pgtrickle.stream_tables_info"
        );
        assert_eq!(value(&scene.dba, &fresh).await, "stfalse sutrue");
        // Nor when it is tried again, and fails again.
        wait_until("the next failure", SOON, || async {
            let logs = scene.sidecar.logs();
            if logs.matches("its catalog row is locked").count() > 1 { Ok(()) } else { Err(logs) }
        })
        .await;
        assert_eq!(value(&scene.dba, &fresh).await, "stfalse sutrue");
        holder.batch_execute("rollback").await.unwrap();
        let state = "select last_error_sqlstate from pgtrickle.stream_tables_info where pgt_name = 'st'";
        wait_value(&scene.dba, state, "22012").await;
        assert_eq!(value(&scene.dba, &fresh).await, "stfalse sutrue", "nor once it is stored");
        let ahead = "select (s.frontier < p.frontier)::text from pgtrickle.pgt_stream_tables s
            join pgtrickle.pgt_pipelines p using (pipeline) where pgt_name = 'st'";
        assert_eq!(value(&scene.dba, ahead).await, "true");
        scene.run("update t set v = 1 where id = 2").await;
        scene.check_in_time(&["st", "su"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_that_an_attached_partition_is_in_while_the_row_of_its_reader_is_locked() {
    for_each_major(async |server| {
        let mut scene = Scene::start(
            server,
            "create table p (id int, part int, primary key (id, part)) partition by list (part);
             create table p1 partition of p for values in (1); insert into p values (1, 1);
             create table p2 (id int not null, part int not null, primary key (id, part));
             insert into p2 select i, 2 from generate_series(1, 10) i; create table u (id int primary key)",
        )
        .await;
        scene.create("st", "select id, part from p").await;
        scene.create("su", "select id from u").await;
        scene.passed().await;
        // Somebody's open transaction, as of an alter_stream_table that is not committed.
        let holder = scene.db.as_app().await;
        holder
            .batch_execute("begin; select from pgtrickle.pgt_stream_tables where pgt_name = 'st' for update")
            .await
            .unwrap();
        scene.run("alter table p attach partition p2 for values in (2)").await;
        scene.run("insert into u values (1)").await;
        let rows = "select count(*) from st";
        let mut looks = 0;
        let since = value(&scene.dba, "select clock_timestamp()").await;
        wait_until("the stream table to be known as behind", SOON, || async {
            let passed = value(&scene.app, "select pgtrickle.wait_for(timeout => '200 ms')").await;
            let seen = value(&scene.app, rows).await;
            assert!(passed != "true" || seen == "11", "told that all is in, and {seen} rows are");
            let status = scene.status("st").await;
            if status.starts_with("INITIALIZING") { Ok(()) } else { Err(status) }
        })
        .await;
        // It stays so for as long as the row is held, and others go on.
        wait_value(&scene.app, "select count(*) from su", "1").await;
        while looks < 5 {
            looks += 1;
            assert_eq!(value(&scene.app, "select pgtrickle.wait_for(timeout => '100 ms')").await, "false");
        }
        // The pipeline's frontier goes on, and is not taken for its own.
        let pipeline = format!(
            "select p.data_timestamp > '{since}' and p.frontier > i.frontier from pgtrickle.pgt_pipelines p,
                pgtrickle.stream_tables_info i where i.pgt_name = 'st'"
        );
        wait_value(&scene.dba, &pipeline, "true").await;
        let fresh = format!(
            "select string_agg(pgt_name || (data_timestamp > '{since}') || (last_refresh_at > '{since}')
                || (staleness < clock_timestamp() - '{since}'::timestamptz), ' ' order by pgt_name)
               from pgtrickle.stream_tables_info"
        );
        assert_eq!(value(&scene.dba, &fresh).await, "stfalsefalsefalse sutruetruetrue");
        // Nor by another life of the sidecar, which can't say it in that row either.
        scene.sidecar.kill9();
        scene.sidecar.start_again();
        scene.run("insert into u values (2)").await;
        wait_value(&scene.app, "select count(*) from su", "2").await;
        for _ in 0..5 {
            assert_eq!(value(&scene.app, "select pgtrickle.wait_for(timeout => '100 ms')").await, "false");
            assert!(value(&scene.dba, &fresh).await.starts_with("stfalsefalsefalse "));
        }
        scene
            .dba
            .batch_execute("insert into pgtrickle.settings values ('stale_after', '1 s')")
            .await
            .unwrap();
        let stale = "select stale from pgtrickle.stream_tables_info where pgt_name = 'st'";
        wait_value(&scene.dba, stale, "true").await;
        scene.dba.batch_execute("delete from pgtrickle.settings where key = 'stale_after'").await.unwrap();
        holder.batch_execute("commit").await.unwrap();
        scene.check_in_time(&["st", "su"]).await;
        assert_eq!(value(&scene.app, rows).await, "11");
        wait_value(&scene.dba, "select count(*) from pgtrickle.pgt_behind", "0").await;
    })
    .await;
}

/// A suspension that can't be stored yet is no reason to try again, and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_that_cannot_be_stored_yet_is_not_taken_for_a_resume() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table t (id int primary key); insert into t values (1); create table u (id int primary key)",
        )
        .await;
        scene.create("st", "select id from t").await;
        scene.create("su", "select id from u").await;
        scene.passed().await;
        let holder = scene.db.as_app().await;
        let hold = "begin; select from pgtrickle.pgt_stream_tables where pgt_name = 'st' for update";
        holder.batch_execute(hold).await.unwrap();
        let loads = || scene.sidecar.logs().matches("sources loaded").count();
        let before = loads();
        // A lost right suspends at once.
        scene.dba.batch_execute("alter table app.t owner to current_user; revoke all on app.t from app").await.unwrap();
        wait_until("the sidecar to notice", SOON, || async {
            let logs = scene.sidecar.logs();
            if logs.contains("its catalog row is locked") { Ok(()) } else { Err(logs) }
        })
        .await;
        for i in 0..5 {
            scene.run(&format!("insert into u values ({i})")).await;
            wait_value(&scene.app, "select count(*) from su", &(i + 1).to_string()).await;
        }
        assert_eq!(loads(), before, "{}", scene.sidecar.logs());
        holder.batch_execute("rollback").await.unwrap();
        scene.wait_status("st", "SUSPENDED").await;
        scene.dba.batch_execute("alter table app.t owner to app").await.unwrap();
        scene.run("insert into t values (2); select pgtrickle.resume_stream_table('st')").await;
        scene.check_in_time(&["st", "su"]).await;
    })
    .await;
}
