//! pg_upgrade: another system identifier, the same objects.

use pgtrickle::postgres::cluster::StopMode;

use super::proof::{Expect, PATIENCE, prove};
use super::scene::{Database, NAME, Scene};
use super::tools::{Drill, When, blocking, drill_on};
use crate::harness::servers::{SUPERUSER, Server};

/// Upgrades the files of a stopped server into those of an empty one of the same version: what differs is the identity.
async fn pg_upgrade(drill: &Drill, old: &Server, new: &Server) -> Result<String, String> {
    let bin = drill.install.bin_dir.display();
    let (from, to) = (old.cluster.data_dir(), new.cluster.data_dir());
    let upgrade = format!(
        "pg_upgrade --old-bindir={bin} --new-bindir={bin} --old-datadir={0} --new-datadir={1} --username={SUPERUSER} \
         --socketdir={2} --no-sync 2>&1 \
         || {{ cat {1}/pg_upgrade_output.d/*/log/pg_upgrade_server.log; exit 1; }}",
        from.display(),
        to.display(),
        drill.folder().display()
    );
    let output = drill.try_shell(50432, &upgrade).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_upgraded_after_detaching() {
    drill_on("pg-upgrade", When::All, &[17, 18], async |drill| {
        let Scene { mut server, db, mut sidecar, load } = Scene::set(drill, &[]).await;
        load.stop().await;
        assert_eq!(sidecar.terminate(PATIENCE).await, Some(0));
        let mut new = drill.empty_server().await;
        blocking(|| server.cluster.stop(StopMode::Fast)).expect("it stops");
        blocking(|| new.cluster.stop(StopMode::Fast)).expect("it stops");
        // A slot that has not seen the end of the WAL is refused: nothing is lost without a word.
        let refused = pg_upgrade(drill, &server, &new).await.expect_err("a slot that is not caught up");
        assert!(refused.contains("logical replication slots"), "{refused}");
        blocking(|| server.cluster.start_again()).expect("it comes back");
        let detached = db.value("pgtrickle.detach()").await.unwrap_or_default();
        assert!(detached.contains("was dropped"), "{detached}");
        blocking(|| server.cluster.stop(StopMode::Fast)).expect("it stops");
        pg_upgrade(drill, &server, &new).await.unwrap_or_else(|said| panic!("{said}"));
        blocking(|| new.cluster.start_again()).expect("it comes back");
        let upgraded = Database::new(&new, NAME);
        upgraded.value("pgtrickle.attach()").await;
        prove(drill, &upgraded, Expect::Repair).await;
    })
    .await;
}
