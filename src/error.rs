//! The one error type: a kind that decides what happens next, the context in words, and a hint for the operator.
//!
//! Invariant: the kind alone decides retry, suspension and exit code ([`ErrorKind::directive`],
//! [`ErrorKind::exit_code`]); no caller parses message text. No error carries row values or secrets.

use std::error::Error as StdError;
use std::fmt;

/// Result of every fallible function of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is. Each kind has exactly one [`Directive`] and one exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A flag, environment variable or file holds a value that can't be used.
    Config,
    /// The server can't be reached, or the connection broke.
    Connection,
    /// The server refused who we are (password, pg_hba, TLS).
    Authentication,
    /// The role lacks a right.
    Privilege,
    /// The server is not set up for what we need (wal_level, slots, a pooler in between, standby).
    ServerSetup,
    /// Another sidecar serves this pipeline.
    LeaseHeld,
    /// The schema in the database is newer than this binary, or belongs to the pg_trickle extension.
    SchemaVersion,
    /// There is no (usable) schema in the database: not installed, too old, or half restored.
    NotInstalled,
    /// Bytes from the server do not follow the protocol.
    Protocol,
    /// The slot, publication or history of the server does not match what we stored.
    Identity,
    /// A query can't be maintained incrementally; the context is the reason.
    Unsupported,
    /// A user's query or name is wrong (PostgreSQL's own error, or ours with the same SQLSTATE).
    Query,
    /// Writing a stream table failed for a reason that belongs to that stream table.
    Apply,
    /// The apply transaction met a lock timeout, deadlock or serialization failure.
    Contention,
    /// The state does not fit the memory limit.
    Memory,
    /// Another process of the cluster went away, or does not answer.
    Cluster,
    /// A bug of ours: an invariant does not hold.
    Internal,
}

/// What the supervisor does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directive {
    /// Try again with backoff; nothing durable changed.
    Retry,
    /// Throw away the memory state and start from the catalog (a reconcile).
    Restart,
    /// Take the one stream table out and go on with the others.
    Suspend,
    /// Stop; an operator has to act.
    Stop,
}

impl ErrorKind {
    /// The one reaction to this kind.
    pub fn directive(self) -> Directive {
        use ErrorKind::*;
        match self {
            Connection | Contention => Directive::Retry,
            Identity | Protocol | Cluster | Internal => Directive::Restart,
            Unsupported | Query | Apply | Memory => Directive::Suspend,
            Config | Authentication | Privilege | ServerSetup | LeaseHeld | SchemaVersion | NotInstalled => {
                Directive::Stop
            }
        }
    }

    /// Process exit code (documented in `docs/exit-codes.md`).
    pub fn exit_code(self) -> u8 {
        use ErrorKind::*;
        match self {
            Config => 2,
            Connection => 3,
            Authentication => 4,
            Privilege => 5,
            ServerSetup => 6,
            LeaseHeld => 7,
            NotInstalled => 8,
            Unsupported | Query => 9,
            Protocol | Identity => 10,
            Apply | Contention | Memory => 11,
            SchemaVersion => 12,
            Cluster => 13,
            Internal => 70,
        }
    }
}

/// An error with its kind, context, optional SQLSTATE, hint and cause.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    context: String,
    sqlstate: Option<String>,
    hint: Option<String>,
    statement: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A new error of `kind`; `context` is one clear sentence without a full stop.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        let context = context.into();
        Error(Box::new(Inner { kind, context, sqlstate: None, hint: None, statement: None, source: None }))
    }

    /// Shorthand for [`ErrorKind::Internal`].
    pub fn internal(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, context)
    }

    /// Shorthand for [`ErrorKind::Unsupported`].
    pub fn unsupported(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, reason).with_sqlstate("0A000")
    }

    /// Adds what the operator can do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the five characters that SQL clients match on.
    pub fn with_sqlstate(mut self, sqlstate: impl Into<String>) -> Self {
        self.0.sqlstate = Some(sqlstate.into());
        self
    }

    /// Adds the SQL that failed: for the owner of the stream table, not for logs.
    pub fn with_statement(mut self, statement: impl Into<String>) -> Self {
        self.0.statement = Some(statement.into());
        self
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Puts `what` in front of the context: `what: context`.
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.0.context = format!("{what}: {}", self.0.context);
        self
    }

    /// As logs may have it. A server's message about data (and whatever users' code raises) can quote values: of such an
    /// error only the SQLSTATE is told; its text is for the owner of the stream table, in the catalog.
    pub fn for_logs(&self) -> String {
        /// Classes of SQLSTATEs that speak of names, rights and resources (appendix A of PostgreSQL's documentation).
        const OF_NO_DATA: &[&str] =
            &["08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "F0"];
        match self.sqlstate() {
            Some(state) if !OF_NO_DATA.iter().any(|class| state.starts_with(class)) => {
                format!(
                    "SQLSTATE {state}; the message may quote values and is in pgt_stream_tables.last_error_message"
                )
            }
            _ => self.to_string(),
        }
    }

    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    pub fn context(&self) -> &str {
        &self.0.context
    }

    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The SQL that failed, where it is known.
    pub fn statement(&self) -> Option<&str> {
        self.0.statement.as_deref()
    }

    /// SQLSTATE, where the server or this code set one.
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.sqlstate.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)?;
        if let Some(state) = &self.0.sqlstate {
            write!(f, " (SQLSTATE {state})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        if let Some(hint) = &self.0.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_carries_context_and_sqlstate_but_not_the_hint() {
        let e = Error::unsupported("random() is volatile").with_hint("use FULL").during("create s.t");
        assert_eq!(e.to_string(), "create s.t: random() is volatile (SQLSTATE 0A000)");
        assert_eq!(e.hint(), Some("use FULL"));
        assert_eq!(e.kind().directive(), Directive::Suspend);
    }
}
