//! Partitions and children that come and go: noticed by the apply transaction, before a frontier is stored past them.
//!
//! The timers of `watch.rs` notice them as well, on a database where nothing is applied.

use std::time::Instant;

use tracing::Instrument;

use super::engine::{Applying, Engine};
use super::feed::Step;
use super::trace;
use super::views::State;
use crate::apply::writer::Note;
use crate::capture::hierarchy::Hierarchies;
use crate::error::Result;
use crate::plan::ViewId;

impl Engine {
    /// Before an apply that new stream tables join: from now on their sources are watched, too.
    pub(super) async fn watch_hierarchies(&mut self) -> Result<()> {
        if !self.hierarchies_stale || self.pending.is_none() || self.applying.is_some() {
            return Ok(());
        }
        self.adopt_hierarchies().await
    }

    /// Takes the children that there are now as those that the plans know; plans that know others are made anew. Read
    /// before the plans are compared, so what changes in between is noticed by the next apply.
    async fn adopt_hierarchies(&mut self) -> Result<()> {
        let now = Hierarchies::read(&self.control, &self.options.pipeline).await?;
        self.compare_validity().await?;
        if let Some(writer) = &mut self.writer {
            writer.watch(now);
            self.hierarchies_stale = false;
        }
        Ok(())
    }

    /// An apply was given up because children of a source came or went: what reads it leaves, the rest is applied.
    pub(super) async fn hierarchies_moved(&mut self, mut step: Step) -> Result<()> {
        tracing::info!("children of a source came or went: what reads it is read again");
        self.adopt_hierarchies().await?;
        let here = |id: &ViewId| self.views.installed(*id).is_some();
        step.batches.retain(|(id, _)| here(id));
        step.broken.retain(|(id, _)| here(id));
        step.progress.scheduled.retain(|s| here(&s.view));
        step.notes.retain(|Note::Installed { view, .. }| {
            self.views.0.get(view).is_some_and(|v| matches!(v.state, State::Installing { .. }))
        });
        self.write(step);
        Ok(())
    }

    /// Starts the transaction of one step.
    pub(super) fn write(&mut self, step: Step) {
        let Some(mut writer) = self.writer.take() else { return };
        let progress = step.progress.clone();
        let installed = step.notes.iter().map(|Note::Installed { view, .. }| *view).collect();
        let span = trace::apply(&step.traced);
        let task = super::spawn(async move {
            let apply = writer.apply(&step.progress, &step.batches, &step.notes, false);
            let outcome = apply.instrument(span).await;
            (writer, outcome, step)
        });
        self.applying = Some(Applying { task, progress, installed, started: Instant::now() });
    }
}
