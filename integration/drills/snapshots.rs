//! A snapshot on a fresh cluster: readers see its rows while the sidecar has still to read the sources.

use std::time::Instant;

use super::proof::{Before, PATIENCE, first_right_answer};
use super::scene::{Database, NAME, Scene};
use super::tools::{When, drill};
use crate::harness::oracle::assert_equal;

const READINGS: i64 = 400_000;
const SENSORS: i64 = 40_000;
const TOTALS: &str = "select sensor, count(*) as readings, sum(value) as total, max(at) as latest
    from app.readings group by sensor";

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_shown_on_a_fresh_cluster_before_the_sources_are_read() {
    drill("snapshot-fresh-cluster", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let app = scene.db.as_app().await;
        app.batch_execute(&format!(
            "create table app.readings (id bigint primary key, sensor int not null, value numeric not null, at timestamptz not null);
             insert into app.readings select i, i % {SENSORS}, i / 7.0, '2026-01-01'::timestamptz + i * interval '1 second'
                from generate_series(1, {READINGS}) as i;
             analyze app.readings"
        ))
        .await
        .expect("the readings");
        app.execute("select pgtrickle.create_stream_table('app.sensor_totals', $1)", &[&TOTALS]).await.unwrap();
        first_right_answer(&scene.db, &Before::note(&scene.db).await).await;
        app.batch_execute("select pgtrickle.snapshot_stream_table('app.sensor_totals', 'app.kept')").await.unwrap();
        scene.load.progress(20).await;
        // What was written after the snapshot is the difference.
        app.batch_execute("update app.readings set value = value + 1 where sensor < 25").await.unwrap();
        let dump = format!("pg_dump -Fc --file=fresh.dump --exclude-table-data=app.sensor_totals {NAME}");
        drill.shell(scene.db.port, &dump).await;
        scene.load.stop().await;
        scene.sidecar.kill9();

        let server = drill.server(&[], false).await;
        let restore = format!("createdb {NAME}\npg_restore --jobs=2 --dbname={NAME} fresh.dump");
        drill.shell(server.cluster.port(), &restore).await;
        let db = Database::new(&server, NAME);
        let app = db.as_app().await;
        let empty: i64 = app.query_one("select count(*) from app.sensor_totals", &[]).await.unwrap().get(0);
        assert_eq!(empty, 0, "the dump left the rows of the stream table out");
        let started = Instant::now();
        app.batch_execute("select pgtrickle.restore_from_snapshot('app.sensor_totals', 'app.kept')").await.unwrap();
        let seen: i64 = app.query_one("select count(*) from app.sensor_totals", &[]).await.unwrap().get(0);
        let shown = started.elapsed().as_secs_f64();
        assert_eq!(seen, SENSORS, "readers see the snapshot");

        let before = Before::note(&db).await;
        app.batch_execute("update app.readings set value = value + 1 where sensor between 30 and 34").await.unwrap();
        let mut sidecar = db.sidecar();
        let right = first_right_answer(&db, &before).await;
        app.query_one("select pgtrickle.wait_for(timeout => '180 s')", &[]).await.unwrap();
        assert_equal(&app, TOTALS, "app.sensor_totals", "sensor, readings, total, latest").await;
        let sql = "select rows_inserted + rows_updated + rows_deleted from pgtrickle.pgt_refresh_history
            where pgt_name = 'sensor_totals' and status = 'COMPLETED' order by refresh_id desc limit 1";
        let written: i64 = db.as_dba().await.query_one(sql, &[]).await.unwrap().get(0);
        println!(
            "drill {} on {}: the snapshot was shown after {shown:.1} s, the right answer came {right:.1} s after the \
             sidecar's start, with {written} of {SENSORS} rows written",
            drill.name, drill.major
        );
        assert!((30..1000).contains(&written), "{written} rows were written, the difference is about 30");
        assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}
