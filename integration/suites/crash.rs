//! The sidecar and the server end at the worst moments: nothing is lost, nothing is applied twice, and readers never
//! see anything but commit boundaries.
//!
//! The world of the oracle test goes on writing through every end; its reader checks each snapshot against the answers
//! of the commits (see the module `boundaries` there). The hand-written stage is used: every table and query of it is known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgtrickle::postgres::cluster::StopMode;
use tokio_postgres::Client;

use super::oracle::boundaries::{Reader, SEEN, verify};
use super::oracle::fixed;
use super::oracle::prng::{Prng, seed};
use super::oracle::query::Query;
use super::oracle::round::{create, create_seen, install, quiet, wait_for, with_log};
use super::oracle::scalar::Image;
use super::oracle::stage::{Stage, Stream};
use super::oracle::types::Ty;
use super::oracle::world::{PATIENCE, World};
use crate::harness::servers::each;
use crate::harness::{SOON, Server, Sidecar, TestDatabase, for_each_major, own_cluster, wait_until};

/// A database with the fixed stage, or its first stream tables, and a sidecar that serves it.
struct Scene {
    database: TestDatabase,
    app: Client,
    dba: Client,
    stage: Arc<Stage>,
    sidecar: Sidecar,
}

impl Scene {
    async fn set(server: &Server, seed: u64, streams: usize) -> Scene {
        println!("PGTRICKLE_ORACLE_SEED={seed} on PostgreSQL {}", server.major);
        let database = TestDatabase::create(server).await;
        install(&database).await;
        let app = database.as_app().await;
        let mut stage = fixed::stage(seed);
        stage.streams.truncate(streams);
        with_log(&mut stage);
        stage.install_tables(&app).await;
        stage.install_references(&app).await;
        let mut sidecar = Sidecar::start(&database, &[]);
        sidecar.wait_ready(PATIENCE).await;
        create_seen(&stage, &app).await;
        for stream in &stage.streams {
            create(&stage, &app, &stream.name, &stream.query.stored()).await;
        }
        let dba = database.as_dba().await;
        Scene { database, app, dba, stage: Arc::new(stage), sidecar }
    }

    /// The slot never acknowledges what the catalog does not hold.
    async fn check_slot(&self) {
        // In this order: the frontier may move on between the two looks, the slot may not pass the one seen later.
        let slot = "select confirmed_flush_lsn::text from pg_replication_slots
            where slot_name = (select slot_name from pgtrickle.pgt_pipelines where pipeline = 'main')";
        let Some(row) = self.dba.query_opt(slot, &[]).await.expect("the slot can be seen") else { return };
        let confirmed: Option<String> = row.get(0);
        let frontier = "select frontier is null or frontier >= $1::text::pg_lsn, frontier::text
            from pgtrickle.pgt_pipelines where pipeline = 'main'";
        let row = self.dba.query_one(frontier, &[&confirmed]).await.expect("the frontier can be seen");
        let (held, frontier): (Option<bool>, Option<String>) = (row.get(0), row.get(1));
        if held == Some(false) {
            let seed = self.stage.seed;
            panic!("the slot confirmed {confirmed:?}, past the frontier {frontier:?} (seed {seed})");
        }
    }

    /// Ends the writers and checks everything that was seen, and the end.
    async fn judge(&mut self, world: &mut World, reader: Reader) -> usize {
        world.finish().await;
        let tables = self.stage.streams.len();
        let last = quiet(&self.stage, &self.app, world, tables).await;
        let mut observations = reader.finish().await;
        observations.push(last);
        self.check_slot().await;
        verify(&self.stage, &world.boundaries.log, &world.boundaries.answers, &observations)
    }

    async fn world(&self) -> World {
        World::new(self.stage.clone(), &self.database, Prng::new(self.stage.seed)).await
    }
}

/// Writes until `seen` shows more than before.
async fn progress(scene: &Scene, world: &mut World) {
    let sql = format!("select count(*) from {SEEN}");
    let count = async || -> i64 { scene.app.query_one(&sql, &[]).await.expect("`seen` can be read").get(0) };
    let (before, start) = (count().await, Instant::now());
    while count().await == before {
        world.run(1).await;
        assert!(
            start.elapsed() < PATIENCE,
            "`seen` has not moved for {PATIENCE:?} (seed {})",
            scene.stage.seed
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_kills_of_the_sidecar_under_load_lose_and_double_nothing() {
    for_each_major(async |server| {
        let mut scene = Scene::set(server, seed(), 12).await;
        let mut rng = Prng::new(scene.stage.seed ^ 9);
        let mut world = scene.world().await;
        world.planner.large = 300;
        world.watched = 40;
        let reader = Reader::start(scene.stage.clone(), &scene.database).await;
        for _ in 0..30 {
            // Every second time it first comes so far that readers see something new; then, or anywhere between its start
            // and its first apply, it ends: with writes before, during and after.
            if rng.chance(50) {
                progress(&scene, &mut world).await;
            }
            let life = Duration::from_millis(rng.between(0, 500) as u64);
            let end = Instant::now() + life;
            while Instant::now() < end {
                world.run(1).await;
            }
            scene.sidecar.kill9();
            scene.check_slot().await;
            world.run(1 + rng.below(3)).await;
            scene.sidecar.start_again();
        }
        world.run(10).await;
        let compared = scene.judge(&mut world, reader).await;
        let commits = world.boundaries.log.len();
        println!("  {commits} commits, {compared} tables compared");
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0), "exit code after SIGTERM");
        scene.check_slot().await;
    })
    .await;
}

/// Hazard A11: what an open transaction wrote to a table before it joined the publication is never sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_spans_the_moment_its_table_joins_the_publication_loses_nothing() {
    for_each_major(async |server| {
        let scene = Scene::set(server, seed(), 0).await;
        let app = &scene.app;
        let writer = scene.database.as_app().await;
        let mut rng = Prng::new(scene.stage.seed);
        for round in 0..6 {
            let table = format!("joins{round}");
            app.batch_execute(&format!("create table {table} (id int primary key, v int)")).await.unwrap();
            let insert = |id: usize| format!("insert into {table} values ({id}, {round})");
            // The writer writes before the table joins, after it, and commits at some time; or is prepared before.
            writer.batch_execute("begin").await.unwrap();
            writer.batch_execute(&insert(1)).await.unwrap();
            let prepared = round % 3 == 2;
            let gid = format!("{}_{round}", scene.database.name);
            if prepared {
                writer.batch_execute(&format!("prepare transaction '{gid}'")).await.unwrap();
            }
            let name = format!("joined{round}");
            let query = format!("select id as o0, v as o1 from {table}");
            create(&scene.stage, app, &name, &query).await;
            app.batch_execute(&insert(2)).await.unwrap();
            let published = format!(
                "select exists (select from pg_publication_tables where tablename = '{table}')"
            );
            if rng.chance(70) {
                wait_until("the table to join the publication", SOON, || async {
                    let row = app.query_one(&published, &[]).await.expect("publications can be seen");
                    if row.get(0) { Ok(()) } else { Err("not yet".to_owned()) }
                })
                .await;
            }
            app.batch_execute(&insert(3)).await.unwrap();
            if prepared {
                writer.batch_execute(&format!("commit prepared '{gid}'")).await.unwrap();
            } else {
                writer.batch_execute(&insert(4)).await.unwrap();
                writer.batch_execute("commit").await.unwrap();
            }
            app.batch_execute(&insert(5)).await.unwrap();
            let expected: i64 = if prepared { 4 } else { 5 };
            wait_until("the stream table to hold all rows", PATIENCE, || async {
                let sql = format!(
                    "select (select count(*) from {name}), (select count(distinct o0) from {name}),
                        (select status || ' ' || refresh_mode from pgtrickle.pgt_stream_tables where pgt_name = '{name}')"
                );
                let row = app.query_one(&sql, &[]).await.expect("the stream table can be read");
                let seen: (i64, i64, String) = (row.get(0), row.get(1), row.get(2));
                let right = (expected, expected, "ACTIVE DIFFERENTIAL".to_owned());
                if seen == right { Ok(()) } else { Err(format!("round {round}: {seen:?}, not {right:?}")) }
            })
            .await;
            app.batch_execute(&format!("update {table} set v = v + 1")).await.unwrap();
            wait_for(&scene.stage, app).await;
            let sql = format!("select count(*) from {name} where o1 = {round} + 1");
            let row = app.query_one(&sql, &[]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), expected, "round {round}: rows after an update of all");
        }
    })
    .await;
}

/// Transactions that are open across many applies and commit in another order than they began.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_stay_open_across_applies_arrive_whole() {
    for_each_major(async |server| {
        let scene = Scene::set(server, seed(), 0).await;
        let app = &scene.app;
        app.batch_execute("create table t (id int primary key, writer int)").await.unwrap();
        create(&scene.stage, app, "by_writer", "select writer as o0, count(*) as o1 from t group by writer")
            .await;
        active(&scene, "by_writer").await;
        let mut writers = Vec::new();
        for writer in 0..6 {
            let client = scene.database.as_app().await;
            client.batch_execute(&format!("begin; insert into t values ({writer}, {writer})")).await.unwrap();
            writers.push(client);
        }
        let mut id = 1000;
        // The last to begin commits first; others commit and arrive in between.
        for writer in (0..6).rev() {
            for other in 0..5 {
                id += 1;
                app.batch_execute(&format!("insert into t values ({id}, 100)")).await.unwrap();
                let open = &writers[other % (writer + 1)];
                let number = other % (writer + 1);
                open.batch_execute(&format!("insert into t values ({}, {number})", id + 10_000))
                    .await
                    .unwrap();
                wait_for(&scene.stage, app).await;
            }
            writers[writer].batch_execute("commit").await.unwrap();
            wait_for(&scene.stage, app).await;
            let odd = app
                .query(
                    "(select writer, count(*) from t group by writer except select o0, o1 from by_writer)
                     union all (select o0, o1 from by_writer except select writer, count(*) from t group by writer)",
                    &[],
                )
                .await
                .unwrap();
            assert!(odd.is_empty(), "{} groups differ after the commit of writer {writer}", odd.len());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_is_not_held_up_and_everything_converges() {
    each(async |major| {
        let settings = [("max_connections", "60"), ("max_replication_slots", "10")];
        let mut server = own_cluster(major, &settings).await;
        let mut scene = Scene::set(&server, seed(), 8).await;
        // After each restart a new world begins: the sessions of the old one are gone. `log_seq` goes on.
        let mut begun = 0;
        for mode in [StopMode::Fast, StopMode::Immediate, StopMode::Fast, StopMode::Immediate] {
            let app = scene.database.as_app().await;
            for id in begun..begun + 20 {
                let sql = format!(
                    "begin; insert into a (id, k, g, i) values ({id}, {id} % 5, 'g', 1) on conflict (id) do nothing;
                     update a set i = i + 1 where k = {id} % 5; insert into log_seq values ({id}); commit"
                );
                app.batch_execute(&sql).await.unwrap();
            }
            begun += 20;
            if mode == StopMode::Fast {
                wait_for(&scene.stage, &app).await;
            }
            drop(app);
            let start = Instant::now();
            server.cluster.stop(mode).unwrap();
            let took = start.elapsed();
            // A walsender that waits for its client to confirm holds a fast shutdown up for ever.
            assert!(took < Duration::from_secs(15), "a stop ({mode:?}) took {took:?}");
            server.cluster.start_again().unwrap();
            scene.app = scene.database.as_app().await;
            scene.dba = scene.database.as_dba().await;
            wait_until(&format!("all stream tables to converge after a restart ({mode:?})"), PATIENCE, || async {
                differing(&scene).await
            })
            .await;
            scene.check_slot().await;
        }
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0), "exit code after SIGTERM");
    })
    .await;
}

/// Waits until a stream table follows its sources.
async fn active(scene: &Scene, name: &str) {
    wait_until(&format!("stream table {name} to be active"), PATIENCE, || async {
        let sql = "select status || ' ' || refresh_mode from pgtrickle.pgt_stream_tables where pgt_name = $1";
        let row = scene.app.query_one(sql, &[&name]).await.expect("the catalog can be read");
        let state: String = row.get(0);
        if state == "ACTIVE DIFFERENTIAL" { Ok(()) } else { Err(state) }
    })
    .await;
}

/// `Ok` when every stream table equals its query.
async fn differing(scene: &Scene) -> Result<(), String> {
    let i8 = (Ty::Int8, Image::Exact);
    let seen = Stream { name: SEEN.to_owned(), query: Query::written("select id from log_seq", &[i8]) };
    for stream in scene.stage.streams.iter().chain([&seen]) {
        let columns: Vec<String> = match stream.name == SEEN {
            true => vec!["id".to_owned()],
            false => (0..stream.query.columns.len()).map(|i| format!("o{i}")).collect(),
        };
        let query = stream.query.inlined();
        let rows =
            crate::harness::oracle::difference(&scene.app, &query, &stream.name, &columns.join(", ")).await;
        let rows = rows.map_err(|e| format!("{}: {e:?}", stream.name))?;
        if !rows.is_empty() {
            return Err(format!("{} differs in {} rows, seed {}", stream.name, rows.len(), scene.stage.seed));
        }
    }
    Ok(())
}
