//! One sidecar for all databases of a server: isolated, and never in the way of a database that it does not serve.

use tokio_postgres::Client;

use super::http::client::{free_port, get};
use crate::harness::database::{SIDECAR, connect};
use crate::harness::servers::{SUPERUSER, Server, each};
use crate::harness::wait::wait_for_value;
use crate::harness::{SOON, Sidecar, TestDatabase, own_cluster, wait_until};

/// A database with the schema and one source.
async fn served(server: &Server) -> (TestDatabase, Client) {
    let db = TestDatabase::create(server).await;
    db.install();
    let app = db.as_app().await;
    app.batch_execute("create table t (id int primary key); insert into t values (1), (2)").await.unwrap();
    (db, app)
}

fn launch(server: &Server) -> Sidecar {
    launch_with(server, &[])
}

fn launch_with(server: &Server, more: &[&str]) -> Sidecar {
    let url = server.cluster.conninfo("postgres", SIDECAR);
    Sidecar::start_with_url(&url, &[&["--all-databases"], more].concat())
}

/// Waits until `/readyz` answers so, with all of these words.
async fn readiness(port: u16, wanted: u16, words: &[&str]) {
    wait_until(&format!("readiness to be {wanted} {words:?}"), SOON, || async {
        match get(port, "/readyz").await? {
            (status, body) if status == wanted && words.iter().all(|word| body.contains(word)) => Ok(()),
            (status, body) => Err(format!("{status} {body}")),
        }
    })
    .await;
}

async fn maintenance(server: &Server) -> Client {
    connect(&server.cluster.conninfo("postgres", SUPERUSER)).await
}

/// Makes a stream table that counts, once a sidecar serves the database.
async fn count_rows(app: &Client) {
    let alive = async || -> bool {
        app.query_one("select pgtrickle.sidecar_alive('main')", &[]).await.unwrap().get(0)
    };
    wait_for_value("the database to be served", SOON, true, alive).await;
    app.batch_execute("select pgtrickle.create_stream_table('n', 'select count(*) as n from t')")
        .await
        .unwrap();
}

/// Waits for a line of the log with both. It says so after the commit that can be seen.
async fn says(sidecar: &Sidecar, span: &str, what: &str) {
    wait_until(&format!("{span} to say {what:?}"), SOON, || async {
        let log = sidecar.logs();
        let said = log.lines().any(|l| l.contains(span) && l.contains(what));
        if said { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
    })
    .await;
}

async fn follows(app: &Client) {
    let change = "insert into t select coalesce(max(id), 0) + 1 from t";
    app.batch_execute(change).await.unwrap();
    wait_until("the stream table to follow", SOON, || async {
        let sql = "select n.n = (select count(*) from t), n.n from n";
        let row = app.query_one(sql, &[]).await.map_err(|e| e.to_string())?;
        if row.get(0) { Ok(()) } else { Err(row.get::<_, i64>(1).to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_databases_are_served_and_a_broken_one_harms_no_other() {
    each(async |major| {
        let server = own_cluster(major, &[("max_connections", "100")]).await;
        let mut databases = Vec::new();
        for _ in 0..5 {
            databases.push(served(&server).await);
        }
        let (broken, _) = databases.remove(2);
        let dba = broken.as_dba().await;
        dba.batch_execute("update pgtrickle.settings set value = '999' where key = 'schema_version'")
            .await
            .unwrap();
        let bystander = TestDatabase::create(&server).await;
        let port = free_port();
        let mut sidecar = launch_with(&server, &["--http", &format!("127.0.0.1:{port}")]);
        for (_, app) in &databases {
            count_rows(app).await;
        }
        for (_, app) in &databases {
            follows(app).await;
        }
        // It alone is missed, as long as nobody serves it.
        readiness(port, 503, &[&broken.name, "its supervisor ended"]).await;
        for (path, word) in [("/metrics", "pgtrickle_up{database=\"{}\",pipeline=\"main\"} 0"), ("/", "{}")] {
            let (status, said) = get(port, path).await.unwrap();
            assert!(status == 200 && said.contains(&word.replace("{}", &broken.name)), "{path}: {said}");
        }
        wait_until("the broken one to be told", SOON, || async {
            let told = sidecar.logs().lines().any(|l| {
                l.contains(&format!("database={} ", broken.name)) && l.contains("its supervisor ended")
            });
            if told { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
        for (db, _) in &databases {
            for what in ["streaming started", "reconciled and live"] {
                says(&sidecar, &format!("database{{name={}}}", db.name), what).await;
            }
        }
        // Its schema is put right: it is taken up, and the others did not notice.
        dba.batch_execute("delete from pgtrickle.settings where key = 'schema_version'").await.unwrap();
        broken.install();
        count_rows(&broken.as_app().await).await;
        for (_, app) in &databases {
            follows(app).await;
        }
        readiness(port, 200, &[]).await;
        // A database that is not served can be dropped at any time.
        let root = maintenance(&server).await;
        root.batch_execute(&format!("drop database {}", bystander.name)).await.unwrap();
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        assert!(sidecar.logs().contains("all databases stopped"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_come_go_and_change_their_names() {
    each(async |major| {
        let server = own_cluster(major, &[("max_connections", "100")]).await;
        let port = free_port();
        let mut sidecar = launch_with(&server, &["--http", &format!("127.0.0.1:{port}")]);
        // Nobody has made the schema yet: there is nothing to wait for.
        readiness(port, 200, &[]).await;
        let (first, first_app) = served(&server).await;
        let (second, second_app) = served(&server).await;
        for app in [&first_app, &second_app] {
            count_rows(app).await;
            follows(app).await;
        }
        // One more appears.
        let (_third, third_app) = served(&server).await;
        count_rows(&third_app).await;
        follows(&third_app).await;
        let root = maintenance(&server).await;
        // One is renamed, for which nobody may be connected.
        drop(second_app);
        let (old, new) = (second.name.clone(), format!("{}_renamed", second.name));
        root.batch_execute(&format!("alter database {old} allow_connections false")).await.unwrap();
        wait_until("the database to be renamed", SOON, || async {
            let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
            root.execute(end, &[&old]).await.map_err(|e| e.to_string())?;
            let rename = format!("alter database {old} rename to {new}");
            root.batch_execute(&rename).await.map_err(|e| e.to_string())
        })
        .await;
        root.batch_execute(&format!("alter database {new} allow_connections true")).await.unwrap();
        let renamed = connect(&server.cluster.conninfo(&new, crate::harness::database::APP)).await;
        follows(&renamed).await;
        // One is closed to connections: the sidecar leaves it by itself, and it can be dropped (its slot goes with it).
        drop(first_app);
        root.batch_execute(&format!("alter database {} allow_connections false", first.name)).await.unwrap();
        wait_until("the database to be dropped", SOON, || async {
            let drop = format!("drop database {}", first.name);
            root.batch_execute(&drop).await.map_err(|e| e.to_string())
        })
        .await;
        // Its sessions end before it says so.
        wait_until("the sidecar to say that it has left", SOON, || async {
            let log = sidecar.logs();
            let said = log.lines().any(|l| l.contains(&first.name) && l.contains("no longer served"));
            if said { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
        })
        .await;
        follows(&third_app).await;
        follows(&renamed).await;
        drop(renamed);
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pipeline_of_a_database_is_served() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let (db, app) = served(&server).await;
        let dba = db.as_dba().await;
        dba.batch_execute("select pgtrickle.create_pipeline('b')").await.unwrap();
        let mut sidecar = launch(&server);
        count_rows(&app).await;
        let alive = async |pipeline: &'static str| -> bool {
            app.query_one("select pgtrickle.sidecar_alive($1)", &[&pipeline]).await.unwrap().get(0)
        };
        wait_for_value("pipeline b to be served", SOON, true, || alive("b")).await;
        app.batch_execute(
            "select pgtrickle.create_stream_table('m', 'select max(id) as m from t', pipeline => 'b')",
        )
        .await
        .unwrap();
        follows(&app).await;
        wait_until("the stream table of pipeline b to follow", SOON, || async {
            let equal = "select (select m.m from m) = (select max(id) from t)";
            let row = app.query_one(equal, &[]).await.map_err(|e| e.to_string())?;
            if row.get(0) { Ok(()) } else { Err("it does not".to_owned()) }
        })
        .await;
        says(&sidecar, &format!("database{{name={} pipeline=b}}", db.name), "reconciled and live").await;
        // One that is made while it runs is found, and one that is dropped is left alone.
        dba.batch_execute("select pgtrickle.create_pipeline('c'); select pgtrickle.detach('b')")
            .await
            .unwrap();
        wait_for_value("pipeline c to be served", SOON, true, || alive("c")).await;
        wait_for_value("pipeline b to be left", SOON, false, || alive("b")).await;
        wait_until("pipeline b to be dropped", SOON, || async {
            dba.batch_execute("select pgtrickle.drop_pipeline('b', true)").await.map_err(|e| e.to_string())
        })
        .await;
        follows(&app).await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
