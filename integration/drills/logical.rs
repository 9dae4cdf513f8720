//! pg_dump and pg_restore: the guide's own commands, into the same cluster and into another one.

use super::proof::{Before, Expect, prove};
use super::scene::{Database, NAME, Scene};
use super::tools::{Drill, When, drill};

/// The guide's lines, as they stand there.
pub const GUIDE: &str = "\
# Create the dump (custom or directory format)
pg_dump --format=custom --file=mydb.dump mydb
# Restore into a fresh database
createdb mydb_restored
pg_restore --dbname=mydb_restored --jobs=4 mydb.dump
";

/// The guide's queries after a restore.
pub const GUIDE_SQL: &str = "\
-- Should list every stream table
SELECT * FROM pgtrickle.pgt_status();
-- Force a refresh on each one to confirm CDC is wired
SELECT pgtrickle.refresh_stream_table(pgt_name)
FROM pgtrickle.stream_tables_info;
";

/// Whether a database that came out of a dump gets an install id of its own.
const NEW_INSTALL_ID: bool = true;
/// Whether the publication that the dump brought along is gone in the end.
const OLD_PUBLICATION_GOES: bool = true;

/// What belongs to the original: its slot, publications with their tables, and triggers on its tables.
pub async fn belongings(db: &Database) -> String {
    let sql = "select jsonb_build_object(
        'slots', (select jsonb_agg(jsonb_build_array(slot_name, plugin, database) order by slot_name)
                    from pg_replication_slots where database = current_database()),
        'publications', (select jsonb_agg(jsonb_build_array(p.oid, p.pubname, r.oid, r.prrelid) order by p.oid, r.oid)
                    from pg_publication p left join pg_publication_rel r on r.prpubid = p.oid),
        'triggers', (select jsonb_agg(jsonb_build_array(t.oid, t.tgrelid, t.tgname, t.tgenabled) order by t.oid)
                    from pg_trigger t),
        'install', (select jsonb_agg(jsonb_build_array(pipeline, install_id, slot_name, publication_name, database_oid,
                    generation)) from pgtrickle.pgt_pipelines))";
    db.value(sql).await.expect("a list")
}

/// The copy has an identity of its own: neither slot nor publication is shared with the original.
pub async fn check_identity(original: &Database, copy: &Database) {
    let slot = "select slot_name from pgtrickle.pgt_pipelines where pipeline = 'main'";
    assert_ne!(original.value(slot).await, copy.value(slot).await, "one slot for two databases");
    if NEW_INSTALL_ID {
        let install = "select install_id from pgtrickle.pgt_pipelines where pipeline = 'main'";
        assert_ne!(
            original.value(install).await,
            copy.value(install).await,
            "one installation for two databases"
        );
    }
    if OLD_PUBLICATION_GOES {
        let publications =
            "select string_agg(pubname, ', ') from pg_publication where pubname like 'pgtrickle%'
            and pubname not in (select publication_name from pgtrickle.pgt_pipelines)";
        assert_eq!(copy.value(publications).await, None, "publications that nobody uses");
    }
}

/// Restores beside the original, whose sidecar and application go on; both are right in the end.
pub async fn beside(drill: &Drill, scene: Scene, commands: &str) {
    let original = belongings(&scene.db).await;
    drill.shell(scene.db.port, commands).await;
    let copy = scene.db.sibling("mydb_restored");
    prove(drill, &copy, Expect::Repair).await;
    check_identity(&scene.db, &copy).await;
    assert_eq!(belongings(&scene.db).await, original, "the original was touched");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_own_commands_restore_beside_the_original() {
    drill("dump-guide", When::Always, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        let original = belongings(&scene.db).await;
        drill.shell(scene.db.port, GUIDE).await;
        let copy = scene.db.sibling("mydb_restored");
        // Before a sidecar runs there, and again under it, as an operator would.
        std::fs::write(drill.folder().join("guide.sql"), GUIDE_SQL).expect("a file");
        let run = "psql -X -v ON_ERROR_STOP=1 -d mydb_restored -f guide.sql 2>&1";
        let said = drill.shell(copy.port, run).await;
        for (name, _) in super::scene::STREAMS {
            assert!(said.contains(&format!("app.{name} ")), "pgt_status() does not list {name}:\n{said}");
        }
        assert!(
            said.contains("no sidecar is running"),
            "nobody captures changes, and nothing says so:\n{said}"
        );
        prove(drill, &copy, Expect::Repair).await;
        let mut sidecar = copy.sidecar();
        super::proof::wait_active(&copy).await;
        let said = drill.shell(copy.port, run).await;
        assert!(!said.contains("WARNING") && !said.contains("NOTICE"), "{said}");
        assert_eq!(sidecar.terminate(super::proof::PATIENCE).await, Some(0));
        check_identity(&scene.db, &copy).await;
        assert_eq!(belongings(&scene.db).await, original, "the original was touched");
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_sections_in_one_command_restore_everything() {
    drill("dump-sections", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        beside(
            drill,
            scene,
            "pg_dump --format=custom --file=mydb.dump mydb
             createdb mydb_restored
             pg_restore --section=pre-data --section=data --section=post-data --dbname=mydb_restored mydb.dump",
        )
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_sections_in_three_commands_restore_everything() {
    drill("dump-three-commands", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        beside(
            drill,
            scene,
            "pg_dump --format=custom --file=mydb.dump mydb
             createdb mydb_restored
             pg_restore --section=pre-data --dbname=mydb_restored mydb.dump
             pg_restore --section=data --dbname=mydb_restored mydb.dump
             pg_restore --section=post-data --dbname=mydb_restored mydb.dump",
        )
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_dump_made_in_parallel_restores_everything() {
    drill("dump-directory", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        beside(
            drill,
            scene,
            "pg_dump --format=directory --jobs=2 --file=mydb.dir mydb
             createdb mydb_restored
             pg_restore --dbname=mydb_restored --jobs=4 mydb.dir",
        )
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_script_restores_everything() {
    drill("dump-plain", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        beside(
            drill,
            scene,
            "pg_dump --file=mydb.sql mydb
             createdb mydb_restored
             psql -X -q -v ON_ERROR_STOP=1 -d mydb_restored -f mydb.sql > plain.log",
        )
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_without_the_history_restores_and_runs() {
    drill("dump-without-history", When::Always, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        beside(
            drill,
            scene,
            "pg_dump --format=custom --file=mydb.dump --exclude-table='pgtrickle.pgt_refresh_history' mydb
             createdb mydb_restored
             pg_restore --dbname=mydb_restored --jobs=4 mydb.dump",
        )
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_restores_into_a_fresh_cluster() {
    drill("dump-other-cluster", When::Always, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        // Far ahead of a fresh cluster: the stored frontier lies in its future.
        scene.db.value("pg_size_pretty(pg_switch_wal() - '0/0'::pg_lsn)").await;
        scene.load.progress(10).await;
        drill.shell(scene.db.port, "pg_dump --format=custom --file=mydb.dump mydb").await;
        scene.load.stop().await;
        let frontier = scene.db.value("select frontier from pgtrickle.pgt_pipelines").await;
        let fresh = drill.server(&[], false).await;
        let port = fresh.cluster.port();
        drill
            .shell(port, "createdb mydb_restored\npg_restore --dbname=mydb_restored --jobs=4 mydb.dump")
            .await;
        let copy = Database::new(&fresh, "mydb_restored");
        let ahead = format!("'{}'::pg_lsn > pg_current_wal_lsn()", frontier.expect("a frontier"));
        assert_eq!(
            copy.value(&ahead).await.as_deref(),
            Some("true"),
            "the stored frontier is not in its future"
        );
        prove(drill, &copy, Expect::Repair).await;
        assert_eq!(scene.sidecar.terminate(super::proof::PATIENCE).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_restored_over_the_live_database() {
    drill("dump-clean", When::Always, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let before = Before::begin(&scene.db).await;
        drill.shell(scene.db.port, "pg_dump --format=custom --file=mydb.dump mydb").await;
        scene.load.progress(20).await;
        // The application stops for this, the sidecar need not.
        scene.load.stop().await;
        drill
            .shell(
                scene.db.port,
                &format!("pg_restore --clean --if-exists --dbname={NAME} --jobs=2 mydb.dump"),
            )
            .await;
        assert!(scene.sidecar.is_running(), "the sidecar ended");
        let before = before.mark(&scene.db).await;
        super::proof::prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Repair).await;
        assert_eq!(scene.sidecar.terminate(super::proof::PATIENCE).await, Some(0));
    })
    .await;
}
