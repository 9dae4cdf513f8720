//! `pgtrickle snapshot`, `detach` and `attach` as their users meet them.

use serde_json::Value;

use super::json_shapes::assert_documented;
use crate::harness::database::{APP, SIDECAR, pgtrickle, printed};
use crate::harness::servers::each;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, own_cluster, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_a_cadence_are_made_together_and_the_oldest_make_way() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute(
            "create table t (id int); insert into t values (1), (2);
             select pgtrickle.create_stream_table('a', 'select id from t');
             select pgtrickle.create_stream_table('\"B b\"', 'select count(*) as n from t');
             select pgtrickle.snapshot_stream_table('a', 'of_mine')",
        )
        .await
        .unwrap();
        let url = db.url(APP);
        let snapshot = |arguments: &[&str]| {
            let all = [&["snapshot", "--database-url", &url], arguments].concat();
            tokio::task::block_in_place(|| pgtrickle(&all))
        };
        for _ in 0..3 {
            let output = snapshot(&["--all", "--keep", "2"]);
            assert!(output.status.success(), "{}", printed(&output));
        }
        let count = async |name: &str| -> i64 {
            let sql = "select count(*) from pgtrickle.list_snapshots($1)";
            app.query_one(sql, &[&name]).await.unwrap().get(0)
        };
        // The one under a name of its own stays, and is not counted.
        assert_eq!((count("a").await, count("\"B b\"").await), (3, 2));
        let output = snapshot(&["\"B b\"", "--keep", "1", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_documented("snapshot", &report);
        assert_eq!(report["snapshots"].as_array().unwrap().len(), 1, "{report:#}");
        assert_eq!(report["snapshots"][0]["dropped"].as_array().unwrap().len(), 2, "{report:#}");
        assert_eq!((count("a").await, count("\"B b\"").await), (3, 1));
        let missing = snapshot(&["nothing"]);
        assert_eq!(missing.status.code(), Some(9), "{}", printed(&missing));
        assert!(printed(&missing).contains("there is no stream table nothing"));
        assert_eq!(snapshot(&[]).status.code(), Some(2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_database_can_be_dropped_and_an_attached_one_is_served_again() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute("create table t (id int primary key); insert into t values (1)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('s', 'select id from t')").await.unwrap();
        let command = |name: &str| {
            tokio::task::block_in_place(|| pgtrickle(&[name, "--database-url", &db.url(SIDECAR)]))
        };
        let follows = async |what: &str| {
            wait_until(what, SOON, || async {
                let sql = "select count(*) from (table t except table s) d";
                let missing: i64 = app.query_one(sql, &[]).await.unwrap().get(0);
                if missing == 0 { Ok(()) } else { Err(missing.to_string()) }
            })
            .await;
        };
        follows("the stream table to follow").await;
        let output = command("detach");
        assert!(output.status.success() && printed(&output).contains("detached"), "{}", printed(&output));
        let root = crate::harness::database::connect(
            &server.cluster.conninfo("postgres", crate::harness::servers::SUPERUSER),
        )
        .await;
        let left = "select (select count(*) from pg_replication_slots)
            + (select count(*) from pg_stat_activity where application_name like 'pgtrickle:%')";
        wait_until("slot and sessions to go", SOON, || async {
            let left: i64 = root.query_one(left, &[]).await.unwrap().get(0);
            if left == 0 { Ok(()) } else { Err(left.to_string()) }
        })
        .await;
        app.batch_execute("insert into t values (2)").await.unwrap();
        let status = printed(&command("status"));
        assert!(status.contains("detached since"), "{status}");
        // A copy by template needs a database without sessions.
        drop(app);
        let copy = format!("create database copied template {}", db.name);
        wait_until("the copy", SOON, || async { root.batch_execute(&copy).await.map_err(|e| e.to_string()) })
            .await;
        let app = db.as_app().await;
        assert!(command("attach").status.success());
        wait_until("the stream table to follow again", SOON, || async {
            let sql = "select count(*) from (table t except table s) d";
            let missing: i64 = app.query_one(sql, &[]).await.unwrap().get(0);
            if missing == 0 { Ok(()) } else { Err(missing.to_string()) }
        })
        .await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        let output = command("detach");
        assert!(printed(&output).contains("slot"), "{}", printed(&output));
    })
    .await;
}
