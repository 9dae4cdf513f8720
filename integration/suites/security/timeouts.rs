//! Settings of the sidecar's role, made for people, must not hurt it.

use super::super::bad_input::{settled, value};
use crate::harness::database::{SIDECAR, TestDatabase};
use crate::harness::oracle::assert_equal;
use crate::harness::servers::each;
use crate::harness::{SOON, Sidecar, own_cluster};

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_and_other_settings_of_the_role_do_not_reach_the_sidecar() {
    each(async |major| {
        // The role is the cluster's: a server of its own.
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let mut settings = vec![
            ("statement_timeout", "10ms"),
            ("lock_timeout", "1ms"),
            ("idle_in_transaction_session_timeout", "10ms"),
            ("idle_session_timeout", "50ms"),
            ("default_transaction_read_only", "on"),
            ("default_transaction_isolation", "serializable"),
            ("default_transaction_deferrable", "on"),
            ("search_path", "nowhere"),
            ("datestyle", "SQL, DMY"),
            ("timezone", "Asia/Tokyo"),
            ("extra_float_digits", "-15"),
            ("bytea_output", "escape"),
            ("intervalstyle", "iso_8601"),
            ("row_security", "off"),
            ("synchronous_commit", "off"),
            ("standard_conforming_strings", "off"),
            ("transform_null_equals", "on"),
            ("quote_all_identifiers", "on"),
            ("check_function_bodies", "off"),
            ("client_encoding", "LATIN1"),
            ("enable_seqscan", "off"),
        ];
        if major >= 17 {
            settings.push(("transaction_timeout", "20ms"));
        }
        for (name, value) in &settings {
            dba.batch_execute(&format!("alter role {SIDECAR} set {name} = '{value}'")).await.unwrap();
        }
        app.batch_execute(
            "create table src (id int primary key, f float8, t timestamptz, b bytea, i interval, s text);
             insert into src select n, n / 3.0, '2024-01-01 00:00+00'::timestamptz + n * interval '1 h', '\\x00ff', n * interval '90 min', 'é\\ö'
               from generate_series(1, 20000) n",
        )
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "wal"]);
        sidecar.wait_ready(SOON).await;
        let query = "select id, f, t, b, i, s, row_number() over (partition by id % 7 order by id) as n from src";
        app.execute("select pgtrickle.create_stream_table('t', $1)", &[&query]).await.unwrap();
        app.execute("select pgtrickle.create_stream_table('w', $1, refresh_mode => 'FULL')", &[&query]).await.unwrap();
        settled(&dba).await;
        for round in 0..3 {
            app.batch_execute(&format!("update src set f = f + 0.1, t = t + interval '1 s' where id % 10 = {round}")).await.unwrap();
            for table in ["t", "w"] {
                app.batch_execute(&format!("select pgtrickle.refresh_stream_table('{table}')")).await.unwrap();
                assert_equal(&app, query, table, "id, f, t, b, i, s, n").await;
            }
        }
        let mode = "select string_agg(refresh_mode, ' ' order by pgt_name) from pgtrickle.pgt_stream_tables";
        assert_eq!(value(&dba, mode).await, "DIFFERENTIAL FULL");
        assert!(!sidecar.logs().contains("starting again"), "{}", sidecar.logs());
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
