//! Schedules and chains: durations, cron, manual; stream tables over FULL and suspended ones; circles.

use super::hazards::{Scene, sqlstate};
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};

const SETUP: &str = "
    create table t (id int primary key, v int);
    insert into t select i, i % 5 from generate_series(1, 50) i;
";

#[tokio::test(flavor = "multi_thread")]
async fn schedules_are_durations_cron_or_words_and_nonsense_is_refused() {
    for_each_major(async |server| {
        let scene = Scene::start(server, SETUP).await;
        let good = ["5s", "1h30m", "2 days", "*/5 * * * *", "*/10 * * * * *", "@hourly", "manual", "calculated"];
        for (n, schedule) in good.iter().enumerate() {
            let call = "select pgtrickle.create_stream_table($1, 'select id, v from t', schedule => $2)";
            scene.app.execute(call, &[&format!("s{n}"), schedule]).await.unwrap_or_else(|e| panic!("{schedule}: {e:?}"));
        }
        for schedule in ["5 parsecs", "* * *", "61 * * * *", "@never", "-3s", "0s", "20000000w"] {
            let call = "select pgtrickle.create_stream_table('wrong', 'select id from t', schedule => $1)";
            assert_eq!(sqlstate(scene.app.execute(call, &[&schedule]).await), "22023", "{schedule}");
        }
        // FULL ones follow their schedule; a manual one waits for somebody.
        for (name, schedule) in [("often", "1s"), ("by_cron", "* * * * * *"), ("by_hand", "manual")] {
            let call = "select pgtrickle.create_stream_table($1, 'select id, v from t', schedule => $2, refresh_mode => 'FULL')";
            scene.app.execute(call, &[&name, &schedule]).await.unwrap();
            scene.wait_status(name, "ACTIVE FULL").await;
        }
        let refreshed = scene.column("by_hand", "last_refresh_at").await;
        scene.run("update t set v = v + 1 where id < 5").await;
        for name in ["often", "by_cron"] {
            wait_until(&format!("{name} to be due"), SOON, || async {
                let rows = scene.differs(name).await;
                if rows.is_empty() { Ok(()) } else { Err(rows.join(", ")) }
            })
            .await;
        }
        // The first recomputation after it was found may still have come; from then on nothing does.
        let _ = refreshed;
        scene.run("select pgtrickle.refresh_stream_table('by_hand'); update t set v = v + 1 where id < 5").await;
        wait_until("the others to be due again", SOON, || async {
            let rows = scene.differs("often").await;
            if rows.is_empty() { Ok(()) } else { Err(rows.join(", ")) }
        })
        .await;
        assert_eq!(scene.differs("by_hand").await.len(), 8, "old and new of four rows");
        scene.run("select pgtrickle.refresh_stream_table('by_hand')").await;
        assert!(scene.differs("by_hand").await.is_empty());
    })
    .await;
}

/// A downstream shows what its upstream stores.
#[tokio::test(flavor = "multi_thread")]
async fn full_and_suspended_upstreams_are_gates() {
    for_each_major(async |server| {
        let scene = Scene::start(server, SETUP).await;
        scene.run("select pgtrickle.create_stream_table('slow', 'select v, count(*) as n, max(now()) > ''2000-01-01'' as late from t group by v', schedule => 'manual')").await;
        scene.wait_status("slow", "ACTIVE FULL").await;
        scene.create("over_slow", "select v, n from slow where n > 1").await;
        scene.create("live", "select v, sum(id) as ids from t group by v").await;
        scene.create("over_live", "select count(*) as groups, sum(ids) as ids from live").await;
        scene.create("mixed", "select s.v, s.n, l.ids from slow s join live l using (v)").await;
        let downstream = ["over_slow", "over_live", "mixed"];
        for step in [
            "insert into t select i, 9 from generate_series(100, 120) i",
            "select pgtrickle.refresh_stream_table('slow')",
            "select pgtrickle.suspend_stream_table('live')",
            "delete from t where id % 3 = 0",
            "select pgtrickle.refresh_stream_table('slow')",
            "select pgtrickle.resume_stream_table('live')",
            "update t set v = v + 1 where id % 7 = 0",
            "truncate t",
            "insert into t values (1, 1), (2, 1)",
            "select pgtrickle.refresh_stream_table('slow')",
        ] {
            scene.run(step).await;
            scene.check_in_time(&downstream).await;
        }
        scene.wait_status("live", "ACTIVE DIFFERENTIAL").await;
        scene.check_in_time(&["live"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_is_refused_with_its_path() {
    for_each_major(async |server| {
        let scene = Scene::start(server, SETUP).await;
        scene.create("a", "select id, v from t").await;
        scene.create("b", "select id, v from a").await;
        scene.run("create view above_b as select id, v + 1 as v from b").await;
        scene.create("c", "select id, v from above_b").await;
        let error = scene
            .app
            .batch_execute("select pgtrickle.alter_stream_table('a', query => 'select id, v from c')")
            .await
            .unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "42P19");
        assert!(error.message().contains("app.a -> app.c -> app.b -> app.a"), "{}", error.message());
        scene.run("update t set v = 7").await;
        scene.check(&["a", "b", "c"]).await;
    })
    .await;
}

/// While the first answer of a stream table is being written, what changes meanwhile can't be kept either.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_one_joins_a_group_that_keeps_nothing_is_not_lost() {
    for_each_major(async |server| {
        let scene = Scene::start(server, SETUP).await;
        scene.dba.batch_execute("insert into pgtrickle.settings (key, value) values ('kept_changes_mb', '0')").await.unwrap();
        let mut scene = scene;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        scene.sidecar.start_again();
        scene.sidecar.wait_ready(SOON).await;
        scene.scheduled("w", "select id, v from t", "1h").await;
        scene.run("update t set v = v + 1").await;
        // Its first answer takes a second, in which the source changes.
        scene
            .run(
                "create function slow() returns trigger language plpgsql as
                     $f$ begin perform pg_sleep(1); return null; end $f$;
                 begin;
                 select pgtrickle.create_stream_table('v', 'select id, v * 2 as d from t', schedule => '1h',
                     initialize => false);
                 create trigger slow after insert on v for each statement execute function slow();
                 commit",
            )
            .await;
        wait_until("the first answer to be written", SOON, || async {
            let asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()";
            let n: i64 = scene.dba.query_one(asleep, &[]).await.unwrap().get(0);
            if n > 0 { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
        scene.run("update t set v = v + 10; delete from t where id > 40").await;
        scene.wait_status("v", "ACTIVE DIFFERENTIAL").await;
        scene.run("drop trigger slow on v").await;
        for name in ["v", "w"] {
            scene.refresh(name).await;
            let rows = scene.differs(name).await;
            assert!(rows.is_empty(), "{name}: {}", rows.join(", "));
        }
    })
    .await;
}
