//! Stream tables move between pipelines while the application writes and sidecars end: nothing is lost, nothing is
//! applied twice, and readers never see an empty table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::{PATIENCE, Scene, Table, live, says};
use crate::harness::{SOON, TestDatabase, for_each_major, wait_until};
use crate::suites::bad_input::{value, wait_value};
use crate::suites::oracle::prng::{Prng, seed};

const SOURCES: &str = "
    create table a (id int primary key, k int, v int);
    insert into a select i, i % 10, i from generate_series(1, 1000) i";

const SUMS: Table = ("sums", "select k, sum(v) as s, count(*) as n from a group by k", "k, s, n");
/// A bag: a row that came twice would stay twice.
const BAG: Table = ("bag", "select k, v % 3 as m from a", "k, m");
const OVER: Table = ("over_sums", "select k, s from sums where n > 50", "k, s");
const STAYS: Table = ("stays", "select count(*) as n, max(v) as v from a", "n, v");
const ALL: [Table; 4] = [SUMS, BAG, OVER, STAYS];

/// An application that writes, and a reader that looks for an empty table.
struct Load {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    async fn start(db: &TestDatabase) -> Load {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (writer, reader) = (db.as_app().await, db.as_app().await);
        let (stopped, counted) = (stop.clone(), commits.clone());
        let write = tokio::spawn(async move {
            let mut rng = Prng::new(seed() ^ 77);
            while !stopped.load(Ordering::Relaxed) {
                let (n, m) = (rng.between(1, 900), rng.between(0, 40));
                let sql = format!(
                    "begin; update a set v = v + 1, k = (k + 1) % 10 where id between {n} and {n} + 20;
                     delete from a where id = 2000 + {m}; insert into a values (2000 + {m}, {m} % 10, {n}); commit"
                );
                writer.batch_execute(&sql).await.expect("the application can write");
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        });
        let stopped = stop.clone();
        let read = tokio::spawn(async move {
            const SQL: &str = "select (select count(*) from sums), (select count(*) from bag)";
            while !stopped.load(Ordering::Relaxed) {
                let row = reader.query_one(SQL, &[]).await.expect("readers are never in the way");
                let (sums, bag): (i64, i64) = (row.get(0), row.get(1));
                assert!(sums == 10 && bag >= 1000, "a reader saw {sums} and {bag} rows");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Load { stop, commits, tasks: vec![write, read] }
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("it saw nothing wrong");
        }
        self.commits.load(Ordering::Relaxed)
    }
}

async fn moved(app: &Client, pipeline: &str) {
    let sql = format!(
        "begin; select pgtrickle.move_stream_table('sums', '{pipeline}', true);
         select pgtrickle.move_stream_table('bag', '{pipeline}'); commit"
    );
    app.batch_execute(&sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_tables_move_back_and_forth_under_writes_and_kills() {
    for_each_major(async |server| {
        let mut scene = Scene::set(server, SOURCES).await;
        for table in ALL {
            scene.create("main", &table).await;
        }
        scene.live().await;
        let load = Load::start(&scene.db).await;
        let mut rng = Prng::new(seed());
        let mut slowest = Duration::ZERO;
        for round in 0..8 {
            let to = if round % 2 == 0 { "b" } else { "main" };
            let begin = Instant::now();
            moved(&scene.app, to).await;
            tokio::time::sleep(Duration::from_millis(rng.between(0, 400) as u64)).await;
            let (old, new) = match to {
                "b" => (&mut scene.main, &mut scene.b),
                _ => (&mut scene.b, &mut scene.main),
            };
            match round {
                // The one that lets go, and stays away until the other has them; the one that takes; both.
                1 | 2 => old.kill9(),
                3 | 4 => {
                    new.kill9();
                    new.start_again();
                }
                5 => {
                    old.kill9();
                    new.kill9();
                    new.start_again();
                    old.start_again();
                }
                // It changes its mind before anybody has noticed, or while the other one takes up.
                6 => {
                    moved(&scene.app, "main").await;
                    moved(&scene.app, "b").await;
                }
                _ => {}
            }
            if round <= 2 {
                live_in(&scene, to).await;
                slowest = slowest.max(begin.elapsed());
            }
            if matches!(round, 1 | 2) {
                let old = if to == "b" { &mut scene.main } else { &mut scene.b };
                old.start_again();
            }
        }
        live(&scene.dba).await;
        let commits = load.end().await;
        scene.equal(&ALL).await;
        println!("  {commits} commits under 8 moves; live in the other pipeline after at most {slowest:.2?}");
        let places = "select string_agg(pgt_name || ' ' || pipeline, ', ' order by pgt_name) from pgtrickle.pgt_stream_tables";
        assert_eq!(value(&scene.dba, places).await, "bag main, over_sums main, stays main, sums main");
        // Nobody was ever in the other's way.
        let strange = "select string_agg(distinct error_message, ', ') from pgtrickle.pgt_refresh_history
            where error_message <> 'interrupted; run again at the next start'";
        assert_eq!(value(&scene.dba, strange).await, "");
        let unequal = "select count(*) from pgtrickle.verify_stream_table('bag') where not equal";
        assert_eq!(value(&scene.app, unequal).await, "0");
        // What was moved is not held any more where it was.
        let moved_away = "select count(*) from pg_publication_tables t join pgtrickle.pgt_pipelines p on p.publication_name = t.pubname where p.pipeline = 'b'";
        wait_value(&scene.dba, moved_away, "0").await;
        assert_eq!(scene.main.terminate(SOON).await, Some(0));
        assert_eq!(scene.b.terminate(SOON).await, Some(0));
    })
    .await;
}

/// Those that move are live where they were moved to.
async fn live_in(scene: &Scene, pipeline: &str) {
    wait_until(&format!("stream tables to be live in {pipeline}"), PATIENCE, || async {
        let sql = format!(
            "select string_agg(concat_ws(' ', pgt_name, pipeline, moving_from, status), ', ') from pgtrickle.pgt_stream_tables
              where pgt_name <> 'stays' and (pipeline <> '{pipeline}' or moving_from is not null or status <> 'ACTIVE')"
        );
        match value(&scene.dba, &sql).await {
            none if none.is_empty() => Ok(()),
            others => Err(others),
        }
    })
    .await;
}

/// A sidecar that reads a source for long lets go of what that has nothing to do with at once, and of what it prepares
/// when that has ended. It is never fenced off for being busy.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_sidecar_is_waited_for_and_nobody_else_can_have_it_fenced_off() {
    for_each_major(async |server| {
        let mut scene = Scene::set(server, SOURCES).await;
        for table in ALL {
            scene.create("main", &table).await;
        }
        scene.live().await;
        let state = "select string_agg(pipeline || ' ' || generation, ', ' order by pipeline) from pgtrickle.pgt_pipelines";
        let generations = value(&scene.dba, state).await;
        // Whoever owns a stream table can't say that another pipeline still has to let go, nor that it has.
        for sql in [
            "update pgtrickle.pgt_stream_tables set moving_from = 'b' where pgt_name = 'stays'",
            "update pgtrickle.pgt_stream_tables set pipeline = pipeline, moving_from = 'b' where pgt_name = 'stays'",
        ] {
            let error = scene.app.batch_execute(sql).await.expect_err(sql);
            assert_eq!(error.as_db_error().map(|e| e.code().code()), Some("42501"), "{sql}: {error:?}");
        }
        scene
            .app
            .batch_execute(
                "create table big (id int primary key, body text);
                 insert into big select i, repeat('x', 1000) from generate_series(1, 20000) i",
            )
            .await
            .unwrap();
        scene
            .dba
            .batch_execute("insert into pgtrickle.settings values ('hydrate_rate_mb', '1', 'main')")
            .await
            .unwrap();
        const SLOW: Table = ("slow", "select id, length(body) as n from big", "id, n");
        scene.create("main", &SLOW).await;
        let reading = "select count(*) > 0 from pg_stat_activity where application_name = 'pgtrickle:main:hydrate'
            and datname = current_database() and query like 'copy%'";
        wait_value(&scene.dba, reading, "true").await;
        moved(&scene.app, "b").await;
        let moved_yet = "select count(*) from pgtrickle.pgt_stream_tables
            where pgt_name in ('sums', 'bag', 'over_sums') and (moving_from is not null or status <> 'ACTIVE')";
        wait_value(&scene.dba, moved_yet, "0").await;
        let slow = "select concat_ws(' ', pipeline, moving_from, status) from pgtrickle.pgt_stream_tables where pgt_name = 'slow'";
        assert_eq!(value(&scene.dba, slow).await, "main INITIALIZING", "the reading was still under way");
        scene.app.batch_execute("select pgtrickle.move_stream_table('slow', 'b')").await.unwrap();
        assert_eq!(value(&scene.dba, slow).await, "b main INITIALIZING");
        let cleared = "update pgtrickle.pgt_stream_tables set moving_from = null where pgt_name = 'slow'";
        let error = scene.app.batch_execute(cleared).await.expect_err("a live sidecar may still write it");
        assert_eq!(error.as_db_error().map(|e| e.code().code()), Some("42501"), "{error:?}");
        scene.live().await;
        assert_eq!(value(&scene.dba, slow).await, "b ACTIVE");
        scene.equal(&[SUMS, BAG, OVER, STAYS, SLOW]).await;
        assert_eq!(value(&scene.dba, state).await, generations, "nobody was fenced off");
        assert_eq!(scene.main.terminate(SOON).await, Some(0));
        assert_eq!(scene.b.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A sidecar that is frozen can't let go: it is fenced off, and starts again when it wakes up.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_sidecar_does_not_keep_what_was_moved_away() {
    for_each_major(async |server| {
        let mut scene = Scene::set(server, SOURCES).await;
        for table in ALL {
            scene.create("main", &table).await;
        }
        scene.live().await;
        scene.equal(&ALL).await;
        scene.main.pause();
        scene.app.batch_execute("update a set v = v + 1 where id < 500").await.unwrap();
        moved(&scene.app, "b").await;
        scene
            .app
            .batch_execute("update a set v = v + 1 where id > 500; delete from a where id % 10 = 3")
            .await
            .unwrap();
        live_in(&scene, "b").await;
        says(&scene.b, "was fenced off").await;
        let b = "select pgtrickle.wait_for(pipeline => 'b', timeout => '60 s')";
        assert_eq!(value(&scene.app, b).await, "true");
        for (name, query, columns) in [SUMS, BAG, OVER] {
            crate::harness::oracle::assert_equal(&scene.app, query, name, columns).await;
        }
        // It has changes at hand that it would write: refused, and it comes back by itself.
        scene.main.resume();
        scene.app.batch_execute("update a set v = v - 2, k = k + 1").await.unwrap();
        scene.equal(&ALL).await;
        says(&scene.main, "another sidecar has taken over this pipeline").await;
        assert_eq!(scene.main.terminate(SOON).await, Some(0));
        assert_eq!(scene.b.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A stream table is moved away while its pipeline prepares it and what reads it: the reader is planned with it as
/// another pipeline's, and the preparation ends.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_moved_while_it_is_prepared_with_its_reader_is_let_go() {
    for_each_major(async |server| {
        let mut scene = Scene::set(server, SOURCES).await;
        for table in ALL {
            scene.create("main", &table).await;
        }
        scene.live().await;
        scene.main.kill9();
        let locker = scene.db.as_app().await;
        locker.batch_execute("begin; lock table a in access exclusive mode").await.unwrap();
        scene.main.start_again();
        let planning = "select count(*) > 0 from pg_stat_activity where application_name = 'pgtrickle:main:analyze'
            and datname = current_database() and wait_event_type = 'Lock'";
        wait_value(&scene.dba, planning, "true").await;
        scene.app.batch_execute("select pgtrickle.move_stream_table('sums', 'b')").await.unwrap();
        locker.batch_execute("update a set v = v + 1 where id < 100; commit").await.unwrap();
        scene.live().await;
        let places = "select string_agg(pgt_name || ' ' || pipeline, ', ' order by pgt_name) from pgtrickle.pgt_stream_tables";
        assert_eq!(value(&scene.dba, places).await, "bag main, over_sums main, stays main, sums b");
        scene.equal(&ALL).await;
        scene.app.batch_execute("update a set v = v - 1, k = k + 1 where id % 3 = 0").await.unwrap();
        scene.equal(&ALL).await;
        assert_eq!(scene.main.terminate(SOON).await, Some(0));
        assert_eq!(scene.b.terminate(SOON).await, Some(0));
    })
    .await;
}
