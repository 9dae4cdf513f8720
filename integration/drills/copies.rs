//! Copies of a data folder made while the server is down, with the slots' files of that moment or of another one.

use std::path::{Path, PathBuf};

use pgtrickle::postgres::cluster::StopMode;

use super::proof::{Before, Expect, PATIENCE, first_right_answer, prove};
use super::scene::{Database, NAME, Scene};
use super::tools::{Drill, When, blocking, drill};
use crate::harness::wait::wait_until;

/// Copies the data folder of a server that is down into a new folder for a cluster.
async fn copy(drill: &Drill, scene: &Scene, name: &str) -> PathBuf {
    let folder = drill.subfolder(name);
    let data = scene.server.cluster.data_dir();
    drill.shell(scene.db.port, &format!("cp -a {} {}/data", data.display(), folder.display())).await;
    folder
}

/// Puts the slots of one data folder in the place of those of another one.
async fn swap_slots(drill: &Drill, scene: &Scene, from: &Path, to: &Path) {
    let (from, to) = (from.join("pg_replslot"), to.join("pg_replslot"));
    let swap = format!("rm -rf {1} && cp -a {0} {1}", from.display(), to.display());
    drill.shell(scene.db.port, &swap).await;
}

/// Stops the server under load; the sidecar goes on trying.
async fn stop(scene: &mut Scene, mode: StopMode) {
    blocking(|| scene.server.cluster.stop(mode)).expect("it stops");
}

/// Starts the server again and lets everybody go on.
async fn go_on(scene: &mut Scene) {
    blocking(|| scene.server.cluster.start_again()).expect("it comes back");
    scene.load.progress(40).await;
    first_right_answer(&scene.db, &Before::note(&scene.db).await).await;
}

/// Ends what belongs to the original; the copy is served instead.
async fn prove_copy(drill: &Drill, mut scene: Scene, folder: &Path, expect: Expect) {
    scene.sidecar.kill9();
    scene.load.stop().await;
    let restored = drill.restored(folder, &[("wal_keep_size", "1GB")]).await;
    prove(drill, &Database::new(&restored, NAME), expect).await;
}

const KEEP: &[(&str, &str)] = &[("wal_keep_size", "1GB")];

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_copy_with_its_slots_goes_on() {
    drill("cold-copy", When::All, async |drill| {
        let mut scene = Scene::set(drill, KEEP).await;
        stop(&mut scene, StopMode::Fast).await;
        let folder = copy(drill, &scene, "copied").await;
        prove_copy(drill, scene, &folder, Expect::Resume).await;
    })
    .await;
}

/// A snapshot of a volume under load: the slot may lie behind what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_a_crash_with_its_slots_goes_on() {
    drill("crash-image", When::All, async |drill| {
        let mut scene = Scene::set(drill, KEEP).await;
        stop(&mut scene, StopMode::Immediate).await;
        let folder = copy(drill, &scene, "copied").await;
        prove_copy(drill, scene, &folder, Expect::Resume).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_copy_with_older_slots_goes_on() {
    drill("cold-copy-older-slots", When::All, async |drill| {
        let mut scene = Scene::set(drill, KEEP).await;
        stop(&mut scene, StopMode::Fast).await;
        let older = copy(drill, &scene, "older").await;
        go_on(&mut scene).await;
        stop(&mut scene, StopMode::Fast).await;
        let folder = copy(drill, &scene, "copied").await;
        swap_slots(drill, &scene, &older.join("data"), &folder.join("data")).await;
        prove_copy(drill, scene, &folder, Expect::Resume).await;
    })
    .await;
}

/// The slots know more than the database: their changes are lost, and nothing but positions says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_cold_copy_with_newer_slots_is_repaired() {
    drill("cold-copy-newer-slots", When::Always, async |drill| {
        let mut scene = Scene::set(drill, KEEP).await;
        stop(&mut scene, StopMode::Fast).await;
        let folder = copy(drill, &scene, "copied").await;
        go_on(&mut scene).await;
        // The server writes a slot's file when its restart position moves, which takes a checkpoint and more changes.
        let copied = scene.db.value("pg_current_wal_lsn()").await.expect("a position");
        let slot = format!(
            "select bool_and(restart_lsn > '{copied}') from pg_replication_slots where plugin = 'pgoutput'"
        );
        let dba = scene.db.as_dba().await;
        wait_until("the slot to be written", PATIENCE, || async {
            dba.batch_execute("checkpoint").await.map_err(|e| format!("{e:?}"))?;
            scene.db.write(2).await;
            match scene.db.value(&slot).await.as_deref() {
                Some("true") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        stop(&mut scene, StopMode::Fast).await;
        swap_slots(drill, &scene, &scene.server.cluster.data_dir(), &folder.join("data")).await;
        prove_copy(drill, scene, &folder, Expect::Repair).await;
    })
    .await;
}
