//! The common runner of the SQL suites: queries as stream tables over one schema, random changes, and PostgreSQL's own
//! answers beside theirs.
//!
//! Each stream table is created with AUTO. After each burst of transactions it is compared with its query, both ways and in
//! one snapshot; at the end its refresh mode must be the expected one. A stream table that stands still with an error is
//! right only when PostgreSQL refuses the query with the same SQLSTATE. Its columns have the types, lengths and collations
//! of its query's. A case whose answer has no row at any time, or never changes, is a complaint. `PGTRICKLE_SQL_ONLY=name,..` runs only those cases;
//! `PGTRICKLE_SQL_SEED` chooses other random changes.

mod corpus;
mod page;
mod pinned;
pub mod report;
mod runner;
mod toast;
mod tpch;
mod types;
pub mod workload;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::harness::oracle::{difference, difference_of_text};
use crate::harness::wait::wait_until;
use crate::harness::{SOON, Server, Sidecar, TestDatabase};
use report::listed;
pub use report::{Outcome, Report};
use workload::Workload;

/// Time for a stream table to come back after its error is mended.
const PATIENCE: Duration = Duration::from_secs(25);

/// What is to become of a query under AUTO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// `refresh_mode = DIFFERENTIAL`.
    Incremental,
    /// Recomputed; the reason contains this.
    Full(&'static str),
    /// Recomputed, and never the same twice (`random()`): only the mode and the reason are looked at.
    Volatile(&'static str),
    /// The creation fails; the message contains this.
    Refused(&'static str),
    /// Right answers are enough.
    Any,
}

/// A stream table: its name is also the case's name.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub query: &'static str,
    pub expect: Expect,
}

/// What the queries read, and how it changes.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// For messages.
    pub name: &'static str,
    /// Run first by the superuser, with `search_path = app`: extensions.
    pub extensions: &'static str,
    /// Tables with their rows; run by the role `app`.
    pub sql: &'static str,
    /// Statements that run at the beginning of the bursts, in turn; they must succeed.
    pub script: &'static [&'static str],
    /// Bursts of random transactions; 0: the script alone.
    pub bursts: usize,
    /// Random transactions of a burst.
    pub transactions: usize,
    /// Before the last burst the sidecar ends, and comes back after it with two workers.
    pub restart: bool,
}

impl Schema {
    /// With three bursts of random changes and no script.
    pub const fn new(name: &'static str, sql: &'static str) -> Schema {
        Schema { name, extensions: "", sql, script: &[], bursts: 3, transactions: 25, restart: false }
    }
}

/// Fails with everything that is not as expected. Names of cases are unique over all suites.
pub async fn conformance(server: &Server, schema: &Schema, cases: &[Case]) {
    let report = examine(server, schema, cases).await;
    println!("{} on {}: {}", schema.name, server.major, report.summary());
    let odd = report.complaints();
    assert!(odd.is_empty(), "{}: {} complaints:\n{}", schema.name, odd.len(), odd.join("\n"));
}

/// Plays the workload and says what became of each case.
pub async fn examine(server: &Server, schema: &Schema, cases: &[Case]) -> Report {
    let cases = chosen(cases);
    let database = TestDatabase::create(server).await;
    database.install();
    if !schema.extensions.is_empty() {
        let dba = database.as_dba().await;
        run(&dba, &format!("set search_path = app; {}", schema.extensions)).await;
    }
    let app = database.as_app().await;
    run(&app, schema.sql).await;
    let mut workload = Workload::new(&app, seed()).await;
    let mut sidecar = Sidecar::start(&database, &[]);
    sidecar.wait_ready(SOON).await;
    let mut report = Report::new(&cases);
    for (case, outcome) in cases.iter().zip(&mut report.outcomes) {
        create(&app, case, outcome).await;
    }
    look(&app, &cases, &mut report, "in the beginning").await;
    for number in 0..schema.bursts.max(schema.script.len()) {
        if let Some(statement) = schema.script.get(number) {
            run(&app, statement).await;
        }
        let last = schema.restart && number + 1 == schema.bursts;
        if last {
            assert_eq!(sidecar.terminate(SOON).await, Some(0), "the sidecar's exit code after SIGTERM");
        }
        if number < schema.bursts {
            workload.burst(&app, schema.transactions).await;
        }
        if last {
            sidecar = Sidecar::start(&database, &["--workers", "2"]);
            sidecar.wait_ready(SOON).await;
        }
        look(&app, &cases, &mut report, &format!("after burst {}", number + 1)).await;
    }
    workload.assert_useful(schema.name);
    assert_eq!(sidecar.terminate(SOON).await, Some(0), "the sidecar's exit code after SIGTERM");
    report.note(schema);
    report
}

/// Cases that may be recomputed.
fn is_pending(case: &Case) -> bool {
    listed(include_str!("pending.txt"), case.name)
}

fn chosen(cases: &[Case]) -> Vec<Case> {
    let expected = |case: &Case| match case.expect {
        Expect::Incremental if is_pending(case) => Case { expect: Expect::Any, ..*case },
        _ => *case,
    };
    let cases: Vec<Case> = cases.iter().map(expected).collect();
    match std::env::var("PGTRICKLE_SQL_ONLY") {
        Ok(names) if !names.is_empty() => {
            let names: BTreeSet<&str> = names.split(',').map(str::trim).collect();
            cases.iter().filter(|c| names.contains(c.name)).copied().collect()
        }
        _ => cases,
    }
}

fn seed() -> u64 {
    std::env::var("PGTRICKLE_SQL_SEED").map_or(4, |text| text.trim().parse().expect("a number"))
}

/// Runs statements that must succeed.
pub async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        let shown: String = sql.chars().take(2000).collect();
        panic!("{error:?}\n{shown}");
    }
}

async fn create(app: &Client, case: &Case, outcome: &mut Outcome) {
    let create = "select pgtrickle.create_stream_table($1, $2)";
    if let Err(error) = app.execute(create, &[&case.name, &case.query]).await {
        outcome.refused = Some(match error.as_db_error() {
            Some(e) => format!("{} {} {}", e.code().code(), e.message(), e.hint().unwrap_or_default()),
            None => panic!("{}: {error:?}", case.name),
        });
    }
}

/// Waits until everything has arrived and compares every stream table.
async fn look(app: &Client, cases: &[Case], report: &mut Report, when: &str) {
    arrived(app).await;
    for (case, outcome) in cases.iter().zip(&mut report.outcomes) {
        if outcome.refused.is_some() {
            continue;
        }
        state(app, case, outcome).await;
        if outcome.mode == "FULL" {
            let _ = app.execute("select pgtrickle.refresh_stream_table($1)", &[&case.name]).await;
            state(app, case, outcome).await;
        }
        if matches!(case.expect, Expect::Volatile(_)) || outcome.wrong.is_some() {
            continue;
        }
        let begun = Instant::now();
        let mut answer = compare(app, case, outcome).await;
        // One that stood still with an error may be on its way back.
        while answer.is_err() && outcome.status != "ACTIVE" && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(100)).await;
            state(app, case, outcome).await;
            answer = compare(app, case, outcome).await;
        }
        if answer.is_ok() && outcome.status == "ACTIVE" {
            outcome.contents.insert(contents(app, case.name).await);
        }
        let answer = match answer {
            Ok(()) => same_columns(app, case.name).await,
            wrong => wrong,
        };
        outcome.wrong = answer.err().map(|what| format!("{when}: {what}"));
    }
}

/// Number of rows and a hash of them.
async fn contents(app: &Client, name: &str) -> (i64, i64) {
    let sql =
        format!("select count(*), coalesce(sum(hashtext(s::text)::bigint), 0)::bigint from {name} as s");
    let row = app.query_one(&sql, &[]).await.expect("the stream table's rows");
    (row.get(0), row.get(1))
}

/// Types, lengths and collations of the stored columns are those of the query's.
async fn same_columns(app: &Client, name: &str) -> Result<(), String> {
    const SQL: &str = "with t as (select pgt_relid as stored, query_view as query from pgtrickle.stream_tables_info
              where pgt_name = $1 and pgt_schema = 'app'),
          both_sides as (select a.attrelid = t.stored as is_stored, a.attname, a.atttypid, a.atttypmod, a.attcollation
              from t join pg_attribute a on a.attrelid in (t.stored, t.query)
              where a.attnum > 0 and not a.attisdropped and a.attname <> '__pgt_row_id')
        select count(*) filter (where is_stored), count(*) filter (where not is_stored),
          string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), nullif(attcollation, 0)::regcollation), ', '
              order by attname) filter (where (attname, atttypid, atttypmod, attcollation) in (
                  select attname, atttypid, atttypmod, attcollation from both_sides group by 1, 2, 3, 4 having count(*) <> 2))
        from both_sides";
    let row = app.query_one(SQL, &[&name]).await.expect("the columns of both sides");
    let (stored, query): (i64, i64) = (row.get(0), row.get(1));
    match row.get::<_, Option<String>>(2) {
        Some(odd) => Err(format!("the columns of the stream table and of its query differ: {odd}")),
        None if stored == 0 || stored != query => Err(format!("has {stored} columns, its query {query}")),
        None => Ok(()),
    }
}

async fn arrived(app: &Client) {
    wait_until("all stream tables to be filled", Duration::from_secs(300), || async {
        let sql = "select string_agg(name || ' ' || status, ', ') from pgtrickle.pgt_status() where status = 'INITIALIZING'";
        match app.query_one(sql, &[]).await {
            Ok(row) => row.get::<_, Option<String>>(0).map_or(Ok(()), Err),
            Err(error) => Err(format!("{error:?}")),
        }
    })
    .await;
    let row = app.query_one("select pgtrickle.wait_for(timeout => '120 s')", &[]).await;
    let row = row.expect("pgtrickle.wait_for()");
    assert!(row.get::<_, bool>(0), "pgtrickle.wait_for() waited 120 s in vain");
}

/// Mode, reason and error as the catalog has them.
async fn state(app: &Client, case: &Case, outcome: &mut Outcome) {
    let sql = "select refresh_mode, refresh_reason, status, last_error_sqlstate, last_error_message
        from pgtrickle.stream_tables_info where pgt_name = $1 and pgt_schema = 'app'";
    let row = app.query_one(sql, &[&case.name]).await.expect("the stream table's state");
    outcome.mode = row.get(0);
    outcome.reason = row.get::<_, Option<String>>(1).unwrap_or_default();
    outcome.status = row.get(2);
    let (code, text): (Option<String>, Option<String>) = (row.get(3), row.get(4));
    outcome.error = format!("{} {}", code.unwrap_or_default(), text.unwrap_or_default());
}

async fn compare(app: &Client, case: &Case, outcome: &Outcome) -> Result<(), String> {
    let (columns, as_text) = columns(app, case.name).await;
    let by_text = async || difference_of_text(app, case.query, case.name, &columns).await;
    let mut found =
        if as_text { by_text().await } else { difference(app, case.query, case.name, &columns).await };
    // An array of points has no equality either, and nobody knows before.
    if found.as_ref().is_err_and(|e| e.code().is_some_and(|c| c.code() == "42883")) {
        found = by_text().await;
    }
    match found {
        _ if outcome.status == "INITIALIZING" => Err("it is INITIALIZING again".to_owned()),
        Ok(rows) if rows.is_empty() && outcome.status == "ACTIVE" => Ok(()),
        Ok(rows) if outcome.status == "ACTIVE" => {
            let some = rows.iter().take(4).cloned().collect::<Vec<_>>().join("\n      ");
            Err(format!("differs in {} rows:\n      {some}", rows.len()))
        }
        Ok(_) => Err(format!("is {} ({}), but PostgreSQL answers", outcome.status, outcome.error)),
        Err(error) => {
            let code = error.code().map(|c| c.code().to_owned()).unwrap_or_default();
            match outcome.status != "ACTIVE" && !code.is_empty() && outcome.error.contains(&code) {
                true => Ok(()),
                false => {
                    Err(format!("is {} ({}), but PostgreSQL says: {error:?}", outcome.status, outcome.error))
                }
            }
        }
    }
}

/// The query's columns of a stream table, and whether one of them has no equality.
async fn columns(client: &Client, table: &str) -> (String, bool) {
    const SQL: &str = "select string_agg(quote_ident(attname), ', ' order by attnum),
          coalesce(bool_or(not exists (select from pg_opclass c join pg_am m on m.oid = c.opcmethod
              where m.amname = 'btree' and c.opcdefault and (c.opcintype in (atttypid, t.typbasetype)
                  or t.typtype in ('e', 'r', 'm', 'c') or t.typcategory = 'A' or c.opcintype = 'text'::regtype
                  and t.typname in ('varchar')))), false)
        from pg_attribute join pg_type t on t.oid = atttypid
        where attrelid = to_regclass(quote_ident($1)) and attnum > 0 and not attisdropped and attname <> '__pgt_row_id'";
    let row = client.query_one(SQL, &[&table]).await.expect("the stream table's columns");
    (row.get::<_, Option<String>>(0).unwrap_or_default(), row.get(1))
}
