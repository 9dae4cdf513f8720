//! `pgtrickle status`: stream tables and slot, as the database tells them; it works without a running sidecar.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::table::{bytes, seconds, text};
use super::{Connection, table};
use crate::config::{Origin, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::session::SqlSession;
use crate::postgres::sessions::{Purpose, error};

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Look again every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", require_equals = true,
          value_parser = clap::value_parser!(u32).range(1..))]
    watch: Option<u32>,
}

/// Staleness in seconds; the rest as pgt_status() has it.
const STREAM_TABLES: &str = "
    select coalesce(json_agg(to_jsonb(s) - 'staleness' - 'scc_id' || jsonb_build_object('pipeline', i.pipeline,
               'staleness_seconds', extract(epoch from s.staleness)::float8, 'next_refresh_at', i.next_refresh_at)
               order by i.pgt_schema, i.pgt_name), '[]')
      from pgtrickle.pgt_status() s join pgtrickle.stream_tables_info i on i.pgt_schema || '.' || i.pgt_name = s.name
     where $1 = '' or i.pipeline = $1";

/// `unconfirmed_bytes`: written but not yet applied and confirmed; `retained_bytes`: kept on disk for the slot.
const PIPELINE: &str = "
    select json_build_object(
               'pipeline', p.pipeline, 'sidecar_alive', pgtrickle.sidecar_alive(p.pipeline),
               'frontier', p.frontier, 'data_timestamp', p.data_timestamp, 'sidecar', p.sidecar,
               'started_at', p.started_at, 'heartbeat_at', p.heartbeat_at, 'detached_at', p.detached_at,
               'paused_until', case when (to_jsonb(p) ->> 'paused_until')::timestamptz > clock_timestamp() then to_jsonb(p) ->> 'paused_until' end,
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
    let Some(pause) = args.watch.map(|seconds| Duration::from_secs(u64::from(seconds))) else {
        let client = settings.target.connect(Purpose::Tool).await?;
        let look = look(&client, &settings).await?;
        super::print(&if args.json { format!("{look:#}\n") } else { as_text(&look) });
        return Ok(ExitCode::SUCCESS);
    };
    let clear = std::io::stdout().is_terminal() && !args.json;
    let stop = super::signals::token(Duration::from_secs(5))?;
    let mut session: Option<SqlSession> = None;
    let mut first = true;
    loop {
        let outcome = async {
            let client = match session.take() {
                Some(client) => client,
                None => settings.target.connect(Purpose::Tool).await?,
            };
            let look = look(&client, &settings).await?;
            session = Some(client);
            // One line each, so that a program can read them one by one.
            Ok::<String, Error>(if args.json { format!("{look}\n") } else { as_text(&look) })
        };
        let outcome = tokio::select! {
            outcome = outcome => outcome,
            () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
        };
        match outcome {
            Ok(text) if clear => {
                super::print_as_it_is("\x1b[H\x1b[2J");
                super::print(&text);
            }
            Ok(text) => super::print(&text),
            // A wrong name or address is told at once; a server that goes away later is waited for.
            Err(e) if first => return Err(e),
            Err(e) => eprintln!("error: {e}"),
        }
        first = false;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// One look: `database`, `pipeline`, `pipelines` and `stream_tables`; those of one pipeline where it is named.
async fn look(client: &Client, settings: &Settings) -> Result<Value> {
    installed(client).await?;
    let named = settings.pipeline.origin != Origin::Default;
    let only = if named { settings.pipeline.value.as_str() } else { "" };
    let stream_tables: Value = client.query_one(STREAM_TABLES, &[&only]).await.map_err(denied)?.get(0);
    let pipeline = client.query_opt(PIPELINE, &[&settings.pipeline.value]).await.map_err(denied)?;
    let pipeline: Value = pipeline
        .ok_or_else(|| {
            let what = format!("there is no pipeline {} in this database", settings.pipeline.value);
            Error::new(ErrorKind::Config, what).with_hint("pgtrickle pipelines lists them")
        })?
        .get(0);
    let database = settings.target.describe();
    let pipelines = super::pipelines::all(client).await?;
    Ok(
        json!({"database": database, "pipeline": pipeline, "pipelines": pipelines, "stream_tables": stream_tables}),
    )
}

fn as_text(look: &Value) -> String {
    let others = match look["pipelines"].as_array() {
        Some(all) if all.len() > 1 => super::pipelines::listed(&look["pipelines"]),
        _ => String::new(),
    };
    format!(
        "{}{others}{}",
        headline(look["database"].as_str().unwrap_or_default(), &look["pipeline"]),
        listed(&look["stream_tables"])
    )
}

/// Refuses a database without our schema with a better sentence than the server's.
pub(super) async fn installed(client: &Client) -> Result<()> {
    let row = client.query_one("select to_regclass('pgtrickle.schema_files') is not null", &[]).await;
    if row.map_err(denied)?.get(0) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotInstalled, "pgtrickle's schema is not in this database")
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
    let sidecar = match (&pipeline["detached_at"], &pipeline["paused_until"], alive) {
        (_, Value::String(until), true) => format!("about to pause until {until}"),
        (_, _, true) => "running".to_owned(),
        (_, Value::String(until), _) => format!("paused until {until} (pgtrickle unpause ends it)"),
        (Value::String(since), _, _) => format!("detached since {since} (pgtrickle attach brings it back)"),
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

fn listed(stream_tables: &Value) -> String {
    let rows = stream_tables.as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return "there are no stream tables yet\n".to_owned();
    }
    let several = rows.iter().any(|row| row["pipeline"] != rows[0]["pipeline"]);
    let name = |row: &Value| match several {
        true => format!("{} ({})", text(&row["name"]), text(&row["pipeline"])),
        false => text(&row["name"]),
    };
    let header =
        ["stream table", "status", "mode", "schedule", "staleness", "next", "errors", "reason or error"];
    let rows = rows.iter().map(|row| {
        let note = if row["last_error_message"].is_null() {
            &row["refresh_reason"]
        } else {
            &row["last_error_message"]
        };
        vec![
            name(row),
            text(&row["status"]),
            text(&row["refresh_mode"]),
            text(&row["schedule"]),
            row["staleness_seconds"].as_f64().map_or_else(|| "-".to_owned(), seconds),
            next(row),
            text(&row["consecutive_errors"]),
            text(note),
        ]
    });
    table::render(&header, rows)
}

/// When its schedule says that it is refreshed next, seen from now.
fn next(row: &Value) -> String {
    let at = row["next_refresh_at"].as_str().and_then(|at| DateTime::parse_from_rfc3339(at).ok());
    match (at, row["schedule"].as_str()) {
        (Some(at), _) => match (at.with_timezone(&Utc) - Utc::now()).num_milliseconds() {
            ..=0 => "due".to_owned(),
            ahead => format!("in {}", seconds(ahead as f64 / 1000.0)),
        },
        (None, Some("calculated")) if row["refresh_mode"] == "DIFFERENTIAL" => "at each commit".to_owned(),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_sidecar_and_a_missing_slot_are_said_plainly() {
        let pipeline = json!({"pipeline": "main", "sidecar_alive": false, "frontier": null, "slot": null});
        let said = headline("h:5432/d", &pipeline);
        assert!(said.contains("OFFLINE") && said.contains("slot:     none") && said.contains("frontier: -"));
        assert!(listed(&json!([])).contains("no stream tables"));
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
