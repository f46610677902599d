use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::Strategy;
use crate::error::ErrorCode;

pub(crate) fn record() -> Record {
    Record {
        id: "7b0a2c0c-96a4-4f52-9d2f-1d2f3c4b5a69".into(),
        request_id: String::new(),
        role: Role::Source,
        container: "web".into(),
        runtime: "runc".into(),
        bundle: "/bundles/web".into(),
        peer: Peer { name: "host-b".into(), address: "10.0.0.2:7413".into() },
        strategy: Strategy::Global,
        started_ms: 1,
        ended_ms: 0,
        boot_id: "boot".into(),
        init: Some(Process { pid: 7, start_time: 9 }),
        tail: None,
        tail_token: String::new(),
        network_stays: false,
        keep_source_for_ms: 0,
        asked_by: Asker::Unknown,
        phase: Phase::Begun,
    }
}

fn committing() -> Record {
    Record { phase: Phase::Committing, ..record() }
}

fn at_destination() -> Record {
    Record { role: Role::Destination, init: None, ..record() }
}

fn journal() -> (tempfile::TempDir, Journal) {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::new(&directory.path().join("state"), 2);
    (directory, journal)
}

fn read_back(directory: &tempfile::TempDir) -> (Vec<Record>, Vec<Unreadable>) {
    Journal::new(&directory.path().join("state"), 2).take_over().unwrap()
}

#[test]
fn what_is_begun_is_found_by_a_successor() {
    let (directory, journal) = journal();
    journal.begin(record()).unwrap();
    assert_eq!(read_back(&directory).0, [record()]);
}

#[test]
fn what_is_staged_is_in_force_only_once_it_is_enacted() {
    let (directory, journal) = journal();
    let log = journal.begin(record()).unwrap();
    guard(&log).stage(committing()).unwrap();
    let found = std::fs::read_dir(directory.path().join("state/migrations")).unwrap().count();
    assert_eq!(found, 2, "record and spare");
    assert_eq!(guard(&log).record(), &record());
    assert!(guard(&log).enact().unwrap());
    assert_eq!(read_back(&directory).0, [committing()]);
    assert!(!guard(&log).enact().unwrap(), "nothing is staged any more");
}

#[test]
fn a_spare_that_was_never_enacted_is_forgotten() {
    let (directory, journal) = journal();
    guard(&journal.begin(record()).unwrap()).stage(committing()).unwrap();
    assert_eq!(read_back(&directory).0, [record()]);
    assert_eq!(std::fs::read_dir(directory.path().join("state/migrations")).unwrap().count(), 1);
}

#[test]
fn an_end_takes_the_place_of_what_was_staged() {
    let (directory, journal) = journal();
    let log = journal.begin(record()).unwrap();
    guard(&log).stage(committing()).unwrap();
    guard(&log).end(Phase::Ended(Ending::Done), 5).unwrap();
    assert!(!guard(&log).enact().unwrap());
    let ended = Record { phase: Phase::Ended(Ending::Done), ended_ms: 5, ..record() };
    assert_eq!(read_back(&directory).0, [ended]);
}

#[test]
fn a_commit_that_comes_first_is_taken_and_nothing_is_discarded_afterwards() {
    let (_directory, journal) = journal();
    let log = journal.begin(at_destination()).unwrap();
    guard(&log).put(Record { phase: Phase::Committing, ..at_destination() }).unwrap();
    assert!(guard(&log).take_commit());
    assert_eq!(guard(&log).answer().unwrap(), Standing::Pending);
    guard(&log).end(Phase::Ended(Ending::Done), 5).unwrap();
    assert_eq!(guard(&log).answer().unwrap(), Standing::Runs);
}

#[test]
fn a_question_that_comes_first_discards_durably_and_a_late_commit_is_refused() {
    for phase in [Phase::Begun, Phase::Committing] {
        let (directory, journal) = journal();
        let log = journal.begin(at_destination()).unwrap();
        guard(&log).put(Record { phase, ..at_destination() }).unwrap();
        assert_eq!(guard(&log).answer().unwrap(), Standing::Discarded);
        assert_eq!(read_back(&directory).0[0].phase, Phase::Discarded);
        assert!(!guard(&log).take_commit());
        let reason = Reason::new(ErrorCode::PeerLost, "x", "");
        guard(&log).end(Phase::Ended(Ending::Failed(reason)), 5).unwrap();
        assert_eq!(guard(&log).answer().unwrap(), Standing::Discarded);
    }
}

#[test]
fn a_copy_is_not_let_go_before_that_is_written() {
    let (_directory, journal) = journal();
    let log = journal.begin(at_destination()).unwrap();
    assert!(!guard(&log).take_commit());
}

#[test]
fn a_copy_that_a_later_migration_took_away_has_moved_on() {
    let id = |digit: u8| format!("7b0a2c0c-96a4-4f52-9d2f-1d2f3c4b5a6{digit}");
    let ended = Record { phase: Phase::Ended(Ending::Done), role: Role::Destination, ..record() };
    let failed = Ending::Failed(Reason::new(ErrorCode::Cancelled, "x", ""));
    let kept = Kept { until_boottime_ms: 1, stopped_ms: 2 };
    let later = Record { id: id(0), ..record() };
    let cases = [
        (Record { phase: Phase::Ended(Ending::Done), ..later.clone() }, true),
        (Record { phase: Phase::Kept(kept), ..later.clone() }, true),
        (Record { phase: Phase::Committing, ..later.clone() }, true),
        (Record { phase: Phase::Ended(failed), ..later.clone() }, false),
        (Record { init: Some(Process { pid: 7, start_time: 10 }), ..later.clone() }, false),
        (Record { boot_id: "another".into(), ..later.clone() }, false),
    ];
    for (later, expected) in cases {
        let (_directory, journal) = journal();
        journal.begin(ended.clone()).unwrap();
        assert!(!journal.has_moved_on(&ended));
        journal.begin(later.clone()).unwrap();
        assert_eq!(journal.has_moved_on(&ended), expected, "{later:?}");
    }
}

#[test]
fn damaged_foreign_and_newer_files_are_named_and_left_alone() {
    let (directory, journal) = journal();
    journal.begin(record()).unwrap();
    let place = directory.path().join("state/migrations");
    let whole = std::fs::read(place.join(format!("{}.record", record().id))).unwrap();
    std::fs::write(place.join("torn.record"), &whole[..100]).unwrap();
    std::fs::write(place.join("garbage.record"), [0xff; 5000]).unwrap();
    std::fs::write(place.join("empty.record"), "").unwrap();
    std::fs::write(place.join("newer.record"), "pclive-migration 9 1 0\n{}\n").unwrap();
    std::fs::write(place.join("renamed.record"), &whole).unwrap();
    std::fs::write(place.join("README"), "not ours").unwrap();
    let (records, unreadable) = read_back(&directory);
    assert_eq!(records, [record()]);
    let mut named: Vec<_> = unreadable.iter().map(|file| file.path.file_stem().unwrap().to_owned()).collect();
    named.sort();
    assert_eq!(named, ["empty", "garbage", "newer", "renamed", "torn"]);
    assert!(unreadable.iter().any(|file| file.to_string().contains("version 9")), "{unreadable:?}");
    assert!(unreadable.iter().all(|file| file.path.exists()));
}

#[test]
fn the_oldest_ended_records_are_forgotten_and_open_ones_are_not() {
    let (directory, journal) = journal();
    journal.begin(record()).unwrap();
    for number in 1..=4_u64 {
        let id = uuid::Uuid::new_v4().to_string();
        let log = journal.begin(Record { id, started_ms: number, ..record() }).unwrap();
        guard(&log).end(Phase::Ended(Ending::Done), number).unwrap();
        drop(log);
        journal.prune();
    }
    let (records, _) = read_back(&directory);
    let ends: Vec<u64> = records.iter().map(|record| record.ended_ms).collect();
    assert_eq!(
        (records.len(), ends.contains(&0), ends.contains(&4), ends.contains(&1)),
        (3, true, true, false)
    );
}

#[test]
fn records_are_for_their_owner_only() {
    let (directory, journal) = journal();
    journal.begin(record()).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let place = directory.path().join("state/migrations");
    assert_eq!(mode(&place), 0o700);
    assert_eq!(mode(&place.join(format!("{}.record", record().id))), 0o600);
}
