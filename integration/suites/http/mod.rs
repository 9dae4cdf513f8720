//! What a running sidecar tells over HTTP: numbers, readiness, and the drift after an accident.

use std::collections::BTreeMap;

pub mod client;

mod access;
mod pages;

use client::{free_port, get};

use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

/// The samples of a scrape by name and labels.
async fn scrape(port: u16) -> Result<BTreeMap<String, f64>, String> {
    let (status, body) = get(port, "/metrics").await?;
    if status != 200 || !body.trim_end().ends_with("# EOF") {
        return Err(format!("{status}: {body}"));
    }
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    Ok(body.lines().filter(|l| !l.starts_with('#')).filter_map(sample).collect())
}

/// The only sample of a metric whose labels contain all of `labels`.
fn value(samples: &BTreeMap<String, f64>, name: &str, labels: &[&str]) -> Option<f64> {
    let of = |key: &&String| key.split('{').next() == Some(name) && labels.iter().all(|l| key.contains(l));
    let mut found = samples.keys().filter(of);
    let key = found.next()?;
    assert_eq!(found.next(), None, "several samples of {name} {labels:?}");
    samples.get(key).copied()
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_readiness_and_restore_drift_are_served() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute("create table t (id int primary key, v int); insert into t select i, i from generate_series(1, 9) i")
            .await
            .unwrap();
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let mut sidecar = Sidecar::start(&db, &["--http", &address]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('st', 'select id, v from t')").await.unwrap();
        wait_until("the process to be ready", SOON, || async {
            match get(port, "/readyz").await? {
                (200, _) => Ok(()),
                (status, body) => Err(format!("{status} {body}")),
            }
        })
        .await;
        assert_eq!(get(port, "/healthz").await.unwrap(), (200, "ok\n".to_owned()));
        wait_until("the slot and the stream table to be among the numbers", SOON, || async {
            let samples = scrape(port).await?;
            let seen = [
                value(&samples, "pgtrickle_up", &[]),
                value(&samples, "pgtrickle_slot_active", &[]),
                value(&samples, "pgtrickle_cdc_state", &["source=\"app.t\"", "state=\"wal\""]),
                value(&samples, "pgtrickle_stream_table_state", &["\"app.st\"", "state=\"ACTIVE\""]),
                value(&samples, "pgtrickle_fallback_ready", &["source=\"app.t\""]),
            ];
            if seen == [Some(1.0); 5] { Ok(()) } else { Err(format!("{seen:?} of {samples:?}")) }
        })
        .await;
        // While nobody captures, two rows change; the slot is lost.
        sidecar.kill9();
        let dba = db.as_dba().await;
        wait_until("the slot to be free and dropped", SOON, || async {
            let drop = "select pg_drop_replication_slot(slot_name) from pgtrickle.pgt_pipelines";
            dba.batch_execute(drop).await.map_err(|e| format!("{e:?}"))
        })
        .await;
        app.batch_execute("delete from t where id = 1; update t set v = 0 where id = 2").await.unwrap();
        sidecar.start_again();
        wait_until("the drift to be counted", SOON, || async {
            let samples = scrape(port).await?;
            let drift = |operation: &str| {
                let labels = ["source=\"app.t\"", "diagnosis=\"SLOT_MISSING\"", operation];
                value(&samples, "pgtrickle_restore_drift_rows_total", &labels)
            };
            let seen = [drift("\"insert\""), drift("\"update\""), drift("\"delete\"")];
            let open = value(&samples, "pgtrickle_incidents_open", &["\"app.t\""]);
            let all = (seen, open);
            if all == ([Some(0.0), Some(1.0), Some(1.0)], Some(0.0)) { Ok(()) } else { Err(format!("{all:?}")) }
        })
        .await;
        let (status, body) = get(port, "/api/v1/pipelines").await.unwrap();
        let pipelines: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 200);
        assert_eq!(pipelines["pipelines"][0]["sample"]["incidents"][0]["diagnosis"], "SLOT_MISSING");
        // Detached it is not ready, and says why; nobody stays connected.
        app.batch_execute("select 1").await.unwrap();
        dba.batch_execute("select pgtrickle.detach()").await.unwrap();
        wait_until("the process not to be ready", SOON, || async {
            match get(port, "/readyz").await? {
                (503, body) if body.contains("detached") => Ok(()),
                (status, body) => Err(format!("{status} {body}")),
            }
        })
        .await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_refused_only_where_it_was_asked_for() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let output = crate::harness::database::pgtrickle(&[
            "run",
            "--http",
            &address,
            "--database-url",
            &db.url(crate::harness::database::SIDECAR),
        ]);
        let said = crate::harness::database::printed(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("cannot serve HTTP") && said.contains("--http"), "{said}");
    })
    .await;
}
