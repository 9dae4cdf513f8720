//! Whether the server still knows the loop's session. A proxy may acknowledge what a dead server never answers: then the
//! session waits for ever, and with it everything that would notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{Purpose, Target, error};

/// How often the loop is looked at.
const LOOK: Duration = Duration::from_secs(15);
/// How long one turn of the loop may take before the server is asked about its session.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may wait while the server says that it has nothing to do for it: an answer was lost.
const UNANSWERED: Duration = Duration::from_secs(180);
/// How long the server may take to say so.
const ANSWER: Duration = Duration::from_secs(30);

/// The session of a pipeline, as the server knows it.
#[derive(Clone)]
pub(super) struct Known {
    target: Target,
    backend: i32,
    started: chrono::DateTime<chrono::Utc>,
}

impl Known {
    pub async fn of(client: &Client, target: &Target) -> Result<Known> {
        const SQL: &str = "select a.pid, a.backend_start from pg_catalog.pg_stat_activity a
            where a.pid = pg_catalog.pg_backend_pid()";
        let row = client.query_one(SQL, &[]).await.map_err(error)?;
        Ok(Known { target: target.clone(), backend: row.get(0), started: row.get(1) })
    }

    /// What the server does for the session; `None`: it has no such session any more.
    async fn state(&self) -> Result<Option<String>> {
        const SQL: &str = "select coalesce(a.state, '') from pg_catalog.pg_stat_activity a
            where a.pid = $1 and a.backend_start = $2";
        let client = self.target.connect(Purpose::Tool).await?;
        let row = client.query_opt(SQL, &[&self.backend, &self.started]).await.map_err(error)?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Ends when the session waits in vain. `turns` counts those of the loop that uses it; without it only a session that
    /// is gone, or a server that does not answer at all, says so.
    pub async fn lost(&self, turns: Option<Arc<AtomicU64>>) -> Error {
        let lost = |because: &str| {
            Error::new(ErrorKind::Connection, format!("the session waits in vain: {because}"))
        };
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            tokio::time::sleep(LOOK).await;
            let now = turns.as_ref().map(|t| t.load(Ordering::Relaxed));
            if now.is_some() && now != seen {
                (seen, since) = (now, Instant::now());
            }
            if since.elapsed() < PATIENCE {
                continue;
            }
            match tokio::time::timeout(ANSWER, self.state()).await {
                Err(_) => return lost("the server does not answer"),
                Ok(Ok(None)) => return lost("the server has ended it, and nobody said so"),
                Ok(Ok(Some(state))) => {
                    if turns.is_some() && state == "idle" && since.elapsed() > UNANSWERED {
                        return lost("an answer of the server was lost");
                    }
                }
                // Without a state of its own: nobody answered.
                Ok(Err(e)) if e.kind() == ErrorKind::Connection && e.sqlstate().is_none() => {
                    return lost("the server can't be reached").with_source(e);
                }
                Ok(Err(e)) => tracing::debug!(error = %e, "the session could not be looked at"),
            }
        }
    }
}
