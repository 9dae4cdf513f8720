//! `pgtrickle create` and its relatives, `verify`, `slots`, `pause`, `healthcheck`, `config check`, `completions`.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::hazards::Scene;
use super::json_shapes::assert_documented;
use super::snapshots::value;
use crate::harness::database::{APP, SIDECAR, pgtrickle, printed};
use crate::harness::servers::SUPERUSER;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

/// Runs the program for a role of a database.
fn ask(db: &TestDatabase, role: &str, arguments: &[&str]) -> Output {
    let url = db.url(role);
    tokio::task::block_in_place(|| pgtrickle(&[arguments, &["--database-url", &url]].concat()))
}

#[track_caller]
fn expect(output: &Output, code: i32, words: &[&str]) {
    let said = printed(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

/// A table for stream tables that commands make.
pub(super) const NINE_ROWS: &str = "create table t (id int primary key, v int not null); insert into t select i, i % 3 from generate_series(1, 9) i";

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", printed(output)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_table_lives_its_whole_life_on_the_command_line() {
    for_each_major(async |server| {
        let scene = Scene::start(server, NINE_ROWS).await;
        let db = &scene.db;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("q.sql");
        std::fs::write(&file, "select v, count(*) as n from t group by v").unwrap();
        // The role's own search_path finds t in its schema, as in psql.
        scene.dba.batch_execute(&format!("alter role {APP} in database {} set search_path = app", db.name)).await.unwrap();
        let created = ask(db, APP, &["create", "counts", "--file", file.to_str().unwrap()]);
        expect(&created, 0, &["app.counts: created, DIFFERENTIAL"]);
        expect(&ask(db, APP, &["create", "counts", "select 1 as one"]), 9, &["42P07", "counts"]);
        expect(&ask(db, APP, &["create", "counts", "select 1 as one", "--if-not-exists"]), 0, &["app.counts"]);
        expect(&ask(db, APP, &["create", "bad", "select nothing from nowhere"]), 9, &["nowhere", "42P01"]);
        expect(&ask(db, APP, &["create", "late", "select id from t", "--schedule", "whenever"]), 9, &["schedule"]);
        // From standard input.
        let url = db.url(APP);
        let mut child = Command::new(env!("CARGO_BIN_EXE_pgtrickle"))
            .args(["create", "piped", "--refresh-mode", "full", "--schedule", "1 h", "--database-url", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"select id from t").unwrap();
        let piped = tokio::task::block_in_place(|| child.wait_with_output().unwrap());
        expect(&piped, 0, &["app.piped: created, FULL"]);
        let alter = |more: &[&str]| ask(db, APP, &[&["alter", "piped"], more].concat());
        expect(&alter(&[]), 2, &["nothing to alter", "hint: "]);
        expect(&alter(&["--query", "select id, v from t"]), 0, &["app.piped: altered, FULL"]);
        assert_eq!(value(&scene.app, "select count(v) from app.piped").await, "9");
        // The bound on its state, alone, with other properties, and taken back.
        let limit = "select coalesce(state_limit_mb, 0) from pgtrickle.pgt_stream_tables where pgt_name = 'piped'";
        expect(&alter(&["--state-limit-mb", "64"]), 0, &["app.piped: altered"]);
        assert_eq!(value(&scene.dba, limit).await, "64");
        expect(&alter(&["--state-limit-mb", "32", "--schedule", "whenever"]), 9, &["schedule"]);
        assert_eq!(value(&scene.dba, limit).await, "64", "all or nothing");
        expect(&alter(&["--state-limit-mb", "0", "--schedule", "2 h"]), 0, &["app.piped: altered"]);
        assert_eq!(value(&scene.dba, limit).await, "0");
        expect(&alter(&["--state-limit-mb", "much"]), 2, &["state-limit-mb"]);
        expect(&ask(db, APP, &["create", "bounded", "select id from t", "--state-limit-mb", "7"]), 0, &["app.bounded: created, DIFFERENTIAL"]);
        assert_eq!(value(&scene.dba, "select state_limit_mb from pgtrickle.pgt_stream_tables where pgt_name = 'bounded'").await, "7");
        expect(&ask(db, APP, &["status"]), 0, &["next", "at each commit"]);
        wait_until("the next refresh to be told", SOON, || async {
            let status = json(&ask(db, APP, &["status", "--json"]));
            let of = |name: &str| {
                let all = status["stream_tables"].as_array().unwrap();
                all.iter().find(|s| s["name"] == name).unwrap()["next_refresh_at"].clone()
            };
            assert!(of("app.counts").is_null(), "{status:#}");
            // With a new schedule the sidecar says it once it has followed.
            let told = of("app.piped").as_str().is_some_and(|at| at.ends_with("+00:00"));
            if told { Ok(()) } else { Err(format!("{status:#}")) }
        })
        .await;
        expect(&ask(db, APP, &["drop", "bounded"]), 0, &["bounded: dropped"]);
        expect(&ask(db, APP, &["create", "piped", "select id from t", "--or-replace"]), 0, &["app.piped"]);
        scene.run("insert into app.t values (10, 7)").await;
        expect(&ask(db, APP, &["refresh", "counts", "piped"]), 0, &["counts: refreshed", "piped: refreshed"]);
        assert_eq!(value(&scene.app, "select count(*) from app.piped").await, "10");
        expect(&ask(db, APP, &["suspend", "counts"]), 0, &["counts: suspended"]);
        let refused = ask(db, APP, &["refresh", "counts"]);
        expect(&refused, 0, &["warning: ", "suspended"]);
        expect(&ask(db, APP, &["resume", "--all"]), 0, &["app.counts: resumed"]);
        scene.wait_status("counts", "ACTIVE").await;
        expect(&ask(db, APP, &["repair", "counts"]), 0, &["app.counts: no difference"]);
        expect(&ask(db, APP, &["refresh"]), 2, &["<NAME>"]);
        // Verify: equal, then wrong rows behind the guard's back.
        let verified = ask(db, APP, &["verify", "--json"]);
        expect(&verified, 0, &[]);
        assert_documented("verify", &json(&verified));
        scene.dba.batch_execute("set session_replication_role = replica; update app.counts set n = n + 1 where v = 7; reset session_replication_role").await.unwrap();
        expect(&ask(db, APP, &["verify", "counts"]), 1, &["DIFFERS"]);
        expect(&ask(db, APP, &["verify", "counts", "piped", "absent"]), 1, &["not compared", "equal"]);
        expect(&ask(db, APP, &["verify", "absent"]), 9, &["absent"]);
        expect(&ask(db, APP, &["repair", "counts"]), 0, &["1 updated"]);
        // What depends on it is named.
        scene.run("create view app.over as select * from app.counts").await;
        expect(&ask(db, APP, &["drop", "counts"]), 9, &["2BP01", "over"]);
        expect(&ask(db, APP, &["drop", "counts", "piped", "--cascade"]), 0, &["counts: dropped", "piped: dropped"]);
        expect(&ask(db, APP, &["verify"]), 0, &["no stream tables"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_and_status_have_the_documented_shapes() {
    for_each_major(async |server| {
        let scene = Scene::start(server, "create table t (id int primary key)").await;
        scene.create("st", "select id from t").await;
        scene.passed().await;
        let slots = ask(&scene.db, APP, &["slots", "--json"]);
        let shape = json(&slots);
        assert_documented("slots", &shape);
        let mine = shape["slots"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["database"] == scene.db.name.as_str())
            .unwrap();
        assert!(
            mine["ours"] == true && mine["active"] == true && mine["retained_bytes"].is_u64(),
            "{mine:#}"
        );
        expect(
            &ask(&scene.db, APP, &["slots"]),
            0,
            &["active, pid", "reserved", "max_slot_wal_keep_size is unlimited"],
        );
        let status = json(&ask(&scene.db, APP, &["status", "--json"]));
        assert_documented("status", &status);
        assert!(
            status["pipeline"]["slot"].is_object() && status["stream_tables"][0].is_object(),
            "{status:#}"
        );
        let pipelines = json(&ask(&scene.db, APP, &["pipelines", "--json"]));
        assert_documented("pipelines", &pipelines);
        assert_eq!(pipelines[0]["pipeline"], "main");
        assert_documented("doctor", &json(&ask(&scene.db, APP, &["doctor", "--json"])));
        // Watched, one line per look, until it is asked to stop.
        let mut watch = Command::new(env!("CARGO_BIN_EXE_pgtrickle"))
            .args(["status", "--json", "--watch=1", "--database-url", &scene.db.url(APP)])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(watch.stdout.take().unwrap());
        let seen: Vec<Value> = tokio::task::block_in_place(|| {
            use std::io::BufRead;
            lines.lines().take(2).map(|l| serde_json::from_str(&l.unwrap()).unwrap()).collect()
        });
        assert_eq!(seen[1]["pipeline"]["sidecar_alive"], true);
        crate::harness::sidecar::signal(watch.id(), "TERM");
        assert_eq!(tokio::task::block_in_place(|| watch.wait().unwrap()).code(), Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_keeps_the_slot_reads_nothing_again_and_ends_by_itself() {
    for_each_major(async |server| {
        let scene = Scene::start(server, "create table t (id int primary key); insert into t values (1)").await;
        scene.create("st", "select id from t").await;
        scene.passed().await;
        let pause = |more: &[&str]| ask(&scene.db, SIDECAR, &[&["pause"], more].concat());
        expect(&pause(&[]), 2, &["--until"]);
        expect(&pause(&["--until", "yesterday"]), 9, &["future"]);
        expect(&pause(&["--for", "2 months"]), 9, &["seven days"]);
        expect(&pause(&["--for", "1 hour"]), 0, &["paused until"]);
        let sessions = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'pgtrickle:main:%'
            and application_name not like '%:monitor'";
        wait_until("the sessions to close", SOON, || async {
            let left = value(&scene.dba, sessions).await;
            if left == "0" { Ok(()) } else { Err(left) }
        })
        .await;
        let slot = "select count(*) from pg_replication_slots where database = current_database()";
        assert_eq!(value(&scene.dba, slot).await, "1");
        scene.run("insert into t values (2)").await;
        expect(&ask(&scene.db, APP, &["status"]), 0, &["paused until"]);
        expect(&ask(&scene.db, SIDECAR, &["unpause"]), 0, &["served again"]);
        scene.check_in_time(&["st"]).await;
        // It ends at its moment, too; and what the slot kept was enough.
        expect(&pause(&["--for", "4 s"]), 0, &["paused until"]);
        scene.run("insert into t values (3)").await;
        scene.check_in_time(&["st"]).await;
        assert_eq!(value(&scene.dba, "select count(*) from pgtrickle.pgt_recoveries").await, "0");
        // Past the critical threshold the server is not kept waiting.
        scene.dba.batch_execute("insert into pgtrickle.settings values ('slot_lag_critical_threshold_mb', '1')").await.unwrap();
        expect(&pause(&["--for", "1 hour"]), 0, &["paused until"]);
        scene.run("create table filler (t text); insert into filler select repeat('x', 1000) from generate_series(1, 3000)").await;
        scene.run("insert into t values (4)").await;
        scene.check_in_time(&["st"]).await;
        assert!(value(&scene.dba, "select coalesce(paused_until::text, 'no') from pgtrickle.pgt_pipelines").await == "no");
        expect(&ask(&scene.db, SIDECAR, &["unpause"]), 0, &["was not paused"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthcheck_asks_the_sidecar_and_needs_no_database() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = |more: &[&str]| {
        let address = free.to_string();
        tokio::task::block_in_place(|| pgtrickle(&[&["healthcheck", "--http", &address], more].concat()))
    };
    expect(&at(&[]), 1, &["unhealthy: http://127.0.0.1"]);
    expect(&pgtrickle(&["healthcheck", "--http", "off"]), 2, &["serves no HTTP"]);
    expect(&pgtrickle(&["healthcheck", "--http", "here"]), 2, &["flag --http"]);
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let mut sidecar = Sidecar::start(&db, &["--http", &free.to_string()]);
        sidecar.wait_ready(SOON).await;
        expect(&at(&[]), 0, &["ok"]);
        wait_until("it to be ready", SOON, || async {
            let output = at(&["--ready"]);
            if output.status.success() { Ok(()) } else { Err(printed(&output)) }
        })
        .await;
        // Paused, it lives and is not ready.
        let dba = db.as_dba().await;
        dba.batch_execute("select pgtrickle.pause(now() + interval '1 hour')").await.unwrap();
        wait_until("it not to be ready", SOON, || async {
            let output = at(&["--ready"]);
            if output.status.code() == Some(1) { Ok(()) } else { Err(printed(&output)) }
        })
        .await;
        expect(&at(&[]), 0, &["ok"]);
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[test]
fn the_configuration_is_shown_with_origins_all_errors_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    std::fs::write(
        &file,
        "workers = 2\ndatabase_url = \"postgresql://me:hush-4711@h:7/db\"\nmemory_limit = \"lots\"\n",
    )
    .unwrap();
    let check = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtrickle"));
        for name in ["DATABASE_URL", "PGHOST", "PGDATABASE", "RUST_LOG", "PGTRICKLE_LOG"] {
            command.env_remove(name);
        }
        command.args(["config", "check", "--config", file.to_str().unwrap()]).args(more).output().unwrap()
    };
    let bad = check(&["--cdc-mode", "magic", "--log-format", "xml"]);
    expect(
        &bad,
        2,
        &["flag --cdc-mode", "flag --log-format", "a.toml:3 memory_limit", "a.toml:1 workers", "h:7/db"],
    );
    assert!(!printed(&bad).contains("hush-4711"), "{}", printed(&bad));
    let good = check(&["--memory-limit", "1GB", "--json"]);
    expect(&good, 0, &["\"valid\": true", "flag --memory-limit"]);
    assert_documented("config check", &json(&good));
    // What `run` would refuse, and values that are right one by one: no secret, no such file, half a pair.
    for (more, word) in [
        (&["--http", "0.0.0.0:9642"][..], "http_token_file"),
        (&["--http", "0.0.0.0:9642", "--http-token-file", "/nonexistent"], "can't be read"),
        (&["--http-tls-cert", "/nonexistent"], "http_tls_key"),
        (&["--http-tls-cert", "/nonexistent", "--http-tls-key", "/nonexistent"], "/nonexistent"),
    ] {
        let refused = check(&[&["--memory-limit", "1GB", "--workers", "1"], more].concat());
        expect(&refused, 2, &[word]);
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        expect(&pgtrickle(&["completions", shell]), 0, &["uninstall", "healthcheck", "refresh-mode"]);
    }
    expect(&pgtrickle(&["completions", "abacus"]), 2, &["bash"]);
}

#[test]
fn every_command_explains_itself() {
    let help = printed(&pgtrickle(&["--help"]));
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|l| !l.starts_with("Commands:"))
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert!(commands.len() > 20, "{help}");
    let page = include_str!("../../docs/cli.md");
    for command in commands.into_iter().filter(|c| *c != "help") {
        let output = pgtrickle(&[command, "--help"]);
        assert!(output.status.success() && printed(&output).lines().count() > 3, "{command}");
        assert!(page.contains(&format!("pgtrickle {command}")), "docs/cli.md does not mention {command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_without_rights_are_refused_with_the_way_to_get_them() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        for command in [
            &["refresh", "x"][..],
            &["create", "x", "select 1 as a"],
            &["verify"],
            &["pause", "--for", "1 h"],
        ] {
            expect(&ask(&db, APP, command), 8, &["schema is not in this database"]);
        }
        db.install();
        expect(&ask(&db, APP, &["pause", "--for", "1 h"]), 5, &["permission denied"]);
        expect(&ask(&db, APP, &["drop", "x"]), 9, &["x"]);
        expect(&ask(&db, SUPERUSER, &["unpause", "--pipeline", "other"]), 9, &["other"]);
    })
    .await;
}
