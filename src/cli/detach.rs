//! `pgtrickle detach` and `attach`: the sidecar leaves a database, and may come back; `pause` and `unpause`: it leaves for
//! a time and keeps its slot.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio_postgres::Client;

use super::Connection;
use super::status::{denied, installed};
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::Purpose;

#[derive(Args)]
pub(super) struct DetachArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// How long to wait for the sidecar's end
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct AttachArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// When the sidecar goes on by itself: a moment with its time zone, as PostgreSQL reads it (2026-12-01T22:30:00Z)
    #[arg(long, value_name = "MOMENT", required_unless_present = "for_", conflicts_with = "for_")]
    until: Option<String>,
    /// How long, as PostgreSQL reads an interval ('30 min', '2 hours')
    #[arg(long = "for", id = "for_", value_name = "DURATION")]
    for_: Option<String>,
    /// How long to wait for the sidecar to leave
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Marks the pipeline and waits until the sidecar has closed its sessions.
pub(super) async fn pause(args: PauseArgs, settings: Settings) -> Result<ExitCode> {
    const UNTIL: &str = "select pgtrickle.pause($1::text::timestamptz, pipeline => $2)";
    const FOR: &str = "select pgtrickle.pause(clock_timestamp() + $1::text::interval, pipeline => $2)";
    const ALIVE: &str = "select pgtrickle.sidecar_alive($1)";
    let client = settings.target.connect(Purpose::Tool).await?;
    installed(&client).await?;
    let pipeline = &settings.pipeline.value;
    let said = match (&args.until, &args.for_) {
        (Some(until), _) => call(&client, UNTIL, &[until, pipeline]).await?,
        (None, duration) => call(&client, FOR, &[duration, pipeline]).await?,
    };
    let deadline = Instant::now() + Duration::from_secs(u64::from(args.timeout));
    while client.query_one(ALIVE, &[pipeline]).await.map_err(denied)?.get(0) {
        if Instant::now() > deadline {
            return Err(Error::new(ErrorKind::Contention, "the sidecar has not left yet")
                .with_hint("the pause stays asked for; pgtrickle status shows when it has begun"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tell(&client, pipeline, &said, args.json).await
}

pub(super) async fn unpause(args: AttachArgs, settings: Settings) -> Result<ExitCode> {
    let client = settings.target.connect(Purpose::Tool).await?;
    installed(&client).await?;
    let said = call(&client, "select pgtrickle.unpause(pipeline => $1)", &[&settings.pipeline.value]).await?;
    tell(&client, &settings.pipeline.value, &said, args.json).await
}

/// Marks the pipeline, waits until the sidecar has gone, and drops the slot if it has not.
pub(super) async fn detach(args: DetachArgs, settings: Settings) -> Result<ExitCode> {
    const SQL: &str =
        "select pgtrickle.detach(pipeline => $1, timeout => pg_catalog.make_interval(secs => $2::float8))";
    let client = settings.target.connect(Purpose::Tool).await?;
    installed(&client).await?;
    let deadline = Instant::now() + Duration::from_secs(u64::from(args.timeout));
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let said = call(&client, SQL, &[&settings.pipeline.value, &left]).await?;
        // The first call may only leave the mark; the second waits.
        if !said.starts_with("detaching") || Instant::now() > deadline {
            return tell(&client, &settings.pipeline.value, &said, args.json).await;
        }
    }
}

pub(super) async fn attach(args: AttachArgs, settings: Settings) -> Result<ExitCode> {
    let client = settings.target.connect(Purpose::Tool).await?;
    installed(&client).await?;
    let said = call(&client, "select pgtrickle.attach(pipeline => $1)", &[&settings.pipeline.value]).await?;
    tell(&client, &settings.pipeline.value, &said, args.json).await
}

/// What the function said; as JSON with what the pipeline is at this moment.
async fn tell(client: &Client, pipeline: &str, said: &str, json: bool) -> Result<ExitCode> {
    const STATUS: &str = "select status from pgtrickle.pipelines_info where pipeline = $1";
    if json {
        let status: String = client.query_one(STATUS, &[&pipeline]).await.map_err(denied)?.get(0);
        super::print_json(&json!({"pipeline": pipeline, "status": status, "message": said}));
    } else {
        super::print(&format!("{said}\n"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn call(
    client: &Client,
    sql: &str,
    values: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<String> {
    Ok(client.query_one(sql, values).await.map_err(denied)?.get(0))
}
