//! The journal on file systems that are full or read-only: small ones of this test's own.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pclive_agent::config::Strategy;
use pclive_agent::error::chain;
use pclive_agent::journal::{self, Ending, Journal, Peer, Phase, Process, Record, Role};

fn record() -> Record {
    Record {
        id: uuid::Uuid::new_v4().to_string(),
        request_id: String::new(),
        role: Role::Destination,
        container: "web".into(),
        runtime: "runc".into(),
        bundle: "/bundles/web".into(),
        peer: Peer { name: "host-a".into(), address: String::new() },
        strategy: Strategy::Global,
        started_ms: 1,
        ended_ms: 0,
        boot_id: "boot".into(),
        init: Some(Process { pid: 7, start_time: 9 }),
        tail: None,
        tail_token: String::new(),
        network_stays: false,
        keep_source_for_ms: 0,
        asked_by: journal::Asker::Unknown,
        phase: Phase::Begun,
    }
}

fn committing(record: &Record) -> Record {
    Record { phase: Phase::Committing, ..record.clone() }
}

/// Runs `work` in a mount namespace of its own, with a tmpfs of these options.
fn on_tmpfs(options: &'static str, work: impl FnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var("CI").is_err(), "this test needs root, and CI=true forbids skipping it");
        eprintln!("NOT TESTED: mounting needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place: PathBuf = directory.path().into();
    let thread = std::thread::spawn(move || {
        // Of this thread alone; the mounts end with it.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        work(&place);
    });
    thread.join().unwrap();
}

/// Takes all room that is left.
fn fill(directory: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(directory.join("ballast")).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

#[test]
fn a_full_disk_stops_a_migration_at_its_begin() {
    on_tmpfs("size=64k", |place| {
        let journal = Journal::new(place, 10);
        journal.begin(record()).unwrap();
        fill(place);
        let error = journal.begin(record()).unwrap_err();
        let words = chain(&error);
        assert!(words.contains("No space left") && words.contains(&place.display().to_string()), "{words}");
    });
}

#[test]
fn a_disk_that_fills_up_later_stops_neither_the_commit_nor_the_decision_against_it() {
    on_tmpfs("size=64k", |place| {
        let journal = Journal::new(place, 10);
        let (first, second) = (record(), record());
        let logs = [&first, &second].map(|record| {
            let log = journal.begin(record.clone()).unwrap();
            journal::guard(&log).stage(committing(record)).unwrap();
            log
        });
        fill(place);
        assert!(journal::guard(&logs[0]).enact().unwrap());
        assert!(journal::guard(&logs[0]).take_commit());
        assert_eq!(journal::guard(&logs[1]).answer().unwrap(), journal::Standing::Discarded);
        let (found, unreadable) = Journal::new(place, 10).take_over().unwrap();
        let phase = |id: &str| found.iter().find(|record| record.id == id).map(|record| record.phase.clone());
        assert_eq!(phase(&first.id), Some(Phase::Committing));
        assert_eq!(phase(&second.id), Some(Phase::Discarded));
        assert!(unreadable.is_empty(), "{unreadable:?}");
    });
}

#[test]
fn an_end_that_cannot_be_written_is_known_all_the_same() {
    on_tmpfs("size=64k", |place| {
        let journal = Journal::new(place, 10);
        let log = journal.begin(record()).unwrap();
        fill(place);
        let ended = journal::guard(&log).end(Phase::Ended(Ending::Done), 5);
        assert!(ended.is_err());
        assert_eq!(journal::guard(&log).answer().unwrap(), journal::Standing::Runs);
    });
}

#[test]
fn a_read_only_directory_is_named() {
    on_tmpfs("size=64k,ro", |place| {
        let error = Journal::new(place, 10).begin(record()).unwrap_err();
        let words = chain(&error);
        assert!(words.contains("Read-only") && words.contains(&place.display().to_string()), "{words}");
    });
}
