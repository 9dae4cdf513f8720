//! Pipelines by name: beside each other and over each other, stream tables that move between them, and spares.

mod beside;
mod commands;
mod moving;
mod spare;

use std::time::Duration;

use tokio_postgres::Client;

use super::bad_input::value;
use crate::harness::oracle::difference;
use crate::harness::{SOON, Server, Sidecar, TestDatabase, wait_until};

/// Longest wait for what needs a start of a sidecar on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A stream table: name, query, its columns.
type Table = (&'static str, &'static str, &'static str);

/// A database with the pipelines `main` and `b`, each with its sidecar.
struct Scene {
    db: TestDatabase,
    app: Client,
    dba: Client,
    main: Sidecar,
    b: Sidecar,
}

impl Scene {
    async fn set(server: &'static Server, tables: &str) -> Scene {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        dba.batch_execute("select pgtrickle.create_pipeline('b')").await.unwrap();
        app.batch_execute(tables).await.unwrap();
        let (mut main, mut b) = (Sidecar::start(&db, &[]), Sidecar::start(&db, &["--pipeline", "b"]));
        main.wait_ready(SOON).await;
        b.wait_ready(SOON).await;
        Scene { db, app, dba, main, b }
    }

    async fn create(&self, pipeline: &str, (name, query, _): &Table) {
        const SQL: &str = "select pgtrickle.create_stream_table($1, $2, pipeline => $3)";
        self.app.execute(SQL, &[name, query, &pipeline]).await.unwrap();
    }

    /// Waits until every stream table is live in its pipeline.
    async fn live(&self) {
        live(&self.dba).await;
    }

    /// What `wait_for` promises: everything that was committed before is in, wherever it goes through.
    async fn equal(&self, tables: &[Table]) {
        let passed: bool =
            self.app.query_one("select pgtrickle.wait_for(timeout => '90 s')", &[]).await.unwrap().get(0);
        assert!(passed, "the pipelines did not catch up");
        for (name, query, columns) in tables {
            let rows = difference(&self.app, query, name, columns).await.expect("both sides can be read");
            assert!(
                rows.is_empty(),
                "{name} differs in {} rows: {:?}",
                rows.len(),
                &rows[..rows.len().min(5)]
            );
        }
    }
}

async fn live(client: &Client) {
    wait_until("every stream table to be live", PATIENCE, || async {
        let sql = "select string_agg(concat_ws(' ', pgt_name, pipeline, moving_from, status, refresh_mode, last_error_message), ', ')
            from pgtrickle.pgt_stream_tables where status <> 'ACTIVE' or moving_from is not null";
        match value(client, sql).await {
            none if none.is_empty() => Ok(()),
            others => Err(others),
        }
    })
    .await;
}

/// Waits until a line of a log holds the words.
async fn says(sidecar: &Sidecar, words: &str) {
    wait_until(&format!("the log to say {words:?}"), PATIENCE, || async {
        let log = sidecar.logs();
        if log.contains(words) { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
    })
    .await;
}
