//! What a start finds, decided by the table of [`crate::recovery`], and what is done about it.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::lease::Lease;
use super::{RunOptions, guard};
use crate::capture::{publication, trigger};
use crate::catalog::{behind, store};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::error;
use crate::recovery::{Action, CdcMode, Diagnosis, Observation, Rule, SlotFacts, Stored, decide};
use crate::replication::{PipelineNames, slot};

/// How long a slot in use is waited for: the server needs up to `wal_sender_timeout` to notice our own dead session.
const SLOT_PATIENCE: Duration = Duration::from_secs(70);

/// How changes are delivered in this life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Delivery {
    /// From the slot, starting at this frontier.
    Slot { frontier: u64 },
    /// From change buffers, because of this.
    Poll { reason: String },
}

/// What is left to say once the stream tables are right again.
pub(super) struct Plan {
    pub delivery: Delivery,
    /// Why everything is reconciled, if something had happened.
    pub cause: Option<String>,
}

/// Decides how this life gets its changes, and makes the server ready for it. Takes the pipeline over.
pub(super) async fn prepare(
    control: &Client,
    options: &RunOptions,
    lease: &mut Lease,
    distrust: bool,
) -> Result<Plan> {
    let mode = cdc_mode(control, options).await?;
    let deadline = tokio::time::Instant::now() + SLOT_PATIENCE;
    let mut observation = observe(control, &options.pipeline, lease, mode).await?;
    observation.stream_refused = distrust;
    let mut rule = decide(&observation);
    while rule.diagnosis == Diagnosis::SlotActive {
        if tokio::time::Instant::now() > deadline {
            return Err(in_use(control, lease.names.slot()).await?);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        observation = Observation {
            stream_refused: distrust,
            ..observe(control, &options.pipeline, lease, mode).await?
        };
        rule = decide(&observation);
    }
    tracing::debug!(row = rule.number, diagnosis = rule.diagnosis.code(), action = ?rule.action, "diagnosed");
    match rule.action {
        Action::Wait => Err(Error::new(ErrorKind::ServerSetup, "the server is a standby")),
        Action::Refuse => Err(Error::new(
            ErrorKind::ServerSetup,
            format!("the replication slot {} belongs to something else", lease.names.slot()),
        )
        .with_hint("drop or rename that slot: the name is derived from this installation's id")),
        Action::Resume => {
            lease.take_over(control, &options.pipeline).await?;
            tell_lost_triggers(control, options).await?;
            let frontier = lease.before.frontier.unwrap_or(0);
            deliver_by_slot(control, options, lease).await?;
            Ok(Plan { delivery: Delivery::Slot { frontier }, cause: None })
        }
        Action::Triggers => {
            if let (CdcMode::Wal, Some(reason), false) =
                (mode, &observation.cannot_stream, lease.before.frontier.is_some())
            {
                return Err(refused(reason));
            }
            let told = rule.warns && !lease.before.polled;
            let cause = if told { note(control, options, lease, rule, &observation).await? } else { None };
            lease.take_over(control, &options.pipeline).await?;
            if cause.is_none() {
                tell_lost_triggers(control, options).await?;
            }
            // A slot that nobody reads would keep WAL for ever.
            slot::drop_ours(control, lease.names.slot()).await?;
            let reason = observation.cannot_stream.clone();
            let reason = reason.unwrap_or_else(|| rule.diagnosis.cause().to_owned());
            deliver_by_polling(control, options, lease, &reason).await?;
            Ok(Plan { delivery: Delivery::Poll { reason }, cause })
        }
        Action::Bootstrap => {
            lease.take_over(control, &options.pipeline).await?;
            by_slot_if_possible(control, options, lease, mode, None).await
        }
        Action::NewIdentity => {
            let cause = note(control, options, lease, rule, &observation).await?;
            if rule.diagnosis == Diagnosis::OtherCluster {
                forget_old_slot(control, lease).await?;
            }
            // The slot, publication and triggers of the original are never touched: other names from here on.
            lease.before.install_id = store::new_install(control, &options.pipeline).await?;
            lease.names =
                PipelineNames::new(lease.identity.database_oid, &lease.before.install_id, &options.pipeline)?;
            forget_old_publications(control, &options.pipeline, lease.names.publication()).await?;
            lease.take_over(control, &options.pipeline).await?;
            forget_frontier(control, options, lease).await?;
            rebuild(control, options, lease, mode, cause, observation).await
        }
        Action::Rebuild => {
            let cause = note(control, options, lease, rule, &observation).await?;
            lease.take_over(control, &options.pipeline).await?;
            slot::drop_ours(control, lease.names.slot()).await?;
            if lease.before.frontier.is_some_and(|f| f > observation.current) {
                forget_frontier(control, options, lease).await?;
            }
            rebuild(control, options, lease, mode, cause, observation).await
        }
    }
}

/// The stored position belongs to another history: nobody who waits may take it for one of this server.
async fn forget_frontier(control: &Client, options: &RunOptions, lease: &mut Lease) -> Result<()> {
    lease.before.frontier = Some(0);
    store::reset_frontier(control, &options.pipeline, 0).await
}

/// Changes may be missing: triggers are installed at once, where that is possible for all sources, and the slot is made
/// while they capture. Otherwise the slot is made first.
async fn rebuild(
    control: &Client,
    options: &RunOptions,
    lease: &mut Lease,
    mode: CdcMode,
    cause: Option<String>,
    observation: Observation,
) -> Result<Plan> {
    let possible = observation.cannot_stream.is_none();
    let wanted = mode == CdcMode::Trigger;
    if wanted || !possible || fallback_ready(control, options).await? {
        let reason = match (&observation.cannot_stream, &cause) {
            (Some(reason), _) => reason.clone(),
            (None, Some(cause)) => cause.clone(),
            (None, None) => "the slot is made anew".to_owned(),
        };
        deliver_by_polling(control, options, lease, &reason).await?;
        return Ok(Plan { delivery: Delivery::Poll { reason }, cause });
    }
    by_slot_if_possible(control, options, lease, mode, cause).await
}

/// A slot that is new begins beyond what the stream tables hold, until they have been compared.
pub(super) async fn begin_at(control: &Client, pipeline: &str, start: u64) -> Result<()> {
    behind::tell_all(control, pipeline).await?;
    store::reset_frontier(control, pipeline, start).await
}

async fn by_slot_if_possible(
    control: &Client,
    options: &RunOptions,
    lease: &mut Lease,
    mode: CdcMode,
    cause: Option<String>,
) -> Result<Plan> {
    match make_slot(control, options, lease).await {
        Ok(frontier) => {
            begin_at(control, &options.pipeline, frontier).await?;
            deliver_by_slot(control, options, lease).await?;
            Ok(Plan { delivery: Delivery::Slot { frontier }, cause })
        }
        Err(e) if mode == CdcMode::Auto && is_impossible(&e) => {
            tracing::warn!(reason = %e, hint = e.hint(), "no slot can be made: changes are captured by triggers");
            let reason = e.context().to_owned();
            deliver_by_polling(control, options, lease, &reason).await?;
            Ok(Plan { delivery: Delivery::Poll { reason }, cause })
        }
        Err(e) => Err(e),
    }
}

/// Row L: the server or the role can't do it now.
pub(super) fn is_impossible(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::ServerSetup | ErrorKind::Privilege)
}

/// The publication first: decoding looks it up in the catalog of the slot's position.
pub(super) async fn make_slot(control: &Client, options: &RunOptions, lease: &Lease) -> Result<u64> {
    let names = &lease.names;
    let existed = publication::exists(control, names.publication()).await?;
    if !existed {
        publication::set_tables(control, names.publication(), &[]).await?;
    }
    match guard::make_slot(control, options, lease).await {
        Ok(start) => Ok(start),
        Err(e) => {
            // Nothing half-made stays behind a refusal.
            if !existed && let Err(left) = publication::remove(control, names.publication()).await {
                tracing::warn!(error = %left, publication = names.publication(), "a publication that nobody uses is left");
            }
            Err(e)
        }
    }
}

pub(super) async fn deliver_by_slot(control: &Client, options: &RunOptions, lease: &Lease) -> Result<()> {
    let oid = publication::oid(control, lease.names.publication()).await?;
    store::set_delivery(control, &options.pipeline, "slot", None, oid).await
}

/// Nothing reads the publication then, and nobody maintains it: a member that loses its replica identity could not be
/// updated any more (hazard B5).
async fn deliver_by_polling(
    control: &Client,
    options: &RunOptions,
    lease: &Lease,
    reason: &str,
) -> Result<()> {
    publication::remove(control, lease.names.publication()).await?;
    store::set_delivery(control, &options.pipeline, "poll", Some(reason), None).await
}

pub(super) async fn cdc_mode(control: &Client, options: &RunOptions) -> Result<CdcMode> {
    match options.cdc_mode {
        Some(mode) => Ok(mode),
        None => store::setting(control, &options.pipeline, "cdc_mode")
            .await?
            .map_or(Ok(CdcMode::Auto), |text| text.parse()),
    }
}

/// Reads everything that the table looks at, on one connection.
pub(super) async fn observe(
    control: &Client,
    pipeline: &str,
    lease: &Lease,
    mode: CdcMode,
) -> Result<Observation> {
    let before = &lease.before;
    let stored = before.system_identifier.clone().map(|system_identifier| Stored {
        system_identifier,
        timeline: before.timeline.unwrap_or_default(),
        database_oid: before.database_oid.unwrap_or_default(),
        database_name: before.database_name.clone().unwrap_or_default(),
        frontier: before.frontier,
        polled: before.polled,
        publication_oid: before.publication_oid,
    });
    let trust = store::setting(control, pipeline, "trust_slot_across_timelines").await?;
    // The slot first: its position can only be behind what is read afterwards.
    let slot = slot::read(control, lease.names.slot()).await?.map(|s| SlotFacts {
        plugin: s.plugin,
        database: s.database,
        active: s.active_pid.is_some(),
        wal_status: s.wal_status,
        invalidation: s.invalidation,
        conflicting: s.conflicting,
        restart: s.restart,
        confirmed: s.confirmed,
        synced: s.synced,
        failover: s.failover,
    });
    let current =
        control.query_one("select pg_catalog.pg_current_wal_flush_lsn()", &[]).await.map_err(error)?;
    let database_name: String =
        control.query_one("select pg_catalog.current_database()::text", &[]).await.map_err(error)?.get(0);
    Ok(Observation {
        in_recovery: lease.identity.in_recovery,
        lease_held: false,
        stored,
        system_identifier: lease.identity.system_identifier.clone(),
        timeline: lease.identity.timeline,
        database_oid: i64::from(lease.identity.database_oid),
        database_name,
        current: current.get::<_, PgLsn>(0).into(),
        major: lease.identity.major,
        slot,
        publication_oid: publication::oid(control, lease.names.publication()).await?,
        cannot_stream: cannot_stream(control).await?,
        shed: before.shed,
        stream_refused: false,
        trust_slot_across_timelines: trust.is_some_and(|t| ["on", "true", "yes", "1"].contains(&t.as_str())),
        triggers_wanted: mode == CdcMode::Trigger,
    })
}

/// Row L: why no WAL can be streamed. What only an attempt shows (no free slot) is found by the attempt.
pub(super) async fn cannot_stream(control: &Client) -> Result<Option<String>> {
    // Managed services give the right by membership in a role of theirs.
    const SQL: &str = "select pg_catalog.current_setting('wal_level'),
            pg_catalog.current_setting('max_wal_senders')::int, current_user::text,
            exists (select from pg_catalog.pg_roles r where r.rolname = current_user and (r.rolreplication or r.rolsuper))
            or exists (select from pg_catalog.pg_roles r where r.rolname in ('rds_replication', 'rds_superuser',
                'cloudsqlsuperuser', 'azure_pg_admin') and pg_catalog.pg_has_role(r.oid, 'USAGE'))";
    let row = control.query_one(SQL, &[]).await.map_err(error)?;
    if let Some(reason) = slot::counts_as_standby(control).await? {
        return Ok(Some(reason));
    }
    let (level, senders, role): (String, i32, String) = (row.get(0), row.get(1), row.get(2));
    Ok(match (level.as_str(), senders, row.get::<_, bool>(3)) {
        ("logical", 1.., true) => None,
        ("logical", 1.., false) => Some(format!("the role {role} has no REPLICATION right")),
        ("logical", _, _) => Some("max_wal_senders is 0".to_owned()),
        (level, _, _) => Some(format!("wal_level is {level}, logical is needed")),
    })
}

/// The refusal of a first start with `cdc_mode = wal`.
fn refused(reason: &str) -> Error {
    if reason.contains("REPLICATION") {
        let role = reason.split_whitespace().nth(2).unwrap_or("...");
        return Error::new(ErrorKind::Privilege, reason).with_sqlstate("42501").with_hint(format!(
            "the role needs the attribute: alter role {role} replication (on RDS: grant rds_replication), or use cdc_mode auto"
        ));
    }
    Error::new(ErrorKind::ServerSetup, reason).with_sqlstate("55000").with_hint(
        "set wal_level = logical in postgresql.conf (on managed services: logical replication) and restart the server, \
         or use cdc_mode auto",
    )
}

/// One WARNING per source and cause: in our log, in the server's log, in `pgt_recoveries`. Returns the cause.
async fn note(
    control: &Client,
    options: &RunOptions,
    lease: &Lease,
    rule: &Rule,
    observation: &Observation,
) -> Result<Option<String>> {
    let cause = match (rule.diagnosis, &observation.cannot_stream) {
        (Diagnosis::WalImpossible, Some(reason)) => reason.clone(),
        _ => rule.diagnosis.cause().to_owned(),
    };
    let frontier = lease.before.frontier.map(PgLsn::from).map(|l| l.to_string()).unwrap_or_default();
    let incident = format!(
        "{}.{}.{}.{frontier}",
        observation.system_identifier, observation.timeline, observation.database_oid
    );
    tell(control, options, rule.diagnosis.code(), &cause, &incident).await?;
    Ok(Some(cause))
}

/// Tells every affected source's owner what happened and what is done.
pub(super) async fn tell(
    control: &Client,
    options: &RunOptions,
    code: &str,
    cause: &str,
    incident: &str,
) -> Result<()> {
    const ACTION: &str =
        "captured by triggers where possible, read again, and what was missed is repaired by difference";
    let sources = store::captured_names(control, &options.pipeline).await?;
    let new =
        store::note_recovery(control, &options.pipeline, &sources, (code, cause, ACTION), incident).await?;
    for source in new {
        tracing::warn!(source = %source, diagnosis = code, cause, action = ACTION, "capture was interrupted");
    }
    Ok(())
}

/// The same before a start, which reads all sources again and installs the triggers: what it did not find intact would
/// never be said.
async fn tell_lost_triggers(control: &Client, options: &RunOptions) -> Result<()> {
    // Between two ways of delivery they are what the one or the other wants.
    const LOST: &str = "select q.source_id, coalesce(b.broken, m.broken) from pgtrickle.pgt_sources q
          join pgtrickle.pgt_pipelines p on p.pipeline = q.pipeline
          cross join lateral (select pgtrickle._broken_seal(q.source_id, 'buffer') as broken) b
          cross join lateral (select pgtrickle._broken_seal(q.source_id, 'message') as broken) m
         where q.pipeline = $1 and q.capture = 'trigger' and q.function_hash is not null
           and b.broken is not null and m.broken is not null
           and exists (select from pg_catalog.pg_class c where c.oid = q.source)
         order by q.source_id";
    for row in control.query(LOST, &[&options.pipeline]).await.map_err(error)? {
        tell_triggers_lost(control, options, row.get(0), row.get(1)).await?;
    }
    Ok(())
}

/// Somebody took the capture triggers of one source off, disabled or changed them.
pub(super) async fn tell_triggers_lost(
    control: &Client,
    options: &RunOptions,
    source_id: i64,
    broken: &str,
) -> Result<()> {
    // It is said once, also if the process ends before the triggers are there again.
    const SOURCE: &str = "update pgtrickle.pgt_sources set function_hash = null where source_id = $1
        returning source_name, pg_catalog.clock_timestamp()::text";
    let Some(row) = control.query_opt(SOURCE, &[&source_id]).await.map_err(error)? else { return Ok(()) };
    let (source, incident): (String, String) = (row.get(0), row.get(1));
    const ACTION: &str = "the triggers are installed again, and what was missed is repaired by difference";
    let told = ("TRIGGERS_LOST", broken, ACTION);
    store::note_recovery(control, &options.pipeline, std::slice::from_ref(&source), told, &incident).await?;
    tracing::warn!(source = %source, diagnosis = told.0, cause = broken, action = ACTION, "capture was interrupted");
    Ok(())
}

/// Sources were out of the publication, or published in part, for a while: nobody knows what was not sent. Returns the
/// error that makes the pipeline start anew. Where the whole publication is another one, the start tells.
pub(super) async fn tell_unpublished(control: &Client, options: &RunOptions, oids: &[u32]) -> Result<Error> {
    const SOURCES: &str = "select pg_catalog.clock_timestamp()::text, array(select pg_catalog.format('%I.%I', n.nspname, c.relname)
            from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = any ($2) order by 1),
            exists (select from pgtrickle.pgt_pipelines p join pg_catalog.pg_publication u
                on u.pubname = p.publication_name and u.oid::bigint = p.publication_oid where p.pipeline = $1)";
    let row = control.query_one(SOURCES, &[&options.pipeline, &oids]).await.map_err(error)?;
    let (incident, sources): (String, Vec<String>) = (row.get(0), row.get(1));
    const CAUSE: &str = "the table was not published whole for a while";
    const ACTION: &str = "it is published and read again, and what was missed is repaired by difference";
    let told = ("PUBLICATION_CHANGED", CAUSE, ACTION);
    if row.get::<_, bool>(2) {
        for source in store::note_recovery(control, &options.pipeline, &sources, told, &incident).await? {
            tracing::warn!(source = %source, diagnosis = told.0, cause = CAUSE, action = ACTION, "capture was interrupted");
        }
    }
    Ok(Error::new(ErrorKind::Identity, format!("{}: {CAUSE}", sources.join(", "))))
}

/// Whether triggers can be installed on every source of the pipeline's incremental stream tables.
async fn fallback_ready(control: &Client, options: &RunOptions) -> Result<bool> {
    const OIDS: &str = "select c.oid from pg_catalog.unnest($1::text[]) n
        join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass(n)";
    let names = store::captured_names(control, &options.pipeline).await?;
    let rows = control.query(OIDS, &[&names]).await.map_err(error)?;
    let oids: Vec<u32> = rows.iter().map(|r| r.get(0)).collect();
    for id in trigger::source_ids(control, &options.pipeline, &oids).await? {
        if trigger::obstacle(control, id).await?.is_some() {
            return Ok(false);
        }
    }
    Ok(!oids.is_empty())
}

/// After pg_upgrade our slot is there under the old name, at a position of another history.
async fn forget_old_slot(control: &Client, lease: &Lease) -> Result<()> {
    match &lease.before.slot_name {
        Some(name) => slot::drop_ours(control, name).await,
        None => Ok(()),
    }
}

/// A dump and a copy bring the original's publication along. Nobody maintains it here: a source that loses its replica
/// identity could not be updated any more.
async fn forget_old_publications(control: &Client, pipeline: &str, ours: &str) -> Result<()> {
    const OLD: &str = "select pubname::text from pg_catalog.pg_publication
        where pubname ~ ('^pgtrickle_[0-9]+_[0-9a-f]{8}_' || $1 || '$') and pubname <> $2";
    for row in control.query(OLD, &[&pipeline, &ours]).await.map_err(error)? {
        publication::remove(control, row.get(0)).await?;
    }
    Ok(())
}

async fn in_use(control: &Client, name: &str) -> Result<Error> {
    let holder = slot::holder(control, name).await?.unwrap_or_else(|| "another session".to_owned());
    Ok(Error::new(ErrorKind::LeaseHeld, format!("the replication slot {name} is in use by {holder}"))
        .with_hint("end that process; pgtrickle never terminates what it can't prove to be its own"))
}
