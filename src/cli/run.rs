//! `pgtrickle run`: the sidecar itself.

use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::signals;
use crate::config::Settings;
use crate::error::Result;

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
        memory_limit_from = %settings.memory_limit.origin,
        "starting"
    );
    engine(settings, shutdown).await?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

async fn engine(settings: Settings, shutdown: CancellationToken) -> Result<()> {
    let _ = (settings, shutdown);
    Err(crate::error::Error::internal("this build has no engine"))
}
