//! `pgtrickle status`: stream tables and slot, as the database tells them; it works without a running sidecar.

use std::process::ExitCode;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::Connection;
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{Purpose, error};

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Staleness in seconds; the rest as pgt_status() has it.
const STREAM_TABLES: &str = "
    select coalesce(json_agg(to_jsonb(s) - 'staleness' - 'scc_id' || jsonb_build_object(
               'staleness_seconds', extract(epoch from s.staleness)::float8)), '[]')
      from pgtrickle.pgt_status() s";

/// `unconfirmed_bytes`: written but not yet applied and confirmed; `retained_bytes`: kept on disk for the slot.
const PIPELINE: &str = "
    select json_build_object(
               'pipeline', p.pipeline, 'sidecar_alive', pgtrickle.sidecar_alive(p.pipeline),
               'frontier', p.frontier, 'data_timestamp', p.data_timestamp, 'sidecar', p.sidecar,
               'started_at', p.started_at, 'heartbeat_at', p.heartbeat_at, 'detached_at', p.detached_at,
               'publication', p.publication_name, 'delivery', p.delivery, 'delivery_reason', p.delivery_reason,
               'sources', (select coalesce(json_agg(json_build_object('name', c.source_name, 'capture', c.capture,
                       'reason', c.capture_reason, 'fallback_ready', c.fallback_ready,
                       'fallback_reason', c.fallback_reason) order by c.source_name), '[]')
                   from pgtrickle.pgt_sources c where c.pipeline = p.pipeline),
               'last_incident', (select json_build_object('detected_at', min(r.detected_at), 'diagnosis', r.diagnosis,
                       'cause', min(r.cause), 'sources', json_agg(r.source_name order by r.source_name),
                       'completed_at', max(r.completed_at), 'rows_inserted', max(r.rows_inserted),
                       'rows_updated', max(r.rows_updated), 'rows_deleted', max(r.rows_deleted))
                   from pgtrickle.pgt_recoveries r where r.pipeline = p.pipeline
                   group by r.diagnosis, r.identity_key order by min(r.detected_at) desc limit 1),
               'slot', case when s.slot_name is not null then json_build_object(
                   'name', s.slot_name, 'active', s.active, 'wal_status', s.wal_status,
                   'unconfirmed_bytes', pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)::bigint,
                   'retained_bytes', pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint) end)
      from pgtrickle.pgt_pipelines p
      left join pg_replication_slots s on s.slot_name = p.slot_name and s.database = current_database()
     where p.pipeline = $1";

pub(super) async fn run(args: StatusArgs, settings: Settings) -> Result<ExitCode> {
    let client = settings.target.connect(Purpose::Tool).await?;
    installed(&client).await?;
    let stream_tables: Value = client.query_one(STREAM_TABLES, &[]).await.map_err(denied)?.get(0);
    let pipeline = client.query_opt(PIPELINE, &[&settings.pipeline.value]).await.map_err(denied)?;
    let pipeline: Value = pipeline
        .ok_or_else(|| {
            let what = format!("there is no pipeline {} in this database", settings.pipeline.value);
            Error::new(ErrorKind::Config, what)
                .with_hint("select pipeline from pgtrickle.pgt_pipelines lists them")
        })?
        .get(0);
    let database = settings.target.describe();
    let text = if args.json {
        format!("{:#}\n", json!({"database": database, "pipeline": pipeline, "stream_tables": stream_tables}))
    } else {
        format!("{}{}", headline(&database, &pipeline), table(&stream_tables))
    };
    super::print(&text);
    Ok(ExitCode::SUCCESS)
}

/// Refuses a database without our schema with a better sentence than the server's.
pub(super) async fn installed(client: &Client) -> Result<()> {
    let row = client.query_one("select to_regclass('pgtrickle.schema_files') is not null", &[]).await;
    if row.map_err(denied)?.get(0) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::SchemaVersion, "pgtrickle's schema is not in this database")
        .with_hint("install it with pgtrickle init, or check which database you are connected to"))
}

/// An error of the server; a missing right is told with the way to get it.
pub(super) fn denied(e: tokio_postgres::Error) -> Error {
    let mapped = error(e);
    if mapped.kind() == ErrorKind::Privilege && mapped.hint().is_none() {
        return mapped
            .with_hint("let the role that installed pgtrickle run: select pgtrickle.grant_usage('<role>')");
    }
    mapped
}

fn headline(database: &str, pipeline: &Value) -> String {
    let alive = pipeline["sidecar_alive"] == Value::Bool(true);
    let sidecar = match (&pipeline["detached_at"], alive) {
        (_, true) => "running".to_owned(),
        (Value::String(since), _) => format!("detached since {since} (pgtrickle attach brings it back)"),
        _ => "OFFLINE (no sidecar is running)".to_owned(),
    };
    let slot = match &pipeline["slot"] {
        Value::Null => "none".to_owned(),
        slot => format!(
            "{} ({}, {}, {} not yet confirmed, {} kept on disk)",
            text(&slot["name"]),
            if slot["active"] == Value::Bool(true) { "active" } else { "inactive" },
            text(&slot["wal_status"]),
            bytes(&slot["unconfirmed_bytes"]),
            bytes(&slot["retained_bytes"]),
        ),
    };
    format!(
        "database: {database}\npipeline: {}\nsidecar:  {sidecar}\nfrontier: {}\nslot:     {slot}\n{}",
        text(&pipeline["pipeline"]),
        text(&pipeline["frontier"]),
        capture(pipeline),
    )
}

/// How sources are captured, which of them could not fall back to triggers, and the last incident.
fn capture(pipeline: &Value) -> String {
    let sources = pipeline["sources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut lines = String::new();
    if !sources.is_empty() {
        let count = |capture: &str| sources.iter().filter(|s| s["capture"] == capture).count();
        let mut parts = Vec::new();
        for (capture, words) in
            [("wal", "from the WAL"), ("trigger", "by triggers"), ("transitioning", "returning to the WAL")]
        {
            if count(capture) > 0 {
                parts.push(format!("{} {words}", count(capture)));
            }
        }
        lines += &format!("capture:  {} of {} tables", parts.join(", "), sources.len());
        if let Value::String(reason) = &pipeline["delivery_reason"] {
            lines += &format!(" ({reason})");
        }
        lines.push('\n');
    }
    let stuck = sources.iter().filter(|s| s["fallback_ready"] == Value::Bool(false));
    for source in stuck {
        lines += &format!(
            "fallback: not ready for {}: {}\n",
            text(&source["name"]),
            text(&source["fallback_reason"])
        );
    }
    let incident = &pipeline["last_incident"];
    if !incident.is_null() {
        let repaired = match incident["completed_at"] {
            Value::Null => "being repaired".to_owned(),
            _ => format!(
                "repaired: {} rows inserted, {} updated, {} deleted",
                text(&incident["rows_inserted"]),
                text(&incident["rows_updated"]),
                text(&incident["rows_deleted"])
            ),
        };
        lines += &format!(
            "incident: {} {}: {}; {repaired}\n",
            text(&incident["detected_at"]),
            text(&incident["diagnosis"]),
            text(&incident["cause"])
        );
    }
    lines
}

fn table(stream_tables: &Value) -> String {
    let rows = stream_tables.as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return "there are no stream tables yet\n".to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "stream table",
        "status",
        "mode",
        "schedule",
        "staleness",
        "errors",
        "reason or error",
    ]);
    for row in rows {
        let note = if row["last_error_message"].is_null() {
            &row["refresh_reason"]
        } else {
            &row["last_error_message"]
        };
        table.add_row([
            text(&row["name"]),
            text(&row["status"]),
            text(&row["refresh_mode"]),
            text(&row["schedule"]),
            row["staleness_seconds"].as_f64().map_or_else(|| "-".to_owned(), seconds),
            text(&row["consecutive_errors"]),
            text(note),
        ]);
    }
    format!("{table}\n")
}

/// A JSON value for people.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), human_bytes)
}

/// `1.2 MiB`.
pub(super) fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", units[unit]) }
}

fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_readable() {
        assert_eq!(human_bytes(900), "900 B");
        assert_eq!(human_bytes(1_258_291), "1.2 MiB");
        assert_eq!(seconds(0.034), "34 ms");
        assert_eq!(seconds(90_000.0), "25.0 h");
    }

    #[test]
    fn a_stopped_sidecar_and_a_missing_slot_are_said_plainly() {
        let pipeline = json!({"pipeline": "main", "sidecar_alive": false, "frontier": null, "slot": null});
        let said = headline("h:5432/d", &pipeline);
        assert!(said.contains("OFFLINE") && said.contains("slot:     none") && said.contains("frontier: -"));
        assert!(table(&json!([])).contains("no stream tables"));
    }

    #[test]
    fn capture_and_the_last_incident_are_told() {
        let source = |name: &str, capture: &str, ready: bool| json!({"name": name, "capture": capture, "fallback_ready": ready, "fallback_reason": "it belongs to app"});
        let pipeline = json!({
            "sources": [source("a.t", "wal", true), source("a.u", "trigger", false)], "delivery_reason": null,
            "last_incident": {"detected_at": "now", "diagnosis": "SLOT_MISSING", "cause": "the slot is gone",
                "completed_at": "then", "rows_inserted": 1, "rows_updated": 2, "rows_deleted": 3},
        });
        let said = capture(&pipeline);
        assert!(said.contains("1 from the WAL, 1 by triggers of 2 tables"), "{said}");
        assert!(said.contains("not ready for a.u: it belongs to app"), "{said}");
        assert!(said.contains("repaired: 1 rows inserted, 2 updated, 3 deleted"), "{said}");
        assert_eq!(capture(&json!({})), "");
    }
}
