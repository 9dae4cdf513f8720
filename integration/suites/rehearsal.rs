//! `pgtrickle drill`: what it finds, what it leaves behind, and what it says when it can't.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::json_shapes::assert_documented;
use crate::harness::database::{APP, SIDECAR, printed};
use crate::harness::servers::{SUPERUSER, each, install, majors};
use crate::harness::{SOON, Sidecar, TestDatabase, own_cluster, wait_until};

/// Runs a drill with a temporary folder of its own, so that leftovers can be seen.
fn drill(major: u32, url: &str, more: &[&str], scratch: &Path) -> Output {
    command(major, url, more, scratch).output().expect("the program starts")
}

fn command(major: u32, url: &str, more: &[&str], scratch: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgtrickle"));
    command.args(["drill", "--database-url", url]).args(more);
    if !more.contains(&"--pg-bindir") {
        command.arg("--pg-bindir").arg(install(major).bin_dir);
    }
    command.env("TMPDIR", scratch).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("pgtrickle-rehearsal-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    folder
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect()
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = printed(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_rehearsed_and_a_difference_is_found() {
    each(async |major| {
        if !install(major).has_client_tools {
            crate::harness::left_out(&format!("PostgreSQL {major} has no pg_basebackup here: no rehearsal"));
            return;
        }
        let server = own_cluster(major, &[("archive_mode", "on"), ("archive_command", "false")]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(
            "create table t (id int primary key, v int); insert into t select i, i % 7 from generate_series(1, 500) i",
        )
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        for (name, query, mode) in [
            ("sums", "select v, count(*) as n from t group by v", "AUTO"),
            ("chain", "select n, count(*) as groups from sums group by n", "AUTO"),
            ("recomputed", "select count(*) as n from t", "FULL"),
            ("resting", "select id from t", "AUTO"),
        ] {
            let sql = "select pgtrickle.create_stream_table($1, $2, refresh_mode => $3)";
            app.execute(sql, &[&name, &query, &mode]).await.unwrap();
        }
        wait_until("all to be kept", SOON, || async {
            let sql = "select count(*) from pgtrickle.stream_tables_info where status = 'ACTIVE'";
            let active: i64 = dba.query_one(sql, &[]).await.unwrap().get(0);
            if active == 4 { Ok(()) } else { Err(active.to_string()) }
        })
        .await;
        app.batch_execute("select pgtrickle.suspend_stream_table('resting')").await.unwrap();
        sidecar.terminate(SOON).await;
        // Missed while no sidecar ran: the rehearsal repairs it on the copy, and on the copy alone.
        app.batch_execute("update t set v = 100 where id <= 10").await.unwrap();

        let scratch = folder();
        let output =
            tokio::task::block_in_place(|| drill(major, &db.url(SIDECAR), &["--json"], scratch.path()));
        assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_documented("drill", &report);
        assert_eq!(report["passed"], Value::Bool(true), "{report:#}");
        let of = |name: &str| {
            let all = report["stream_tables"].as_array().unwrap();
            all.iter().find(|t| t["stream_table"] == format!("app.{name}")).cloned().unwrap_or_default()
        };
        assert_eq!(of("sums")["verdict"], "equal", "{report:#}");
        assert_eq!(of("sums")["repaired"]["inserted"], 8, "{report:#}");
        assert_eq!(of("chain")["verdict"], "equal", "{report:#}");
        assert_eq!(of("resting")["status"], "SUSPENDED", "{report:#}");
        assert!(report["seconds"]["stream_tables_live"].as_f64().unwrap() > 0.0);
        assert!(entries(scratch.path()).is_empty(), "left behind: {:?}", entries(scratch.path()));
        let untouched: i64 =
            app.query_one("select count(*) from sums where v = 100", &[]).await.unwrap().get(0);
        assert_eq!(untouched, 0, "the rehearsal wrote to the original");

        // A trigger that changes what is stored: nobody but a comparison sees it.
        dba.batch_execute(
            "create function app.spoil() returns trigger language plpgsql as $$ begin new.n := new.n + 1; return new; end $$;
             create trigger spoil before insert or update on app.sums for each row execute function app.spoil()",
        )
        .await
        .unwrap();
        let output = tokio::task::block_in_place(|| drill(major, &db.url(SUPERUSER), &[], scratch.path()));
        refused(&output, 1, &["app.sums", "DIFFERS", "FAILED"]);
        assert!(entries(scratch.path()).is_empty(), "left behind: {:?}", entries(scratch.path()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_cannot_be_says_why_before_anything_is_copied() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        let scratch = folder();
        let run = |url: &str, more: &[&str]| {
            tokio::task::block_in_place(|| drill(major, url, more, scratch.path()))
        };
        refused(&run(&db.url(SUPERUSER), &[]), 8, &["schema is not installed", "pgtrickle init"]);
        db.install();
        refused(&run(&db.url(APP), &[]), 5, &["lacks REPLICATION", "alter role app replication"]);
        refused(&run(&db.url(SIDECAR), &[]), 2, &["has no stream tables"]);
        let app = db.as_app().await;
        app.batch_execute(
            "create table t (id int); select pgtrickle.create_stream_table('s', 'select id from t')",
        )
        .await
        .unwrap();
        // Server programs without the client's.
        let bare = scratch.path().join("bin");
        std::fs::create_dir(&bare).unwrap();
        for program in ["initdb", "postgres", "pg_ctl"] {
            std::fs::copy(install(major).program(program), bare.join(program)).unwrap();
        }
        let bare = bare.to_string_lossy().into_owned();
        refused(&run(&db.url(SIDECAR), &["--pg-bindir", &bare]), 6, &["pg_basebackup is not in"]);
        if let Some(&other) = majors().iter().find(|&&other| other != major) {
            let folder = install(other).bin_dir.to_string_lossy().into_owned();
            let said = format!("the server is {major}");
            refused(&run(&db.url(SIDECAR), &["--pg-bindir", &folder]), 2, &[&said, "its own major version"]);
        }
        let full = scratch.path().join("full");
        std::fs::create_dir(&full).unwrap();
        std::fs::write(full.join("something"), "x").unwrap();
        if install(major).has_client_tools {
            let full = full.to_string_lossy().into_owned();
            refused(&run(&db.url(SIDECAR), &["--dir", &full]), 2, &["neither empty nor"]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_or_killed_drill_leaves_nothing_behind() {
    each(async |major| {
        if !install(major).has_client_tools {
            crate::harness::left_out(&format!("PostgreSQL {major} has no pg_basebackup here: no rehearsal"));
            return;
        }
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute(
            "create table t (id int primary key); select pgtrickle.create_stream_table('s', 'select id from t')",
        )
        .await
        .unwrap();
        for (signal, code) in [("INT", Some(1)), ("KILL", None)] {
            let scratch = folder();
            let mut process = command(major, &db.url(SIDECAR), &[], scratch.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // The copy is there and its server starts or runs.
            let running = || entries(scratch.path()).iter().any(|e| e.join("data/postmaster.pid").exists());
            wait_until("the server of the copy", SOON, || async {
                if running() { Ok(()) } else { Err(format!("{:?}", entries(scratch.path()))) }
            })
            .await;
            crate::harness::sidecar::signal(process.id(), signal);
            let status = tokio::task::block_in_place(|| process.wait()).unwrap();
            assert_eq!(status.code(), code, "SIG{signal}");
            wait_until("the copy to be removed", SOON, || async {
                let left = entries(scratch.path());
                if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
            })
            .await;
        }
    })
    .await;
}
