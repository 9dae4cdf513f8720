//! Sessions with the server: one builder, pinned settings, errors with a kind.
//!
//! Invariant: every session, the replication one included, runs under [`PINNED`], so that the same value has the same
//! text wherever it comes from. Role-level timeouts are overridden; a session says in `application_name` what it is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::password::Passwords;
use super::session::SqlSession;
use super::tls::{self, Mode, ShownName, Tls};
use crate::error::{Error, ErrorKind, Result};

/// Settings of every session.
pub const PINNED: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("client_encoding", "UTF8"),
    ("search_path", "pg_catalog,pg_temp"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("statement_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("jit", "off"),
    // A machine that vanished must not hold the lease for hours: the server ends its sessions after a minute.
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "60000"),
];

/// How long a server may take from the first packet to the end of the login.
const ANSWER: Duration = Duration::from_secs(30);

/// The first major version with `transaction_timeout`; older ones refuse a session that names it.
const TRANSACTION_TIMEOUT: u32 = 17;

/// What a session is for; part of its `application_name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Control,
    Apply,
    Poll,
    Hydrate,
    Evaluate,
    Analyze,
    Replication,
    Monitor,
    Tool,
    /// A statement of the user's: under the settings that a session of theirs would have, nothing is pinned.
    Command,
}

impl Purpose {
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Control => "control",
            Purpose::Apply => "apply",
            Purpose::Poll => "poll",
            Purpose::Hydrate => "hydrate",
            Purpose::Evaluate => "evaluate",
            Purpose::Analyze => "analyze",
            Purpose::Replication => "replication",
            Purpose::Monitor => "monitor",
            Purpose::Tool => "tool",
            Purpose::Command => "command",
        }
    }

    /// Hydration must fail rather than read a source through row-level security; elsewhere policies apply as usual.
    fn row_security(self) -> &'static str {
        if self == Purpose::Hydrate { "off" } else { "on" }
    }

    /// An apply that stands still in the middle holds the pipeline's row: a process that was frozen there would keep its
    /// successor out until it wakes up.
    fn idle_in_transaction_timeout(self) -> &'static str {
        if self == Purpose::Apply { "60s" } else { "0" }
    }

    /// The loop never waits for a standby: as long as it does, it can't see why nothing comes.
    fn synchronous_commit(self) -> Option<(&'static str, &'static str)> {
        (self == Purpose::Control).then_some(("synchronous_commit", "local"))
    }

    /// Lock timeout: what waits for locks gives way to the application (it retries), tools do not wait for ever.
    fn lock_timeout(self) -> &'static str {
        match self {
            Purpose::Apply => "800ms",
            Purpose::Hydrate => "2s",
            _ => "5s",
        }
    }
}

/// Where and as whom to connect. Cloneable; holds the password, so it is never printed.
#[derive(Clone)]
pub struct Target {
    config: Config,
    pipeline: String,
    tls: Tls,
    passwords: Passwords,
    shown: ShownName,
    /// Whether the server was seen to know `transaction_timeout`; shared, as all sessions are with one server.
    transaction_timeout: Arc<AtomicBool>,
    notices: Option<UnboundedSender<DbError>>,
}

impl Target {
    /// A target as `config` says: its own password, and TLS as its `ssl_mode` (which verifies nothing).
    pub fn new(config: Config, pipeline: &str) -> Target {
        let mode = match config.get_ssl_mode() {
            SslMode::Disable => Mode::Disable,
            SslMode::Require => Mode::Require,
            _ => Mode::Prefer,
        };
        Target {
            config,
            pipeline: pipeline.to_owned(),
            tls: Tls::new(mode),
            passwords: Passwords::Own,
            shown: ShownName::default(),
            transaction_timeout: Arc::default(),
            notices: None,
        }
    }

    /// The same target with this protection; `config`'s own `ssl_mode` no longer counts.
    pub fn with_tls(mut self, tls: Tls) -> Target {
        self.config.ssl_mode(match tls.mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        self.tls = tls;
        self
    }

    /// The same target; what the server says beside its answers (NOTICE, WARNING) is sent to `notices`.
    pub fn with_notices(&self, notices: UnboundedSender<DbError>) -> Target {
        Target { notices: Some(notices), ..self.clone() }
    }

    /// The same target with its password from elsewhere.
    pub fn with_passwords(mut self, passwords: Passwords) -> Target {
        self.passwords = passwords;
        self
    }

    /// Server, user and database; what counts for the password is [`Target::login`].
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// As [`Target::config`] with the password as it is now.
    ///
    /// # Errors
    /// `Authentication` when the password's file can't be read.
    pub fn login(&self) -> Result<Config> {
        let mut config = self.config.clone();
        self.passwords.fill(&mut config)?;
        Ok(config)
    }

    /// How sessions are protected.
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// A host name of the server's certificate, known after a session with verify-ca.
    pub fn shown_name(&self) -> Option<String> {
        self.shown.get()
    }

    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// The same server and user for another pipeline.
    pub fn with_pipeline(&self, pipeline: &str) -> Target {
        Target { pipeline: pipeline.to_owned(), ..self.clone() }
    }

    /// The same server and user, another database.
    pub fn with_database(&self, database: &str) -> Target {
        let mut target = self.clone();
        target.config.dbname(database);
        target
    }

    /// `host:port/database`, without user and password.
    pub fn describe(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            #[cfg(unix)]
            Some(Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        format!("{host}:{port}/{}", self.config.get_dbname().unwrap_or("?"))
    }

    pub fn application_name(&self, purpose: Purpose) -> String {
        format!("pgtrickle:{}:{}", self.pipeline, purpose.name())
    }

    /// `-c name=value ...` for the startup packet.
    pub fn options(&self, purpose: Purpose) -> String {
        let mut options = String::new();
        if purpose == Purpose::Command {
            return "-c client_encoding=UTF8 ".to_owned();
        }
        let lock = ("lock_timeout", purpose.lock_timeout());
        let policies = ("row_security", purpose.row_security());
        let idle = ("idle_in_transaction_session_timeout", purpose.idle_in_transaction_timeout());
        let transactions =
            Some(&("transaction_timeout", "0")).filter(|_| self.transaction_timeout.load(Ordering::Relaxed));
        let commits = purpose.synchronous_commit();
        for (name, value) in
            PINNED.iter().chain([&lock, &policies, &idle]).chain(transactions).chain(&commits)
        {
            options.push_str(&format!("-c {name}={} ", value.replace(' ', "\\ ")));
        }
        options
    }

    /// Opens a session. It ends, with what it does, when it is dropped.
    pub async fn connect(&self, purpose: Purpose) -> Result<SqlSession> {
        // The driver bounds only how long the socket takes to open; whoever accepts it may never answer.
        let opened = tokio::time::timeout(ANSWER, self.open(purpose)).await;
        opened.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Connection, format!("connecting to {}: no answer", self.describe()))
                .with_hint("whoever listens there (a proxy?) accepts connections but does not answer"))
        })
    }

    async fn open(&self, purpose: Purpose) -> Result<SqlSession> {
        let mut config = self.login()?;
        config
            .application_name(self.application_name(purpose))
            .options(self.options(purpose))
            .connect_timeout(Duration::from_secs(10))
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(30))
            .tcp_user_timeout(Duration::from_secs(30));
        let what = || format!("connecting to {}", self.describe());
        let failed = |e: tokio_postgres::Error| {
            // An older server than last time: the next attempt does without.
            self.transaction_timeout.store(false, Ordering::Relaxed);
            error(e).during(what())
        };
        let (client, version) = match self.tls.mode {
            Mode::Disable => {
                let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
                let (task, version) = spawn_connection(connection, self.notices.clone());
                (SqlSession::new(client, task, None), version)
            }
            _ => {
                let tls = MakeRustlsConnect::new(self.tls.client_config(&self.shown)?);
                let (client, connection) = config.connect(tls.clone()).await.map_err(failed)?;
                let (task, version) = spawn_connection(connection, self.notices.clone());
                (SqlSession::new(client, task, Some(tls)), version)
            }
        };
        if version.is_some_and(|major| major >= TRANSACTION_TIMEOUT)
            && !self.transaction_timeout.swap(true, Ordering::Relaxed)
        {
            // Sessions from now on begin with it.
            client.batch_execute("set transaction_timeout = 0").await.map_err(error)?;
        }
        Ok(client)
    }

    /// As [`Target::connect`], for a session beside those that serve: where the server has none to spare (53300) it is
    /// waited for, and what is in memory stays.
    pub async fn connect_when_free(&self, purpose: Purpose) -> Result<SqlSession> {
        let mut pause = Duration::from_millis(100);
        loop {
            match self.connect(purpose).await {
                Err(e) if e.sqlstate() == Some("53300") => {
                    if pause < Duration::from_millis(200) {
                        tracing::warn!(error = %e, "the server has no connection to spare; waiting for one");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                outcome => return outcome,
            }
        }
    }
}

/// Leaves the connection to the runtime; the server's major version as it said.
fn spawn_connection<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    notices: Option<UnboundedSender<DbError>>,
) -> (JoinHandle<()>, Option<u32>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let said = connection.parameter("server_version").unwrap_or_default();
    let version = said.split(|c: char| !c.is_ascii_digit()).next().and_then(|major| major.parse().ok());
    let task = tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notice(notice))) => {
                    if let Some(notices) = &notices {
                        // Whoever asked for them may have gone.
                        let _ = notices.send(notice);
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => {
                    // Whoever uses the client gets the error with its next statement.
                    tracing::debug!(error = %e, "a session ended");
                    return;
                }
                None => return,
            }
        }
    });
    (task, version)
}

/// Kind of a server error by its SQLSTATE.
pub fn kind_of(sqlstate: &str) -> ErrorKind {
    match sqlstate {
        "28P01" | "28000" => ErrorKind::Authentication,
        "42501" => ErrorKind::Privilege,
        "40001" | "40P01" | "55P03" => ErrorKind::Contention,
        "53300" | "57P01" | "57P02" | "57P03" => ErrorKind::Connection,
        "53400" => ErrorKind::ServerSetup,
        "3D000" => ErrorKind::Config,
        state if state.starts_with("08") => ErrorKind::Connection,
        _ => ErrorKind::Query,
    }
}

/// Poolers refuse startup parameters that they do not know (pgbouncer: `unsupported startup parameter: options`).
pub fn is_pooler(sqlstate: &str, message: &str) -> bool {
    sqlstate == "08P01" && message.contains("unsupported startup parameter")
}

/// What to do about a pooler.
pub const POOLER_HINT: &str =
    "a connection pooler is in between: connect to the server directly, replication can't pass through it";

/// An error of the SQL client with its kind, SQLSTATE, and hint.
pub fn error(e: tokio_postgres::Error) -> Error {
    if let Some(db) = e.as_db_error() {
        let state = db.code().code().to_owned();
        if is_pooler(&state, db.message()) {
            return Error::new(ErrorKind::ServerSetup, db.message().to_owned())
                .with_sqlstate(state)
                .with_hint(POOLER_HINT);
        }
        // Code of users may raise a state of connections (a foreign server that is away): only what ends the session is ours.
        let kind = match kind_of(&state) {
            ErrorKind::Connection if db.parsed_severity() == Some(Severity::Error) => ErrorKind::Query,
            kind => kind,
        };
        let mut error = Error::new(kind, db.message().to_owned()).with_sqlstate(state);
        if let Some(hint) = db.hint() {
            error = error.with_hint(hint.to_owned());
        } else if let Some(hint) = connect_hint(db.code()) {
            error = error.with_hint(hint);
        }
        return error;
    }
    let text = e.to_string();
    let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
    let said = format!("{text}{cause}");
    // The server answered, but not what the statement promises: no other connection helps.
    const OURS: &[&str] = &[
        "query returned an unexpected",
        "error serializing",
        "error deserializing",
        "invalid column",
        "error retrieving",
    ];
    if OURS.iter().any(|start| text.starts_with(start)) {
        return Error::internal(said).with_hint("please report this with the log").with_source(e);
    }
    let (kind, hint) = if said.contains("password") {
        (ErrorKind::Authentication, "set the password in the URL, in PGPASSWORD or in a password file")
    } else if let Some(hint) = tls::hint(&said) {
        (ErrorKind::Authentication, hint)
    } else {
        (ErrorKind::Connection, "check host, port, firewall and whether the server runs")
    };
    Error::new(kind, said).with_hint(hint).with_source(e)
}

fn connect_hint(code: &SqlState) -> Option<&'static str> {
    match code.code() {
        "28P01" => Some("the password is wrong: set it in the URL, in PGPASSWORD or in a password file"),
        "28000" => Some("pg_hba.conf on the server has no rule that lets this role in from here"),
        "3D000" => Some("name an existing database in the URL or with PGDATABASE"),
        _ => None,
    }
}

/// Runs `work` on the control session so that it gives up at once (`Contention`) where it would wait for a lock: everything
/// else of the pipeline waits meanwhile, and so do those who come to the locked table after it.
pub async fn briefly<T>(client: &Client, work: impl Future<Output = Result<T>>) -> Result<T> {
    client.batch_execute("set lock_timeout = '50ms'").await.map_err(error)?;
    let outcome = work.await;
    client.batch_execute("set lock_timeout = '5s'").await.map_err(error)?;
    outcome
}
