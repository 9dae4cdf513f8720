//! Crashes and physical backups: the whole cluster comes back from its files.

use std::path::{Path, PathBuf};

use pgtrickle::postgres::cluster::StopMode;

use super::proof::{Before, Expect, PATIENCE, check_equal, prove, prove_served};
use super::scene::{Database, NAME, Scene};
use super::tools::{Drill, When, blocking, drill};
use crate::harness::wait::wait_until;

/// A base backup of a running server, into `<folder>/data`.
pub async fn base_backup(drill: &Drill, port: u16, folder: &Path) {
    let data = folder.join("data");
    let backup = "pg_basebackup --checkpoint=fast --wal-method=stream --no-sync --pgdata";
    drill.shell(port, &format!("{backup} {}", data.display())).await;
}

/// Settings of a server that archives its WAL into a folder of the drill.
pub fn archiving(drill: &Drill) -> (PathBuf, Vec<(&'static str, String)>) {
    let archive = drill.subfolder("archive");
    let command = format!("test ! -f {0}/%f && cp %p {0}/.new && mv {0}/.new {0}/%f", archive.display());
    (archive, vec![("archive_mode", "on".to_owned()), ("archive_command", command)])
}

/// Borrowed settings, as servers take them.
pub fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// Closes the WAL file of now and waits until it is in the archive.
pub async fn archive_now(db: &Database) {
    let file = db.value("pg_walfile_name(pg_switch_wal())").await.expect("a WAL file");
    wait_until("the WAL to be archived", PATIENCE, || async {
        match db.value("select last_archived_wal from pg_stat_archiver").await {
            Some(last) if last >= file => Ok(()),
            last => Err(format!("{last:?}, not {file}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_crashes_under_load() {
    drill("crash", When::Always, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let before = Before::begin(&scene.db).await;
        blocking(|| scene.server.cluster.restart(StopMode::Immediate)).expect("it comes back");
        scene.load.progress(20).await;
        scene.load.stop().await;
        let before = before.mark(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Resume).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

/// Same system identifier and same timeline as the source, which goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_starts_without_an_archive() {
    drill("basebackup", When::Always, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        let folder = drill.subfolder("restored");
        base_backup(drill, scene.db.port, &folder).await;
        scene.load.progress(20).await;
        let restored = drill.restored(&folder, &[]).await;
        prove(drill, &Database::new(&restored, NAME), Expect::Repair).await;
        scene.finish().await;
    })
    .await;
}

/// What WAL-G and CloudNativePG restore: a base backup without slots, then the archive to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_recovers_from_the_archive() {
    drill("basebackup-archive", When::All, async |drill| {
        let (archive, settings) = archiving(drill);
        let scene = Scene::set(drill, &borrowed(&settings)).await;
        let folder = drill.subfolder("restored");
        base_backup(drill, scene.db.port, &folder).await;
        scene.load.progress(40).await;
        archive_now(&scene.db).await;
        let settings = drill.recover_from(&folder, &archive);
        let restored = drill.restored(&folder, &borrowed(&settings)).await;
        prove(drill, &Database::new(&restored, NAME), Expect::Repair).await;
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_ends_in_the_middle_of_a_long_refresh() {
    drill("pitr-mid-refresh", When::Always, async |drill| {
        let (archive, settings) = archiving(drill);
        let scene = Scene::set(drill, &borrowed(&settings)).await;
        let app = scene.db.as_app().await;
        app.batch_execute(
            "create function slow(i int) returns int volatile language plpgsql as
                 'begin perform pg_sleep(0.8); return i; end';
             select pgtrickle.create_stream_table('crawling', 'select slow(1) as one', '1h')",
        )
        .await
        .expect("a stream table that takes long");
        let folder = drill.subfolder("restored");
        base_backup(drill, scene.db.port, &folder).await;
        let refresh = tokio::spawn(async move {
            app.batch_execute("select pgtrickle.refresh_stream_table('crawling')").await.expect("a refresh");
        });
        let running = "select clock_timestamp() from pgtrickle.pgt_refresh_history
            where pgt_name = 'crawling' and status = 'RUNNING'";
        let target = wait_until("the refresh to run", PATIENCE, || async {
            scene.db.value(running).await.ok_or_else(|| "it does not run".to_owned())
        })
        .await;
        // Recovery stops at the first commit after the target.
        scene.load.progress(10).await;
        refresh.await.expect("the refresh ends");
        archive_now(&scene.db).await;
        let mut settings = drill.recover_from(&folder, &archive);
        settings.push(("recovery_target_time", target));
        let restored = drill.restored(&folder, &borrowed(&settings)).await;
        let copy = Database::new(&restored, NAME);
        let running = "select refresh_id from pgtrickle.pgt_refresh_history
            where pgt_name = 'crawling' and status = 'RUNNING'";
        let cut_off = copy.value(running).await.expect("the restored history shows the refresh as it was");
        prove(drill, &copy, Expect::Repair).await;
        let verdict = format!("select status || ': ' || error_message from pgtrickle.pgt_refresh_history where refresh_id = {cut_off}");
        let verdict = copy.value(&verdict).await.unwrap_or_default();
        assert!(verdict.starts_with("FAILED: interrupted"), "{verdict}");
        let again = format!(
            "select count(*) from pgtrickle.pgt_refresh_history
             where pgt_name = 'crawling' and status = 'COMPLETED' and refresh_id > {cut_off}"
        );
        assert_ne!(copy.value(&again).await.as_deref(), Some("0"), "the refresh was not run again");
        scene.finish().await;
    })
    .await;
}

/// As `pgbackrest restore --delta`: other files under the same address, and the sidecar was never told.
#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_restored_in_place_under_a_running_sidecar() {
    drill("restore-in-place", When::Always, async |drill| {
        let mut scene = Scene::set(drill, &[]).await;
        let folder = drill.subfolder("backup");
        let before = Before::begin(&scene.db).await;
        base_backup(drill, scene.db.port, &folder).await;
        scene.load.progress(60).await;
        blocking(|| scene.server.cluster.stop(StopMode::Fast)).expect("it stops");
        let data = scene.server.cluster.data_dir();
        let replace = format!("rm -rf {0}/* && cp -a {1}/data/. {0}", data.display(), folder.display());
        drill.shell(scene.db.port, &replace).await;
        blocking(|| scene.server.cluster.start_again()).expect("it comes back");
        scene.load.progress(20).await;
        scene.load.stop().await;
        let before = before.mark(&scene.db).await;
        prove_served(drill, &scene.db, &mut scene.sidecar, before, Expect::Repair).await;
        assert_eq!(scene.sidecar.terminate(PATIENCE).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clones_of_one_cluster_are_served_at_once() {
    drill("two-clones", When::All, async |drill| {
        let scene = Scene::set(drill, &[]).await;
        let (first, second) = (drill.subfolder("first"), drill.subfolder("second"));
        base_backup(drill, scene.db.port, &first).await;
        drill
            .shell(scene.db.port, &format!("cp -a {}/data {}/data", first.display(), second.display()))
            .await;
        let servers = [drill.restored(&first, &[]).await, drill.restored(&second, &[]).await];
        let [first, second] = [Database::new(&servers[0], NAME), Database::new(&servers[1], NAME)];
        tokio::join!(prove(drill, &first, Expect::Repair), prove(drill, &second, Expect::Repair));
        check_equal_again(&first, &second).await;
        scene.finish().await;
    })
    .await;
}

/// Each clone by itself, after the other one's writes.
async fn check_equal_again(first: &Database, second: &Database) {
    for db in [first, second] {
        let mut sidecar = db.sidecar();
        sidecar.wait_ready(PATIENCE).await;
        check_equal(db).await;
        assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
    }
}
