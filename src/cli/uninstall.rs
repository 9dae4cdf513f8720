//! `pgtrickle uninstall`: everything of ours leaves a database; also as a script for psql when the program is gone.
//!
//! Invariant: nothing that is not ours is dropped without `--cascade`, and either everything of ours goes or nothing does
//! (but the slot and the sidecar's sessions, which leave first). Roles and settings of the server were never made by us.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::manage::detailed;
use super::status::{denied, installed};
use super::{Connection, table};
use crate::config::Settings;
use crate::error::Result;
use crate::postgres::sessions::Purpose;

#[derive(Args)]
pub(super) struct UninstallArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Leave the stream tables (and snapshots) as ordinary tables with their rows
    #[arg(long)]
    keep_tables: bool,
    /// Drop what others have built on stream tables and on pgtrickle's views too
    #[arg(long)]
    cascade: bool,
    /// Only list what would go, and change nothing
    #[arg(long, conflicts_with = "print")]
    dry_run: bool,
    /// Print the script for psql and change nothing; needs no database
    #[arg(long)]
    pub(super) print: bool,
    /// Go without asking
    #[arg(long)]
    yes: bool,
    /// One JSON object
    #[arg(long, conflicts_with = "print")]
    json: bool,
    /// How long to wait for the sidecar's end
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
}

const SCRIPT: &str = include_str!("uninstall.sql");

/// What is there, by kind. Tables are named with what becomes of them by the caller.
const LIST: &str = "
    select json_build_object(
        'slots', (select coalesce(json_agg(s.slot_name order by s.slot_name), '[]') from pg_replication_slots s
                    join pgtrickle.pgt_pipelines p on p.slot_name = s.slot_name where s.database = current_database()),
        'publications', (select coalesce(json_agg(b.pubname order by b.pubname), '[]') from pg_publication b
                           join pgtrickle.pgt_pipelines p on p.publication_name = b.pubname),
        'triggers', (select coalesce(json_agg(format('%I on %s', t.tgname, t.tgrelid::regclass) order by 1), '[]')
                       from pg_trigger t join pg_proc f on f.oid = t.tgfoid
                      where f.pronamespace in ('pgtrickle'::regnamespace, 'pgtrickle_changes'::regnamespace)
                        and t.tgrelid not in (select c.oid from pg_class c where c.relnamespace = 'pgtrickle'::regnamespace)),
        'stream_tables', (select coalesce(json_agg(format('%I.%I', n.pgt_schema, n.pgt_name) order by n.pgt_id), '[]')
                            from pgtrickle.stream_table_names n where n.relid is not null),
        'snapshots', (select coalesce(json_agg(x.rel::text order by x.rel::text), '[]') from (
                        select pgtrickle._snapshot_relation(t.mark, t.snapshot_table, t.owner) as rel
                          from pgtrickle.pgt_snapshots t) x where x.rel is not null),
        'schemas', (select json_agg(n.nspname order by n.nspname) from pg_namespace n
                     where n.nspname in ('pgtrickle', 'pgtrickle_queries', 'pgtrickle_changes')))";

/// The script for psql: the sidecar is asked to leave, then everything goes in one transaction.
pub(super) fn script(args: &UninstallArgs) -> String {
    format!(
        "\\set ON_ERROR_STOP on\n\
         -- A live sidecar leaves after the first of these has been committed; the second waits for it.\n\
         select pgtrickle.detach(pipeline) from pgtrickle.pgt_pipelines;\n\
         select pgtrickle.detach(pipeline, '60 s') from pgtrickle.pgt_pipelines;\n{}{SCRIPT}",
        choices(args)
    )
}

fn choices(args: &UninstallArgs) -> String {
    format!(
        "set pgtrickle_uninstall.keep_tables = '{}';\nset pgtrickle_uninstall.drop_dependents = '{}';\n",
        args.keep_tables, args.cascade
    )
}

pub(super) async fn run(args: UninstallArgs, settings: Settings) -> Result<ExitCode> {
    let client = settings.target.connect(Purpose::Tool).await?;
    installed(&client).await?;
    let found: Value = client.query_one(LIST, &[]).await.map_err(denied)?.get(0);
    if args.dry_run {
        super::print(&told(&found, &args, &settings, false));
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !confirmed(&told(&found, &args, &settings, false))? {
        eprintln!("nothing was changed");
        return Ok(ExitCode::from(super::FAILED));
    }
    detach_all(&client, args.timeout).await?;
    client.batch_execute(&choices(&args)).await.map_err(detailed)?;
    if let Err(e) = client.batch_execute(SCRIPT).await {
        return Err(detailed(e).during("nothing was dropped but the slot, and the pipelines are detached"));
    }
    super::print(&told(&found, &args, &settings, true));
    Ok(ExitCode::SUCCESS)
}

/// Every sidecar leaves and its slot is dropped.
async fn detach_all(client: &Client, timeout: u32) -> Result<()> {
    const PIPELINES: &str = "select pipeline from pgtrickle.pgt_pipelines order by pipeline";
    const DETACH: &str = "select pgtrickle.detach($1, pg_catalog.make_interval(secs => $2::float8))";
    let deadline = Instant::now() + Duration::from_secs(u64::from(timeout));
    for row in client.query(PIPELINES, &[]).await.map_err(denied)? {
        let pipeline: String = row.get(0);
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
            let said: String = client.query_one(DETACH, &[&pipeline, &left]).await.map_err(detailed)?.get(0);
            // The first call may only leave the mark; the second waits.
            if !said.starts_with("detaching") || Instant::now() > deadline {
                break;
            }
        }
    }
    Ok(())
}

fn told(found: &Value, args: &UninstallArgs, settings: &Settings, done: bool) -> String {
    if args.json {
        let mut object =
            json!({"database": settings.target.describe(), "done": done, "tables_kept": args.keep_tables});
        if let (Some(object), Some(found)) = (object.as_object_mut(), found.as_object()) {
            object.extend(found.clone());
        }
        return format!("{object:#}\n");
    }
    let verb = |kept: bool| match (done, kept) {
        (true, true) => "kept",
        (true, false) => "dropped",
        (false, true) => "would be kept as an ordinary table",
        (false, false) => "would be dropped",
    };
    let mut text = format!("{}\n", settings.target.describe());
    for (key, name) in [
        ("slots", "slot"),
        ("publications", "publication"),
        ("triggers", "trigger"),
        ("stream_tables", "stream table"),
        ("snapshots", "snapshot"),
        ("schemas", "schema"),
    ] {
        let kept = args.keep_tables && matches!(key, "stream_tables" | "snapshots");
        for item in found[key].as_array().into_iter().flatten() {
            text.push_str(&format!("{name} {}: {}\n", table::text(item), verb(kept)));
        }
    }
    text
}

/// Asks on a terminal; elsewhere `--yes` is needed.
fn confirmed(list: &str) -> Result<bool> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        return Err(crate::error::Error::new(crate::error::ErrorKind::Config, "uninstall was not confirmed")
            .with_hint("look at pgtrickle uninstall --dry-run, then repeat it with --yes"));
    }
    eprint!("{list}go on? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}
