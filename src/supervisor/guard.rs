//! The slot must never take the primary down (D15): what it retains against the threshold, and giving it up where the
//! policy says so. Telling about it is done by `observe::alerts`.

use std::time::Duration;

use tokio_postgres::Client;

use super::engine::Engine;
use super::lease::Lease;
use super::{RunOptions, detach, diagnose};
use crate::catalog::store;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{Purpose, error};
use crate::recovery::CdcMode;
use crate::replication::slot;

/// How often the slot is looked at.
pub(super) const LOOK: Duration = Duration::from_secs(2);

/// Guards the slot while nobody reads from it: the pipeline rests, or waits for the other processes of a cluster. Never
/// ends. The server may be away; whoever waits for it says so.
pub(super) async fn unattended(options: &RunOptions) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(e) = shed_unattended(options).await {
            tracing::debug!(error = %e.for_logs(), "the slot could not be looked at");
        }
    }
}

/// Drops the slot where the policy gives it up. The next start knows by the mark why it is not there.
async fn shed_unattended(options: &RunOptions) -> Result<()> {
    const SQL: &str = "select s.slot_name::text,
            pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint
        from pgtrickle.pgt_pipelines p join pg_catalog.pg_replication_slots s on s.slot_name = p.slot_name
        where p.pipeline = $1 and p.delivery = 'slot' and not s.active and s.database = pg_catalog.current_database()
          and not pg_catalog.pg_is_in_recovery() and pgtrickle._setting('slot_policy', $1) = 'shed'
          and pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)
            > pgtrickle._setting_mb('slot_lag_critical_threshold_mb', $1)";
    let client = options.target.connect(Purpose::Tool).await?;
    let Some(row) = client.query_opt(SQL, &[&options.pipeline]).await.map_err(error)? else {
        return Ok(());
    };
    let (name, retained): (String, i64) = (row.get(0), row.get(1));
    if !store::shed_slot(&client, &options.pipeline).await? {
        return Ok(());
    }
    slot::drop_ours(&client, &name).await?;
    let retained_mb = retained >> 20;
    tracing::warn!(
        slot = name,
        retained_mb,
        "the slot retains too much WAL while nobody reads it, and is given up"
    );
    Ok(())
}

/// Why a slot that waits to be made is given up.
enum GivenUp {
    /// It retains so many bytes of WAL.
    Retains(i64),
    /// The pipeline is to be left alone.
    Left,
}

/// Makes the slot. While it waits for transactions that were open before, it keeps WAL like any other; but nothing is lost
/// with it, so past the critical threshold it is given up whatever the policy says.
///
/// Errors: those of [`slot::create`]; `ServerSetup` when it is given up.
pub(super) async fn make_slot(control: &Client, options: &RunOptions, lease: &Lease) -> Result<u64> {
    let backend: i32 =
        control.query_one("select pg_catalog.pg_backend_pid()", &[]).await.map_err(error)?.get(0);
    let name = lease.names.slot();
    let mut creation = std::pin::pin!(slot::create(control, name, lease.identity.major));
    let given_up = tokio::select! {
        created = &mut creation => return created,
        given_up = give_up_waiting(options, name, backend) => given_up,
    };
    let created = creation.await;
    if created.is_ok() {
        return created;
    }
    match given_up {
        GivenUp::Left => Err(Error::new(ErrorKind::Identity, "the pipeline is to be left alone")),
        GivenUp::Retains(bytes) => {
            // Without the mark it is only made again the sooner.
            let _marked = store::shed_slot(control, &options.pipeline).await?;
            Err(waits_too_long(name, bytes))
        }
    }
}

/// Ends when it has cancelled the statement of that backend that makes the slot.
async fn give_up_waiting(options: &RunOptions, name: &str, backend: i32) -> GivenUp {
    loop {
        tokio::time::sleep(LOOK).await;
        // A connection can take long to open.
        match tokio::time::timeout(LOOK * 5, look_at_waiting(options, name, backend)).await {
            Ok(Ok(None)) | Err(_) => {}
            Ok(Ok(Some(given_up))) => return given_up,
            Ok(Err(e)) => tracing::debug!(error = %e.for_logs(), "the slot could not be looked at"),
        }
    }
}

async fn look_at_waiting(options: &RunOptions, name: &str, backend: i32) -> Result<Option<GivenUp>> {
    const SQL: &str =
        "select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint,
            pgtrickle._setting_mb('slot_lag_critical_threshold_mb', $3)
        from pg_catalog.pg_replication_slots s where s.slot_name = $1 and s.active_pid = $2";
    let client = options.target.connect(Purpose::Tool).await?;
    let Some(row) = client.query_opt(SQL, &[&name, &backend, &options.pipeline]).await.map_err(error)? else {
        return Ok(None);
    };
    let (retained, critical): (Option<i64>, i64) = (row.get(0), row.get(1));
    let given_up = match retained.filter(|bytes| *bytes > critical) {
        Some(bytes) => GivenUp::Retains(bytes),
        None if detach::absence(&client, &options.pipeline).await?.is_some() => GivenUp::Left,
        None => return Ok(None),
    };
    client.execute("select pg_catalog.pg_cancel_backend($1)", &[&backend]).await.map_err(error)?;
    Ok(Some(given_up))
}

fn waits_too_long(slot: &str, retained: i64) -> Error {
    let context = format!(
        "the replication slot {slot} waits for open transactions, retains {} MB of WAL meanwhile, and is given up",
        retained >> 20
    );
    Error::new(ErrorKind::ServerSetup, context)
        .with_hint("end the oldest transactions (pg_stat_activity, pg_prepared_xacts), or raise slot_lag_critical_threshold_mb")
}

impl Engine {
    /// Looks at the WAL that our slot retains.
    ///
    /// Errors: `Identity` when the policy gives the slot up: the next start captures by triggers.
    pub(super) async fn guard_slot(&mut self) -> Result<()> {
        if self.stream.is_poll() {
            return self.guard_unused_slot().await;
        }
        if diagnose::cdc_mode(&self.control, &self.options).await? == CdcMode::Trigger {
            return Err(Error::new(ErrorKind::Identity, "capture by triggers was asked for"));
        }
        if let Some(reason) = slot::counts_as_standby(&self.control).await? {
            return Err(Error::new(ErrorKind::Identity, reason));
        }
        let Some((retained, policy)) = self.past_critical().await? else { return Ok(()) };
        if policy == "shed" && store::shed_slot(&self.control, &self.options.pipeline).await? {
            let context = format!("the slot retains {} MB of WAL and is given up", retained >> 20);
            return Err(Error::new(ErrorKind::Identity, context));
        }
        Ok(())
    }

    /// What the slot retains, in bytes, if that is past the critical threshold, and the policy.
    async fn past_critical(&mut self) -> Result<Option<(u64, String)>> {
        const SQL: &str = "select w.retained, pgtrickle._setting('slot_policy', $2) from (
                select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint as retained
                from pg_catalog.pg_replication_slots s where s.slot_name = $1 and s.restart_lsn is not null) w
            where w.retained > pgtrickle._setting_mb('slot_lag_critical_threshold_mb', $2)";
        let slot = self.lease.names.slot().to_owned();
        let row = self.control.query_opt(SQL, &[&slot, &self.options.pipeline]).await.map_err(error)?;
        Ok(row.map(|row| (row.get::<_, i64>(0).unsigned_abs(), row.get(1))))
    }

    /// A slot that is ready while triggers still deliver: nothing is lost with it, so it never keeps much WAL. Its walsender
    /// counts as a standby like any other.
    async fn guard_unused_slot(&mut self) -> Result<()> {
        if !self.handover.can_be_given_up() {
            return Ok(());
        }
        let reason = match (slot::counts_as_standby(&self.control).await?, self.past_critical().await?) {
            (Some(reason), _) => reason,
            (None, Some((retained, _)))
                if store::shed_slot(&self.control, &self.options.pipeline).await? =>
            {
                format!("the slot retains {} MB of WAL before it is used, and is given up", retained >> 20)
            }
            (None, _) => return Ok(()),
        };
        self.give_up_handover(&reason).await
    }

    /// Whether a slot that was given up may be made again.
    pub(super) async fn may_return(&mut self) -> Result<bool> {
        const SQL: &str = "select coalesce(slot_shed_at < pg_catalog.clock_timestamp()
                    - pgtrickle._setting_interval('slot_return_after', pipeline), true)
             from pgtrickle.pgt_pipelines where pipeline = $1";
        Ok(self.control.query_one(SQL, &[&self.options.pipeline]).await.map_err(error)?.get(0))
    }
}
