//! Objects of stream tables that are changed or dropped behind our back: the stream table says so, the others go on.

use super::bad_input::{live, refused, settled, value, wait_value};
use crate::harness::oracle::assert_equal;
use crate::harness::{SOON, for_each_major};

const TWO: &str = "
    create table src (id int primary key, v int);
    create table other (id int primary key, v int);
    insert into src values (1, 1); insert into other values (1, 1);";

const CREATE: &str = "select pgtrickle.create_stream_table('t', 'select id, v from src');";

/// Of one stream table: status and the message about it.
fn told(name: &str) -> String {
    format!(
        "select concat_ws('|', status, last_error_message) from pgtrickle.pgt_status() where name = 'app.{name}'"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_a_stream_table_is_dropped_only_with_cascade_and_then_the_stream_table_says_so() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let app = db.as_app().await;
        app.batch_execute(TWO).await.unwrap();
        app.batch_execute(CREATE).await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('u', 'select id, v from other')").await.unwrap();
        let kept = refused(&app, "drop table src").await;
        assert_eq!((kept.state.as_str(), kept.hint.contains("CASCADE")), ("2BP01", true), "{}", kept.message);
        let kept = refused(&app, "alter table src drop column v").await;
        assert_eq!(kept.state, "2BP01");
        app.batch_execute("drop table src cascade").await.unwrap();
        wait_value(&app, &format!("select ({}) like 'ERROR|%defining query was dropped%' or ({}) like 'SUSPENDED|%defining query was dropped%'", told("t"), told("t")), "true").await;
        app.batch_execute("insert into other values (2, 2)").await.unwrap();
        app.batch_execute("select pgtrickle.refresh_stream_table('u')").await.unwrap();
        assert_equal(&app, "select id, v from other", "u", "id, v").await;
        app.batch_execute("select pgtrickle.drop_stream_table('t')").await.unwrap();
        assert_eq!(value(&app, "select count(*) from pgtrickle.pgt_status() where name = 'app.t'").await, "0");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_storage_table_is_an_error_of_that_stream_table_alone_and_is_cleaned_up_by_drop() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let app = db.as_app().await;
        app.batch_execute(TWO).await.unwrap();
        app.batch_execute(CREATE).await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('u', 'select id, v from src')")
            .await
            .unwrap();
        app.batch_execute("drop table t; insert into src values (2, 2)").await.unwrap();
        wait_value(
            &app,
            &format!("select ({}) like 'ERROR|%was dropped%drop_stream_table%'", told("t")),
            "true",
        )
        .await;
        app.batch_execute("select pgtrickle.refresh_stream_table('u')").await.unwrap();
        assert_equal(&app, "select id, v from src", "u", "id, v").await;
        let again = refused(&app, CREATE).await;
        assert_eq!(
            (again.state.as_str(), again.hint.contains("drop_stream_table")),
            ("42P07", true),
            "{}",
            again.message
        );
        let gone = refused(&app, "select pgtrickle.resume_stream_table('t')").await;
        assert!(!gone.hint.is_empty(), "{} {}", gone.state, gone.message);
        app.batch_execute("select pgtrickle.refresh_stream_table('t')").await.unwrap();
        let skipped = "select status || ' ' || sqlstate from pgtrickle.get_refresh_history('t', 1)";
        assert_eq!(value(&app, skipped).await, "SKIPPED 42P01");
        // A dump keeps the number of a table that is gone; in another cluster that may be anybody's table.
        let dba = db.as_dba().await;
        let stray = "begin; update pgtrickle.pgt_stream_tables set pgt_relid = 'app.src'::regclass where pgt_name = 't';
            select pgtrickle.drop_stream_table('app.t'); commit";
        dba.batch_execute(stray).await.unwrap();
        assert_eq!(value(&app, "select count(*)::text from src").await, "2", "a table of the application is left alone");
        app.batch_execute(CREATE).await.unwrap();
        app.batch_execute("insert into src values (3, 3)").await.unwrap();
        app.batch_execute("select pgtrickle.refresh_stream_table('t')").await.unwrap();
        assert_equal(&app, "select id, v from src", "t", "id, v").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_view_of_the_query_is_an_error_of_that_stream_table_alone() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let app = db.as_app().await;
        app.batch_execute(TWO).await.unwrap();
        app.batch_execute(CREATE).await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('u', 'select id, v from src')")
            .await
            .unwrap();
        let view =
            value(&app, "select query_view from pgtrickle.stream_tables_info where pgt_name = 't'").await;
        app.batch_execute(&format!("drop view {view} cascade; insert into src values (2, 2)")).await.unwrap();
        wait_value(
            &app,
            &format!("select ({}) ~ '^(ERROR|SUSPENDED).*defining query was dropped'", told("t")),
            "true",
        )
        .await;
        app.batch_execute("select pgtrickle.refresh_stream_table('u')").await.unwrap();
        assert_equal(&app, "select id, v from src", "u", "id, v").await;
        app.batch_execute("select pgtrickle.refresh_stream_table('t')").await.unwrap();
        let skipped = "select status from pgtrickle.get_refresh_history('t', 1)";
        assert_eq!(value(&app, skipped).await, "SKIPPED");
        app.batch_execute("select pgtrickle.drop_stream_table('t')").await.unwrap();
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_table_that_was_dropped_just_before_the_end_does_not_keep_the_sidecar_from_starting() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(TWO).await.unwrap();
        app.batch_execute(CREATE).await.unwrap();
        let published = "select coalesce(string_agg(tablename, ','), '') from pg_publication_tables";
        settled(&dba).await;
        assert_eq!(value(&dba, published).await, "src");
        // It is stopped at any moment, also in a transaction that has what it drops locked.
        app.batch_execute("set lock_timeout = '1s'").await.unwrap();
        loop {
            sidecar.pause();
            match app.batch_execute("select pgtrickle.drop_stream_table('t')").await {
                Ok(()) => break,
                Err(e) => assert_eq!(e.code().map(|c| c.code()), Some("55P03"), "{e:?}"),
            }
            sidecar.resume();
        }
        sidecar.kill9();
        assert_eq!(value(&dba, published).await, "src");
        sidecar.start_again();
        wait_value(&dba, published, "").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
