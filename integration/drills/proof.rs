//! How a drill ends: a sidecar, more writes, and the comparison of every stream table with its query.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::scene::{Database, RECOMPUTED, STREAMS};
use super::tools::Drill;
use crate::harness::oracle::{assert_equal, difference};
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::wait_until;

/// Deadline for everything in a drill: generous, the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Whether a drill demands exactly one WARNING per affected source and cause in `pgtrickle.pgt_recoveries`.
pub const ONE_WARNING_PER_SOURCE: bool = true;

/// What the sidecar must have to say about the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Every source was affected: a WARNING for each.
    Repair,
    /// One table of several was affected, or a moment decides how many: no source has two WARNINGs.
    Either,
    /// Nothing was lost: no WARNING.
    Resume,
}

/// The application's sources.
pub const SOURCES: [&str; 3] = ["app.customers", "app.events", "app.orders"];

/// What is known of a database before a sidecar takes it up again.
pub struct Before {
    history: Option<(i64, i64)>,
    recoveries: i64,
    target: PgLsn,
    since: Instant,
}

impl Before {
    /// Writes a few transactions that no sidecar sees, and notes where the right answer begins and what the history holds.
    pub async fn note(db: &Database) -> Before {
        Self::begin(db).await.mark(db).await
    }

    /// Notes what the history holds and which WARNINGs there were. What happens from now on counts.
    pub async fn begin(db: &Database) -> Before {
        let dba = db.as_dba().await;
        Before {
            history: history(&dba).await,
            recoveries: recoveries(&dba).await.unwrap_or(0),
            target: PgLsn::from(0),
            since: Instant::now(),
        }
    }

    /// Writes a few transactions; the right answer holds them.
    pub async fn mark(self, db: &Database) -> Before {
        db.write(18).await;
        let dba = db.as_dba().await;
        // The last thing in the WAL is a commit of the application's, not an abort: nothing later has to be waited for.
        dba.batch_execute("insert into app.events values ('noted', 1)").await.expect("a row");
        let target =
            dba.query_one("select pg_current_wal_insert_lsn()", &[]).await.expect("the position").get(0);
        Before { target, since: Instant::now(), ..self }
    }
}

/// Rows of the history and their highest id; `None` when the restore came without it.
async fn history(dba: &Client) -> Option<(i64, i64)> {
    if absent(dba, "pgtrickle.pgt_refresh_history").await {
        return None;
    }
    let sql = "select count(*), coalesce(max(refresh_id), 0) from pgtrickle.pgt_refresh_history";
    let row = dba.query_one(sql, &[]).await.expect("the history can be read");
    Some((row.get(0), row.get(1)))
}

async fn absent(dba: &Client, table: &str) -> bool {
    dba.query_one("select to_regclass($1) is null", &[&table]).await.expect("a look at the catalog").get(0)
}

/// Number of rows in `pgtrickle.pgt_recoveries`, where there is this table.
async fn recoveries(dba: &Client) -> Option<i64> {
    if absent(dba, "pgtrickle.pgt_recoveries").await {
        return None;
    }
    Some(
        dba.query_one("select count(*) from pgtrickle.pgt_recoveries", &[]).await.expect("recoveries").get(0),
    )
}

/// WARNINGs per source since the beginning of the recoveries that `before` counted: (source, number).
pub async fn warnings(db: &Database, before: i64) -> Option<Vec<(String, i64)>> {
    let dba = db.as_dba().await;
    recoveries(&dba).await?;
    let sql =
        "select source_name, count(*) from (select source_name, row_number() over (order by recovery_id) as n
        from pgtrickle.pgt_recoveries) r where n > $1 group by source_name order by source_name";
    let rows = dba.query(sql, &[&before]).await.expect("recoveries can be read");
    Some(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn check_warnings(drill: &Drill, db: &Database, before: &Before, expect: Expect, log: &str) {
    let in_log = log.lines().filter(|line| line.contains(" WARN ")).count();
    assert!(in_log > 0 || expect != Expect::Repair, "something was lost, and no WARNING says so");
    if expect == Expect::Repair && warnings(db, before.recoveries).await.is_some() {
        // What is lost of one source may be noticed a look after that of another.
        wait_until("a WARNING for each source", PATIENCE, || async {
            let found = warnings(db, before.recoveries).await.unwrap_or_default();
            if found.len() >= SOURCES.len() { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
    let Some(found) = warnings(db, before.recoveries).await else {
        println!("drill {} on {}: {in_log} WARNINGs in the log", drill.name, drill.major);
        return;
    };
    println!("drill {} on {}: {in_log} WARNINGs in the log, recoveries {found:?}", drill.name, drill.major);
    if !ONE_WARNING_PER_SOURCE {
        return;
    }
    let each: Vec<(String, i64)> = SOURCES.iter().map(|source| ((*source).to_owned(), 1)).collect();
    match expect {
        Expect::Repair => assert_eq!(found, each, "exactly one WARNING per source"),
        Expect::Resume => assert!(found.is_empty(), "nothing was lost, but there are WARNINGs: {found:?}"),
        Expect::Either => {
            assert!(found.iter().all(|(_, n)| *n == 1), "more than one WARNING for a source: {found:?}")
        }
    }
}

/// Waits until no stream table is anything but ACTIVE.
pub async fn wait_active(db: &Database) {
    wait_until("all stream tables to be active", PATIENCE, || async {
        let sql = "select string_agg(concat_ws(' ', name, status, last_error_message), ', ')
            from pgtrickle.pgt_status() where status <> 'ACTIVE'";
        match ask(db, sql).await? {
            None => Ok(()),
            Some(others) => Err(others),
        }
    })
    .await;
}

/// One text value, or why there is none at the moment: the server or the schema may be away.
async fn ask(db: &Database, sql: &str) -> Result<Option<String>, String> {
    let url = db.url(crate::harness::servers::SUPERUSER);
    let (client, connection) =
        tokio_postgres::connect(&url, tokio_postgres::NoTls).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    Ok(client.query_one(sql, &[]).await.map_err(|e| format!("{e:?}"))?.get(0))
}

/// Waits until every stream table is live and holds everything up to the position noted; returns the seconds it took.
pub async fn first_right_answer(db: &Database, before: &Before) -> f64 {
    wait_until("the first right answer", PATIENCE, || async {
        let sql = format!(
            "select case when not pgtrickle.sidecar_alive() then 'no sidecar'
                when not pgtrickle._has_passed('{0}', 'main') then (select concat_ws(' ', 'behind: frontier', frontier, 'not {0}')
                    from pgtrickle.pgt_pipelines where pipeline = 'main')
                else (select string_agg(concat_ws(' ', name, status, last_error_message), ', ')
                        from pgtrickle.pgt_status() where status <> 'ACTIVE') end",
            before.target
        );
        match ask(db, &sql).await? {
            None => Ok(()),
            Some(state) => Err(state),
        }
    })
    .await;
    before.since.elapsed().as_secs_f64()
}

/// The columns of a stream table's query.
async fn columns(app: &Client, name: &str) -> String {
    let sql = "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
        where attrelid = to_regclass($1) and attnum > 0 and not attisdropped and attname <> '__pgt_row_id'";
    app.query_one(sql, &[&name]).await.expect("its columns").get(0)
}

/// Every stream table equals its query, now that nobody writes.
pub async fn check_equal(db: &Database) {
    let app = db.as_app().await;
    let passed: bool =
        app.query_one("select pgtrickle.wait_for(timeout => '180 s')", &[]).await.expect("wait_for").get(0);
    assert!(passed, "the frontier did not pass in time");
    app.execute("select pgtrickle.refresh_stream_table($1)", &[&RECOMPUTED.0])
        .await
        .expect("a recomputation");
    for (name, query) in STREAMS.iter().chain([&RECOMPUTED]) {
        assert_equal(&app, query, name, &columns(&app, name).await).await;
    }
}

/// Waits until every incremental stream table equals its query: what was done by hand is noticed at the next look.
pub async fn become_equal(db: &Database) {
    let app = db.as_app().await;
    wait_until("all stream tables to equal their queries", PATIENCE, || async {
        for (name, query) in STREAMS {
            let rows = difference(&app, query, name, &columns(&app, name).await)
                .await
                .map_err(|e| format!("{e:?}"))?;
            if !rows.is_empty() {
                return Err(format!("{name} differs in {} rows", rows.len()));
            }
        }
        Ok(())
    })
    .await;
}

/// The end of a drill on a server that nobody serves yet: a sidecar, more writes, the comparison.
pub async fn prove(drill: &Drill, db: &Database, expect: Expect) {
    let before = Before::note(db).await;
    let mut sidecar = db.sidecar();
    prove_served(drill, db, &mut sidecar, before, expect).await;
    assert_eq!(sidecar.terminate(PATIENCE).await, Some(0), "exit code after SIGTERM");
}

/// As [`prove`] under a sidecar that runs already.
pub async fn prove_served(
    drill: &Drill,
    db: &Database,
    sidecar: &mut Sidecar,
    before: Before,
    expect: Expect,
) {
    let seconds = first_right_answer(db, &before).await;
    println!("drill {} on {}: {seconds:.1} s to the first right answer", drill.name, drill.major);
    let load = db.workload();
    load.progress(60).await;
    load.stop().await;
    check_equal(db).await;
    check_history(db, &before).await;
    check_warnings(drill, db, &before, expect, &sidecar.logs()).await;
}

/// The rows of before are still there, new ones have higher ids, and nothing is left RUNNING.
async fn check_history(db: &Database, before: &Before) {
    let dba = db.as_dba().await;
    let (count, highest) = before.history.unwrap_or((0, 0));
    wait_until("new rows in the history", PATIENCE, || async {
        match history(&dba).await {
            Some((now, top)) if now > count && top > highest => Ok(()),
            other => Err(format!("{other:?}, before {count} rows up to {highest}")),
        }
    })
    .await;
    let sql = "select count(*) filter (where refresh_id <= $1), count(*) filter (where status = 'RUNNING')
        from pgtrickle.pgt_refresh_history";
    let row = dba.query_one(sql, &[&highest]).await.expect("the history can be read");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (count, 0), "rows kept, rows left RUNNING");
}
