//! The harness itself: a harness that does not notice is worse than none.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio_postgres::error::SqlState;

use crate::harness::database::{APP, SIDECAR, connect};
use crate::harness::fault::{Proxy, terminate_role, terminate_slot};
use crate::harness::oracle::{assert_equal, difference, difference_of_text};
use crate::harness::servers::SUPERUSER;
use crate::harness::wait::{SOON, wait_for_value, wait_until};
use crate::harness::{Sidecar, TestDatabase, for_each_major};

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_have_exactly_the_rights_of_a_real_installation() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        let app = database.as_app().await;
        app.batch_execute("create table orders (id int primary key)").await.unwrap();
        let schema = app
            .query_one("select relnamespace::regnamespace::text from pg_class where relname = 'orders'", &[]);
        assert_eq!(schema.await.unwrap().get::<_, &str>(0), "app");
        let sidecar = database.as_sidecar().await;
        // It may read sources, as the documentation asks, and no more.
        sidecar.query("select from app.orders", &[]).await.unwrap();
        for refused in [
            "insert into app.orders values (1)",
            "create table app.mine (a int)",
            "alter table app.orders add b int",
        ] {
            let denied = sidecar.batch_execute(refused).await.unwrap_err();
            assert_eq!(denied.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{refused}");
        }
        let slot = format!("{}_slot", database.name);
        sidecar.query("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.unwrap();
        for (role, expected) in [(APP, (false, false)), (SIDECAR, (false, true)), (SUPERUSER, (true, true))] {
            let row = app
                .query_one("select rolsuper, rolreplication from pg_roles where rolname = $1", &[&role])
                .await
                .unwrap();
            assert_eq!((row.get(0), row.get(1)), expected, "{role}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_goes_with_its_sessions_and_slots() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        let name = database.name.clone();
        let slot = format!("{name}_slot");
        let sidecar = database.as_sidecar().await;
        sidecar
            .query("select pg_create_logical_replication_slot($1, 'test_decoding')", &[&slot])
            .await
            .unwrap();
        // A session that sits in a transaction and one that holds the slot.
        let app = database.as_app().await;
        app.batch_execute("begin; create table held ()").await.unwrap();
        drop(database);
        let root = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
        let left = root
            .query_one(
                "select (select count(*) from pg_database where datname = $1)
                      + (select count(*) from pg_replication_slots where slot_name = $2)",
                &[&name, &slot],
            )
            .await
            .unwrap();
        assert_eq!(left.get::<_, i64>(0), 0);
        assert!(app.batch_execute("commit").await.is_err());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_sees_missing_surplus_and_repeated_rows() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        let app = database.as_app().await;
        app.batch_execute(
            "create table source (a int, b text); create table target (b text, a int, extra int);
             insert into source values (1, 'x'), (1, 'x'), (2, null), (3, 'only here');
             insert into target values ('x', 1), (null, 2), ('only there', 4)",
        )
        .await
        .unwrap();
        let query = "select a, b from source; ";
        let found = difference(&app, query, "target", "a, b").await.unwrap();
        let expected = ["missing: (1,x)", "missing: (3,\"only here\")", "surplus: (4,\"only there\")"]
            .map(str::to_owned);
        let mut sorted = found.clone();
        sorted.sort();
        assert_eq!(sorted, expected);
        let failure =
            std::panic::AssertUnwindSafe(assert_equal(&app, query, "target", "a, b")).catch_unwind().await;
        assert!(failure.is_err());
        app.batch_execute("delete from target; insert into target select b, a from source").await.unwrap();
        assert_equal(&app, query, "target", "a, b").await;
        // SQL equality and equality of text are different questions.
        app.batch_execute("create table n (v numeric); insert into n values (1.0)").await.unwrap();
        assert!(difference(&app, "select 1.00 as v", "n", "v").await.unwrap().is_empty());
        assert_eq!(difference_of_text(&app, "select 1.00 as v", "n", "v").await.unwrap().len(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_cuts_freezes_delays_and_heals() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        let proxy = Proxy::start(database.port()).await;
        let url = database.url_by(APP, proxy.port());
        let client = connect(&url).await;
        client.batch_execute("select 1").await.unwrap();

        proxy.freeze();
        let blocked =
            tokio::time::timeout(Duration::from_millis(100), client.batch_execute("select 1")).await;
        assert!(blocked.is_err(), "a frozen proxy let an answer pass");
        proxy.heal();
        client.batch_execute("select 1").await.unwrap();

        proxy.delay(Duration::from_millis(30));
        let start = Instant::now();
        client.batch_execute("select 1").await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(60), "both directions are delayed");
        proxy.heal();

        proxy.cut();
        wait_until("the cut to be noticed", SOON, || async {
            if client.is_closed() { Ok(()) } else { Err("still open".to_owned()) }
        })
        .await;
        let client = connect(&url).await;
        proxy.partition();
        wait_for_value("the partition to be noticed", SOON, true, || async { client.is_closed() }).await;
        assert!(tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_err());
        proxy.heal();
        connect(&url).await.batch_execute("select 1").await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_ended_by_role_and_only_in_their_database() {
    for_each_major(async |server| {
        let (one, two) = (TestDatabase::create(server).await, TestDatabase::create(server).await);
        let (dba, victim, bystander) = (one.as_dba().await, one.as_sidecar().await, two.as_sidecar().await);
        assert_eq!(terminate_slot(&dba, "no_such_slot").await, 0);
        assert_eq!(terminate_role(&dba, SIDECAR).await, 1);
        wait_for_value("the session to end", SOON, true, || async { victim.is_closed() }).await;
        bystander.batch_execute("select 1").await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_fails_says_for_what_and_what_it_saw() {
    let wait =
        wait_until("rain", Duration::from_millis(30), || async { Err::<(), _>("sunshine".to_owned()) });
    let failure = std::panic::AssertUnwindSafe(wait).catch_unwind().await.unwrap_err();
    let text = failure.downcast_ref::<String>().unwrap();
    assert!(
        text.contains("rain") && text.contains("sunshine") && text.contains("suites/harness.rs"),
        "{text}"
    );
    let stuck = wait_until(
        "a look that hangs",
        Duration::from_millis(30),
        std::future::pending::<Result<(), String>>,
    );
    assert!(std::panic::AssertUnwindSafe(stuck).catch_unwind().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_is_waited_for_paused_terminated_and_killed() {
    let script = "trap 'echo bye; exit 3' TERM; echo up and ready; while :; do sleep 0.01; echo tick; done";
    let arguments = vec!["-c".to_owned(), script.to_owned()];
    let mut sidecar = Sidecar::start_program("/bin/sh".into(), arguments);
    sidecar.wait_ready(SOON).await;

    sidecar.pause();
    let ticks = |sidecar: &Sidecar| sidecar.logs().lines().filter(|line| *line == "tick").count();
    // The signal takes a moment: paused is when two looks see the same.
    wait_until("the ticks to stop", SOON, || async {
        let before = ticks(&sidecar);
        tokio::time::sleep(Duration::from_millis(60)).await;
        let after = ticks(&sidecar);
        if before == after { Ok(()) } else { Err(format!("{after} ticks")) }
    })
    .await;
    let paused = ticks(&sidecar);
    sidecar.resume();
    wait_for_value("the ticks to go on", SOON, true, || async { ticks(&sidecar) > paused }).await;

    assert_eq!(sidecar.terminate(SOON).await, Some(3));
    assert!(sidecar.logs().ends_with("bye\n"));
    sidecar.start_again();
    wait_for_value("the second start", SOON, 2, || async { sidecar.logs().matches("up and ready").count() })
        .await;
    sidecar.kill9();
    assert_eq!(sidecar.wait_exit(SOON).await, None);
    assert_eq!(sidecar.logs().matches("bye").count(), 1);
}
