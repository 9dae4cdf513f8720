//! A real file system that is full under one stream table: that one is out, the others go on, and it comes back.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pgtrickle::postgres::account;
use tokio_postgres::Client;

use crate::harness::oracle::difference_of_text;
use crate::harness::servers::each;
use crate::harness::{SOON, Sidecar, TestDatabase, own_cluster, wait_until};

/// A small file system in memory; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    /// `None` where this process may not mount.
    fn new(folder: &Path, megabytes: u32) -> Option<Mount> {
        let size = format!("size={megabytes}m,mode=0755");
        let output = run("mount", &["-t", "tmpfs", "-o", &size, "pgtrickle-test", &folder.to_string_lossy()]);
        output.is_some_and(|o| o.status.success()).then(|| Mount(folder.to_owned()))
    }

    fn grow(&self, megabytes: u32) {
        let size = format!("remount,size={megabytes}m");
        let output = run("mount", &["-o", &size, &self.0.to_string_lossy()]);
        assert!(output.is_some_and(|o| o.status.success()), "the file system can't be made larger");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a process of the server may still hold a file open.
        run("umount", &["-l", &self.0.to_string_lossy()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    Command::new(program).args(arguments).output().ok()
}

async fn state(dba: &Client, name: &str) -> (String, String) {
    const SQL: &str = "select status, coalesce(last_error_sqlstate, '') from pgtrickle.pgt_stream_tables where pgt_name = $1";
    let row = dba.query_one(SQL, &[&name]).await.unwrap();
    (row.get(0), row.get(1))
}

async fn equal(dba: &Client, name: &str, query: &str, columns: &str) -> Result<(), String> {
    let rows = difference_of_text(dba, query, &format!("app.{name}"), columns).await.unwrap();
    if rows.is_empty() { Ok(()) } else { Err(format!("{} rows differ", rows.len())) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_out_the_stream_table_on_it_and_no_other() {
    let scratch = tempfile::Builder::new().prefix("pgtrickle-full-").tempdir().unwrap();
    std::fs::set_permissions(scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    each(async |major| {
        let folder = scratch.path().join(major.to_string());
        std::fs::create_dir(&folder).unwrap();
        let Some(mount) = Mount::new(&folder, 6) else {
            crate::harness::left_out("a full disk: this process may not mount a file system");
            return;
        };
        account::give(&folder, account::server_account().unwrap()).unwrap();
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(
            "create table src (id int primary key, filler text); insert into src values (1, 'a')",
        )
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('cramped', 'select id, filler from src')")
            .await
            .unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('roomy', 'select count(*) as n from src')")
            .await
            .unwrap();
        let active = async |name: &str| {
            wait_until(&format!("{name} to be kept"), SOON, || async {
                let seen = state(&dba, name).await;
                if seen.0 == "ACTIVE" { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await;
        };
        active("cramped").await;
        active("roomy").await;
        let tablespace = format!("create tablespace cramped location '{}'", folder.display());
        dba.batch_execute(&tablespace).await.unwrap();
        dba.batch_execute("alter table app.cramped set tablespace cramped").await.unwrap();

        let fill = "insert into src select i, repeat(md5(i::text), 8) from generate_series(2, 60000) i";
        app.batch_execute(fill).await.unwrap();
        wait_until("the full disk to be told", SOON, || async {
            let seen = state(&dba, "cramped").await;
            if (seen.0.as_str(), seen.1.as_str()) == ("ERROR", "53100") {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await;
        wait_until("the other one to hold what was written", SOON, || {
            equal(&dba, "roomy", "select count(*) as n from app.src", "n")
        })
        .await;
        assert_eq!(state(&dba, "roomy").await.0, "ACTIVE");
        app.batch_execute("delete from src where id = 1").await.unwrap();
        wait_until("the other one to go on", SOON, || {
            equal(&dba, "roomy", "select count(*) as n from app.src", "n")
        })
        .await;
        // However long it takes until there is room: it is not given up.
        wait_until("four attempts", SOON, || async {
            let sql = "select consecutive_errors from pgtrickle.pgt_stream_tables where pgt_name = 'cramped'";
            let errors: i32 = dba.query_one(sql, &[]).await.unwrap().get(0);
            if errors >= 4 { Ok(()) } else { Err(errors.to_string()) }
        })
        .await;
        assert_eq!(state(&dba, "cramped").await, ("ERROR".to_owned(), "53100".to_owned()));

        mount.grow(200);
        active("cramped").await;
        equal(&dba, "cramped", "select id, filler from app.src", "id, filler").await.unwrap();
        sidecar.terminate(SOON).await;
    })
    .await;
}
