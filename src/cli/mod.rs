//! The command line: what can be said, and one file per command.
//!
//! Invariant: results go to standard output; logs, progress and errors go to standard error; the exit code follows from
//! the kind of the error alone (`docs/exit-codes.md`).

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Flags, Settings, Sources};
use crate::error::{Error, Result};

mod demo;
mod detach;
mod doctor;
mod drill;
mod explain;
mod init;
mod logs;
mod run;
mod signals;
mod snapshot;
mod status;

/// Exit code of a demo that found a difference, and of a shutdown that was cut short.
const FAILED: u8 = 1;

/// Stream tables for any PostgreSQL, kept fresh from outside the server.
#[derive(Parser)]
#[command(name = "pgtrickle", version, arg_required_else_help = true, infer_long_args = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
#[command(next_help_heading = "Common options")]
struct Common {
    /// TOML file with values for options [env: PGTRICKLE_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// error, warn, info, debug, trace, off, or a list such as warn,pgtrickle=debug [env: PGTRICKLE_LOG]
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// text or json [env: PGTRICKLE_LOG_FORMAT]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Args)]
struct Connection {
    /// postgresql://user@host:port/database [env: DATABASE_URL, else PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE,
    /// PGSSLMODE]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Name of the pipeline [env: PGTRICKLE_PIPELINE] [default: main]
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Keep the stream tables of a database fresh, until SIGTERM or Ctrl-C
    Run(RunArgs),
    /// Watch five stream tables follow a live workload on a private server
    Demo(demo::DemoArgs),
    /// Create or upgrade pgtrickle's schema in a database
    Init(init::InitArgs),
    /// Show the stream tables and the state of the replication slot
    Status(status::StatusArgs),
    /// Show how a stream table is maintained, and why it is not incremental
    Explain(explain::ExplainArgs),
    /// Copy stream tables into snapshots, all at one moment
    Snapshot(snapshot::SnapshotArgs),
    /// Make the sidecar leave a database: slot and sessions go, until `attach`
    Detach(detach::DetachArgs),
    /// Let a sidecar serve a detached database again
    Attach(detach::AttachArgs),
    /// Check server, database and roles, and show what mends what is found
    Doctor(doctor::DoctorArgs),
    /// Rehearse a restore: copy the server, run a sidecar on the copy, compare every stream table
    Drill(drill::DrillArgs),
    /// Show the version
    Version,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    connection: Connection,
    /// Threads of the dataflow [env: PGTRICKLE_WORKERS] [default: 1]
    #[arg(long, value_name = "NUMBER")]
    workers: Option<String>,
    /// Memory for the state of all stream tables, e.g. 512MB or 2GiB [env: PGTRICKLE_MEMORY_LIMIT] [default: the limit
    /// of the control group, else 75 % of the machine's memory]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,
    /// How changes are captured: auto, wal or trigger [env: PGTRICKLE_CDC_MODE] [default: cdc_mode in
    /// pgtrickle.settings, else auto]
    #[arg(long, value_name = "MODE")]
    cdc_mode: Option<String>,
    /// Serve every database of the server that has the schema; the one named is only where they are listed [env:
    /// PGTRICKLE_ALL_DATABASES]
    #[arg(long)]
    all_databases: bool,
    /// Where /metrics, /healthz and /readyz are served, or off [env: PGTRICKLE_HTTP] [default: 127.0.0.1:9642]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
}

/// Runs the program: parses the command line, runs the command, prints its error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode> {
    let Common { config, log, log_format } = cli.common;
    let mut flags = Flags { config, log, log_format, ..Flags::default() };
    match &cli.command {
        Command::Run(args) => {
            flags.workers = args.workers.clone();
            flags.memory_limit = args.memory_limit.clone();
            flags.cdc_mode = args.cdc_mode.clone();
            flags.all_databases = args.all_databases.then(|| "true".to_owned());
            flags.http = args.http.clone();
            args.connection.add_to(&mut flags);
        }
        Command::Init(args) => args.connection.add_to(&mut flags),
        Command::Status(args) => args.connection.add_to(&mut flags),
        Command::Explain(args) => args.connection.add_to(&mut flags),
        Command::Snapshot(args) => args.connection.add_to(&mut flags),
        Command::Detach(args) => args.connection.add_to(&mut flags),
        Command::Attach(args) => args.connection.add_to(&mut flags),
        Command::Doctor(args) => args.connection.add_to(&mut flags),
        Command::Drill(args) => args.connection.add_to(&mut flags),
        Command::Demo(_) | Command::Version => {}
    }
    let sources = || -> Result<Sources> {
        let sources = Sources::read(flags.clone(), Sources::process_environment())?;
        logs::start(&sources.logs()?)?;
        Ok(sources)
    };
    let settings = || -> Result<Settings> { sources()?.settings() };
    match cli.command {
        Command::Version => {
            print(&format!("pgtrickle {}\n", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(_) => {
            let settings = settings()?;
            on_runtime(settings.workers.value, run::run(settings))
        }
        Command::Demo(args) => {
            sources()?;
            on_runtime(1, demo::run(args))
        }
        // Printing the script needs no database.
        Command::Init(args) if args.print => {
            print(&init::script(&args));
            Ok(ExitCode::SUCCESS)
        }
        Command::Init(args) => on_runtime(1, init::run(args, settings()?)),
        Command::Status(args) => on_runtime(1, status::run(args, settings()?)),
        Command::Explain(args) => on_runtime(1, explain::run(args, settings()?)),
        Command::Snapshot(args) => on_runtime(1, snapshot::run(args, settings()?)),
        Command::Detach(args) => on_runtime(1, detach::detach(args, settings()?)),
        Command::Attach(args) => on_runtime(1, detach::attach(args, settings()?)),
        Command::Doctor(args) => on_runtime(1, doctor::run(args, settings()?)),
        Command::Drill(args) => on_runtime(1, drill::run(args, settings()?)),
    }
}

impl Connection {
    fn add_to(&self, flags: &mut Flags) {
        flags.database_url = self.database_url.clone();
        flags.pipeline = self.pipeline.clone();
    }
}

/// Runs a command on a runtime of its own. `workers` threads of the dataflow leave the other cores to the runtime.
fn on_runtime(workers: usize, command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.saturating_sub(workers).clamp(2, 8))
        .enable_all()
        .build()
        .map_err(|e| Error::internal("the runtime can't be started").with_source(e))?;
    let result = runtime.block_on(command);
    // Sessions that are still closing must not keep the program.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// `error: ...`, its causes where they say more, and `hint: ...`.
fn report(error: &Error) {
    let red = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (on, off) = if red { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    eprintln!("{on}error{off}: {error}");
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !said.contains(&text) {
            eprintln!("cause: {text}");
            said.push_str(&text);
        }
        cause = inner.source();
    }
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn common_options_may_follow_the_command() {
        let cli = Cli::try_parse_from(["pgtrickle", "run", "--log", "debug", "--workers", "2"]).unwrap();
        assert_eq!(cli.common.log.as_deref(), Some("debug"));
        assert!(matches!(cli.command, Command::Run(RunArgs { workers: Some(w), .. }) if w == "2"));
    }
}
