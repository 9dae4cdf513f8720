//! The configuration of one run, and where each value came from.
//!
//! A value is taken from the first of: flag, environment variable, file (`--config`), default. Invariant: an error about
//! a value names its origin, so that an operator knows which of the four to change; a password is never printed, neither
//! by an error nor by `Debug`. Place in the data's way: before everything else.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};
use crate::evaluate::Limits;
use crate::postgres::sessions::Target;
use crate::recovery::CdcMode;

mod check;
mod cluster;
mod connection;
mod evaluation;
mod file;
mod memory;
pub mod options;
mod tls;
mod url;
mod web;

pub use check::Setting;
pub use cluster::Member;
use connection::Connection;
pub use memory::default_limit;
use options::Choice;
pub use web::WebSettings;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag, without the dashes.
    Flag(&'static str),
    /// An environment variable.
    Environment(&'static str),
    /// A key of the file given by `--config`.
    File {
        path: PathBuf,
        line: usize,
        key: String,
    },
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "flag --{name}"),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::File { path, line, key } => write!(f, "{}:{line} {key}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A value with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced<T> {
    pub value: T,
    pub origin: Origin,
}

impl<T> Sourced<T> {
    fn new(value: T, origin: Origin) -> Self {
        Sourced { value, origin }
    }

    /// An error about this value: `<origin>: <what>`.
    fn refuse(&self, what: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Config, format!("{}: {what}", self.origin))
    }
}

/// What the command line said.
#[derive(Clone, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    /// Values of options by key; an option that was not said is absent.
    values: BTreeMap<&'static str, String>,
}

impl Flags {
    /// `config`: what `--config` named.
    pub fn new(config: Option<PathBuf>) -> Self {
        Flags { config, ..Flags::default() }
    }

    /// Takes the value of an option, if the command line had one.
    pub fn set(&mut self, choice: &Choice, value: Option<String>) {
        self.values.extend(value.map(|value| (choice.key, value)));
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// What decides about logs; known before a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    pub format: Sourced<LogFormat>,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`, `off`) or a list of `target=level`.
    pub filter: Sourced<String>,
}

/// The resolved configuration.
#[derive(Clone)]
pub struct Settings {
    /// Server, user and database; holds the password.
    pub target: Target,
    /// Where the connection came from.
    pub connection: Origin,
    /// What the operator should know about the connection; printed once.
    pub warnings: Vec<String>,
    pub pipeline: Sourced<String>,
    /// Threads of the dataflow, at least 1.
    pub workers: Sourced<usize>,
    /// Bytes that the state of all stream tables may take.
    pub memory_limit: Sourced<u64>,
    /// `None`: as the database says (`cdc_mode` in `pgtrickle.settings`, or `pg_trickle.cdc_mode`).
    pub cdc_mode: Option<Sourced<CdcMode>>,
    /// Serve every database of the server that has the schema; the one of `target` is only where they are listed.
    pub all_databases: Sourced<bool>,
    /// Wait while another sidecar serves the pipeline.
    pub standby: Sourced<bool>,
    /// How PostgreSQL may compute expressions.
    pub evaluation: Sourced<Limits>,
    /// The processes that share the state; this one is the first of them.
    pub cluster: Option<crate::cluster::Settings>,
    /// Where numbers and health are served; `None`: nowhere.
    pub http: Sourced<Option<SocketAddr>>,
    /// Who may ask it, and how.
    pub web: WebSettings,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("target", &self.target.describe())
            .field("connection", &self.connection)
            .field("pipeline", &self.pipeline)
            .field("workers", &self.workers)
            .field("memory_limit", &self.memory_limit)
            .finish()
    }
}

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// Most threads of a dataflow; more than any server this runs beside has cores.
const MOST_WORKERS: usize = 256;
/// Loopback only: whoever opens it to others says so.
pub(crate) const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9642);

/// The three places that values come from, read once.
pub struct Sources {
    flags: Flags,
    environment: Environment,
    file: file::Values,
    /// Every key that was asked for, with what was found.
    seen: RefCell<Vec<(String, Option<Sourced<String>>)>>,
}

impl Sources {
    /// Reads the file that `--config` or `PGTRICKLE_CONFIG` names, if one does.
    ///
    /// # Errors
    /// `Config` when it can't be read, is no TOML, or holds a key that is not ours.
    pub fn read(flags: Flags, environment: Environment) -> Result<Sources> {
        let named = flags.config.clone().map(|path| Sourced::new(path, Origin::Flag("config")));
        let named = named.or_else(|| {
            let path = given(&environment, "PGTRICKLE_CONFIG")?;
            Some(Sourced::new(PathBuf::from(path), Origin::Environment("PGTRICKLE_CONFIG")))
        });
        let file = match named {
            Some(path) => file::read(&path)?,
            None => file::Values::default(),
        };
        Ok(Sources { flags, environment, file, seen: RefCell::default() })
    }

    /// The process's own environment; variables that are not UTF-8 do not count.
    pub fn process_environment() -> Environment {
        std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect()
    }

    /// What decides about logs.
    ///
    /// # Errors
    /// `Config` with the origin of a value that can't be used.
    pub fn logs(&self) -> Result<Logs> {
        let format = match self.text(options::LOG_FORMAT) {
            None => Sourced::new(LogFormat::Text, Origin::Default),
            Some(text) => match text.value.as_str() {
                "text" => Sourced::new(LogFormat::Text, text.origin),
                "json" => Sourced::new(LogFormat::Json, text.origin),
                other => {
                    return Err(text
                        .refuse(format!("{other:?} is no log format"))
                        .with_hint("use text or json"));
                }
            },
        };
        let own = self.text(options::LOG);
        // RUST_LOG is everybody's variable: it only counts where nobody spoke to us.
        let filter = match own {
            Some(own)
                if own.origin == Origin::Flag("log")
                    || own.origin == Origin::Environment("PGTRICKLE_LOG") =>
            {
                own
            }
            other => match given(&self.environment, "RUST_LOG") {
                Some(text) => Sourced::new(text, Origin::Environment("RUST_LOG")),
                None => other.unwrap_or_else(|| Sourced::new("info".to_owned(), Origin::Default)),
            },
        };
        if let Err(e) = filter.value.parse::<tracing_subscriber::filter::Targets>() {
            return Err(filter.refuse(format!("{:?} is no log filter ({e})", filter.value)).with_hint(
                "use error, warn, info, debug, trace or off, or a list such as warn,pgtrickle=debug",
            ));
        }
        Ok(Logs { format, filter })
    }

    /// Everything that a session with the server needs.
    ///
    /// # Errors
    /// `Config` with the origin of a value that can't be used, or when no database is named.
    pub fn settings(&self) -> Result<Settings> {
        let pipeline =
            self.text(options::PIPELINE).unwrap_or_else(|| Sourced::new("main".to_owned(), Origin::Default));
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if pipeline.value.is_empty() || pipeline.value.len() > 20 || !pipeline.value.chars().all(letters) {
            return Err(pipeline
                .refuse(format!("{:?} is no name of a pipeline", pipeline.value))
                .with_hint("use 1 to 20 lower-case letters, digits and _"));
        }
        let workers = match self.text(options::WORKERS) {
            None => Sourced::new(1, Origin::Default),
            Some(text) => match text.value.parse() {
                Ok(number @ 1..=MOST_WORKERS) => Sourced::new(number, text.origin),
                _ => {
                    let what = format!("{:?} is no number of workers", text.value);
                    return Err(text
                        .refuse(what)
                        .with_hint(format!("use a number from 1 to {MOST_WORKERS}")));
                }
            },
        };
        let memory_limit = self.memory_limit()?;
        let cdc_mode = match self.text(options::CDC_MODE) {
            None => None,
            Some(text) => match text.value.parse::<CdcMode>() {
                Ok(mode) => Some(Sourced::new(mode, text.origin)),
                Err(e) => return Err(text.refuse(e.context()).with_hint("use auto, wal or trigger")),
            },
        };
        let all_databases = self.truth(options::ALL_DATABASES)?;
        let standby = self.truth(options::STANDBY)?;
        let cluster = self.cluster()?;
        cluster::alone(cluster.as_ref(), &all_databases)?;
        let http = self.http()?;
        let evaluation = self.evaluation()?;
        let Connection { target, origin, warnings } = connection::resolve(self, &pipeline.value)?;
        Ok(Settings {
            target,
            connection: origin,
            warnings,
            pipeline,
            workers,
            memory_limit,
            cdc_mode,
            all_databases,
            standby,
            evaluation,
            cluster,
            http,
            web: self.web()?,
        })
    }

    /// Bytes that the state of this process may take.
    fn memory_limit(&self) -> Result<Sourced<u64>> {
        match self.text(options::MEMORY_LIMIT) {
            None => Ok(Sourced::new(default_limit(), Origin::Default)),
            Some(text) => match memory::parse(&text.value) {
                Ok(bytes) => Ok(Sourced::new(bytes, text.origin)),
                Err(what) => {
                    Err(text.refuse(what).with_hint("write a size such as 512MB or 2GiB, at least 16MB"))
                }
            },
        }
    }

    /// An option that is on or off; off by default.
    fn truth(&self, choice: &Choice) -> Result<Sourced<bool>> {
        Ok(self.switch(choice)?.unwrap_or(Sourced::new(false, Origin::Default)))
    }

    /// The same without a default.
    fn switch(&self, choice: &Choice) -> Result<Option<Sourced<bool>>> {
        let Some(text) = self.text(choice) else { return Ok(None) };
        match text.value.as_str() {
            "true" | "on" | "yes" | "1" => Ok(Some(Sourced::new(true, text.origin))),
            "false" | "off" | "no" | "0" => Ok(Some(Sourced::new(false, text.origin))),
            other => Err(text.refuse(format!("{other:?} is neither true nor false"))),
        }
    }

    /// Where numbers and health are served; needs no database.
    ///
    /// # Errors
    /// `Config` with the origin of a value that can't be used.
    pub fn http(&self) -> Result<Sourced<Option<SocketAddr>>> {
        match self.text(options::HTTP) {
            None => Ok(Sourced::new(Some(HTTP), Origin::Default)),
            Some(text) if text.value == "off" => Ok(Sourced::new(None, text.origin)),
            Some(text) => match text.value.parse() {
                Ok(address) => Ok(Sourced::new(Some(address), text.origin)),
                Err(_) => {
                    let what = format!("{:?} is no address with a port", text.value);
                    Err(text.refuse(what).with_hint("write 127.0.0.1:9642, or off"))
                }
            },
        }
    }

    /// The first of flag, variable and file that holds a value. An empty variable counts as absent.
    fn text(&self, choice: &Choice) -> Option<Sourced<String>> {
        let flag = choice.flag.and_then(|flag| {
            Some(Sourced::new(self.flags.values.get(choice.key)?.clone(), Origin::Flag(flag)))
        });
        let variable = || {
            Some(Sourced::new(
                given(&self.environment, choice.variable)?,
                Origin::Environment(choice.variable),
            ))
        };
        let found = flag.or_else(variable).or_else(|| self.file.get(choice.key).cloned());
        self.seen.borrow_mut().push((choice.key.to_owned(), found.clone()));
        found
    }
}

/// A variable that is set and not empty.
fn given(environment: &Environment, name: &str) -> Option<String> {
    environment.get(name).filter(|value| !value.is_empty()).cloned()
}

#[cfg(test)]
mod tests;
