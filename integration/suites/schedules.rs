//! Incremental stream tables obey their schedule: what is not due stays as it is, what is due is written together.
//!
//! Each answer is compared with PostgreSQL's own, or with what the stream table held when it was last due.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::hazards::Scene;
use crate::harness::fault::terminate_slot;
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};

const SETUP: &str = "
    create table t (id int primary key, v int);
    insert into t select i, i % 5 from generate_series(1, 50) i;
";

impl Scene {
    pub(super) async fn scheduled(&self, name: &str, query: &str, schedule: &str) {
        let call = "select pgtrickle.create_stream_table($1, $2, schedule => $3)";
        self.app.execute(call, &[&name, &query, &schedule]).await.unwrap();
        self.wait_status(name, "ACTIVE DIFFERENTIAL").await;
    }

    /// What a stream table holds.
    async fn holds(&self, name: &str) -> String {
        let sql = format!("select coalesce(string_agg(x::text, ' ' order by x::text), '') from {name} x");
        self.app.query_one(&sql, &[]).await.unwrap().get(0)
    }

    pub(super) async fn refresh(&self, name: &str) {
        self.app.execute("select pgtrickle.refresh_stream_table($1)", &[&name]).await.unwrap();
    }

    /// It equals its query without anybody asking for it.
    async fn due(&self, name: &str) {
        wait_until(&format!("{name} to be due"), SOON, || async {
            let rows = self.differs(name).await;
            if rows.is_empty() { Ok(()) } else { Err(rows.join(", ")) }
        })
        .await;
    }

    async fn value(&self, sql: &str) -> String {
        let sql = format!("select ({sql})::text");
        self.dba.query_one(&sql, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap_or_default()
    }

    async fn info(&self, name: &str, column: &str) -> String {
        self.value(&format!("select {column} from pgtrickle.stream_tables_info where pgt_name = '{name}'"))
            .await
    }
}

const CAPTURES: [&[&str]; 2] = [&[], &["--cdc-mode", "trigger"]];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_due_stays_and_what_is_due_is_written_together() {
    for_each_major(async |server| {
        for arguments in CAPTURES {
            let scene = Scene::start_with(server, SETUP, arguments).await;
            scene.create("live", "select id, v from t").await;
            scene.scheduled("hourly", "select v, count(*) as n from t group by v", "1h").await;
            scene.scheduled("same", "select sum(id) as ids, count(*) as n from t", "60 min").await;
            scene.scheduled("by_hand", "select id from t where v > 2", "manual").await;
            scene.scheduled("by_hand_too", "select id from t where v > 3", "manual").await;
            scene.scheduled("yearly", "select max(id) as id from t", "@yearly").await;
            scene.scheduled("often", "select id, v + 1 as w from t", "1s").await;
            scene.scheduled("by_cron", "select v, max(id) as id from t group by v", "* * * * * *").await;
            let patient = ["hourly", "same", "by_hand", "by_hand_too", "yearly"];
            let mut before = Vec::new();
            for name in patient {
                before.push(scene.holds(name).await);
            }
            // Values that come and go leave nothing behind.
            for i in 0..40 {
                scene.run(&format!("update t set v = (v + {i}) % 7; insert into t values (1000 + {i}, 4)")).await;
            }
            scene.run("delete from t where id % 3 = 0").await;
            scene.check(&["live"]).await;
            for (name, held) in patient.iter().zip(&before) {
                assert_eq!(scene.holds(name).await, *held, "{name} is not due");
                assert_eq!(scene.status(name).await, "ACTIVE DIFFERENTIAL");
                let sql = format!("select i.frontier < p.frontier and i.data_timestamp < p.data_timestamp
                    from pgtrickle.stream_tables_info i join pgtrickle.pgt_pipelines p using (pipeline) where i.pgt_name = '{name}'");
                assert_eq!(scene.value(&sql).await, "true", "{name} says how old it is");
            }
            scene.due("often").await;
            scene.due("by_cron").await;
            assert_eq!(scene.value("select count(*) from pgtrickle.stream_tables_info where stale").await, "0");
            assert_eq!(scene.info("by_hand", "next_refresh_at").await, "");
            assert_eq!(scene.info("hourly", "next_refresh_at between now() + interval '50 min' and now() + interval '1 h'").await, "true");
            // One schedule is one moment, however it is written.
            scene.refresh("same").await;
            for name in ["same", "hourly"] {
                assert!(scene.differs(name).await.is_empty(), "{name} is up to date");
            }
            assert_eq!(scene.info("same", "frontier").await, scene.info("hourly", "frontier").await);
            scene.refresh("by_hand").await;
            assert!(scene.differs("by_hand").await.is_empty());
            assert_eq!(scene.holds("by_hand_too").await, before[3], "manual ones are asked for one by one");
            assert_eq!(scene.holds("yearly").await, before[4]);
            scene.run("truncate t").await;
            for name in ["yearly", "by_hand_too", "by_hand", "hourly"] {
                scene.refresh(name).await;
                assert!(scene.differs(name).await.is_empty(), "{name} is up to date after a refresh");
            }
            scene.due("often").await;
            // An idle one is as fresh as its schedule.
            wait_until("an idle one to be fresh", SOON, || async {
                let age = scene.info("often", "staleness < interval '3 s'").await;
                if age == "true" { Ok(()) } else { Err(scene.info("often", "staleness").await) }
            })
            .await;
        }
    })
    .await;
}

/// Readers see stream tables of one schedule, and chains of them, at one commit boundary.
#[tokio::test(flavor = "multi_thread")]
async fn stream_tables_of_one_schedule_show_one_commit_boundary() {
    for_each_major(async |server| {
        let scene = Scene::start(server, SETUP).await;
        scene.scheduled("sums", "select sum(v) as v, count(*) as n from t", "300ms").await;
        scene.scheduled("parts", "select v, count(*) as n from t group by v", "300ms").await;
        scene.scheduled("over", "select coalesce(sum(v * n), 0) as v, sum(n) as n from parts", "300ms").await;
        // A chain of ten and a diamond, continuous: of each other's moment, whatever the schedule of those above shows.
        for link in 0..10 {
            let over = if link == 0 { "(select v, count(*) as n from t group by v) t".to_owned() } else { format!("link{}", link - 1) };
            let name = format!("link{link}");
            scene.create(&name, &format!("select v + 1 as v, n from {over}")).await;
        }
        scene.create("origin", "select sum(v) as v, count(*) as n from t").await;
        scene.create("left_side", "select v, count(*) as n from t group by v").await;
        scene.create("right_side", "select v, sum(v) as s, max(id) as last from t group by v").await;
        scene.create("top", "select l.v, l.n, r.s, r.last from left_side l join right_side r using (v)").await;
        const LINKED: &str = "select o.v::text, o.n::text,
              (select bool_and((select sum(n) = o.n and sum((v - 1 - place) * n) = o.v from linked where link = place))
                 from generate_series(0, 9) place),
              (select sum(n) = o.n and sum(v * n) = o.v from left_side)
                and (select sum(s) = o.v and count(*) = (select count(*) from left_side) from right_side),
              not exists (select l.v, l.n, r.s, r.last from left_side l join right_side r using (v)
                 except all select v, n, s, last from top) and (select sum(n) = o.n from top)
            from origin o";
        let links = (0..10).map(|i| format!("select {i} as link, v, n from link{i}")).collect::<Vec<_>>();
        scene.run(&format!("create view linked as {}", links.join(" union all "))).await;
        let writer = scene.db.as_app().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let writing = tokio::spawn(async move {
            for i in 0.. {
                let sql = format!("update t set v = (v * 3 + {i}) % 11 where id % 7 = {i} % 7; insert into t values ({i} + 100, 1); delete from t where id = {i}");
                writer.batch_execute(&sql).await.unwrap();
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let (mut looks, mut seen, mut moments) = (0, BTreeSet::new(), BTreeSet::new());
        let deadline = Instant::now() + Duration::from_secs(120);
        while looks < 20 || seen.len() < 3 || moments.len() < 8 {
            let so_far = format!("{looks} looks saw {} moments, {} of the continuous ones", seen.len(), moments.len());
            assert!(Instant::now() < deadline, "{so_far} in two minutes");
            const SQL: &str = "select s.v::text, s.v = o.v and s.n = o.n and s.n = (select sum(n) from parts) from sums s, over o";
            let row = scene.app.query_one(SQL, &[]).await.unwrap();
            assert!(row.get::<_, bool>(1), "one of them is ahead of the others");
            seen.insert(row.get::<_, String>(0));
            let row = scene.app.query_one(LINKED, &[]).await.unwrap();
            let right: Vec<bool> = (2..5).map(|place| row.get(place)).collect();
            assert_eq!(right, [true; 3], "chain, sides and top of the diamond are of one moment");
            moments.insert((row.get::<_, String>(0), row.get::<_, String>(1)));
            looks += 1;
        }
        stop.store(true, Ordering::Relaxed);
        writing.await.unwrap();
        println!("{looks} looks saw {} moments, {} of the continuous ones", seen.len(), moments.len());
        scene.check(&["link9", "origin", "left_side", "right_side", "top"]).await;
        for name in ["sums", "parts", "over"] {
            scene.due(name).await;
        }
    })
    .await;
}

/// A downstream reads what its upstream stores, in any mixture of schedules.
#[tokio::test(flavor = "multi_thread")]
async fn chains_and_diamonds_of_mixed_schedules_read_what_is_stored() {
    for_each_major(async |server| {
        let scene = Scene::start(server, SETUP).await;
        let schedules = [
            "calculated",
            "400ms",
            "400ms",
            "calculated",
            "manual",
            "calculated",
            "@hourly",
            "manual",
            "calculated",
            "300 ms",
        ];
        let mut source = "t".to_owned();
        for (n, schedule) in schedules.iter().enumerate() {
            let name = format!("c{n}");
            scene.scheduled(&name, &format!("select id, v + 1 as v from {source}"), schedule).await;
            source = name;
        }
        scene
            .scheduled("diamond", "select a.id, a.v, d.v as w from c0 a join c4 d using (id)", "calculated")
            .await;
        scene
            .scheduled("late", "select d.id, d.w, c.v from diamond d left join c2 c using (id)", "manual")
            .await;
        scene
            .run("update t set v = 100 - v; delete from t where id % 9 = 0; insert into t values (77, 7)")
            .await;
        // What lies before the first gate moves by itself, what lies behind it does not.
        scene.check(&["c0", "diamond"]).await;
        for name in ["c1", "c2", "c3"] {
            scene.due(name).await;
        }
        let first = scene.value("select sum(v) from app.c4").await;
        assert_eq!(
            first,
            scene.value("select sum(i % 5 + 5) from generate_series(1, 50) i").await,
            "c4 waits for somebody"
        );
        assert_eq!(
            scene.value("select sum(v) from app.c5").await,
            scene.value("select sum(v + 1) from app.c4").await
        );
        for (n, _) in schedules.iter().enumerate().skip(4) {
            let name = format!("c{n}");
            scene.refresh(&name).await;
            assert!(
                scene.differs(&name).await.is_empty(),
                "{name} equals its query over what {} stores",
                n - 1
            );
        }
        scene.check(&["diamond"]).await;
        scene.refresh("late").await;
        assert!(scene.differs("late").await.is_empty());
        assert_eq!(
            scene.value("select sum(v) from app.c9").await,
            scene.value("select sum(v + 10) from app.t").await
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_may_be_altered_and_a_stream_table_suspended_resumed_and_dropped() {
    for_each_major(async |server| {
        let scene = Scene::start(server, SETUP).await;
        scene.create("up", "select v, count(*) as n from t group by v").await;
        scene.create("down", "select sum(n) as n, count(*) as groups from up").await;
        let generation = scene.generation().await;
        let change = "insert into t select coalesce(max(id), 0) + 1, 9 from t";
        for (schedule, waits) in
            [("1h", true), ("1s", false), ("manual", true), ("calculated", false), ("@yearly", true)]
        {
            scene
                .app
                .execute("select pgtrickle.alter_stream_table('up', schedule => $1)", &[&schedule])
                .await
                .unwrap();
            // Whoever waits does not get an answer from before it has followed.
            scene.passed().await;
            assert_eq!(scene.status("up").await, "ACTIVE DIFFERENTIAL");
            assert!(scene.differs("up").await.is_empty(), "it is written when it follows its new schedule");
            scene.check_in_time(&["down"]).await;
            let held = scene.holds("up").await;
            scene.run(change).await;
            scene.check_in_time(&["down"]).await;
            if waits {
                assert_eq!(scene.holds("up").await, held, "{schedule}");
                scene.refresh("up").await;
            }
            scene.due("up").await;
            scene.check_in_time(&["down"]).await;
        }
        // Suspended while changes are kept for it: they are not written, nor when it is dropped.
        let held = scene.holds("up").await;
        scene.run(change).await;
        scene.passed().await;
        let fresh = scene.info("up", "data_timestamp").await;
        scene.run("select pgtrickle.suspend_stream_table('up')").await;
        scene.run(change).await;
        scene.check_in_time(&["down"]).await;
        assert_eq!(scene.holds("up").await, held);
        assert_eq!(scene.info("up", "data_timestamp").await, fresh, "it is as old as what it holds");
        scene.run("select pgtrickle.resume_stream_table('up')").await;
        scene.wait_status("up", "ACTIVE DIFFERENTIAL").await;
        assert!(scene.differs("up").await.is_empty(), "taken up again, it is up to date at once");
        scene.scheduled("lost", "select id from t", "1h").await;
        scene.run(change).await;
        scene.run("select pgtrickle.drop_stream_table('lost')").await;
        scene.run(change).await;
        scene.refresh("up").await;
        scene.check_in_time(&["up", "down"]).await;
        assert_eq!(scene.generation().await, generation, "nothing had to start again");
    })
    .await;
}

/// After a suspension, or under one schedule again, the dataflow goes through the upstream and not through its table.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_closes_when_the_reason_for_it_is_gone() {
    for_each_major(async |server| {
        let scene = Scene::start(server, SETUP).await;
        scene.create("up", "select v, count(*) as n from t group by v").await;
        scene.create("down", "select sum(n) as n, max(v) as v from up").await;
        let gate = async |open: bool| {
            wait_until(&format!("the gate to be open: {open}"), SOON, || async {
                let n =
                    scene.value("select count(*) from pg_publication_tables where tablename = 'up'").await;
                if (n == "1") == open { Ok(()) } else { Err(format!("{n} tables published")) }
            })
            .await;
        };
        gate(false).await;
        for (there, back) in [
            ("select pgtrickle.suspend_stream_table('up')", "select pgtrickle.resume_stream_table('up')"),
            (
                "select pgtrickle.alter_stream_table('up', schedule => '1s')",
                "select pgtrickle.alter_stream_table('down', schedule => '1s')",
            ),
            (
                "select pgtrickle.alter_stream_table('down', schedule => '2s')",
                "select pgtrickle.alter_stream_table('up', schedule => 'calculated')",
            ),
        ] {
            scene.run(there).await;
            gate(true).await;
            scene
                .run("update t set v = v + 1 where id < 20; insert into t select max(id) + 1, 2 from t")
                .await;
            scene.due("down").await;
            scene.run(back).await;
            gate(false).await;
            scene.run("delete from t where id in (select min(id) from t)").await;
            scene.due("up").await;
            scene.due("down").await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_shows_when_it_is_due_and_stops_only_its_stream_table() {
    for_each_major(async |server| {
        let scene = Scene::start(server, SETUP).await;
        scene.run("delete from t where v = 0").await;
        scene.scheduled("divided", "select id, 100 / v as q from t where v <> 1000", "1h").await;
        scene.scheduled("over_it", "select count(*) as n, sum(q) as q from divided", "1h").await;
        scene.scheduled("counted", "select count(*) as n from t", "1h").await;
        scene.create("live", "select id, v from t").await;
        scene.run("delete from t where v = 1").await;
        scene.refresh("divided").await;
        scene.run("insert into t values (500, 0)").await;
        scene.check(&["live"]).await;
        assert_eq!(scene.status("divided").await, "ACTIVE DIFFERENTIAL", "it is not due");
        let refused =
            scene.app.execute("select pgtrickle.refresh_stream_table('divided')", &[]).await.unwrap_err();
        assert_eq!(refused.code().map(|c| c.code().to_owned()).as_deref(), Some("22012"), "{refused:?}");
        assert!(scene.differs("counted").await.is_empty(), "the other one of the same schedule was written");
        scene.run("update t set v = 5 where id = 500; select pgtrickle.resume_stream_table('divided')").await;
        scene.wait_status("divided", "ACTIVE DIFFERENTIAL").await;
        assert!(scene.differs("divided").await.is_empty());
        // What the table itself refuses.
        scene.run("alter table divided add constraint small check (q < 200)").await;
        scene.run("update t set v = -1 where id = 500; insert into t values (501, 2)").await;
        scene.refresh("divided").await;
        scene.run("alter table divided drop constraint small, add constraint small check (q < 99)").await;
        scene.run("insert into t values (502, 1)").await;
        let refused =
            scene.app.execute("select pgtrickle.refresh_stream_table('divided')", &[]).await.unwrap_err();
        assert_eq!(refused.code().map(|c| c.code().to_owned()).as_deref(), Some("23514"), "{refused:?}");
        scene.check(&["live"]).await;
        assert!(scene.differs("counted").await.is_empty());
        // It equals its query over what the other one stores.
        scene.due("over_it").await;
    })
    .await;
}

/// Past the budget nothing is kept, and the refresh is a comparison.
#[tokio::test(flavor = "multi_thread")]
async fn more_than_may_be_kept_is_compared_when_it_is_due() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, SETUP).await;
        scene.run("create table small (id int primary key); insert into small values (1)").await;
        scene.dba.batch_execute("insert into pgtrickle.settings values ('kept_changes_mb', '0.01')").await.unwrap();
        scene.sidecar.terminate(SOON).await;
        scene.sidecar.start_again();
        scene.scheduled("large", "select id, v from t", "1h").await;
        scene.scheduled("with_it", "select count(*) as n from large", "1h").await;
        scene.scheduled("little", "select id from small", "manual").await;
        scene.scheduled("soon", "select v, count(*) as n from t group by v", "2s").await;
        let held = scene.holds("large").await;
        let reconciles = "select count(*) from pgtrickle.pgt_refresh_history where pgt_name = 'large' and action = 'REINITIALIZE'";
        let before = scene.value(reconciles).await;
        scene.run("insert into small values (2); insert into t select i, i % 3 from generate_series(1000, 3000) i").await;
        scene.passed().await;
        assert_eq!(scene.holds("large").await, held);
        assert_eq!(scene.value(reconciles).await, before, "only when it is due");
        scene.due("soon").await;
        scene.refresh("large").await;
        for name in ["large", "with_it"] {
            assert!(scene.differs(name).await.is_empty(), "{name}");
        }
        assert_ne!(scene.value(reconciles).await, before, "it was compared");
        assert_eq!(scene.value("select count(*) from app.little").await, "1");
        scene.refresh("little").await;
        assert!(scene.differs("little").await.is_empty());
        // From then on changes are kept again.
        scene.run("delete from t where id < 10").await;
        scene.refresh("with_it").await;
        assert!(scene.differs("large").await.is_empty() && scene.differs("with_it").await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_survives_a_broken_stream_and_a_crash_brings_it_up_to_date() {
    for_each_major(async |server| {
        for arguments in CAPTURES {
            let mut scene = Scene::start_with(server, SETUP, arguments).await;
            scene.scheduled("slow", "select v, sum(id) as ids from t group by v", "1h").await;
            scene.scheduled("by_hand", "select id, v from t", "manual").await;
            scene.create("live", "select id, v from t").await;
            let held = scene.holds("slow").await;
            scene.run("update t set v = v + 1 where id % 2 = 0").await;
            scene.check(&["live"]).await;
            let generation = scene.generation().await;
            if arguments.is_empty() {
                let slot = scene.value("select slot_name from pgtrickle.pgt_pipelines").await;
                terminate_slot(&scene.dba, &slot).await;
                scene.run("delete from t where id = 3").await;
                scene.check(&["live"]).await;
                assert_eq!(scene.generation().await, generation, "memory was kept");
                assert_eq!(scene.holds("slow").await, held);
                scene.refresh("slow").await;
                assert!(scene.differs("slow").await.is_empty());
                scene.run("insert into t values (999, 1)").await;
                scene.check(&["live"]).await;
            }
            // The acknowledged position has passed what was kept in memory only.
            scene.sidecar.kill9();
            scene.run("insert into t values (1999, 2)").await;
            scene.sidecar.start_again();
            for name in ["slow", "by_hand", "live"] {
                scene.due(name).await;
            }
            scene.check(&["live"]).await;
            let held = scene.holds("slow").await;
            scene.run("update t set v = 0").await;
            scene.check(&["live"]).await;
            assert_eq!(scene.holds("slow").await, held, "and it waits again");
        }
    })
    .await;
}

/// Who changes a stream table holds its row and then wants its query's view; a recomputation reads the view and then
/// writes the row. Were it to wait for the row, the server would end one of the two as deadlocked, the user most often.
#[tokio::test(flavor = "multi_thread")]
async fn a_recomputation_gives_way_to_whoever_changes_its_stream_table() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, SETUP).await;
        let call = "select pgtrickle.create_stream_table('recomputed', 'select id, v, now() > ''epoch'' as t from t', schedule => '1s')";
        scene.app.batch_execute(call).await.unwrap();
        scene.wait_status("recomputed", "ACTIVE FULL").await;
        let id = scene.value("select pgt_id from pgtrickle.pgt_stream_tables where pgt_name = 'recomputed'").await;
        let begun = format!("select count(*) from pgtrickle.pgt_refresh_history where pgt_id = {id}");
        let changing = scene.db.as_dba().await;
        for _ in 0..2 {
            let hold = format!("begin; select from pgtrickle.pgt_stream_tables where pgt_id = {id} for no key update");
            changing.batch_execute(&hold).await.unwrap();
            let before = scene.value(&begun).await;
            wait_until("a recomputation to begin", SOON, || async {
                let now = scene.value(&begun).await;
                if now != before { Ok(()) } else { Err(format!("{now} so far")) }
            })
            .await;
            let lock = format!("lock table pgtrickle_queries.recomputed_{id} in access exclusive mode");
            changing.batch_execute(&lock).await.expect("no deadlock");
            changing.batch_execute("commit").await.unwrap();
        }
        scene.run("insert into t values (1000, 1)").await;
        scene.due("recomputed").await;
        scene.wait_status("recomputed", "ACTIVE FULL").await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
