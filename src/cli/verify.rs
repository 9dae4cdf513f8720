//! `pgtrickle verify`: stream tables against their queries, while the application goes on.
//!
//! Exit code 0: all are equal; 1: one differs; else that of the error of one that could not be compared.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::Connection;
use super::manage::{Talk, detailed};
use super::status::denied;
use super::table;
use crate::config::Settings;
use crate::error::{Error, Result};

#[derive(Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Names of the stream tables [default: all of this role that are not suspended]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

const ALL: &str = "
    select pg_catalog.format('%I.%I', n.pgt_schema, n.pgt_name)
      from pgtrickle.stream_table_names n join pgtrickle.stream_tables_info i on i.pgt_id = n.pgt_id
     where n.mine and n.relid is not null and i.status not in ('SUSPENDED', 'ERROR') order by n.pgt_id";

const VERIFY: &str = "
    select json_build_object('stream_table', v.stream_table, 'equal', v.equal, 'missing_rows', v.missing_rows,
                             'surplus_rows', v.surplus_rows, 'verified_at', v.verified_at, 'frontier', v.frontier,
                             'waited_seconds', extract(epoch from v.waited)::float8, 'error', null)
      from pgtrickle.verify_stream_table($1) v";

pub(super) async fn run(args: VerifyArgs, settings: Settings) -> Result<ExitCode> {
    let mut talk = Talk::start(&settings).await?;
    let mut names = args.names;
    if names.is_empty() {
        let rows = talk.client.query(ALL, &[]).await.map_err(denied)?;
        names = rows.iter().map(|row| row.get(0)).collect();
    }
    let (mut results, mut failure): (Vec<Value>, Option<Error>) = (Vec::new(), None);
    for name in &names {
        let outcome = talk.client.query_one(VERIFY, &[name]).await;
        talk.tell();
        match outcome {
            Ok(row) => results.push(row.get(0)),
            Err(e) => {
                let e = detailed(e);
                results.push(
                    json!({"stream_table": name, "equal": null, "missing_rows": null, "surplus_rows": null,
                    "verified_at": null, "frontier": null, "waited_seconds": null, "error": e.to_string()}),
                );
                failure.get_or_insert(e);
            }
        }
    }
    let differs = results.iter().any(|r| r["equal"] == Value::Bool(false));
    super::print(&match args.json {
        true => format!("{:#}\n", json!({ "stream_tables": results })),
        false => as_text(&results),
    });
    match (differs, failure) {
        (true, _) => Ok(ExitCode::from(super::FAILED)),
        (false, Some(e)) => Err(e),
        (false, None) => Ok(ExitCode::SUCCESS),
    }
}

fn as_text(results: &[Value]) -> String {
    if results.is_empty() {
        return "there are no stream tables of this role\n".to_owned();
    }
    let rows = results.iter().map(|r| {
        let verdict = match r["equal"] {
            Value::Bool(true) => "equal",
            Value::Bool(false) => "DIFFERS",
            _ => "not compared",
        };
        let name = table::text(&r["stream_table"]);
        vec![
            name,
            verdict.to_owned(),
            table::text(&r["missing_rows"]),
            table::text(&r["surplus_rows"]),
            r["waited_seconds"].as_f64().map_or_else(|| "-".to_owned(), table::seconds),
            table::text(&r["error"]),
        ]
    });
    table::render(&["stream table", "verdict", "missing", "surplus", "waited", "error"], rows)
}
