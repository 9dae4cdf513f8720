//! Every command answers with JSON where that is asked for, and the JSON is that of `docs/cli.md`.

use std::process::Output;

use serde_json::{Value, json};

use super::cli_manage::NINE_ROWS;
use super::hazards::Scene;
use super::json_shapes::{assert_documented, is_documented};
use crate::harness::database::{APP, SIDECAR, pgtrickle, printed};
use crate::harness::servers::SUPERUSER;
use crate::harness::{TestDatabase, for_each_major};

fn ask(db: &TestDatabase, role: &str, command: &str, more: &[&str]) -> Output {
    let words: Vec<&str> = command.split(' ').collect();
    let url = db.url(role);
    let arguments = [&words, more, &["--json", "--database-url", &url]].concat();
    tokio::task::block_in_place(|| pgtrickle(&arguments))
}

/// The command succeeds, and says what the page says.
#[track_caller]
fn told(db: &TestDatabase, role: &str, command: &str, more: &[&str]) -> Value {
    let output = ask(db, role, command, more);
    assert!(output.status.success(), "{command}: {}", printed(&output));
    let value: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{command}: {e}: {}", printed(&output)));
    assert_documented(command, &value);
    value
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_with_stream_tables_is_told_as_json() {
    for_each_major(async |server| {
        let scene = Scene::start(server, NINE_ROWS).await;
        let db = &scene.db;
        let created =
            told(db, APP, "create", &["app.counts", "select v, count(*) as n from app.t group by v"]);
        assert_eq!((&created["done"], &created["refresh_mode"]), (&json!("created"), &json!("DIFFERENTIAL")));
        let name = created["stream_table"].as_str().unwrap();
        let full = told(db, APP, "create", &["app.now_and_then", "select id, now() as at from app.t"]);
        assert_eq!(full["refresh_mode"], "FULL");
        assert!(full["refresh_reason"].is_string(), "{full:#}");
        scene.wait_status("counts", "ACTIVE DIFFERENTIAL").await;
        let altered = told(db, APP, "alter", &[name, "--schedule", "1 s"]);
        assert_eq!((&altered["done"], &altered["stream_table"]), (&json!("altered"), &json!(name)));

        let plan = told(db, APP, "explain", &[name]);
        assert!(plan["refusal"].is_null() && plan["plan"].as_array().unwrap().len() > 2, "{plan:#}");
        assert_eq!(plan["stored_key"], json!(["v"]), "{plan:#}");
        assert_eq!(plan["sources"][0]["identity_columns"], json!(["id"]), "{plan:#}");
        let refused = told(db, APP, "explain", &["app.now_and_then"]);
        assert_eq!(refused["plan"], json!([]), "{refused:#}");
        assert!(refused["refusal"]["code"].is_string(), "{refused:#}");

        for (command, done) in [
            ("refresh", "refreshed"),
            ("repair", "repaired"),
            ("suspend", "suspended"),
            ("resume", "resumed"),
        ] {
            let value = told(db, APP, command, &[name]);
            let message = &value["stream_tables"][0]["message"];
            assert_eq!(message.is_string(), command == "repair", "{value:#}");
            assert_eq!(
                value["stream_tables"],
                json!([{"stream_table": name, "done": done, "message": message}])
            );
        }
        // What came before a refusal is told, and the refusal decides the exit code.
        let output = ask(db, APP, "drop", &["app.now_and_then", "nowhere"]);
        assert_eq!(output.status.code(), Some(9), "{}", printed(&output));
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_documented("drop", &value);
        assert_eq!(value["stream_tables"].as_array().unwrap().len(), 1, "{value:#}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere"));
        assert_eq!(told(db, APP, "drop", &[name])["stream_tables"][0]["done"], "dropped");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_with_pipelines_is_told_as_json() {
    for_each_major(async |server| {
        let scene = Scene::start(server, "create table t (id int primary key)").await;
        let db = &scene.db;
        scene.create("st", "select id from t").await;
        let again = told(db, SUPERUSER, "init", &[]);
        assert_eq!(again["applied"], json!([]), "{again:#}");
        assert_eq!(told(db, SUPERUSER, "pipelines create", &["other"])["done"], "created");
        let moved = told(db, APP, "pipelines move", &["app.st", "--to", "other"]);
        assert_eq!(moved["stream_tables"], json!([{"stream_table": "app.st", "moved": 1}]), "{moved:#}");
        told(db, APP, "pipelines move", &["app.st", "--to", "main"]);
        assert_eq!(told(db, SUPERUSER, "pipelines drop", &["other"])["done"], "dropped");
        for (command, more, statuses) in [
            ("pause", &["--for", "1 hour"][..], &["PAUSED"][..]),
            ("unpause", &[], &["OFFLINE", "SERVED"]),
            ("detach", &[], &["DETACHED"]),
            ("attach", &[], &["OFFLINE", "SERVED"]),
        ] {
            let value = told(db, SIDECAR, command, more);
            let status = value["status"].as_str().unwrap();
            assert!(statuses.contains(&status) && value["pipeline"] == "main", "{command}: {value:#}");
        }
    })
    .await;
}

#[test]
fn a_healthcheck_and_the_version_need_no_database() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = pgtrickle(&["healthcheck", "--http", &free.to_string(), "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_documented("healthcheck", &value);
    assert!(value["healthy"] == false && value["error"].is_string(), "{value:#}");
    let value: Value = serde_json::from_slice(&pgtrickle(&["version", "--json"]).stdout).unwrap();
    assert_documented("version", &value);
    assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
}

/// The commands in the help of one, without `help`.
fn commands(of: &[&str]) -> Vec<String> {
    let help = String::from_utf8(pgtrickle(&[of, &["--help"]].concat()).stdout).unwrap();
    let lines = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| l.starts_with("  "));
    // A line that goes on with the words of the one before is indented further.
    let names = lines.filter(|l| !l.starts_with("   ")).filter_map(|l| l.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_that_says_something_says_it_as_json_too_and_the_page_has_it() {
    const WITHOUT: &[&str] = &["run", "demo", "completions"];
    let mut all = Vec::new();
    for command in commands(&[]) {
        let below = commands(&[&command]);
        if below.is_empty() || command == "pipelines" {
            all.push(command.clone());
        }
        all.extend(below.iter().map(|b| format!("{command} {b}")));
    }
    assert!(all.len() > 25, "{all:?}");
    for command in all.iter().filter(|c| !WITHOUT.contains(&c.as_str())) {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = printed(&pgtrickle(&words));
        assert!(help.contains("--json"), "{command} has no --json:\n{help}");
        // Listing is what `pipelines` does by itself.
        let page = if command == "pipelines list" { "pipelines" } else { command };
        assert!(is_documented(page), "docs/cli.md has no JSON of {command}");
    }
}
