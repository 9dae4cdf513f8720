//! One look at a pipeline, on a session that is kept for the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Positions, Sample, sample};
use crate::postgres::sessions::{Purpose, Target, error};

/// A look may take so long; an answer later than this is none.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// A sample is no basis for anything any more.
const STALE: Duration = Duration::from_secs(30);

/// The last look at one pipeline.
#[derive(Debug, Clone)]
pub struct Look {
    pub taken: Instant,
    /// What was read, or why nothing could be.
    pub outcome: Result<Arc<Sample>, String>,
}

impl Look {
    /// What may be relied on: a look that is too old says nothing about now, however it ended.
    pub fn current(&self) -> Result<&Arc<Sample>, String> {
        let age = self.taken.elapsed();
        match &self.outcome {
            Ok(_) if age > STALE => Err(format!("the last look is {} s old", age.as_secs())),
            Ok(sample) => Ok(sample),
            Err(error) => Err(error.clone()),
        }
    }
}

/// The session at hand, or a new one. It is taken: a look that fails leaves none.
pub(super) async fn connected(
    target: &Target,
    session: &mut Option<crate::postgres::session::SqlSession>,
) -> Result<crate::postgres::session::SqlSession, String> {
    if let Some(client) = session.take() {
        return Ok(client);
    }
    let client = target.connect(Purpose::Monitor).await.map_err(|e| e.to_string())?;
    // Whoever only watches gives up before it becomes a burden.
    client.batch_execute("set statement_timeout = '10s'").await.map_err(|e| error(e).to_string())?;
    Ok(client)
}

pub(super) async fn look(
    target: &Target,
    pipeline: &str,
    positions: &Positions,
    session: &mut Option<crate::postgres::session::SqlSession>,
) -> Result<Arc<Sample>, String> {
    let read = async {
        let client = connected(target, session).await?;
        let mut sample = sample::read(&client, pipeline).await.map_err(|e| e.to_string())?;
        (sample.received_lsn, sample.decoded_lsn) = positions.texts();
        *session = Some(client);
        Ok(Arc::new(sample))
    };
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("the server did not answer within {} s", PATIENCE.as_secs())),
    }
}
