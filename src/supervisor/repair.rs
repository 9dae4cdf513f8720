//! Reconciling one stream table because somebody asks, and letting go of suspended ones.
//!
//! A repair is what a start does, for one stream table: it leaves the dataflow and comes back by difference; the answer
//! holds what was written. Invariant of a release: once `released_version` equals the `config_version` of a suspended
//! stream table, no apply of ours that contains it is under way, so what is written to it from then on stays.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde_json::{Value, json};

use super::engine::Engine;
use super::requests::Request;
use super::views::State;
use crate::apply::history::Written;
use crate::catalog::store::{self, Noted};
use crate::error::{Error, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::{Purpose, error};

/// Who waits for a repair.
#[derive(Default)]
pub(super) struct Repairs {
    waiting: BTreeMap<ViewId, Vec<(i64, Option<String>)>>,
    /// Stream tables whose reconcile began after the request.
    started: BTreeSet<ViewId>,
    /// Suspended stream tables at their `config_version`, with the number of applies when they had left the dataflow.
    leaving: BTreeMap<(ViewId, i64), u64>,
}

/// The answer to whoever asked for a repair or a recomputation.
pub(super) fn answer(outcome: &Result<Written>) -> Value {
    match outcome {
        Ok(w) => json!({"ok": true, "inserted": w.inserted, "updated": w.updated, "deleted": w.deleted}),
        Err(e) => failed(e),
    }
}

fn failed(e: &Error) -> Value {
    json!({"ok": false, "sqlstate": e.sqlstate(), "message": e.context(), "hint": e.hint()})
}

impl Engine {
    /// Somebody called `repair_stream_table`.
    pub fn repair_requested(&mut self, request: &Request) {
        let Some(id) = request.pgt_id else { return };
        if self.views.0.get(&id).is_some_and(|v| matches!(v.state, State::Full { .. })) {
            self.refresh_requested(request);
            return;
        }
        let waiter = (request.request, request.role.clone());
        self.watched.repairs.waiting.entry(id).or_default().push(waiter);
        // One that is under way has read the stored rows already.
        self.watched.repairs.started.remove(&id);
    }

    /// Takes stream tables out that are to be repaired, so that they are prepared again.
    pub fn begin_repairs(&mut self) -> Result<()> {
        let Engine { watched, views, .. } = &mut *self;
        watched.repairs.waiting.retain(|id, _| views.0.contains_key(id));
        let due: Vec<ViewId> = watched
            .repairs
            .waiting
            .keys()
            .filter(|id| !watched.repairs.started.contains(id))
            .filter(|id| {
                let state = views.0.get(id).map(|v| &v.state);
                matches!(state, Some(State::Active(_) | State::Failed { again: Some(_) }))
            })
            .copied()
            .collect();
        for id in due {
            self.watched.repairs.started.insert(id);
            self.remove(id)?;
            self.set_failed(id, Some(Instant::now()));
        }
        Ok(())
    }

    /// A stream table was reconciled, or failed: whoever waited for its repair is told.
    pub fn tell_repaired(&mut self, id: ViewId, outcome: std::result::Result<Written, &Error>) {
        if !self.watched.repairs.started.remove(&id) {
            return;
        }
        let waiting = self.watched.repairs.waiting.remove(&id).unwrap_or_default();
        let content = match outcome {
            Ok(written) => answer(&Ok(written)),
            Err(e) => failed(e),
        };
        let target = self.options.target.clone();
        super::spawn(async move {
            let told = async {
                let client = target.connect_when_free(Purpose::Tool).await?;
                for (request, role) in &waiting {
                    store::answer_owner(&client, *request, id, &content, role.as_deref()).await?;
                }
                Ok::<(), Error>(())
            };
            if let Err(e) = told.await {
                // The caller decides by its timeout.
                tracing::warn!(error = %e, "a repair could not be answered");
            }
        });
    }

    /// Stores the failures that could not be stored before, of stream tables that are still out.
    pub async fn save_failures(&mut self) -> Result<()> {
        for (id, (status, e, complete)) in std::mem::take(&mut self.watched.unsaved) {
            let out = self.views.0.get(&id).is_some_and(|v| matches!(v.state, State::Failed { .. }));
            if out && store::fail(&self.control, id, status, &e, complete).await? == Noted::Locked {
                self.watched.unsaved.insert(id, (status, e, complete));
            }
        }
        Ok(())
    }

    /// Stores for each suspended stream table that it has been let go of.
    pub async fn release_suspended(&mut self) -> Result<()> {
        if !self.views.0.values().any(|v| v.row.is_suspended()) {
            return Ok(());
        }
        const HELD: &str = "select pgt_id, config_version from pgtrickle.pgt_stream_tables
            where pipeline = $1 and status = 'SUSPENDED' and released_version is distinct from config_version";
        let rows = self.control.query(HELD, &[&self.options.pipeline]).await.map_err(error)?;
        for row in rows {
            let (id, version): (ViewId, i64) = (row.get(0), row.get(1));
            let out = self.views.0.get(&id).is_some_and(|v| {
                matches!(v.state, State::Failed { again: None })
                    && v.row.is_suspended()
                    && v.row.version == version
            });
            if !out {
                continue;
            }
            // The apply that was under way when it left must have ended.
            let applies = self.watched.applies;
            let noticed = *self.watched.repairs.leaving.entry((id, version)).or_insert(applies);
            if self.applying.is_some() && noticed == applies {
                continue;
            }
            self.watched.repairs.leaving.remove(&(id, version));
            const RELEASE: &str = "update pgtrickle.pgt_stream_tables set released_version = $2
                where pgt_id = (select pgt_id from pgtrickle.pgt_stream_tables
                    where pgt_id = $1 and config_version = $2 and status = 'SUSPENDED' for no key update skip locked)";
            self.control.execute(RELEASE, &[&id, &version]).await.map_err(error)?;
        }
        Ok(())
    }
}
