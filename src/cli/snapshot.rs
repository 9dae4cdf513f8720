//! `pgtrickle snapshot`: copies of stream tables, all at one moment, and the oldest of them dropped: for a cadence.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::Connection;
use super::status::{denied, installed};
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::Purpose;

#[derive(Args)]
pub(super) struct SnapshotArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Names of stream tables: schema.name, or name where only one schema has it
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// All stream tables of this role that are populated
    #[arg(long)]
    all: bool,
    /// Keep this many of each stream table's snapshots with names made by pgtrickle, drop the older ones; snapshots under names of your own stay
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..))]
    keep: Option<i64>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

const FIND: &str = "
    select pg_catalog.format('%I.%I', i.pgt_schema, i.pgt_name)
      from pgtrickle.stream_tables_info i, pgtrickle._split_name($1, true) n
     where i.pgt_name = n.rel and (n.sch is null or i.pgt_schema = n.sch)";

const MAKE: &str = "select stream_table, snapshot_table from pgtrickle.snapshot_stream_tables($1)";

/// Older than the newest `$2` with a name of ours (`_snapshot_name` in the schema).
const OLD: &str = "
    select r.rel::text
      from pgtrickle.pgt_snapshots t
      join pgtrickle.stream_table_names n on n.pgt_id = t.pgt_id
     cross join lateral pgtrickle._snapshot_relation(t.mark, t.snapshot_table, t.owner) r (rel)
      join pg_catalog.pg_class c on c.oid = r.rel
     where pg_catalog.format('%I.%I', n.pgt_schema, n.pgt_name) = $1
       and c.relname ~ '_snapshot_[0-9]{14}(_[0-9]+)?$'
     order by t.created_at desc, t.snapshot_id desc offset $2";

/// A snapshot that was made, and those that made way.
struct Made {
    stream_table: String,
    snapshot: String,
    dropped: Vec<String>,
}

pub(super) async fn run(args: SnapshotArgs, settings: Settings) -> Result<ExitCode> {
    let client = settings.target.connect(Purpose::Tool).await?;
    installed(&client).await?;
    let names = match args.all {
        true => None,
        false => {
            let mut names = Vec::new();
            for name in &args.names {
                names.push(resolve(&client, name).await?);
            }
            Some(names)
        }
    };
    let rows = client.query(MAKE, &[&names]).await.map_err(denied)?;
    let mut all: Vec<Made> = rows
        .iter()
        .map(|r| Made { stream_table: r.get(0), snapshot: r.get(1), dropped: Vec::new() })
        .collect();
    // Only now, when the new ones are committed.
    if let Some(keep) = args.keep {
        for made in &mut all {
            made.dropped = drop_old(&client, &made.stream_table, keep).await?;
        }
    }
    super::print(&if args.json { as_json(&all) } else { as_text(&all) });
    Ok(ExitCode::SUCCESS)
}

async fn resolve(client: &Client, name: &str) -> Result<String> {
    let rows = client.query(FIND, &[&name]).await.map_err(denied)?;
    match rows.as_slice() {
        [row] => Ok(row.get(0)),
        [] => Err(Error::new(ErrorKind::Query, format!("there is no stream table {name}"))
            .with_sqlstate("42P01")
            .with_hint("pgtrickle status lists them")),
        several => {
            let names: Vec<String> = several.iter().map(|row| row.get(0)).collect();
            Err(Error::new(ErrorKind::Query, format!("{name} is in several schemas"))
                .with_hint(format!("name one of {}", names.join(", "))))
        }
    }
}

async fn drop_old(client: &Client, stream_table: &str, keep: i64) -> Result<Vec<String>> {
    let rows = client.query(OLD, &[&stream_table, &keep]).await.map_err(denied)?;
    let mut dropped = Vec::new();
    for row in rows {
        let snapshot: String = row.get(0);
        client
            .execute("select pgtrickle.drop_snapshot($1)", &[&snapshot])
            .await
            .map_err(|e| denied(e).during(format!("dropping the snapshot {snapshot}")))?;
        dropped.push(snapshot);
    }
    Ok(dropped)
}

fn as_json(all: &[Made]) -> String {
    let snapshots: Vec<Value> = all
        .iter()
        .map(|m| json!({"stream_table": m.stream_table, "snapshot_table": m.snapshot, "dropped": m.dropped}))
        .collect();
    format!("{:#}\n", json!({ "snapshots": snapshots }))
}

fn as_text(all: &[Made]) -> String {
    if all.is_empty() {
        return "there are no populated stream tables of this role\n".to_owned();
    }
    let mut text = String::new();
    for made in all {
        text.push_str(&format!("{} -> {}\n", made.stream_table, made.snapshot));
        for old in &made.dropped {
            text.push_str(&format!("dropped {old}\n"));
        }
    }
    text
}
