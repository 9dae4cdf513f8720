//! Reading sources whole: what it asks of the server can be bounded.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use std::io::{Seek, SeekFrom, Write};

use pgtrickle::postgres::cluster::StopMode;

use super::bad_input::wait_value;
use super::hazards::Scene;
use super::snapshots::value;
use crate::harness::oracle::assert_equal;
use crate::harness::servers::each;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, own_cluster, wait_until};

const MB: f64 = 1_048_576.0;

/// Creates a stream table over a source that is not held yet and waits for its rows. Seconds that took, and how often the
/// server was seen waiting to be read from.
async fn load(scene: &Scene, name: &str, source: &str) -> (f64, u32) {
    let start = Instant::now();
    let create = format!("select pgtrickle.create_stream_table('{name}', 'select id, body from {source}')");
    scene.run(&create).await;
    const WAITS: &str =
        "select count(*) from pg_stat_activity where application_name = 'pgtrickle:main:hydrate'
        and datname = current_database() and wait_event = 'ClientWrite'";
    let waited = AtomicU32::new(0);
    wait_until("the source to be read", SOON * 2, || async {
        if value(&scene.dba, WAITS).await != "0" {
            waited.fetch_add(1, Ordering::Relaxed);
        }
        let status = scene.status(name).await;
        if status == "ACTIVE DIFFERENTIAL" { Ok(()) } else { Err(status) }
    })
    .await;
    (start.elapsed().as_secs_f64(), waited.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_bounds_what_the_reading_of_a_source_asks_of_the_server() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table a (id int primary key, body text); create table b (id int primary key, body text);
             insert into a select i, repeat('x', 1000) from generate_series(1, 30000) i;
             insert into b select * from a",
        )
        .await;
        // A first one, so that neither load pays for the start of anything.
        scene.run("create table c (id int primary key)").await;
        scene.create("sc", "select id from c").await;
        let (free, _) = load(&scene, "sa", "a").await;
        scene.dba.batch_execute("insert into pgtrickle.settings values ('hydrate_rate_mb', '5')").await.unwrap();
        let (bounded, waits) = load(&scene, "sb", "b").await;
        let megabytes: f64 =
            value(&scene.app, "select sum(length(id::text) + length(body) + 2) from b").await.parse::<f64>().unwrap() / MB;
        println!(
            "  {megabytes:.1} MB: {free:.1} s without a bound, {bounded:.1} s with 5 MB/s; the server was seen waiting {waits} times"
        );
        assert!(bounded >= megabytes / 5.0 * 0.95, "read faster than allowed: {bounded:.2} s");
        assert!(waits > 0, "the server did not read more slowly, the sidecar only took it more slowly");
        let wrong = scene.dba.batch_execute("update pgtrickle.settings set value = 'fast' where key = 'hydrate_rate_mb'");
        assert!(wrong.await.is_err());
        scene.run("insert into b values (0, 'new')").await;
        scene.check_in_time(&["sa", "sb"]).await;
    })
    .await;
}

/// A preparation needs sessions of its own; where the server has none, it waits, and the others are served from memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_free_connection_is_waited_for_and_nothing_is_read_again() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        dba.batch_execute("update pgtrickle.settings set value = '1 s' where key = 'analysis_timeout'").await.unwrap();
        app.batch_execute(
            "create table t (id int primary key, v int); insert into t select i, i from generate_series(1, 100) i;
             create table u (id int primary key); insert into u select i from generate_series(1, 9) i;
             select pgtrickle.create_stream_table('s', 'select count(*) as n, sum(v) as v from t')",
        )
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let status = async |name: &str| -> String {
            let sql = "select status || ' ' || refresh_mode from pgtrickle.stream_tables_info where pgt_name = $1";
            dba.query_one(sql, &[&name]).await.unwrap().get(0)
        };
        wait_until("the first one to be active", SOON, || async {
            let is = status("s").await;
            if is == "ACTIVE DIFFERENTIAL" { Ok(()) } else { Err(is) }
        })
        .await;
        // Nobody but those who are there.
        dba.batch_execute("alter role pgtrickle connection limit 0").await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('late', 'select id from u')").await.unwrap();
        wait_until("the wait to be told", SOON, || async {
            let log = sidecar.logs();
            let told = log.contains("the server has no connection to spare");
            if told { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
        })
        .await;
        app.batch_execute("update t set v = v + 1; delete from t where id > 50").await.unwrap();
        wait_until("the others to go on", SOON, || async {
            let equal = "select (select (n, v) from s) = (select (count(*), sum(v)) from t)";
            let equal: bool = app.query_one(equal, &[]).await.unwrap().get(0);
            if equal { Ok(()) } else { Err("they do not".to_owned()) }
        })
        .await;
        dba.batch_execute("alter role pgtrickle connection limit -1").await.unwrap();
        wait_until("the late one to be active", SOON, || async {
            let is = status("late").await;
            if is == "ACTIVE DIFFERENTIAL" { Ok(()) } else { Err(is) }
        })
        .await;
        assert!(!sidecar.logs().contains("starting again"), "{}", sidecar.logs());
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A page that can't be read takes out what needs its table; all others are read, also those whose snapshot was lost with
/// it, and the pipeline lives on.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_source_stops_only_what_reads_it() {
    each(async |major| {
        let mut server = own_cluster(major, &[]).await;
        let rows = "select i as id, i % 10 as k, repeat('x', 200) as body from generate_series(1, 5000) i";
        let mut scene = Scene::start(
            &server,
            &format!(
                "create table before (id int primary key, k int, body text); insert into before {rows};
                 create table damaged (id int primary key, k int, body text); insert into damaged {rows};
                 create table after (id int primary key, k int, body text); insert into after {rows};
                 create table kept (id int primary key, k int, body text); insert into kept {rows}"
            ),
        )
        .await;
        scene.create("live", "select k, count(*) as n from kept group by k").await;
        for source in ["before", "damaged", "after"] {
            let query = format!("select k, count(*) as n, min(length(body)) as l from {source} group by k");
            scene.create(&format!("of_{source}"), &query).await;
        }
        scene.create("of_both", "select b.id from before b join damaged d using (id)").await;
        let file = value(&scene.dba, "select pg_relation_filepath('app.damaged')").await;
        scene.dba.batch_execute("checkpoint").await.unwrap();
        tokio::task::block_in_place(|| server.cluster.stop(StopMode::Fast)).unwrap();
        let mut pages =
            std::fs::OpenOptions::new().write(true).open(server.cluster.data_dir().join(file)).unwrap();
        pages.seek(SeekFrom::Start(20 * 8192)).unwrap();
        pages.write_all(&[0xA5; 64]).unwrap();
        drop(pages);
        tokio::task::block_in_place(|| server.cluster.start_again()).unwrap();
        (scene.app, scene.dba) = (scene.db.as_app().await, scene.db.as_dba().await);
        // Both loads meet changes.
        for i in 0..40 {
            scene
                .run(&format!(
                    "update before set k = k + 1 where id % 50 = {i}; delete from after where id % 90 = {i};
                     insert into after values (7000 + {i}, 3, 'z')"
                ))
                .await;
        }
        scene.check_in_time(&["of_before", "of_after", "live"]).await;
        let generation = scene.generation().await;
        for name in ["of_damaged", "of_both"] {
            wait_until(&format!("{name} to be suspended"), SOON * 4, || async {
                let status = scene.status(name).await;
                if status.starts_with("SUSPENDED") { Ok(()) } else { Err(status) }
            })
            .await;
            let error = scene.column(name, "last_error_message").await.unwrap_or_default();
            assert!(
                error.contains(r#"reading "app"."damaged""#) && error.contains("invalid page"),
                "{error}"
            );
            assert_eq!(scene.column(name, "last_error_sqlstate").await.as_deref(), Some("XX001"));
        }
        scene.run("update before set k = k - 1 where id % 7 = 0; delete from kept where id < 100").await;
        scene.check(&["of_before", "of_after", "live"]).await;
        assert_eq!(scene.generation().await, generation, "{}", scene.sidecar.logs());
        // Somebody has given the page up.
        for sql in ["set zero_damaged_pages = on", "vacuum full app.damaged"] {
            scene.dba.batch_execute(sql).await.unwrap();
        }
        for name in ["of_damaged", "of_both"] {
            scene.run(&format!("select pgtrickle.resume_stream_table('{name}')")).await;
        }
        scene.check_in_time(&["of_damaged", "of_both", "of_before", "of_after", "live"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// What changes between the analysis of a query and the snapshot of its sources is prepared again, alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_while_it_is_prepared_concerns_only_its_readers() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table kept (id int primary key); create table other (id int primary key);
             create type mood as enum ('low', 'high');
             create table slow (id int primary key, mood mood);
             create table p (id int, k int, primary key (id, k)) partition by list (k);
             create table p0 partition of p for values in (0);
             create table p1 (id int not null, k int not null, primary key (id, k));
             insert into kept select generate_series(1, 10); insert into other select generate_series(1, 20);
             insert into slow values (1, 'low'); insert into p values (1, 0); insert into p1 values (2, 1), (3, 1)",
        )
        .await;
        scene.create("live", "select count(*) as n from kept").await;
        scene.wait_status("live", "ACTIVE DIFFERENTIAL").await;
        let generation = scene.generation().await;
        let writer = scene.db.as_app().await;
        writer.batch_execute("begin; insert into slow values (2, 'high')").await.unwrap();
        let new = [
            ("of_other", "select count(*) as n from other"),
            ("of_p", "select count(*) as n from p"),
            ("over_p", "select n + 1 as m from of_p"),
            ("moods", "select mood::text as mood, count(*) as n from slow group by 1"),
            ("of_both", "select p.id, s.mood::text as mood from p join slow s using (id)"),
        ];
        let create = |(name, query): &(&str, &str)| {
            format!("select pgtrickle.create_stream_table('{name}', $query${query}$query$);")
        };
        scene.run(&format!("begin; {} commit", new.iter().map(create).collect::<String>())).await;
        // Shapes have been read; the snapshot has not been taken.
        wait_until("the preparation to wait for the writer", SOON, || async {
            const LAST: &str = "select coalesce(string_agg(query, '; '), '') from pg_stat_activity
                where datname = current_database() and application_name like 'pgtrickle:main:%'";
            let last = value(&scene.dba, LAST).await;
            if last.contains("select distinct relation, virtualtransaction") { Ok(()) } else { Err(last) }
        })
        .await;
        scene.run("alter table p attach partition p1 for values in (1); alter type mood rename value 'low' to 'deep'").await;
        writer.batch_execute("commit").await.unwrap();
        let names: Vec<&str> = new.iter().map(|(name, _)| *name).collect();
        for name in &names {
            scene.wait_status(name, "ACTIVE DIFFERENTIAL").await;
        }
        scene.run("insert into p values (9, 1); insert into slow values (9, 'deep'); delete from kept where id = 1").await;
        scene.check(&names).await;
        scene.check(&["live"]).await;
        let logs = scene.sidecar.logs();
        assert_eq!(scene.generation().await, generation, "{logs}");
        assert!(logs.contains("is prepared again"), "{logs}");
    })
    .await;
}

/// What could not be read because an earlier writer of its table is open is read once that has ended: by all who wait for
/// it, also by those who came while the first ones waited.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_was_given_up_is_made_by_the_next_who_needs_it() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table a (id int primary key, v int); create table b (id int primary key)",
        )
        .await;
        scene.create("live", "select id from b").await;
        scene.wait_status("live", "ACTIVE DIFFERENTIAL").await;
        let generation = scene.generation().await;
        let writer = scene.db.as_app().await;
        writer.batch_execute("begin; insert into a values (1, 1)").await.unwrap();
        scene.run("select pgtrickle.create_stream_table('first', 'select id, v from a')").await;
        wait_until("the preparation to wait for the writer", SOON, || async {
            const LAST: &str = "select coalesce(string_agg(query, '; '), '') from pg_stat_activity
                where datname = current_database() and application_name like 'pgtrickle:main:%'";
            let last = value(&scene.dba, LAST).await;
            if last.contains("select distinct relation, virtualtransaction") { Ok(()) } else { Err(last) }
        })
        .await;
        scene.run("select pgtrickle.create_stream_table('second', 'select v, id from a')").await;
        for name in ["first", "second"] {
            wait_until(&format!("{name} to say for whom it waits"), SOON * 2, || async {
                let error = scene.column(name, "last_error_message").await.unwrap_or_default();
                if error.contains("before its earlier writers have ended") { Ok(()) } else { Err(error) }
            })
            .await;
        }
        scene.run("insert into a values (2, 2); insert into b values (1)").await;
        scene.check(&["live"]).await;
        writer.batch_execute("commit").await.unwrap();
        scene.check_in_time(&["first", "second", "live"]).await;
        scene.run("update a set v = v + 1").await;
        scene.check(&["first", "second"]).await;
        assert_eq!(scene.generation().await, generation, "{}", scene.sidecar.logs());
    })
    .await;
}

/// A stream table that is being dropped while its sources are read stops no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_table_that_is_dropped_while_it_is_loaded_concerns_no_other() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table large (id int primary key, body text); create table b (id int primary key);
             insert into large select i, repeat('x', 1000) from generate_series(1, 9000) i",
        )
        .await;
        scene.create("live", "select id from b").await;
        scene.wait_status("live", "ACTIVE DIFFERENTIAL").await;
        let generation = scene.generation().await;
        scene
            .dba
            .batch_execute("insert into pgtrickle.settings values ('hydrate_rate_mb', '2')")
            .await
            .unwrap();
        scene.run("select pgtrickle.create_stream_table('going', 'select id, body from large')").await;
        let reading =
            "select count(*) from pg_stat_activity where application_name = 'pgtrickle:main:hydrate'
            and datname = current_database() and wait_event = 'ClientWrite'";
        wait_value(&scene.dba, reading, "1").await;
        let dropping = scene.db.as_app().await;
        dropping.batch_execute("begin; select pgtrickle.drop_stream_table('going')").await.unwrap();
        wait_until("the preparation to meet the drop", SOON * 2, || async {
            let logs = scene.sidecar.logs();
            if logs.contains("a stream table was taken out") { Ok(()) } else { Err(logs) }
        })
        .await;
        scene.run("insert into b values (1)").await;
        wait_value(&scene.app, "select count(*) from live", "1").await;
        dropping.batch_execute("rollback").await.unwrap();
        scene
            .dba
            .batch_execute("delete from pgtrickle.settings where key = 'hydrate_rate_mb'")
            .await
            .unwrap();
        scene.check_in_time(&["going", "live"]).await;
        assert_eq!(scene.generation().await, generation, "{}", scene.sidecar.logs());
    })
    .await;
}

/// Reading a source ends in the server as soon as it is given up: nothing of it runs on beside the next attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_given_up_ends_in_the_server() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let mut scene = Scene::start(
            &server,
            "create table large (id int primary key, body text);
             insert into large select i, repeat('x', 1000) from generate_series(1, 60000) i",
        )
        .await;
        scene
            .dba
            .batch_execute("insert into pgtrickle.settings values ('hydrate_rate_mb', '1')")
            .await
            .unwrap();
        scene.run("select pgtrickle.create_stream_table('copied', 'select id, body from large')").await;
        let reading =
            "select count(*) from pg_stat_activity where application_name = 'pgtrickle:main:hydrate'
            and datname = current_database()";
        wait_value(&scene.dba, reading, "1").await;
        let at_rest = "select count(*) from pg_stat_activity where application_name like 'pgtrickle:main:%'
            and datname = current_database() and state <> 'idle'";
        // At that rate it takes a minute.
        scene.dba.batch_execute("select pgtrickle.pause(now() + interval '1 hour')").await.unwrap();
        wait_value(&scene.dba, at_rest, "0").await;
        assert!(
            !scene.sidecar.logs().contains("sources loaded sources=1 rows=60000"),
            "it was read to its end"
        );
        scene
            .dba
            .batch_execute(
                "delete from pgtrickle.settings where key = 'hydrate_rate_mb'; select pgtrickle.unpause()",
            )
            .await
            .unwrap();
        scene.check_in_time(&["copied"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A snapshot that is held for long keeps VACUUM from its work: the sources that are left get another one. Rows that move
/// between the sources meanwhile are neither lost nor doubled.
#[tokio::test(flavor = "multi_thread")]
async fn sources_behind_several_snapshots_join_at_one_commit() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        for mode in ["auto", "trigger"] {
            let db = TestDatabase::create(&server).await;
            db.install();
            let (app, dba) = (db.as_app().await, db.as_dba().await);
            app.batch_execute(
                "create table moved (id int, part int, v int, pad text default repeat('x', 300), primary key (id, part)) partition by list (part);
                 create table moved_0 partition of moved for values in (0);
                 create table moved_1 partition of moved for values in (1);
                 create table moved_2 partition of moved for values in (2);
                 create table loose (id int, v int);
                 insert into moved select i, i % 3, i from generate_series(1, 9000) i;
                 insert into loose select i, i from generate_series(1, 2000) i",
            )
            .await
            .unwrap();
            dba.batch_execute(
                "insert into pgtrickle.settings values ('hydrate_snapshot_hold', '0 s'), ('hydrate_rate_mb', '1')",
            )
            .await
            .unwrap();
            let queries = [
                ("by_part", "select part, count(*) as n, sum(v) as s from moved group by part", "part, n, s"),
                ("joined", "select m.id, m.part, m.v, l.v as w, length(m.pad) as p from moved m left join loose l using (id)", "id, part, v, w, p"),
            ];
            let mut sidecar = Sidecar::start(&db, &["--cdc-mode", mode]);
            sidecar.wait_ready(SOON).await;
            for (name, query, _) in queries {
                app.execute("select pgtrickle.create_stream_table($1, $2)", &[&name, &query]).await.unwrap();
            }
            let writes = AtomicU32::new(0);
            let reading = async {
                wait_until("all sources to be read", SOON * 3, || async {
                    let n = writes.fetch_add(1, Ordering::Relaxed) as i32;
                    let write = format!(
                        "begin; update moved set part = (part + 1) % 3, v = v + 1 where id % 50 = {};
                         delete from loose where id % 97 = {}; insert into loose values ({}, {n}); commit",
                        n % 50, n % 97, n % 3000
                    );
                    app.batch_execute(&write).await.unwrap();
                    if n % 40 == 20 {
                        app.batch_execute("begin; truncate loose, moved_1; insert into moved values (0, 1, 7); delete from moved where id = 0; commit").await.unwrap();
                    }
                    let active = "select count(*) from pgtrickle.stream_tables_info where status = 'ACTIVE'";
                    let active = value(&dba, active).await;
                    if active == "2" { Ok(()) } else { Err(active) }
                })
                .await;
            };
            reading.await;
            let logs = sidecar.logs();
            let loads = logs.matches("sources loaded sources=1 ").count();
            println!("  {mode}: {} writing transactions during {loads} loads", writes.load(Ordering::Relaxed));
            assert!(loads >= 4, "not each source behind a snapshot of its own:\n{logs}");
            let passed: bool =
                app.query_one("select pgtrickle.wait_for(timeout => '60 s')", &[]).await.unwrap().get(0);
            assert!(passed);
            for (name, query, columns) in queries {
                assert_equal(&app, query, name, columns).await;
            }
            assert_eq!(sidecar.terminate(SOON).await, Some(0));
        }
    })
    .await;
}
