//! Pages and JSON: that they say the same, what they never say, and what bad requests get.

use serde_json::Value;

use super::access::answers;
use super::client::{Answer, ask, events, free_port};
use crate::harness::database::SIDECAR;
use crate::harness::servers::each;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, own_cluster, wait_until};
use pgtrickle::postgres::cluster::StopMode;

const PAGES: [&str; 8] = [
    "/",
    "/tables",
    "/graph",
    "/recovery",
    "/manual",
    "/manual/runbook",
    "/tables/app.st",
    "/api/v1/overview",
];

async fn page(port: u16, path: &str) -> Answer {
    ask(port, "GET", path, &[], "").await.unwrap()
}

async fn json(port: u16, path: &str) -> Value {
    let answer = page(port, path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.json()
}

/// Waits until the list of stream tables shows one in a status.
async fn shows(port: u16, name: &str, status: &str) {
    wait_until(&format!("{name} to be shown as {status}"), SOON, || async {
        let rows = json(port, "/api/v1/stream_tables").await["stream_tables"].clone();
        let found = rows.as_array().into_iter().flatten().any(|r| r["name"] == name && r["status"] == status);
        if found { Ok(()) } else { Err(rows.to_string()) }
    })
    .await;
}

/// Every key of `wanted` is in the object.
fn has(object: &Value, wanted: &str) {
    for key in wanted.split_whitespace() {
        assert!(object.get(key).is_some(), "{key} is missing in {object}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_says_as_json_what_it_says_as_html() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute("create table t (id int primary key, v int); insert into t values (1, 1); create table bag (v int)").await.unwrap();
        let port = free_port();
        let mut sidecar = Sidecar::start(&db, &["--http", &format!("127.0.0.1:{port}")]);
        sidecar.wait_ready(SOON).await;
        for sql in [
            "select pgtrickle.create_stream_table('st', 'select id, v from t')",
            "select pgtrickle.create_stream_table('over', 'select count(*) as n from st')",
            "select pgtrickle.create_stream_table('late', 'select id, now() as at from t', schedule => '1h')",
            // Without a key it is not published: triggers.
            "select pgtrickle.create_stream_table('bags', 'select v from bag')",
        ] {
            app.batch_execute(sql).await.unwrap();
        }
        shows(port, "app.over", "ACTIVE").await;
        shows(port, "app.late", "ACTIVE").await;
        shows(port, "app.bags", "ACTIVE").await;
        let all = json(port, "/?format=json").await;
        has(&all, "severity generated_at pipelines slots");
        let pipeline = &all["pipelines"][0];
        has(pipeline, "database pipeline severity server_version sidecar_alive generation delivery freshness_seconds");
        has(pipeline, "applied_lag_bytes wal_bytes_per_second counts ladder findings sampled_at open_incidents");
        assert_eq!(pipeline["counts"]["stream_tables"], 4);
        assert_eq!(pipeline["counts"]["full"], 1);
        let slot = all["slots"].as_array().unwrap().iter().find(|s| s["database"] == db.name.as_str()).unwrap();
        has(slot, "name ours severity active pid wal_status retained_bytes confirmed_flush_lag_bytes headroom_bytes");
        has(slot, "growth_bytes_per_second critical_in_seconds feedback_age_seconds inactive_since invalidation_reason");
        assert_eq!((&slot["ours"], &slot["active"]), (&Value::Bool(true), &Value::Bool(true)));
        // Without max_slot_wal_keep_size there is no headroom: unknown, not zero.
        assert!(slot["headroom_bytes"].is_null(), "{slot}");
        wait_until("every position to be known", SOON, || async {
            let ladder = json(port, "/api/v1/ladder").await["pipelines"][0]["ladder"].clone();
            let names: Vec<&str> = ladder.as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
            assert_eq!(names, ["server", "received", "decoded", "applied", "acknowledged"]);
            let known = ladder.as_array().unwrap().iter().all(|p| p["lsn"].is_string() && p["behind_bytes"].is_i64());
            if known { Ok(()) } else { Err(ladder.to_string()) }
        })
        .await;
        let table = json(port, "/api/v1/stream_tables/app.st").await;
        has(&table, "name status mode freshness_seconds rows_per_second state_bytes consecutive_errors detail");
        let detail = &table["detail"];
        assert!(detail["query"].as_str().unwrap().contains("from t"), "{detail}");
        assert!(detail["plan"].as_str().unwrap().contains("app.t"), "{detail}");
        assert_eq!(detail["read_by"][0], "app.over");
        assert_eq!(detail["reads"][0]["name"], "app.t");
        assert!(!detail["refreshes"].as_array().unwrap().is_empty(), "{detail}");
        let late = json(port, "/tables/app.late?format=json").await;
        assert!(late["reason"].as_str().unwrap().contains("now"), "{late}");
        let graph = json(port, "/api/v1/graph").await["pipelines"][0].clone();
        assert_eq!(graph["edges"].as_array().unwrap().len(), 4, "{graph}");
        captured_ways(port).await;
        has(&json(port, "/api/v1/recoveries").await, "recoveries reconciles errors");
        has(&json(port, "/api/v1/findings").await, "severity pipelines");
        wait_until("two points of the history", SOON, || async {
            let points = json(port, "/api/v1/history?measure=retained_bytes").await["points"].clone();
            if points.as_array().is_some_and(|p| p.len() > 1) { Ok(()) } else { Err(points.to_string()) }
        })
        .await;
        let html = page(port, "/tables").await.body;
        for words in ["app.st", "app.over", "app.late", "incremental", "Why not incremental", "full, 1h"] {
            assert!(html.contains(words), "{words} is not on the page");
        }
        assert!(page(port, "/tables?q=OVER").await.body.contains("1 of 4"));
        for path in PAGES {
            let answer = page(port, path).await;
            assert_eq!(answer.status, 200, "{path}");
            let policy = answer.header("content-security-policy");
            assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
            assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
            assert_eq!(answer.header("cache-control"), "no-store", "{path}");
            let inline = [" style=", "<style", "onclick", "javascript:", "http://", "<script>"];
            let html = answer.body.split("<pre").next().unwrap();
            let found: Vec<_> = inline.iter().filter(|w| !path.starts_with("/manual/") && html.contains(**w)).collect();
            assert!(found.is_empty(), "{path} holds {found:?}");
        }
        let told = events(port, |text| text.matches("event: look").count() > 1).await.unwrap();
        assert!(told.contains("text/event-stream") && told.contains("\"severity\":"), "{told}");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// The graph has a source from the WAL and one by triggers, and says how far behind the pipeline is.
async fn captured_ways(port: u16) {
    wait_until("both sources with their way of capture", SOON, || async {
        let graph = json(port, "/api/v1/graph").await["pipelines"][0].clone();
        let is = |name: &str, kind: &str, mode: &str| {
            let nodes = graph["nodes"].as_array().into_iter().flatten();
            nodes.filter(|n| n["name"] == name && n["kind"] == kind && n["mode"] == mode).count() == 1
        };
        let shown = is("app.t", "source", "WAL")
            && is("app.bag", "source", "triggers")
            && is("app.st", "stream_table", "incremental")
            && is("app.late", "stream_table", "full");
        let lag = graph["applied_lag_bytes"].is_i64();
        if shown && lag { Ok(()) } else { Err(graph.to_string()) }
    })
    .await;
    let html = page(port, "/graph").await.body;
    for words in [
        "<text class=\"note\" x=\"16\" y=\"44\">WAL</text>",
        "<text class=\"note\" x=\"16\" y=\"44\">triggers",
        "class=\"edge by-wal\"",
        "class=\"edge by-triggers\"",
    ] {
        assert!(html.contains(words), "{words} is not in {html}");
    }
    // A number with its unit, not the dash of what is unknown.
    let facts = html.split("<p class=\"facts\">").nth(1).and_then(|rest| rest.split("</p>").next()).unwrap();
    let lag = facts.split("<span>").find_map(|span| span.split_once(" behind</span>")).map(|(lag, _)| lag);
    assert!(lag.is_some_and(|l| l.starts_with(|c: char| c.is_ascii_digit()) && l.ends_with('B')), "{facts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_one_clear_answer() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let port = free_port();
        let mut sidecar = Sidecar::start(&db, &["--http", &format!("127.0.0.1:{port}")]);
        sidecar.wait_ready(SOON).await;
        wait_until("a first look", SOON, || async {
            let seen = json(port, "/api/v1/overview").await["pipelines"].as_array().map_or(0, Vec::len);
            if seen == 1 { Ok(()) } else { Err("none yet".to_owned()) }
        })
        .await;
        for (path, status) in [
            ("/none", 404),
            ("/tables/app.none", 404),
            ("/tables/app.none?format=json", 404),
            ("/tables/%00%ff", 400),
            ("/manual/none", 404),
            ("/manual/..%2f..%2fCargo.toml", 404),
            ("/static/none", 404),
            ("/static/icon-none.svg", 404),
            ("/?range=century", 400),
            ("/tables?sort=none", 400),
            ("/api/v1/none", 404),
            ("/api/v1/history", 400),
            ("/api/v1/history?measure=none", 400),
            ("/api/v1/history?measure=retained_bytes&database=none", 404),
            ("/api/v1/stream_tables/app.none", 404),
        ] {
            let answer = page(port, path).await;
            assert_eq!(answer.status, status, "{path}: {}", answer.body);
            assert!(answer.header("content-security-policy").contains("default-src"), "{path}");
            assert!(!answer.body.is_empty() || path.starts_with("/static"), "{path} says nothing");
        }
        let script = page(port, "/tables?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E").await;
        assert!(!script.body.contains("<script>alert"), "{}", script.body);
        assert_eq!(ask(port, "POST", "/", &[], "").await.unwrap().status, 405);
        let form = [("Content-Type", "application/x-www-form-urlencoded")];
        let theme = ask(port, "POST", "/theme", &form, "theme=dark&back=%2Ftables").await.unwrap();
        assert_eq!((theme.status, theme.header("location")), (303, "/tables"));
        assert!(theme.header("set-cookie").starts_with("pgtrickle_theme=dark;"), "{theme:?}");
        let away =
            ask(port, "POST", "/theme", &form, "theme=dark&back=https%3A%2F%2Fevil.example").await.unwrap();
        assert_eq!(away.header("location"), "/");
        let dark = ask(port, "GET", "/", &[("Cookie", "a=b; pgtrickle_theme=dark")], "").await.unwrap();
        assert!(dark.body.contains("data-theme=\"dark\""));
        let asset = page(port, "/static/app.css").await;
        assert!(
            asset.header("cache-control").contains("immutable")
                && asset.header("content-type").starts_with("text/css")
        );
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_quotes_a_row_also_when_an_error_does_and_queries_can_be_hidden() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        let table = "create table t (id int primary key, v text); insert into t values (1, '7')";
        app.batch_execute(table).await.unwrap();
        let port = free_port();
        let flags = ["--http", &format!("127.0.0.1:{port}"), "--http-queries", "off"];
        let mut sidecar = Sidecar::start(&db, &flags);
        sidecar.wait_ready(SOON).await;
        let create = "select pgtrickle.create_stream_table('st', 'select id, v::int * 4711 as w from t')";
        app.batch_execute(create).await.unwrap();
        shows(port, "app.st", "ACTIVE").await;
        app.batch_execute("insert into t values (2, 'topsecret')").await.unwrap();
        wait_until("the failure to be shown", SOON, || async {
            let row = json(port, "/api/v1/stream_tables").await["stream_tables"][0].clone();
            if row["sqlstate"] == "22P02" { Ok(()) } else { Err(row.to_string()) }
        })
        .await;
        let message = "select last_error_message from pgtrickle.stream_tables_info";
        let owner: String = app.query_one(message, &[]).await.unwrap().get(0);
        assert!(owner.contains("topsecret"), "the owner's message is whole: {owner}");
        let more = [
            "/api/v1/pipelines",
            "/api/v1/stream_tables/app.st",
            "/api/v1/findings",
            "/api/v1/recoveries",
            "/metrics",
        ];
        for path in PAGES.iter().chain(&more) {
            let body = page(port, path).await.body;
            assert!(!body.contains("topsecret"), "{path} quotes a row: {body}");
            assert!(!body.contains("4711"), "{path} shows the query: {body}");
        }
        let shown = page(port, "/tables/app.st").await.body;
        assert!(shown.contains("22P02") && shown.contains("http_queries"), "{shown}");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pipelines_are_told_apart_and_a_server_that_is_away_leaves_what_was_seen() {
    each(async |major| {
        let mut server = own_cluster(major, &[]).await;
        let mut databases = Vec::new();
        for _ in 0..2 {
            let db = TestDatabase::create(&server).await;
            db.install();
            let app = db.as_app().await;
            app.batch_execute("create table t (id int primary key); insert into t values (1)").await.unwrap();
            databases.push((db, app));
        }
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let url = server.cluster.conninfo("postgres", SIDECAR);
        let mut sidecar = Sidecar::start_with_url(&url, &["--all-databases", "--http", &address]);
        answers(port).await;
        for (db, app) in &databases {
            wait_until("the database to be served", SOON, || async {
                let alive = app.query_one("select pgtrickle.sidecar_alive('main')", &[]).await.unwrap();
                if alive.get(0) { Ok(()) } else { Err(db.name.clone()) }
            })
            .await;
            app.batch_execute("select pgtrickle.create_stream_table('st', 'select id from t')")
                .await
                .unwrap();
        }
        wait_until("both to be shown", SOON, || async {
            let rows = json(port, "/api/v1/stream_tables").await["stream_tables"].clone();
            let active = rows.as_array().into_iter().flatten().filter(|r| r["status"] == "ACTIVE").count();
            if active == 2 { Ok(()) } else { Err(rows.to_string()) }
        })
        .await;
        assert_eq!(page(port, "/tables/app.st").await.status, 300);
        assert_eq!(page(port, "/api/v1/stream_tables/app.st").await.status, 300);
        for (db, _) in &databases {
            let place = format!("?database={}&pipeline=main", db.name);
            let answer = page(port, &format!("/tables/app.st{place}")).await;
            assert_eq!(answer.status, 200);
            let table = json(port, &format!("/api/v1/stream_tables/app.st{place}")).await;
            assert_eq!(table["database"], db.name.as_str());
        }
        let slots = json(port, "/api/v1/slots").await["slots"].clone();
        assert_eq!(slots.as_array().unwrap().len(), 2, "each slot once: {slots}");
        let before = json(port, "/api/v1/overview").await["pipelines"][0]["applied_lag_bytes"].clone();
        assert!(before.is_i64(), "{before}");
        server.cluster.stop(StopMode::Immediate).unwrap();
        wait_until("the server's absence to be shown", SOON, || async {
            let seen = json(port, "/api/v1/overview").await;
            let pipeline = &seen["pipelines"][0];
            let away = seen["severity"] == "critical" && pipeline["error"].is_string();
            if away && pipeline["applied_lag_bytes"].is_i64() { Ok(()) } else { Err(pipeline.to_string()) }
        })
        .await;
        let html = page(port, "/").await.body;
        assert!(html.contains("cannot be looked at") && html.contains("nothing newer is known"), "{html}");
        assert!(json(port, "/api/v1/recoveries").await["errors"].as_array().unwrap().len() == 2);
        sidecar.kill9();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_ours_that_nobody_reads_is_shown_with_advice_and_its_section_of_the_runbook() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let dba = db.as_dba().await;
        dba.batch_execute("select pgtrickle.create_pipeline('aside')").await.unwrap();
        let port = free_port();
        let mut sidecar = Sidecar::start(&db, &["--http", &format!("127.0.0.1:{port}")]);
        let mut other = Sidecar::start(&db, &["--pipeline", "aside", "--http", "off"]);
        sidecar.wait_ready(SOON).await;
        other.wait_ready(SOON).await;
        let slot = "select slot_name from pgtrickle.pgt_pipelines where pipeline = 'aside'";
        let slot: String = dba.query_one(slot, &[]).await.unwrap().get(0);
        let card = async || {
            let html = page(port, "/").await.body;
            let card = html.split(&format!("aria-label=\"Slot {slot}\"")).nth(1).map(str::to_owned);
            card.and_then(|rest| rest.split("</article>").next().map(str::to_owned)).ok_or(html)
        };
        wait_until("the other slot with a reader", SOON, || async {
            let card = card().await?;
            if card.contains("active, pid") && !card.contains("class=\"advice\"") {
                Ok(())
            } else {
                Err(card)
            }
        })
        .await;
        other.kill9();
        wait_until("the advice about the other slot", SOON, || async {
            let card = card().await?;
            let told = card.contains("<p class=\"advice\">Nobody streams from it, and it keeps WAL.")
                && card.contains("<a href=\"/manual/runbook#slot_inactive\">What to do");
            if told { Ok(()) } else { Err(card) }
        })
        .await;
        assert!(page(port, "/manual/runbook").await.body.contains("id=\"slot_inactive\""));
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
