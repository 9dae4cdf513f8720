//! State of stream tables: one that grows too large leaves and the others go on; figures are told in SQL.

use std::time::Duration;

use crate::harness::database::{APP, TestDatabase, pgtrickle, printed};
use crate::harness::oracle::assert_equal;
use crate::harness::servers::{Server, for_each_major};
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};
use crate::suites::http::client::{free_port, get};

/// Patience with what takes a machine that is busy a while.
const LONG: Duration = Duration::from_secs(240);
const HEALTHY: &str = "select v % 10 as v, count(*) as n, sum(id) as ids from t group by v % 10";

async fn start(server: &Server, rows: i64, more: &[&str]) -> (Sidecar, TestDatabase, tokio_postgres::Client) {
    let db = TestDatabase::create(server).await;
    db.install();
    let app = db.as_app().await;
    app.batch_execute(&format!(
        "create table t (id int primary key, v int);
         insert into t select i, i % 97 from generate_series(1, 1000) i;
         create table a (id int primary key, x int, note text);
         create table b (id int primary key, y int, note text);
         insert into a select i, i % 5, 'note ' || i from generate_series(1, {rows}) i;
         insert into b select i, i % 5, 'note ' || i from generate_series(1, {rows}) i;
         analyze"
    ))
    .await
    .unwrap();
    let mut sidecar = Sidecar::start(&db, &[&["--memory-limit", "2GiB"], more].concat());
    sidecar.wait_ready(SOON).await;
    create(&app, "healthy", HEALTHY).await;
    wait_status(&app, "healthy", "ACTIVE DIFFERENTIAL").await;
    (sidecar, db, app)
}

async fn create(app: &tokio_postgres::Client, name: &str, query: &str) {
    // The server itself computes nothing: it would be at it for hours.
    let sql = "select pgtrickle.create_stream_table($1, $2, initialize => false)";
    app.execute(sql, &[&name, &query]).await.unwrap();
}

async fn wait_status(app: &tokio_postgres::Client, name: &str, wanted: &str) {
    wait_until(&format!("{name} to be {wanted}"), LONG, || async {
        const SQL: &str = "select concat_ws(' ', status, case when status = 'ACTIVE' then refresh_mode end,
                last_error_sqlstate, last_error_message) from pgtrickle.stream_tables_info where pgt_name = $1";
        let now: String = app.query_one(SQL, &[&name]).await.map_err(|e| e.to_string())?.get(0);
        if now.starts_with(wanted) { Ok(()) } else { Err(now) }
    })
    .await;
}

async fn passed(app: &tokio_postgres::Client) {
    let sql = "select pgtrickle.wait_for(timeout => interval '60 s')";
    assert!(app.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "the frontier did not pass");
}

/// What `pgtrickle explain` prints for the owner.
fn explained(db: &TestDatabase, name: &str) -> String {
    let output = pgtrickle(&["explain", name, "--database-url", &db.url(APP)]);
    assert!(output.status.success(), "{}", printed(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Peak resident memory of a process, in MB.
fn peak_mb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_explosion_is_suspended_with_figures_while_writes_of_others_go_on() {
    for_each_major(async |server| {
        let (sidecar, db, app) = start(server, 100_000, &[]).await;
        let dba = db.as_dba().await;
        dba.batch_execute("insert into pgtrickle.settings values ('state_limit_mb', '64')").await.unwrap();
        let before = peak_mb(sidecar.pid());
        let started = std::time::Instant::now();
        // All ten thousand million pairs, then two thousand million.
        for (round, (name, query)) in (0i32..).zip([
            ("every_pair", "select a.id as a, b.id as b, a.note as na, b.note as nb from a cross join b"),
            ("many_pairs", "select a.id as a, b.id as b from a join b on a.x = b.y"),
        ]) {
            create(&app, name, query).await;
            for i in 0..20 {
                app.execute("insert into t values ($1, $1)", &[&(2000 + i + 100 * round)]).await.unwrap();
            }
            wait_status(&app, name, "SUSPENDED 54000 its state grew to").await;
            passed(&app).await;
            assert_equal(&app, HEALTHY, "healthy", "v, n, ids").await;
        }
        let peak = peak_mb(sidecar.pid());
        println!(
            "PostgreSQL {}: two explosions stopped in {:.1} s, peak memory {peak} MB (before: {before} MB), limit 64 MB",
            server.major,
            started.elapsed().as_secs_f64()
        );
        assert!(peak < before + 512, "peak memory {peak} MB");
        wait_status(&app, "healthy", "ACTIVE DIFFERENTIAL").await;
        // Another query under the same name is taken up again.
        let query = "select a.id as a, b.id as b, a.note as na, b.note as nb from a join b on a.id = b.id";
        let sql = "select pgtrickle.alter_stream_table('every_pair', query => $1)";
        app.execute(sql, &[&query]).await.unwrap();
        wait_status(&app, "every_pair", "ACTIVE DIFFERENTIAL").await;
        assert_equal(&app, query, "every_pair", "a, b, na, nb").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_only_makes_work_is_stopped_by_the_number_of_its_rows() {
    for_each_major(async |server| {
        let (_sidecar, db, app) = start(server, 20_000, &[]).await;
        let dba = db.as_dba().await;
        dba.batch_execute("insert into pgtrickle.settings values ('join_limit_rows', '3000000')")
            .await
            .unwrap();
        create(&app, "work", "select sum(a.id - b.id) as n from a cross join b").await;
        wait_status(&app, "work", "SUSPENDED 54000 its joins made more than 3000000 rows in one step").await;
        passed(&app).await;
        assert_equal(&app, HEALTHY, "healthy", "v, n, ids").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_can_be_raised_and_the_stream_table_comes_back_with_figures_of_each_operator() {
    for_each_major(async |server| {
        let port = free_port();
        let http = format!("127.0.0.1:{port}");
        let (_sidecar, db, app) = start(server, 20_000, &["--http", &http]).await;
        let dba = db.as_dba().await;
        dba.batch_execute("insert into pgtrickle.settings values ('state_limit_mb', '1')").await.unwrap();
        let query = "select a.id, a.note, b.note as other from a join b on a.id = b.id";
        create(&app, "joined", query).await;
        wait_status(&app, "joined", "SUSPENDED 54000 its state grew to").await;
        app.batch_execute(
            "select pgtrickle.set_state_limit('joined', 200); select pgtrickle.resume_stream_table('joined')",
        )
        .await
        .unwrap();
        wait_status(&app, "joined", "ACTIVE DIFFERENTIAL").await;
        assert_equal(&app, query, "joined", "id, note, other").await;
        let figures = "select coalesce(string_agg(format('%s | %s | %s | %s', operator, part, rows, shared), E'\\n'
                order by rows desc, operator, part), 'none') from pgtrickle.stream_table_state('joined') where bytes > 0";
        let text = || async { app.query_one(figures, &[]).await.unwrap().get::<_, String>(0) };
        wait_until("figures of the state", SOON, || async {
            let now = text().await;
            if now.contains("answer | 20000 | f") { Ok(()) } else { Err(now) }
        })
        .await;
        let figures = text().await;
        for line in [
            "Source app.a (id, note) | rows | 20000 | t",
            "Source app.a (id, note) | rows by key | 20000 | t",
            "Source app.b (id, note) | rows by key | 20000 | t",
        ] {
            assert!(figures.contains(line), "{line} is not in\n{figures}");
        }
        // The page of the stream table shows the same, as JSON and as a table.
        let detail = async || {
            let (_, body) = get(port, "/api/v1/stream_tables/app.joined").await?;
            serde_json::from_str::<serde_json::Value>(&body).map_err(|e| format!("{e}: {body}"))
        };
        wait_until("the state on the page", SOON, || async {
            let state = detail().await?["detail"]["state"].clone();
            let answer = state.as_array().into_iter().flatten().find(|row| row["part"] == "answer").cloned();
            match answer {
                Some(row) if row["rows"] == 20_000 && row["bytes"].as_i64() > Some(0) => Ok(()),
                _ => Err(state.to_string()),
            }
        })
        .await;
        let (status, html) = get(port, "/tables/app.joined").await.unwrap();
        let table = html.split("<h2 id=\"state\">State per operator</h2>").nth(1).expect("the section of the state");
        let table = table.split("</table>").next().unwrap();
        assert!(status == 200 && table.contains("Source app.a (id, note)") && table.contains("answer"), "{table}");
        // The program shows the owner the same, beside the plan.
        let shown = explained(&db, "app.joined");
        for line in [
            "state, as the sidecar said last:",
            ": answer: 20000 rows, ",
            "Source app.a (id, note): rows: 20000 rows, ",
            "Source app.b (id, note): rows by key: 20000 rows, ",
        ] {
            assert!(shown.contains(line), "{line} is not in\n{shown}");
        }
        let (plan, state) = shown.split_once("state, as the sidecar said last:").unwrap();
        assert!(plan.contains("status: ACTIVE") && plan.contains("Join"), "{plan}");
        assert!(state.lines().filter(|l| l.ends_with(" (shared)")).count() >= 3, "sources are shared:\n{state}");
        assert!(!explained(&db, "app.healthy").contains("app.b ("), "the state of the others is not shown");
        // The sum is for everybody, the plan only for its owner.
        const SIZES: &str = "select state_rows, state_bytes from pgtrickle.stream_table_sizes where pgt_name = 'joined'";
        let sizes = dba.query_one(SIZES, &[]).await.unwrap();
        assert_eq!(sizes.get::<_, i64>(0), 20_000);
        println!("PostgreSQL {}: {} bytes per row of a joined answer", server.major, sizes.get::<_, i64>(1) / 20_000);
        dba.batch_execute("create role state_stranger; select pgtrickle.grant_usage('state_stranger')").await.unwrap();
        dba.batch_execute("set role state_stranger").await.unwrap();
        let seen = dba.query_one("select count(*) from pgtrickle.pgt_operator_state", &[]).await;
        assert!(seen.is_err() || seen.unwrap().get::<_, i64>(0) == 0);
        assert!(dba.execute("select * from pgtrickle.stream_table_state('app.joined')", &[]).await.is_err());
        dba.batch_execute("reset role; drop owned by state_stranger; drop role state_stranger").await.unwrap();
        // What a lower limit no longer allows leaves with the next step.
        app.batch_execute("select pgtrickle.set_state_limit('joined', 1)").await.unwrap();
        wait_until("the limit to be noticed", LONG, || async {
            app.batch_execute("update a set note = note || 'x' where id = 1").await.map_err(|e| e.to_string())?;
            const SQL: &str = "select status from pgtrickle.stream_tables_info where pgt_name = 'joined'";
            match app.query_one(SQL, &[]).await.map_err(|e| e.to_string())?.get::<_, String>(0).as_str() {
                "SUSPENDED" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        assert!(app.execute("select pgtrickle.set_state_limit('joined', 0)", &[]).await.is_err());
    })
    .await;
}
