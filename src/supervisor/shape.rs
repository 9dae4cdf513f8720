//! What changes rows or plans without a row change: the shape of a source, the foundations of a plan.
//!
//! Invariant: a source whose shape changed is read again before anything that reads it counts as up to date; the other
//! sources stay as they are, and stream tables that do not read it go on.

use std::collections::BTreeMap;
use std::time::Instant;

use super::diagnose;
use super::engine::Engine;
use super::validity;
use super::views::{State, View};
use crate::capture::{fingerprint, publication, writers};
use crate::catalog::behind::{self, Complete};
use crate::catalog::store;
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::{Difference, Observed, widen_xid};
use crate::plan::ViewId;

impl Engine {
    /// A plan whose foundations have changed is made anew, also where there was none.
    pub(super) async fn compare_validity(&mut self) -> Result<()> {
        let now = validity::read(&self.control, &self.options.pipeline, None).await?;
        let planned = |v: &View| match v.state {
            State::Waiting(_) | State::Installing { .. } | State::Active(_) => true,
            State::Full { running, .. } => !running && v.row.requested_mode == "AUTO",
            _ => false,
        };
        let changed: Vec<ViewId> = self
            .views
            .0
            .iter()
            .filter(|(id, v)| planned(v) && now.get(id) != self.watched.validity.get(id))
            .map(|(id, _)| *id)
            .collect();
        for id in &changed {
            let name = self.views.0.get(id).map(|v| v.row.qualified()).unwrap_or_default();
            tracing::info!(
                stream_table = %name,
                "its query, a function, a key, a generated column or the children of a table changed: planned again"
            );
        }
        self.prepare_anew(&changed)?;
        self.tell_behind().await
    }

    /// Takes views out and makes them due. Those that read them follow.
    pub(super) fn prepare_anew(&mut self, views: &[ViewId]) -> Result<()> {
        for id in views {
            self.leave(*id, Some(Instant::now()))?;
        }
        Ok(())
    }

    /// Up to where an active stream table is complete now.
    pub(super) fn complete_until(&self) -> Complete {
        Complete { frontier: self.frontier, data_time: self.watched.data_time }
    }

    /// Stream tables that are out of the dataflow for a while are not up to date with the frontier: their status says so.
    /// Where somebody's open transaction holds the row it can't; then `pgt_behind` says it, so that no frontier passes
    /// a stream table that is not there.
    pub(super) async fn tell_behind(&mut self) -> Result<()> {
        if !self.watched.known {
            return Ok(());
        }
        self.watched.untold = false;
        let mut behind = std::mem::take(&mut self.watched.behind);
        if self.watched.known_behind.is_none() {
            // What an earlier life could not tell.
            for (id, complete) in behind::read(&self.control, &self.options.pipeline).await? {
                behind.entry(id).or_insert(complete);
            }
        }
        // What has come back meanwhile is up to date; what comes back is not before its apply is there, whose status must
        // not be overwritten.
        let (mut out, mut installing) = (BTreeMap::new(), BTreeMap::new());
        for (id, complete) in behind {
            match self.views.0.get(&id).map(|v| &v.state) {
                Some(State::Failed { .. } | State::Preparing | State::Waiting(_)) => out.insert(id, complete),
                Some(State::Installing { .. }) => installing.insert(id, complete),
                Some(State::Active(_) | State::Full { .. }) | None => None,
            };
        }
        if !out.is_empty() {
            let untold = behind::tell(&self.control, &self.options.pipeline, &out).await?;
            out.retain(|id, _| untold.contains(id));
        }
        out.append(&mut installing);
        let known: Vec<ViewId> = out.keys().copied().collect();
        if self.watched.known_behind.as_ref() != Some(&known) {
            behind::note(&self.control, &self.options.pipeline, &out).await?;
            self.watched.known_behind = Some(known);
        }
        self.watched.behind = out;
        Ok(())
    }

    /// The stream has described a relation, perhaps in another way than before.
    pub(super) fn described(&mut self, relation: u32, observed: &Observed) -> Result<()> {
        let Some(source) = self.sources.layout(relation) else { return Ok(()) };
        let other = |name: &String| source.columns.iter().all(|c| c.name != *name);
        let harmless = |d: &Difference| match d {
            Difference::ColumnAdded(_) => true,
            Difference::ColumnRemoved(name) | Difference::ColumnType(name) => other(name),
            _ => false,
        };
        let same = match observed {
            Observed::New | Observed::Same => true,
            // What is held is as it was.
            Observed::Changed(differences) => differences.iter().all(harmless),
        };
        if same && !matches!(self.assembler.map(relation), Some(Err(_))) {
            return Ok(());
        }
        let context = format!("{} changed its shape", source.qualified());
        // What the snapshot of its reading shows, or will show, need not be followed.
        let xid = self.assembler.open_xid().map(|xid| widen_xid(xid, self.near));
        if xid.is_some_and(|xid| !self.sources.loses(relation, xid)) {
            return Ok(());
        }
        if self.preparing.is_some() || !self.settled {
            return Err(Error::new(ErrorKind::Identity, context));
        }
        tracing::info!(reason = context, "a source is read again");
        self.read_again(&[relation])
    }

    /// The error comes from what was altered or renamed since the catalog was last looked at: nothing is wrong.
    pub(super) async fn is_behind_catalog(&mut self, id: ViewId, e: &Error) -> Result<bool> {
        let Some(view) = self.views.0.get(&id) else { return Ok(false) };
        let Some((version, renamed)) = store::version(&self.control, id).await? else { return Ok(false) };
        let no_such_name = matches!(e.sqlstate(), Some("42P01" | "3F000"));
        Ok(version != view.row.version || renamed && no_such_name)
    }

    /// The functions of a stream table name it; its owner's own function makes them anew.
    pub(super) async fn follow_rename(&mut self, id: ViewId) -> Result<()> {
        if self.preparing.is_some() || matches!(self.views.0.get(&id), Some(v) if v.row.is_suspended()) {
            return Ok(());
        }
        match store::follow_rename(&self.control, id).await {
            Ok(()) => self.prepare_anew(&[id]),
            // Somebody is busy with it; seen again.
            Err(e) if e.kind() == ErrorKind::Contention => {
                tracing::debug!(stream_table = id, error = %e.for_logs(), "a rename is followed later");
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::Connection => Err(e),
            Err(e) => {
                let e = e.with_hint("call pgtrickle.resume_stream_table as its owner");
                match self.views.0.get(&id).map(|v| &v.state) {
                    Some(State::Failed { .. }) => Ok(()),
                    _ => self.take_out(id, e, self.complete_until()).await,
                }
            }
        }
    }

    /// Lets go of sources whose rows can't be trusted any more; whatever reads them is prepared anew.
    pub(super) fn read_again(&mut self, oids: &[u32]) -> Result<()> {
        let instances: Vec<_> = oids.iter().flat_map(|oid| self.sources.instances_of(*oid)).collect();
        let views = self.views.reading(&instances);
        self.prepare_anew(&views)?;
        for instance in instances {
            self.drop_instance(instance)?;
        }
        for oid in oids {
            self.watched.members.remove(oid);
        }
        Ok(())
    }

    pub(super) async fn compare_fingerprints(&mut self) -> Result<()> {
        let held: Vec<_> =
            self.sources.held().into_iter().filter(|(oid, _)| self.fingerprints.contains_key(oid)).collect();
        let now = fingerprint::read(&self.control, &held).await?;
        let published = publication::members(&self.control, self.lease.names.publication()).await?;
        let triggered = self.sources.triggered();
        let (mut changed, mut unpublished) = (Vec::new(), Vec::new());
        for (oid, _) in &held {
            let same =
                self.fingerprints.get(oid).zip(now.get(oid)).is_some_and(|(was, now)| !was.differs(now));
            let member = published.get(oid);
            let captured = triggered.iter().any(|(t, _)| t == oid)
                || member.is_some() && self.watched.members.get(oid).is_none_or(|was| Some(was) == member);
            if !same {
                changed.push(*oid);
            } else if !captured {
                unpublished.push(*oid);
            }
        }
        for oid in &changed {
            let name = self.sources.layout(*oid).map(|l| l.qualified()).unwrap_or_default();
            tracing::info!(source = name, "it changed its shape and is read again");
        }
        if !changed.is_empty() && !self.settled {
            return Err(Error::new(ErrorKind::Identity, "a source changed its shape"));
        }
        self.read_again(&changed)?;
        self.tell_behind().await?;
        self.check_triggers().await?;
        if !unpublished.is_empty() {
            return Err(diagnose::tell_unpublished(&self.control, &self.options, &unpublished).await?);
        }
        self.fingerprints.extend(now.into_iter().filter(|(oid, _)| !changed.contains(oid)));
        // Only after the comparison: a table that somebody took out must not come back unnoticed.
        if !self.stream.is_poll() && !std::mem::replace(&mut self.watched.shrunk, true) {
            let held = self.sources.held();
            let awaited = writers::awaited(&self.control, self.lease.names.publication()).await?;
            let wanted = |oid: &u32| held.iter().any(|(h, _)| h == oid) || awaited.contains(oid);
            let kept = published.into_keys();
            let kept: Vec<u32> =
                kept.filter(|oid| wanted(oid) && !triggered.iter().any(|(t, _)| t == oid)).collect();
            // In the loop nothing waits for an application's lock.
            self.watched.shrunk =
                publication::shrink(&self.control, self.lease.names.publication(), &kept).await?;
        }
        Ok(())
    }
}
