//! Several processes as one engine: the same answers, even shares, and whatever happens to one of them, the others start
//! again with it and converge. The processes are real, on loopback and behind a network of their own.

mod network;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::oracle::prng::seed;
use super::oracle::round::{Options, play};
use crate::harness::cluster::{Members, PATIENCE, SILENCE, free_port};
use crate::harness::oracle::difference;
use crate::harness::{SOON, Server, Sidecar, TestDatabase, for_each_major, wait_until};

/// Stream tables over customers and orders: a sum by key, a join, and what PostgreSQL computes for each row and group.
const VIEWS: &[(&str, &str, &str)] = &[
    (
        "by_customer",
        "select customer_id, sum(amount) as total, count(*) as n from orders group by customer_id",
        "customer_id, total, n",
    ),
    (
        "by_order",
        "select o.id, c.name, o.amount from orders o join customers c on c.id = o.customer_id",
        "id, name, amount",
    ),
    ("written", "select id, md5(note) as digest from orders where amount > 20", "id, digest"),
    (
        "named",
        "select customer_id, string_agg(note, ',' order by id) as notes from orders group by customer_id",
        "customer_id, notes",
    ),
];

/// Tables with rows, and the stream tables, which the next sidecar finds.
async fn scene(server: &Server, orders: u32) -> (TestDatabase, Client) {
    let database = TestDatabase::create(server).await;
    database.install();
    let app = database.as_app().await;
    app.batch_execute(&format!(
        "create table customers (id bigint primary key, name text not null);
         create table orders (id bigint primary key, customer_id bigint not null, amount numeric not null, note text);
         insert into customers select i, 'customer ' || i from generate_series(1, {orders} / 10) i;
         insert into orders select i, 1 + i % ({orders} / 10), i % 97, 'note ' || i from generate_series(1, {orders}) i"
    ))
    .await
    .unwrap();
    for (name, query, _) in VIEWS {
        app.execute("select pgtrickle.create_stream_table($1, $2)", &[name, query]).await.unwrap();
    }
    (database, app)
}

/// Some transactions; `round` makes each call another one.
async fn write(app: &Client, round: u32) {
    for i in 0..10 {
        app.batch_execute(&format!(
            "begin;
             insert into orders select 1000000 + {round} * 1000 + {i} * 10 + g, 1 + g, {i}, 'new' from generate_series(0, 9) g;
             update orders set amount = amount + {round}, note = note || {i} where id % 40 = {i};
             update customers set name = name || {round} where id % 50 = {i};
             delete from orders where id % 101 = {round} + {i};
             commit"
        ))
        .await
        .unwrap();
    }
}

/// Waits until all stream tables are live and hold what was committed, and compares them.
async fn converge(app: &Client, what: &str) {
    let live = "select count(*) from pgtrickle.pgt_stream_tables where status = 'ACTIVE'";
    let started = Instant::now();
    wait_until(&format!("the stream tables to be live and fresh ({what})"), SOON, || async {
        let active: i64 = app.query_one(live, &[]).await.unwrap().get(0);
        if active != VIEWS.len() as i64 {
            return Err(format!("{active} are active"));
        }
        let fresh = app.query_one("select pgtrickle.wait_for(timeout => '2 s')", &[]).await;
        match fresh {
            Ok(row) if row.get::<_, bool>(0) => Ok(()),
            Ok(_) => Err("wait_for ended in vain".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    })
    .await;
    for (name, query, columns) in VIEWS {
        let rows = difference(app, query, name, columns).await.unwrap();
        assert!(rows.is_empty(), "{what}: {name} differs from its query: {:?}", &rows[..rows.len().min(5)]);
    }
    println!("  {what}: converged after {:.1} s", started.elapsed().as_secs_f64());
}

fn leader(database: &TestDatabase, members: &Members) -> Sidecar {
    let arguments = members.arguments(0);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Sidecar::start(database, &arguments)
}

/// Waits until the log of a process says something more often than before.
async fn says(process: &Sidecar, words: &str, before: usize) {
    wait_until(&format!("the log to say {words:?}"), SOON, || async {
        let logs = process.logs();
        let count = logs.matches(words).count();
        if count > before { Ok(()) } else { Err(logs.lines().last().unwrap_or_default().to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_give_the_same_answers_at_every_commit() {
    for_each_major(async |server| {
        let options = Options {
            members: Some(|| Members::start(3, PATIENCE)),
            transactions: 150,
            ..Options::default()
        };
        play(server, seed() + 7000, options).await;
        play(server, seed() + 8000, Options { fixed: true, arguments: &["--workers", "2"], ..options }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_spread_within_a_fifth_of_even() {
    for_each_major(async |server| {
        let (database, app) = scene(server, 30_000).await;
        let members = Members::start(3, PATIENCE);
        let mut sidecar = leader(&database, &members);
        sidecar.wait_ready(SOON).await;
        converge(&app, "a load of 30000 rows").await;
        // Figures come from each process at its own moment, while batches of different sizes are being merged: at rest they
        // are told once more.
        let shares = wait_until("shares within a fifth of even", SOON, || async {
            let shares = shares(&sidecar.logs());
            let rows: u64 = shares.values().map(|s| s.1).sum();
            let even = [|s: &(u64, u64)| s.0, |s: &(u64, u64)| s.1].into_iter().all(|figure| {
                let mean = shares.values().map(figure).sum::<u64>() as f64 / 3.0;
                shares.values().map(figure).all(|v| (v as f64 - mean).abs() <= mean / 5.0)
            });
            if shares.len() == 3 && rows == 33_000 && even { Ok(shares) } else { Err(format!("{shares:?}")) }
        })
        .await;
        println!("  bytes and source rows by process: {shares:?}");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        for mut member in members.processes {
            says(&member, "the run has ended", 0).await;
            assert_eq!(member.terminate(SOON).await, Some(0));
        }
    })
    .await;
}

/// The last figures of each process: bytes of everything, and rows of the sources.
fn shares(logs: &str) -> BTreeMap<u64, (u64, u64)> {
    let number = |line: &str, name: &str| -> Option<u64> {
        line.split_once(&format!("{name}="))?.1.split_whitespace().next()?.parse().ok()
    };
    let lines = logs.lines().filter(|line| line.contains("state of a process"));
    lines
        .filter_map(|l| Some((number(l, "process")?, (number(l, "bytes")?, number(l, "source_rows")?))))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_process_is_killed_the_others_start_again_with_it_and_converge() {
    for_each_major(async |server| {
        let (database, app) = scene(server, 3_000).await;
        let mut members = Members::start(3, PATIENCE);
        let mut sidecar = leader(&database, &members);
        sidecar.wait_ready(SOON).await;
        for (round, victim) in (0..).zip([1usize, 2, 0]) {
            write(&app, round).await;
            let logs = sidecar.logs();
            let again = logs.matches("starting again").count();
            let named = logs.matches(&format!("process {victim}")).count();
            match victim {
                0 => sidecar.kill9(),
                member => members.processes[member - 1].kill9(),
            }
            write(&app, round + 10).await;
            match victim {
                0 => sidecar.start_again(),
                member => {
                    // While it is away nothing is written, and it is said who is missing.
                    says(&sidecar, "starting again", again).await;
                    says(&sidecar, &format!("process {member}"), named).await;
                    members.processes[member - 1].start_again();
                }
            }
            converge(&app, &format!("process {victim} was killed")).await;
        }
        assert!(sidecar.is_running() && members.processes.iter_mut().all(Sidecar::is_running));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_answer_is_given_up_and_taken_back() {
    for_each_major(async |server| {
        let (database, app) = scene(server, 1_000).await;
        let members = Members::start(3, SILENCE);
        let mut sidecar = leader(&database, &members);
        sidecar.wait_ready(SOON).await;
        let named = sidecar.logs().matches("process 2 ").count();
        members.processes[1].pause();
        write(&app, 1).await;
        says(&sidecar, "process 2 ", named).await;
        says(&sidecar, "starting again", 0).await;
        says(&members.processes[0], "waiting for process 0", 1).await;
        members.processes[1].resume();
        converge(&app, "process 2 was stopped and went on").await;
        // The one that leads is no exception.
        let before = members.processes[0].logs().matches("the run was lost").count();
        sidecar.pause();
        says(&members.processes[0], "the run was lost", before).await;
        write(&app, 2).await;
        sidecar.resume();
        converge(&app, "process 0 was stopped and went on").await;
    })
    .await;
}

/// While a process is missing nobody reads the slot, and it is guarded all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_nobody_reads_while_a_process_is_missing_is_given_up() {
    for_each_major(async |server| {
        let (database, app) = scene(server, 1_000).await;
        let dba = database.as_dba().await;
        let mut members = Members::start(2, PATIENCE);
        let mut sidecar = leader(&database, &members);
        sidecar.wait_ready(SOON).await;
        let slots = "select count(*) from pg_replication_slots where database = current_database()";
        let slots = async || dba.query_one(slots, &[]).await.unwrap().get::<_, i64>(0);
        assert_eq!(slots().await, 1);
        members.processes[0].kill9();
        says(&sidecar, "waiting for the other processes", 0).await;
        dba.batch_execute(
            "insert into pgtrickle.settings values ('slot_policy', 'shed'), ('slot_lag_warning_threshold_mb', '1'),
                 ('slot_lag_critical_threshold_mb', '2') on conflict (key, pipeline) do update set value = excluded.value;
             create table public.bulk as select repeat('x', 1000) as body from generate_series(1, 6000)",
        )
        .await
        .unwrap();
        write(&app, 1).await;
        wait_until("the slot to be given up", SOON, || async {
            match slots().await {
                0 => Ok(()),
                n => Err(format!("{n} slots")),
            }
        })
        .await;
        write(&app, 2).await;
        members.processes[0].start_again();
        says(&sidecar, "retained too much WAL and was given up", 0).await;
        converge(&app, "the slot was given up while a process was missing").await;
        write(&app, 3).await;
        converge(&app, "it goes on").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outgrows_one_process_is_suspended_in_all_and_the_others_go_on() {
    for_each_major(async |server| {
        let (database, app) = scene(server, 1_000).await;
        let mut members = Members::prepare(&[0, 1].map(|_| format!("127.0.0.1:{}", free_port())), PATIENCE);
        let small = [members.arguments(1), vec!["--memory-limit".to_owned(), "16MiB".to_owned()]].concat();
        members.processes.push(Members::process(&small));
        let mut sidecar = leader(&database, &members);
        sidecar.wait_ready(SOON).await;
        converge(&app, "the beginning").await;
        let create = "select pgtrickle.create_stream_table('all_pairs', 'select a.id as a, b.id as b, a.note from
            orders a join orders b on a.id <> b.id', initialize => false)";
        app.batch_execute(create).await.unwrap();
        let state = "select status || ' ' || coalesce(last_error_sqlstate, '') || ' ' || coalesce(last_error_message, '')
            from pgtrickle.pgt_stream_tables where pgt_name = 'all_pairs'";
        let told = wait_until("the stream table to be suspended", SOON, || async {
            let state: String = app.query_one(state, &[]).await.unwrap().get(0);
            if state.starts_with("SUSPENDED 53200") { Ok(state) } else { Err(state) }
        })
        .await;
        assert!(told.contains("the memory limit is"), "{told}");
        write(&app, 3).await;
        converge(&app, "a stream table was suspended").await;
        assert!(!sidecar.logs().contains("starting again"), "the run went on");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_another_secret_program_or_hosts_file_is_refused_with_the_reason() {
    for_each_major(async |server| {
        let (database, _app) = scene(server, 10).await;
        let members = Members::start(2, PATIENCE);
        let refused = async |arguments: Vec<String>, program: &str, words: &str| {
            let url = database.url(crate::harness::database::SIDECAR);
            let all = [vec!["run".to_owned(), "--database-url".to_owned(), url], arguments].concat();
            let mut sidecar = Sidecar::start_program(program.into(), all);
            assert_eq!(sidecar.wait_exit(SOON).await, Some(2), "{}", sidecar.logs());
            assert!(sidecar.logs().contains(words), "{words}: {}", sidecar.logs());
        };
        let own = env!("CARGO_BIN_EXE_pgtrickle");
        let with = |flag: &str, file: &str, text: &str| {
            std::fs::write(members.path(file), text).unwrap();
            let mut arguments = members.arguments(0);
            let place = arguments.iter().position(|a| a == flag).unwrap() + 1;
            arguments[place] = members.path(file).to_str().unwrap().to_owned();
            arguments
        };
        let other = with("--cluster-secret-file", "other", "quite another secret");
        refused(other, own, "process 1").await;
        says(&members.processes[0], "it has another secret", 0).await;
        let hosts = std::fs::read_to_string(members.path("hosts.txt")).unwrap();
        let more = with("--cluster", "more.txt", &format!("{hosts}\n127.0.0.1:1\n"));
        refused(more, own, "its hosts file says").await;
        // The same program with a byte more is another one.
        let copy = members.path("pgtrickle");
        std::fs::copy(own, &copy).unwrap();
        std::io::Write::write_all(&mut std::fs::File::options().append(true).open(&copy).unwrap(), b"!")
            .unwrap();
        refused(members.arguments(0), copy.to_str().unwrap(), "it runs pgtrickle").await;
        // It was asked three times in vain and serves the right one.
        let mut sidecar = leader(&database, &members);
        sidecar.wait_ready(SOON).await;
    })
    .await;
}
