//! `pgtrickle pipelines`: lists, creates and drops pipelines, and moves stream tables between them.
//!
//! Invariant: nothing is decided here; the SQL functions of the same names are called. Only the wait for a sidecar's end
//! before a drop is ours, because it takes two transactions.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::manage::{Talk, detailed};
use super::status::{denied, installed};
use super::table::{bytes, seconds, text};
use super::{Connection, table};
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::Purpose;

#[derive(Args)]
pub(super) struct PipelinesArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Option<Verb>,
    /// One JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// List the pipelines of the database
    List {
        #[command(flatten)]
        connection: Connection,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Make a pipeline; run a sidecar for it with `pgtrickle run --pipeline NAME`
    Create {
        #[command(flatten)]
        connection: Connection,
        /// 1 to 20 lower-case letters, digits and _
        name: String,
        /// Who may own stream tables in it, directly or as a member; without it whoever may use pgtrickle
        #[arg(long, value_name = "ROLE", value_delimiter = ',')]
        roles: Option<Vec<String>>,
        /// A setting of its own, which wins over that of the database
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Drop a pipeline with its slot; its sidecar is made to leave first
    Drop {
        #[command(flatten)]
        connection: Connection,
        name: String,
        /// Drop its stream tables, too
        #[arg(long)]
        cascade: bool,
        /// How long to wait for the sidecar's end
        #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u32).range(1..))]
        timeout: u32,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Move stream tables to another pipeline; no change is lost and their rows stay
    Move {
        #[command(flatten)]
        connection: Connection,
        /// Names of the stream tables
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// The pipeline that maintains them from now on
        #[arg(long, value_name = "PIPELINE")]
        to: String,
        /// Move the stream tables that read them, too
        #[arg(long)]
        cascade: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

impl PipelinesArgs {
    pub(super) fn connection(&self) -> &Connection {
        match &self.verb {
            None => &self.connection,
            Some(
                Verb::List { connection, .. }
                | Verb::Create { connection, .. }
                | Verb::Drop { connection, .. }
                | Verb::Move { connection, .. },
            ) => connection,
        }
    }
}

const LIST: &str = "
    select coalesce(json_agg(to_jsonb(p) - 'staleness' || jsonb_build_object(
               'staleness_seconds', extract(epoch from p.staleness)::float8) order by p.pipeline), '[]')
      from pgtrickle.pipelines_info p";

pub(super) async fn run(args: PipelinesArgs, settings: Settings) -> Result<ExitCode> {
    match args.verb {
        None | Some(Verb::List { .. }) => {
            let json = args.json || matches!(args.verb, Some(Verb::List { json: true, .. }));
            let client = settings.target.connect(Purpose::Tool).await?;
            installed(&client).await?;
            let all = all(&client).await?;
            super::print(&if json { format!("{all:#}\n") } else { listed(&all) });
        }
        Some(Verb::Create { name, roles, settings: set, json, .. }) => {
            let own = own_settings(&set)?;
            let mut talk = Talk::start(&settings).await?;
            let sql = "select pgtrickle.create_pipeline($1, roles => $2::text[]::name[], settings => $3)";
            talk.call(sql, &[&name, &roles, &own]).await?;
            match json || args.json {
                true => super::print_json(&json!({"pipeline": name, "done": "created"})),
                false => {
                    super::print(&format!("{name}: created; serve it: pgtrickle run --pipeline {name}\n"))
                }
            }
        }
        Some(Verb::Drop { name, cascade, timeout, json, .. }) => {
            drop(&settings, &name, cascade, Duration::from_secs(u64::from(timeout))).await?;
            match json || args.json {
                true => super::print_json(&json!({"pipeline": name, "done": "dropped"})),
                false => super::print(&format!("{name}: dropped\n")),
            }
        }
        Some(Verb::Move { names, to, cascade, json, .. }) => {
            let mut talk = Talk::start(&settings).await?;
            let (mut said, mut done) = (String::new(), Vec::new());
            // What belongs together never stands in two pipelines in between.
            let all = async |talk: &mut Talk| {
                for name in &names {
                    let sql = "select pgtrickle.move_stream_table($1, $2, $3)::text";
                    let moved = talk.call(sql, &[name, &to, &cascade]).await.map_err(|e| e.during(name))?;
                    let moved = moved.unwrap_or_default();
                    said.push_str(&format!("{name}: {moved} stream tables moved to pipeline {to}\n"));
                    done.push(json!({"stream_table": name, "moved": moved.parse::<i64>().ok()}));
                }
                Ok(())
            };
            talk.at_once(names.len() > 1, all).await?;
            match json || args.json {
                true => super::print_json(&json!({"pipeline": to, "stream_tables": done})),
                false => super::print(&said),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// All pipelines as JSON, in the order of their names.
pub(super) async fn all(client: &Client) -> Result<Value> {
    Ok(client.query_one(LIST, &[]).await.map_err(denied)?.get(0))
}

/// One line for each pipeline.
pub(super) fn listed(pipelines: &Value) -> String {
    let header = [
        "pipeline",
        "status",
        "stream tables",
        "sources",
        "staleness",
        "state",
        "delivery",
        "WAL kept",
        "roles",
    ];
    let rows = pipelines.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(|p| {
        let arriving = match p["arriving"].as_i64() {
            Some(n) if n > 0 => format!(" ({n} arriving)"),
            _ => String::new(),
        };
        let roles = p["roles"].as_array().map_or_else(
            || "-".to_owned(),
            |roles| roles.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        );
        vec![
            text(&p["pipeline"]),
            text(&p["status"]),
            format!("{}{arriving}", text(&p["stream_tables"])),
            text(&p["sources"]),
            p["staleness_seconds"].as_f64().map_or_else(|| "-".to_owned(), seconds),
            bytes(&p["state_bytes"]),
            text(&p["delivery"]),
            bytes(&p["retained_bytes"]),
            roles,
        ]
    });
    table::render(&header, rows)
}

fn own_settings(set: &[String]) -> Result<Value> {
    let mut own = serde_json::Map::new();
    for one in set {
        let (key, value) = one.split_once('=').ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("flag --set: {one:?} is no setting"))
                .with_hint("write key=value, for example --set stale_after='1 min'")
        })?;
        own.insert(key.trim().to_owned(), Value::String(value.trim().to_owned()));
    }
    Ok(Value::Object(own))
}

/// Makes a live sidecar leave, waits for its end, and drops the pipeline. What would be refused is refused before the
/// sidecar is bothered; a drop that fails afterwards brings it back.
async fn drop(settings: &Settings, name: &str, cascade: bool, patience: Duration) -> Result<()> {
    const ALIVE: &str = "select pgtrickle.sidecar_alive($1)";
    const DROP: &str = "select pgtrickle.drop_pipeline($1, $2)";
    let mut talk = Talk::start(settings).await?;
    let refused = match talk.call(DROP, &[&name, &cascade]).await {
        Ok(_) => return Ok(()),
        Err(e) => e,
    };
    let served = refused.sqlstate() == Some("55006")
        && talk.client.query_one(ALIVE, &[&name]).await.map_err(detailed)?.get(0);
    if !served {
        return Err(refused);
    }
    talk.call("select pgtrickle.detach(pipeline => $1)", &[&name]).await?;
    let deadline = Instant::now() + patience;
    while talk.client.query_one(ALIVE, &[&name]).await.map_err(detailed)?.get(0) {
        if Instant::now() >= deadline {
            talk.call("select pgtrickle.attach(pipeline => $1)", &[&name]).await?;
            return Err(refused.during("waiting for the sidecar's end"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let dropped = talk.call(DROP, &[&name, &cascade]).await;
    if dropped.is_err() {
        talk.call("select pgtrickle.attach(pipeline => $1)", &[&name]).await?;
    }
    dropped.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_who_is_served_and_what_arrives() {
        let said = listed(
            &json!([{"pipeline": "b", "status": "OFFLINE", "stream_tables": 3, "arriving": 1, "sources": 2,
            "staleness_seconds": null, "state_bytes": 2048, "delivery": null, "retained_bytes": null, "roles": ["a", "c"]}]),
        );
        for part in ["OFFLINE", "3 (1 arriving)", "a, c"] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn settings_are_pairs() {
        let own = own_settings(&["stale_after = 1 min".to_owned()]).unwrap();
        assert_eq!(own, json!({"stale_after": "1 min"}));
        assert!(own_settings(&["stale_after".to_owned()]).is_err());
    }
}
