//! `pgtrickle run`: the sidecar itself.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::signals;
use crate::config::{Origin, Settings, Sourced};
use crate::error::{Error, ErrorKind, Result};
use crate::observe::Observed;
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
    let observed = Arc::new(Observed::default());
    let options = RunOptions {
        target: settings.target,
        pipeline: settings.pipeline.value,
        workers: settings.workers.value,
        memory_limit: settings.memory_limit.value,
        cdc_mode: settings.cdc_mode.map(|m| m.value),
        observed: Some(observed.clone()),
    };
    let web = web(settings.http, observed, &shutdown).await?;
    match settings.all_databases.value {
        true => crate::launcher::run(options, shutdown.clone()).await.map_err(with_advice)?,
        false => crate::supervisor::run(options, shutdown.clone()).await.map_err(with_advice)?,
    }
    if let Some(web) = web {
        web.abort();
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the web server. An address that was asked for must be had; the default one may be another sidecar's.
async fn web(
    address: Sourced<Option<SocketAddr>>,
    observed: Arc<Observed>,
    shutdown: &CancellationToken,
) -> Result<Option<JoinHandle<()>>> {
    let Some(at) = address.value else { return Ok(None) };
    let listener = match crate::http::bind(at).await {
        Ok(listener) => listener,
        Err(error) if address.origin == Origin::Default => {
            tracing::info!(reason = %error, "no numbers are served over HTTP");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    tracing::info!(address = %listener.local_addr().unwrap_or(at), "serving /metrics, /healthz and /readyz");
    let shutdown = shutdown.clone();
    Ok(Some(tokio::spawn(async move {
        if let Err(error) = crate::http::serve(listener, observed, shutdown).await {
            tracing::error!(error = %error, "numbers are no longer served");
        }
    })))
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
