//! Keys that are not, or not any more, what they were.

use super::{Scene, sqlstate};
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};

/// The view does not depend on the constraint that proved its key: dropping it must not lead to overwritten rows.
#[tokio::test(flavor = "multi_thread")]
async fn a8_a_unique_constraint_is_dropped_after_creation() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table u (id int primary key, code text not null constraint u_code unique, v int);
             insert into u values (1, 'a', 1), (2, 'b', 2)",
        )
        .await;
        scene.create("by_code", "select code, v from u").await;
        assert_eq!(scene.column("by_code", "key_columns").await.as_deref(), Some("{code}"));
        scene.run("alter table u drop constraint u_code").await;
        wait_until("the lost key to be seen", SOON, || async {
            let status = scene.status("by_code").await;
            if status.starts_with("ERROR") || status.starts_with("SUSPENDED") { Ok(()) } else { Err(status) }
        })
        .await;
        let state = scene.column("by_code", "last_error_sqlstate").await;
        assert!(["42P17", "21000"].contains(&state.as_deref().unwrap_or_default()), "{state:?}");
        // Nothing is replaced by another row of the same key.
        scene.run("insert into u values (3, 'a', 3); update u set v = 4 where id = 2").await;
        scene.passed().await;
        let shown: i64 = scene
            .dba
            .query_one("select count(*) from app.by_code where (code, v) = ('a', 1)", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(shown, 1, "a row was overwritten");
        scene.run("delete from u where id = 3; alter table u add constraint u_code unique (code)").await;
        if scene.status("by_code").await.starts_with("SUSPENDED") {
            scene.run("select pgtrickle.resume_stream_table('by_code')").await;
        }
        scene.check_in_time(&["by_code"]).await;
    })
    .await;
}

/// Between the loss of a key and the next look at the catalog no stored row makes way for another one of its key; nor
/// do rows that somebody added by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a8_no_row_takes_the_place_of_another_before_the_lost_key_is_noticed() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table u (id int primary key, code text not null constraint u_code unique, v int);
             insert into u values (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)",
        )
        .await;
        scene.create("by_code", "select code, v from u").await;
        scene
            .run(
                "begin; alter table u drop constraint u_code; insert into u values (4, 'a', 4);
                 update u set v = 5 where id = 2; commit",
            )
            .await;
        wait_until("the stream table to be taken out", SOON, || async {
            let status = scene.status("by_code").await;
            if status.starts_with("ERROR") || status.starts_with("SUSPENDED") { Ok(()) } else { Err(status) }
        })
        .await;
        let rows = "select string_agg(code || v, ' ' order by code, v) from app.by_code";
        let shown: String = scene.dba.query_one(rows, &[]).await.unwrap().get(0);
        assert_eq!(shown, "a1 b2 c3", "a row was overwritten");
        scene.run("delete from u where id = 4; alter table u add constraint u_code unique (code)").await;
        if scene.status("by_code").await.starts_with("SUSPENDED") {
            scene.run("select pgtrickle.resume_stream_table('by_code')").await;
        }
        scene.check_in_time(&["by_code"]).await;

        let told = |what: &str| scene.sidecar.logs().matches(what).count();
        // Its rows are seen a moment before it is told: the next one to be told has to be that of the new plan.
        wait_until("the reconcile to be told", SOON, || async {
            if told("reconciled and live") > 1 { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
        let live = told("reconciled and live");
        scene.run("select pgtrickle.alter_stream_table('by_code', user_writes => 'allow')").await;
        wait_until("it to be planned again", SOON, || async {
            if told("reconciled and live") > live { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
        scene.run("insert into by_code values ('z', -1)").await;
        let before = told("others have their key");
        scene.run("insert into u values (9, 'z', 9)").await;
        scene.check_in_time(&["by_code"]).await;
        assert!(
            told("others have their key") > before,
            "a row that somebody added was replaced without a word"
        );
    })
    .await;
}

/// Rows of children have their own keys.
#[tokio::test(flavor = "multi_thread")]
async fn a8_inherited_children_prove_no_key() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table par (id int primary key, v text); create table child () inherits (par);
             insert into par values (1, 'a'); insert into child values (1, 'b');
             create table alone (id int primary key, v text); insert into alone values (1, 'a')",
        )
        .await;
        scene.create("family", "select id, v from par").await;
        assert_eq!(scene.column("family", "key_columns").await, None);
        scene.check(&["family"]).await;
        scene.create("single", "select id, v from alone").await;
        assert_eq!(scene.column("single", "key_columns").await.as_deref(), Some("{id}"));
        scene.run("create table later (id int not null, v text); insert into later values (7, 'z'), (1, 'c'); alter table later inherit alone").await;
        // The form of the stream table can't hold two rows of one key: it says so instead of showing one of them.
        wait_until("the lost key to be told", SOON, || async {
            let state = scene.column("single", "last_error_sqlstate").await;
            if state.as_deref() == Some("42P17") { Ok(()) } else { Err(format!("{state:?} {}", scene.status("single").await)) }
        })
        .await;
        scene.run("alter table later no inherit alone; insert into alone values (3, 'd')").await;
        if scene.status("single").await.starts_with("SUSPENDED") {
            scene.run("select pgtrickle.resume_stream_table('single')").await;
        }
        scene.wait_status("single", "ACTIVE DIFFERENTIAL").await;
        scene.check(&["single", "family"]).await;
    })
    .await;
}

/// Publishing such a table would make the application's own UPDATE and DELETE fail: it is captured by triggers.
#[tokio::test(flavor = "multi_thread")]
async fn b5_a_source_without_a_usable_identity_is_never_published() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table deferred (id int primary key deferrable, v int);
             create table keyless (id int, v int);
             create table nothing (id int primary key, v int); alter table nothing replica identity nothing;
             create table partial (id int not null, v int); create unique index on partial (id) where v > 0;
             create table whole (id int, v int); alter table whole replica identity full;
             create table indexed (id int not null, v int); create unique index indexed_id on indexed (id);
             alter table indexed replica identity using index indexed_id",
        )
        .await;
        for table in ["deferred", "keyless", "nothing", "partial", "whole", "indexed"] {
            scene.run(&format!("insert into {table} values (1, 1), (2, 2), (3, 3)")).await;
            let query = format!("select v, count(*) as n from {table} group by v");
            let call = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            let name = format!("{table}_s");
            scene.app.execute(call, &[&name, &query]).await.unwrap();
            scene.wait_status(&name, "ACTIVE DIFFERENTIAL").await;
            scene.run(&format!("update {table} set v = v + 1 where id = 1; delete from {table} where id = 2; truncate {table};
                insert into {table} values (4, 4)")).await;
        }
        let published = "select string_agg(tablename::text, ',' order by tablename::text) from pg_publication_tables";
        let published: String = scene.dba.query_one(published, &[]).await.unwrap().get(0);
        assert_eq!(published, "indexed,whole");
        // The others are captured by triggers.
        let triggered = "select string_agg(source_name, ',' order by source_name) from pgtrickle.pgt_sources where capture = 'trigger'";
        let triggered: String = scene.dba.query_one(triggered, &[]).await.unwrap().get(0);
        assert_eq!(triggered, "app.deferred,app.keyless,app.nothing,app.partial");
        scene.check(&["deferred_s", "keyless_s", "nothing_s", "partial_s", "whole_s", "indexed_s"]).await;
    })
    .await;
}

/// Between the loss of a key and our next look PostgreSQL refuses UPDATE; then the table leaves the publication.
#[tokio::test(flavor = "multi_thread")]
async fn b5_a_primary_key_is_lost_and_comes_back() {
    for_each_major(async |server| {
        let mut scene = Scene::start(
            server,
            "create table k (id int primary key, v int); insert into k values (1, 1), (2, 2);
             create table other (id int primary key, v int); insert into other values (1, 1)",
        )
        .await;
        scene.create("of_k", "select v, count(*) as n from k group by v").await;
        scene.create("of_other", "select id, v from other").await;
        scene.run("alter table k drop constraint k_pkey").await;
        wait_until("the application's UPDATE to pass", SOON, || async {
            scene.app.batch_execute("update k set v = v + 1").await.map_err(|e| format!("{e:?}"))
        })
        .await;
        // From here on triggers tell its changes.
        scene.wait_status("of_k", "ACTIVE DIFFERENTIAL").await;
        scene.run("update other set v = 2; delete from k where id = 2").await;
        scene.check_in_time(&["of_other", "of_k"]).await;
        // The same while no sidecar runs: the next start must not fail over it.
        scene.run("alter table k add primary key (id)").await;
        scene.wait_status("of_k", "ACTIVE DIFFERENTIAL").await;
        scene.run("update k set v = 10").await;
        // The key that is back is noticed at a look, whenever it comes: then it is planned again.
        scene.check_in_time(&["of_k", "of_other"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        scene
            .run("alter table k drop constraint k_pkey; select pgtrickle.drop_stream_table('of_other')")
            .await;
        scene.sidecar.start_again();
        wait_until("the application's UPDATE to pass again", SOON, || async {
            scene.app.batch_execute("update k set v = v + 1").await.map_err(|e| format!("{e:?}"))
        })
        .await;
        let outcome = scene.app.batch_execute("delete from k where id = 1").await;
        assert_eq!(sqlstate(outcome), "");
    })
    .await;
}

/// Where changes come from triggers, or nobody serves the pipeline, no publication of ours is left: its members could not
/// be updated once they have lost their key.
#[tokio::test(flavor = "multi_thread")]
async fn b5_a_key_is_lost_while_triggers_capture_and_while_detached() {
    for_each_major(async |server| {
        let mut scene = Scene::start(
            server,
            "create table k (id int primary key, v int); insert into k values (1, 1), (2, 2)",
        )
        .await;
        scene.create("of_k", "select v, count(*) as n from k group by v").await;
        scene.check(&["of_k"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        scene
            .dba
            .batch_execute("insert into pgtrickle.settings values ('cdc_mode', 'trigger')")
            .await
            .unwrap();
        scene.sidecar.start_again();
        scene.run("insert into k values (3, 3)").await;
        scene.check_in_time(&["of_k"]).await;
        scene
            .run("alter table k drop constraint k_pkey; update k set v = v + 1; delete from k where id = 1")
            .await;
        scene.check_in_time(&["of_k"]).await;
        scene.run("alter table k add primary key (id)").await;
        scene.dba.batch_execute("delete from pgtrickle.settings where key = 'cdc_mode'").await.unwrap();
        wait_until("the WAL to deliver again", SOON * 2, || async {
            let delivery =
                super::super::snapshots::value(&scene.dba, "select delivery from pgtrickle.pgt_pipelines")
                    .await;
            if delivery == "slot" { Ok(()) } else { Err(delivery) }
        })
        .await;
        scene.run("update k set v = v + 1").await;
        scene.check_in_time(&["of_k"]).await;
        scene.dba.batch_execute("select pgtrickle.detach()").await.unwrap();
        scene.dba.batch_execute("select pgtrickle.detach()").await.unwrap();
        scene
            .run("alter table k drop constraint k_pkey; update k set v = v + 1; delete from k where id = 2")
            .await;
        scene.dba.batch_execute("select pgtrickle.attach()").await.unwrap();
        scene.run("insert into k values (7, 7)").await;
        scene.check_in_time(&["of_k"]).await;
    })
    .await;
}
