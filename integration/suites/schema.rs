//! The SQL side alone, without a sidecar: migration, rights, errors, and the functions of each stream table.

use pgtrickle::ErrorKind;
use pgtrickle::catalog::migrate::{FILES, Options, SCHEMA_VERSION, migrate, script};
use tokio_postgres::Client;

use crate::harness::database::{APP, SIDECAR, connect};
use crate::harness::servers::Server;
use crate::harness::{SOON, TestDatabase, for_each_major, wait_until};

fn options() -> Options {
    Options { sidecar_role: Some(SIDECAR.to_owned()), grant_to: vec![APP.to_owned()], upgrade: false }
}

async fn installed(server: &Server) -> TestDatabase {
    let database = TestDatabase::create(server).await;
    migrate(&mut database.as_dba().await, &options()).await.unwrap();
    database
}

/// SQLSTATE, message and hint of a statement that must fail.
async fn failure(client: &Client, sql: &str) -> (String, String, String) {
    let error = match client.batch_execute(sql).await {
        Ok(()) => panic!("this should have failed: {sql}"),
        Err(error) => error,
    };
    let db = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    (db.code().code().to_owned(), db.message().to_owned(), db.hint().unwrap_or_default().to_owned())
}

/// First column of the first row as text.
async fn value(client: &Client, sql: &str) -> String {
    let row = client.query_one(&format!("select ({sql})::text"), &[]).await;
    row.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get::<_, Option<String>>(0).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_is_repeatable_and_refuses_a_newer_schema() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        let mut dba = database.as_dba().await;
        let first = migrate(&mut dba, &options()).await.unwrap();
        assert_eq!(first.applied.len(), FILES.len());
        assert!(migrate(&mut dba, &options()).await.unwrap().applied.is_empty());
        dba.batch_execute("update pgtrickle.schema_files set checksum = '' where file like '003%'")
            .await
            .unwrap();
        let again = migrate(&mut dba, &options()).await.unwrap();
        assert_eq!(again.applied, ["003_names.sql", "999_grants.sql"]);
        for newer in [
            "insert into pgtrickle.schema_files (file, checksum) values ('020_future.sql', '')".to_owned(),
            format!(
                "delete from pgtrickle.schema_files where file = '020_future.sql';
                 update pgtrickle.settings set value = '{}' where key = 'schema_version'",
                SCHEMA_VERSION + 1
            ),
        ] {
            dba.batch_execute(&newer).await.unwrap();
            let refused = migrate(&mut dba, &options()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::SchemaVersion);
        }
        let app = database.as_app().await;
        drop(app);
        let denied = TestDatabase::create(server).await;
        let refused = migrate(&mut denied.as_app().await, &Options::default()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Privilege);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_script_does_the_same() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        let mut dba = database.as_dba().await;
        let text = script(&options());
        let sql = text.strip_prefix("--").and_then(|t| t.split_once("\\set ON_ERROR_STOP on")).unwrap().1;
        dba.batch_execute(sql).await.unwrap();
        dba.batch_execute(sql).await.unwrap();
        assert!(migrate(&mut dba, &options()).await.unwrap().applied.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_of_creation_has_its_state_and_leaves_nothing() {
    for_each_major(async |server| {
        let database = installed(server).await;
        let dba = database.as_dba().await;
        dba.batch_execute("create schema closed; create table closed.t (id int primary key); grant usage on schema closed to app")
            .await
            .unwrap();
        let app = database.as_app().await;
        app.batch_execute("create table src (id int primary key, v numeric)").await.unwrap();
        for (name, query, more, state) in [
            ("e", "selec 1", "", "42601"),
            ("e", "select a from nosuch", "", "42P01"),
            ("e", "select id from closed.t", "", "42501"),
            ("src", "select id from src", "", "42P07"),
            ("nosuch.e", "select id from src", "", "3F000"),
            ("closed.e", "select id from src", "", "42501"),
            ("e", "select id, id from src", "", "42701"),
            ("e", "select id + 1 from src", "", "42611"),
            ("e", "select from src", "", "42P16"),
            ("e", "select id from src", ", schedule => 'often'", "22023"),
            ("e", "select id from src", ", schedule => '61 * * * *'", "22023"),
            ("e", "select id from src", ", refresh_mode => 'quick'", "22023"),
            ("e", "select id from src; drop table src", "", "42601"),
            ("e", "select 1 as a) ; drop table src; select (2", "", "42601"),
            ("e", "insert into src values (1) returning id", "", "42601"),
            ("e", "drop table src", "", "42601"),
            ("e", " ; ", "", "22023"),
            ("a.b.c", "select id from src", "", "42602"),
        ] {
            let sql = format!("select pgtrickle.create_stream_table('{name}', $${query}$${more})");
            let (seen, message, _) = failure(&app, &sql).await;
            assert_eq!(seen, state, "{sql}: {message}");
        }
        let left = "(select count(*) from pgtrickle.pgt_stream_tables)
                  + (select count(*) from pg_class where relnamespace = 'pgtrickle_queries'::regnamespace)
                  + (select count(*) from pg_proc where pronamespace = 'pgtrickle_queries'::regnamespace)";
        assert_eq!(value(&dba, left).await, "0");
        app.batch_execute("select pgtrickle.create_stream_table('t', 'select id from src; -- done')").await.unwrap();
        assert_eq!(failure(&app, "insert into t values (1)").await.0, "55000");
        app.batch_execute("select pgtrickle.create_stream_table('t2', 'select id from t')").await.unwrap();
        assert_eq!(failure(&app, "select pgtrickle.drop_stream_table('t')").await.0, "2BP01");
        app.batch_execute("select pgtrickle.drop_stream_table('t', cascade => true)").await.unwrap();
        assert_eq!(value(&dba, left).await, "0");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_sees_the_health_but_not_the_queries_of_others_and_forges_nothing() {
    for_each_major(async |server| {
        let database = installed(server).await;
        let dba = database.as_dba().await;
        let bob = format!("bob_{}", database.name);
        dba.batch_execute(&format!("create role {bob} login; select pgtrickle.grant_usage('{bob}')")).await.unwrap();
        let app = database.as_app().await;
        app.batch_execute(
            "create table src (id int primary key); select pgtrickle.create_stream_table('mine', 'select id from src')",
        )
        .await
        .unwrap();
        let other = connect(&database.url(&bob)).await;
        assert_eq!(value(&other, "select count(*) from pgtrickle.pgt_stream_tables").await, "0");
        assert_eq!(value(&other, "select name from pgtrickle.pgt_status()").await, "app.mine");
        assert_eq!(value(&other, "select defining_query from pgtrickle.stream_tables_info").await, "");
        let forged = "insert into pgtrickle.pgt_stream_tables (pgt_schema, pgt_name";
        for sql in [
            format!("{forged}, owner) values ('x', 'y', 'app')"),
            format!("{forged}, query_view) select 'x', 'y', query_view from pgtrickle.query_views"),
            "select pgtrickle.refresh_stream_table('app.mine')".to_owned(),
            "select pgtrickle.drop_stream_table('mine')".to_owned(),
            "select * from pgtrickle.list_sources('mine')".to_owned(),
            "select pgtrickle_queries.apply_1(null, null)".to_owned(),
            "select pgtrickle.publication_sync('pgtrickle_1_00000000_main', '{}')".to_owned(),
            "update pgtrickle.pgt_pipelines set generation = 7".to_owned(),
        ] {
            assert_eq!(failure(&other, &sql).await.0, "42501", "{sql}");
        }
        dba.batch_execute(&format!("drop owned by {bob}; drop role {bob}")).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_keeps_the_multiplicity_of_equal_rows() {
    for_each_major(async |server| {
        let database = installed(server).await;
        let app = database.as_app().await;
        app.batch_execute(
            "create table src (a text, n numeric);
             insert into src values (null, 1.0), (null, 1.0), (null, 1.00), ('a,\"b', 2);
             select pgtrickle.create_stream_table('bag', 'select a, n from src')",
        )
        .await
        .unwrap();
        let sidecar = database.as_sidecar().await;
        let apply = async |deleted: &[&str], inserted: &[&str]| {
            let row = sidecar
                .query_one("select * from pgtrickle_queries.apply_1($1, $2)", &[&deleted, &inserted])
                .await
                .unwrap();
            (row.get::<_, i64>(0), row.get::<_, i64>(1))
        };
        assert_eq!(apply(&["(,1.0)"], &["(x,)", "(x,)"]).await, (1, 2));
        assert_eq!(apply(&["(,1.0)", "(,1.0)", "(\"a,\"\"b\",2)"], &[]).await, (2, 0), "only what is there");
        assert_eq!(
            value(&app, "select count(*) filter (where n::text = '1.00') || ',' || count(*) from bag").await,
            "1,3"
        );
        let row = sidecar.query_one("select * from pgtrickle_queries.recompute_1()", &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(2)), (3, 2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_without_a_sidecar_recomputes_and_with_one_it_waits() {
    for_each_major(async |server| {
        let database = installed(server).await;
        let app = database.as_app().await;
        app.batch_execute(
            "create table src (id int primary key); select pgtrickle.create_stream_table('t', 'select id from src');
             insert into src values (1), (2); select pgtrickle.refresh_stream_table(pgt_name) from pgtrickle.stream_tables_info",
        )
        .await
        .unwrap();
        assert_eq!(value(&app, "select count(*) from t").await, "2");
        assert_eq!(value(&app, "select generation from pgtrickle.pgt_pipelines").await, "1");
        let dba = database.as_dba().await;
        dba.batch_execute(
            "select pg_advisory_lock(1346852939, hashtext('main'));
             insert into pgtrickle.settings values ('refresh_timeout', '200 ms');
             update pgtrickle.pgt_stream_tables set status = 'ACTIVE'",
        )
        .await
        .unwrap();
        let refresh = "select pgtrickle.refresh_stream_table('t')";
        assert_eq!(failure(&app, refresh).await.0, "55P03");
        for begin in ["begin isolation level repeatable read", "begin; insert into src values (3)"] {
            app.batch_execute(begin).await.unwrap();
            assert_eq!(failure(&app, refresh).await.0, "25001");
            app.batch_execute("rollback").await.unwrap();
        }
        // A frontier beyond the WAL says nothing; one that moves on lets it return.
        dba.batch_execute("update pgtrickle.pgt_pipelines set frontier = 'FFFFFFFF/0'").await.unwrap();
        assert_eq!(failure(&app, refresh).await.0, "55P03");
        dba.batch_execute("update pgtrickle.settings set value = '60 s' where key = 'refresh_timeout'").await.unwrap();
        let moving = async {
            loop {
                dba.batch_execute("update pgtrickle.pgt_pipelines set frontier = pg_current_wal_insert_lsn()").await.unwrap();
            }
        };
        tokio::select! {
            () = moving => {}
            refreshed = app.batch_execute(refresh) => refreshed.unwrap(),
        }
        dba.batch_execute("select pg_advisory_unlock_all()").await.unwrap();
        wait_until("the status to show that no sidecar runs", SOON, || async {
            let status = value(&app, "select status from pgtrickle.pgt_status()").await;
            if status == "OFFLINE" { Ok(()) } else { Err(status) }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_proven_by_the_sidecar_becomes_the_primary_key() {
    for_each_major(async |server| {
        let database = installed(server).await;
        let dba = database.as_dba().await;
        // The answers to the first three requests of a sidecar that holds the lease and has a slot; their numbers are made
        // foreseeable.
        const SLOT: &str = "select pg_create_logical_replication_slot('scripted_' || current_database(), 'pgoutput')";
        dba.batch_execute(SLOT).await.unwrap();
        dba.batch_execute("update pgtrickle.pgt_pipelines set slot_name = 'scripted_' || current_database()")
            .await
            .unwrap();
        dba.batch_execute(
            r#"select pg_advisory_lock(1346852939, hashtext('main'));
            create or replace function pgtrickle._request(kind text, payload jsonb) returns bigint
                language sql as $$ select nextval('pgtrickle.request_seq') $$;
            insert into pgtrickle.pgt_answers (request_id, answer) values
            (1, '{"ok": true, "mode": "DIFFERENTIAL", "key": ["id"]}'),
            (2, '{"ok": false, "sqlstate": "0A000", "message": "random() is volatile", "hint": "use FULL"}'),
            (3, '{"ok": true, "mode": "FULL", "reason": "random() is volatile"}')"#,
        )
        .await
        .unwrap();
        let app = database.as_app().await;
        app.batch_execute(
            "create table src (id int primary key, u int); insert into src select i, i from generate_series(1, 9) i;
             select pgtrickle.create_stream_table('keyed', 'select id, u from src'); create unique index on keyed (u)",
        )
        .await
        .unwrap();
        let volatile = "select pgtrickle.create_stream_table('r', 'select random() as r from src', refresh_mode => '";
        let (state, message, hint) = failure(&app, &format!("{volatile}DIFFERENTIAL')")).await;
        assert_eq!((state.as_str(), message.as_str(), hint.as_str()), ("0A000", "random() is volatile", "use FULL"));
        app.batch_execute(&format!("{volatile}AUTO')")).await.unwrap();
        let why = "select downgrade_reason from pgtrickle.explain_refresh_mode('r')";
        assert_eq!(value(&app, why).await, "random() is volatile");
        let sidecar = database.as_sidecar().await;
        let apply = "select apply_1::text from pgtrickle_queries.apply_1";
        let swap = format!("{apply}(array['(1,1)','(2,2)'], array['(1,2)','(2,1)'])");
        assert_eq!(value(&sidecar, &swap).await, "(2,2,0)");
        assert_eq!(value(&sidecar, &format!("{apply}(null, array['(3,)'])")).await, "(0,1,1)");
        assert_eq!(failure(&sidecar, &format!("{apply}(null, array['(4,5)'])")).await.0, "23505");
        let recompute = "select recompute_1::text from pgtrickle_queries.recompute_1()";
        // All but one value (5) of the user's unique index moves: the difference is written as deletes and inserts.
        app.batch_execute("update src set u = 10 - u").await.unwrap();
        assert_eq!(value(&sidecar, recompute).await, "(0,8,0)");
        assert_eq!(value(&sidecar, recompute).await, "(0,0,0)");
        assert_eq!(value(&app, "select count(*) from (table keyed except table src) d").await, "0");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_makes_the_functions_of_an_older_version_again_for_their_owners() {
    for_each_major(async |server| {
        let database = installed(server).await;
        let app = database.as_app().await;
        app.batch_execute(
            "create table src (id int); select pgtrickle.create_stream_table('t', 'select id from src');
             drop function pgtrickle_queries.apply_1(text[], text[]);
             create function pgtrickle_queries.apply_1(deleted text[], inserted text[], out deleted_rows bigint,
                out inserted_rows bigint) language sql security definer as 'select 0::bigint, 0::bigint'",
        )
        .await
        .unwrap();
        let mut dba = database.as_dba().await;
        dba.batch_execute("update pgtrickle.schema_files set checksum = '' where file like '004%'").await.unwrap();
        migrate(&mut dba, &options()).await.unwrap();
        let owner = "select proowner::regrole || ' ' || prosecdef from pg_proc where proname = 'apply_1'";
        assert_eq!(value(&dba, owner).await, "app true");
        let sidecar = database.as_sidecar().await;
        let apply = "select apply_1::text from pgtrickle_queries.apply_1(null, array['(7)'])";
        assert_eq!(value(&sidecar, apply).await, "(0,1,0)");
    })
    .await;
}
