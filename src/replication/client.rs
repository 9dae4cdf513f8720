//! The streaming session, on `pgwire-replication`: gated start, silence watchdog, errors with a kind.

use std::time::Duration;

use bytes::Bytes;
use pgwire_replication::config::SslMode as WireSsl;
use pgwire_replication::{
    Lsn, PgWireError, ReplicationClient, ReplicationConfig, ReplicationEvent, TlsConfig,
};
use tokio_postgres::config::Host;

use super::names::PipelineNames;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{POOLER_HINT, Purpose, Target, is_pooler, kind_of};
use crate::postgres::tls::{self, Mode};

/// A server that rests sends something at least every `wal_sender_timeout / 2` (30 s by default). Silence for longer than
/// this means a dead connection, or a walsender that decodes what it need not send (see [`super::slot::is_being_read`]).
const SILENCE: Duration = Duration::from_secs(75);
/// How long connecting and starting may take.
const START: Duration = Duration::from_secs(30);

/// What the stream delivers. LSNs are bytes in the WAL; times microseconds since 2000-01-01 UTC.
#[derive(Debug, Clone)]
pub enum StreamEvent {
    Begin {
        commit_lsn: u64,
        xid: u32,
        commit_time: i64,
    },
    /// One pgoutput message other than begin, commit and logical message.
    Change(Bytes),
    Commit {
        commit_lsn: u64,
        end_lsn: u64,
        commit_time: i64,
    },
    Message {
        transactional: bool,
        lsn: u64,
        prefix: String,
        content: Bytes,
    },
    /// Everything up to here has been sent.
    Position {
        lsn: u64,
        server_time: i64,
    },
}

/// A started replication session.
pub struct Session {
    client: ReplicationClient,
    last_event: tokio::time::Instant,
}

/// Identity of the server behind the streaming session (IDENTIFY_SYSTEM).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    pub system_identifier: String,
    pub timeline: u32,
    pub database: Option<String>,
}

impl Session {
    /// Connects, lets `verify` check the identity on the session that will stream, and starts at `start`, the durable
    /// frontier (acknowledged from then on).
    pub async fn open(
        target: &Target,
        names: &PipelineNames,
        start: u64,
        verify: impl FnOnce(&SystemIdentity) -> Result<()>,
    ) -> Result<Session> {
        let config = config(target, names, start)?;
        let opening = async {
            let mut client = ReplicationClient::connect_gated(config).await.map_err(error)?;
            let system = client.identify_system().await.map_err(error)?;
            let identity = SystemIdentity {
                system_identifier: system.system_id,
                timeline: system.timeline,
                database: system.dbname,
            };
            verify(&identity)?;
            client.start().await.map_err(error)?;
            client.wait_started().await.map_err(error)?;
            Ok(Session { client, last_event: tokio::time::Instant::now() })
        };
        match tokio::time::timeout(START, opening).await {
            Ok(session) => session,
            Err(_) => {
                Err(Error::new(ErrorKind::Connection, "the replication session did not start within 30 s"))
            }
        }
    }

    /// Nobody calls [`Session::next`] at the moment: what the server sends meanwhile is not seen.
    pub fn is_not_read(&mut self) {
        self.last_event = tokio::time::Instant::now();
    }

    /// For how long the server has been silent, if that is longer than one that rests ever is.
    pub fn silence(&self) -> Option<Duration> {
        Some(self.last_event.elapsed()).filter(|silence| *silence > SILENCE)
    }

    /// The next event; an error if the stream ended. May be cancelled without losing an event.
    pub async fn next(&mut self) -> Result<StreamEvent> {
        loop {
            let event = self.client.recv().await.map_err(error)?;
            self.last_event = tokio::time::Instant::now();
            let Some(event) = event else {
                return Err(Error::new(ErrorKind::Connection, "the server ended the replication stream"));
            };
            return Ok(match event {
                ReplicationEvent::Begin { final_lsn, xid, commit_time_micros } => StreamEvent::Begin {
                    commit_lsn: final_lsn.as_u64(),
                    xid,
                    commit_time: commit_time_micros,
                },
                ReplicationEvent::XLogData { data, .. } => StreamEvent::Change(data),
                ReplicationEvent::Commit { lsn, end_lsn, commit_time_micros } => StreamEvent::Commit {
                    commit_lsn: lsn.as_u64(),
                    end_lsn: end_lsn.as_u64(),
                    commit_time: commit_time_micros,
                },
                ReplicationEvent::Message { transactional, lsn, prefix, content } => {
                    StreamEvent::Message { transactional, lsn: lsn.as_u64(), prefix, content }
                }
                ReplicationEvent::KeepAlive { wal_end, server_time_micros, .. } => {
                    StreamEvent::Position { lsn: wal_end.as_u64(), server_time: server_time_micros }
                }
                _ => continue,
            });
        }
    }

    /// Acknowledges a durable frontier.
    pub fn acknowledge(&self, frontier: u64) {
        self.client.update_applied_lsn(Lsn::from_u64(frontier));
    }

    /// Ends the session after the last acknowledgement was sent, or after `patience`.
    pub async fn close(mut self, frontier: u64, patience: Duration) {
        self.acknowledge(frontier);
        let metrics = self.client.metrics();
        let deadline = tokio::time::Instant::now() + patience;
        // The client sends a raised position within its status interval; stopping before would lose it (harmless, but
        // the slot would keep WAL that it need not).
        while self.client.is_running()
            && metrics.last_applied_lsn().as_u64() < frontier
            && tokio::time::Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(2), self.client.shutdown()).await;
        self.client.abort();
    }

    /// Drops the connection at once (server shutdown: it would wait for us for ever otherwise).
    pub fn abort(mut self) {
        self.client.abort();
    }
}

fn config(target: &Target, names: &PipelineNames, start: u64) -> Result<ReplicationConfig> {
    let sql = target.login()?;
    let port = sql.get_ports().first().copied().unwrap_or(5432);
    let host = match sql.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        #[cfg(unix)]
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "localhost".to_owned(),
    };
    let unix = host.starts_with('/');
    let password = match sql.get_password() {
        Some(bytes) => String::from_utf8(bytes.to_vec())
            .map_err(|e| Error::new(ErrorKind::Config, "the password is not UTF-8").with_source(e))?,
        None => String::new(),
    };
    let user = sql.get_user().unwrap_or("postgres");
    let database = sql.get_dbname().unwrap_or(user);
    // A numeric address to connect to beside the name, which is then only for the certificate.
    let address = sql.get_hostaddrs().first().filter(|_| !unix).map(ToString::to_string);
    let tls = if unix { TlsConfig::disabled() } else { wire_tls(target, &host)? };
    let host = address.unwrap_or(host);
    Ok(ReplicationConfig::new(host, user, password, database, names.slot(), names.publication())
        .with_port(port)
        .with_tls(tls)
        .with_start_lsn(Lsn::from_u64(start))
        .with_ack_lsn(Lsn::from_u64(start))
        .with_status_interval(Duration::from_secs(1))
        .with_wakeup_interval(Duration::from_secs(10))
        .with_buffer_size(16 * 1024)
        .with_options(target.options(Purpose::Replication))
        .with_application_name(target.application_name(Purpose::Replication)))
}

/// The same protection as the SQL sessions have, in the words of this client.
fn wire_tls(target: &Target, host: &str) -> Result<TlsConfig> {
    let tls = target.tls();
    if tls.mode == Mode::Disable {
        return Ok(TlsConfig::disabled());
    }
    // Reads the files with our own errors; the client's are less exact.
    tls.check()?;
    let mut wire = TlsConfig::require();
    wire.mode = match tls.mode {
        Mode::Disable => WireSsl::Disable,
        Mode::Prefer => WireSsl::Prefer,
        Mode::Require => WireSsl::Require,
        Mode::VerifyCa => WireSsl::VerifyCa,
        Mode::VerifyFull => WireSsl::VerifyFull,
    };
    if tls.mode >= Mode::VerifyCa {
        wire.ca_pem_path = Some(tls.roots_file()?);
    }
    // Named, an address is compared with the addresses in the certificate; unnamed, the client refuses it. The client
    // checks the name for verify-ca, too: it gets the one that the certificate had in the SQL session.
    let shown = target.shown_name().filter(|_| tls.mode == Mode::VerifyCa);
    wire.sni_hostname = Some(shown.unwrap_or_else(|| host.to_owned()));
    if let Some(identity) = &tls.identity {
        wire = wire.with_client_cert(&identity.certificate, &identity.key);
    }
    Ok(wire)
}

/// SQLSTATE in the text of a server error (`... (SQLSTATE 55006)`), the one place where it is parsed.
fn sqlstate_in(text: &str) -> Option<&str> {
    let (_, rest) = text.rsplit_once("SQLSTATE ")?;
    rest.get(..5)
}

fn error(e: PgWireError) -> Error {
    let text = e.to_string();
    match &e {
        PgWireError::Server(message) => {
            let state = sqlstate_in(message).unwrap_or("XX000").to_owned();
            let (kind, hint) = match state.as_str() {
                // Slot missing, lost, or in use: the history is to be diagnosed again.
                "42704" | "55000" | "58P01" => (ErrorKind::Identity, None),
                "55006" => (ErrorKind::Connection, None),
                "53300" if message.contains("max_wal_senders") => (
                    ErrorKind::ServerSetup,
                    Some("raise max_wal_senders (needs a restart), or end what streams"),
                ),
                other if is_pooler(other, message) => (ErrorKind::ServerSetup, Some(POOLER_HINT)),
                other => (kind_of(other), None),
            };
            let error = Error::new(kind, text.clone()).with_sqlstate(state);
            let error = hint.into_iter().fold(error, Error::with_hint);
            error.with_source(e)
        }
        PgWireError::Auth(_) => Error::new(ErrorKind::Authentication, text).with_source(e),
        PgWireError::Tls(_) => {
            let hint = tls::hint(&text);
            hint.into_iter()
                .fold(Error::new(ErrorKind::Authentication, text), Error::with_hint)
                .with_source(e)
        }
        PgWireError::Protocol(_) | PgWireError::MessageTooLarge { .. } => {
            Error::new(ErrorKind::Protocol, text).with_source(e)
        }
        _ => Error::new(ErrorKind::Connection, text).with_source(e),
    }
}

#[cfg(test)]
mod tests {
    use super::sqlstate_in;

    #[test]
    fn the_sqlstate_is_found_in_the_text_of_a_server_error() {
        assert_eq!(sqlstate_in("slot \"x\" is active for PID 12345 (SQLSTATE 55006)"), Some("55006"));
        assert_eq!(sqlstate_in("the connection broke"), None);
    }
}
