//! `pgtrickle slots`: every replication slot of the server, ours first, and what each makes the server keep.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::status::denied;
use super::{Connection, table};
use crate::config::Settings;
use crate::error::Result;
use crate::postgres::sessions::Purpose;

#[derive(Args)]
pub(super) struct SlotsArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Works without our schema. A name of our form counts as ours in any database; `pipeline` is known only for this one.
const SLOTS: &str = "
    select coalesce(json_agg(x.slot order by x.ours desc, x.slot ->> 'name'), '[]') from (
        select s.slot_name::text ~ '^pgtrickle_[0-9]+_[0-9a-f]{8}_[a-z0-9_]{1,20}$' as ours, json_build_object(
            'name', s.slot_name,
            'ours', s.slot_name::text ~ '^pgtrickle_[0-9]+_[0-9a-f]{8}_[a-z0-9_]{1,20}$',
            'database', s.database, 'plugin', s.plugin, 'slot_type', s.slot_type, 'temporary', s.temporary,
            'active', s.active, 'active_pid', s.active_pid, 'wal_status', s.wal_status,
            'retained_bytes', pg_wal_lsn_diff(w.lsn, s.restart_lsn)::bigint,
            'unconfirmed_bytes', greatest(0, pg_wal_lsn_diff(w.lsn, s.confirmed_flush_lsn))::bigint,
            'safe_bytes', s.safe_wal_size, 'restart_lsn', s.restart_lsn, 'confirmed_flush_lsn', s.confirmed_flush_lsn,
            'inactive_since', to_jsonb(s) -> 'inactive_since',
            'invalidation_reason', to_jsonb(s) -> 'invalidation_reason') as slot
          from pg_replication_slots s
         cross join (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end as lsn) w) x";

const LIMIT: &str = "select current_setting('max_slot_wal_keep_size')";

pub(super) async fn run(args: SlotsArgs, settings: Settings) -> Result<ExitCode> {
    let client = settings.target.connect(Purpose::Tool).await?;
    let slots: Value = client.query_one(SLOTS, &[]).await.map_err(denied)?.get(0);
    let limit: String = client.query_one(LIMIT, &[]).await.map_err(denied)?.get(0);
    let limit = (limit != "-1").then_some(limit);
    super::print(&match args.json {
        true => format!(
            "{:#}\n",
            json!({"database": settings.target.describe(), "max_slot_wal_keep_size": limit, "slots": slots})
        ),
        false => as_text(&slots, limit.as_deref()),
    });
    Ok(ExitCode::SUCCESS)
}

fn as_text(slots: &Value, limit: Option<&str>) -> String {
    let list = slots.as_array().map(Vec::as_slice).unwrap_or_default();
    let limit = match limit {
        Some(limit) => format!("max_slot_wal_keep_size = {limit}"),
        None => "max_slot_wal_keep_size is unlimited: a slot that nobody reads lets the WAL grow".to_owned(),
    };
    if list.is_empty() {
        return format!("there are no replication slots; {limit}\n");
    }
    let rows = list.iter().map(|s| {
        let state = match (&s["active_pid"], &s["inactive_since"]) {
            (Value::Number(pid), _) => format!("active, pid {pid}"),
            (_, Value::String(since)) => format!("inactive since {since}"),
            _ => "inactive".to_owned(),
        };
        let status = match &s["invalidation_reason"] {
            Value::String(reason) => format!("{} ({reason})", table::text(&s["wal_status"])),
            _ => table::text(&s["wal_status"]),
        };
        vec![
            format!(
                "{}{}",
                table::text(&s["name"]),
                if s["ours"] == true { "" } else { " (not pgtrickle's)" }
            ),
            table::text(&s["database"]),
            state,
            status,
            table::bytes(&s["retained_bytes"]),
            table::bytes(&s["unconfirmed_bytes"]),
            table::bytes(&s["safe_bytes"]),
        ]
    });
    let header = ["slot", "database", "state", "wal_status", "retained", "unconfirmed", "until it is lost"];
    format!("{}{limit}\n", table::render(&header, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_lost_and_unlimited_retention_are_said_plainly() {
        let slots = json!([{"name": "pgtrickle_1_00000000_main", "ours": true, "database": "d", "active_pid": null,
            "inactive_since": "2026-01-01", "wal_status": "lost", "invalidation_reason": "wal_removed",
            "retained_bytes": null, "unconfirmed_bytes": 5, "safe_bytes": null}]);
        let said = as_text(&slots, None);
        assert!(said.contains("lost (wal_removed)") && said.contains("inactive since 2026-01-01"), "{said}");
        assert!(said.contains("unlimited") && said.contains("5 B"), "{said}");
        assert!(
            as_text(&json!([]), Some("1GB")).contains("no replication slots; max_slot_wal_keep_size = 1GB")
        );
    }
}
