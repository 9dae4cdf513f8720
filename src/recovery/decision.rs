//! The decision table: rows are tried in order, the first that applies decides.

/// What was stored in the apply transaction of the last life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    pub system_identifier: String,
    pub timeline: i32,
    pub database_oid: i64,
    pub database_name: String,
    /// `None`: nothing was ever applied.
    pub frontier: Option<u64>,
    /// The last life received changes by polling change buffers.
    pub polled: bool,
    pub publication_oid: Option<u32>,
}

/// Our slot's row in `pg_replication_slots`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotFacts {
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub active: bool,
    pub wal_status: Option<String>,
    pub invalidation: Option<String>,
    pub conflicting: bool,
    pub restart: Option<u64>,
    pub confirmed: Option<u64>,
    /// Came from the primary by slot synchronization (17+).
    pub synced: bool,
    pub failover: bool,
}

/// Everything the decision depends on; positions are bytes in the WAL, all read on one connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    pub in_recovery: bool,
    /// Another session holds the pipeline's lease.
    pub lease_held: bool,
    pub stored: Option<Stored>,
    pub system_identifier: String,
    pub timeline: i32,
    pub database_oid: i64,
    pub database_name: String,
    pub current: u64,
    pub major: u32,
    pub slot: Option<SlotFacts>,
    pub publication_oid: Option<u32>,
    /// Why this server or role can't stream at all (`wal_level`, REPLICATION ...).
    pub cannot_stream: Option<String>,
    /// Positions of a slot that survived a promotion are trusted (Patroni, pg_failover_slots).
    pub trust_slot_across_timelines: bool,
    /// Our policy gave the slot up because it retained too much WAL.
    pub shed: bool,
    /// The server refused to stream from the slot several times in a row.
    pub stream_refused: bool,
    /// The pipeline is not to use a slot (`cdc_mode = trigger`).
    pub triggers_wanted: bool,
}

/// What is the matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Diagnosis {
    Standby,
    SecondSidecar,
    FirstStart,
    OtherCluster,
    CopiedDatabase,
    NameTaken,
    SlotActive,
    WalImpossible,
    TriggersWanted,
    Polled,
    SlotInvalidated,
    SlotMissing,
    HistoryWentBack,
    SlotBeyondWal,
    SlotMoved,
    PublicationLost,
    StreamRefused,
    SlotShed,
    Failover,
    TimelineChanged,
    Normal,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Not a place to work; look again later.
    Wait,
    /// Somebody else is at work; never terminate what is not ours.
    Refuse,
    /// Start with nothing: slot, hydration.
    Bootstrap,
    /// The stored positions belong to another server: new identity, the slot of the other one is left alone.
    NewIdentity,
    /// The positions do not prove that nothing is missing: drop our slot, capture by triggers, reconcile, return.
    Rebuild,
    /// No slot can be had (or is wanted): capture by triggers.
    Triggers,
    /// Stream from the frontier, skip commits at or below it.
    Resume,
}

impl Diagnosis {
    /// Stable code for `pgt_recoveries`, logs and runbooks.
    pub fn code(self) -> &'static str {
        use Diagnosis::*;
        match self {
            Standby => "STANDBY",
            SecondSidecar => "SECOND_SIDECAR",
            FirstStart => "FIRST_START",
            OtherCluster => "OTHER_CLUSTER",
            CopiedDatabase => "COPIED_DATABASE",
            NameTaken => "NAME_TAKEN",
            SlotActive => "SLOT_ACTIVE",
            WalImpossible => "WAL_IMPOSSIBLE",
            TriggersWanted => "TRIGGERS_WANTED",
            Polled => "POLLED",
            SlotInvalidated => "SLOT_INVALIDATED",
            SlotMissing => "SLOT_MISSING",
            HistoryWentBack => "HISTORY_WENT_BACK",
            SlotBeyondWal => "SLOT_BEYOND_WAL",
            SlotMoved => "SLOT_MOVED",
            PublicationLost => "PUBLICATION_LOST",
            StreamRefused => "STREAM_REFUSED",
            SlotShed => "SLOT_SHED",
            Failover => "FAILOVER",
            TimelineChanged => "TIMELINE_CHANGED",
            Normal => "NORMAL",
        }
    }

    /// The cause in words, for WARNINGs.
    pub fn cause(self) -> &'static str {
        use Diagnosis::*;
        match self {
            Standby => "the server is a standby",
            SecondSidecar => "another sidecar serves this pipeline",
            FirstStart => "the pipeline starts for the first time",
            OtherCluster => "the database was restored into another cluster, or upgraded",
            CopiedDatabase => "the database is a copy beside the original",
            NameTaken => "a replication slot with our name belongs to something else",
            SlotActive => "the replication slot is in use",
            WalImpossible => "the WAL cannot be streamed from this server",
            TriggersWanted => "capture by triggers was asked for",
            Polled => "changes were captured by triggers before",
            SlotInvalidated => "the replication slot was invalidated by the server",
            SlotMissing => "the replication slot is gone",
            HistoryWentBack => {
                "the server is at an earlier position than the stream tables (it was restored)"
            }
            SlotBeyondWal => "the replication slot points beyond the server's WAL",
            SlotMoved => "the replication slot was moved without us",
            PublicationLost => "the publication was dropped or made anew",
            StreamRefused => "the server can't decode from the replication slot's position",
            SlotShed => "the replication slot retained too much WAL and was given up",
            Failover => "the server was promoted, and the slot came with it",
            TimelineChanged => {
                "the server was promoted or restored, and the slot's position can't be trusted"
            }
            Normal => "nothing is wrong",
        }
    }
}

/// A row of the table.
pub struct Rule {
    /// Number in the documentation.
    pub number: &'static str,
    pub diagnosis: Diagnosis,
    pub action: Action,
    /// Changes may have been missed: one WARNING per source.
    pub warns: bool,
    applies: fn(&Observation) -> bool,
}

fn stored(o: &Observation) -> Option<&Stored> {
    o.stored.as_ref().filter(|s| s.frontier.is_some())
}

fn frontier(o: &Observation) -> u64 {
    stored(o).and_then(|s| s.frontier).unwrap_or(0)
}

fn slot(o: &Observation, f: impl Fn(&SlotFacts) -> bool) -> bool {
    o.slot.as_ref().is_some_and(f)
}

/// The rows of the table in the order in which they are tried.
pub static RULES: &[Rule] = &[
    rule("0", Diagnosis::Standby, Action::Wait, false, |o| o.in_recovery),
    rule("1", Diagnosis::SecondSidecar, Action::Refuse, false, |o| o.lease_held),
    rule("2", Diagnosis::FirstStart, Action::Bootstrap, false, |o| {
        stored(o).is_none() && o.cannot_stream.is_none() && !o.triggers_wanted && o.slot.is_none()
    }),
    rule("3", Diagnosis::OtherCluster, Action::NewIdentity, true, |o| {
        stored(o).is_some_and(|s| s.system_identifier != o.system_identifier)
    }),
    rule("4", Diagnosis::CopiedDatabase, Action::NewIdentity, true, |o| {
        stored(o).is_some_and(|s| s.database_oid != o.database_oid)
    }),
    rule("6", Diagnosis::NameTaken, Action::Refuse, false, |o| {
        slot(o, |s| {
            s.plugin.as_deref() != Some("pgoutput") || s.database.as_deref() != Some(&o.database_name)
        })
    }),
    rule("7", Diagnosis::SlotActive, Action::Refuse, false, |o| slot(o, |s| s.active)),
    rule("T", Diagnosis::TriggersWanted, Action::Triggers, false, |o| o.triggers_wanted),
    rule("L", Diagnosis::WalImpossible, Action::Triggers, true, |o| o.cannot_stream.is_some()),
    rule("D15", Diagnosis::SlotShed, Action::Rebuild, true, |o| o.shed),
    rule("P", Diagnosis::Polled, Action::Triggers, false, |o| stored(o).is_some_and(|s| s.polled)),
    rule("8", Diagnosis::SlotInvalidated, Action::Rebuild, true, |o| {
        slot(o, |s| {
            s.wal_status.as_deref() == Some("lost")
                || s.invalidation.is_some()
                || s.conflicting
                || s.restart.is_none()
                || s.confirmed.is_none()
        })
    }),
    rule("9", Diagnosis::SlotMissing, Action::Rebuild, true, |o| o.slot.is_none()),
    rule("10", Diagnosis::HistoryWentBack, Action::Rebuild, true, |o| frontier(o) > o.current),
    rule("11", Diagnosis::SlotBeyondWal, Action::Rebuild, true, |o| {
        slot(o, |s| s.confirmed.is_some_and(|c| c > o.current))
    }),
    rule("12", Diagnosis::SlotMoved, Action::Rebuild, true, |o| {
        slot(o, |s| s.confirmed.is_some_and(|c| c > frontier(o)))
    }),
    rule("R", Diagnosis::StreamRefused, Action::Rebuild, true, |o| o.stream_refused),
    rule("13a", Diagnosis::Failover, Action::Resume, false, |o| {
        stored(o).is_some_and(|s| s.timeline != o.timeline)
            && (o.trust_slot_across_timelines || o.major >= 17 && slot(o, |s| s.synced && s.failover))
    }),
    rule("13b", Diagnosis::TimelineChanged, Action::Rebuild, true, |o| {
        stored(o).is_some_and(|s| s.timeline != o.timeline)
    }),
    rule("14", Diagnosis::PublicationLost, Action::Rebuild, true, |o| {
        o.publication_oid.is_none()
            || stored(o)
                .is_some_and(|s| s.publication_oid.is_some() && s.publication_oid != o.publication_oid)
    }),
    rule("15", Diagnosis::Normal, Action::Resume, false, |_| true),
];

const fn rule(
    number: &'static str,
    diagnosis: Diagnosis,
    action: Action,
    warns: bool,
    applies: fn(&Observation) -> bool,
) -> Rule {
    Rule { number, diagnosis, action, warns, applies }
}

/// The row that decides. Row 5 (another database name, everything else the same) needs no decision: the name is stored
/// anew at each start.
pub fn decide(observation: &Observation) -> &'static Rule {
    // The last row always applies.
    RULES.iter().find(|r| (r.applies)(observation)).unwrap_or(&RULES[RULES.len() - 1])
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;
