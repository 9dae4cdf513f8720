//! Bad input of SQL functions with a live sidecar: one clear sentence, what to do about it, the right SQLSTATE, and
//! nothing half-created.

use std::sync::{Arc, Mutex};

use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::harness::oracle::difference;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

/// A refusal as a client sees it.
pub struct Refused {
    pub state: String,
    pub message: String,
    pub hint: String,
}

/// The refusal of a statement that must fail; its message must be one sentence.
pub async fn refused(client: &Client, sql: &str) -> Refused {
    let error = match client.batch_execute(sql).await {
        Ok(()) => panic!("this should have failed: {sql}"),
        Err(error) => error,
    };
    let db = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    let message = db.message().to_owned();
    assert_ne!(
        db.code().code(),
        "40P01",
        "{sql}: a deadlock with the sidecar: {}",
        db.detail().unwrap_or("")
    );
    assert!(!message.contains('\n') && !message.ends_with('.') && message.len() > 10, "{sql}: {message}");
    Refused { state: db.code().code().to_owned(), message, hint: db.hint().unwrap_or_default().to_owned() }
}

/// First column of the first row as text.
pub async fn value(client: &Client, sql: &str) -> String {
    let row = client.query_one(&format!("select ({sql})::text"), &[]).await;
    row.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get::<_, Option<String>>(0).unwrap_or_default()
}

/// Waits until a query's first column has this text.
pub async fn wait_value(client: &Client, sql: &str, expected: &str) {
    wait_until(&format!("{sql} to be {expected}"), SOON, || async {
        let seen = value(client, sql).await;
        if seen == expected { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// Everything that a creation could leave behind, as counts.
pub const TRACES: &str = "select concat_ws(' ',
    (select count(*) from pgtrickle.pgt_stream_tables), (select count(*) from pgtrickle.pgt_dependencies),
    (select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname !~ '^(pg_|information_schema)' and c.relkind <> 't'),
    (select count(*) from pg_proc p where p.pronamespace = 'pgtrickle_queries'::regnamespace),
    (select count(*) from pg_type t where t.typnamespace = 'pgtrickle_queries'::regnamespace),
    (select count(*) from pg_publication), (select count(*) from pg_publication_rel),
    (select count(*) from pg_replication_slots where database = current_database()))";

/// Waits until no stream table is still on its way.
pub async fn settled(client: &Client) {
    let moving = "select count(*) from pgtrickle.pgt_stream_tables where status = 'INITIALIZING'";
    wait_value(client, moving, "0").await;
}

/// A database with a live sidecar.
pub async fn live(server: &'static crate::harness::Server) -> (TestDatabase, Sidecar) {
    let db = TestDatabase::create(server).await;
    db.install();
    let mut sidecar = Sidecar::start(&db, &[]);
    sidecar.wait_ready(SOON).await;
    (db, sidecar)
}

/// A session that keeps the notices it gets.
pub async fn with_notices(url: &str) -> (Client, Arc<Mutex<Vec<String>>>) {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let notices = Arc::new(Mutex::new(Vec::new()));
    let kept = notices.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message {
                kept.lock().unwrap().push(format!("{} / {}", notice.message(), notice.hint().unwrap_or("")));
            }
        }
    });
    (client, notices)
}

const SOURCES: &str = "
    create table src (id int primary key, v numeric, j json, b jsonb, a int[], t text);
    create table other (id int primary key, b jsonb, a int[], j json);
    create table keyless (v int);
    insert into src select i, i * 1.5, '{}', jsonb_build_object('k', i % 3), array[i % 2], 't' || i
        from generate_series(1, 20) i;
    insert into other select i, jsonb_build_object('k', i % 3), array[i % 2], '{}' from generate_series(1, 10) i;
    insert into keyless select i % 3 from generate_series(1, 9) i";

#[tokio::test(flavor = "multi_thread")]
async fn every_refused_creation_says_what_to_do_and_leaves_nothing() {
    for_each_major(async |server| {
        let (db, _sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        dba.batch_execute(
            "create schema closed; create schema shut; create table closed.t (id int primary key, secret text);
             create table shut.t (id int primary key); grant usage on schema closed to app",
        )
        .await
        .unwrap();
        app.batch_execute(SOURCES).await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('there', 'select id, v from src')").await.unwrap();
        settled(&dba).await;
        let before = value(&dba, TRACES).await;
        let long = "x".repeat(64);
        // Name, query, further arguments, SQLSTATE, a part of the message, a part of the hint ("" where the message is
        // PostgreSQL's own and says all).
        let cases: &[(&str, &str, &str, &str, &str, &str)] = &[
            ("e", "select a from nosuch", "", "42P01", "nosuch", "search_path"),
            ("e", "select nosuch from src", "", "42703", "nosuch", ""),
            ("e", "selec 1", "", "42601", "selec", ""),
            ("e", "select id from closed.t", "", "42501", "permission denied", "SELECT right"),
            ("e", "select id from shut.t", "", "42501", "permission denied", "SELECT right"),
            ("src", "select id from src", "", "42P07", "already exists", "another name"),
            ("there", "select id from src", "", "42P07", "already exists", "create_or_replace"),
            ("nosuch.e", "select id from src", "", "3F000", "nosuch", "Create the schema"),
            ("closed.e", "select id from src", "", "42501", "closed", ""),
            ("e", "select id, id from src", "", "42701", "more than once", ""),
            ("e", "select id, v + 1 from src", "", "42611", "?column?", "AS name"),
            ("e", "select id as ctid from src", "", "42701", "ctid", "another name"),
            ("e", "select id as __pgt_row_id from src", "", "42611", "__pgt_row_id", "another name"),
            ("e", "select j, count(*) as n from src group by j", "", "42883", "json", ""),
            ("e", "select distinct j from src", "", "42883", "json", ""),
            ("e", "", "", "22023", "must not be empty", "SELECT"),
            ("e", " ; \n ;", "", "22023", "must not be empty", "SELECT"),
            ("e", "select id from src; select id from src", "", "42601", "single SELECT", "one SELECT"),
            ("e", "select id from src; drop table src", "", "42601", "single SELECT", "one SELECT"),
            ("e", "select 1 as a) ; drop table src; select (2", "", "42601", "", ""),
            ("e", "delete from src returning id", "", "42601", "single SELECT", "one SELECT"),
            ("e", "select * from e", "", "42P01", "does not exist", ""),
            ("a.b.c", "select id from src", "", "42602", "invalid name", "schema.name"),
            ("", "select id from src", "", "42602", "invalid name", "schema.name"),
            ("\"x", "select id from src", "", "42602", "invalid name", "double quotes"),
            (&long, "select id from src", "", "42622", "63 bytes", "shorter"),
            ("e", "select id from src", ", schedule => 'often'", "22023", "schedule", "cron"),
            ("e", "select id from src", ", refresh_mode => 'quick'", "22023", "refresh_mode", "DIFFERENTIAL"),
            ("e", "select id from src", ", refresh_mode => 'IMMEDIATE'", "0A000", "IMMEDIATE", "wait_for"),
        ];
        for (name, query, more, state, message, hint) in cases {
            let sql = format!("select pgtrickle.create_stream_table('{name}', $q${query}$q${more})");
            let told = refused(&app, &sql).await;
            assert_eq!(told.state, *state, "{sql}: {}", told.message);
            assert!(told.message.contains(message), "{sql}: {}", told.message);
            assert!(told.hint.contains(hint), "{sql}: {} / {}", told.message, told.hint);
            assert!(!told.message.contains("secret"), "{sql}: {}", told.message);
        }
        assert_eq!(value(&dba, TRACES).await, before);
        // A stream table over itself is only possible by changing one.
        let own = refused(&app, "select pgtrickle.alter_stream_table('there', query => 'select id, v from there')").await;
        assert_eq!((own.state.as_str(), own.hint.contains("WITH RECURSIVE")), ("42P19", true), "{}", own.message);
        assert_eq!(value(&dba, TRACES).await, before);
        for function in ["refresh_stream_table", "drop_stream_table", "suspend_stream_table", "alter_stream_table"] {
            let told = refused(&app, &format!("select pgtrickle.{function}('nosuch')")).await;
            assert_eq!(told.state, "42P01");
            assert!(told.message.contains("nosuch") && told.hint.contains("stream_tables_info"), "{}", told.hint);
        }
        // Direct writes.
        let write = refused(&app, "insert into there values (99, 1)").await;
        assert_eq!((write.state.as_str(), write.hint.contains("source tables")), ("55000", true));
        assert_eq!(value(&dba, TRACES).await, before);
    })
    .await;
}

/// Query and a part of the reason why it is not incremental.
const NOT_INCREMENTAL: &[(&str, &str)] = &[
    ("select id, (random() * 0)::int as r from src", "random"),
    ("select id, now() > '2000-01-01' as n from src", "now"),
    ("select id, current_user::text as u from src", "current"),
    ("select id, ctid::text as c from src", "system column"),
    ("select to_jsonb(whole) as r from (src a join src b using (id)) whole", "whole row"),
    ("select id from src tablesample system (100)", "TABLESAMPLE"),
    (
        "with recursive r as (select 1 as n union all select n % 3 + 1 from r) cycle n set looped using path
         select n, path::text as p from r",
        "CYCLE",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_incremental_is_refused_with_the_reason_or_recomputed_with_the_reason_visible() {
    for_each_major(async |server| {
        let (db, _sidecar) = live(server).await;
        let dba = db.as_dba().await;
        let (app, notices) = with_notices(&db.url("app")).await;
        app.batch_execute(SOURCES).await.unwrap();
        for (n, (query, part)) in NOT_INCREMENTAL.iter().enumerate() {
            let before = value(&dba, TRACES).await;
            let create = |mode: &str| {
                format!("select pgtrickle.create_stream_table('t{n}', $q${query}$q$, refresh_mode => '{mode}')")
            };
            let told = refused(&app, &create("DIFFERENTIAL")).await;
            assert_eq!(told.state, "0A000", "{query}: {}", told.message);
            assert!(told.message.contains(part), "{query}: {}", told.message);
            assert!(!told.hint.is_empty(), "{query}: {}", told.message);
            assert_eq!(value(&dba, TRACES).await, before, "{query}");
            notices.lock().unwrap().clear();
            app.batch_execute(&create("AUTO")).await.unwrap();
            let heard = notices.lock().unwrap().join("\n");
            assert!(heard.contains(&told.message), "{query}: the reason is not told: {heard}");
            let mode = format!("select concat_ws('|', effective_mode, downgrade_reason) from pgtrickle.explain_refresh_mode('t{n}')");
            assert_eq!(value(&app, &mode).await, format!("FULL|{}", told.message));
            let shown = format!("select concat_ws('|', refresh_mode, refresh_reason) from pgtrickle.pgt_status() where name = 'app.t{n}'");
            assert_eq!(value(&app, &shown).await, format!("FULL|{}", told.message));
        }
        app.batch_execute(
            "update src set v = v + 100 where id % 2 = 0; insert into src select 30 + i, i, '{}', '{\"k\": 1}', '{1}', 'n'
                from generate_series(1, 5) i;
             delete from other where id = 4; delete from keyless where v = 1",
        )
        .await
        .unwrap();
        for (n, (query, _)) in NOT_INCREMENTAL.iter().enumerate() {
            app.batch_execute(&format!("select pgtrickle.refresh_stream_table('t{n}')")).await.unwrap();
            let columns = "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
                where attrelid = 't{n}'::regclass and attnum > 0 and not attisdropped and attname <> '__pgt_row_id'";
            let columns = value(&app, &columns.replace("{n}", &n.to_string())).await;
            let rows = difference(&app, query, &format!("t{n}"), &columns).await.unwrap();
            assert!(rows.is_empty(), "{query}: {rows:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_the_sidecar_may_not_read_is_recomputed_and_differential_is_refused() {
    for_each_major(async |server| {
        let (db, _sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        dba.batch_execute(
            "create schema hidden authorization app; set role app; create table hidden.t (id int primary key);
             insert into hidden.t values (1); create table app.veiled (id int primary key); reset role;
             revoke all on app.veiled from pgtrickle",
        )
        .await
        .unwrap();
        for (table, hint) in
            [("hidden.t", "grant usage on"), ("app.veiled", "grant select on app.veiled to pgtrickle")]
        {
            let before = value(&dba, TRACES).await;
            let create = format!(
                "select pgtrickle.create_stream_table('s', 'select id from {table}', refresh_mode => "
            );
            let told = refused(&app, &format!("{create}'DIFFERENTIAL')")).await;
            assert_eq!(told.state, "42501", "{}", told.message);
            assert!(told.message.contains("the sidecar's role pgtrickle"), "{}", told.message);
            assert!(told.hint.contains(hint), "{}", told.hint);
            assert_eq!(value(&dba, TRACES).await, before);
            app.batch_execute(&format!("{create}'AUTO')")).await.unwrap();
            let status = "select concat_ws('|', refresh_mode, refresh_reason) from pgtrickle.pgt_status()";
            assert!(value(&app, status).await.starts_with("FULL|the sidecar's role pgtrickle"));
            app.batch_execute(&format!("insert into {table} values (7)")).await.unwrap();
            app.batch_execute("select pgtrickle.refresh_stream_table('s')").await.unwrap();
            assert_eq!(value(&app, "select count(*) from s where id = 7").await, "1");
            app.batch_execute("select pgtrickle.drop_stream_table('s')").await.unwrap();
        }
    })
    .await;
}
