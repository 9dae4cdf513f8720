//! `pgtrickle create`, `alter`, `drop`, `refresh`, `suspend`, `resume`, `repair`: the SQL functions of the same names.
//!
//! Invariant: nothing is decided here. The statement runs in a session like the user's own (its settings, search_path and
//! role decide what the query means), and what the server remarks is printed to standard error.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::error::DbError;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::Connection;
use super::status::{denied, installed};
use crate::config::{Origin, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::session::SqlSession;
use crate::postgres::sessions::Purpose;

/// Properties that `create` and `alter` share; what is absent is the function's default, or stays.
#[derive(Args)]
struct Properties {
    /// continuous (calculated), a duration such as '5 min', a cron expression, or manual
    #[arg(long, value_name = "SCHEDULE")]
    schedule: Option<String>,
    /// AUTO, DIFFERENTIAL (refused where it is impossible) or FULL
    #[arg(long, value_name = "MODE")]
    refresh_mode: Option<String>,
    /// How the sources are captured: auto, wal or trigger
    #[arg(long, value_name = "MODE")]
    cdc_mode: Option<String>,
    /// What becomes of direct writes to the stream table: refuse or allow
    #[arg(long, value_name = "WHAT")]
    user_writes: Option<String>,
    /// MB of memory that its state may take in the sidecar; 0 goes back to the setting state_limit_mb
    #[arg(long, value_name = "MB", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(0..))]
    state_limit_mb: Option<i32>,
}

#[derive(Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Name of the stream table: schema.name, or name for the first schema of your search_path
    name: String,
    /// The defining query; without it and without --file it is read from standard input
    query: Option<String>,
    /// File with the defining query
    #[arg(long, value_name = "FILE", conflicts_with = "query")]
    file: Option<PathBuf>,
    #[command(flatten)]
    properties: Properties,
    /// Leave it empty until its first refresh
    #[arg(long)]
    no_initialize: bool,
    /// Change an existing one to this definition
    #[arg(long, conflicts_with = "if_not_exists")]
    or_replace: bool,
    /// Leave an existing one as it is
    #[arg(long, conflicts_with = "state_limit_mb")]
    if_not_exists: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct AlterArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Name of the stream table
    name: String,
    /// Another defining query; - reads it from standard input
    #[arg(long, value_name = "SQL")]
    query: Option<String>,
    /// File with another defining query
    #[arg(long, value_name = "FILE", conflicts_with = "query")]
    file: Option<PathBuf>,
    #[command(flatten)]
    properties: Properties,
    /// ACTIVE or SUSPENDED
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// The pipeline that maintains it from now on
    #[arg(long, value_name = "PIPELINE")]
    move_to: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct DropArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Names of the stream tables
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Drop what reads them too: stream tables and views
    #[arg(long)]
    cascade: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct NamedArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Names of the stream tables
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// Every stream table of this role
    #[arg(long)]
    all: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// What [`named`] does with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Verb {
    Refresh,
    Suspend,
    Resume,
    Repair,
}

/// A session like one of the user's own, and what the server remarks in it.
pub(super) struct Talk {
    pub(super) client: SqlSession,
    notices: UnboundedReceiver<DbError>,
}

impl Talk {
    pub(super) async fn start(settings: &Settings) -> Result<Talk> {
        let (sender, notices) = unbounded_channel();
        let client = settings.target.with_notices(sender).connect(Purpose::Command).await?;
        installed(&client).await?;
        Ok(Talk { client, notices })
    }

    /// Prints what the server has remarked so far.
    pub(super) fn tell(&mut self) {
        while let Ok(notice) = self.notices.try_recv() {
            eprintln!("{}: {}", notice.severity().to_lowercase(), notice.message());
            if let Some(hint) = notice.hint() {
                eprintln!("hint: {hint}");
            }
        }
    }

    pub(super) async fn call(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Option<String>> {
        let statement: Statement = self.client.prepare(sql).await.map_err(detailed)?;
        let outcome = self.client.query_one(&statement, values).await;
        self.tell();
        Ok(outcome.map_err(detailed)?.try_get(0).ok())
    }
}

impl Talk {
    /// Several calls: all of them or none.
    pub(super) async fn at_once(
        &mut self,
        several: bool,
        work: impl AsyncFnOnce(&mut Talk) -> Result<()>,
    ) -> Result<()> {
        if !several {
            return work(self).await;
        }
        self.client.batch_execute("begin").await.map_err(denied)?;
        work(self).await?;
        self.client.batch_execute("commit").await.map_err(denied)
    }

    /// Bounds the state of a stream table where that was asked for; 0 takes the bound back.
    async fn limit(&mut self, name: &String, mb: Option<i32>) -> Result<()> {
        let Some(mb) = mb else { return Ok(()) };
        let mb = (mb > 0).then_some(mb);
        self.call("select pgtrickle.set_state_limit($1, $2)", &[name, &mb]).await.map(|_| ())
    }
}

/// A refusal with the server's DETAIL, which names for example what depends on a table.
pub(super) fn detailed(e: tokio_postgres::Error) -> Error {
    let detail = e.as_db_error().and_then(|d| d.detail()).map(str::to_owned);
    let error = denied(e);
    let Some(detail) = detail else { return error };
    let mut told = Error::new(error.kind(), format!("{}: {}", error.context(), detail.replace('\n', "; ")));
    if let Some(state) = error.sqlstate() {
        told = told.with_sqlstate(state);
    }
    match error.hint() {
        Some(hint) => told.with_hint(hint),
        None => told,
    }
}

pub(super) async fn create(args: CreateArgs, settings: Settings) -> Result<ExitCode> {
    let query = match (&args.query, &args.file) {
        (Some(query), _) if query != "-" => query.clone(),
        (None, Some(file)) => read_file(file)?,
        _ => read_input()?,
    };
    let function = match (args.or_replace, args.if_not_exists) {
        (true, _) => "create_or_replace_stream_table",
        (_, true) => "create_stream_table_if_not_exists",
        _ => "create_stream_table",
    };
    let mut talk = Talk::start(&settings).await?;
    let p = &args.properties;
    let initialize = !args.no_initialize;
    // Only what was said is passed: the function's own defaults count for the rest.
    let pipeline = said(&settings);
    let options: [(&str, Option<&(dyn ToSql + Sync)>); 6] = [
        ("pipeline", given(&pipeline)),
        ("schedule", given(&p.schedule)),
        ("refresh_mode", given(&p.refresh_mode)),
        ("cdc_mode", given(&p.cdc_mode)),
        ("user_writes", given(&p.user_writes)),
        ("initialize", args.no_initialize.then_some(&initialize as &(dyn ToSql + Sync))),
    ];
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&args.name, &query];
    let mut named = String::new();
    for (name, value) in options {
        if let Some(value) = value {
            values.push(value);
            named.push_str(&format!(", {name} => ${}", values.len()));
        }
    }
    let statement = format!("select pgtrickle.{function}($1, $2{named})");
    talk.at_once(p.state_limit_mb.is_some(), async |talk: &mut Talk| {
        talk.call(&statement, &values).await?;
        talk.limit(&args.name, p.state_limit_mb).await
    })
    .await?;
    tell(&talk.client, &args.name, "created", args.json).await
}

pub(super) async fn alter(args: AlterArgs, settings: Settings) -> Result<ExitCode> {
    let query = match (&args.query, &args.file) {
        (Some(query), _) if query == "-" => Some(read_input()?),
        (Some(query), _) => Some(query.clone()),
        (None, Some(file)) => Some(read_file(file)?),
        _ => None,
    };
    let p = &args.properties;
    let all =
        [&query, &p.schedule, &p.refresh_mode, &args.status, &p.cdc_mode, &p.user_writes, &args.move_to];
    if all.iter().all(|value| value.is_none()) && p.state_limit_mb.is_none() {
        return Err(Error::new(ErrorKind::Config, "nothing to alter was given")
            .with_hint("for example --schedule '5 min'; pgtrickle alter --help lists what can be altered"));
    }
    let mut talk = Talk::start(&settings).await?;
    let sql = "select pgtrickle.alter_stream_table($1, query => $2, schedule => $3, refresh_mode => $4,
                      status => $5, cdc_mode => $6, user_writes => $7, pipeline => $8)";
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&args.name];
    values.extend(all.iter().map(|value| *value as &(dyn ToSql + Sync)));
    let altered = all.iter().any(|value| value.is_some());
    talk.at_once(altered && p.state_limit_mb.is_some(), async |talk: &mut Talk| {
        talk.limit(&args.name, p.state_limit_mb).await?;
        if altered {
            talk.call(sql, &values).await?;
        }
        Ok(())
    })
    .await?;
    tell(&talk.client, &args.name, "altered", args.json).await
}

pub(super) async fn drop(args: DropArgs, settings: Settings) -> Result<ExitCode> {
    let mut talk = Talk::start(&settings).await?;
    let mut report = Report::new(args.json);
    let outcome = async {
        for name in &args.names {
            talk.call("select pgtrickle.drop_stream_table($1, $2)", &[name, &args.cascade]).await?;
            report.note(name, "dropped", None);
        }
        Ok(ExitCode::SUCCESS)
    };
    let outcome = outcome.await;
    report.end();
    outcome
}

/// What was done with each of several stream tables: a line at once, or one JSON object at the end.
struct Report {
    json: bool,
    done: Vec<Value>,
}

impl Report {
    fn new(json: bool) -> Report {
        Report { json, done: Vec::new() }
    }

    /// `message`: what the function itself said about it.
    fn note(&mut self, name: &str, done: &str, message: Option<String>) {
        if self.json {
            self.done.push(json!({"stream_table": name, "done": done, "message": message}));
            return;
        }
        match message {
            Some(message) => super::print(&format!("{message}\n")),
            None => super::print(&format!("{name}: {done}\n")),
        }
    }

    /// Also after a refusal: what was done before it stays done.
    fn end(self) {
        if self.json {
            super::print_json(&json!({ "stream_tables": self.done }));
        }
    }
}

/// The verb on each named stream table. The first refusal ends it: what was done before stays done.
pub(super) async fn named(verb: Verb, args: NamedArgs, settings: Settings) -> Result<ExitCode> {
    let (sql, done) = match verb {
        Verb::Refresh => ("select pgtrickle.refresh_stream_table($1)", "refreshed"),
        Verb::Suspend => ("select pgtrickle.suspend_stream_table($1)", "suspended"),
        Verb::Resume => ("select pgtrickle.resume_stream_table($1)", "resumed"),
        Verb::Repair => ("select pgtrickle.repair_stream_table($1)", "repaired"),
    };
    let mut talk = Talk::start(&settings).await?;
    let mut report = Report::new(args.json);
    let outcome = async {
        for name in names(&talk.client, &args.names, args.all, verb).await? {
            let said = talk.call(sql, &[&name]).await.map_err(|e| e.during(&name))?;
            report.note(&name, done, said.filter(|_| verb == Verb::Repair));
        }
        Ok(ExitCode::SUCCESS)
    };
    let outcome = outcome.await;
    report.end();
    outcome
}

/// The names given, or all of the caller's that the verb applies to.
async fn names(client: &Client, named: &[String], all: bool, verb: Verb) -> Result<Vec<String>> {
    if !all {
        return Ok(named.to_vec());
    }
    const SQL: &str = "
        select pg_catalog.format('%I.%I', n.pgt_schema, n.pgt_name)
          from pgtrickle.stream_table_names n join pgtrickle.stream_tables_info i on i.pgt_id = n.pgt_id
         where n.mine and n.relid is not null
           and case $1 when 'resume' then i.status in ('SUSPENDED', 'ERROR') when 'suspend' then i.status <> 'SUSPENDED'
                       else i.status not in ('SUSPENDED', 'ERROR') end order by n.pgt_id";
    let word = verb.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
    let rows = client.query(SQL, &[&word]).await.map_err(denied)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// `app.sums: created, DIFFERENTIAL` or `..., FULL (reason)`, or the same as JSON.
async fn tell(client: &Client, name: &str, done: &str, json: bool) -> Result<ExitCode> {
    const SQL: &str = "
        select pg_catalog.format('%I.%I', i.pgt_schema, i.pgt_name), i.status, i.refresh_mode, i.refresh_reason
          from pgtrickle.stream_tables_info i
         where i.pgt_id = pgtrickle._find($1, pg_catalog.current_setting('search_path'), true)";
    let row = client.query_one(SQL, &[&name]).await.map_err(denied)?;
    let (name, status, mode): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let reason: Option<String> = row.get(3);
    if json {
        super::print_json(&json!({"stream_table": name, "done": done, "status": status,
                                  "refresh_mode": mode, "refresh_reason": reason}));
    } else {
        let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        super::print(&format!("{name}: {done}, {mode}{reason}\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The pipeline, if somebody has named one.
fn said(settings: &Settings) -> Option<String> {
    (settings.pipeline.origin != Origin::Default).then(|| settings.pipeline.value.clone())
}

fn given(value: &Option<String>) -> Option<&(dyn ToSql + Sync)> {
    value.as_ref().map(|value| value as &(dyn ToSql + Sync))
}

fn read_file(path: &PathBuf) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        Error::new(ErrorKind::Config, format!("flag --file: can't read {}: {e}", path.display()))
            .with_hint("name a file with the defining query in UTF-8")
    })
}

fn read_input() -> Result<String> {
    let mut input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("reading the defining query from the terminal; end it with Ctrl-D");
    }
    let mut text = String::new();
    input.read_to_string(&mut text).map_err(|e| {
        Error::new(ErrorKind::Config, format!("the query can't be read from standard input: {e}"))
    })?;
    match text.trim().is_empty() {
        true => Err(Error::new(ErrorKind::Config, "there is no query on standard input")
            .with_hint("give the query as an argument, by --file, or through a pipe")),
        false => Ok(text),
    }
}
