//! One life of a pipeline: from the lease to the loop's end. Everything in memory is made here and dropped with it.

use tokio_util::sync::CancellationToken;

use super::RunOptions;
use super::detach;
use super::diagnose::{self, Delivery};
use super::engine::Engine;
use super::lease::{self, Lease};
use super::stream::{Polling, Stream};
use crate::apply::{Writer, history};
use crate::capture::trigger;
use crate::dataflow::{Dataflow, DataflowOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::evaluate;
use crate::pgoutput::Snapshot;
use crate::postgres::sessions::{Purpose, error};
use crate::replication::Session;

/// How a life ended well.
pub enum End {
    Stopped,
    /// The pipeline is to be left alone.
    Detached,
}

/// Serves until `shutdown` or an error. `distrust`: the slot could not be read several times. Notes in `life` that the
/// stream has started, and how long sources were read.
pub async fn serve(
    options: &RunOptions,
    reason: &str,
    distrust: bool,
    shutdown: &CancellationToken,
    life: &mut super::Life,
) -> Result<End> {
    let control = options.target.connect(Purpose::Control).await?;
    let mut lease = lease::acquire(&control, &options.pipeline).await?;
    let names = lease.names.clone();
    if detach::is_detached(&control, &options.pipeline).await? {
        drop(control);
        detach::leave(&options.target, &names).await?;
        return Ok(End::Detached);
    }
    history::close_interrupted(&control).await?;
    // Creating a slot waits for transactions of the whole cluster.
    let plan = tokio::select! {
        plan = diagnose::prepare(&control, options, &mut lease, distrust) => plan?,
        () = shutdown.cancelled() => return Ok(End::Stopped),
    };
    let reason = plan.cause.as_deref().unwrap_or(reason);
    let (stream, frontier) = match &plan.delivery {
        Delivery::Slot { frontier } => {
            (Stream::Slot(Box::new(open_stream(options, &lease, *frontier).await?)), *frontier)
        }
        Delivery::Poll { .. } => {
            let client = options.target.connect(Purpose::Poll).await?;
            (Stream::Poll(Polling::new(client)), lease.before.frontier.unwrap_or(0))
        }
    };
    let writer_session = options.target.connect(Purpose::Apply).await?;
    let writer = Writer::new(writer_session, &options.pipeline, lease.generation).await?;
    let (dataflow, requests) = Dataflow::start(DataflowOptions { workers: options.workers })?;
    let evaluation = super::spawn(evaluate::serve(options.target.clone(), requests));
    let near: Snapshot = control
        .query_one("select pg_catalog.pg_current_snapshot()::text", &[])
        .await
        .map_err(error)?
        .get::<_, String>(0)
        .parse()?;
    let (delivery, why) = match &plan.delivery {
        Delivery::Slot { .. } => (lease.names.slot(), None),
        Delivery::Poll { reason } => ("change buffers", Some(reason.as_str())),
    };
    tracing::info!(
        database = %options.target.describe(),
        postgres = lease.identity.major,
        delivery,
        because = why,
        generation = lease.generation,
        workers = options.workers,
        memory_limit_mb = options.memory_limit >> 20,
        "streaming started"
    );
    life.served = true;
    let token = trigger::token(&control, &options.pipeline).await?;
    let mut engine =
        Engine::new(options.clone(), lease, control, stream, writer, dataflow, frontier, near.xmax, reason)?;
    engine.sources.token = token;
    engine.loading = life.loading.clone();
    if let Delivery::Poll { reason } = plan.delivery {
        engine.delivery_reason = Some(reason);
    }
    // Cancelled by the shutdown, or by the loop itself when it finds the mark of a detach.
    let stop = shutdown.child_token();
    engine.stop = stop.clone();
    engine.run(&stop, evaluation).await?;
    if shutdown.is_cancelled() {
        tracing::info!("stopped");
        return Ok(End::Stopped);
    }
    detach::leave(&options.target, &names).await?;
    Ok(End::Detached)
}

pub(super) async fn open_stream(options: &RunOptions, lease: &Lease, frontier: u64) -> Result<Session> {
    let identity = lease.identity.clone();
    let database = options.target.config().get_dbname().map(str::to_owned);
    Session::open(&options.target, &lease.names, frontier, move |system| {
        let same = system.system_identifier == identity.system_identifier
            && i64::from(system.timeline) == i64::from(identity.timeline)
            && (system.database.is_none() || database.is_none() || system.database == database);
        match same {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Identity,
                "the replication session reached another server than the SQL session",
            )),
        }
    })
    .await
    .map_err(|e| {
        let user = options.target.config().get_user().unwrap_or("...");
        let hint = match e.kind() {
            ErrorKind::Privilege => {
                format!("the role needs the attribute: alter role {user} replication (on RDS: grant rds_replication)")
            }
            ErrorKind::Authentication if e.hint().is_none() => {
                "replication sessions come in as others do: pg_hba.conf must let this role in from here".to_owned()
            }
            _ => return e,
        };
        e.with_hint(hint)
    })
}
