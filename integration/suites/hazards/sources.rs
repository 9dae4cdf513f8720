//! Sources that send nothing, or not everything: FULL with a reason, or refused.

use super::{Scene, sqlstate};
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};

const TABLES: &str = "
    create table plain (id int primary key, v int);
    create materialized view mat as select id, v from plain;
    create table secret (id int primary key, v int); alter table secret enable row level security;
    create policy all_of_it on secret using (true);
";

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_send_nothing_are_recomputed_with_the_reason() {
    for_each_major(async |server| {
        let scene = Scene::start(server, TABLES).await;
        let secured = "select pgtrickle.create_stream_table('s', 'select id from secret')";
        assert_eq!(sqlstate(scene.app.batch_execute(secured).await), "42501");
        scene.dba.batch_execute("insert into pgtrickle.settings values ('row_security', 'warn')").await.unwrap();
        let foreign = scene
            .dba
            .batch_execute(&format!(
                "create extension postgres_fdw; create server here foreign data wrapper postgres_fdw options (host '127.0.0.1', port '{}', dbname '{}');
                 create user mapping for public server here options (user 'dba', password_required 'false');
                 create foreign table app.distant (id int, v int) server here options (schema_name 'app', table_name 'plain');
                 grant select on app.distant to app",
                scene.db.port(), scene.db.name
            ))
            .await
            .is_ok();
        let mut kinds = vec![
            ("mat", "materialized"), ("secret", "row-level security"),
        ];
        if foreign {
            kinds.push(("distant", "foreign"));
        }
        for (table, word) in kinds {
            let query = format!("select id, v from {table}");
            let call = "select pgtrickle.create_stream_table($1, $2, refresh_mode => $3)";
            let refused = scene.app.execute(call, &[&format!("d_{table}"), &query, &"DIFFERENTIAL"]).await;
            assert_eq!(sqlstate(refused), "0A000", "{table}");
            let name = format!("s_{table}");
            scene.app.execute(call, &[&name, &query, &"AUTO"]).await.unwrap();
            scene.wait_status(&name, "ACTIVE FULL").await;
            let reason = scene.column(&name, "refresh_reason").await.unwrap();
            assert!(reason.contains(word), "{table}: {reason}");
            match table {
                "mat" => scene.run("insert into plain values (1, 1); refresh materialized view mat").await,
                "distant" => scene.run("insert into plain values (2, 2)").await,
                _ => scene.run(&format!("insert into {table} select max(id) + 1, 1 from (select id from {table} union all select 0) m; update {table} set v = v + 3")).await,
            }
            scene.run(&format!("select pgtrickle.refresh_stream_table('{name}')")).await;
            assert!(scene.differs(&name).await.is_empty(), "{name}");
        }
        let temporary = scene.app.batch_execute("create temp table t (id int primary key); select pgtrickle.create_stream_table('of_t', 'select id from t')").await;
        assert_eq!(sqlstate(temporary), "0A000");
        let published: i64 = scene.dba.query_one("select count(*) from pg_publication_tables", &[]).await.unwrap().get(0);
        assert_eq!(published, 0);
    })
    .await;
}

/// A live source becomes one whose changes are not in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_source_that_gets_row_security_is_recomputed() {
    for_each_major(async |server| {
        let scene =
            Scene::start(server, "create table a (id int primary key, v int); insert into a values (1, 1)")
                .await;
        scene.create("of_a", "select id, v from a").await;
        scene.run("alter table a enable row level security; create policy few on a using (v > 0)").await;
        // Readers of the stream table escape the policies: not without somebody having said so.
        wait_until("the stream table to be suspended", SOON, || async {
            let status = scene.status("of_a").await;
            if status.starts_with("SUSPENDED") { Ok(()) } else { Err(status) }
        })
        .await;
        let why = scene.column("of_a", "last_error_message").await.unwrap();
        assert!(why.contains("app.a has row-level security"), "{why}");
        scene
            .dba
            .batch_execute("insert into pgtrickle.settings values ('row_security', 'warn')")
            .await
            .unwrap();
        scene.run("select pgtrickle.resume_stream_table('of_a')").await;
        scene.wait_status("of_a", "ACTIVE FULL").await;
        // PostgreSQL refuses what would silence a published source; a source that left may do it.
        wait_until("the table to leave the publication", SOON, || async {
            scene.app.batch_execute("alter table a set unlogged").await.map_err(|e| format!("{e:?}"))
        })
        .await;
        assert_eq!(scene.status("of_a").await, "ACTIVE FULL");
    })
    .await;
}
