//! `pgtrickle explain NAME`: the plan of a stream table, what PostgreSQL computes, and why it is not incremental.

use std::collections::HashMap;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::Connection;
use super::status::{denied, installed};
use super::table::{bytes, text};
use crate::analyzer::facts::StreamTable;
use crate::analyzer::{Analysis, SourceFacts, TreeSource, analyze};
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::explain::explain;
use crate::postgres::sessions::Purpose;

#[derive(Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Name of the stream table: schema.name, or name where only one schema has it
    name: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

const FIND: &str = "
    select i.pgt_schema || '.' || i.pgt_name, i.query_view::oid, i.status, i.requested_refresh_mode, i.refresh_mode,
           i.refresh_reason, i.key_columns, i.last_error_message, i.pipeline
      from pgtrickle.stream_tables_info i, pgtrickle._split_name($1, true) n
     where i.pgt_name = n.rel and (n.sch is null or i.pgt_schema = n.sch)";

const STREAM_TABLES: &str = "
    select i.pgt_relid::oid, i.pgt_id, i.refresh_mode = 'DIFFERENTIAL' and i.status in ('ACTIVE', 'OFFLINE')
           and i.pipeline = $1
      from pgtrickle.stream_tables_info i where i.pgt_relid is not null";

/// A stream table as the catalog has it.
struct Found {
    name: String,
    view: Option<u32>,
    status: String,
    requested: String,
    mode: String,
    reason: Option<String>,
    key: Option<Vec<String>>,
    error: Option<String>,
    pipeline: String,
}

pub(super) async fn run(args: ExplainArgs, settings: Settings) -> Result<ExitCode> {
    let mut client = settings.target.connect(Purpose::Tool).await?;
    installed(&client).await?;
    let found = find(&client, &args.name).await?;
    let view = found.view.ok_or_else(|| {
        Error::new(ErrorKind::Query, format!("the query of {} is gone", found.name))
            .with_sqlstate("42P01")
            .with_hint("drop the stream table with pgtrickle.drop_stream_table and create it again")
    })?;
    let rows = client.query(STREAM_TABLES, &[&found.pipeline]).await.map_err(denied)?;
    let stream_tables: HashMap<u32, StreamTable> =
        rows.iter().map(|r| (r.get(0), StreamTable { view: r.get(1), incremental: r.get(2) })).collect();
    let analysis = analyze(&mut *client, TreeSource::View(view), &stream_tables).await?;
    let state = state(&client, &found).await?;
    match args.json {
        true => super::print_json(&as_json(&found, &analysis, &state)),
        false => super::print(&(describe(&found, &analysis) + &describe_state(&state))),
    }
    Ok(ExitCode::SUCCESS)
}

async fn find(client: &Client, name: &str) -> Result<Found> {
    let rows = client.query(FIND, &[&name]).await.map_err(denied)?;
    let row = match rows.as_slice() {
        [row] => row,
        [] => {
            return Err(Error::new(ErrorKind::Query, format!("there is no stream table {name}"))
                .with_sqlstate("42P01")
                .with_hint("pgtrickle status lists them"));
        }
        several => {
            let names: Vec<String> = several.iter().map(|row| row.get(0)).collect();
            return Err(Error::new(ErrorKind::Query, format!("{name} may be {}", names.join(" or ")))
                .with_sqlstate("42P09")
                .with_hint("write schema.name"));
        }
    };
    Ok(Found {
        name: row.get(0),
        view: row.get(1),
        status: row.get(2),
        requested: row.get(3),
        mode: row.get(4),
        reason: row.get(5),
        key: row.get(6),
        error: row.get(7),
        pipeline: row.get(8),
    })
}

fn describe(found: &Found, analysis: &Analysis) -> String {
    let mut out = format!("stream table: {}\nstatus: {}\n", found.name, found.status);
    if found.pipeline != "main" {
        out.push_str(&format!("pipeline: {}\n", found.pipeline));
    }
    out.push_str(&format!("mode: {} (requested: {})\n", found.mode, found.requested));
    let lines = [("reason", &found.reason), ("last error", &found.error)];
    for (label, said) in lines {
        if let Some(said) = said {
            out.push_str(&format!("{label}: {said}\n"));
        }
    }
    let key = found.key.as_ref().map_or_else(|| "row id".to_owned(), |key| key.join(", "));
    out.push_str(&format!("stored key: {key}\n"));
    out.push_str("sources:\n");
    for source in &analysis.sources {
        out.push_str(&format!("  {}\n", describe_source(source)));
    }
    match &analysis.plan {
        Ok(plan) => {
            out.push_str("plan (Evaluate is computed by PostgreSQL, all else natively):\n");
            for line in explain(plan, &analysis.names()).lines() {
                out.push_str(&format!("  {line}\n"));
            }
        }
        Err(refusal) => {
            out.push_str(&format!("not incremental: {} ({})\n", refusal.reason, refusal.code));
            if let Some(hint) = &refusal.hint {
                out.push_str(&format!("hint: {hint}\n"));
            }
        }
    }
    out
}

/// What the live sidecar holds for it, as it said last.
async fn state(client: &Client, found: &Found) -> Result<Vec<Value>> {
    const SQL: &str =
        "select json_build_object('operator', o.operator, 'part', o.part, 'rows', o.rows, 'bytes', o.bytes,
                                                'shared', o.shared)
        from pgtrickle.pgt_operator_state o join pgtrickle.stream_tables_info i on i.pgt_id = o.pgt_id
        where i.pgt_schema || '.' || i.pgt_name = $1 order by o.position";
    let rows = client.query(SQL, &[&found.name]).await.map_err(denied)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn describe_state(state: &[Value]) -> String {
    let line = |s: &Value| {
        let shared = if s["shared"] == Value::Bool(true) { " (shared)" } else { "" };
        let (operator, part, rows) = (text(&s["operator"]), text(&s["part"]), text(&s["rows"]));
        format!("  {operator}: {part}: {rows} rows, {}{shared}\n", bytes(&s["bytes"]))
    };
    match state {
        [] => String::new(),
        state => format!("state, as the sidecar said last:\n{}", state.iter().map(line).collect::<String>()),
    }
}

fn as_json(found: &Found, analysis: &Analysis, state: &[Value]) -> Value {
    let source = |source: &SourceFacts| {
        let identity = identity(source);
        json!({"source": format!("{}.{}", source.schema, source.name), "columns": names(source, &source.attributes),
               "replica_identity": identity.0, "identity_columns": identity.1})
    };
    let sources: Vec<Value> = analysis.sources.iter().map(source).collect();
    let (plan, refusal) = match &analysis.plan {
        Ok(plan) => {
            let plan = explain(plan, &analysis.names());
            (plan.lines().map(str::to_owned).collect(), None)
        }
        Err(refusal) => {
            let refusal = json!({"code": refusal.code, "reason": refusal.reason, "hint": refusal.hint});
            (Vec::<String>::new(), Some(refusal))
        }
    };
    json!({"stream_table": found.name, "pipeline": found.pipeline, "status": found.status, "refresh_mode": found.mode,
           "requested_refresh_mode": found.requested, "refresh_reason": found.reason,
           "last_error_message": found.error, "stored_key": found.key, "sources": sources, "plan": plan,
           "refusal": refusal, "state": state})
}

/// Columns by their numbers.
fn names(source: &SourceFacts, numbers: &[i16]) -> Vec<String> {
    let name = |n: &i16| source.columns.iter().find(|c| c.attnum == *n).map(|c| c.name.clone());
    numbers.iter().filter_map(name).collect()
}

/// What identifies a row in the log: everything, nothing, or these columns.
fn identity(source: &SourceFacts) -> (&'static str, Vec<String>) {
    match source.replica_identity {
        'f' => ("full", Vec::new()),
        _ if source.identity.is_empty() => ("none", Vec::new()),
        _ => ("columns", names(source, &source.identity)),
    }
}

/// Name, columns that are read, and what identifies a row in the log.
fn describe_source(source: &SourceFacts) -> String {
    let identity = match identity(source) {
        ("columns", columns) => columns.join(", "),
        (kind, _) => kind.to_owned(),
    };
    let columns = names(source, &source.attributes).join(", ");
    format!("{}.{} ({columns}), replica identity: {identity}", source.schema, source.name)
}
