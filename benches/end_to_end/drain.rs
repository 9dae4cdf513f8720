//! A backlog into W2, against bare readers of the same WAL.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pgtrickle::pgoutput::{Assembler, WantedAttribute};
use pgtrickle::postgres::sessions::Target as Server;
use pgtrickle::replication::{PipelineNames, Session, StreamEvent};
use pgtrickle::row::TypeClass;
use serde_json::json;
use tokio_postgres::types::PgLsn;

use crate::harness::servers::SUPERUSER;
use crate::report::{Report, Target};
use crate::world::{W2, World};

/// Rows of one transaction of the backlog.
const STEP: i64 = 1_000;

pub async fn run(world: &mut World, report: &mut Report) {
    world.create(W2).await;
    let dba = world.with.db.as_dba().await;
    let names = PipelineNames::new(1, "0123456789abcdef", "bench").unwrap();
    // Each alone: a slot can't be made in a transaction that has written.
    for statement in [
        format!("create publication {} for table app.orders", names.publication()),
        format!("select pg_create_logical_replication_slot('{}', 'pgoutput')", names.slot()),
        "select pg_create_logical_replication_slot('bench_recvlogical', 'pgoutput')".to_owned(),
    ] {
        dba.batch_execute(&statement).await.unwrap();
    }
    world.with.tidy().await;
    world.sidecar.pause();
    let passes = if world.orders >= 1_000_000 { 1 } else { 3 };
    let changes = passes * world.orders / STEP * STEP;
    for _ in 0..passes {
        for first in (1..=world.orders - STEP + 1).step_by(STEP as usize) {
            let sql = format!(
                "update orders set amount = amount + 1 where id between {first} and {}",
                first + STEP - 1
            );
            world.with.app.batch_execute(&sql).await.unwrap();
        }
    }
    let sum = |rows: tokio_postgres::Row| rows.get::<_, f64>(0);
    let expected = sum(dba.query_one("select sum(amount)::float8 from app.orders", &[]).await.unwrap());
    let end: PgLsn = dba.query_one("select pg_current_wal_lsn()", &[]).await.unwrap().get(0);
    // Something after the end, so that a reader sees that it is there.
    dba.batch_execute("create table app.after_the_end (i int)").await.unwrap();
    let cpu = world.sidecar_cpu();
    let start = Instant::now();
    world.sidecar.resume();
    while sum(dba.query_one("select sum(total)::float8 from app.w2", &[]).await.unwrap()) != expected {
        assert!(start.elapsed() < Duration::from_secs(300), "the backlog was not drained within 300 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ours = start.elapsed().as_secs_f64();
    let cpu = (world.sidecar_cpu() - cpu) * 1e6 / changes as f64;
    let bare = consume(world, &names, end.into(), None).await;
    let decoded = consume(world, &names, end.into(), Some(wanted())).await;
    let recvlogical = recvlogical(world, &names, end);
    let rate = |seconds: f64| changes as f64 / seconds;
    let details = json!({
        "changes": changes, "rows_per_transaction": STEP, "seconds": ours, "changes_per_s": rate(ours), "sidecar_cpu_us_per_change": cpu,
        "recvlogical_changes_per_s": rate(recvlogical), "bare_client_changes_per_s": rate(bare),
        "client_and_decode_changes_per_s": rate(decoded),
    });
    report.add("drain of a backlog into W2", rate(ours), "changes/s", Target::None, details.clone());
    report.add(
        "drain: against pg_recvlogical",
        recvlogical / ours,
        "x",
        Target::AtLeast(0.6),
        details.clone(),
    );
    report.add("drain: against our client alone", bare / ours, "x", Target::None, details);
    for statement in [
        format!("select pg_drop_replication_slot('{}')", names.slot()),
        "select pg_drop_replication_slot('bench_recvlogical')".to_owned(),
        format!("drop publication {}; drop table app.after_the_end", names.publication()),
    ] {
        dba.batch_execute(&statement).await.unwrap();
    }
    world.check(W2, "region, total, n").await;
    world.drop(W2.0).await;
}

fn wanted() -> Vec<WantedAttribute> {
    let attribute = |name: &str, type_oid, class| WantedAttribute { name: name.to_owned(), type_oid, class };
    vec![
        attribute("id", 20, TypeClass::Int8),
        attribute("customer_id", 20, TypeClass::Int8),
        attribute("amount", 1700, TypeClass::Numeric),
    ]
}

/// Seconds that our replication client takes to the end, decoding into rows if `wanted` is given. It acknowledges
/// nothing, so the slot can be read again.
async fn consume(
    world: &World,
    names: &PipelineNames,
    end: u64,
    wanted: Option<Vec<WantedAttribute>>,
) -> f64 {
    let relation = "select 'app.orders'::regclass::oid";
    let relation: u32 = world.with.app.query_one(relation, &[]).await.unwrap().get(0);
    let server = Server::new(world.with.db.url(SUPERUSER).parse().unwrap(), "bench");
    let start = Instant::now();
    let mut session = Session::open(&server, names, 0, |_| Ok(())).await.unwrap();
    let mut assembler = Assembler::new(1 << 30);
    let decode = wanted.is_some();
    if let Some(wanted) = wanted {
        assembler.register(relation, wanted);
    }
    loop {
        match session.next().await.unwrap() {
            StreamEvent::Begin { commit_lsn, xid, commit_time } if decode => {
                assembler.begin(commit_lsn, xid, commit_time).unwrap();
            }
            StreamEvent::Change(bytes) if decode => drop(assembler.change(&bytes).unwrap()),
            StreamEvent::Commit { commit_lsn, end_lsn, commit_time } => {
                if decode {
                    drop(assembler.commit(commit_lsn, end_lsn, commit_time).unwrap());
                }
                if end_lsn >= end {
                    break;
                }
            }
            StreamEvent::Position { lsn, .. } if lsn >= end => break,
            _ => {}
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    session.abort();
    seconds
}

/// Seconds that `pg_recvlogical` takes from the same position to the end, writing to /dev/null.
fn recvlogical(world: &World, names: &PipelineNames, end: PgLsn) -> f64 {
    let publication = format!("publication_names={}", names.publication());
    let start = Instant::now();
    let status = Command::new(world.program("pg_recvlogical"))
        .args([
            "--dbname",
            &world.with.db.url(SUPERUSER),
            "--slot",
            "bench_recvlogical",
            "--start",
            "--no-loop",
        ])
        .args([
            "--endpos",
            &end.to_string(),
            "--file",
            "/dev/null",
            "-o",
            "proto_version=1",
            "-o",
            &publication,
        ])
        .stdout(Stdio::null())
        .status()
        .expect("pg_recvlogical starts");
    assert!(status.success(), "pg_recvlogical ended with {status}");
    start.elapsed().as_secs_f64()
}
