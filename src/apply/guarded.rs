//! The session in which owners' functions run, guarded against what their code leaves behind.
//!
//! Users' code can't take our role, but it shares the session: it may set parameters that outlive its function
//! (`search_path` decides which operator a statement means), take the name of a prepared statement, or leave work that
//! is done at COMMIT. Invariant: no statement of ours means anything else afterwards. So statements go unnamed (their
//! text and their run leave together), and [`reset`] comes first.
//!
//! Deferred triggers of users run at COMMIT, up to PostgreSQL 17 with the rights of whoever commits (18 remembers who
//! queued them). Owners' functions have constraints checked before they return, but code may defer again. Nothing in SQL
//! shows what waits; so [`Deferred`] refuses what could.

use tokio_postgres::Client;

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::error;

/// Begins a transaction in a session that owners' functions have used.
pub const BEGIN: &str = "reset all; deallocate all; begin isolation level read committed read write";

/// Settings as the session began with, whatever a function set. A utility command: no setting changes its meaning.
///
/// # Errors
/// As the session has them.
pub async fn reset(client: &Client) -> Result<()> {
    client.batch_execute("reset all").await.map_err(error)
}

/// Rows that this transaction has written to tables with triggers that can wait for COMMIT and run users' code: users'
/// own, and the recheck of a deferrable unique or exclusion constraint with expressions. The counts never go back, not
/// even with a savepoint; they may hold earlier transactions, so only differences mean something.
const WRITTEN: &str = "
select coalesce(pg_catalog.sum(n.n), 0)::bigint,
       coalesce(pg_catalog.string_agg(n.rel::pg_catalog.regclass::text, ', ') filter (where n.n > 0), '')
  from (select t.rel, pg_catalog.pg_stat_get_xact_tuples_inserted(t.rel) + pg_catalog.pg_stat_get_xact_tuples_updated(t.rel)
               + pg_catalog.pg_stat_get_xact_tuples_deleted(t.rel) as n
          from (select distinct t.tgrelid as rel from pg_catalog.pg_trigger t
                 where t.tgdeferrable and (not t.tgisinternal or exists (
                       select from pg_catalog.pg_constraint c join pg_catalog.pg_index i on i.indexrelid = c.conindid
                        where c.oid = t.tgconstraint and c.contype in ('u', 'x') and (i.indexprs is not null or i.indpred is not null)))) t) n";

/// Whether users' code could be waiting for the COMMIT of a transaction.
#[derive(Debug, Clone, Copy)]
pub struct Deferred {
    /// Whether the server runs it with the rights of whoever commits.
    watched: bool,
    seen: i64,
}

impl Deferred {
    /// Of a session, as far as it depends on the server.
    ///
    /// # Errors
    /// `ServerSetup` where the server counts no rows, which is what is looked at.
    pub async fn of_session(client: &Client) -> Result<Deferred> {
        const SERVER: &str = "select pg_catalog.current_setting('server_version_num')::int < 180000,
            pg_catalog.current_setting('track_counts')::bool";
        let row = client.query_typed_one(SERVER, &[]).await.map_err(error)?;
        let watched: bool = row.get(0);
        if watched && !row.get::<_, bool>(1) {
            return Err(Error::new(ErrorKind::ServerSetup, "track_counts is off on the server").with_hint(
                "set track_counts = on: without it code of users could run with the sidecar's rights before PostgreSQL 18",
            ));
        }
        Ok(Deferred { watched, seen: 0 })
    }

    /// What was written so far. The looks before and after owners' code may travel with it in one flight.
    ///
    /// # Errors
    /// As the session has them.
    pub async fn look(&self, client: &Client) -> Result<Seen> {
        match self.watched {
            true => written(client).await,
            false => Ok(Seen::default()),
        }
    }

    /// Takes what was written until now as settled.
    ///
    /// # Errors
    /// As the session has them.
    pub async fn settle(&mut self, client: &Client) -> Result<()> {
        self.seen = self.look(client).await?.rows;
        Ok(())
    }

    /// Refuses the transaction when anything was written since that could run users' code at COMMIT.
    ///
    /// # Errors
    /// `Apply` with SQLSTATE 42501.
    pub async fn check(&mut self, client: &Client) -> Result<()> {
        let now = self.look(client).await?;
        let before = std::mem::replace(&mut self.seen, now.rows);
        now.since(before)
    }
}

/// Rows written so far where users' code could wait for COMMIT, and to which tables.
#[derive(Debug, Default)]
pub struct Seen {
    pub rows: i64,
    tables: String,
}

impl Seen {
    /// Refuses what was written since `before` rows.
    ///
    /// # Errors
    /// `Apply` with SQLSTATE 42501.
    pub fn since(&self, before: i64) -> Result<()> {
        if self.rows == before {
            return Ok(());
        }
        let context =
            format!("rows were written to {}, where deferrable triggers can wait for COMMIT", self.tables);
        Err(Error::new(ErrorKind::Apply, context).with_sqlstate("42501").with_hint(
            "before PostgreSQL 18 they would run with the sidecar's rights: make them NOT DEFERRABLE, and such \
             constraints free of expressions",
        ))
    }
}

async fn written(client: &Client) -> Result<Seen> {
    let row = client.query_typed_one(WRITTEN, &[]).await.map_err(error)?;
    Ok(Seen { rows: row.get(0), tables: row.get(1) })
}
