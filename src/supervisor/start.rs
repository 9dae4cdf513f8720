//! One life of a pipeline: from the lease to the loop's end. Everything in memory is made here and dropped with it.

use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use super::RunOptions;
use super::answering::Known;
use super::detach::{self, Absence};
use super::diagnose::{self, Delivery};
use super::engine::Engine;
use super::guard;
use super::lease::{self, Lease};
use super::stream::{Polling, Stream};
use crate::apply::{Writer, history};
use crate::capture::trigger;
use crate::catalog::store;
use crate::cluster::Led;
use crate::dataflow::{Dataflow, DataflowOptions, EvaluationRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::evaluate;
use crate::pgoutput::Snapshot;
use crate::postgres::sessions::{Purpose, error};
use crate::replication::Session;

/// How a life ended well.
pub enum End {
    Stopped,
    /// The pipeline is to be left alone.
    Left(Absence),
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
    let Some(mut lease) = lease::wait(&control, options, shutdown, life).await? else {
        return Ok(End::Stopped);
    };
    let names = lease.names.clone();
    match detach::absence(&control, &options.pipeline).await? {
        None => {}
        Some(Absence::Detached) => {
            drop(control);
            detach::leave(&options.target, &names).await?;
            return Ok(End::Left(Absence::Detached));
        }
        Some(Absence::Paused) => return Ok(End::Left(Absence::Paused)),
    }
    let Some((dataflow, requests)) = engine(options, &lease, shutdown).await? else {
        return Ok(End::Stopped);
    };
    if options.cluster.is_some() {
        // The others may have been waited for since it was read.
        lease.before = store::pipeline(&control, &options.pipeline).await?;
    }
    history::close_interrupted(&control, &options.pipeline).await?;
    let session = Known::of(&control, &options.target).await?;
    // Creating a slot waits for transactions of the whole cluster.
    let plan = tokio::select! {
        plan = diagnose::prepare(&control, options, &mut lease, distrust) => Some(plan),
        lost = session.lost(None) => Some(Err(lost)),
        () = shutdown.cancelled() => None,
    };
    let plan = match plan {
        Some(Ok(plan)) => plan,
        ended => {
            // It holds the lease, and may be making a slot.
            control.end().await;
            return ended.map_or(Ok(End::Stopped), |plan| plan.map(|_| End::Stopped));
        }
    };
    let reason = plan.cause.as_deref().unwrap_or(reason);
    let (stream, frontier) = match &plan.delivery {
        Delivery::Slot { frontier } => {
            (Stream::Slot(Box::new(open_stream(options, &lease, *frontier).await?)), *frontier)
        }
        Delivery::Poll { .. } => {
            let client = options.target.connect(Purpose::Poll).await?;
            (Stream::Poll(Box::new(Polling::new(client))), lease.before.frontier.unwrap_or(0))
        }
    };
    let writer_session = options.target.connect(Purpose::Apply).await?;
    let writer = Writer::new(writer_session, &options.pipeline, lease.generation).await?;
    let evaluation = super::spawn(evaluate::serve(options.target.clone(), options.evaluation, requests));
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
        processes = options.cluster.as_ref().map(|c| c.hosts.count()),
        memory_limit_mb = options.memory_limit >> 20,
        "streaming started"
    );
    life.served = true;
    options.counters.lease(true);
    let token = trigger::token(&control, &options.pipeline).await?;
    let mut engine =
        Engine::new(options.clone(), lease, control, stream, writer, dataflow, frontier, near.xmax, reason)?;
    engine.sources.token = token;
    engine.loading = life.loading.clone();
    engine.silence = life.silence.clone();
    if let Some(megabytes) = store::setting(&engine.control, &options.pipeline, KEPT).await? {
        engine.kept.budget = bytes_of(&megabytes)?;
    }
    if let Delivery::Poll { reason } = plan.delivery {
        engine.delivery_reason = Some(reason);
    }
    // Cancelled by the shutdown, or by the loop itself when it finds the mark of a detach.
    let stop = shutdown.child_token();
    engine.stop = stop.clone();
    engine.run(&stop, evaluation, session).await?;
    if shutdown.is_cancelled() {
        tracing::info!("stopped");
        return Ok(End::Stopped);
    }
    // The loop has ended by itself: which mark it found is looked at again, it may have changed since.
    let client = options.target.connect(Purpose::Tool).await?;
    if detach::absence(&client, &options.pipeline).await? == Some(Absence::Detached) {
        drop(client);
        detach::leave(&options.target, &names).await?;
        return Ok(End::Left(Absence::Detached));
    }
    tracing::info!(slot = names.slot(), "paused: sessions are closed, the slot stays");
    Ok(End::Left(Absence::Paused))
}

/// Starts the workers, with those of the other processes if there are any. `None`: shut down while they were awaited.
async fn engine(
    options: &RunOptions,
    lease: &Lease,
    shutdown: &CancellationToken,
) -> Result<Option<(Dataflow, UnboundedReceiver<EvaluationRequest>)>> {
    let flow = DataflowOptions { workers: options.workers, memory_limit: options.memory_limit };
    let Some(cluster) = &options.cluster else { return Dataflow::start(flow, None).map(Some) };
    // The slot's name holds what tells this installation and pipeline from all others.
    let pipeline = lease.names.slot();
    let gathered = tokio::select! {
        gathered = Led::gather(cluster, pipeline, lease.before.generation, options.workers) => gathered,
        () = shutdown.cancelled() => return Ok(None),
        never = guard::unattended(options) => match never {},
    };
    let (led, mesh) = gathered.map_err(|e| e.during("gathering the cluster"))?;
    let started = Dataflow::start(flow, Some(mesh))?;
    led.serve(&started.0.port());
    tracing::info!(processes = cluster.hosts.count(), "all processes take part");
    Ok(Some(started))
}

/// Setting: megabytes of changes that may wait for the schedules of their stream tables.
const KEPT: &str = "kept_changes_mb";

fn bytes_of(megabytes: &str) -> Result<usize> {
    let number = megabytes.trim().parse::<f64>().ok().filter(|n| (0.0..1e9).contains(n));
    let number = number.ok_or_else(|| {
        Error::new(
            ErrorKind::Config,
            format!("the setting {KEPT} is '{megabytes}', which is no number of megabytes"),
        )
        .with_hint(format!("update pgtrickle.settings set value = '256' where key = '{KEPT}'"))
    })?;
    Ok((number * 1_048_576.0) as usize)
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
