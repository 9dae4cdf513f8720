//! Writing stream tables: other writers, errors, locks, constraints.

use super::{Scene, sqlstate};
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};

const T: &str = "create table t (id int primary key, v int not null, d int not null default 1);
    insert into t (id, v) select i, i from generate_series(1, 20) i;";

/// Somebody else took the pipeline over and rewrote a stream table while this sidecar lives.
#[tokio::test(flavor = "multi_thread")]
async fn a9_a_second_writer_raises_the_generation() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("bag", "select v % 3 as k from t").await;
        scene.create("keyed", "select id, v from t").await;
        let before = scene.generation().await;
        scene
            .dba
            .batch_execute(
                "begin; update pgtrickle.pgt_pipelines set generation = generation + 10;
                 set local session_replication_role = replica;
                 delete from app.bag where ctid in (select ctid from app.bag limit 3);
                 insert into app.bag select k, __pgt_row_id from app.bag limit 5; update app.keyed set v = -1 where id < 5; commit",
            )
            .await
            .unwrap();
        scene.run("insert into t values (100, 100), (101, 101); update t set v = 1000 where id = 3").await;
        scene.check_in_time(&["bag", "keyed"]).await;
        assert!(scene.generation().await > before + 10, "it went on under a generation that was not its own");
    })
    .await;
}

/// Rows that were changed by hand are found when they are in the way, and repaired.
#[tokio::test(flavor = "multi_thread")]
async fn a9_rows_changed_by_hand_are_repaired() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.create("bag", "select v % 3 as k from t").await;
        scene.create("keyed", "select id, v from t").await;
        let refused = scene.app.batch_execute("delete from keyed").await;
        assert_eq!(sqlstate(refused), "55000");
        scene
            .dba
            .batch_execute(
                "set session_replication_role = replica; delete from app.bag; update app.keyed set id = id + 500 where id = 7",
            )
            .await
            .unwrap();
        scene.run("delete from t where id in (7, 8)").await;
        scene.check_in_time(&["bag", "keyed"]).await;
        // What nothing touches is repaired by the next start.
        scene.dba.batch_execute("update app.keyed set v = 0; insert into app.bag values (1)").await.unwrap();
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        scene.sidecar.start_again();
        scene.check_in_time(&["bag", "keyed"]).await;
    })
    .await;
}

/// `100 / (n - d)` fails only for combinations that no commit ever had.
#[tokio::test(flavor = "multi_thread")]
async fn b1_rows_that_never_exist_raise_no_error() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table n (id int primary key, n int); create table m (id int primary key, d int);
             insert into n select i, 10 from generate_series(1, 5) i; insert into m select i, 1 from generate_series(1, 5) i;
             insert into m values (9, 0); insert into n values (8, 0)",
        )
        .await;
        scene.create("quotients", "select n.id, 100 / (n.n - m.d) as q from n join m on m.id = n.id").await;
        // Division by a source's own zero, which the join drops or the filter removes.
        scene.create("dropped", "select n.id, 10 / m.d as q from n join m using (id)").await;
        scene.create("filtered", "select id, 10 / d as q from m where d <> 0").await;
        scene.create("chosen", "select id, case when d = 0 then null else 10 / d end as q from m").await;
        scene.create("summed", "select id > 4 as k, sum(10 / d) filter (where d <> 0) as q from m group by 1").await;
        scene.run("begin; update n set n = 1; update m set d = 0 where id < 6; update m set d = 5 where id < 6; commit").await;
        scene.run("begin; update n set n = 10; update m set d = 1; commit; update m set d = 0 where id = 9").await;
        scene.check(&["quotients", "dropped", "filtered", "chosen", "summed"]).await;
        for _ in 0..3 {
            scene.run("begin; update n set n = 1; update m set d = 3 where id < 6; commit").await;
            scene.run("begin; update m set d = 1; update n set n = 10; commit").await;
        }
        scene.check(&["quotients", "dropped", "filtered", "chosen", "summed"]).await;
    })
    .await;
}

/// An error that PostgreSQL raises too concerns its stream table and those that read it.
#[tokio::test(flavor = "multi_thread")]
async fn b1_a_real_error_suspends_only_its_stream_table() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("quotients", "select id, 10 / d as q from t").await;
        scene.create("above", "select q, count(*) as n from quotients group by q").await;
        scene.create("plain", "select id, v, d from t").await;
        scene.run("update t set d = 0 where id = 3").await;
        wait_until("the error", SOON, || async {
            let state = scene.column("quotients", "last_error_sqlstate").await;
            if state.as_deref() == Some("22012") { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await;
        let told = last_error(&scene.app, "quotients").await;
        assert!(told.starts_with("22012|the query fails for a row: division by zero"), "{told}");
        // The sidecar divides by itself: the SQL is the stream table's own.
        assert!(told.rsplit('|').next().unwrap().contains(" AS q"), "{told}");
        scene.run("update t set v = v + 1").await;
        scene.check(&["plain"]).await;
        // Mended before the retries end: back by itself.
        scene.run("update t set d = 2 where id = 3").await;
        scene.check_in_time(&["quotients", "above", "plain"]).await;
        // Mended too late: it waits for somebody.
        scene.run("update t set d = 0 where id = 4").await;
        scene.wait_status("quotients", "SUSPENDED").await;
        scene.run("update t set d = 5 where id = 4; update t set v = 0 where id = 5").await;
        scene.check(&["plain"]).await;
        scene.run("select pgtrickle.resume_stream_table('quotients')").await;
        scene.check_in_time(&["quotients", "plain"]).await;
        if scene.status("above").await.starts_with("SUSPENDED") {
            scene.run("select pgtrickle.resume_stream_table('above')").await;
        }
        scene.check_in_time(&["above"]).await;
        let told = last_error(&scene.app, "quotients").await;
        assert_eq!(told, "||", "nothing is left of an error that is mended");
    })
    .await;
}

/// A value too large for its type, wherever it is computed: in a kernel, from a sum that the group keeps, by a length of
/// the type, by PostgreSQL, over a window. Each stands alone, and the message is PostgreSQL's own.
#[tokio::test(flavor = "multi_thread")]
async fn b1_an_overflow_suspends_only_its_stream_table() {
    const OVERFLOWS: &[(&str, &str, &str, &str)] = &[
        ("added", "select id, v + d as s from wide", "v = 2147483647", "integer out of range"),
        (
            "summed",
            "select d, sum(b)::bigint as s from wide group by d",
            "b = 9223372036854775807",
            "bigint out of range",
        ),
        (
            "scaled",
            "select id, (n * 100)::numeric(6,2) as n from wide",
            "n = 123.45",
            "numeric field overflow",
        ),
        (
            "raised",
            "select id, power(10::float8, e) as p from wide",
            "e = 400",
            "value out of range: overflow",
        ),
        (
            "windowed",
            "select id, (max(h) over (partition by d) * 200)::int2 as s from wide",
            "h = 300",
            "smallint out of range",
        ),
    ];
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table wide (id int primary key, v int not null, d int not null, b bigint not null, n numeric not null, e int not null, h int not null);
             insert into wide select i, i, 1 + i % 3, i, i / 8.0, 1, 1 from generate_series(1, 12) i",
        )
        .await;
        scene.create("plain", "select id, v, b, n, e, h from wide").await;
        for (name, query, ..) in OVERFLOWS {
            scene.create(name, query).await;
        }
        let names: Vec<&str> = OVERFLOWS.iter().map(|o| o.0).chain(["plain"]).collect();
        for (name, query, change, message) in OVERFLOWS {
            let others: Vec<&str> = names.iter().copied().filter(|other| other != name).collect();
            // PostgreSQL itself refuses the query over these rows, with the same state and words.
            let change = format!("update wide set {change} where id = 4");
            let mend = "update wide set v = 4, b = 4, n = 0.5, e = 1, h = 1 where id = 4";
            for suspended in [false, true] {
                scene.run(&change).await;
                let refused = scene.app.batch_execute(&format!("select * from ({query}) q")).await;
                let own = refused.as_ref().err().and_then(|e| e.as_db_error()).map(|e| e.message().to_owned());
                assert_eq!((sqlstate(refused).as_str(), own.as_deref()), ("22003", Some(*message)), "{name}");
                wait_until(&format!("the overflow of {name}"), SOON, || async {
                    let told = last_error(&scene.app, name).await;
                    let right = told.starts_with("22003|") && told.contains(message);
                    if right { Ok(()) } else { Err(told) }
                })
                .await;
                let told = last_error(&scene.app, name).await;
                assert!(!told.ends_with('|'), "the SQL that failed is told: {told}");
                if suspended {
                    scene.wait_status(name, "SUSPENDED").await;
                }
                scene.run("update wide set v = v + 1 where id > 6").await;
                scene.check(&others).await;
                scene.run(mend).await;
                if suspended {
                    scene.check(&others).await;
                    assert!(scene.status(name).await.starts_with("SUSPENDED"), "{name} waits for somebody");
                    scene.run(&format!("select pgtrickle.resume_stream_table('{name}')")).await;
                }
                scene.check_in_time(&names).await;
            }
        }
    })
    .await;
}

/// SQLSTATE, message and SQL of the last error, as whoever asks sees them.
async fn last_error(client: &tokio_postgres::Client, name: &str) -> String {
    const SQL: &str = "select concat(last_error_sqlstate, '|', last_error_message, '|', last_error_query)
        from pgtrickle.pgt_status() where name = 'app.' || $1";
    client.query_one(SQL, &[&name]).await.unwrap().get(0)
}

/// What PostgreSQL computed for the sidecar is named by its statement, to the owner alone; what it refused to write, by the
/// call.
#[tokio::test(flavor = "multi_thread")]
async fn b1_the_statement_that_failed_is_told_to_the_owner_alone() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("logs", "select id, ln(v::float8) as l from t where id >= 200").await;
        scene
            .create(
                "lists",
                "select v % 2 as k, jsonb_object_agg(nullif(id, d - 1), v) as a from t group by 1",
            )
            .await;
        scene.create("small", "select id, v from t").await;
        scene.run("alter table small add constraint small_enough check (v < 9000)").await;
        scene.run("insert into t values (200, 101, 1000)").await;
        scene.check_in_time(&["logs", "lists", "small"]).await;
        let dba = &scene.dba;
        let stranger = format!("stranger_{}", scene.db.name);
        dba.batch_execute(&format!("create role {stranger}; select pgtrickle.grant_usage('{stranger}')"))
            .await
            .unwrap();
        for (name, change, class, words, mend) in [
            ("logs", "v = -9", "22", "\"ln\"(", "v = 101"),
            ("lists", "d = id + 1", "22", "jsonb_object_agg", "d = 1000"),
            ("small", "v = 9999", "23", "pgtrickle_queries.apply_", "v = 101"),
        ] {
            scene.run(&format!("update t set {change} where id = 200")).await;
            wait_until("the statement to be told", SOON, || async {
                let told = last_error(&scene.app, name).await;
                let query = told.rsplit('|').next().unwrap_or_default();
                if told.starts_with(class) && query.contains(words) { Ok(()) } else { Err(told) }
            })
            .await;
            dba.batch_execute(&format!("set role {stranger}")).await.unwrap();
            let seen = last_error(dba, name).await;
            dba.batch_execute("reset role").await.unwrap();
            assert!(seen.starts_with(class) && seen.ends_with("||"), "a stranger sees no text: {seen}");
            scene.run(&format!("update t set {mend} where id = 200")).await;
            if scene.status(name).await.starts_with("SUSPENDED") {
                scene.run(&format!("select pgtrickle.resume_stream_table('{name}')")).await;
            }
            scene.check_in_time(&["logs", "lists", "small"]).await;
        }
        dba.batch_execute(&format!("drop owned by {stranger}; drop role {stranger}")).await.unwrap();
    })
    .await;
}

/// Rows that swap values under a unique index of the user's.
#[tokio::test(flavor = "multi_thread")]
async fn b2_values_swap_under_a_unique_index_of_the_users() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("keyed", "select id, v from t").await;
        scene.create("bag", "select v, d from t").await;
        scene.run("create unique index on keyed (v); create unique index on bag (v)").await;
        scene.run("begin; update t set v = -1 where id = 1; update t set v = 1 where id = 2; update t set v = 2 where id = 1; commit").await;
        scene.check(&["keyed", "bag"]).await;
        // A value moves from a deleted row to a new one, and round a circle.
        scene.run("begin; delete from t where id = 5; insert into t values (500, 5); commit").await;
        scene.run("update t set v = case when v < 10 then v + 100 else v end; update t set v = v % 20 + 1000 where id < 11").await;
        scene.check(&["keyed", "bag"]).await;
        assert_eq!(scene.column("keyed", "consecutive_errors").await.as_deref(), Some("0"));
    })
    .await;
}

/// A lock on one stream table: the others go on, and it comes back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn b3_a_locked_stream_table_does_not_stop_the_others() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("stuck", "select id, v from t").await;
        scene.create("free", "select v % 4 as k, count(*) as n, sum(v) as s from t group by 1").await;
        for lock in ["create index on stuck (v)", "select * from stuck for update"] {
            let holder = scene.db.as_app().await;
            holder.batch_execute(&format!("begin; {lock}")).await.unwrap();
            scene.run("update t set v = v + 1").await;
            wait_until("the others to go on", SOON, || async {
                let rows = scene.differs("free").await;
                if rows.is_empty() { Ok(()) } else { Err(rows.join(", ")) }
            })
            .await;
            wait_until("the lock to be told", SOON, || async {
                let state = scene.column("stuck", "last_error_sqlstate").await;
                if state.as_deref() == Some("55P03") { Ok(()) } else { Err(format!("{lock}: {state:?}")) }
            })
            .await;
            scene.run("update t set v = v + 1 where id < 7").await;
            scene.check(&["free"]).await;
            holder.batch_execute("commit").await.unwrap();
            scene.check_in_time(&["stuck", "free"]).await;
        }
    })
    .await;
}

/// What reads a stream table that can't be written is not written either: whoever waits for it is not told that it is fresh.
#[tokio::test(flavor = "multi_thread")]
async fn b3_nobody_is_told_that_a_stream_table_is_fresh_which_reads_one_that_is_locked() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("below", "select id, v from t").await;
        scene.create("above", "select v % 4 as k, count(*) as n from below group by 1").await;
        let by_lsn = "select pgtrickle.wait_for(pg_current_wal_insert_lsn(), timeout => '300 ms')";
        for round in 0..3 {
            let holder = scene.db.as_app().await;
            holder.batch_execute("begin; select * from below for update").await.unwrap();
            scene.run("update t set v = v + 1").await;
            wait_until("the locked one to be told as not up to date", SOON, || async {
                let fresh: bool = scene.app.query_one(by_lsn, &[]).await.unwrap().get(0);
                // In one snapshot: none says that it is up to date while it is not what its query gives.
                let told = "select bool_or(status = 'ACTIVE') filter (where pgt_name = 'below'),
                           bool_or(status = 'ACTIVE') filter (where pgt_name = 'above'),
                           (select max(v) from app.t) = (select max(v) from app.below),
                           not exists ((select v % 4, count(*) from app.below group by 1) except select k, n from app.above)
                    from pgtrickle.stream_tables_info";
                let row = scene.dba.query_one(told, &[]).await.unwrap();
                let [below, above, below_is_right, above_is_right] = [0, 1, 2, 3].map(|n| row.get::<_, bool>(n));
                assert!(!fresh || !below || below_is_right, "round {round}: the locked one is told to be fresh");
                assert!(!fresh || !above || above_is_right, "round {round}: what reads it is told to be fresh");
                if below { Err("it is ACTIVE".to_owned()) } else { Ok(()) }
            })
            .await;
            holder.batch_execute("commit").await.unwrap();
            scene.check_in_time(&["below", "above"]).await;
        }
    })
    .await;
}

/// Somebody else publishes all tables: our own writes must not fail for want of a replica identity.
#[tokio::test(flavor = "multi_thread")]
async fn b4_a_publication_for_all_tables_is_present() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.dba.batch_execute("create publication everything for all tables").await.unwrap();
        scene.create("bag", "select v % 3 as k from t").await;
        scene.create("keyed", "select id, v from t").await;
        scene.run("update t set v = v + 1; delete from t where id < 4; insert into t values (900, 3)").await;
        scene.check(&["bag", "keyed"]).await;
        scene.run("select pgtrickle.drop_stream_table('keyed')").await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        scene.sidecar.start_again();
        scene.run("update t set v = v + 1").await;
        scene.check_in_time(&["bag"]).await;
    })
    .await;
}

/// Constraints and triggers that users put on a stream table.
#[tokio::test(flavor = "multi_thread")]
async fn d7_a_constraint_or_trigger_that_fails_the_apply_suspends_only_its_stream_table() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        for name in ["checked", "triggered", "swallowed"] {
            scene.create(name, "select id, v from t").await;
        }
        scene.create("free", "select id, v from t where v > 0").await;
        scene
            .run(
                "alter table checked add check (v < 1000);
                 create function fails() returns trigger language plpgsql as $$ begin if new.v > 1000 then raise sqlstate 'P0042'; end if; return new; end $$;
                 create trigger fails before insert or update on triggered for each row execute function fails();
                 create function swallows() returns trigger language plpgsql as $$ begin return case when new.v > 1000 then null else new end; end $$;
                 create trigger swallows before insert or update on swallowed for each row execute function swallows()",
            )
            .await;
        scene.run("update t set v = 500 where id = 1").await;
        scene.check(&["checked", "triggered", "swallowed", "free"]).await;
        scene.run("update t set v = 5000 where id = 2").await;
        for (name, state) in [("checked", "23514"), ("triggered", "P0042"), ("swallowed", "55000")] {
            wait_until(&format!("the error of {name}"), SOON, || async {
                let seen = scene.column(name, "last_error_sqlstate").await;
                if seen.as_deref() == Some(state) { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await;
        }
        scene.run("update t set v = 7 where id = 3").await;
        scene.check(&["free"]).await;
        scene.run("update t set v = 8 where id = 2").await;
        for name in ["checked", "triggered", "swallowed"] {
            if scene.status(name).await.starts_with("SUSPENDED") {
                scene.run(&format!("select pgtrickle.resume_stream_table('{name}')")).await;
            }
        }
        scene.check_in_time(&["checked", "triggered", "swallowed", "free"]).await;
    })
    .await;
}

/// A state of the class of connections, raised by somebody's code (a foreign server that is away), is no lost connection
/// of ours.
#[tokio::test(flavor = "multi_thread")]
async fn b1_an_error_about_a_connection_in_code_of_users_concerns_only_its_stream_table() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene
            .run(
                "create table away (x int);
                 create function remote(v int) returns int language plpgsql as $$ begin
                    if exists (select from app.away) then raise exception 'could not connect to server' using errcode = '08001'; end if;
                    return v; end $$;
                 create function remote_row(v int) returns int immutable language plpgsql as $$ begin
                    if v = 77 then raise exception 'the connection was lost' using errcode = '08006'; end if;
                    return v; end $$;
                 create function noted() returns trigger language plpgsql as $$ begin
                    perform app.remote(1); return null; end $$",
            )
            .await;
        scene.create("plain", "select id, v, d from t").await;
        scene.create("noting", "select id, v from t").await;
        scene.create("mapped", "select id, remote_row(v) as r from t").await;
        let full = "select pgtrickle.create_stream_table('recomputed', 'select count(*) as n, max(remote(v)) as m from t',
            refresh_mode => 'FULL', schedule => '1s')";
        scene.run(full).await;
        scene.wait_status("recomputed", "ACTIVE FULL").await;
        scene.run("create trigger noted after insert or update on noting execute function noted()").await;
        scene.check(&["plain", "noting", "mapped"]).await;
        let generation = scene.generation().await;
        scene.run("insert into away values (1)").await;
        scene.run("update t set v = v + 1").await;
        scene.check(&["plain"]).await;
        scene.run("update t set v = 77 where id = 1").await;
        for (name, expected) in [("noting", "08001"), ("recomputed", "08001"), ("mapped", "08006")] {
            wait_until(&format!("the error of {name}"), SOON, || async {
                let state = scene.column(name, "last_error_sqlstate").await;
                if state.as_deref() == Some(expected) { Ok(()) } else { Err(format!("{state:?}")) }
            })
            .await;
        }
        scene.run("update t set v = v + 1").await;
        scene.check(&["plain"]).await;
        assert_eq!(scene.generation().await, generation, "{}", scene.sidecar.logs());
        scene.run("delete from away; update t set v = 1 where id = 1").await;
        for name in ["noting", "recomputed", "mapped"] {
            if scene.status(name).await.starts_with("SUSPENDED") {
                scene.run(&format!("select pgtrickle.resume_stream_table('{name}')")).await;
            }
        }
        scene.run("update t set v = v + 1").await;
        scene.check_in_time(&["plain", "noting", "mapped"]).await;
        assert_eq!(scene.generation().await, generation, "{}", scene.sidecar.logs());
    })
    .await;
}
