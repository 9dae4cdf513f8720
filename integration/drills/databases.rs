//! What administrators do to whole databases and tables.

use super::logical::{belongings, check_identity};
use super::proof::{Before, Expect, PATIENCE, first_right_answer, prove, prove_served};
use super::scene::{Database, NAME, Scene};
use super::tools::{When, drill};
use crate::harness::Sidecar;
use crate::harness::database::{SIDECAR, pgtrickle, printed};
use crate::harness::servers::SUPERUSER;
use crate::harness::wait::{wait_for_value, wait_until};

/// Ends the application and the sidecar, and waits until their sessions are gone: the server demands it for what follows.
async fn alone(scene: Scene) -> (crate::harness::servers::Server, Database) {
    let Scene { server, db, mut sidecar, load } = scene;
    load.stop().await;
    assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
    let root = db.sibling("postgres");
    let others = format!("select count(*) from pg_stat_activity where datname = '{NAME}'");
    wait_for_value("all sessions to end", PATIENCE, Some("0".to_owned()), || root.value(&others)).await;
    (server, db)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_copied_as_a_template() {
    drill("template", When::Always, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        let (_server, db) = alone(scene).await;
        drill.shell(db.port, &format!("createdb --template={NAME} copied")).await;
        let mut sidecar = db.sidecar();
        sidecar.wait_ready(PATIENCE).await;
        let load = db.workload();
        let original = belongings(&db).await;
        let copy = db.sibling("copied");
        prove(drill, &copy, Expect::Repair).await;
        check_identity(&db, &copy).await;
        load.progress(10).await;
        load.stop().await;
        super::proof::check_equal(&db).await;
        assert_eq!(belongings(&db).await, original, "the original was touched");
        assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_renamed() {
    drill("rename", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        let (_server, db) = alone(scene).await;
        let rename = format!("psql -X -q -d postgres -c 'alter database {NAME} rename to renamed'");
        drill.shell(db.port, &rename).await;
        prove(drill, &db.sibling("renamed"), Expect::Resume).await;
    })
    .await;
}

/// While a sidecar streams, the server refuses it, even with FORCE; afterwards slot and database go together.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_dropped() {
    drill("drop-database", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        let port = scene.db.port;
        let refused = drill.try_shell(port, &format!("dropdb --force {NAME}")).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("logical replication slot"), "{said}");
        let (_server, db) = alone(scene).await;
        drill.shell(port, &format!("dropdb {NAME}")).await;
        let slots = db.sibling("postgres").value("select count(*) from pg_replication_slots").await;
        assert_eq!(slots.as_deref(), Some("0"), "slots that are left");
        let mut sidecar = db.sidecar();
        assert_eq!(sidecar.wait_exit(PATIENCE).await, Some(2), "{}", sidecar.logs());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_rewritten_by_vacuum_full_and_cluster() {
    drill("rewrite", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let app = scene.db.as_app().await;
        for statement in [
            "vacuum full orders",
            "cluster customers using customers_pkey",
            "vacuum full events",
            "vacuum full open_orders",
            "vacuum full bag",
            "cluster by_customer using by_customer_pkey",
            "vacuum (full, analyze) by_region",
        ] {
            app.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
            scene.load.progress(5).await;
        }
        scene.load.stop().await;
        let before = Before::note(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Resume).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

/// The sidecar stays, but leaves the database until it is called back.
#[tokio::test(flavor = "multi_thread")]
async fn a_detached_database_is_copied_and_renamed_under_a_running_sidecar() {
    drill("detach", When::Always, async |drill| {
        let Scene { server: _server, db, mut sidecar, load } = Scene::set(drill, &[]).await;
        load.stop().await;
        let command = |name: &str, db: &Database| {
            let output = pgtrickle(&[name, "--database-url", &db.url(SUPERUSER)]);
            assert!(output.status.success(), "pgtrickle {name} failed:\n{}", printed(&output));
        };
        command("detach", &db);
        let slots = "select count(*) from pg_replication_slots";
        assert_eq!(db.value(slots).await.as_deref(), Some("0"), "slots that are left");
        // The sidecar looks for its call from time to time: a moment without its session comes soon.
        let copy = db.sibling("copied");
        for lines in [
            format!("createdb --template={NAME} copied"),
            format!("psql -X -q -d postgres -c 'alter database {NAME} rename to renamed'"),
            format!("psql -X -q -d postgres -c 'alter database renamed rename to {NAME}'"),
        ] {
            wait_until("a moment without sessions", PATIENCE, || async {
                let output = drill.try_shell(db.port, &lines).await;
                if output.status.success() { Ok(()) } else { Err(printed(&output)) }
            })
            .await;
            if lines.ends_with("to renamed'") {
                // A database that is away is no reason to end: it may come back under its name.
                wait_until("the sidecar to look for the database", PATIENCE, || async {
                    let logs = sidecar.logs();
                    if logs.contains("cannot be looked at; waiting") { Ok(()) } else { Err(logs) }
                })
                .await;
            }
        }
        command("attach", &copy);
        prove(drill, &copy, Expect::Repair).await;
        command("attach", &db);
        assert!(sidecar.is_running(), "{}", sidecar.logs());
        let before = Before::note(&db).await;
        prove_served(drill, &db, &mut sidecar, before, Expect::Either).await;
        assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

/// One sidecar for all databases of the cluster: what pg_restore brings is found by its next look.
#[tokio::test(flavor = "multi_thread")]
async fn the_launcher_finds_a_database_that_is_restored_beside_the_original() {
    drill("launcher-finds-restored", When::All, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
        let all = Database { name: "postgres".to_owned(), ..scene.db.clone() };
        scene.sidecar = Sidecar::start_with_url(&all.url(SIDECAR), &["--all-databases"]);
        first_right_answer(&scene.db, &Before::note(&scene.db).await).await;
        let commands = format!(
            "pg_dump --format=custom --file=mydb.dump {NAME}
             createdb mydb_restored
             pg_restore --dbname=mydb_restored --jobs=2 mydb.dump"
        );
        drill.shell(scene.db.port, &commands).await;
        let copy = scene.db.sibling("mydb_restored");
        let restored = std::time::Instant::now();
        let before = Before::note(&copy).await;
        prove_served(drill, &copy, &mut scene.sidecar, before, Expect::Repair).await;
        println!(
            "drill {} on {}: proven {:.1} s after pg_restore had ended",
            drill.name,
            drill.major,
            restored.elapsed().as_secs_f64()
        );
        scene.finish().await;
    })
    .await;
}
