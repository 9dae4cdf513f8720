//! Stream tables that PostgreSQL recomputes: at their schedule, or when somebody asks; written by difference (D13).

use std::time::{Duration, Instant};

use tokio_postgres::types::Type;

use super::engine::Engine;
use super::prepare::Event;
use super::requests::Request;
use super::schedule::{Cadence, Due};
use super::views::State;
use crate::apply::guarded::{self, Deferred};
use crate::apply::history::{self, Written};
use crate::apply::owned::{self, Function};
use crate::catalog::store::{self, StreamTableRow};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::{Purpose, Target, error};

/// How often a FULL stream table is recomputed without a schedule of its own.
const CALCULATED: Duration = Duration::from_secs(60);

/// And how often at most.
const SHORTEST: Duration = Duration::from_secs(1);

/// When a FULL stream table that was recomputed just now is due again.
fn next_due(schedule: &str) -> Result<Due> {
    Ok(match Cadence::parse(schedule)? {
        Cadence::Continuous => Cadence::Every(CALCULATED).next(),
        Cadence::Every(period) => Cadence::Every(period.max(SHORTEST)).next(),
        other => other.next(),
    })
}

impl Engine {
    /// A stream table is maintained by recomputation.
    pub fn becomes_full(&mut self, row: StreamTableRow) {
        let due = Due::now();
        let name = row.qualified();
        if let Some(view) = self.views.0.get_mut(&row.view) {
            view.state = State::Full { due, running: false };
        }
        tracing::info!(stream_table = %name, "recomputed by PostgreSQL (FULL)");
    }

    /// Starts what has been due for longest; one at a time.
    pub fn recompute_due(&mut self) {
        let busy = self.views.0.values().any(|v| matches!(v.state, State::Full { running: true, .. }));
        let overdue = |state: &State| match state {
            State::Full { due, .. } => due.overdue(),
            _ => None,
        };
        let due = self.views.0.iter().filter_map(|(id, v)| Some((overdue(&v.state)?, *id)));
        let (false, Some((_, id))) = (busy, due.max_by_key(|(overdue, _)| *overdue)) else { return };
        let (target, events) = (self.options.target.clone(), self.events_sender.clone());
        let (pipeline, generation) = (self.options.pipeline.clone(), self.lease.generation);
        let requests = std::mem::take(self.watched.full_requests.entry(id).or_default());
        if let Some(view) = self.views.0.get_mut(&id) {
            view.state = State::Full { due: Due::Never, running: true };
        }
        let (manual, counters) = (!requests.is_empty(), self.options.counters.clone());
        let schedule = self.views.0.get(&id).map(|v| v.row.schedule.clone()).unwrap_or_default();
        super::spawn(async move {
            let started = Instant::now();
            let outcome = recompute(&target, id, &pipeline, generation, (manual, &schedule)).await;
            if outcome.is_ok() {
                counters.refresh_took("FULL", started.elapsed());
            }
            let answer = super::repair::answer(&outcome);
            if let (false, Ok(client)) = (requests.is_empty(), target.connect(Purpose::Tool).await) {
                for (request, role) in &requests {
                    if let Err(e) = store::answer_owner(&client, *request, id, &answer, role.as_deref()).await
                    {
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
            Ok(written) => {
                let name = view.row.qualified();
                let rows = [written.inserted, written.updated, written.deleted];
                self.options.counters.refreshed(&name, "FULL", true);
                self.options.counters.rows(&name, rows);
                let due = next_due(&view.row.schedule)?;
                let asked = self.watched.full_requests.get(&id).is_some_and(|r| !r.is_empty());
                view.state = State::Full { due: if asked { Due::now() } else { due }, running: false };
                view.row.errors = 0;
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::LeaseHeld => Err(e),
            // Somebody ended the session of this recomputation; it concerns nobody else.
            Err(e) if e.kind() == ErrorKind::Connection && !self.control.is_closed() => {
                self.fail(id, Error::new(ErrorKind::Contention, e.context()).with_source(e)).await
            }
            Err(e) if e.kind() == ErrorKind::Connection => Err(e),
            Err(e) => self.fail(id, e).await,
        }
    }

    /// Somebody called `refresh_stream_table`: a FULL one is recomputed now, an incremental one only needs the frontier
    /// to pass.
    pub fn refresh_requested(&mut self, request: &Request) {
        let Some(id) = request.pgt_id else { return };
        let request = (request.request, request.role.clone());
        match self.views.0.get_mut(&id).map(|v| &mut v.state) {
            // Whoever waits already keeps his place.
            Some(State::Full { due, .. }) if due.has_come() => {}
            Some(State::Full { due, .. }) => *due = Due::now(),
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
    (manual, schedule): (bool, &str),
) -> Result<Written> {
    let mut client = target.connect_when_free(Purpose::Tool).await?;
    let initiated = if manual { "MANUAL" } else { "SCHEDULER" };
    let refresh = history::start(&*client, view, "FULL", None, initiated).await?;
    let outcome = async {
        // One recomputation of a stream table at a time, also across a take-over: the lock comes before the snapshot, so
        // whoever comes second sees what the first has written, and its fence the newer generation.
        const ALONE: &str = "select pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended('pgtrickle recompute ' || $1::bigint::text, 0))";
        client.execute(ALONE, &[&view]).await.map_err(error)?;
        client.batch_execute("begin isolation level repeatable read").await.map_err(error)?;
        const FENCE: &str = "select from pgtrickle.pgt_pipelines where pipeline = $1 and generation = $2";
        const OURS: &str = "select from pgtrickle.pgt_stream_tables
            where pgt_id = $1 and pipeline = $2 and refresh_mode = 'FULL'";
        if client.query_opt(FENCE, &[&pipeline, &generation]).await.map_err(error)?.is_none() {
            return Err(Error::new(ErrorKind::LeaseHeld, "another sidecar has taken over this pipeline"));
        }
        if client.query_opt(OURS, &[&view, &pipeline]).await.map_err(error)?.is_none() {
            return Err(Error::new(ErrorKind::Contention, "the stream table was moved to another pipeline or is maintained incrementally now"));
        }
        const SUSPENDED: &str =
            "select from pgtrickle.pgt_stream_tables where pgt_id = $1 and status = 'SUSPENDED'";
        if client.query_opt(SUSPENDED, &[&view]).await.map_err(error)?.is_some() {
            return Err(Error::new(ErrorKind::Contention, "the stream table was suspended meanwhile"));
        }
        let call = owned::statement(&client, Function::Recompute, view).await?;
        let mut deferred = Deferred::of_session(&client).await?;
        deferred.settle(&client).await?;
        let row = client.query_typed_one(&call, &[]).await.map_err(error)?;
        guarded::reset(&client).await?;
        deferred.check(&client).await?;
        let [inserted, updated, deleted] = owned::counts(Function::Recompute, view, row.get(0))?;
        // Never waits: whoever holds the row may wait for the query's view, which is locked here, and would be the one
        // whom the server ends as deadlocked.
        const FREE: &str = "select from pgtrickle.pgt_stream_tables where pgt_id = $1 for no key update nowait";
        client.query_typed(FREE, &[(&view, Type::INT8)]).await.map_err(error)?;
        store::recomputed(&*client, view, next_due(schedule)?.moment()).await?;
        client.batch_execute("commit").await.map_err(error)?;
        Ok(Written { inserted, updated, deleted })
    }
    .await;
    if outcome.is_err() && client.batch_execute("rollback").await.is_err() {
        // The session was ended; what happened is told by another one.
        client = target.connect_when_free(Purpose::Tool).await?;
    }
    if let Some(refresh) = refresh {
        let failure = outcome.as_ref().err().map(|e| (e.sqlstate().unwrap_or("XX000"), e.context()));
        let written = outcome.as_ref().ok().copied().unwrap_or_default();
        history::finish(&*client, refresh, written, failure).await?;
    }
    outcome
}
