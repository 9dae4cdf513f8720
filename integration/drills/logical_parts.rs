//! Parts of a dump: data alone, the sidecar's schemas alone, sections in the wrong order, an owner who is no superuser.

use super::logical::beside;
use super::proof::{Before, Expect, PATIENCE, prove, prove_served};
use super::scene::{BOSS, Database, NAME, Scene};
use super::tools::{When, drill};
use crate::harness::wait::wait_until;

#[tokio::test(flavor = "multi_thread")]
async fn schema_first_and_data_later_with_disabled_triggers() {
    drill("dump-data-only", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        beside(
            drill,
            scene,
            "pg_dump --format=custom --file=schema.dump --schema-only mydb
             pg_dump --format=custom --file=data.dump --data-only mydb
             createdb mydb_restored
             pg_restore --dbname=mydb_restored schema.dump
             pg_restore --dbname=mydb_restored --data-only --disable-triggers data.dump
             # Rows of materialized views are no data: only a whole dump computes them.
             psql -X -q -d mydb_restored -c 'refresh materialized view app.order_counts'",
        )
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_first_and_data_later_by_a_script_with_live_triggers() {
    drill("dump-data-only-script", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        beside(
            drill,
            scene,
            "pg_dump --file=schema.sql --schema-only mydb
             pg_dump --file=data.sql --data-only mydb
             createdb mydb_restored
             psql -X -q -v ON_ERROR_STOP=1 -d mydb_restored -f schema.sql > plain.log
             psql -X -q -v ON_ERROR_STOP=1 -d mydb_restored -f data.sql > plain.log
             psql -X -q -d mydb_restored -c 'refresh materialized view app.order_counts'",
        )
        .await;
    })
    .await;
}

/// The sources' rows alone come back from a dump, under a running sidecar.
#[tokio::test(flavor = "multi_thread")]
async fn the_sources_are_emptied_and_loaded_with_disabled_triggers() {
    drill("dump-data-over-live", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let tables = "-t app.customers -t app.orders -t app.events";
        drill
            .shell(
                scene.db.port,
                &format!("pg_dump --format=custom --file=data.dump --data-only {tables} {NAME}"),
            )
            .await;
        scene.load.progress(20).await;
        scene.load.stop().await;
        let dba = scene.db.as_dba().await;
        dba.batch_execute("truncate app.customers, app.orders, app.events")
            .await
            .expect("they can be emptied");
        let restore = format!("pg_restore --dbname={NAME} --data-only --disable-triggers data.dump");
        drill.shell(scene.db.port, &restore).await;
        let before = Before::note(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Resume).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

/// Somebody brings back yesterday's catalog of pgtrickle alone; the application's tables stay as they are.
#[tokio::test(flavor = "multi_thread")]
async fn the_schemas_of_the_sidecar_come_from_an_older_dump() {
    drill("dump-sidecar-schemas", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let schemas = "-n pgtrickle -n pgtrickle_queries -n pgtrickle_changes";
        let dump = format!("pg_dump --format=custom --file=sidecar.dump {schemas} {NAME}");
        drill.shell(scene.db.port, &dump).await;
        scene.load.progress(30).await;
        let app = scene.db.as_app().await;
        let late = "select pgtrickle.create_stream_table('late', 'select id from orders where amount > 10')";
        app.batch_execute(late).await.expect("a stream table that the dump does not know");
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
        let dba = scene.db.as_dba().await;
        dba.batch_execute(
            "set client_min_messages = warning;
             drop schema pgtrickle, pgtrickle_queries, pgtrickle_changes cascade",
        )
        .await
        .expect("the schemas can be dropped");
        drill.shell(scene.db.port, &format!("pg_restore --dbname={NAME} sidecar.dump")).await;
        scene.load.progress(10).await;
        scene.load.stop().await;
        prove(drill, &scene.db, Expect::Repair).await;
        // Its table stays, as a table like any other.
        assert!(scene.db.value("select count(*) from app.late").await.is_some());
    })
    .await;
}

/// The one ordering rule, broken: pg_restore complains, and what it leaves is still brought to the right answers.
#[tokio::test(flavor = "multi_thread")]
async fn constraints_and_triggers_are_restored_before_the_data() {
    drill("dump-wrong-order", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        let prepare = "pg_dump --format=custom --file=mydb.dump mydb
             createdb mydb_restored
             pg_restore --section=pre-data --dbname=mydb_restored mydb.dump
             pg_restore --section=post-data --dbname=mydb_restored mydb.dump";
        drill.shell(scene.db.port, prepare).await;
        let restore = "pg_restore --section=data --dbname=mydb_restored mydb.dump";
        let output = drill.try_shell(scene.db.port, restore).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("drill {} on {}: pg_restore says: {}", drill.name, drill.major, said.trim());
        let copy = scene.db.sibling("mydb_restored");
        // The view's rows were computed before the tables had any.
        let refresh = "refresh materialized view app.order_counts";
        copy.as_dba().await.batch_execute(refresh).await.expect("a refresh");
        // The rows that say which sources there are have been refused: nobody can be warned about them.
        prove(drill, &copy, Expect::Either).await;
        scene.finish().await;
    })
    .await;
}

/// A managed service: the owner of the database is no superuser, and neither dumps nor restores as one.
#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_the_database_dumps_and_restores_it_without_a_superuser() {
    drill("dump-without-superuser", When::All, async |drill| {
        let server = drill.server(&[], true).await;
        let mut scene = Scene::on(server, BOSS).await;
        let dump = format!("PGUSER={BOSS} pg_dump --format=custom --file=mydb.dump {NAME}");
        drill.shell(scene.db.port, &dump).await;
        scene.load.stop().await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
        let fresh = drill.server(&[], false).await;
        let restore = format!(
            "createdb --owner={BOSS} {NAME}
             PGUSER={BOSS} pg_restore --dbname={NAME} --jobs=2 mydb.dump
             psql -X -q -d {NAME} -c 'alter database {NAME} set search_path = app, public'"
        );
        drill.shell(fresh.cluster.port(), &restore).await;
        let copy = Database { owner: BOSS, ..Database::new(&fresh, NAME) };
        prove(drill, &copy, Expect::Repair).await;
    })
    .await;
}

/// Something starts a sidecar on every database with our schema, also on one that is not complete yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_comes_while_the_database_is_being_restored() {
    drill("dump-watched", When::Always, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        let prepare = "pg_dump --format=custom --file=mydb.dump mydb
             createdb mydb_restored
             pg_restore --section=pre-data --dbname=mydb_restored mydb.dump";
        drill.shell(scene.db.port, prepare).await;
        let copy = scene.db.sibling("mydb_restored");
        for section in ["data", "post-data"] {
            let mut sidecar = copy.sidecar();
            // Until it has said what it thinks of this: it serves, it has ended, or it tries again.
            wait_until("the sidecar to look around", PATIENCE, || {
                let said =
                    !sidecar.is_running() || ["WARN", " ready "].iter().any(|w| sidecar.logs().contains(w));
                async move { if said { Ok(()) } else { Err("nothing was said".to_owned()) } }
            })
            .await;
            println!("drill {} on {}: before {section}:\n{}", drill.name, drill.major, sidecar.logs());
            let restore = format!("pg_restore --section={section} --dbname=mydb_restored mydb.dump");
            drill.shell(scene.db.port, &restore).await;
            sidecar.kill9();
        }
        prove(drill, &copy, Expect::Either).await;
        scene.finish().await;
    })
    .await;
}
