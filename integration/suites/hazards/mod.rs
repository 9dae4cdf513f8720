//! Attacks on the design that worked on real servers: each test fails when its correction is missing.
//!
//! The table in docs/hazards.md says what each hazard is and where those come that need later parts.

mod blocked;
mod crash;
mod images;
mod keys;
mod loading;
mod rights;
mod sources;
mod standbys;
mod stream;
mod writers;

use tokio_postgres::{Client, Error};

use crate::harness::database::TestDatabase;
use crate::harness::oracle::difference_of_text;
use crate::harness::servers::Server;
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};

/// A database with a running sidecar. The sidecar ends before the database goes.
pub(super) struct Scene {
    pub(super) sidecar: Sidecar,
    pub(super) app: Client,
    pub(super) dba: Client,
    pub(super) db: TestDatabase,
}

impl Scene {
    /// Runs `setup` as the application, then starts the sidecar.
    pub(super) async fn start(server: &Server, setup: &str) -> Scene {
        Self::start_with(server, setup, &[]).await
    }

    /// As [`Scene::start`] with arguments for the sidecar.
    pub(super) async fn start_with(server: &Server, setup: &str, arguments: &[&str]) -> Scene {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(setup).await.unwrap();
        let mut sidecar = Sidecar::start(&db, arguments);
        sidecar.wait_ready(SOON).await;
        Scene { sidecar, app, dba, db }
    }

    /// Runs statements as the application.
    pub(super) async fn run(&self, sql: &str) {
        self.app.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Creates a stream table and waits until it is kept incrementally.
    pub(super) async fn create(&self, name: &str, query: &str) {
        self.app.execute("select pgtrickle.create_stream_table($1, $2)", &[&name, &query]).await.unwrap();
        self.wait_status(name, "ACTIVE DIFFERENTIAL").await;
    }

    /// `ACTIVE DIFFERENTIAL` and the like.
    pub(super) async fn status(&self, name: &str) -> String {
        const SQL: &str =
            "select status || ' ' || refresh_mode from pgtrickle.stream_tables_info where pgt_name = $1";
        self.dba.query_one(SQL, &[&name]).await.unwrap().get(0)
    }

    /// One column of `pgt_stream_tables` as text.
    pub(super) async fn column(&self, name: &str, column: &str) -> Option<String> {
        let sql = format!("select {column}::text from pgtrickle.pgt_stream_tables where pgt_name = $1");
        self.dba.query_one(&sql, &[&name]).await.unwrap().get(0)
    }

    pub(super) async fn wait_status(&self, name: &str, wanted: &str) {
        wait_until(&format!("{name} to be {wanted}"), SOON, || async {
            let status = self.status(name).await;
            let error = self.column(name, "last_error_message").await;
            if status.starts_with(wanted) { Ok(()) } else { Err(format!("{status} ({error:?})")) }
        })
        .await;
    }

    /// Waits until everything committed so far is in, then compares stream tables with their queries, byte by byte.
    pub(super) async fn check(&self, names: &[&str]) {
        self.passed().await;
        for name in names {
            let rows = self.differs(name).await;
            assert!(rows.is_empty(), "{name} differs from its query:\n  {}", rows.join("\n  "));
            assert_eq!(self.status(name).await, "ACTIVE DIFFERENTIAL", "{name}");
        }
    }

    /// As [`Scene::check`], but gives the sidecar time to notice what is not in the stream.
    pub(super) async fn check_in_time(&self, names: &[&str]) {
        for name in names {
            wait_until(&format!("{name} to equal its query"), SOON, || async {
                // It may be noticed only now: then it is prepared anew, and not up to date for a moment.
                let passed = self.app.query_one("select pgtrickle.wait_for(timeout => '5 s')", &[]).await;
                let passed: bool = passed.map_err(|e| e.to_string())?.get(0);
                if !passed {
                    return Err("the frontier did not pass".to_owned());
                }
                let rows = self.differs(name).await;
                let status = self.status(name).await;
                let right = rows.is_empty() && status == "ACTIVE DIFFERENTIAL";
                if right { Ok(()) } else { Err(format!("{status}: {}", rows.join(", "))) }
            })
            .await;
        }
    }

    pub(super) async fn passed(&self) {
        let passed: bool =
            self.app.query_one("select pgtrickle.wait_for(timeout => '90 s')", &[]).await.unwrap().get(0);
        assert!(passed, "the frontier did not pass in time");
    }

    pub(super) async fn differs(&self, name: &str) -> Vec<String> {
        let view = self.column(name, "query_view").await.unwrap();
        let table = self.column(name, "pgt_relid").await.unwrap();
        const COLUMNS: &str =
            "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
            where attrelid = $1::text::regclass and attnum > 0 and not attisdropped";
        let columns: String = self.dba.query_one(COLUMNS, &[&view]).await.unwrap().get(0);
        difference_of_text(&self.dba, &format!("select * from {view}"), &table, &columns).await.unwrap()
    }

    /// Waits until a session of the sidecar for `purpose` waits for a lock.
    pub(super) async fn wait_blocked(&self, purpose: &str) {
        let name = format!("pgtrickle:main:{purpose}");
        const SQL: &str = "select count(*) from pg_stat_activity
            where application_name = $1 and datname = current_database() and wait_event_type = 'Lock'";
        wait_until(&format!("{name} to wait for a lock"), SOON, || async {
            let count: i64 = self.dba.query_one(SQL, &[&name]).await.unwrap().get(0);
            if count > 0 { Ok(()) } else { Err("it does not".to_owned()) }
        })
        .await;
    }

    /// How often the sidecar has taken the pipeline over.
    pub(super) async fn generation(&self) -> i64 {
        self.dba.query_one("select generation from pgtrickle.pgt_pipelines", &[]).await.unwrap().get(0)
    }
}

/// SQLSTATE of a failure; empty if there was none.
pub(super) fn sqlstate<T>(outcome: Result<T, Error>) -> String {
    outcome.err().and_then(|e| e.code().map(|c| c.code().to_owned())).unwrap_or_default()
}
