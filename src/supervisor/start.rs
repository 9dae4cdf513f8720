//! One life of a pipeline: from the lease to the loop's end. Everything in memory is made here and dropped with it.

use tokio_util::sync::CancellationToken;

use super::RunOptions;
use super::engine::Engine;
use super::lease::{self, Lease};
use crate::apply::{Writer, history};
use crate::capture::publication;
use crate::catalog::store;
use crate::dataflow::{Dataflow, DataflowOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::evaluate;
use crate::pgoutput::Snapshot;
use crate::postgres::sessions::{Purpose, Target, error};
use crate::replication::{Session, slot};

/// Serves until `shutdown` or an error. Sets `served` once the stream has started.
pub async fn serve(
    options: &RunOptions,
    reason: &str,
    shutdown: &CancellationToken,
    served: &mut bool,
) -> Result<()> {
    let control = options.target.connect(Purpose::Control).await?;
    let lease = lease::acquire(&control, &options.pipeline).await?;
    history::close_interrupted(&control).await?;
    // Creating a slot waits for transactions of the whole cluster.
    let frontier = tokio::select! {
        frontier = ready_slot(&control, &options.target, &lease, &options.pipeline) => frontier?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let session = open_stream(options, &lease, frontier).await?;
    let writer_session = options.target.connect(Purpose::Apply).await?;
    let writer = Writer::new(writer_session, &options.pipeline, lease.generation).await?;
    let (dataflow, requests) = Dataflow::start(DataflowOptions { workers: options.workers })?;
    let evaluation = tokio::spawn(evaluate::serve(options.target.clone(), requests));
    let near: Snapshot = control
        .query_one("select pg_catalog.pg_current_snapshot()::text", &[])
        .await
        .map_err(error)?
        .get::<_, String>(0)
        .parse()?;
    tracing::info!(
        database = %options.target.describe(),
        postgres = lease.identity.major,
        slot = lease.names.slot(),
        generation = lease.generation,
        workers = options.workers,
        memory_limit_mb = options.memory_limit >> 20,
        "streaming started"
    );
    *served = true;
    let engine =
        Engine::new(options.clone(), lease, control, session, writer, dataflow, frontier, near.xmax, reason)?;
    let outcome = engine.run(shutdown, evaluation).await;
    if outcome.is_ok() {
        tracing::info!("stopped");
    }
    outcome
}

/// The slot exists, is ours, and stands where the catalog says; returns the frontier to start from.
///
/// A missing slot is made anew: every start reads all sources again and writes the difference (D6), so nothing is lost
/// by it. A slot in other hands is refused.
async fn ready_slot(
    control: &tokio_postgres::Client,
    target: &Target,
    lease: &Lease,
    pipeline: &str,
) -> Result<u64> {
    let names = &lease.names;
    // The publication must exist before the slot's position: decoding looks it up in the catalog of that moment.
    let existed = publication::exists(control, names.publication()).await?;
    // What it holds is put right once it is known what is needed.
    if !existed {
        publication::set_tables(control, names.publication(), &[]).await?;
    }
    let state = slot::read(control, names.slot()).await?;
    let stored = lease.before.frontier.unwrap_or(0);
    let same_history = lease.before.system_identifier.as_deref() == Some(&lease.identity.system_identifier)
        && lease.before.timeline == Some(lease.identity.timeline)
        && lease.before.database_oid == Some(i64::from(lease.identity.database_oid));
    let problem = match &state {
        // Never served before.
        None if lease.before.frontier.is_none() => None,
        None => Some("the replication slot is gone".to_owned()),
        Some(s)
            if s.plugin.as_deref() != Some("pgoutput")
                || s.database.as_deref() != target.config().get_dbname() =>
        {
            return Err(Error::new(
                ErrorKind::ServerSetup,
                format!("the replication slot {} belongs to something else", names.slot()),
            )
            .with_hint("drop or rename that slot: the name is derived from this installation's id"));
        }
        Some(s) if s.is_lost() => Some("the server has discarded WAL that the slot needed".to_owned()),
        Some(_) if !same_history => Some("the server is another one, or was restored".to_owned()),
        // Its changes of the meantime are missing; before 18 the slot can't even be read past that point.
        Some(_) if !existed => Some("the publication was dropped".to_owned()),
        Some(s) if s.confirmed.is_some_and(|c| c > stored) => {
            Some("the slot was moved without us".to_owned())
        }
        Some(_) => {
            wait_until_free(control, names.slot()).await?;
            return Ok(stored);
        }
    };
    if let Some(problem) = problem {
        tracing::warn!(slot = names.slot(), reason = %problem, "all sources are read again and the difference is written");
    }
    if state.is_some() {
        wait_until_free(control, names.slot()).await?;
        slot::drop_ours(control, names.slot()).await?;
    }
    let start = match slot::create(control, names.slot(), lease.identity.major).await {
        Ok(start) => start,
        Err(e) => {
            // Nothing half-made stays behind a refusal.
            if existed {
                return Err(e);
            }
            if let Err(left) = publication::remove(control, names.publication()).await {
                tracing::warn!(error = %left, publication = names.publication(), "a publication that nobody uses is left");
            }
            return Err(e);
        }
    };
    store::reset_frontier(control, pipeline, start).await?;
    Ok(start)
}

/// Our own dead session may hold the slot until the server notices; anybody else's is refused.
async fn wait_until_free(control: &tokio_postgres::Client, name: &str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(70);
    loop {
        let Some(holder) = slot::holder(control, name).await? else { return Ok(()) };
        if tokio::time::Instant::now() > deadline {
            return Err(Error::new(
                ErrorKind::LeaseHeld,
                format!("the replication slot {name} is in use by {holder}"),
            )
            .with_hint("end that process; pgtrickle never terminates what it can't prove to be its own"));
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
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
