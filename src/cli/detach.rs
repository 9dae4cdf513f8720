//! `pgtrickle detach` and `pgtrickle attach`: the sidecar leaves a database, and may come back.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use tokio_postgres::Client;

use super::Connection;
use super::status::{denied, installed};
use crate::config::Settings;
use crate::error::Result;
use crate::postgres::sessions::Purpose;

#[derive(Args)]
pub(super) struct DetachArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// How long to wait for the sidecar's end
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
}

#[derive(Args)]
pub(super) struct AttachArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
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
            super::print(&format!("{said}\n"));
            return Ok(ExitCode::SUCCESS);
        }
    }
}

pub(super) async fn attach(_: AttachArgs, settings: Settings) -> Result<ExitCode> {
    let client = settings.target.connect(Purpose::Tool).await?;
    installed(&client).await?;
    let said = call(&client, "select pgtrickle.attach(pipeline => $1)", &[&settings.pipeline.value]).await?;
    super::print(&format!("{said}\n"));
    Ok(ExitCode::SUCCESS)
}

async fn call(
    client: &Client,
    sql: &str,
    values: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<String> {
    Ok(client.query_one(sql, values).await.map_err(denied)?.get(0))
}
