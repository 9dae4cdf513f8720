//! The slot must never take the primary down (D15): retained WAL against thresholds, alerts, and giving the slot up.
//!
//! Invariant: one alert per cause and level; it is taken back when the cause is gone. What lies above a threshold is
//! said again only after it was below four fifths of it.

use std::time::Duration;

use serde_json::json;

use super::diagnose;
use super::engine::Engine;
use crate::catalog::store;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::error;
use crate::recovery::CdcMode;

/// Channel of alerts; the payload is a JSON object with the key `event`.
pub const CHANNEL: &str = "pg_trickle_alert";
/// Pause before a slot that was given up is made again, without the setting `slot_return_after`.
const RETURN_AFTER: Duration = Duration::from_secs(600);

/// How much WAL the slot holds back, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Level {
    #[default]
    Fine,
    Warning,
    Critical,
}

/// The level of `retained` bytes, with hysteresis: a level is left downwards only below four fifths of its threshold.
pub(super) fn level(retained: u64, warning: u64, critical: u64, before: Level) -> Level {
    let above = |threshold: u64, held: bool| match held {
        true => retained > threshold / 5 * 4,
        false => retained > threshold,
    };
    if above(critical, before == Level::Critical) {
        Level::Critical
    } else if above(warning, before >= Level::Warning) {
        Level::Warning
    } else {
        Level::Fine
    }
}

impl Engine {
    /// Looks at the WAL that our slot retains.
    ///
    /// Errors: `Identity` when the policy gives the slot up: the next start captures by triggers.
    pub(super) async fn guard_slot(&mut self) -> Result<()> {
        if self.stream.is_poll() {
            return Ok(());
        }
        if diagnose::cdc_mode(&self.control, &self.options).await? == CdcMode::Trigger {
            return Err(Error::new(ErrorKind::Identity, "capture by triggers was asked for"));
        }
        const SQL: &str =
            "select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint,
                pgtrickle._setting('slot_lag_warning_threshold_mb', '100')::bigint * 1048576,
                pgtrickle._setting('slot_lag_critical_threshold_mb', '1024')::bigint * 1048576,
                pgtrickle._setting('slot_policy', 'alert')
            from pg_catalog.pg_replication_slots s where s.slot_name = $1 and s.restart_lsn is not null";
        let slot = self.lease.names.slot().to_owned();
        let Some(row) = self.control.query_opt(SQL, &[&slot]).await.map_err(error)? else { return Ok(()) };
        let size = |n: usize| row.get::<_, i64>(n).unsigned_abs();
        let (retained, warning, critical) = (size(0), size(1), size(2));
        let policy: String = row.get(3);
        let before = self.watched.slot_level;
        let now = level(retained, warning, critical, before);
        let shed = now == Level::Critical && policy == "shed";
        if now != before {
            self.watched.slot_level = now;
            let event = match now {
                Level::Fine => "slot_lag_resolved",
                Level::Warning => "slot_lag_warning",
                Level::Critical => "slot_lag_critical",
            };
            let retained_mb = retained >> 20;
            match now {
                Level::Fine => {
                    tracing::info!(slot = %slot, retained_mb, event, "the slot retains little WAL again")
                }
                _ => tracing::warn!(
                    slot = %slot, retained_mb, event, policy = %policy,
                    "the slot retains much WAL: a long transaction, a server that is too busy, or a sidecar that can't write"
                ),
            }
            let payload = json!({"event": event, "pipeline": self.options.pipeline, "slot": slot,
                "retained_bytes": retained, "warning_mb": warning >> 20, "critical_mb": critical >> 20});
            alert(&self.control, &payload).await?;
        }
        if shed {
            store::shed_slot(&self.control, &self.options.pipeline).await?;
            let context = format!("the slot retains {} MB of WAL and is given up", retained >> 20);
            return Err(Error::new(ErrorKind::Identity, context));
        }
        Ok(())
    }

    /// Whether a slot that was given up may be made again.
    pub(super) async fn may_return(&mut self) -> Result<bool> {
        let seconds = RETURN_AFTER.as_secs();
        let sql = format!(
            "select coalesce(slot_shed_at < pg_catalog.clock_timestamp() - pgtrickle._setting_interval('slot_return_after', '{seconds} s'), true)
             from pgtrickle.pgt_pipelines where pipeline = $1"
        );
        Ok(self.control.query_one(&sql, &[&self.options.pipeline]).await.map_err(error)?.get(0))
    }
}

/// Tells whoever listens.
pub(super) async fn alert(client: &tokio_postgres::Client, payload: &serde_json::Value) -> Result<()> {
    client
        .execute("select pg_catalog.pg_notify($1, $2)", &[&CHANNEL, &payload.to_string()])
        .await
        .map_err(error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_reached_once_and_left_with_a_margin() {
        use Level::*;
        let steps = [
            (50, Fine),
            (101, Warning),
            (90, Warning),
            (79, Fine),
            (1100, Critical),
            (900, Critical),
            (700, Warning),
            (10, Fine),
        ];
        let mut now = Fine;
        for (retained, expected) in steps {
            now = level(retained, 100, 1000, now);
            assert_eq!(now, expected, "at {retained}");
        }
    }
}
