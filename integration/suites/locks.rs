//! The locks that each call takes on sources and stream tables: the table of `docs/costs.md` is what is seen in `pg_locks`.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::bad_input::{settled, value};
use crate::harness::database::{APP, SIDECAR, pgtrickle, printed};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major};

/// Modes of table locks, the weakest first.
const MODES: [&str; 8] = [
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
];

/// As SQL and the manual write it.
fn words(mode: Option<usize>) -> &'static str {
    const WORDS: [&str; 8] = [
        "ACCESS SHARE",
        "ROW SHARE",
        "ROW EXCLUSIVE",
        "SHARE UPDATE EXCLUSIVE",
        "SHARE",
        "SHARE ROW EXCLUSIVE",
        "EXCLUSIVE",
        "ACCESS EXCLUSIVE",
    ];
    mode.map_or("-", |mode| WORDS[mode])
}

/// Tables of the application, by object id.
async fn tables(client: &Client) -> BTreeMap<u32, String> {
    let sql =
        "select oid, relname::text from pg_class where relnamespace = 'app'::regnamespace and relkind = 'r'";
    client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// The strongest locks on a source and on a stream table that were there before which `call` leaves its transaction with; it
/// is rolled back. What it makes itself nobody else can see yet.
async fn taken(client: &Client, call: &str) -> (&'static str, &'static str) {
    let before = tables(client).await;
    client.batch_execute("begin").await.unwrap();
    client.batch_execute(call).await.unwrap_or_else(|e| panic!("{call}: {e:?}"));
    let locks = "select relation, mode from pg_locks where pid = pg_backend_pid() and locktype = 'relation' and granted
         and database = (select oid from pg_database where datname = current_database())";
    let locks = client.query(locks, &[]).await.unwrap();
    client.batch_execute("rollback").await.unwrap();
    let (mut source, mut stream_table) = (None, None);
    for row in locks {
        let relation: u32 = row.get(0);
        let Some(name) = before.get(&relation) else { continue };
        let mode: &str = row.get(1);
        let rank =
            MODES.iter().position(|known| *known == mode).unwrap_or_else(|| panic!("{mode} is unknown"));
        let strongest = if ["src", "bag"].contains(&name.as_str()) { &mut source } else { &mut stream_table };
        *strongest = (*strongest).max(Some(rank));
    }
    (words(source), words(stream_table))
}

/// Rows of the table in `docs/costs.md`: call, lock on a source, lock on a stream table.
fn documented() -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let page = include_str!("../../docs/costs.md");
    let (_, rest) = page.split_once("| call | on a source | on a stream table |\n").expect("the table");
    rest.lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            (cells[0].trim_matches('`'), (cells[1], cells[2]))
        })
        .collect()
}

/// A script for psql, as far as it goes in the caller's transaction.
fn inside(arguments: &[&str]) -> String {
    let printed_script = pgtrickle(arguments);
    assert_eq!(printed_script.status.code(), Some(0), "{}", printed(&printed_script));
    let script = String::from_utf8(printed_script.stdout).unwrap();
    let is_inside = |line: &&str| {
        !line.starts_with('\\')
            && !line.starts_with("select pgtrickle.detach(")
            && !["begin;", "commit;"].contains(line)
    };
    script.lines().filter(is_inside).flat_map(|line| [line, "\n"]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_takes_the_locks_that_the_manual_names_and_no_stronger_ones() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(
            "create table src (id int primary key, v int); insert into src select n, n % 7 from generate_series(1, 100) n;
             create table bag (v int); insert into bag values (1)",
        )
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        for create in [
            "select pgtrickle.create_stream_table('t', 'select v, count(*) as n from src group by v')",
            "select pgtrickle.create_stream_table('b', 'select v from bag')",
            "select pgtrickle.create_stream_table('f', 'select v from src', refresh_mode => 'FULL', schedule => '1h')",
        ] {
            app.batch_execute(create).await.unwrap();
        }
        settled(&dba).await;
        app.batch_execute("set statement_timeout = '60s'").await.unwrap();
        let mut seen = BTreeMap::new();
        for (name, call) in [
            ("create_stream_table", "select pgtrickle.create_stream_table('anew', 'select id from src where v = 1')"),
            ("alter_stream_table (query)", "select pgtrickle.alter_stream_table('t', query => 'select v, count(*) as n from src where v > 1 group by v')"),
            ("alter_stream_table (schedule)", "select pgtrickle.alter_stream_table('f', schedule => '2h')"),
            ("refresh_stream_table", "select pgtrickle.refresh_stream_table('t')"),
            ("refresh_stream_table (FULL)", "select pgtrickle.refresh_stream_table('f')"),
            ("repair_stream_table", "select pgtrickle.repair_stream_table('t')"),
            ("verify_stream_table", "select * from pgtrickle.verify_stream_table('t')"),
            ("suspend_stream_table", "select pgtrickle.suspend_stream_table('t')"),
            ("drop_stream_table", "select pgtrickle.drop_stream_table('t')"),
            ("snapshot_stream_table", "select pgtrickle.snapshot_stream_table('t')"),
            ("attach_source", "select pgtrickle.attach_source('src')"),
            ("detach_source", "select pgtrickle.detach_source('src')"),
            ("begin_ddl", "select pgtrickle.begin_ddl('src')"),
            ("begin_ddl, end_ddl", "select pgtrickle.begin_ddl('src'); select pgtrickle.end_ddl('src')"),
        ] {
            seen.insert(name, taken(&app, call).await);
        }
        app.batch_execute("select pgtrickle.suspend_stream_table('t')").await.unwrap();
        seen.insert("resume_stream_table", taken(&app, "select pgtrickle.resume_stream_table('t')").await);
        // What the sidecar calls for a source that it captures by triggers.
        let source = value(&dba, "select source_id from pgtrickle.pgt_sources where source_name = 'app.bag'").await;
        let install = format!("set local role {SIDECAR}; select pgtrickle._install_capture({source}, 'buffer', true)");
        seen.insert("triggers are set or change their mode", taken(&dba, &install).await);
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        seen.insert("init", taken(&dba, &inside(&["init", "--print", "--sidecar-role", SIDECAR, "--grant-to", APP])).await);
        for _ in 0..2 {
            dba.batch_execute("select pgtrickle.detach(pipeline) from pgtrickle.pgt_pipelines").await.unwrap();
        }
        seen.insert("uninstall", taken(&dba, &inside(&["uninstall", "--print"])).await);
        seen.insert("uninstall --keep-tables", taken(&dba, &inside(&["uninstall", "--print", "--keep-tables"])).await);
        for (name, (source, stream_table)) in &seen {
            println!("PostgreSQL {}: | `{name}` | {source} | {stream_table} |", db.major);
        }
        let documented = documented();
        assert_eq!(seen.keys().collect::<Vec<_>>(), documented.keys().collect::<Vec<_>>());
        // The weakest lock is not taken by every major.
        let is_as_told = |seen: &str, told: &str| seen == told || (seen, told) == ("-", "ACCESS SHARE");
        for (name, (source, stream_table)) in seen {
            let told = documented[name];
            assert!(
                is_as_told(source, told.0) && is_as_told(stream_table, told.1),
                "PostgreSQL {}, {name}: {source} and {stream_table}, docs/costs.md says {told:?}",
                db.major
            );
        }
    })
    .await;
}
