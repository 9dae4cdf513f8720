//! Spans at a collector (cargo feature `otel`): a server that takes OTLP over HTTP and reads it with OpenTelemetry's own
//! definitions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::bad_input::settled;
use crate::harness::database::SIDECAR;
use crate::harness::{SOON, TestDatabase, for_each_major, wait_until};

/// What has come: spans, the name of the service, the header of the settings.
#[derive(Default)]
struct Seen {
    spans: Vec<Span>,
    services: Vec<String>,
    keys: Vec<String>,
}

/// A collector on a port of its own.
async fn collector() -> (String, Arc<Mutex<Seen>>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let into = seen.clone();
    let take = async move |headers: HeaderMap, body: Bytes| {
        let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
        let mut seen = into.lock().unwrap();
        let key = headers.get("x-key").and_then(|v| v.to_str().ok()).unwrap_or_default();
        seen.keys.push(key.to_owned());
        for resource in request.resource_spans {
            for attribute in resource.resource.into_iter().flat_map(|r| r.attributes) {
                if let ("service.name", Some(Value::StringValue(name))) =
                    (attribute.key.as_str(), attribute.value.and_then(|v| v.value))
                {
                    seen.services.push(name);
                }
            }
            seen.spans.extend(resource.scope_spans.into_iter().flat_map(|s| s.spans));
        }
        StatusCode::OK
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, seen)
}

fn run(db: &TestDatabase, endpoint: &str) -> tokio::process::Child {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_pgtrickle"))
        .args(["run", "--http", "off", "--database-url", &db.url(SIDECAR)])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=of the test")
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
        .kill_on_drop(true)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_arrives_at_a_collector_with_its_parts_in_their_order() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (address, seen) = collector().await;
        let mut sidecar = run(&db, &address);
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute("create table t (id int primary key, what text)").await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('st', 'select id, what from t')")
            .await
            .unwrap();
        settled(&dba).await;
        app.batch_execute("insert into t values (1, 'hush-4711')").await.unwrap();
        app.batch_execute("select pgtrickle.refresh_stream_table('st')").await.unwrap();
        let parts = wait_until("a step that was received, decoded, computed and applied", SOON, || {
            let seen = seen.clone();
            async move {
                let seen = seen.lock().unwrap();
                for step in seen.spans.iter().filter(|s| s.name == "step") {
                    let within = seen.spans.iter().filter(|s| s.parent_span_id == step.span_id);
                    let mut parts: BTreeMap<String, Span> =
                        within.map(|s| (s.name.clone(), s.clone())).collect();
                    if ["receive", "decode", "dataflow", "apply"].iter().all(|p| parts.contains_key(*p)) {
                        parts.insert("step".to_owned(), step.clone());
                        return Ok(parts);
                    }
                }
                Err(seen.spans.iter().map(|s| s.name.clone()).collect::<Vec<_>>().join(" "))
            }
        })
        .await;
        let step = &parts["step"];
        for (name, part) in &parts {
            assert_eq!(part.trace_id, step.trace_id, "{name}");
            let inside = part.start_time_unix_nano >= step.start_time_unix_nano
                && part.end_time_unix_nano <= step.end_time_unix_nano
                && part.start_time_unix_nano <= part.end_time_unix_nano;
            assert!(inside, "{name}: {part:?} outside of {step:?}");
            let long = (part.end_time_unix_nano - part.start_time_unix_nano) as f64 / 1e6;
            println!("  {name}: {long:.2} ms");
        }
        assert!(parts["receive"].end_time_unix_nano <= parts["dataflow"].start_time_unix_nano + 1_000_000);
        assert!(parts["dataflow"].end_time_unix_nano <= parts["apply"].start_time_unix_nano);
        assert!(parts["decode"].attributes.iter().any(|a| a.key == "busy_ns"), "{:?}", parts["decode"]);
        {
            let seen = seen.lock().unwrap();
            assert!(
                seen.services.iter().all(|s| s == "pgtrickle") && !seen.services.is_empty(),
                "{:?}",
                seen.services
            );
            assert!(seen.keys.iter().all(|k| k == "of the test"), "{:?}", seen.keys);
            assert!(!format!("{:?}", seen.spans).contains("hush"), "a span holds a value");
        }
        // What is left is sent at the end, which does not take long.
        let before = seen.lock().unwrap().spans.len();
        app.batch_execute("insert into t values (2, 'x')").await.unwrap();
        app.batch_execute("select pgtrickle.refresh_stream_table('st')").await.unwrap();
        crate::harness::sidecar::signal(sidecar.id().unwrap(), "TERM");
        let ended = tokio::time::timeout(SOON, sidecar.wait()).await.expect("it ends").unwrap();
        assert_eq!(ended.code(), Some(0));
        assert!(seen.lock().unwrap().spans.len() > before);
        // A collector that is away harms nothing.
        let mut sidecar = run(&db, "http://127.0.0.1:9");
        app.batch_execute("insert into t values (3, 'y')").await.unwrap();
        wait_until("the row without a collector", SOON, || async {
            let row = app.query_one("select count(*) from st", &[]).await.unwrap();
            if row.get::<_, i64>(0) == 3 { Ok(()) } else { Err(row.get::<_, i64>(0).to_string()) }
        })
        .await;
        crate::harness::sidecar::signal(sidecar.id().unwrap(), "TERM");
        let ended = tokio::time::timeout(SOON, sidecar.wait()).await.expect("it ends").unwrap();
        assert_eq!(ended.code(), Some(0));
        // What can't be used is refused at the start.
        let refused = run(&db, "https://collector.example").wait_with_output().await.unwrap();
        // It is the sidecar's affair: other commands work.
        let other = std::process::Command::new(env!("CARGO_BIN_EXE_pgtrickle"))
            .args(["status", "--database-url", &db.url(SIDECAR)])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example")
            .output()
            .unwrap();
        assert!(other.status.success(), "{other:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains("plain HTTP"), "{said}");
    })
    .await;
}
