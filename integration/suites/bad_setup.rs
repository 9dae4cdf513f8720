//! A server, a role or a schema that is not what `pgtrickle run` needs: it ends at once with the documented exit code,
//! one sentence and what to do, and leaves nothing behind. Once it has served, it waits for better times.

use std::time::Duration;

use pgtrickle::postgres::cluster::StopMode;
use tokio_postgres::Client;

use super::bad_input::{TRACES, value, wait_value};
use super::stand_in::{Refuses, StandIn};
use crate::harness::database::{SIDECAR, connect, pgtrickle, printed};
use crate::harness::servers::{SUPERUSER, Server, each, own_cluster};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

/// "At once": a first start must not try for long.
const PROMPT: Duration = Duration::from_secs(20);

/// Runs the sidecar, which must end by itself with `code`, having said all of `words`.
async fn run_fails(url: &str, extra: &[&str], code: i32, words: &[&str]) {
    let mut sidecar = Sidecar::start_with_url(url, extra);
    let ended = sidecar.wait_exit(PROMPT).await;
    let log = sidecar.logs();
    assert_eq!(ended, Some(code), "{log}");
    let told: Vec<&str> =
        log.lines().filter(|l| l.starts_with("error: ") || l.starts_with("hint: ")).collect();
    assert_eq!(told.len(), 2, "one sentence and one hint: {log}");
    for word in words {
        assert!(told.join("\n").contains(word), "{word:?} is not in:\n{log}");
    }
}

/// A role of this test alone, as the sidecar's role of its database.
async fn own_role(db: &TestDatabase, dba: &Client, attributes: &str) -> String {
    let role = format!("side_{}", db.name);
    dba.batch_execute(&format!(
        "create role {role} login {attributes}; select pgtrickle.set_sidecar_role('{role}')"
    ))
    .await
    .unwrap();
    role
}

async fn forget_role(dba: &Client, role: &str) {
    dba.batch_execute(&format!("drop owned by {role}")).await.unwrap();
    dba.batch_execute(&format!("drop role {role}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_or_schema_that_will_not_do_is_told_at_once() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        let dba = db.as_dba().await;
        let url = db.url(SIDECAR);
        run_fails(&url, &[], 8, &["not installed", "pgtrickle init"]).await;
        // Installed without --sidecar-role.
        assert!(pgtrickle(&["init", "--database-url", &db.url(SUPERUSER)]).status.success());
        run_fails(&url, &[], 5, &["role pgtrickle has no rights", "--sidecar-role pgtrickle"]).await;
        db.install();
        let before = value(&dba, TRACES).await;
        let plain = own_role(&db, &dba, "").await;
        run_fails(
            &db.url(&plain),
            &["--cdc-mode", "wal"],
            5,
            &["REPLICATION", "alter role", "(SQLSTATE 42501)"],
        )
        .await;
        assert_eq!(value(&dba, TRACES).await, before, "a refused start left something");
        dba.batch_execute(&format!(
            "alter role {plain} replication;
             revoke execute on function pgtrickle.publication_sync(text, regclass[]) from {plain}"
        ))
        .await
        .unwrap();
        run_fails(&db.url(&plain), &[], 5, &["has no rights", "--sidecar-role"]).await;
        db.install();
        run_fails(&url, &["--pipeline", "nosuch"], 2, &["no pipeline nosuch", "main"]).await;
        run_fails(&format!("{url}x"), &[], 2, &["does not exist", "PGDATABASE"]).await;
        dba.batch_execute("update pgtrickle.schema_files set checksum = 'older' where file like '003%'")
            .await
            .unwrap();
        run_fails(&url, &[], 8, &["not that of this binary", "pgtrickle init"]).await;
        db.install();
        dba.batch_execute("update pgtrickle.settings set value = '999' where key = 'schema_version'")
            .await
            .unwrap();
        run_fails(&url, &[], 12, &["version 999", "upgrade this binary"]).await;
        let init = pgtrickle(&["init", "--database-url", &db.url(SUPERUSER)]);
        assert_eq!(init.status.code(), Some(12), "{}", printed(&init));
        assert_eq!(value(&dba, TRACES).await, before, "a refused start left something");
        forget_role(&dba, &plain).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_extension_pg_trickle_is_recognised_and_left_alone() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        let dba = db.as_dba().await;
        // As the extension leaves it: its row, and a schema with the same name.
        dba.batch_execute(
            "set allow_system_table_mods = on;
             create schema pgtrickle; create table pgtrickle.pgt_stream_tables (pgt_id bigint);
             insert into pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
             values (9999, 'pg_trickle', 10, 'pgtrickle'::regnamespace, false, '0.57.0')",
        )
        .await
        .unwrap();
        run_fails(&db.url(SIDECAR), &[], 12, &["extension pg_trickle", "DROP EXTENSION"]).await;
        let init = pgtrickle(&["init", "--database-url", &db.url(SUPERUSER), "--sidecar-role", SIDECAR]);
        assert_eq!(init.status.code(), Some(12), "{}", printed(&init));
        assert!(printed(&init).contains("DROP EXTENSION"), "{}", printed(&init));
        let tables =
            "select string_agg(relname, ',') from pg_class where relnamespace = 'pgtrickle'::regnamespace";
        assert_eq!(value(&dba, tables).await, "pgt_stream_tables");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_or_a_pooler_that_will_not_do_is_told_at_once() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let dba = db.as_dba().await;
        let before = value(&dba, TRACES).await;
        run_fails(&db.url_by(SIDECAR, 1), &[], 3, &["127.0.0.1:1/", "check host, port"]).await;
        run_fails(&format!("{}?sslmode=require", db.url(SIDECAR)), &[], 4, &["TLS", "sslmode"]).await;
        for refuses in [Refuses::Options, Refuses::Replication] {
            let pooler = StandIn::start(db.port(), refuses).await;
            run_fails(
                &db.url_by(SIDECAR, pooler.port()),
                &[],
                6,
                &["unsupported startup parameter", "pooler"],
            )
            .await;
        }
        // One that swallows the options.
        let pooler = StandIn::start(db.port(), Refuses::Nothing).await;
        run_fails(&db.url_by(SIDECAR, pooler.port()), &[], 6, &["options", "pooler"]).await;
        assert_eq!(
            value(
                &dba,
                "select count(*) from pg_replication_slots where active and database = current_database()"
            )
            .await,
            "0"
        );
        // The start that reached the server before its replication session was refused leaves its slot for the next one.
        let slots =
            value(&dba, "select count(*) from pg_replication_slots where database = current_database()")
                .await;
        assert!(slots == "0" || slots == "1", "{slots}");
        assert_eq!(before.split(' ').next(), Some("0"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_has_been_served_is_waited_for_while_its_name_is_gone() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute("create table t (id int primary key)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('st', 'select id from t')").await.unwrap();
        drop(app);
        let root = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
        let rename = async |from: &str, to: &str| {
            wait_until("the database to be renamed", SOON, || async {
                // Nobody may be connected meanwhile.
                let end = format!(
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{from}'"
                );
                root.batch_execute(&end).await.map_err(|e| e.to_string())?;
                let rename = format!("alter database {from} rename to {to}");
                root.batch_execute(&rename).await.map_err(|e| e.to_string())
            })
            .await;
        };
        let away = format!("{}_away", db.name);
        rename(&db.name, &away).await;
        wait_until("the sidecar to have missed it twice", SOON, || async {
            let missed = sidecar
                .logs()
                .lines()
                .filter(|l| l.contains("starting again") && l.contains("3D000"))
                .count();
            if missed >= 2 { Ok(()) } else { Err(format!("{missed} times")) }
        })
        .await;
        assert!(sidecar.is_running());
        rename(&away, &db.name).await;
        let app = db.as_app().await;
        app.batch_execute("insert into t values (1)").await.unwrap();
        wait_value(&app, "select count(*) from st", "1").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sidecar_ends_and_the_first_goes_on() {
    for_each_major(async |server| {
        let (db, mut first) = super::bad_input::live(server).await;
        let dba = db.as_dba().await;
        let generation = "select generation from pgtrickle.pgt_pipelines";
        let before = value(&dba, generation).await;
        run_fails(
            &db.url(SIDECAR),
            &[],
            7,
            &["another sidecar serves the pipeline main (pid ", "one sidecar"],
        )
        .await;
        assert_eq!(value(&dba, generation).await, before, "the second one fenced off the first");
        assert_eq!(first.terminate(SOON).await, Some(0));
    })
    .await;
}

async fn installed(server: &Server) -> (TestDatabase, Client) {
    let db = TestDatabase::create(server).await;
    db.install();
    let dba = db.as_dba().await;
    (db, dba)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_set_up_is_told_at_once() {
    each(async |major| {
        let settings = [("wal_level", "replica"), ("max_replication_slots", "1"), ("max_wal_senders", "1")];
        let mut server = own_cluster(major, &settings).await;
        let (db, dba) = installed(&server).await;
        let before = value(&dba, TRACES).await;
        let wal = ["--cdc-mode", "wal"];
        run_fails(&db.url(SIDECAR), &wal, 6, &["wal_level is replica", "wal_level = logical", "restart"])
            .await;
        assert_eq!(value(&dba, TRACES).await, before);
        drop(dba);
        server.cluster.set("wal_level", "logical");
        server.cluster.restart(StopMode::Fast).unwrap();
        let dba = db.as_dba().await;
        dba.batch_execute("select pg_create_physical_replication_slot('somebodys')").await.unwrap();
        run_fails(&db.url(SIDECAR), &wal, 6, &["(SQLSTATE 53400)", "max_replication_slots"]).await;
        assert_eq!(value(&dba, TRACES).await, before, "a publication or a slot is left");
        // A password that is wrong or missing.
        dba.batch_execute(
            "select pg_drop_replication_slot('somebodys'); set password_encryption = 'scram-sha-256';
            alter role pgtrickle password 'right'",
        )
        .await
        .unwrap();
        let hba = server.cluster.data_dir().join("pg_hba.conf");
        let trust = std::fs::read_to_string(&hba).unwrap();
        std::fs::write(&hba, format!("host all {SIDECAR} all scram-sha-256\n{trust}")).unwrap();
        dba.batch_execute("select pg_reload_conf()").await.unwrap();
        let with = |password: &str| db.url(SIDECAR).replace(SIDECAR, &format!("{SIDECAR}:{password}"));
        wait_until("the password to be asked for", SOON, || async {
            match tokio_postgres::connect(&with("wrong"), tokio_postgres::NoTls).await {
                Ok(_) => Err("let in".to_owned()),
                Err(_) => Ok(()),
            }
        })
        .await;
        run_fails(&with("wrong"), &[], 4, &["(SQLSTATE 28P01)", "PGPASSWORD"]).await;
        run_fails(&db.url(SIDECAR), &[], 4, &["password", "PGPASSWORD"]).await;
        std::fs::write(&hba, format!("host all {SIDECAR} all reject\n{trust}")).unwrap();
        dba.batch_execute("select pg_reload_conf()").await.unwrap();
        wait_until("nobody to be let in", SOON, || async {
            match tokio_postgres::connect(&with("right"), tokio_postgres::NoTls).await {
                Ok(_) => Err("let in".to_owned()),
                Err(_) => Ok(()),
            }
        })
        .await;
        run_fails(&with("right"), &[], 4, &["pg_hba.conf", "(SQLSTATE 28000)"]).await;
        assert_eq!(value(&dba, TRACES).await, before);
        std::fs::write(&hba, trust).unwrap();
        // A standby: the same files, in recovery, with nothing to receive.
        drop(dba);
        server.cluster.stop(StopMode::Fast).unwrap();
        std::fs::write(server.cluster.data_dir().join("standby.signal"), "").unwrap();
        server.cluster.start_again().unwrap();
        run_fails(&db.url(SIDECAR), &[], 6, &["standby", "primary"]).await;
        let init = pgtrickle(&["init", "--database-url", &db.url(SUPERUSER)]);
        assert_eq!(init.status.code(), Some(6), "{}", printed(&init));
        server.cluster.stop(StopMode::Immediate).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_it_has_served_a_setup_that_went_wrong_is_waited_for() {
    for_each_major(async |server| {
        let (db, dba) = installed(server).await;
        let role = own_role(&db, &dba, "replication").await;
        dba.batch_execute(&format!("grant usage on schema app to {role}")).await.unwrap();
        let app = db.as_app().await;
        app.batch_execute(&format!("create table src (id int primary key); grant select on src to {role}"))
            .await
            .unwrap();
        let mut sidecar = Sidecar::start_with_url(&db.url(&role), &[]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('t', 'select id from src')").await.unwrap();
        let again = |log: &str| log.matches("starting again").count();
        for (n, (break_it, mend_it)) in [
            (format!("alter role {role} nologin"), format!("alter role {role} login")),
            (format!("alter role {role} noreplication"), format!("alter role {role} replication")),
            (
                format!("revoke usage on schema pgtrickle from {role}"),
                format!("grant usage on schema pgtrickle to {role}"),
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let seen = again(&sidecar.logs());
            dba.batch_execute(&break_it).await.unwrap();
            dba.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1",
                &[&role],
            )
            .await
            .unwrap();
            // Without REPLICATION it goes on by triggers.
            let tries = if break_it.ends_with("noreplication") { 1 } else { 2 };
            wait_until("it to try again", SOON, || async {
                let log = sidecar.logs();
                if again(&log) >= seen + tries {
                    Ok(())
                } else {
                    Err(log.lines().last().unwrap_or("").to_owned())
                }
            })
            .await;
            app.batch_execute(&format!("insert into src values ({n})")).await.unwrap();
            dba.batch_execute(&mend_it).await.unwrap();
            wait_value(&app, "select (select count(*) from t) = (select count(*) from src)", "true").await;
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_role(&dba, &role).await;
    })
    .await;
}
