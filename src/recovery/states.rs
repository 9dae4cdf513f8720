//! The states of a source's capture, as a table.
//!
//! Durable states are those of `pgt_sources.capture`; a crash finds the source in the last durable one, and every start
//! reconciles, so no transition needs to be undone.

use std::fmt::Write;

/// How a source's changes are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capture {
    Trigger,
    /// By triggers, while the slot and the publication are being made ready.
    Transitioning,
    Wal,
}

/// What moves a source from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateEvent {
    /// First use, and the WAL can be had.
    StartedOnWal,
    /// First use, and the WAL can't be had (or is not wanted).
    StartedOnTriggers,
    /// The slot, the publication or the right to them was lost, or the policy gave the slot up.
    WalLost,
    /// `cdc_mode = trigger` was asked for.
    TriggersWanted,
    /// The cause is gone: the slot is made.
    WalPossible,
    /// The slot could not be made ready.
    HandoverFailed,
    /// One snapshot separates what was polled from what is streamed.
    HandedOver,
}

/// A row of the table.
pub struct Transition {
    /// `None`: the source was not captured before.
    pub from: Option<Capture>,
    pub event: StateEvent,
    pub to: Capture,
    /// It is stored before the capture counts on it.
    pub durable: bool,
    pub note: &'static str,
}

/// All transitions.
pub static TRANSITIONS: &[Transition] = &[
    row(
        None,
        StateEvent::StartedOnWal,
        Capture::Wal,
        "the table joins the publication; writers that were there before are waited for",
    ),
    row(
        None,
        StateEvent::StartedOnTriggers,
        Capture::Trigger,
        "triggers are installed under a lock that ends earlier writers",
    ),
    row(
        Some(Capture::Wal),
        StateEvent::WalLost,
        Capture::Trigger,
        "one WARNING; triggers, then reconcile by difference",
    ),
    row(
        Some(Capture::Wal),
        StateEvent::TriggersWanted,
        Capture::Trigger,
        "triggers, then reconcile by difference",
    ),
    row(
        Some(Capture::Trigger),
        StateEvent::WalPossible,
        Capture::Transitioning,
        "slot and publication are made while triggers go on",
    ),
    row(Some(Capture::Transitioning), StateEvent::HandoverFailed, Capture::Trigger, "tried again later"),
    row(Some(Capture::Transitioning), StateEvent::WalLost, Capture::Trigger, "the new slot is gone again"),
    row(
        Some(Capture::Transitioning),
        StateEvent::HandedOver,
        Capture::Wal,
        "what the snapshot shows was polled, the rest is streamed; triggers are dropped",
    ),
];

const fn row(from: Option<Capture>, event: StateEvent, to: Capture, note: &'static str) -> Transition {
    Transition { from, event, to, durable: true, note }
}

impl Capture {
    /// As in `pgt_sources.capture`.
    pub fn name(self) -> &'static str {
        match self {
            Capture::Trigger => "trigger",
            Capture::Transitioning => "transitioning",
            Capture::Wal => "wal",
        }
    }

    pub fn from_name(name: &str) -> Option<Capture> {
        [Capture::Trigger, Capture::Transitioning, Capture::Wal].into_iter().find(|c| c.name() == name)
    }

    /// Where an event leads; `None`: it does not concern a source in this state.
    pub fn after(from: Option<Capture>, event: StateEvent) -> Option<Capture> {
        TRANSITIONS.iter().find(|t| t.from == from && t.event == event).map(|t| t.to)
    }
}

/// The table as a mermaid diagram, for the documentation.
pub fn diagram() -> String {
    let mut text = "stateDiagram-v2\n".to_owned();
    for t in TRANSITIONS {
        let from = t.from.map_or("[*]", Capture::name);
        // Writing to a String never fails.
        let _ = writeln!(text, "    {from} --> {}: {:?}", t.to.name(), t.event);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_leads_to_one_state_and_every_state_has_a_way_to_wal() {
        for (i, a) in TRANSITIONS.iter().enumerate() {
            assert!(
                !TRANSITIONS[..i].iter().any(|b| a.from == b.from && a.event == b.event),
                "{:?}",
                a.event
            );
        }
        let from_trigger = Capture::after(Some(Capture::Trigger), StateEvent::WalPossible);
        assert_eq!(Capture::after(from_trigger, StateEvent::HandedOver), Some(Capture::Wal));
        assert_eq!(Capture::after(Some(Capture::Wal), StateEvent::HandedOver), None);
    }

    #[test]
    fn the_diagram_in_the_documentation_is_this_table() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/architecture.md")).unwrap();
        assert!(page.contains(&diagram()), "docs/architecture.md should contain:\n{}", diagram());
    }

    #[test]
    fn names_are_those_of_the_catalog() {
        for state in [Capture::Trigger, Capture::Transitioning, Capture::Wal] {
            assert_eq!(Capture::from_name(state.name()), Some(state));
        }
    }
}
