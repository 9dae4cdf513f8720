//! Stream tables that PostgreSQL recomputes: at their schedule, or when somebody asks; written by difference (D13).

use std::time::{Duration, Instant};

use super::engine::Engine;
use super::prepare::Event;
use super::requests::Request;
use super::views::State;
use crate::apply::history::{self, Written};
use crate::apply::owned::{self, Function};
use crate::catalog::store::{self, StreamTableRow};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::{Purpose, Target, error};

/// How often a FULL stream table is recomputed without a schedule of its own.
const CALCULATED: Duration = Duration::from_secs(60);

/// Time until a FULL stream table is due again; `None`: only on request.
pub fn period(schedule: &str) -> Option<Duration> {
    match schedule.trim() {
        "manual" => None,
        "calculated" | "" => Some(CALCULATED),
        text => match duration(text) {
            Some(period) => Some(period.max(Duration::from_secs(1))),
            None => Some(next_cron(text).unwrap_or(CALCULATED)),
        },
    }
}

/// `5s`, `1h30m`, `2 days`.
fn duration(text: &str) -> Option<Duration> {
    let (mut seconds, mut number, mut rest) = (0u64, String::new(), text.trim());
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        number.clear();
        number.push_str(&rest[..digits]);
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hr" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = rest[letters..].trim_start();
    }
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn next_cron(text: &str) -> Option<Duration> {
    use std::str::FromStr;
    let cron = croner::Cron::from_str(text).ok()?;
    let now = chrono::Utc::now();
    let next = cron.find_next_occurrence(&now, false).ok()?;
    (next - now).to_std().ok()
}

impl Engine {
    /// A stream table is maintained by recomputation.
    pub fn becomes_full(&mut self, row: StreamTableRow) {
        let due = Instant::now();
        let name = row.qualified();
        if let Some(view) = self.views.0.get_mut(&row.view) {
            view.state = State::Full { due, running: false };
        }
        tracing::info!(stream_table = %name, "recomputed by PostgreSQL (FULL)");
    }

    /// Starts what is due; one at a time.
    pub fn recompute_due(&mut self) {
        let busy = self.views.0.values().any(|v| matches!(v.state, State::Full { running: true, .. }));
        let now = Instant::now();
        let next =
            self.views.0.iter().find(|(_, v)| matches!(v.state, State::Full { due, .. } if due <= now));
        let (false, Some(id)) = (busy, next.map(|(id, _)| *id)) else { return };
        let (target, events) = (self.options.target.clone(), self.events_sender.clone());
        let (pipeline, generation) = (self.options.pipeline.clone(), self.lease.generation);
        let requests = std::mem::take(self.watched.full_requests.entry(id).or_default());
        if let Some(view) = self.views.0.get_mut(&id) {
            view.state = State::Full { due: now + Duration::from_secs(365 * 86_400), running: true };
        }
        let manual = !requests.is_empty();
        super::spawn(async move {
            let outcome = recompute(&target, id, &pipeline, generation, manual).await;
            let answer = super::repair::answer(&outcome);
            if let (false, Ok(client)) = (requests.is_empty(), target.connect(Purpose::Tool).await) {
                for (request, role) in &requests {
                    if let Err(e) = store::answer(&client, *request, &answer, role.as_deref()).await {
                        tracing::warn!(error = %e, "a refresh could not be answered");
                    }
                }
            }
            // The loop may have ended meanwhile.
            let _ = events.send(Event::Recomputed { view: id, outcome });
        });
    }

    pub async fn recomputed(&mut self, id: ViewId, outcome: Result<Written>) -> Result<()> {
        let Some(view) = self.views.0.get_mut(&id) else { return Ok(()) };
        if !matches!(view.state, State::Full { .. }) {
            return Ok(());
        }
        match outcome {
            Ok(_) => {
                let due = match period(&view.row.schedule) {
                    Some(period) => Instant::now() + period,
                    None => Instant::now() + Duration::from_secs(365 * 86_400),
                };
                let asked = self.watched.full_requests.get(&id).is_some_and(|r| !r.is_empty());
                view.state = State::Full { due: if asked { Instant::now() } else { due }, running: false };
                view.row.errors = 0;
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::LeaseHeld | ErrorKind::Connection) => Err(e),
            Err(e) => self.fail(id, e).await,
        }
    }

    /// Somebody called `refresh_stream_table`: a FULL one is recomputed now, an incremental one only needs the frontier
    /// to pass.
    pub fn refresh_requested(&mut self, request: &Request) {
        let Some(id) = request.pgt_id else { return };
        let request = (request.request, request.role.clone());
        match self.views.0.get_mut(&id).map(|v| &mut v.state) {
            Some(State::Full { due, .. }) => *due = Instant::now(),
            Some(State::Active(_) | State::Installing { .. } | State::Waiting(_)) => return,
            // Not decided yet: if it becomes FULL, its first recomputation answers.
            _ => {}
        }
        self.watched.full_requests.entry(id).or_default().push(request);
    }
}

/// One recomputation: one snapshot, one transaction, fenced by the generation.
async fn recompute(
    target: &Target,
    view: ViewId,
    pipeline: &str,
    generation: i64,
    manual: bool,
) -> Result<Written> {
    let client = target.connect(Purpose::Tool).await?;
    let initiated = if manual { "MANUAL" } else { "SCHEDULER" };
    let refresh = history::start(&client, view, "FULL", None, initiated).await?;
    let outcome = async {
        // One recomputation of a stream table at a time, also across a take-over: the lock comes before the snapshot, so
        // whoever comes second sees what the first has written, and its fence the newer generation.
        const ALONE: &str = "select pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended('pgtrickle recompute ' || $1::bigint::text, 0))";
        client.execute(ALONE, &[&view]).await.map_err(error)?;
        client.batch_execute("begin isolation level repeatable read").await.map_err(error)?;
        const FENCE: &str = "select from pgtrickle.pgt_pipelines where pipeline = $1 and generation = $2";
        if client.query_opt(FENCE, &[&pipeline, &generation]).await.map_err(error)?.is_none() {
            return Err(Error::new(ErrorKind::LeaseHeld, "another sidecar has taken over this pipeline"));
        }
        const SUSPENDED: &str =
            "select from pgtrickle.pgt_stream_tables where pgt_id = $1 and status = 'SUSPENDED'";
        if client.query_opt(SUSPENDED, &[&view]).await.map_err(error)?.is_some() {
            return Err(Error::new(ErrorKind::Contention, "the stream table was suspended meanwhile"));
        }
        let call = owned::statement(&client, Function::Recompute, view).await?;
        let row = client.query_one(&call, &[]).await.map_err(error)?;
        let [inserted, updated, deleted] = owned::counts(Function::Recompute, view, row.get(0))?;
        store::recomputed(&client, view).await?;
        client.batch_execute("commit").await.map_err(error)?;
        Ok(Written { inserted, updated, deleted })
    }
    .await;
    if outcome.is_err() {
        client.batch_execute("rollback").await.map_err(error)?;
    }
    if let Some(refresh) = refresh {
        let failure = outcome.as_ref().err().map(|e| (e.sqlstate().unwrap_or("XX000"), e.context()));
        let written = outcome.as_ref().ok().copied().unwrap_or_default();
        history::finish(&client, refresh, written, failure).await?;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_durations_cron_or_words() {
        assert_eq!(period("5s"), Some(Duration::from_secs(5)));
        assert_eq!(period("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(period("2 days"), Some(Duration::from_secs(172_800)));
        assert_eq!(period("manual"), None);
        assert!(period("*/5 * * * *").is_some_and(|p| p <= Duration::from_secs(300)));
    }
}
