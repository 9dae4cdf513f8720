//! Backup tools that are not part of PostgreSQL: pgBackRest and barman. Drills that find none say so.

use std::path::{Path, PathBuf};

use pgtrickle::postgres::cluster::StopMode;

use super::physical::{archive_now, borrowed};
use super::proof::{Before, Expect, PATIENCE, prove, prove_served};
use super::scene::{Database, NAME, Scene};
use super::tools::{Drill, When, blocking, drill_with};
use crate::harness::servers::SUPERUSER;
use crate::harness::wait::wait_until;

/// pgBackRest with a repository in the drill's folder.
pub struct BackRest {
    configuration: PathBuf,
}

impl BackRest {
    /// Makes its folders; returns it with the settings that the server needs for archiving.
    pub fn prepare(drill: &Drill) -> (BackRest, Vec<(&'static str, String)>) {
        let (repository, logs) = (drill.subfolder("repository"), drill.subfolder("logs"));
        let configuration = drill.folder().join("pgbackrest.conf");
        let text = format!(
            "[global]\nrepo1-path={}\nlog-path={}\nlock-path={}\nspool-path={}\nlog-level-console=warn\n\
             log-level-file=off\nstart-fast=y\nrepo1-retention-full=2\narchive-timeout=60\ncompress-type=none\n",
            repository.display(),
            logs.display(),
            drill.subfolder("locks").display(),
            drill.subfolder("spool").display()
        );
        std::fs::write(&configuration, text).expect("a configuration");
        let backrest = BackRest { configuration };
        // The server's folder is not known yet; the command runs in its data folder.
        let push = format!("{} --pg1-path=\"$PWD\" archive-push %p", backrest.command());
        (backrest, vec![("archive_mode", "on".to_owned()), ("archive_command", push)])
    }

    fn command(&self) -> String {
        format!("pgbackrest --config={} --stanza=drill", self.configuration.display())
    }

    /// The same as variables of the environment, for commands that name only the stanza.
    pub fn environment(&self, data: &Path, port: u16, socket: &Path) -> String {
        format!(
            "export PGBACKREST_CONFIG={} PGBACKREST_PG1_PATH={} PGBACKREST_PG1_PORT={port} PGBACKREST_PG1_SOCKET_PATH={} \
             PGBACKREST_PG1_USER={SUPERUSER}\n",
            self.configuration.display(),
            data.display(),
            socket.display()
        )
    }

    /// As above, for the server on `port` with its data in `data`.
    fn on(&self, data: &Path, port: u16, socket: &Path) -> String {
        format!(
            "{} --pg1-path={} --pg1-port={port} --pg1-socket-path={} --pg1-user={SUPERUSER}",
            self.command(),
            data.display(),
            socket.display()
        )
    }
}

/// A scene whose server archives to pgBackRest and has been backed up under load.
async fn backed_up(drill: &Drill) -> (Scene, BackRest) {
    let (backrest, settings) = BackRest::prepare(drill);
    let scene = Scene::set(drill, &borrowed(&settings)).await;
    let cluster = &scene.server.cluster;
    let command = backrest.on(&cluster.data_dir(), scene.db.port, cluster.folder());
    drill.shell(scene.db.port, &format!("{command} stanza-create\n{command} --type=full backup")).await;
    scene.load.progress(60).await;
    (scene, backrest)
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbackrest_restores_a_full_backup() {
    drill_with("pgbackrest", When::All, "pgbackrest", async |drill| {
        let (scene, backrest) = backed_up(drill).await;
        archive_now(&scene.db).await;
        let folder = drill.subfolder("restored");
        let restore = format!("{} --pg1-path={}/data restore", backrest.command(), folder.display());
        drill.shell(scene.db.port, &format!("mkdir -m 700 {}/data\n{restore}", folder.display())).await;
        let restored = drill.restored(&folder, &[("archive_mode", "off")]).await;
        prove(drill, &Database::new(&restored, NAME), Expect::Repair).await;
        scene.finish().await;
    })
    .await;
}

/// The same files under the same address, and the sidecar was never told.
#[tokio::test(flavor = "multi_thread")]
async fn pgbackrest_restores_in_place_under_a_running_sidecar() {
    drill_with("pgbackrest-delta", When::All, "pgbackrest", async |drill| {
        let (mut scene, backrest) = backed_up(drill).await;
        archive_now(&scene.db).await;
        // Recovery goes to the end of the archive: what is stored there is what is known after it.
        let before = Before::begin(&scene.db).await;
        blocking(|| scene.server.cluster.stop(StopMode::Fast)).expect("it stops");
        let data = scene.server.cluster.data_dir();
        let restore = format!("{} --pg1-path={} --delta restore", backrest.command(), data.display());
        drill.shell(scene.db.port, &restore).await;
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
async fn pgbackrest_recovers_to_a_point_in_time() {
    drill_with("pgbackrest-pitr", When::All, "pgbackrest", async |drill| {
        let (scene, backrest) = backed_up(drill).await;
        let target = target_after_backup(&scene).await;
        archive_now(&scene.db).await;
        let folder = drill.subfolder("restored");
        let restore = format!(
            "mkdir -m 700 {0}/data\n{1} --pg1-path={0}/data --type=time --target='{target}' --target-action=promote restore",
            folder.display(),
            backrest.command()
        );
        drill.shell(scene.db.port, &restore).await;
        let restored = drill.restored(&folder, &[("archive_mode", "off")]).await;
        prove(drill, &Database::new(&restored, NAME), Expect::Repair).await;
        scene.finish().await;
    })
    .await;
}

/// A moment between two commits, more than a second after the end of the backup (the tool compares whole seconds).
async fn target_after_backup(scene: &Scene) -> String {
    let start = scene.db.value("clock_timestamp()").await.expect("a time");
    wait_until("the clock to move on", PATIENCE, || async {
        let later = format!("clock_timestamp() > '{start}'::timestamptz + interval '2.1 s'");
        match scene.db.value(&later).await.as_deref() {
            Some("true") => Ok(()),
            _ => Err("too early".to_owned()),
        }
    })
    .await;
    let target = scene.db.value("clock_timestamp()").await.expect("a time");
    scene.load.progress(20).await;
    target
}

/// barman with its home in the drill's folder, backing up over the replication protocol.
async fn barman(drill: &Drill) -> (Scene, String) {
    let (home, incoming) = (drill.subfolder("barman"), drill.subfolder("incoming"));
    let command = format!("cp %p {0}/.new && mv {0}/.new {0}/%f", incoming.display());
    let scene = Scene::set(drill, &[("archive_mode", "on"), ("archive_command", &command)]).await;
    let conninfo = format!("host=127.0.0.1 port={} user={SUPERUSER} dbname=postgres", scene.db.port);
    let user = drill.shell(scene.db.port, "id -un").await;
    let text = format!(
        "[barman]\nbarman_user = {}\nbarman_home = {home}\nbarman_lock_directory = {home}\nlog_file = {home}/log\n\
         configuration_files_directory = {home}/none\n\
         [drill]\ndescription = drill\nconninfo = {conninfo}\nstreaming_conninfo = {conninfo}\n\
         backup_method = postgres\narchiver = on\nincoming_wals_directory = {incoming}\nimmediate_checkpoint = true\n\
         path_prefix = {}\n",
        user.trim(),
        drill.install.bin_dir.display(),
        home = home.display(),
        incoming = incoming.display()
    );
    let configuration = drill.folder().join("barman.conf");
    std::fs::write(&configuration, text).expect("a configuration");
    let barman = format!("barman -q -c {}", configuration.display());
    archive_now(&scene.db).await;
    let backup = format!("{barman} archive-wal drill\n{barman} backup drill 2>&1");
    drill.shell(scene.db.port, &backup).await;
    scene.load.progress(60).await;
    (scene, barman)
}

async fn barman_recovers(drill: &Drill, in_time: bool) {
    let (scene, barman) = barman(drill).await;
    let target = match in_time {
        true => format!("--target-time '{}' --target-action promote", target_after_backup(&scene).await),
        false => String::new(),
    };
    archive_now(&scene.db).await;
    let folder = drill.subfolder("restored");
    let recover = format!(
        "{barman} archive-wal drill 2>&1\n{barman} recover {target} drill latest {0}/data 2>&1\nchmod 700 {0}/data",
        folder.display()
    );
    drill.shell(scene.db.port, &recover).await;
    let restored = drill.restored(&folder, &[("archive_mode", "off")]).await;
    prove(drill, &Database::new(&restored, NAME), Expect::Repair).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn barman_recovers_a_backup() {
    drill_with("barman", When::All, "barman", async |drill| barman_recovers(drill, false).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn barman_recovers_to_a_point_in_time() {
    drill_with("barman-pitr", When::All, "barman", async |drill| barman_recovers(drill, true).await).await;
}
