//! Sources that somebody blocks: what reads them waits, and nothing else does.

use super::Scene;
use crate::harness::servers::{each, for_each_major, own_cluster};
use crate::harness::wait::{SOON, wait_until};

impl Scene {
    /// Waits until a stream table is out because of a lock, and returns what it says about it.
    async fn left_out(&self, name: &str) -> String {
        wait_until(&format!("{name} to be left out"), SOON, || async {
            let status = self.status(name).await;
            let state = self.column(name, "last_error_sqlstate").await;
            let right = status.starts_with("ERROR") && state.as_deref() == Some("55P03");
            if right { Ok(()) } else { Err(format!("{status} {state:?}")) }
        })
        .await;
        self.column(name, "last_error_message").await.unwrap_or_default()
    }
}

/// A transaction that somebody forgot, or a table that is locked, keeps no other stream table from starting.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_source_and_a_forgotten_writer_hold_up_only_what_reads_them() {
    each(async |major| {
        // Its own server: elsewhere a slot can't be made while a prepared transaction is open.
        let server = own_cluster(major, &[]).await;
        let mut scene = Scene::start(
            &server,
            "create table t (id int primary key, v int); insert into t values (1, 1), (2, 2);
             create table bolted (id int primary key, v int); insert into bolted values (1, 1);
             create table forgotten (id int primary key, v int); insert into forgotten values (1, 1)",
        )
        .await;
        scene.create("known", "select id, v from t").await;
        scene.create("over_bolted", "select id, v from bolted").await;
        scene.create("chained", "select v, count(*) as n from over_bolted group by v").await;
        let writer = scene.db.as_app().await;
        writer
            .batch_execute("begin; insert into forgotten values (2, 2); prepare transaction 'lost one'")
            .await
            .unwrap();
        scene
            .run("select pgtrickle.create_stream_table('over_forgotten', 'select id, v from forgotten')")
            .await;
        let said = scene.left_out("over_forgotten").await;
        assert!(
            said.contains("app.forgotten") && said.contains("the prepared transaction 'lost one'"),
            "{said}"
        );

        scene
            .run("select pgtrickle.create_stream_table('over_lost', 'select v, count(*) as n from over_forgotten group by v')")
            .await;
        // A new one beside it, and a whole start.
        scene.create("beside", "select id from t where v > 1").await;
        let holder = scene.db.as_app().await;
        let pid: i32 = holder.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        scene.sidecar.kill9();
        holder.batch_execute("begin; lock table bolted in access exclusive mode").await.unwrap();
        scene.run("insert into t values (3, 3)").await;
        scene.sidecar.start_again();
        scene.check_in_time(&["known", "beside"]).await;
        let said = scene.left_out("over_bolted").await;
        assert!(said.contains("app.bolted") && said.contains(&format!("process {pid} (app)")), "{said}");
        scene.left_out("over_forgotten").await;
        scene.left_out("over_lost").await;
        scene.run("insert into t values (4, 4)").await;
        scene.check(&["known", "beside"]).await;

        holder.batch_execute("insert into bolted values (2, 2); commit").await.unwrap();
        scene.check_in_time(&["over_bolted", "chained"]).await;
        writer.batch_execute("commit prepared 'lost one'").await.unwrap();
        scene.check_in_time(&["over_forgotten", "over_lost"]).await;
        let left: i64 = scene
            .dba
            .query_one("select count(*) from pgtrickle.pgt_publication_members where writers <> '{}'", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(left, 0, "writers are remembered that are gone");
    })
    .await;
}

/// The wait for earlier writers is not forgotten with the process that began it.
#[tokio::test(flavor = "multi_thread")]
async fn a11_a_writer_outlives_the_sidecar_that_published_its_table() {
    for_each_major(async |server| {
        let mut scene =
            Scene::start(server, "create table t (id int primary key, v int); insert into t values (1, 1)")
                .await;
        let writer = scene.db.as_app().await;
        writer
            .batch_execute("begin; insert into t values (2, 2); update t set v = 9 where id = 1")
            .await
            .unwrap();
        scene.run("select pgtrickle.create_stream_table('late', 'select id, v from t')").await;
        let joined = || async {
            let count: i64 =
                scene.dba.query_one("select count(*) from pg_publication_tables", &[]).await.unwrap().get(0);
            if count == 1 { Ok(()) } else { Err(count.to_string()) }
        };
        wait_until("the table to join the publication", SOON, joined).await;
        scene.sidecar.kill9();
        scene.sidecar.start_again();
        let said = scene.left_out("late").await;
        assert!(said.contains("earlier writers"), "{said}");
        // One that comes later is not waited for, however often it is tried.
        let later = scene.db.as_app().await;
        later.batch_execute("begin; insert into t values (3, 3)").await.unwrap();
        writer.batch_execute("commit").await.unwrap();
        scene.wait_status("late", "ACTIVE DIFFERENTIAL").await;
        later.batch_execute("commit").await.unwrap();
        scene.check(&["late"]).await;
    })
    .await;
}
