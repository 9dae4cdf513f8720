//! The stream tables of a pipeline as the loop sees them.
//!
//! ```text
//!  catalog row ─▶ preparing ─▶ waiting ─▶ installing ─▶ active
//!                    │  ▲         (sources live)          │
//!                    ▼  └── again at ──── failed ◀────────┘
//!                   full            (backoff, or resumed)
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::prepare::Prepared;
use super::schedule::{Cadence, Due};
use crate::apply::TableForm;
use crate::apply::reconcile::Bag;
use crate::catalog::store::StreamTableRow;
use crate::dataflow::InstanceId;
use crate::plan::ViewId;

/// After this many failures in a row a stream table waits for somebody to resume it.
pub const SUSPEND_AFTER: i32 = 3;

pub struct View {
    pub row: StreamTableRow,
    pub state: State,
}

pub enum State {
    /// In the preparation that runs now.
    Preparing,
    /// Prepared; waits for its sources (and upstreams).
    Waiting(Box<Prepared>),
    /// In the dataflow; its whole answer comes with an epoch that is not applied yet.
    Installing {
        installed: Installed,
        stored: Option<Bag>,
        refresh: Option<i64>,
        /// When its reconcile began.
        since: Instant,
    },
    Active(Installed),
    /// Recomputed by PostgreSQL.
    Full {
        due: Due,
        running: bool,
    },
    /// Taken out; prepared again at `again` (`None`: not before it is resumed or altered).
    Failed {
        again: Option<Instant>,
    },
}

/// A view of the dataflow.
pub struct Installed {
    pub form: TableForm,
    pub instances: Vec<InstanceId>,
    pub upstreams: Vec<ViewId>,
    /// When its changes are written.
    pub cadence: Cadence,
    /// Storage tables of stream tables that are read as they are stored, because the dataflow did not go through them
    /// when this was planned.
    pub gates: Vec<u32>,
    /// Lines of its plan, in the order of a walk.
    pub operators: Vec<String>,
}

impl View {
    fn uses(&self, instance: InstanceId) -> bool {
        match &self.state {
            State::Waiting(p) => p.bindings.values().any(|b| b.instance == instance),
            State::Installing { installed, .. } | State::Active(installed) => {
                installed.instances.contains(&instance)
            }
            _ => false,
        }
    }
}

#[derive(Default)]
pub struct Views(pub BTreeMap<ViewId, View>);

impl Views {
    pub fn installed(&self, view: ViewId) -> Option<&Installed> {
        match &self.0.get(&view)?.state {
            State::Active(installed) | State::Installing { installed, .. } => Some(installed),
            _ => None,
        }
    }

    /// Views that read `view` through the dataflow (or will, once they have joined), and those that read them.
    pub fn downstream(&self, view: ViewId) -> Vec<ViewId> {
        let mut found = vec![view];
        let mut next = 0;
        while let Some(&upstream) = found.get(next) {
            next += 1;
            for id in self.0.keys() {
                let planned = match self.0.get(id).map(|v| &v.state) {
                    Some(State::Waiting(prepared)) => Some(&prepared.plan.upstreams),
                    _ => self.installed(*id).map(|i| &i.upstreams),
                };
                if planned.is_some_and(|upstreams| upstreams.contains(&upstream)) && !found.contains(id) {
                    found.push(*id);
                }
            }
        }
        found.remove(0);
        found
    }

    /// Views that `view` reads through the dataflow, and those that they read.
    pub fn upstream(&self, view: ViewId) -> Vec<ViewId> {
        let mut found = vec![view];
        let mut next = 0;
        while let Some(&reader) = found.get(next) {
            next += 1;
            for upstream in self.installed(reader).into_iter().flat_map(|i| &i.upstreams) {
                if !found.contains(upstream) {
                    found.push(*upstream);
                }
            }
        }
        found.remove(0);
        found
    }

    /// Views that are (or will soon be) maintained through the dataflow.
    pub fn incremental(&self) -> Vec<ViewId> {
        let through =
            |s: &State| matches!(s, State::Waiting(_) | State::Installing { .. } | State::Active(_));
        self.0.iter().filter(|(_, v)| through(&v.state)).map(|(id, _)| *id).collect()
    }

    /// Whether any view reads an instance.
    pub fn uses(&self, instance: InstanceId) -> bool {
        self.0.values().any(|v| v.uses(instance))
    }

    /// The views that read any of the instances.
    pub fn reading(&self, instances: &[InstanceId]) -> Vec<ViewId> {
        let reads = |v: &View| instances.iter().any(|i| v.uses(*i));
        self.0.iter().filter(|(_, v)| reads(v)).map(|(id, _)| *id).collect()
    }

    pub fn all_rows(&self) -> Vec<StreamTableRow> {
        self.0.values().map(|v| v.row.clone()).collect()
    }
}

/// When a failed stream table is tried again.
pub fn retry_at(errors: i32) -> Option<Instant> {
    (errors < SUSPEND_AFTER).then(|| retry_slowly(errors)).flatten()
}

/// As [`retry_at`] for what is never given up: up to a minute apart.
pub fn retry_slowly(errors: i32) -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(1 << errors.clamp(0, 6) as u32))
}
