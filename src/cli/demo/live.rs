//! The live part: workload, probe and proof run; their numbers are shown; at the end everything is compared once more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::proof::{Prover, Record};
use super::screen::{Frame, Screen, verdict};
use super::stage::Stage;
use super::views::STREAM_TABLES;
use super::workload::{self, Shared};
use super::{lost_task, say};
use crate::error::Result;
use crate::postgres::sessions::{Purpose, error};

/// Freshness is shown for this much of the past.
const WINDOW: Duration = Duration::from_secs(10);
/// Time between two counts of the stream tables' rows.
const COUNT_PACE: Duration = Duration::from_secs(2);

/// Shows the workload for `seconds`, or until interrupted; false when the proof failed.
pub(super) async fn show(
    stage: &mut Stage,
    seconds: Option<Duration>,
    interrupted: &CancellationToken,
) -> Result<bool> {
    let shared = Arc::new(Shared::new());
    let record = Arc::new(Record::default());
    let stop = CancellationToken::new();
    let mut prover = Prover::connect(&stage.app()).await?;
    let mut tasks = JoinSet::new();
    for seed in [0x5eed, 0xfeed] {
        let (app, shared, stop) = (stage.app(), shared.clone(), stop.clone());
        tasks.spawn(async move { workload::write(app, seed, &shared, stop).await });
    }
    let (app, probed, stop_probe) = (stage.app(), shared.clone(), stop.clone());
    tasks.spawn(async move { workload::probe(app, &probed, stop_probe).await });
    let (proved, recorded, stop_proof) = (shared.clone(), record.clone(), stop.clone());
    let proving = tokio::spawn(async move {
        let result = prover.run(&proved, &recorded, stop_proof).await;
        (prover, result)
    });

    let begin = Instant::now();
    let watched = watch(stage, &shared, &record, begin, seconds, interrupted, &mut tasks).await;
    let elapsed = begin.elapsed().as_secs_f64();
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        // After a first error the others follow from it.
        if watched.is_ok() {
            ended.map_err(lost_task)??;
        }
    }
    let (mut prover, proved) = proving.await.map_err(lost_task)?;
    watched?;
    proved?;
    if !interrupted.is_cancelled() {
        prover.round(&shared, &record).await?;
    }
    let tally = record.read();
    let commits = shared.commits.load(Ordering::Relaxed);
    let changes = shared.changes.load(Ordering::Relaxed);
    let freshness = shared.freshness(None).map_or_else(String::new, |(p50, p99)| {
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        format!("freshness p50 {:.1} ms, p99 {:.1} ms; ", ms(p50), ms(p99))
    });
    say(&format!("{elapsed:.0} s: {commits} commits, {changes} changes; {freshness}{}", verdict(&tally)));
    for difference in &tally.differences {
        say(&format!("DIFFERENCE: {difference}"));
    }
    let proven = tally.checks > 0 && tally.late == 0 || interrupted.is_cancelled();
    Ok(proven && tally.differences.is_empty())
}

/// Draws until the time is over, an interruption, a task's error or the sidecar's end.
async fn watch(
    stage: &mut Stage,
    shared: &Shared,
    record: &Record,
    begin: Instant,
    seconds: Option<Duration>,
    interrupted: &CancellationToken,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let client = stage.app().connect(Purpose::Tool).await?;
    let mut screen = Screen::new();
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + screen.pace(), screen.pace());
    let mut frame = Frame::default();
    let mut last = (begin, 0, 0);
    let mut counted: Option<Instant> = None;
    while seconds.is_none_or(|seconds| begin.elapsed() < seconds) {
        tokio::select! {
            _ = ticks.tick() => {}
            () = interrupted.cancelled() => return Ok(()),
            Some(ended) = tasks.join_next() => ended.map_err(lost_task)??,
        }
        stage.check_sidecar()?;
        if counted.is_none_or(|when| when.elapsed() >= COUNT_PACE) {
            frame.rows = count(&client).await?;
            counted = Some(Instant::now());
        }
        frame.slot_lag = slot_lag(&client).await?;
        let now =
            (Instant::now(), shared.commits.load(Ordering::Relaxed), shared.changes.load(Ordering::Relaxed));
        let seconds = (now.0 - last.0).as_secs_f64().max(0.001);
        frame.commits_per_second = (now.1 - last.1) as f64 / seconds;
        frame.changes_per_second = (now.2 - last.2) as f64 / seconds;
        last = now;
        frame.freshness = shared.freshness(now.0.checked_sub(WINDOW));
        frame.proof = record.read();
        frame.elapsed = begin.elapsed();
        screen.draw(&frame);
    }
    Ok(())
}

async fn count(client: &Client) -> Result<Vec<i64>> {
    let counts: Vec<String> =
        STREAM_TABLES.iter().map(|(name, _)| format!("(select count(*) from shop.{name})")).collect();
    let row = client.query_one(&format!("select array[{}]", counts.join(", ")), &[]).await;
    Ok(row.map_err(error)?.get(0))
}

async fn slot_lag(client: &Client) -> Result<Option<u64>> {
    let lag = "select pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)::bigint
          from pgtrickle.pgt_pipelines p join pg_replication_slots s on s.slot_name = p.slot_name
         where p.pipeline = 'main'";
    let row = client.query_opt(lag, &[]).await.map_err(error)?;
    Ok(row.and_then(|row| row.get::<_, Option<i64>>(0)).and_then(|bytes| u64::try_from(bytes).ok()))
}
