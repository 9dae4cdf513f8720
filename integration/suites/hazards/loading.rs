//! Boundaries: what happens to a source while it is read.

use super::Scene;
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};

const T: &str = "create table t (id int primary key, v int not null);
    insert into t select i, i from generate_series(1, 1000) i;";

/// A rewrite sends no row, and an older snapshot reads the rewritten table as empty: the locks come first.
#[tokio::test(flavor = "multi_thread")]
async fn a1_truncate_and_rewrite_between_snapshot_and_copy() {
    for_each_major(async |server| {
        let setup = "create table t (id int primary key, a int, b int, c int, d int);
            insert into t select i, i, i, i, i from generate_series(1, 1000) i";
        let scene = Scene::start(server, setup).await;
        scene.create("known", "select id, a from t").await;
        for (column, change) in [
            ("b", "alter table t add column u uuid default gen_random_uuid()"),
            ("c", "truncate t; insert into t select i, -i, i, -i, i from generate_series(1, 500) i"),
            ("d", "alter table t alter column u type text using u::text || 'x'; cluster t using t_pkey"),
        ] {
            // A new source whose way into the publication is blocked holds the preparation between plan and load.
            let new = format!("new_{column}");
            scene
                .run(&format!("create table {new} (id int primary key); insert into {new} values (1), (2)"))
                .await;
            let (gate, ddl) = (scene.db.as_app().await, scene.db.as_app().await);
            gate.batch_execute(&format!("begin; lock table {new} in share update exclusive mode"))
                .await
                .unwrap();
            let name = format!("with_{column}");
            let query = format!("select t.id, t.{column} from t left join {new} n on n.id = t.id");
            scene
                .app
                .execute("select pgtrickle.create_stream_table($1, $2)", &[&name, &query])
                .await
                .unwrap();
            scene.wait_blocked("analyze").await;
            ddl.batch_execute(&format!("begin; {change}")).await.unwrap();
            gate.batch_execute("commit").await.unwrap();
            scene.wait_blocked("hydrate").await;
            ddl.batch_execute("commit").await.unwrap();
            scene.check_in_time(&[&name, "known"]).await;
        }
    })
    .await;
}

/// While a start still loads, nobody is told that stream tables are fresh.
#[tokio::test(flavor = "multi_thread")]
async fn c2_the_frontier_says_nothing_that_the_stored_rows_do_not_hold() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, T).await;
        scene.create("copy_of_t", "select id, v from t").await;
        scene.sidecar.kill9();
        scene.run("update t set v = -1 where id < 100").await;
        let name: String =
            scene.dba.query_one("select pubname::text from pg_publication", &[]).await.unwrap().get(0);
        scene.dba.batch_execute(&format!("alter publication {name} drop table app.t")).await.unwrap();
        let gate = scene.db.as_app().await;
        gate.batch_execute("begin; lock table t in share update exclusive mode").await.unwrap();
        scene.sidecar.start_again();
        scene.wait_blocked("analyze").await;
        let told: bool =
            scene.app.query_one("select pgtrickle.wait_for(timeout => '2 s')", &[]).await.unwrap().get(0);
        let status = scene.status("copy_of_t").await;
        assert!(!told || status != "ACTIVE DIFFERENTIAL", "told fresh while it was loading: {status}");
        gate.batch_execute("commit").await.unwrap();
        scene.check_in_time(&["copy_of_t"]).await;
    })
    .await;
}

/// What an open transaction wrote before its table joined the publication is never sent.
#[tokio::test(flavor = "multi_thread")]
async fn a11_writers_are_open_while_their_table_joins_the_publication() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        let (one, two) = (scene.db.as_app().await, scene.db.as_app().await);
        one.batch_execute("begin; insert into t values (2001, 1); update t set v = 0 where id < 10")
            .await
            .unwrap();
        two.batch_execute("begin; insert into t values (2002, 2); prepare transaction 'joining'")
            .await
            .unwrap();
        scene.run("select pgtrickle.create_stream_table('late', 'select id, v from t')").await;
        wait_until("the table to join the publication", SOON, || async {
            let count: i64 =
                scene.dba.query_one("select count(*) from pg_publication_tables", &[]).await.unwrap().get(0);
            if count == 1 { Ok(()) } else { Err(count.to_string()) }
        })
        .await;
        // A writer that starts later need not be waited for.
        scene.run("insert into t values (2003, 3)").await;
        one.batch_execute("insert into t values (2004, 4); commit").await.unwrap();
        assert_ne!(scene.status("late").await, "ACTIVE DIFFERENTIAL");
        two.batch_execute("commit prepared 'joining'").await.unwrap();
        scene.wait_status("late", "ACTIVE DIFFERENTIAL").await;
        scene.check(&["late"]).await;
    })
    .await;
}

/// The text of an enum value changes without a change of its row, also for an open writer's row that is decoded later.
#[tokio::test(flavor = "multi_thread")]
async fn a7_enum_labels_are_renamed_with_and_without_an_open_writer() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create type mood as enum ('sad', 'glad'); create table m (id int primary key, x mood);
             insert into m select i, 'sad' from generate_series(1, 10) i",
        )
        .await;
        scene.create("moods", "select id, x from m").await;
        scene.create("by_mood", "select x, count(*) as n from m group by x").await;
        scene.run("alter type mood rename value 'sad' to 'low'").await;
        scene.check_in_time(&["moods", "by_mood"]).await;
        scene.run("update m set x = 'glad' where id < 4").await;
        // An apply that still names the old label fails, loudly; the next look at the source repairs it.
        scene.check_in_time(&["moods", "by_mood"]).await;

        let writer = scene.db.as_app().await;
        writer
            .batch_execute("begin; insert into m values (50, 'glad'); update m set x = 'glad' where id = 9")
            .await
            .unwrap();
        scene.run("alter type mood rename value 'glad' to 'high'").await;
        wait_until("the sidecar to notice", SOON, || async {
            let status = scene.status("moods").await;
            if status.starts_with("ACTIVE") { Err(status) } else { Ok(()) }
        })
        .await;
        // Long enough for a load that would not wait for the writer.
        let load =
            tokio::time::timeout(std::time::Duration::from_secs(2), scene.wait_status("moods", "NEVER"));
        let _ = load.await;
        writer.batch_execute("commit").await.unwrap();
        scene.check_in_time(&["moods", "by_mood"]).await;
        scene.run("delete from m where id in (9, 50)").await;
        scene.check(&["moods", "by_mood"]).await;
    })
    .await;
}

/// Attributes that come to a composite type, or are called otherwise, change the text of rows that nobody changed.
#[tokio::test(flavor = "multi_thread")]
async fn a7_attributes_of_composite_types_come_and_are_renamed() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create type kind as enum ('small', 'large'); create type size as (w int, h int, k kind); create domain short as varchar(20);
             create table boxes (id int primary key, s size, label short, kinds kind[]);
             insert into boxes select i, row(i % 3, i, 'small')::size, 'box ' || i % 4, '{small,large}' from generate_series(1, 12) i",
        )
        .await;
        scene.create("sizes", "select id, s, label from boxes").await;
        scene.create("widths", "select (s).w as w, count(*) as n, array_agg(s order by id) as all_of from boxes group by 1").await;
        scene.create("as_json", "select id, to_jsonb(s) as j from boxes").await;
        scene.create("by_size", "select s, count(*) as n from boxes group by s").await;
        scene.create("kinds", "select id, s::text as s, lower(kinds::text) as kinds, label || '!' as label from boxes").await;
        let all = ["sizes", "widths", "as_json", "by_size", "kinds"];
        let change = async |n: i32| {
            let sql = format!("update boxes set label = 'n{n}', s.w = {n} where id % 4 = {n}; insert into boxes (id, label) values ({n} + 50, 'new'); delete from boxes where id = {n} + 5");
            scene.run(&sql).await;
            scene.check_in_time(&all).await;
        };
        scene.check_in_time(&all).await;
        for (n, ddl) in (0..).zip([
            "alter type size add attribute d int",
            "alter type size rename attribute h to height",
            "alter type kind rename value 'small' to 'tiny'",
            "alter type kind rename to sort",
            "alter domain short add constraint not_odd check (value <> 'odd')",
            "alter domain short rename to brief",
        ]) {
            scene.run(ddl).await;
            scene.check_in_time(&all).await;
            change(n).await;
        }
        // The owner's function for to_jsonb names the type: recomputed, with the reason, until its query is given again.
        scene.run("alter type size rename to measures").await;
        scene.wait_status("as_json", "ACTIVE FULL").await;
        assert!(scene.column("as_json", "refresh_reason").await.is_some());
        scene.check_in_time(&["sizes", "widths", "by_size", "kinds"]).await;
        let again = "select pgtrickle.alter_stream_table('as_json', query => 'select id, to_jsonb(s) as j from boxes')";
        scene.run(again).await;
        scene.check_in_time(&all).await;
        change(9).await;
    })
    .await;
}

/// Stream tables that are created under constant writes: nothing is lost and nothing is doubled at their boundaries.
#[tokio::test(flavor = "multi_thread")]
async fn c2_late_stream_tables_join_under_constant_writes() {
    for_each_major(async |server| {
        let scene = Scene::start(server, T).await;
        scene.create("first", "select v % 10 as k, count(*) as n, sum(id) as s from t group by 1").await;
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writers: Vec<_> = (0..2)
            .map(|w| {
                let (stop, url) = (stop.clone(), scene.db.url(crate::harness::database::APP));
                tokio::spawn(async move {
                    let client = crate::harness::database::connect(&url).await;
                    let mut i = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        i += 1;
                        let id = 10_000 * (w + 1) + i;
                        let sql = format!(
                            "begin; insert into t values ({id}, {i}); savepoint a; update t set v = v + 1 where id % 500 = {};
                             delete from t where id = {}; commit",
                            250 * w + i % 250,
                            id - 7
                        );
                        client.batch_execute(&sql).await.unwrap();
                    }
                    i
                })
            })
            .collect();
        for (name, query) in [
            ("second", "select id, v from t where v % 2 = 0"),
            ("third", "select a.id, b.v from t a join t b on b.id = a.id"),
            ("fourth", "select distinct v from t"),
        ] {
            scene.create(name, query).await;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for writer in writers {
            assert!(writer.await.unwrap() > 10, "the writers did not write");
        }
        scene.check(&["first", "second", "third", "fourth"]).await;
    })
    .await;
}
