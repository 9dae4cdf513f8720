//! Functions of users that take long: they hold up their own stream table's computation and no other's, and past the time
//! limit their stream table is suspended with a reason.

use tokio_postgres::Client;

use crate::harness::oracle::assert_equal;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

/// `gate(7)` waits for an advisory lock, `asleep(7)` for ever; `twice` counts its calls where no rollback takes them back.
const SCHEMA: &str = "
    create table slow (id int primary key, x int);
    create table fast (id int primary key, x int);
    create function gate(x int) returns int immutable language plpgsql as
        'begin if x = 7 then perform pg_advisory_lock_shared(4711); perform pg_advisory_unlock_shared(4711); end if; return x; end';
    create function asleep(x int) returns int immutable language plpgsql as
        'begin if x = 7 then perform pg_sleep(3600); end if; return x; end';
    create sequence calls;
    create function twice(x int) returns int immutable language plpgsql as
        'begin perform nextval(''app.calls''); return x * 2; end';
    insert into slow select i, 0 from generate_series(1, 5) i;
    insert into fast select i, i from generate_series(1, 5) i;";

const FAST: &str = "select id, twice(x) as y from fast";

async fn create(app: &Client, name: &str, query: &str) {
    let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
    app.execute(create, &[&name, &query]).await.unwrap();
    wait_until(&format!("{name} to be active"), SOON, || async {
        let state = status(app, name).await;
        if state.0 == "ACTIVE" { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
}

async fn status(app: &Client, name: &str) -> (String, Option<String>, Option<String>) {
    let sql = "select status, last_error_sqlstate, last_error_message from pgtrickle.stream_tables_info where pgt_name = $1";
    let row = app.query_one(sql, &[&name]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

async fn arrived(app: &Client) {
    let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
    assert!(passed, "the frontier did not pass in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_function_leaves_the_other_sessions_to_others() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(SCHEMA).await.unwrap();
        let arguments = ["--evaluation-sessions", "2", "--evaluation-timeout", "off"];
        let mut sidecar = Sidecar::start(&db, &arguments);
        sidecar.wait_ready(SOON).await;
        let query = "select id, gate(x) as y from slow";
        create(&app, "behind_a_gate", query).await;
        create(&app, "fast_one", FAST).await;
        let calls: i64 = app.query_one("select last_value from calls", &[]).await.unwrap().get(0);
        dba.batch_execute("select pg_advisory_lock(4711)").await.unwrap();
        app.batch_execute("begin; update slow set x = 7 where id = 1; update fast set x = 70 where id = 1; commit").await.unwrap();
        wait_until("one session to wait at the gate and another to compute", SOON, || async {
            let sql = "select coalesce(string_agg(concat_ws(' ', state, wait_event, left(query, 60)), E'\n'), ''),
                  coalesce(bool_or(state = 'active' and wait_event = 'advisory'), false),
                  (select last_value from app.calls)
                from pg_stat_activity where datname = current_database() and application_name like '%:evaluate'";
            let row = dba.query_one(sql, &[]).await.unwrap();
            let (seen, waits, now): (String, bool, i64) = (row.get(0), row.get(1), row.get(2));
            if waits && now > calls { Ok(()) } else { Err(format!("{now} calls after {calls}, {seen}")) }
        })
        .await;
        // Somebody ends that session: it is asked again in another one, and nothing starts anew.
        let generation = "select generation from pgtrickle.pgt_pipelines";
        let before: i64 = dba.query_one(generation, &[]).await.unwrap().get(0);
        const END: &str = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()
            and application_name like '%:evaluate' and wait_event = 'advisory'";
        assert_eq!(dba.query(END, &[]).await.unwrap().len(), 1);
        wait_until("it to be asked again", SOON, || async {
            let sql = "select count(*) from pg_stat_activity where datname = current_database()
                and application_name like '%:evaluate' and wait_event = 'advisory'";
            let n: i64 = dba.query_one(sql, &[]).await.unwrap().get(0);
            if n == 1 { Ok(()) } else { Err(n.to_string()) }
        })
        .await;
        dba.batch_execute("select pg_advisory_unlock(4711)").await.unwrap();
        arrived(&app).await;
        let after: i64 = dba.query_one(generation, &[]).await.unwrap().get(0);
        assert_eq!(after, before, "the pipeline started anew");
        assert_equal(&app, query, "behind_a_gate", "id, y").await;
        assert_equal(&app, FAST, "fast_one", "id, y").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_past_the_time_limit_suspends_its_stream_table_and_no_other() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute(SCHEMA).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &["--evaluation-timeout", "1500ms"]);
        sidecar.wait_ready(SOON).await;
        let (rows, groups) =
            ("select id, asleep(x) as y from slow", "select array_agg(asleep(x) order by id) as y from slow");
        create(&app, "sleeper", rows).await;
        create(&app, "sleeping_group", groups).await;
        create(&app, "fast_one", FAST).await;
        app.batch_execute(
            "begin; update slow set x = 7 where id = 1; update fast set x = 70 where id = 1; commit",
        )
        .await
        .unwrap();
        for name in ["sleeper", "sleeping_group"] {
            wait_until(&format!("{name} to be suspended"), SOON, || async {
                match status(&app, name).await {
                    (status, Some(code), Some(text))
                        if status == "SUSPENDED"
                            && code == "57014"
                            && text.contains("evaluation_timeout") =>
                    {
                        Ok(())
                    }
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
        app.batch_execute("update fast set x = 71 where id = 2").await.unwrap();
        arrived(&app).await;
        assert_equal(&app, FAST, "fast_one", "id, y").await;
        // Mended, they come back when they are told to.
        app.batch_execute("update slow set x = 8 where id = 1").await.unwrap();
        for (name, query, columns) in [("sleeper", rows, "id, y"), ("sleeping_group", groups, "y")] {
            app.execute("select pgtrickle.resume_stream_table($1)", &[&name]).await.unwrap();
            wait_until(&format!("{name} to be active"), SOON, || async {
                let state = status(&app, name).await;
                if state.0 == "ACTIVE" { Ok(()) } else { Err(format!("{state:?}")) }
            })
            .await;
            arrived(&app).await;
            assert_equal(&app, query, name, columns).await;
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// What has no end is ended where nobody waits for it any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_statement_of_a_stream_table_that_is_dropped_ends() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(SCHEMA).await.unwrap();
        let arguments = ["--evaluation-sessions", "1", "--evaluation-timeout", "off"];
        let mut sidecar = Sidecar::start(&db, &arguments);
        sidecar.wait_ready(SOON).await;
        create(&app, "sleeper", "select id, asleep(x) as y from slow").await;
        create(&app, "sleeping_group", "select array_agg(asleep(x) order by id) as y from slow").await;
        create(&app, "fast_one", FAST).await;
        app.batch_execute(
            "begin; update slow set x = 7 where id = 1; update fast set x = 70 where id = 1; commit",
        )
        .await
        .unwrap();
        let asleep = "select count(*) from pg_stat_activity where datname = current_database()
            and application_name like '%:evaluate' and wait_event = 'PgSleep'";
        let count = async || dba.query_one(asleep, &[]).await.unwrap().get::<_, i64>(0);
        wait_until("a statement to sleep", SOON, || async {
            if count().await > 0 { Ok(()) } else { Err("none does".to_owned()) }
        })
        .await;
        for name in ["sleeper", "sleeping_group"] {
            app.execute("select pgtrickle.drop_stream_table($1)", &[&name]).await.unwrap();
        }
        wait_until("no statement to sleep", SOON, || async {
            match count().await {
                0 => Ok(()),
                n => Err(n.to_string()),
            }
        })
        .await;
        arrived(&app).await;
        assert_equal(&app, FAST, "fast_one", "id, y").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A window without PARTITION BY is computed anew by PostgreSQL, all rows of it: what that costs is printed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_change_under_a_window_over_all_rows_costs_is_printed() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute("create table t (id int primary key, g int, x int)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let windows = [
            ("whole", "select id, rank() over (order by x) as r from t"),
            ("parted", "select id, rank() over (partition by g order by x) as r from t"),
        ];
        for rows in [1_000, 10_000] {
            let fill = format!(
                "truncate t; insert into t select i, i / 100, i * 7 % 1001 from generate_series(1, {rows}) i"
            );
            app.batch_execute(&fill).await.unwrap();
            for (name, query) in windows {
                create(&app, name, query).await;
                arrived(&app).await;
                let begun = std::time::Instant::now();
                for id in 1..=5 {
                    let update = format!("update t set x = x + 1 where id = {id}");
                    app.batch_execute(&update).await.unwrap();
                    arrived(&app).await;
                }
                let each = begun.elapsed().as_secs_f64() * 1000.0 / 5.0;
                println!("PostgreSQL {}: {rows} rows, window {name}: {each:.0} ms for one row", server.major);
                assert_equal(&app, query, name, "id, r").await;
                app.execute("select pgtrickle.drop_stream_table($1)", &[&name]).await.unwrap();
            }
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
