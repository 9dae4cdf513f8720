//! What a user may write himself, exchanged at the moment at which somebody looks away: his row of the catalog, the view
//! of his query, names, the options of a view.

use super::super::bad_input::{live, settled, value, wait_value};
use super::super::rights::{forget_user, second_user};
use crate::harness::{SOON, for_each_major, wait_until};
use crate::suites::http::client::{free_port, get};

const SECRET: &str = "create table secret (id int primary key, what text not null); insert into secret values (1, 'hush-4711')";

/// Waits until the session that analyses queries waits for a lock.
async fn analysis_is_held_up(dba: &tokio_postgres::Client) {
    const WAITS: &str =
        "select count(*) > 0 from pg_stat_activity where application_name = 'pgtrickle:main:analyze'
        and datname = current_database() and wait_event_type = 'Lock'";
    wait_value(dba, WAITS, "true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_view_that_is_exchanged_between_the_check_of_rights_and_the_analysis_is_not_read() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let (name, bob) = second_user(&db, &dba).await;
        app.batch_execute(SECRET).await.unwrap();
        app.batch_execute("grant select on secret to pgtrickle").await.unwrap();
        bob.batch_execute(
            "create table held (id int primary key); create table own (id int primary key, what text not null);
             insert into own values (7, 'mine');
             select pgtrickle.create_stream_table('first', 'select id from bob.held');
             select pgtrickle.create_stream_table('spy', 'select id, what from bob.own')",
        )
        .await
        .unwrap();
        settled(&dba).await;
        // PostgreSQL asks for rights when a view is read, not when it is made.
        bob.batch_execute("create view peek as select id, what from app.secret").await.unwrap();
        let fine = value(&bob, "select query_view from pgtrickle.pgt_stream_tables where pgt_name = 'spy'").await;
        let leaks = async || {
            let seen = value(&bob, "select coalesce(string_agg(what, ', '), '') from bob.spy").await;
            assert!(!seen.contains("hush"), "bob reads {seen}");
        };
        for disguise in ["", ", status = 'SUSPENDED'", ", pipeline = 'main'"] {
            let holder = crate::harness::database::connect(&db.url(&name)).await;
            // The first one holds up the preparation of both, for up to five seconds.
            holder.batch_execute("begin; lock table bob.held in access exclusive mode").await.unwrap();
            bob.batch_execute(
                "update pgtrickle.pgt_stream_tables set config_version = config_version + 1, status = 'INITIALIZING',
                        query_view = case pgt_name when 'spy' then 'bob.peek'::regclass else query_view end",
            )
            .await
            .unwrap();
            analysis_is_held_up(&dba).await;
            bob.batch_execute(&format!(
                "update pgtrickle.pgt_stream_tables set query_view = '{fine}'::regclass{disguise} where pgt_name = 'spy'"
            ))
            .await
            .unwrap();
            holder.batch_execute("commit").await.unwrap();
            wait_value(&dba, "select status from pgtrickle.pgt_stream_tables where pgt_name = 'first'", "ACTIVE").await;
            leaks().await;
            // It is right again in the end, over what its owner may read.
            bob.batch_execute(
                "update pgtrickle.pgt_stream_tables set config_version = config_version + 1, status = 'INITIALIZING',
                        consecutive_errors = 0 where pgt_name = 'spy'",
            )
            .await
            .unwrap();
            wait_value(&dba, "select status from pgtrickle.pgt_stream_tables where pgt_name = 'spy'", "ACTIVE").await;
            app.batch_execute("update secret set what = what || '!'").await.unwrap();
            bob.batch_execute("select pgtrickle.wait_for()").await.unwrap();
            leaks().await;
            assert_eq!(value(&bob, "select string_agg(what, ', ') from bob.spy").await, "mine");
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_user(db, dba, &name).await;
    })
    .await;
}

/// `security_invoker` can be written in many ways, and is stored as it was written.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_lost_behind_an_invokers_view_is_noticed_however_the_option_was_written() {
    for_each_major(async |server| {
        if server.major < 15 {
            return;
        }
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let (name, bob) = second_user(&db, &dba).await;
        app.batch_execute(SECRET).await.unwrap();
        for (n, written) in ["true", "on", "YES", "1"].into_iter().enumerate() {
            app.batch_execute(&format!(
                "create view v{n} with (security_invoker = {written}) as select id, what from secret;
                 grant select on v{n}, secret to {name}"
            ))
            .await
            .unwrap();
            bob.batch_execute(&format!("select pgtrickle.create_stream_table('st{n}', 'select id, what from app.v{n}')"))
                .await
                .unwrap();
        }
        wait_value(&dba, "select count(*) from pgtrickle.pgt_stream_tables where status = 'ACTIVE'", "4").await;
        app.batch_execute(&format!("revoke select on secret from {name}")).await.unwrap();
        const LOST: &str = "select count(*) from pgtrickle.pgt_stream_tables where status = 'SUSPENDED' and last_error_sqlstate = '42501'";
        wait_value(&dba, LOST, "4").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_user(db, dba, &name).await;
    })
    .await;
}

/// A name is what its owner chose: in numbers, pages, JSON and logs it is text, never a part of the form.
#[tokio::test(flavor = "multi_thread")]
async fn names_break_out_of_no_metric_page_or_log_line() {
    const NAME: &str = "a\"} 1\npgtrickle_up{x=\"<script>alert(1)</script>\\\u{1b}[31m";
    for_each_major(async |server| {
        let db = crate::harness::TestDatabase::create(server).await;
        db.install();
        let port = free_port();
        let mut sidecar = crate::harness::Sidecar::start(&db, &["--http", &format!("127.0.0.1:{port}")]);
        sidecar.wait_ready(SOON).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute("create table t (id int primary key)").await.unwrap();
        let quoted = format!("\"{}\"", NAME.replace('"', "\"\""));
        app.execute("select pgtrickle.create_stream_table($1, 'select id from t')", &[&quoted]).await.unwrap();
        settled(&dba).await;
        app.batch_execute("insert into t values (1); select 1 / 1").await.unwrap();
        // One that fails is in the log, in alerts and among the findings.
        app.batch_execute(&format!("create function no() returns trigger language plpgsql as $$ begin raise exception '%', e'\\nline'; end $$;
             create trigger no before insert on {quoted} for each row execute function no(); insert into t values (2)"))
            .await
            .unwrap();
        wait_value(&dba, "select last_error_sqlstate from pgtrickle.pgt_stream_tables", "P0001").await;
        // The engine's counters have it at once, the looks at the catalog every few seconds.
        let listed = wait_until("the stream table in the list", SOON, || async {
            let (_, text) = get(port, "/api/v1/stream_tables").await?;
            let listed: serde_json::Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
            let there = listed["stream_tables"][0]["name"].as_str().is_some_and(|n| n.contains("<script>"));
            if there { Ok(listed) } else { Err(text) }
        })
        .await;
        let (_, metrics) = get(port, "/metrics").await.unwrap();
        assert!(metrics.matches("alert(1)").count() > 5, "{metrics}");
        for line in metrics.lines() {
            let plain = line.starts_with("# ") || line.starts_with("pgtrickle_");
            assert!(plain && !line.starts_with("pgtrickle_up{x="), "a line of its own: {line}");
        }
        for path in ["/", "/tables", "/graph", "/recovery"] {
            let (status, page) = get(port, path).await.unwrap();
            assert!(status == 200 && !page.contains("<script>alert"), "{path}");
        }
        let url = listed["stream_tables"][0]["name"].as_str().unwrap();
        let path: String = url.bytes().map(|b| format!("%{b:02x}")).collect();
        let (status, page) = get(port, &format!("/tables/{path}")).await.unwrap();
        assert!(status == 200 && !page.contains("<script>alert"), "{status}");
        for line in sidecar.logs().lines() {
            assert!(!line.starts_with("pgtrickle_up") && !line.contains('\u{1b}'), "a line of its own: {line:?}");
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
