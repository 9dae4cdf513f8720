//! `pgtrickle drill`: a restore of the user's database, rehearsed on a scratch server.
//!
//! base backup ─▶ a server of its own, without slots ─▶ a sidecar on it ─▶ every stream table live ─▶ compared
//!
//! Invariant: nothing is written to the user's server, and the copy talks to nobody: no archiving, no subscriptions, no
//! preloaded libraries, connections only from this machine and only with a password made for this run. Server and folder
//! are gone at the end, also after an error or a kill, unless `--keep` is given.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Connection, FAILED, signals};
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::supervisor::{self, RunOptions};

mod backup;
mod scratch;
mod verify;

use verify::Checked;

/// Longest time that stopping sidecar and server may take.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Args)]
pub(super) struct DrillArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Folder for the copy, empty or absent; it must hold the whole server [default: a fresh one in the temporary folder]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Folder of PostgreSQL's programs, of the server's major version, pg_basebackup among them
    #[arg(long, value_name = "FOLDER")]
    pg_bindir: Option<PathBuf>,
    /// TCP port of the scratch server [default: a free one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// How long the stream tables may take to become live
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,
    /// Leave the folder of the copy
    #[arg(long)]
    keep: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Seconds of each part.
#[derive(Default)]
struct Timings {
    backup: f64,
    start: f64,
    /// From the sidecar's start until the last stream table is live.
    live: f64,
    verify: f64,
}

struct Report {
    server: backup::Facts,
    timings: Timings,
    checked: Vec<Checked>,
}

pub(super) async fn run(args: DrillArgs, settings: Settings) -> Result<ExitCode> {
    let interrupted = signals::token(PATIENCE)?;
    // Dropping a half-made copy ends and removes it.
    let report = tokio::select! {
        report = rehearse(&args, &settings, &interrupted) => report?,
        () = interrupted.cancelled() => {
            say("interrupted");
            return Ok(ExitCode::from(FAILED));
        }
    };
    let passed = report.checked.iter().all(Checked::passed);
    super::print(&if args.json { report.json(passed) } else { report.text(passed) });
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn rehearse(args: &DrillArgs, settings: &Settings, interrupted: &CancellationToken) -> Result<Report> {
    let mut timings = Timings::default();
    let server = backup::facts(&settings.target, &settings.pipeline.value).await?;
    let install = backup::install(args.pg_bindir.as_deref(), server.major)?;
    let tables = server.stream_tables;
    say(&format!("{}: PostgreSQL {}, {tables} stream tables", settings.target.describe(), server.version));
    let begin = Instant::now();
    let copy = backup::take(&settings.target, &server, &install, args.dir.as_deref(), args.keep).await?;
    timings.backup = begin.elapsed().as_secs_f64();
    say(&format!("base backup in {} after {:.1} s", copy.folder().display(), timings.backup));

    let begin = Instant::now();
    let scratch = scratch::start(copy, &install, &server, &settings.target, args.port).await?;
    timings.start = begin.elapsed().as_secs_f64();
    say(&format!("server started on port {} after {:.1} s", scratch.port(), timings.start));

    let begin = Instant::now();
    let stop = interrupted.child_token();
    let options = RunOptions {
        target: scratch.target().clone(),
        pipeline: settings.pipeline.value.clone(),
        standby: false,
        workers: settings.workers.value,
        memory_limit: settings.memory_limit.value,
        cdc_mode: settings.cdc_mode.as_ref().map(|m| m.value),
        evaluation: settings.evaluation.value,
        cluster: None,
        observed: None,
        positions: std::sync::Arc::default(),
        counters: Default::default(),
    };
    let sidecar = tokio::spawn(supervisor::run(options, stop.clone()));
    let patience = Duration::from_secs(args.patience);
    let live = verify::wait_live(scratch.target(), &settings.pipeline.value, &sidecar, patience).await;
    timings.live = begin.elapsed().as_secs_f64();
    stop.cancel();
    let ended = sidecar.await.map_err(|e| Error::internal("the sidecar failed").with_source(e))?;
    // Why it ended says more than that stream tables are not live.
    ended.map_err(|e| e.during("serving the copy"))?;
    let live = live?;
    say(&format!("stream tables live after {:.1} s", timings.live));

    let begin = Instant::now();
    let checked = verify::compare(scratch.target(), live).await?;
    timings.verify = begin.elapsed().as_secs_f64();
    if args.keep {
        say(&format!("kept: {}", scratch.folder().display()));
    }
    tokio::task::spawn_blocking(move || drop(scratch))
        .await
        .map_err(|e| Error::internal("the scratch server could not be stopped").with_source(e))?;
    Ok(Report { server, timings, checked })
}

impl Report {
    fn json(&self, passed: bool) -> String {
        let tables: Vec<_> = self.checked.iter().map(Checked::json).collect();
        let report = json!({
            "passed": passed,
            "server_version": self.server.version,
            "seconds": {
                "base_backup": round(self.timings.backup),
                "server_start": round(self.timings.start),
                "stream_tables_live": round(self.timings.live),
                "verification": round(self.timings.verify),
            },
            "stream_tables": tables,
        });
        format!("{report:#}\n")
    }

    fn text(&self, passed: bool) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["stream table", "mode", "repaired after the restore", "live after", "verdict"]);
        for checked in &self.checked {
            table.add_row(checked.cells());
        }
        let t = &self.timings;
        let failed = self.checked.iter().filter(|c| !c.passed()).count();
        let verdict = match passed {
            true => "passed: every stream table that is maintained equals its query".to_owned(),
            false => format!("FAILED: {failed} of {} stream tables", self.checked.len()),
        };
        format!(
            "{table}\nbase backup {:.1} s, server start {:.1} s, stream tables live {:.1} s, verification {:.1} s\n{verdict}\n",
            t.backup, t.start, t.live, t.verify
        )
    }
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// A line about progress.
fn say(line: &str) {
    eprintln!("{line}");
}
