//! `monitoring/`: the metrics that rules, dashboard and page name exist, and the rules fire when what they are about happens.
//!
//! Parts that need Prometheus (Debian's package `prometheus`) run where `PGTRICKLE_PROMETHEUS=1` is set, and say so elsewhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::hazards::Scene;
use super::snapshots::value;
use crate::harness::cluster::{Members, PATIENCE};
use crate::harness::database::{connect, printed};
use crate::harness::servers::{SUPERUSER, Server, each, own_cluster};
use crate::harness::{SOON, Sidecar, for_each_major, wait_until};

const RULES: &str = include_str!("../../monitoring/prometheus/rules.yml");
const DASHBOARD: &str = include_str!("../../monitoring/grafana/dashboards/pgtrickle.json");
const PAGE: &str = include_str!("../../docs/monitoring.md");
const RUNBOOK: &str = include_str!("../../docs/runbook.md");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/prometheus")
}

/// Body of a GET.
pub(super) async fn get(port: u16, path: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no body")?;
    if head.contains(" 200 ") { Ok(body.to_owned()) } else { Err(head.to_owned()) }
}

pub(super) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The sum of a metric's lines, whatever their labels are.
pub(super) fn value_of(text: &str, metric: &str) -> f64 {
    let begin = format!("pgtrickle_{metric}{{");
    let lines = text.lines().filter(|line| line.starts_with(&begin));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Words that begin with the prefix of our metrics.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    words.filter(|w| w.starts_with("pgtrickle_")).map(str::to_owned).collect()
}

/// A server on which slots have a limit, with sources of both ways of capture and a FULL stream table.
async fn scene(server: &Server, http: u16) -> Scene {
    let scene = Scene::start_with(
        server,
        "create table t (id int primary key, v int not null); insert into t values (1, 1);
         create table bag (v int); insert into bag values (1)",
        &["--http", &format!("127.0.0.1:{http}")],
    )
    .await;
    scene.create("st", "select id, v from t").await;
    scene.create("sb", "select v from bag").await;
    scene.run("select pgtrickle.create_stream_table('whole', 'select id from t', refresh_mode => 'FULL', schedule => '1h')").await;
    scene.run("insert into t values (2, 2); insert into bag values (2)").await;
    scene.check_in_time(&["st", "sb"]).await;
    scene
}

async fn drop_slot(scene: &Scene) {
    let sql = "select pg_drop_replication_slot(slot_name) from pgtrickle.pgt_pipelines";
    wait_until("the slot to be dropped", SOON, || async {
        scene.dba.batch_execute(sql).await.map_err(|e| e.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_is_named_anywhere_is_in_a_live_scrape() {
    each(async |major| {
        let server = own_cluster(major, &[("max_slot_wal_keep_size", "1GB"), ("wal_level", "logical")]).await;
        let http = free_port();
        let mut scene = scene(&server, http).await;
        // Only who has it sees when the server heard from a stream.
        scene.dba.batch_execute("grant pg_monitor to pgtrickle").await.unwrap();
        // An incident with drift.
        scene.sidecar.kill9();
        drop_slot(&scene).await;
        scene.run("insert into t values (3, 3)").await;
        scene.sidecar.start_again();
        scene.check_in_time(&["st", "sb"]).await;
        scene.run("insert into t values (4, 4)").await;
        scene.run("select pgtrickle.refresh_stream_table('whole')").await;
        let mut wanted = named(RULES);
        wanted.extend(named(DASHBOARD));
        wanted.extend(named(PAGE));
        // A change buffer is there only without a slot; it has a scrape of its own.
        wanted.remove("pgtrickle_trigger_buffer_bytes");
        wait_until("all metrics", SOON, || async {
            let text = get(http, "/metrics").await?;
            let there = named(&text);
            let parts = |name: &&String| {
                ["_bucket", "_sum", "_count"].iter().any(|p| there.contains(&format!("{name}{p}")))
            };
            let missing: Vec<&String> =
                wanted.iter().filter(|name| !there.contains(*name) && !parts(name)).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("missing: {missing:?}")) }
        })
        .await;
        println!("  {} metrics are named and scraped", wanted.len());
        wait_until("the numbers of this life", SOON, || async {
            // Once the slot is back; until then triggers record it.
            scene.run("update t set v = v + 1 where id = 4").await;
            let text = get(http, "/metrics").await?;
            let value = |metric: &str| value_of(&text, metric);
            let wrong = [
                // Both sources of the incremental ones were read again, and the two reconciled.
                (value("hydration_rows_total") < 5.0, "rows that were read"),
                (value("stream_table_refresh_duration_seconds_count") < 3.0, "recomputations and reconciles"),
                (value("transaction_changes_count") != value("transactions_total"), "transactions"),
                (value("transaction_changes_sum") != value("decoded_changes_total"), "their changes"),
                (value("transaction_changes_sum") < 1.0, "a change"),
            ];
            let wrong: Vec<&str> = wrong.iter().filter(|(wrong, _)| *wrong).map(|(_, what)| *what).collect();
            if wrong.is_empty() { Ok(()) } else { Err(format!("{wrong:?}: {text}")) }
        })
        .await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        // By triggers alone.
        let mut sidecar =
            Sidecar::start(&scene.db, &["--cdc-mode", "trigger", "--http", &format!("127.0.0.1:{http}")]);
        sidecar.wait_ready(SOON).await;
        wait_until("the change buffers", SOON, || async {
            let text = get(http, "/metrics").await?;
            if text.contains("pgtrickle_trigger_buffer_bytes{") {
                Ok(())
            } else {
                Err("not there".to_owned())
            }
        })
        .await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// Names and runbook sections of the rules.
fn rules() -> Vec<(String, String)> {
    let field = |line: &str, name: &str| {
        line.trim().strip_prefix(name).map(|rest| rest.trim().trim_matches('"').to_owned())
    };
    let names = RULES.lines().filter_map(|l| field(l, "- alert:"));
    let sections = RULES.lines().filter_map(|l| field(l, "runbook_url:"));
    names.zip(sections).collect()
}

#[test]
fn every_rule_leads_to_a_section_of_the_runbook_and_has_a_test() {
    let tests = include_str!("../../monitoring/prometheus/rules_test.yml");
    assert!(rules().len() >= 16);
    for (name, url) in rules() {
        let section = url.strip_prefix("docs/runbook.md#").unwrap_or_else(|| panic!("{name}: {url}"));
        assert!(
            RUNBOOK.lines().any(|l| l == format!("## {section}")),
            "{name}: the runbook has no section {section}"
        );
        assert!(
            tests.contains(&format!("name: {name} fires"))
                && tests.contains(&format!("name: {name} stays silent")),
            "{name}"
        );
    }
}

/// What a spare tells of a pipeline is no second line: every expression is an aggregate.
#[test]
fn no_panel_draws_a_line_for_each_replica() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    let targets = panels.iter().flat_map(|p| p["targets"].as_array().cloned().unwrap_or_default());
    let expressions: Vec<String> =
        targets.map(|t| t["expr"].as_str().expect("an expression").to_owned()).collect();
    assert!(expressions.len() >= panels.len());
    for expression in expressions {
        let begins = ["max(", "max by (", "min by (", "sum(", "sum by (", "histogram_quantile("]
            .map(|a| expression.starts_with(a));
        assert!(begins.contains(&true), "{expression}");
    }
}

/// Whether the parts that need Prometheus run.
fn has_prometheus() -> bool {
    let asked = std::env::var_os("PGTRICKLE_PROMETHEUS").is_some_and(|v| v == "1");
    if !asked {
        crate::harness::left_out("set PGTRICKLE_PROMETHEUS=1 where prometheus and promtool are installed");
    }
    asked
}

#[test]
fn promtool_accepts_the_rules_and_each_fires_in_its_case_alone() {
    if !has_prometheus() {
        return;
    }
    for arguments in [
        &["check", "rules", "rules.yml"][..],
        &["check", "config", "prometheus.yml"],
        &["test", "rules", "rules_test.yml"],
    ] {
        let output =
            Command::new("promtool").args(arguments).current_dir(folder()).output().expect("promtool starts");
        assert!(output.status.success(), "promtool {arguments:?}: {}", printed(&output));
    }
}

/// The rules with times and thresholds of a test: seconds for minutes, small amounts for large ones.
fn hurried() -> String {
    let mut text =
        RULES.replace("freshness_seconds > 300", "freshness_seconds > 15").replace("> 5e8", "> 5e4");
    text = text.replace("[15m]", "[90s]").replace("[10m]", "[20s]");
    let line = |line: &str| match line.trim().strip_prefix("for: ") {
        Some(_) => "        for: 1s".to_owned(),
        None => line.to_owned(),
    };
    text.lines().map(|l| format!("{}\n", line(l))).collect()
}

struct Prometheus {
    _process: Sidecar,
    _folder: tempfile::TempDir,
    port: u16,
}

impl Prometheus {
    async fn start(sidecar: u16) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        std::fs::write(folder.path().join("rules.yml"), hurried()).unwrap();
        let config = std::fs::read_to_string(self::folder().join("prometheus.yml")).unwrap();
        let config = config.replace("15s", "1s").replace("127.0.0.1:9642", &format!("127.0.0.1:{sidecar}"));
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let arguments = [
            format!("--config.file={}", folder.path().join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let process = Sidecar::start_program(PathBuf::from("prometheus"), arguments.to_vec());
        wait_until("Prometheus to be ready", SOON, || async { get(port, "/-/ready").await.map(drop) }).await;
        Prometheus { _process: process, _folder: folder, port }
    }

    async fn firing(&self) -> Result<BTreeSet<String>, String> {
        let body = get(self.port, "/api/v1/alerts").await?;
        let answer: Value = serde_json::from_str(&body).map_err(|e| format!("{e}: {body}"))?;
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|a| a["state"] == "firing");
        Ok(firing.filter_map(|a| a["labels"]["alertname"].as_str().map(str::to_owned)).collect())
    }

    async fn fires(&self, alert: &str) {
        wait_until(&format!("{alert} to fire"), SOON, || async {
            let firing = self.firing().await?;
            if firing.contains(alert) { Ok(()) } else { Err(format!("{firing:?}")) }
        })
        .await;
        println!("  {alert} fires");
    }

    async fn ends(&self, alert: &str) {
        wait_until(&format!("{alert} to end"), SOON, || async {
            let firing = self.firing().await?;
            if firing.contains(alert) { Err(format!("{firing:?}")) } else { Ok(()) }
        })
        .await;
    }
}

/// Eleven of the rules, on a real server, sidecar and Prometheus; five more in the next two tests.
#[tokio::test(flavor = "multi_thread")]
async fn rules_fire_in_provoked_failures_and_end_with_them() {
    if !has_prometheus() {
        return;
    }
    each(async |major| {
        let limits = [("max_slot_wal_keep_size", "80MB"), ("min_wal_size", "32MB"), ("max_wal_size", "64MB")];
        let server = own_cluster(major, &limits).await;
        let http = free_port();
        let prometheus = Prometheus::start(http).await;
        prometheus.fires("PgtrickleAbsent").await;
        prometheus.fires("PgtrickleDown").await;
        let mut scene = scene(&server, http).await;
        prometheus.ends("PgtrickleDown").await;
        prometheus.ends("PgtrickleAbsent").await;
        // The table without a key; from here on it is there.
        prometheus.fires("PgtrickleCaptureByTriggers").await;
        scene.create("quotients", "select id, 10 / v as q from t").await;
        scene.run("update t set v = 0 where id = 1").await;
        prometheus.fires("PgtrickleStreamTableFailed").await;
        scene.run("update t set v = 1 where id = 1; select pgtrickle.resume_stream_table('quotients')").await;
        prometheus.ends("PgtrickleStreamTableFailed").await;
        // An open transaction holds the slot back.
        scene.dba.batch_execute("insert into pgtrickle.settings values ('slot_lag_warning_threshold_mb', '2'), ('slot_lag_critical_threshold_mb', '20')").await.unwrap();
        let old = connect(&scene.db.url(crate::harness::database::APP)).await;
        old.batch_execute("begin; update t set v = v where id = 1").await.unwrap();
        let noise = "create table if not exists noise (t text); insert into noise select repeat(md5(i::text), 30) from generate_series(1, 3000) i";
        scene.dba.batch_execute(noise).await.unwrap();
        prometheus.fires("PgtrickleSlotRetainsWal").await;
        for _ in 0..8 {
            scene.dba.batch_execute(noise).await.unwrap();
        }
        prometheus.fires("PgtrickleSlotRetainsMuchWal").await;
        let safe = "select coalesce(min(safe_wal_size), 0)::bigint < 14000000 from pg_replication_slots";
        while value(&scene.dba, safe).await == "false" {
            scene.dba.batch_execute(noise).await.unwrap();
        }
        prometheus.fires("PgtrickleSlotHeadroomLow").await;
        old.batch_execute("rollback").await.unwrap();
        drop(old);
        prometheus.ends("PgtrickleSlotRetainsMuchWal").await;
        prometheus.ends("PgtrickleSlotHeadroomLow").await;
        // The stream table's own function holds everybody up.
        scene
            .run("create function slow(v int) returns int language plpgsql immutable as 'begin if v = 77 then perform pg_sleep(40); end if; return v; end'")
            .await;
        scene.create("slowly", "select id, slow(v) as v from t").await;
        scene.run("update t set v = 77 where id = 1").await;
        prometheus.fires("PgtrickleStreamTablesStale").await;
        prometheus.ends("PgtrickleStreamTablesStale").await;
        scene.run("update t set v = 1 where id = 1; select pgtrickle.drop_stream_table('slowly')").await;
        // A pause is planned: nobody is told. Somebody drops the slot meanwhile.
        scene.dba.batch_execute("select pgtrickle.pause(now() + interval '1 hour')").await.unwrap();
        drop_slot(&scene).await;
        prometheus.fires("PgtrickleSlotLost").await;
        assert!(!prometheus.firing().await.unwrap().contains("PgtrickleDown"), "a pause is planned");
        // Nobody may read the source, so the repair stays open.
        let lock = connect(&scene.db.url(SUPERUSER)).await;
        lock.batch_execute("begin; lock table app.t in access exclusive mode").await.unwrap();
        scene.dba.batch_execute("select pgtrickle.unpause()").await.unwrap();
        prometheus.fires("PgtrickleRepairOpen").await;
        drop(lock);
        scene.check_in_time(&["st", "sb"]).await;
        prometheus.ends("PgtrickleRepairOpen").await;
        prometheus.ends("PgtrickleSlotLost").await;
        // Lives that end one after the other.
        let generation = scene.generation().await;
        for n in 1..=5 {
            let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgtrickle:main:control' and datname = current_database()";
            scene.dba.batch_execute(end).await.unwrap();
            wait_until("another life", SOON, || async {
                let now = scene.generation().await;
                if now >= generation + n { Ok(()) } else { Err(now.to_string()) }
            })
            .await;
        }
        prometheus.fires("PgtrickleReconnectLoop").await;
        scene.sidecar.kill9();
        prometheus.fires("PgtrickleDown").await;
    })
    .await;
}

/// A sidecar that holds the pipeline and waits for a further process reads nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_rule_about_a_slot_that_a_serving_sidecar_does_not_read_fires_and_ends() {
    if !has_prometheus() {
        return;
    }
    for_each_major(async |server| {
        let http = free_port();
        let prometheus = Prometheus::start(http).await;
        let mut members = Members::start(2, PATIENCE);
        let mut arguments = members.arguments(0);
        arguments.extend(["--http".to_owned(), format!("127.0.0.1:{http}")]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let table = "create table t (id int primary key, v int not null); insert into t values (1, 1)";
        let mut scene = Scene::start_with(server, table, &arguments).await;
        scene.create("st", "select id, v from t").await;
        prometheus.ends("PgtrickleDown").await;
        members.processes[0].kill9();
        prometheus.fires("PgtrickleSlotInactive").await;
        scene.run("insert into t values (2, 2)").await;
        members.processes[0].start_again();
        prometheus.ends("PgtrickleSlotInactive").await;
        scene.check_in_time(&["st"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// What concerns one stream table or source while the pipeline as a whole is well.
#[tokio::test(flavor = "multi_thread")]
async fn rules_about_one_stream_table_or_source_fire_and_end() {
    if !has_prometheus() {
        return;
    }
    each(async |major| {
        let server = own_cluster(major, &[("max_slot_wal_keep_size", "1GB")]).await;
        let http = free_port();
        let prometheus = Prometheus::start(http).await;
        let mut scene = scene(&server, http).await;
        prometheus.ends("PgtrickleDown").await;
        // Somebody holds one stream table.
        let set = "insert into pgtrickle.settings values ('stale_after', '1 s'), ('hydrate_rate_mb', '1')";
        scene.dba.batch_execute(set).await.unwrap();
        let holder = connect(&scene.db.url(SUPERUSER)).await;
        holder.batch_execute("begin; lock table app.st in access exclusive mode").await.unwrap();
        scene.run("update t set v = v + 1").await;
        prometheus.fires("PgtrickleStreamTableStale").await;
        holder.batch_execute("rollback; delete from pgtrickle.settings where key = 'stale_after'").await.unwrap();
        scene.check_in_time(&["st", "sb"]).await;
        prometheus.ends("PgtrickleStreamTableStale").await;
        // One whose source takes long to be read.
        scene.run("create table large (id int primary key, body text); insert into large select i, repeat('x', 1000) from generate_series(1, 12000) i").await;
        scene.run("select pgtrickle.create_stream_table('loading', 'select id, body from large')").await;
        prometheus.fires("PgtrickleStreamTableLoading").await;
        scene.dba.batch_execute("delete from pgtrickle.settings where key = 'hydrate_rate_mb'").await.unwrap();
        scene.check_in_time(&["loading"]).await;
        prometheus.ends("PgtrickleStreamTableLoading").await;
        assert!(!prometheus.firing().await.unwrap().contains("PgtrickleFallbackNotReady"));
        // As if somebody without rights on the application's tables had installed it.
        scene
            .dba
            .batch_execute(
                "do $$ begin if to_regrole('bystander') is null then create role bystander; end if; end $$;
                 grant pg_read_all_data to bystander;
                 alter function pgtrickle._fallback_obstacle(bigint) owner to bystander",
            )
            .await
            .unwrap();
        scene.run("create table theirs (id int primary key)").await;
        scene.create("of_theirs", "select id from theirs").await;
        prometheus.fires("PgtrickleFallbackNotReady").await;
        scene.dba.batch_execute("alter function pgtrickle._fallback_obstacle(bigint) owner to current_user").await.unwrap();
        scene.run("select pgtrickle.drop_stream_table('of_theirs')").await;
        // Captured by triggers, and nothing can be written: the progress is part of every apply.
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        scene.dba.batch_execute("insert into pgtrickle.settings values ('cdc_mode', 'trigger')").await.unwrap();
        scene.sidecar.start_again();
        scene.run("insert into bag values (9)").await;
        scene.check_in_time(&["sb"]).await;
        holder.batch_execute("begin; select from pgtrickle.pgt_pipelines for update").await.unwrap();
        let writer = connect(&scene.db.url(crate::harness::database::APP)).await;
        wait_until("the buffer to grow past its bound", SOON, || async {
            writer.batch_execute("insert into bag select generate_series(1, 200)").await.map_err(|e| e.to_string())?;
            match prometheus.firing().await?.contains("PgtrickleTriggerBufferGrowing") {
                true => Ok(()),
                false => Err("not firing".to_owned()),
            }
        })
        .await;
        holder.batch_execute("rollback").await.unwrap();
        scene.check_in_time(&["sb", "st", "loading"]).await;
        prometheus.ends("PgtrickleTriggerBufferGrowing").await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
