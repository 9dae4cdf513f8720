//! `pgtrickle doctor`: what it finds, what mends it, and that it works for roles with few rights.

use std::process::Output;

use serde_json::Value;

use crate::harness::database::{APP, SIDECAR, pgtrickle, printed};
use crate::harness::servers::{SUPERUSER, each};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, own_cluster, wait_until};

fn doctor(db: &TestDatabase, role: &str, more: &[&str]) -> Output {
    let url = db.url(role);
    pgtrickle(&[&["doctor", "--database-url", &url], more].concat())
}

/// (severity, evidence, fix) of all findings of a check.
fn findings(output: &Output, id: &str) -> Vec<(String, String, Option<String>)> {
    let all: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", printed(output)));
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let list = all["findings"].as_array().expect("findings").iter().filter(|f| f["id"] == id);
    list.map(|f| (text(&f["severity"]), text(&f["evidence"]), f["fix"].as_str().map(str::to_owned))).collect()
}

/// Ids of the checks in the order of the table in `docs/monitoring.md`.
fn documented() -> Vec<String> {
    let page = include_str!("../../docs/monitoring.md");
    let (_, table) = page.split_once("| check | what it looks at |").expect("the table of checks");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').nth(1).expect("a first cell"));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

/// Whatever is found, and by whom.
#[tokio::test(flavor = "multi_thread")]
async fn findings_come_in_the_documented_order() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        for (installed, role) in [(false, SUPERUSER), (true, SUPERUSER), (true, APP)] {
            if installed {
                db.install();
            }
            let found: Value = serde_json::from_slice(&doctor(&db, role, &["--json"]).stdout).expect("JSON");
            let ids = found["findings"].as_array().expect("findings").iter();
            let mut ids: Vec<&str> = ids.map(|f| f["id"].as_str().expect("an id")).collect();
            // A check may have several findings, all in its place.
            ids.dedup();
            assert_eq!(ids, documented());
        }
        let own = doctor(&db, APP, &["--json"]);
        for id in ["pg.tls", "pg.clock"] {
            assert_eq!(findings(&own, id)[0].0, "ok", "{id}: {}", printed(&own));
        }
        assert!(findings(&own, "pg.tls")[0].1.contains("within this machine"), "{}", printed(&own));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_somebody_has_reduced_is_found_and_mended() {
    for_each_major(async |server| {
        if server.major < 15 {
            println!("PostgreSQL {}: has neither row filters nor column lists", server.major);
            return;
        }
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute("create table t (id int primary key, v int)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('st', 'select id, v from t')").await.unwrap();
        let parts = || findings(&doctor(&db, SUPERUSER, &["--json"]), "publication.parts");
        let publication = wait_until("the table to be published", SOON, || async {
            let sql = "select pubname::text from pg_publication_tables where tablename = 't'";
            let row = dba.query_opt(sql, &[]).await.map_err(|e| e.to_string())?;
            row.map(|row| row.get::<_, String>(0)).ok_or_else(|| "it is not".to_owned())
        })
        .await;
        assert_eq!(parts()[0].0, "ok");
        // A live sidecar would make it whole within a second.
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        for (way, words) in [
            ("app.t where (id > 5)", "app.t only in part: it has a row filter"),
            ("app.t (id)", "it has a column list"),
            ("app.t (id, v) where (id > 5)", "a row filter and a column list"),
        ] {
            dba.batch_execute(&format!("alter publication {publication} set table {way}")).await.unwrap();
            let found = parts();
            assert_eq!((found.len(), found[0].0.as_str()), (1, "fail"), "{found:?}");
            assert!(found[0].1.contains(words), "{found:?}");
            dba.batch_execute(found[0].2.as_ref().expect("a fix")).await.unwrap();
            assert_eq!(parts()[0].0, "ok", "{way}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn findings_have_evidence_and_what_mends_them() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        let bare = doctor(&db, SUPERUSER, &["--json"]);
        assert_eq!(bare.status.code(), Some(2), "{}", printed(&bare));
        assert_eq!(findings(&bare, "schema.installed")[0].0, "fail");
        assert_eq!(findings(&bare, "slot.state")[0].0, "skip", "what needs the schema is skipped, not fine");
        db.install();
        let app = db.as_app().await;
        app.batch_execute("create table t (id int primary key); create table bag (v int)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute(
            "select pgtrickle.create_stream_table('st', 'select id from t');
             select pgtrickle.create_stream_table('sb', 'select v from bag')",
        )
        .await
        .unwrap();
        wait_until("both tables to be captured", SOON, || async {
            let seen = doctor(&db, SUPERUSER, &["--json"]);
            match findings(&seen, "sources.capture").as_slice() {
                [(warn, bag, Some(fix)), (ok, t, None)]
                    if (warn.as_str(), ok.as_str()) == ("warn", "ok")
                        && bag.contains("app.bag")
                        && t.contains("app.t")
                        && fix.contains("replica identity full") =>
                {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // The test server bounds nothing: that is a failure until there is a limit or a policy.
        let found = doctor(&db, SUPERUSER, &["--json"]);
        assert_eq!(found.status.code(), Some(2), "{}", printed(&found));
        let retention = findings(&found, "slot.retention");
        assert_eq!(retention[0].0, "fail");
        assert!(retention[0].2.as_ref().is_some_and(|fix| fix.contains("max_slot_wal_keep_size")));
        assert_eq!(findings(&found, "sidecar.alive")[0].0, "ok");
        assert_eq!(findings(&found, "slot.state")[0].0, "ok", "{found:?}");
        let sql = doctor(&db, SUPERUSER, &["--fix-sql"]);
        let sql = String::from_utf8(sql.stdout).unwrap();
        let policy = sql
            .lines()
            .find_map(|l| l.split_once("-- or: ").map(|(_, policy)| policy.to_owned()))
            .expect("the policy is offered");
        let dba = db.as_dba().await;
        dba.batch_execute(&policy).await.unwrap();
        dba.batch_execute(sql.lines().find(|l| l.starts_with("alter table app.bag")).unwrap()).await.unwrap();
        wait_until("nothing to fail", SOON, || async {
            let mended = doctor(&db, SUPERUSER, &["--json"]);
            match (mended.status.code(), findings(&mended, "sources.capture").iter().all(|f| f.0 == "ok")) {
                // Archiving is off, which warns; so does a bound that ends with the sidecar.
                (Some(1), true) if findings(&mended, "slot.retention")[0].0 == "warn" => Ok(()),
                _ => Err(printed(&mended)),
            }
        })
        .await;
        // Whoever makes a table makes no statement of the script that a DBA runs.
        let name = "\"bag\ncreate table app.injected ();\r--\u{1b}[2J\"";
        app.batch_execute(&format!("create table {name} (v int)")).await.unwrap();
        let create = "select pgtrickle.create_stream_table('odd', $q$select v from {}$q$)";
        app.batch_execute(&create.replace("{}", name)).await.unwrap();
        wait_until("the odd table to be found", SOON, || async {
            let sql = String::from_utf8(doctor(&db, SUPERUSER, &["--fix-sql"]).stdout).unwrap();
            match sql.lines().any(|l| l.starts_with("-- sources.capture:") && l.contains("app.injected")) {
                true => Ok(()),
                false => Err(sql),
            }
        })
        .await;
        for option in ["--fix-sql", "--strict"] {
            let said = String::from_utf8(doctor(&db, SUPERUSER, &[option]).stdout).unwrap();
            assert!(!said.contains(['\r', '\u{1b}']), "{said}");
            assert!(!said.lines().any(|l| l.starts_with("create")), "{said}");
        }
        app.batch_execute("select pgtrickle.drop_stream_table('odd')").await.unwrap();
        let strict = doctor(&db, SUPERUSER, &["--strict"]);
        let said = printed(&strict);
        assert_eq!(strict.status.code(), Some(2), "archiving is off, which warns: {said}");
        assert!(said.contains("warn  backup.archiving"), "{said}");
        // It is the sidecar's rights that count, whoever asks.
        assert_eq!(findings(&found, "sources.rights")[0].0, "ok", "{found:?}");
        app.batch_execute(&format!("revoke select on t from {SIDECAR}, public")).await.unwrap();
        let unread = findings(&doctor(&db, SUPERUSER, &["--json"]), "sources.rights");
        assert_eq!((unread.len(), unread[0].0.as_str()), (1, "fail"), "{unread:?}");
        assert_eq!(unread[0].1, format!("role {SIDECAR} may not read app.t"));
        dba.batch_execute(unread[0].2.as_ref().expect("a fix")).await.unwrap();
        assert_eq!(findings(&doctor(&db, SUPERUSER, &["--json"]), "sources.rights")[0].0, "ok");
        dba.batch_execute("select pgtrickle.pause(now() + interval '1 hour')").await.unwrap();
        let paused = findings(&doctor(&db, SUPERUSER, &["--json"]), "sidecar.alive");
        assert_eq!(paused[0].0, "warn", "{paused:?}");
        assert!(paused[0].1.contains("is paused until"), "{paused:?}");
        dba.batch_execute(paused[0].2.as_ref().expect("a fix")).await.unwrap();
        wait_until("the pipeline to be served again", SOON, || async {
            let now = doctor(&db, SUPERUSER, &["--json"]);
            let back = ["sidecar.alive", "slot.state"].map(|id| findings(&now, id).swap_remove(0));
            if back.iter().all(|f| f.0 == "ok") { Ok(()) } else { Err(format!("{back:?}")) }
        })
        .await;
        // With few rights everything is still answered.
        let few = wait_until("the slot to be well in the eyes of everybody", SOON, || async {
            let few = doctor(&db, APP, &["--json"]);
            let state = findings(&few, "slot.state").swap_remove(0);
            if state.0 == "ok" { Ok(few) } else { Err(format!("{state:?}")) }
        })
        .await;
        assert_eq!(findings(&few, "repl.role")[0].0, "ok", "{}", printed(&few));
        let lame = format!("lame_{}", db.name);
        dba.batch_execute(&format!(
            "create role {lame}; update pgtrickle.settings set value = '{lame}' where key = 'sidecar_role'"
        ))
        .await
        .unwrap();
        let named = findings(&doctor(&db, SUPERUSER, &["--json"]), "repl.role");
        assert!(named[0].0 == "warn" && named[0].1.contains(&lame), "{named:?}");
        dba.batch_execute(&format!("drop role {lame}")).await.unwrap();
        assert_eq!(findings(&doctor(&db, SUPERUSER, &["--json"]), "schema.sidecar_role")[0].0, "fail");
        dba.batch_execute(&format!(
            "update pgtrickle.settings set value = '{SIDECAR}' where key = 'sidecar_role'"
        ))
        .await
        .unwrap();
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        let gone = doctor(&db, SUPERUSER, &["--json"]);
        assert_eq!(findings(&gone, "sidecar.alive")[0].0, "fail");
        assert_eq!(gone.status.code(), Some(2));
    })
    .await;
}

/// Everything that is not fine.
fn troubles(output: &Output) -> Vec<Value> {
    let all: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", printed(output)));
    let list = all["findings"].as_array().expect("findings").iter();
    list.filter(|f| f["severity"] != "ok" && f["severity"] != "skip").cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_as_it_should_be_ends_with_0_and_archiving_that_fails_does_not() {
    each(async |major| {
        let settings = [
            ("max_slot_wal_keep_size", "1GB"),
            ("archive_mode", "on"),
            ("archive_command", "true"),
            // The smallest segments, so that a switch has something to archive soon.
            ("archive_timeout", "0"),
        ];
        let server = own_cluster(major, &settings).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute("create table t (id int primary key)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('st', 'select id from t')").await.unwrap();
        wait_until("nothing to mend", SOON, || async {
            let found = doctor(&db, SUPERUSER, &["--json", "--strict"]);
            match (found.status.code(), troubles(&found).as_slice()) {
                (Some(0), []) => Ok(()),
                (code, troubles) => Err(format!("{code:?} {troubles:?}")),
            }
        })
        .await;
        let fine = doctor(&db, SUPERUSER, &["--json"]);
        assert_eq!(findings(&fine, "backup.archiving")[0].0, "ok");
        assert_eq!(findings(&fine, "slot.retention")[0].0, "ok");
        assert_eq!(String::from_utf8(doctor(&db, SUPERUSER, &["--fix-sql"]).stdout).unwrap(), "");
        // A command that fails, then none at all.
        let archive = async |command: &str, words: &str, fix: &str| {
            dba.batch_execute(&format!("alter system set archive_command = '{command}'")).await.unwrap();
            dba.batch_execute("select pg_reload_conf()").await.unwrap();
            wait_until(&format!("archiving by {command:?} to be seen as failed"), SOON, || async {
                let write = "select pg_logical_emit_message(true, 'x', 'x'), pg_switch_wal()";
                dba.batch_execute(write).await.map_err(|e| e.to_string())?;
                let found = doctor(&db, SUPERUSER, &["--json"]);
                let failed =
                    findings(&found, "backup.archiving").into_iter().find(|(severity, evidence, told)| {
                        severity == "fail"
                            && evidence.contains(words)
                            && told.as_ref().is_some_and(|t| t.contains(fix))
                    });
                match (found.status.code(), failed) {
                    (Some(2), Some(_)) => Ok(()),
                    _ => Err(printed(&found)),
                }
            })
            .await;
        };
        archive("false", "archiving fails since", "the server's log").await;
        archive("", "archive_command is empty", "archive_command").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// Whatever can be mended is told with what mends it, also where a DBA has to decide; few rights are no error.
#[tokio::test(flavor = "multi_thread")]
async fn every_trouble_has_a_fix_and_a_role_without_rights_is_answered() {
    each(async |major| {
        let mut settings = vec![("max_slot_wal_keep_size", "1GB"), ("max_connections", "20")];
        if major >= 18 {
            settings.push(("idle_replication_slot_timeout", "1h"));
        }
        let server = own_cluster(major, &settings).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute("create table t (id int primary key); create table u (id int primary key)")
            .await
            .unwrap();
        dba.batch_execute(
            "create role nobody_at_all login; insert into pgtrickle.settings values ('row_security', 'warn')",
        )
        .await
        .unwrap();
        // Beside the sidecar's own, so that few are left.
        let held = futures_util::future::join_all((0..6).map(|_| db.as_app())).await;
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute(
            "select pgtrickle.create_stream_table('st', 'select id from t');
             alter table u enable row level security;
             select pgtrickle.create_stream_table('su', 'select id from u', schedule => '1h')",
        )
        .await
        .unwrap();
        dba.batch_execute("alter table app.st disable trigger pgtrickle_guard").await.unwrap();
        let mut wanted = vec![
            ("sources.policies", "warn", "alter table app.u disable row level security"),
            ("health", "warn", "pgtrickle repair --all"),
            ("server.connections", "warn", "alter system set max_connections = 70"),
        ];
        if major >= 18 {
            wanted.push((
                "server.idle_slot_timeout",
                "warn",
                "alter system set idle_replication_slot_timeout = 0",
            ));
        }
        wait_until("each trouble with its fix", SOON, || async {
            let found = doctor(&db, SUPERUSER, &["--json"]);
            let without: Vec<Value> = troubles(&found).into_iter().filter(|f| f["fix"].is_null()).collect();
            let missing = wanted.iter().find(|(id, severity, fix)| {
                !findings(&found, id)
                    .iter()
                    .any(|f| f.0 == *severity && f.2.as_ref().is_some_and(|told| told.contains(fix)))
            });
            match (missing, without.is_empty()) {
                (None, true) => Ok(()),
                _ => Err(format!("{missing:?} {without:?} {}", printed(&found))),
            }
        })
        .await;
        drop(held);
        // A role that may nothing: what it may not see is skipped with the reason, and nothing is called fine.
        let nobody = doctor(&db, "nobody_at_all", &["--json"]);
        assert!(matches!(nobody.status.code(), Some(0..=2)), "{}", printed(&nobody));
        assert_eq!(findings(&nobody, "schema.installed")[0].0, "ok");
        assert_eq!(findings(&nobody, "repl.role")[0].0, "warn");
        for id in
            ["sidecar.alive", "slot.state", "slot.retention", "sources.capture", "sources.policies", "health"]
        {
            let found = findings(&nobody, id);
            assert!(
                found[0].0 == "skip" && found[0].1.contains("may not look: permission denied"),
                "{id}: {found:?}"
            );
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
