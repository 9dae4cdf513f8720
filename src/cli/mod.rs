//! The command line: what can be said, and one file per command.
//!
//! Invariant: results go to standard output; logs, progress and errors go to standard error; the exit code follows from
//! the kind of the error alone (`docs/exit-codes.md`).

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Flags, Settings, Sources, options};
use crate::error::{Error, Result};

mod config_check;
mod demo;
mod detach;
mod doctor;
mod drill;
mod explain;
mod healthcheck;
mod init;
mod logs;
mod manage;
#[cfg(feature = "otel")]
mod otel;
mod pipelines;
mod run;
mod service;
mod signals;
mod slots;
mod snapshot;
mod status;
mod table;
mod text;
mod uninstall;
mod verify;
mod web;

/// Exit code of what ran to its end and found something (a difference, a finding, an unhealthy sidecar), and of a shutdown
/// that was cut short.
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
    /// File that holds the password alone; read again at every connect [env: PGTRICKLE_PASSWORD_FILE]
    #[arg(long, value_name = "FILE")]
    password_file: Option<String>,
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
    /// Show the server's replication slots, and the WAL that each makes it keep
    Slots(slots::SlotsArgs),
    /// Create a stream table
    Create(manage::CreateArgs),
    /// Change the query or a property of a stream table
    Alter(manage::AlterArgs),
    /// Drop stream tables with their rows
    Drop(manage::DropArgs),
    /// Bring stream tables up to date, and wait for it
    Refresh(manage::NamedArgs),
    /// Leave stream tables as they are until `resume`
    Suspend(manage::NamedArgs),
    /// Maintain suspended stream tables again; they are repaired first
    Resume(manage::NamedArgs),
    /// Make stream tables equal to their queries again, by difference
    Repair(manage::NamedArgs),
    /// Compare stream tables with their queries, while the application goes on
    Verify(verify::VerifyArgs),
    /// Show how a stream table is maintained, and why it is not incremental
    Explain(explain::ExplainArgs),
    /// Copy stream tables into snapshots, all at one moment
    Snapshot(snapshot::SnapshotArgs),
    /// Make the sidecar leave for a time; its slot stays, so nothing has to be read again
    Pause(detach::PauseArgs),
    /// End a pause early
    Unpause(detach::AttachArgs),
    /// Make the sidecar leave a database: slot and sessions go, until `attach`
    Detach(detach::DetachArgs),
    /// Let a sidecar serve a detached database again
    Attach(detach::AttachArgs),
    /// Take pgtrickle out of a database: slot, publication, triggers, functions, schemas
    Uninstall(uninstall::UninstallArgs),
    /// Check server, database and roles, and show what mends what is found
    Doctor(doctor::DoctorArgs),
    /// Rehearse a restore: copy the server, run a sidecar on the copy, compare every stream table
    Drill(drill::DrillArgs),
    /// Ask the sidecar of this machine whether it is well; for containers
    Healthcheck(healthcheck::HealthcheckArgs),
    /// List, create and drop pipelines, and move stream tables between them
    Pipelines(pipelines::PipelinesArgs),
    /// Look at the configuration
    Config(config_check::ConfigArgs),
    /// Print a script that completes commands and options in a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Show the version
    Version {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    only: RunOnly,
}

/// Options of `run` alone; `config check` takes them too.
#[derive(Args)]
struct RunOnly {
    /// Threads of the dataflow [env: PGTRICKLE_WORKERS] [default: 1]
    #[arg(long, value_name = "NUMBER")]
    workers: Option<String>,
    /// Memory for the state of all stream tables, e.g. 512MB or 2GiB [env: PGTRICKLE_MEMORY_LIMIT] [default: 75 %
    /// of the control group's limit or of the machine's memory]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,
    /// How changes are captured: auto, wal or trigger [env: PGTRICKLE_CDC_MODE] [default: cdc_mode in
    /// pgtrickle.settings, else auto]
    #[arg(long, value_name = "MODE")]
    cdc_mode: Option<String>,
    /// Serve every pipeline of every database of the server that has the schema; the database named is only where they
    /// are listed [env: PGTRICKLE_ALL_DATABASES]
    #[arg(long)]
    all_databases: bool,
    /// Wait while another sidecar serves the pipeline, and take over when it has gone [env: PGTRICKLE_STANDBY]
    #[arg(long)]
    standby: bool,
    /// Sessions in which PostgreSQL computes expressions and groups [env: PGTRICKLE_EVALUATION_SESSIONS] [default: 4]
    #[arg(long, value_name = "NUMBER")]
    evaluation_sessions: Option<String>,
    /// Longest time for one batch of them, such as 30s, or off [env: PGTRICKLE_EVALUATION_TIMEOUT] [default: 10min]
    #[arg(long, value_name = "TIME")]
    evaluation_timeout: Option<String>,
    /// Hosts file of a cluster: a line host:port for each process that shares the state [env: PGTRICKLE_CLUSTER]
    #[arg(long, value_name = "FILE")]
    cluster: Option<String>,
    /// Number of this process: its line in the hosts file, from 0 [env: PGTRICKLE_PROCESS]
    #[arg(long, value_name = "NUMBER")]
    process: Option<String>,
    /// File with the secret that all processes of the cluster share [env: PGTRICKLE_CLUSTER_SECRET_FILE]
    #[arg(long, value_name = "FILE")]
    cluster_secret_file: Option<String>,
    /// How long another process may be silent before the run ends and starts again [env: PGTRICKLE_CLUSTER_TIMEOUT]
    /// [default: 10s]
    #[arg(long, value_name = "TIME")]
    cluster_timeout: Option<String>,
    /// Where the dashboard, /metrics, /healthz and /readyz are served, or off [env: PGTRICKLE_HTTP] [default: 127.0.0.1:9642]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    #[command(flatten)]
    web: web::WebArgs,
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
    let mut flags = Flags::new(config);
    flags.set(options::LOG, log);
    flags.set(options::LOG_FORMAT, log_format);
    if let Some(connection) = cli.command.connection() {
        connection.add_to(&mut flags);
    }
    match &cli.command {
        Command::Run(args) => args.only.add_to(&mut flags),
        Command::Config(args) => {
            let config_check::ConfigCommand::Check(args) = &args.command;
            args.run.add_to(&mut flags);
        }
        Command::Healthcheck(args) => flags.set(options::HTTP, args.http.clone()),
        _ => {}
    }
    let exports = matches!(cli.command, Command::Run(_));
    let sources = || -> Result<Sources> {
        let sources = Sources::read(flags.clone(), Sources::process_environment())?;
        logs::start(&sources.logs()?, exports)?;
        Ok(sources)
    };
    let settings = || -> Result<Settings> {
        let settings = sources()?.settings()?;
        settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(settings)
    };
    match cli.command {
        Command::Version { json } => {
            let version = env!("CARGO_PKG_VERSION");
            match json {
                true => print_json(&serde_json::json!({ "version": version })),
                false => print(&format!("pgtrickle {version}\n")),
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            use clap::CommandFactory;
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pgtrickle", &mut script);
            print_as_it_is(&String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(args) => {
            let config_check::ConfigCommand::Check(args) = args.command;
            let sources = || Sources::read(flags.clone(), Sources::process_environment());
            config_check::run(&args, sources)
        }
        Command::Healthcheck(args) => {
            let sources = sources()?;
            let (http, certificate) = (sources.http()?, sources.https());
            on_runtime(1, healthcheck::run(args, http, certificate))
        }
        Command::Run(_) => {
            let sources = sources()?;
            if let Some(member) = sources.member()? {
                return on_runtime(1, run::member(member));
            }
            let settings = sources.settings()?;
            settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            on_runtime(settings.workers.value, run::run(settings))
        }
        Command::Demo(args) => {
            sources()?;
            on_runtime(1, demo::run(args))
        }
        // Printing a script needs no database.
        Command::Init(args) if args.print => {
            print_as_it_is(&init::script(&args));
            Ok(ExitCode::SUCCESS)
        }
        Command::Uninstall(args) if args.print => {
            print_as_it_is(&uninstall::script(&args));
            Ok(ExitCode::SUCCESS)
        }
        Command::Init(args) => on_runtime(1, init::run(args, settings()?)),
        Command::Status(args) => on_runtime(1, status::run(args, settings()?)),
        Command::Slots(args) => on_runtime(1, slots::run(args, settings()?)),
        Command::Pipelines(args) => on_runtime(1, pipelines::run(args, settings()?)),
        Command::Create(args) => on_runtime(1, manage::create(args, settings()?)),
        Command::Alter(args) => on_runtime(1, manage::alter(args, settings()?)),
        Command::Drop(args) => on_runtime(1, manage::drop(args, settings()?)),
        Command::Refresh(args) => on_runtime(1, manage::named(manage::Verb::Refresh, args, settings()?)),
        Command::Suspend(args) => on_runtime(1, manage::named(manage::Verb::Suspend, args, settings()?)),
        Command::Resume(args) => on_runtime(1, manage::named(manage::Verb::Resume, args, settings()?)),
        Command::Repair(args) => on_runtime(1, manage::named(manage::Verb::Repair, args, settings()?)),
        Command::Verify(args) => on_runtime(1, verify::run(args, settings()?)),
        Command::Explain(args) => on_runtime(1, explain::run(args, settings()?)),
        Command::Snapshot(args) => on_runtime(1, snapshot::run(args, settings()?)),
        Command::Pause(args) => on_runtime(1, detach::pause(args, settings()?)),
        Command::Unpause(args) => on_runtime(1, detach::unpause(args, settings()?)),
        Command::Detach(args) => on_runtime(1, detach::detach(args, settings()?)),
        Command::Attach(args) => on_runtime(1, detach::attach(args, settings()?)),
        Command::Uninstall(args) => on_runtime(1, uninstall::run(args, settings()?)),
        Command::Doctor(args) => on_runtime(1, doctor::run(args, settings()?)),
        Command::Drill(args) => on_runtime(1, drill::run(args, settings()?)),
    }
}

impl Command {
    /// What the command line says about the connection; `None` for commands that make none.
    fn connection(&self) -> Option<&Connection> {
        Some(match self {
            Command::Run(args) => &args.connection,
            Command::Init(args) => &args.connection,
            Command::Status(args) => &args.connection,
            Command::Slots(args) => &args.connection,
            Command::Pipelines(args) => args.connection(),
            Command::Create(args) => &args.connection,
            Command::Alter(args) => &args.connection,
            Command::Drop(args) => &args.connection,
            Command::Refresh(args)
            | Command::Suspend(args)
            | Command::Resume(args)
            | Command::Repair(args) => &args.connection,
            Command::Verify(args) => &args.connection,
            Command::Explain(args) => &args.connection,
            Command::Snapshot(args) => &args.connection,
            Command::Pause(args) => &args.connection,
            Command::Unpause(args) | Command::Attach(args) => &args.connection,
            Command::Detach(args) => &args.connection,
            Command::Uninstall(args) => &args.connection,
            Command::Doctor(args) => &args.connection,
            Command::Drill(args) => &args.connection,
            Command::Config(args) => {
                let config_check::ConfigCommand::Check(args) = &args.command;
                &args.connection
            }
            Command::Demo(_)
            | Command::Healthcheck(_)
            | Command::Completions { .. }
            | Command::Version { .. } => return None,
        })
    }
}

impl RunOnly {
    fn add_to(&self, flags: &mut Flags) {
        flags.set(options::WORKERS, self.workers.clone());
        flags.set(options::MEMORY_LIMIT, self.memory_limit.clone());
        flags.set(options::CDC_MODE, self.cdc_mode.clone());
        flags.set(options::ALL_DATABASES, self.all_databases.then(|| "true".to_owned()));
        flags.set(options::STANDBY, self.standby.then(|| "true".to_owned()));
        flags.set(options::EVALUATION_SESSIONS, self.evaluation_sessions.clone());
        flags.set(options::EVALUATION_TIMEOUT, self.evaluation_timeout.clone());
        flags.set(options::CLUSTER, self.cluster.clone());
        flags.set(options::PROCESS, self.process.clone());
        flags.set(options::CLUSTER_SECRET_FILE, self.cluster_secret_file.clone());
        flags.set(options::CLUSTER_TIMEOUT, self.cluster_timeout.clone());
        flags.set(options::HTTP, self.http.clone());
        self.web.add_to(flags);
    }
}

impl Connection {
    fn add_to(&self, flags: &mut Flags) {
        flags.set(options::DATABASE_URL, self.database_url.clone());
        flags.set(options::PASSWORD_FILE, self.password_file.clone());
        flags.set(options::PIPELINE, self.pipeline.clone());
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
    #[cfg(feature = "otel")]
    otel::finish();
    result
}

/// Writes to standard output what holds names and messages of others.
fn print(text: &str) {
    print_as_it_is(&text::printable(text));
}

/// One JSON value, for programs.
fn print_json(value: &serde_json::Value) {
    print(&format!("{value:#}\n"));
}

/// The same for scripts, and for what commands the terminal on purpose. A reader that went away (`| head`) is no error.
fn print_as_it_is(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// `error: ...`, its causes where they say more, and `hint: ...`.
fn report(error: &Error) {
    let red = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (on, off) = if red { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let mut said = error.to_string();
    eprintln!("{on}error{off}: {}", text::printable(&said));
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_said = inner.to_string();
        if !said.contains(&inner_said) {
            eprintln!("cause: {}", text::printable(&inner_said));
            said.push_str(&inner_said);
        }
        cause = inner.source();
    }
    if let Some(hint) = error.hint() {
        eprintln!("hint: {}", text::printable(hint));
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
    fn every_option_has_its_flag_and_its_help_names_the_variable() {
        use clap::CommandFactory;
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for choice in options::CHOICES {
            let Some(flag) = choice.flag else { continue };
            let mut arguments = run.get_arguments().chain(command.get_arguments());
            let argument = arguments.find(|argument| argument.get_long() == Some(flag));
            let help = argument.unwrap_or_else(|| panic!("no --{flag}")).get_help().unwrap().to_string();
            let said = help.replace('\n', " ");
            assert!(said.contains(&format!("[env: {}", choice.variable)), "--{flag}: {said}");
        }
    }

    #[test]
    fn common_options_may_follow_the_command() {
        let cli = Cli::try_parse_from(["pgtrickle", "run", "--log", "debug", "--workers", "2"]).unwrap();
        assert_eq!(cli.common.log.as_deref(), Some("debug"));
        assert!(
            matches!(cli.command, Command::Run(RunArgs { only: RunOnly { workers: Some(w), .. }, .. }) if w == "2")
        );
    }
}
