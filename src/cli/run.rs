//! `pgtrickle run`: the sidecar itself.

use std::process::ExitCode;
use std::time::Duration;

use super::signals;
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::supervisor::RunOptions;

/// How long a shutdown may take: below the 30 s that most supervisors wait before they kill.
const DRAIN: Duration = Duration::from_secs(20);

pub(super) async fn run(settings: Settings) -> Result<ExitCode> {
    let shutdown = signals::token(DRAIN)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        database = settings.target.describe(),
        database_from = %settings.connection,
        pipeline = settings.pipeline.value,
        workers = settings.workers.value,
        memory_limit_mb = settings.memory_limit.value >> 20,
        all_databases = settings.all_databases.value,
        memory_limit_from = %settings.memory_limit.origin,
        "starting"
    );
    let options = RunOptions {
        target: settings.target,
        pipeline: settings.pipeline.value,
        workers: settings.workers.value,
        memory_limit: settings.memory_limit.value,
        cdc_mode: settings.cdc_mode.map(|m| m.value),
    };
    match settings.all_databases.value {
        true => crate::launcher::run(options, shutdown).await.map_err(with_advice)?,
        false => crate::supervisor::run(options, shutdown).await.map_err(with_advice)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A missing right that the server reports without a hint: most often it is the wrong role.
fn with_advice(error: Error) -> Error {
    if error.kind() == ErrorKind::Privilege && error.hint().is_none() {
        return error.with_hint(
            "connect as the role that pgtrickle init --sidecar-role prepared; it needs LOGIN, REPLICATION, and SELECT \
             on the tables that stream tables read",
        );
    }
    error
}
