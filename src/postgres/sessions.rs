//! Sessions with the server: one builder, pinned settings, errors with a kind.
//!
//! Invariant: every session, the replication one included, runs under [`PINNED`], so that the same value has the same
//! text wherever it comes from. Role-level timeouts are overridden; a session says in `application_name` what it is for.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

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
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("jit", "off"),
];

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
        }
    }

    /// Hydration must fail rather than read a source through row-level security; elsewhere policies apply as usual.
    fn row_security(self) -> &'static str {
        if self == Purpose::Hydrate { "off" } else { "on" }
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
}

impl Target {
    pub fn new(config: Config, pipeline: &str) -> Target {
        Target { config, pipeline: pipeline.to_owned() }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn pipeline(&self) -> &str {
        &self.pipeline
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
        let lock = ("lock_timeout", purpose.lock_timeout());
        let policies = ("row_security", purpose.row_security());
        for (name, value) in PINNED.iter().chain([&lock, &policies]) {
            options.push_str(&format!("-c {name}={} ", value.replace(' ', "\\ ")));
        }
        options
    }

    /// Opens a session. Its connection task ends when the client is dropped.
    pub async fn connect(&self, purpose: Purpose) -> Result<Client> {
        let mut config = self.config.clone();
        config
            .application_name(self.application_name(purpose))
            .options(self.options(purpose))
            .connect_timeout(Duration::from_secs(10))
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(30))
            .tcp_user_timeout(Duration::from_secs(30));
        let what = || format!("connecting to {}", self.describe());
        let client = match config.get_ssl_mode() {
            SslMode::Disable => {
                let (client, connection) =
                    config.connect(NoTls).await.map_err(|e| error(e).during(what()))?;
                spawn_connection(connection);
                client
            }
            _ => {
                let (client, connection) =
                    config.connect(tls()?).await.map_err(|e| error(e).during(what()))?;
                spawn_connection(connection);
                client
            }
        };
        Ok(client)
    }
}

fn spawn_connection<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            // Whoever uses the client gets the error with its next statement.
            tracing::debug!(error = %e, "a session ended");
        }
    });
}

/// `sslmode=prefer|require` as libpq means them: encryption without a check of the certificate.
fn tls() -> Result<tokio_postgres_rustls::MakeRustlsConnect> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("TLS can't be set up").with_source(e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        .with_no_client_auth();
    Ok(tokio_postgres_rustls::MakeRustlsConnect::new(config))
}

/// Accepts any certificate: `require` protects against listeners, not against impostors.
#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
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
        let mut error = Error::new(kind_of(&state), db.message().to_owned()).with_sqlstate(state);
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
    } else if said.contains("tls") || said.contains("TLS") {
        (
            ErrorKind::Authentication,
            "the server does not offer TLS: enable ssl there, or use sslmode=prefer or disable",
        )
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
