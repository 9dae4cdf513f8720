use super::super::{Recent, ServerSlot, Slot, Source, StreamTable};
use super::*;

/// The heading of the runbook as a link anchor, as code hosts make it.
fn anchors() -> Vec<String> {
    let heading = |line: &str| {
        let text = line.strip_prefix("## ")?.to_lowercase();
        Some(
            text.chars()
                .filter(|c| c.is_alphanumeric() || " _-".contains(*c))
                .collect::<String>()
                .replace(' ', "-"),
        )
    };
    include_str!("../../docs/runbook.md").lines().filter_map(heading).collect()
}

fn healthy() -> Sample {
    Sample {
        sidecar_alive: true,
        delivery: Some("slot".to_owned()),
        wal_keep_bytes: Some(1 << 30),
        slot: Some(Slot {
            name: "s".to_owned(),
            active: true,
            wal_status: Some("reserved".to_owned()),
            retained_bytes: Some(1),
            warning_bytes: 100 << 20,
            critical_bytes: 1 << 30,
            ..Slot::default()
        }),
        stream_tables: vec![StreamTable {
            name: "a.t".to_owned(),
            status: "ACTIVE".to_owned(),
            ..StreamTable::default()
        }],
        sources: vec![Source {
            name: "a.s".to_owned(),
            capture: "wal".to_owned(),
            fallback_ready: true,
            ..Source::default()
        }],
        ..Sample::default()
    }
}

/// Codes of a look that differs from a healthy one, with the worst severity.
fn codes(change: impl FnOnce(&mut Sample)) -> (Vec<&'static str>, Severity) {
    let mut sample = healthy();
    change(&mut sample);
    let found = of("main", &sample, &History::default(), 0);
    let anchors = anchors();
    for finding in &found {
        assert!(anchors.contains(&finding.runbook), "{} names no section of the runbook", finding.runbook);
    }
    let worst = found.first().map_or(Severity::Ok, |f| f.severity);
    (found.iter().map(|f| f.code).collect(), worst)
}

fn slot(sample: &mut Sample) -> &mut Slot {
    sample.slot.as_mut().unwrap()
}

#[test]
fn a_healthy_pipeline_has_no_findings() {
    assert_eq!(codes(|_| {}), (vec![], Severity::Ok));
}

#[test]
fn every_trouble_has_a_finding_with_its_severity_and_a_section_of_the_runbook() {
    use Severity::*;
    assert_eq!(codes(|s| s.detached = true), (vec!["detached"], Warning));
    let paused = |s: &mut Sample| {
        (s.paused, s.sidecar_alive) = (true, false);
        slot(s).active = false;
    };
    assert_eq!(codes(paused), (vec!["paused"], Warning), "planned, not an outage");
    let paused_long = |s: &mut Sample| {
        paused(s);
        slot(s).retained_bytes = Some(2 << 30);
    };
    assert_eq!(codes(paused_long), (vec!["slot_lag_critical", "paused"], Critical), "nobody guards the slot");
    assert_eq!(codes(|s| s.sidecar_alive = false), (vec!["sidecar_not_running"], Critical));
    assert_eq!(codes(|s| s.is_standby = true), (vec!["standby"], Notice));
    for status in ["missing", "lost", "wal_removed", "idle_timeout"] {
        let lost = codes(|s| slot(s).wal_status = Some(status.to_owned()));
        assert_eq!(lost, (vec!["slot_invalidated"], Critical), "{status}");
    }
    assert_eq!(
        codes(|s| slot(s).wal_status = Some("unreserved".to_owned())),
        (vec!["slot_lag_critical"], Critical)
    );
    assert_eq!(codes(|s| slot(s).retained_bytes = Some(200 << 20)), (vec!["slot_lag_warning"], Warning));
    assert_eq!(codes(|s| slot(s).retained_bytes = Some(2 << 30)), (vec!["slot_lag_critical"], Critical));
    assert_eq!(codes(|s| slot(s).active = false), (vec!["slot_inactive"], Warning));
    assert_eq!(codes(|s| s.wal_keep_bytes = None), (vec!["wal_keep_unlimited"], Notice));
    for (status, code, severity) in [
        ("ERROR", "stream_table_error", Critical),
        ("SUSPENDED", "stream_table_suspended", Warning),
        ("INITIALIZING", "stream_table_initializing", Notice),
    ] {
        assert_eq!(codes(|s| s.stream_tables[0].status = status.to_owned()), (vec![code], severity));
    }
    assert_eq!(codes(|s| s.stream_tables[0].consecutive_errors = 1), (vec!["stream_table_error"], Warning));
    assert_eq!(codes(|s| s.stream_tables[0].stale = true), (vec!["stream_table_stale"], Warning));
    assert_eq!(codes(|s| s.sources[0].capture = "trigger".to_owned()), (vec!["capture_by_triggers"], Notice));
    assert_eq!(codes(|s| s.sources[0].gap_since = Some(Utc::now())), (vec!["capture_gap"], Warning));
    let unready = |s: &mut Sample| {
        s.sources[0].fallback_ready = false;
        s.sources[0].fallback_reason = Some("it belongs to app".to_owned());
    };
    assert_eq!(codes(unready), (vec!["fallback_not_ready"], Notice));
    assert!(anchors().contains(&unreachable("main", "gone")[0].runbook));
}

#[test]
fn what_is_unknown_is_not_fine() {
    assert_eq!(codes(|s| slot(s).retained_bytes = None), (vec!["slot_lag_warning"], Severity::Unknown));
    let unknown =
        ServerSlot { wal_status: Some("reserved".to_owned()), active: true, ..ServerSlot::default() };
    assert_eq!(slot_severity(&unknown, true, 1, 2), Severity::Unknown);
}

#[test]
fn an_incident_is_critical_until_it_is_repaired_and_says_what_was_done() {
    let open = Recent {
        diagnosis: "SLOT_MISSING".to_owned(),
        cause: "the slot is gone".to_owned(),
        action: "the sources are read again".to_owned(),
        sources: 2,
        source: "a.s".to_owned(),
        ..Recent::default()
    };
    let done = Recent {
        completed_at: Some(Utc::now()),
        rows_inserted: Some(1),
        rows_updated: Some(2),
        rows_deleted: Some(3),
        ..open.clone()
    };
    assert_eq!(codes(|s| s.recent = vec![done.clone(), open]), (vec!["incident"; 2], Severity::Critical));
    let told = incident(&done);
    assert_eq!(told.severity, Severity::Warning);
    assert_eq!(told.about, "a.s and 1 more sources");
    let said = told.done.unwrap();
    assert!(said.contains("read again") && said.contains("1 missing, 2 changed and 3 surplus"), "{said}");
}

#[test]
fn an_error_that_may_quote_a_row_is_shown_without_its_words() {
    let mut sample = healthy();
    let table = &mut sample.stream_tables[0];
    table.status = "ERROR".to_owned();
    table.sqlstate = Some("22P02".to_owned());
    table.error = Some("invalid input syntax for type integer: \"secret\"".to_owned());
    let found = of("main", &sample, &History::default(), 0);
    assert!(!found[0].detail.contains("secret") && found[0].detail.contains("22P02"), "{}", found[0].detail);
}

#[test]
fn the_time_until_a_threshold_needs_growth() {
    assert_eq!(time_until(0, 1 << 20, Some(2048.0)), Some(512.0));
    assert_eq!(time_until(0, 1 << 20, Some(10.0)), None);
    assert_eq!(time_until(2, 1, Some(2048.0)), None);
    assert_eq!(time_until(0, 1 << 20, None), None);
}

/// Codes after looks each five seconds, at which the slot retains so many MiB.
fn after(retained: impl Iterator<Item = i64>) -> Vec<&'static str> {
    let (mut history, mut sample, mut now) = (History::default(), healthy(), 1_000_000);
    for mebibytes in retained {
        now += 5;
        let bytes = Some(mebibytes << 20);
        slot(&mut sample).retained_bytes = bytes;
        sample.server_slots = vec![ServerSlot {
            name: "s".to_owned(),
            ours: true,
            retained_bytes: bytes,
            ..ServerSlot::default()
        }];
        history.note(now, Some(&sample));
    }
    of("main", &sample, &history, now).iter().map(|f| f.code).collect()
}

#[test]
fn a_slot_that_is_read_in_time_raises_nothing_however_much_is_written() {
    // The server lets go of what was read every 15 seconds: 0, 30, 60, 90 MiB and again.
    for looks in 1..80 {
        assert_eq!(after((0..looks).map(|n| n % 4 * 30)), Vec::<&str>::new(), "after {looks} looks");
    }
    assert_eq!(after((0..30).map(|n| n * 3)), ["slot_lag_warning"]);
}
