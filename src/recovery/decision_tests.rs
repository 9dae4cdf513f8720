//! One test per row of the table; each changes one thing of a healthy observation.

use super::*;

fn healthy() -> Observation {
    Observation {
        stored: Some(Stored {
            system_identifier: "7".into(),
            timeline: 1,
            database_oid: 16384,
            database_name: "shop".into(),
            frontier: Some(500),
            polled: false,
            publication_oid: Some(20000),
        }),
        system_identifier: "7".into(),
        timeline: 1,
        database_oid: 16384,
        database_name: "shop".into(),
        current: 900,
        major: 18,
        slot: Some(SlotFacts {
            plugin: Some("pgoutput".into()),
            database: Some("shop".into()),
            wal_status: Some("reserved".into()),
            restart: Some(400),
            confirmed: Some(500),
            ..SlotFacts::default()
        }),
        publication_oid: Some(20000),
        ..Observation::default()
    }
}

fn with(change: impl FnOnce(&mut Observation)) -> (&'static str, Action) {
    let mut observation = healthy();
    change(&mut observation);
    let rule = decide(&observation);
    (rule.number, rule.action)
}

fn slot(o: &mut Observation) -> &mut SlotFacts {
    o.slot.as_mut().unwrap()
}

fn stored(o: &mut Observation) -> &mut Stored {
    o.stored.as_mut().unwrap()
}

#[test]
fn row_0_a_standby_waits() {
    assert_eq!(with(|o| o.in_recovery = true), ("0", Action::Wait));
}

#[test]
fn row_1_a_second_sidecar_is_refused() {
    assert_eq!(with(|o| o.lease_held = true), ("1", Action::Refuse));
}

#[test]
fn row_2_a_first_start_bootstraps() {
    assert_eq!(with(|o| (o.stored, o.slot) = (None, None)), ("2", Action::Bootstrap));
    assert_eq!(with(|o| (stored(o).frontier, o.slot) = (None, None)), ("2", Action::Bootstrap));
    // A slot of our name without any stored frontier was not made by a life of ours that applied something.
    assert_eq!(with(|o| stored(o).frontier = None).1, Action::Rebuild);
}

#[test]
fn row_3_another_cluster_gets_a_new_identity() {
    assert_eq!(with(|o| o.system_identifier = "8".into()), ("3", Action::NewIdentity));
    // OIDs and LSNs prove nothing there.
    let same_numbers = |o: &mut Observation| (o.system_identifier, o.slot) = ("8".into(), None);
    assert_eq!(with(same_numbers), ("3", Action::NewIdentity));
}

#[test]
fn row_4_a_copy_beside_the_original_gets_a_new_identity() {
    assert_eq!(with(|o| o.database_oid = 16999), ("4", Action::NewIdentity));
}

#[test]
fn row_5_a_renamed_database_goes_on() {
    assert_eq!(with(|o| stored(o).database_name = "old".into()), ("15", Action::Resume));
}

#[test]
fn row_6_a_slot_that_is_not_ours_is_left_alone() {
    assert_eq!(with(|o| slot(o).database = Some("other".into())), ("6", Action::Refuse));
    assert_eq!(with(|o| slot(o).plugin = None), ("6", Action::Refuse));
    assert_eq!(with(|o| slot(o).plugin = Some("wal2json".into())), ("6", Action::Refuse));
}

#[test]
fn row_7_an_active_slot_is_never_taken() {
    assert_eq!(with(|o| slot(o).active = true), ("7", Action::Refuse));
}

#[test]
fn row_8_an_invalidated_slot_is_rebuilt() {
    let rebuild = ("8", Action::Rebuild);
    assert_eq!(with(|o| slot(o).wal_status = Some("lost".into())), rebuild);
    assert_eq!(with(|o| slot(o).invalidation = Some("idle_timeout".into())), rebuild);
    assert_eq!(with(|o| slot(o).conflicting = true), rebuild);
    assert_eq!(with(|o| slot(o).restart = None), rebuild);
    assert_eq!(with(|o| slot(o).confirmed = None), rebuild);
}

#[test]
fn row_9_a_missing_slot_is_rebuilt() {
    assert_eq!(with(|o| o.slot = None), ("9", Action::Rebuild));
}

#[test]
fn row_10_a_frontier_beyond_the_wal_means_that_history_went_back() {
    assert_eq!(with(|o| (o.current, slot(o).confirmed) = (499, Some(400))), ("10", Action::Rebuild));
}

#[test]
fn row_11_a_slot_beyond_the_wal_is_poisoned() {
    assert_eq!(with(|o| slot(o).confirmed = Some(901)), ("11", Action::Rebuild));
}

#[test]
fn row_12_a_slot_ahead_of_the_frontier_has_skipped_changes() {
    assert_eq!(with(|o| slot(o).confirmed = Some(501)), ("12", Action::Rebuild));
}

#[test]
fn row_13_a_promotion_is_followed_only_with_a_slot_that_was_synchronized() {
    let promoted = |o: &mut Observation| o.timeline = 2;
    assert_eq!(with(promoted), ("13b", Action::Rebuild));
    let synced = |o: &mut Observation| {
        o.timeline = 2;
        (slot(o).synced, slot(o).failover) = (true, true);
    };
    assert_eq!(with(synced), ("13a", Action::Resume));
    let older = |o: &mut Observation| {
        synced(o);
        o.major = 16;
    };
    assert_eq!(with(older), ("13b", Action::Rebuild));
    let trusted = |o: &mut Observation| (o.timeline, o.trust_slot_across_timelines) = (2, true);
    assert_eq!(with(trusted), ("13a", Action::Resume));
    // The synced slot may be ahead of the promoted database.
    let ahead = |o: &mut Observation| {
        synced(o);
        slot(o).confirmed = Some(600);
    };
    assert_eq!(with(ahead), ("12", Action::Rebuild));
}

#[test]
fn row_d15_a_slot_that_was_given_up_goes() {
    assert_eq!(with(|o| o.shed = true), ("D15", Action::Rebuild));
    // It went at once where nobody was there to start anew.
    let gone = |o: &mut Observation| (o.shed, o.slot) = (true, None);
    assert_eq!(with(gone), ("D15", Action::Rebuild));
}

#[test]
fn row_r_a_slot_that_the_server_refuses_to_decode_is_given_up() {
    assert_eq!(with(|o| o.stream_refused = true), ("R", Action::Rebuild));
}

#[test]
fn row_14_another_publication_means_missed_changes() {
    assert_eq!(with(|o| o.publication_oid = Some(20001)), ("14", Action::Rebuild));
    assert_eq!(with(|o| o.publication_oid = None), ("14", Action::Rebuild));
}

#[test]
fn row_15_everything_else_resumes() {
    assert_eq!(with(|_| ()), ("15", Action::Resume));
    // A crash lets the acknowledged position go back; a cold copy may bring an older slot.
    assert_eq!(with(|o| slot(o).confirmed = Some(300)), ("15", Action::Resume));
}

#[test]
fn rows_t_l_and_p_capture_by_triggers() {
    assert_eq!(with(|o| o.triggers_wanted = true), ("T", Action::Triggers));
    assert_eq!(with(|o| o.cannot_stream = Some("wal_level is replica".into())), ("L", Action::Triggers));
    assert_eq!(with(|o| (stored(o).polled, o.slot) = (true, None)), ("P", Action::Triggers));
    // Another server comes first: the buffers' transaction ids are foreign.
    let foreign = |o: &mut Observation| {
        stored(o).polled = true;
        o.system_identifier = "8".into();
    };
    assert_eq!(with(foreign), ("3", Action::NewIdentity));
}

#[test]
fn every_row_has_its_own_number_and_warns_exactly_where_changes_may_be_missing() {
    let mut numbers: Vec<&str> = RULES.iter().map(|r| r.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), RULES.len());
    for rule in RULES {
        let expected = matches!(rule.action, Action::Rebuild | Action::NewIdentity)
            || rule.diagnosis == Diagnosis::WalImpossible;
        assert_eq!(rule.warns, expected, "row {}", rule.number);
    }
}

#[test]
fn every_warning_has_an_entry_in_the_runbook() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbook.md")).unwrap();
    let own = ["TRIGGERS_LOST", "PUBLICATION_CHANGED"];
    for code in RULES.iter().filter(|r| r.warns).map(|r| r.diagnosis.code()).chain(own) {
        assert!(page.contains(&format!("\n## {code}\n")), "docs/runbook.md has no entry {code}");
    }
}
