//! What the sidecar costs the server: sessions, locks, WAL, dead rows, the horizon it holds. The figures of
//! `docs/costs.md` are what these tests print; asserted is only what must not grow unseen.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::bad_input::{settled, value, wait_value};
use crate::harness::database::connect;
use crate::harness::servers::{SUPERUSER, each};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, own_cluster, wait_until};

/// Locks of our sessions on relations, as `purpose: mode on what`.
const LOCKS: &str = "select distinct format('%s: %s on %s', split_part(a.application_name, ':', 3), l.mode,
        case when n.nspname = 'app' and c.relkind = 'r' and exists (select from pgtrickle.pgt_stream_tables s where s.pgt_relid = c.oid) then 'a stream table'
             when n.nspname = 'app' and c.relkind = 'r' then 'a source' when n.nspname = 'app' then 'an index of either'
             when n.nspname like 'pgtrickle%' then 'our catalog' end)
    from pg_locks l join pg_stat_activity a using (pid) join pg_class c on c.oid = l.relation
    join pg_namespace n on n.oid = c.relnamespace
    where a.application_name like 'pgtrickle:%' and a.usename = 'pgtrickle' and l.locktype = 'relation' and l.granted
      and l.database = (select oid from pg_database where datname = current_database())
      and (n.nspname = 'app' or n.nspname like 'pgtrickle%')";

/// The longest that any of our sessions has held a snapshot, in milliseconds, and which.
const HORIZON: &str = "select split_part(application_name, ':', 3),
        (extract(epoch from clock_timestamp() - xact_start) * 1000)::float8 from pg_stat_activity
    where usename = 'pgtrickle' and backend_xmin is not null and datname = current_database() and xact_start is not null";

/// Looks at locks and snapshots until it is stopped.
async fn watch(url: String, stop: CancellationToken) -> (BTreeSet<String>, BTreeSet<(String, u64)>) {
    let client = connect(&url).await;
    let (mut locks, mut horizons) = (BTreeSet::new(), std::collections::BTreeMap::<String, u64>::new());
    while !stop.is_cancelled() {
        for row in client.query(LOCKS, &[]).await.unwrap() {
            locks.insert(row.get::<_, String>(0));
        }
        for row in client.query(HORIZON, &[]).await.unwrap() {
            let longest = horizons.entry(row.get(0)).or_default();
            *longest = (*longest).max(row.get::<_, f64>(1) as u64);
        }
        tokio::task::yield_now().await;
    }
    (locks, horizons.into_iter().collect())
}

/// Bytes of WAL that `work` writes, the server's checkpoints aside.
async fn wal(client: &Client, work: impl Future<Output = ()>) -> i64 {
    let before = value(client, "select pg_current_wal_insert_lsn()").await;
    work.await;
    value(client, &format!("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{before}')::bigint"))
        .await
        .parse()
        .unwrap()
}

async fn single_rows(app: &Client, table: &str, rows: u32) {
    for n in 0..rows {
        app.batch_execute(&format!("update {table} set v = v + 1 where id = {}", n % 1000 + 1))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_locks_wal_and_dead_rows_of_a_pipeline() {
    const ROWS: u32 = 1000;
    each(async |major| {
        // WAL is the cluster's: nobody else may write.
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(
            "create table plain (id int primary key, g int, v int); insert into plain select n, n % 50, n from generate_series(1, 1000) n;
             create table src (id int primary key, g int, v int); insert into src select n, n % 50, n from generate_series(1, 200000) n;
             create function odd(v int) returns int language plpgsql immutable as $f$ begin return v * 2 + 1; end $f$",
        )
        .await
        .unwrap();
        let stop = CancellationToken::new();
        let watching = tokio::spawn(watch(db.url(SUPERUSER), stop.clone()));
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "wal"]);
        sidecar.wait_ready(SOON).await;
        for create in [
            "select pgtrickle.create_stream_table('sums', 'select g, sum(v) as s, count(*) as n from src group by g')",
            "select pgtrickle.create_stream_table('odds', 'select id, odd(v) as o from src where id <= 1000')",
        ] {
            app.batch_execute(create).await.unwrap();
        }
        settled(&dba).await;
        let with = wal(&dba, async {
            single_rows(&app, "src", ROWS).await;
            app.batch_execute("select pgtrickle.refresh_stream_table('sums')").await.unwrap();
        })
        .await;
        let one = wal(&dba, async {
            app.batch_execute("update src set v = v + 1 where id <= 1000").await.unwrap();
            app.batch_execute("select pgtrickle.refresh_stream_table('sums')").await.unwrap();
        })
        .await;
        let without = wal(&dba, single_rows(&app, "plain", ROWS)).await;
        let one_without = wal(&dba, async { app.batch_execute("update plain set v = v + 1").await.unwrap() }).await;
        // Three heartbeats of an idle pipeline.
        let beat = "select coalesce(heartbeat_at::text, '') from pgtrickle.pgt_pipelines";
        let started = Instant::now();
        let idle = wal(&dba, async {
            for _ in 0..3 {
                let last = value(&dba, beat).await;
                wait_until("another heartbeat", SOON, || async {
                    let seen = value(&dba, beat).await;
                    if seen != last { Ok(()) } else { Err(seen) }
                })
                .await;
            }
        })
        .await;
        let idle_time = started.elapsed();
        stop.cancel();
        let (locks, horizons) = watching.await.unwrap();
        let sessions = "select string_agg(split_part(application_name, ':', 3), ', ' order by application_name) from pg_stat_activity
            where usename = 'pgtrickle' and datname = current_database()";
        let sessions = value(&dba, sessions).await;
        // Counts of a session reach the views with a delay.
        let told = "select n_tup_upd + n_tup_del > 0 from pg_stat_all_tables where relid = 'app.sums'::regclass";
        wait_value(&dba, told, "true").await;
        let dead = "select string_agg(format('%s: %s inserts, %s updates (%s HOT), %s deletes', relname, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del), '; ' order by relname)
            from pg_stat_all_tables where relid in ('pgtrickle.pgt_pipelines'::regclass, 'app.sums'::regclass)";
        let dead = value(&dba, dead).await;
        println!("PostgreSQL {major}: sessions: {sessions}");
        println!("PostgreSQL {major}: WAL per single-row transaction: {} bytes with two stream tables, {} without", with / i64::from(ROWS), without / i64::from(ROWS));
        println!("PostgreSQL {major}: WAL per row of a {ROWS}-row transaction: {} bytes with, {} without", one / i64::from(ROWS), one_without / i64::from(ROWS));
        println!("PostgreSQL {major}: WAL of an idle pipeline: {idle} bytes in {:.1} s", idle_time.as_secs_f64());
        println!("PostgreSQL {major}: {dead}");
        println!("PostgreSQL {major}: longest snapshots seen, ms: {horizons:?}");
        locks.iter().for_each(|lock| println!("PostgreSQL {major}: lock: {lock}"));
        let count = sessions.split(", ").count();
        assert!(count <= 7, "{count} sessions: {sessions}");
        // Nothing that stops readers or writers of a source, whatever the operation.
        for lock in locks.iter().filter(|lock| lock.ends_with("a source")) {
            let mild = ["AccessShareLock", "RowShareLock", "RowExclusiveLock"].iter().any(|mode| lock.contains(mode));
            assert!(mild || lock.contains("ShareUpdateExclusiveLock"), "{lock}");
        }
        for lock in locks.iter().filter(|lock| lock.ends_with("a stream table")) {
            assert!(!lock.contains("AccessExclusiveLock"), "{lock}");
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// The snapshot of a load holds back VACUUM as long as it lasts, and not longer.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_pipeline_holds_no_snapshot() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute("create table src (id int primary key, v int); insert into src select n, n from generate_series(1, 100000) n").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "wal"]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('t', 'select id, v from src where v > 10')").await.unwrap();
        settled(&dba).await;
        let held = "select count(*) from pg_stat_activity where usename = 'pgtrickle' and datname = current_database()
            and (backend_xid is not null or backend_xmin is not null and xact_start < now() - interval '1 s')";
        wait_value(&dba, held, "0").await;
        // The slot holds the catalogs' horizon, but it moves on with what is confirmed.
        let slot = "select catalog_xmin::text from pg_replication_slots where database = current_database()";
        let first = value(&dba, slot).await;
        wait_until("the slot's horizon to move", Duration::from_secs(120), || async {
            app.batch_execute("update src set v = v + 1 where id = 1").await.unwrap();
            dba.batch_execute("select pg_log_standby_snapshot()").await.ok();
            dba.batch_execute("checkpoint").await.unwrap();
            let seen = value(&dba, slot).await;
            if seen != first { Ok(()) } else { Err(seen) }
        })
        .await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
