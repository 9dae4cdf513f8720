//! What can be seen of the pipelines from outside: samples of the catalog and the slots, read by a session of their own.
//!
//! Purpose: numbers for `/metrics`, readiness and pages. Invariant: a sample is what the database says, with the moment it
//! was read; what could not be read is absent, never zero. Place in the data's way: beside it; nothing here is read back by
//! the engine.

pub mod metrics;
mod sample;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

pub use sample::{Incident, Sample, Slot, Source, StreamTable};

use crate::postgres::sessions::{Purpose, Target};

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time before the first one.
const FIRST: Duration = Duration::from_secs(1);
/// A sample is no basis for readiness any more.
const STALE: Duration = Duration::from_secs(30);

/// The last look at one pipeline.
#[derive(Debug, Clone)]
pub struct Look {
    pub taken: Instant,
    /// What was read, or why nothing could be.
    pub outcome: Result<Arc<Sample>, String>,
}

/// The last look at every pipeline that this process serves, by database and pipeline.
#[derive(Debug, Default)]
pub struct Observed {
    looks: Mutex<BTreeMap<(String, String), Look>>,
}

impl Observed {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Look>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of all looks.
    pub fn looks(&self) -> BTreeMap<(String, String), Look> {
        self.lock().clone()
    }

    /// Why the process is not ready to be relied on; empty if it is.
    pub fn obstacles(&self) -> Vec<String> {
        let looks = self.lock();
        let mut obstacles = Vec::new();
        if looks.is_empty() {
            obstacles.push("no database has been looked at yet".to_owned());
        }
        for ((database, pipeline), look) in looks.iter() {
            let name = format!("{database} ({pipeline})");
            match &look.outcome {
                Err(error) => obstacles.push(format!("{name}: {error}")),
                Ok(_) if look.taken.elapsed() > STALE => {
                    obstacles
                        .push(format!("{name}: the last look is {} s old", look.taken.elapsed().as_secs()));
                }
                Ok(sample) => {
                    obstacles.extend(sample.obstacles().into_iter().map(|o| format!("{name}: {o}")))
                }
            }
        }
        obstacles
    }

    /// Looks at a pipeline every few seconds until `shutdown`, then forgets it.
    pub async fn follow(self: Arc<Self>, target: Target, pipeline: String, shutdown: CancellationToken) {
        let key = (target.config().get_dbname().unwrap_or_default().to_owned(), pipeline);
        let mut session = None;
        // The start has its own words for a database that is not prepared.
        tokio::select! {
            () = tokio::time::sleep(FIRST) => {}
            () = shutdown.cancelled() => return,
        }
        loop {
            let outcome = look(&target, &key.1, &mut session).await;
            // Detached, nobody stays connected: the database is renamed, copied or dropped.
            if outcome.as_ref().map_or(true, |sample| sample.detached) {
                session = None;
            }
            self.lock().insert(key.clone(), Look { taken: Instant::now(), outcome });
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = shutdown.cancelled() => break,
            }
        }
        self.lock().remove(&key);
    }
}

async fn look(
    target: &Target,
    pipeline: &str,
    session: &mut Option<tokio_postgres::Client>,
) -> Result<Arc<Sample>, String> {
    let client = match session.take() {
        Some(client) => client,
        None => target.connect(Purpose::Monitor).await.map_err(|e| e.to_string())?,
    };
    let sample = sample::read(&client, pipeline).await.map_err(|e| e.to_string())?;
    *session = Some(client);
    Ok(Arc::new(sample))
}
