//! `pgtrickle doctor`: what it finds, what mends it, and that it works for roles with few rights.

use std::process::Output;

use serde_json::Value;

use crate::harness::database::{APP, pgtrickle, printed};
use crate::harness::servers::SUPERUSER;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

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

#[tokio::test(flavor = "multi_thread")]
async fn findings_have_evidence_and_what_mends_them() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        let bare = doctor(&db, SUPERUSER, &["--json"]);
        assert_eq!(bare.status.code(), Some(1), "{}", printed(&bare));
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
        assert_eq!(found.status.code(), Some(1), "{}", printed(&found));
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
                (Some(0), true) => Ok(()),
                _ => Err(printed(&mended)),
            }
        })
        .await;
        let strict = doctor(&db, SUPERUSER, &["--strict"]);
        let said = printed(&strict);
        assert_eq!(strict.status.code(), Some(1), "archiving is off, which warns: {said}");
        assert!(said.contains("warn  backup.archiving"), "{said}");
        // With few rights everything is still answered.
        let few = doctor(&db, APP, &["--json"]);
        assert_eq!(findings(&few, "repl.role")[0].0, "warn", "{}", printed(&few));
        assert_eq!(findings(&few, "slot.state")[0].0, "ok");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        let gone = doctor(&db, SUPERUSER, &["--json"]);
        assert_eq!(findings(&gone, "sidecar.alive")[0].0, "fail");
        assert_eq!(gone.status.code(), Some(1));
    })
    .await;
}
