//! `pgtrickle run`: the sidecar itself.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::{service, signals, web};
use crate::config::{Member, Origin, Settings};
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
    // Said by whoever starts it, or all of them.
    let only = (settings.pipeline.origin != Origin::Default).then(|| settings.pipeline.value.clone());
    let options = RunOptions {
        target: settings.target,
        pipeline: settings.pipeline.value,
        standby: settings.standby.value,
        workers: settings.workers.value,
        memory_limit: settings.memory_limit.value,
        cdc_mode: settings.cdc_mode.map(|m| m.value),
        evaluation: settings.evaluation.value,
        cluster: settings.cluster,
        observed: Some(observed.clone()),
        positions: Arc::default(),
        counters: Default::default(),
    };
    let web = web::start(settings.http, &settings.web, observed.clone(), &shutdown).await?;
    let told = service::start(observed, &shutdown);
    match settings.all_databases.value {
        true => crate::launcher::run(options, only, shutdown.clone()).await.map_err(with_advice)?,
        false => crate::supervisor::run(options, shutdown.clone()).await.map_err(with_advice)?,
    }
    if let Some(web) = web {
        web.abort();
    }
    if let Some(told) = told {
        told.end().await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a process that holds shards of another one's state.
pub(super) async fn member(member: Member) -> Result<ExitCode> {
    let shutdown = signals::token(DRAIN)?;
    let Member { cluster, memory_limit } = member;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        process = cluster.process,
        processes = cluster.hosts.count(),
        memory_limit_mb = memory_limit.value >> 20,
        memory_limit_from = %memory_limit.origin,
        "starting"
    );
    crate::cluster::serve(cluster, memory_limit.value, shutdown).await?;
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
