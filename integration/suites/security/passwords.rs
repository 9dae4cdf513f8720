//! The password: changed under a running sidecar, and told nowhere.

use std::process::Command;

use super::super::bad_input::{settled, value, wait_value};
use super::super::http::client::{all_pages, free_port, get};
use crate::harness::certificates::{give_files, reload, write_private};
use crate::harness::database::{SIDECAR, TestDatabase, pgtrickle, printed};
use crate::harness::oracle::assert_equal;
use crate::harness::servers::{each, own_cluster};
use crate::harness::{SOON, Sidecar, wait_until};

/// The sidecar needs its password, everybody else none.
const HBA: &str = "
local all all trust
host all pgtrickle 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
";

const FIRST: &str = "geheim-eins";
const SECOND: &str = "geheim-zwei";

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_is_read_again_and_none_is_told_anywhere() {
    each(async |major| {
        let folder = tempfile::tempdir().unwrap();
        let server = own_cluster(major, &[("password_encryption", "scram-sha-256")]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        dba.batch_execute(&format!("alter role {SIDECAR} password '{FIRST}'")).await.unwrap();
        give_files(&server, &[("pg_hba.conf", HBA)]);
        reload(&server).await;
        let file = folder.path().join("password");
        write_private(&file, &format!("{FIRST}\n"));
        let path = file.to_str().unwrap();
        app.batch_execute("create table src (id int primary key)").await.unwrap();
        let port = free_port();
        let http = format!("127.0.0.1:{port}");
        let mut sidecar = Sidecar::start(&db, &["--password-file", path, "--log", "trace", "--http", &http]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('t', 'select id from src')").await.unwrap();
        settled(&dba).await;
        wait_until("the stream table to be on a page", SOON, || async {
            match get(port, "/tables/app.t").await? {
                (200, _) => Ok(()),
                (_, body) => Err(body),
            }
        })
        .await;
        // A secret of which nothing in the process's arguments tells.
        let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", sidecar.pid())).unwrap();
        assert!(arguments.contains("--password-file") && !arguments.contains("geheim"), "{arguments}");
        // Rotation in the worst order: the role first, the sessions cut, the file last.
        dba.batch_execute(&format!("alter role {SIDECAR} password '{SECOND}'")).await.unwrap();
        const CUT: &str =
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'pgtrickle'";
        assert_ne!(value(&dba, CUT).await, "0");
        wait_until("the sidecar to be refused", SOON, || async {
            let log = sidecar.logs();
            if log.contains("password authentication failed") { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        assert!(sidecar.is_running(), "it ended instead of trying again");
        let told_nowhere = async || {
            for (page, body) in all_pages(port, &["app.t"]).await {
                assert!(!body.contains("geheim"), "{page} tells the password: {body}");
            }
        };
        told_nowhere().await;
        write_private(&file, SECOND);
        app.batch_execute("insert into src values (1), (2)").await.unwrap();
        wait_value(&app, "select count(*) from t", "2").await;
        assert_equal(&app, "select id from src", "t", "id").await;
        told_nowhere().await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        let log = sidecar.logs();
        assert!(log.contains("DEBUG"), "the log is not at the level trace");
        assert!(!log.contains("geheim"), "the log tells the password");
        // A command with the wrong one, and with one in the URL.
        let wrong = db.url(SIDECAR).replace("pgtrickle@", "pgtrickle:geheim-falsch@");
        let status = pgtrickle(&["status", "--database-url", &wrong, "--log", "trace"]);
        assert_eq!(status.status.code(), Some(4), "{}", printed(&status));
        assert!(!printed(&status).contains("geheim"), "{}", printed(&status));
        assert!(printed(&status).contains("the password is on the command line"), "{}", printed(&status));
        // By variable, and by the file that libpq reads: right and wrong are told apart, and neither is shown.
        let host = format!("127.0.0.1:{}:{}", server.cluster.port(), db.name);
        let passfile = |name: &str, password: &str| {
            let file = folder.path().join(name);
            write_private(&file, &format!("{host}:{SIDECAR}:{password}\n"));
            file.to_str().unwrap().to_owned()
        };
        for (variable, value, code) in [
            ("PGPASSWORD", SECOND.to_owned(), 0),
            ("PGPASSWORD", FIRST.to_owned(), 4),
            ("PGPASSFILE", passfile("right", SECOND), 0),
            ("PGPASSFILE", passfile("wrong", FIRST), 4),
        ] {
            let output = Command::new(env!("CARGO_BIN_EXE_pgtrickle"))
                .args(["status", "--log", "trace", "--database-url", &db.url(SIDECAR)])
                .env(variable, value)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(code), "{variable}: {}", printed(&output));
            assert!(!printed(&output).contains("geheim"), "{variable}: {}", printed(&output));
        }
        // The server's own log and views hold none either.
        let log = std::fs::read_to_string(server.cluster.log_path()).unwrap_or_default();
        let of_sidecar =
            log.lines().filter(|line| !line.contains("alter role")).any(|line| line.contains("geheim"));
        assert!(!of_sidecar, "the server's log holds a password");
    })
    .await;
}
