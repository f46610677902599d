//! Migrations: the list, and one of them.

use std::fmt::Write;

use pclive_proto::control::{Doubt, Migration, Phase, Role};

use super::table::{Align, table};
use super::text::{or_dash, printable};
use super::{name, problem, report, unit};

/// All migrations, a line each. `now_ms` is Unix time.
pub(crate) fn list(migrations: &[Migration], now_ms: u64) -> String {
    if migrations.is_empty() {
        return "no migrations\n".to_owned();
    }
    let head = [
        ("ID", Align::Left),
        ("CONTAINER", Align::Left),
        ("DIRECTION", Align::Left),
        ("STRATEGY", Align::Left),
        ("PHASE", Align::Left),
        ("STARTED", Align::Left),
        ("TOOK", Align::Right),
        ("BYTES", Align::Right),
    ];
    let rows: Vec<_> = migrations.iter().map(|migration| row(migration, now_ms)).collect();
    table(0, head, &rows)
}

fn row(migration: &Migration, now_ms: u64) -> [String; 8] {
    [
        or_dash(&migration.id).into_owned(),
        or_dash(&migration.container).into_owned(),
        direction(migration),
        name::strategy(migration.strategy()).to_owned(),
        name::phase(migration.phase()).to_owned(),
        unit::timestamp(migration.started_ms),
        took(migration, now_ms),
        unit::bytes(bytes(migration)),
    ]
}

/// One migration with its rounds, and its report or its error.
pub(crate) fn details(migration: &Migration, now_ms: u64) -> String {
    let mut text = String::new();
    let facts = [
        ("migration", or_dash(&migration.id).into_owned()),
        ("container", format!("{} ({})", printable(&migration.container), or_dash(&migration.runtime))),
        ("direction", direction(migration)),
        ("strategy", name::strategy(migration.strategy()).to_owned()),
        ("phase", name::phase(migration.phase()).to_owned()),
        ("started", unit::timestamp(migration.started_ms)),
        ("took", took(migration, now_ms)),
    ];
    for (fact, value) in facts {
        let _ = writeln!(text, "{fact:<10} {value}");
    }
    if let Some(kept) = migration.kept {
        let _ =
            writeln!(text, "{:<10} kept here, frozen, until {}", "original", unit::timestamp(kept.until_ms));
    }
    match &migration.report {
        Some(report) => {
            let _ = write!(text, "\n{}", report::report(report));
        }
        None if !migration.rounds.is_empty() => {
            let _ = write!(text, "\n{}", report::rounds(&migration.rounds));
        }
        None => {}
    }
    if let Some(error) = &migration.error {
        let _ = write!(text, "\n{}", problem::text(error));
    }
    if let Some(known) = &migration.doubt {
        text.push_str(&doubt(migration, known));
    }
    text
}

/// What is known of a migration in doubt, and how it ends.
pub(super) fn doubt(migration: &Migration, known: &Doubt) -> String {
    let there = match known.questions {
        0 => "not asked yet".to_owned(),
        questions => format!(
            "{} (asked {questions} times, last {})",
            printable(&known.there),
            unit::timestamp(known.asked_ms)
        ),
    };
    format!(
        "\nin doubt: exactly one side may let the container go\n  here     {}\n  there    {there}\n  \
         The destination is asked until it answers, and the migration ends by itself then. Without an answer:\n    \
         pclivectl resolve {id} --discard-here --override   if it runs at the destination\n    \
         pclivectl resolve {id} --run-here --override       if it certainly does not, and never will\n",
        printable(&known.here),
        id = or_dash(&migration.id),
    )
}

/// "to host-b", "from host-a".
pub(super) fn direction(migration: &Migration) -> String {
    let preposition = match migration.role() {
        Role::Source => "to ",
        Role::Destination => "from ",
        Role::Unspecified => "",
    };
    format!("{preposition}{}", or_dash(&migration.peer))
}

/// How long it took, or has taken so far.
pub(super) fn took(migration: &Migration, now_ms: u64) -> String {
    let end = match migration.phase() {
        Phase::Done | Phase::Failed => migration.ended_ms,
        Phase::Unspecified
        | Phase::Queued
        | Phase::Negotiating
        | Phase::PreCopy
        | Phase::Frozen
        | Phase::Ready
        | Phase::Committed
        | Phase::Unknown => now_ms,
    };
    match end.checked_sub(migration.started_ms) {
        Some(ms) if migration.started_ms > 0 => unit::duration(ms.saturating_mul(1_000_000)),
        _ => "-".to_owned(),
    }
}

fn bytes(migration: &Migration) -> u64 {
    let rounds = || migration.rounds.iter().fold(0, |sum: u64, round| sum.saturating_add(round.bytes));
    migration.report.as_ref().map_or_else(rounds, |report| report.bytes)
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{Error, Strategy};

    use super::*;
    use crate::render::report::tests::{rounds_sample, sample};

    const START: u64 = 1_795_430_189_000;

    fn running() -> Migration {
        Migration {
            id: "3f2c".into(),
            container: "redis-1".into(),
            runtime: "runc".into(),
            role: Role::Source.into(),
            peer: "host-b".into(),
            strategy: Strategy::Global.into(),
            phase: Phase::PreCopy.into(),
            started_ms: START,
            rounds: rounds_sample()[..1].to_vec(),
            ..Migration::default()
        }
    }

    fn done() -> Migration {
        Migration {
            id: "9a".into(),
            role: Role::Destination.into(),
            peer: "host-a".into(),
            phase: Phase::Done.into(),
            ended_ms: START + 2_730,
            report: Some(sample()),
            ..running()
        }
    }

    #[test]
    fn the_list_has_a_line_a_migration() {
        let expected = "\
ID    CONTAINER  DIRECTION    STRATEGY  PHASE     STARTED                 TOOK     BYTES
3f2c  redis-1    to host-b    global    pre-copy  2026-11-23T10:36:29Z  1.50 s  1.00 GiB
9a    redis-1    from host-a  global    done      2026-11-23T10:36:29Z  2.73 s  1.03 GiB
";
        assert_eq!(list(&[running(), done()], START + 1_500), expected);
        assert_eq!(list(&[], START), "no migrations\n");
    }

    #[test]
    fn a_running_migration_is_shown_with_its_rounds_so_far() {
        let expected = "\
migration  3f2c
container  redis-1 (runc)
direction  to host-b
strategy   global
phase      pre-copy
started    2026-11-23T10:36:29Z
took       1.50 s

  round  data pages  zero  dropped     bytes    time       rate  dirty after
  0         262,144   120        0  1.00 GiB  1.10 s  931 MiB/s        6,100
";
        assert_eq!(details(&running(), START + 1_500), expected);
    }

    #[test]
    fn a_finished_one_ends_with_its_report_and_a_failed_one_with_its_error() {
        assert!(details(&done(), 0).ends_with(&report::report(&sample())));
        let error = Error { message: "cannot reach host-b".into(), ..Error::default() };
        let failed =
            Migration { phase: Phase::Failed.into(), error: Some(error), ended_ms: START + 1, ..running() };
        let text = details(&failed, 0);
        assert!(text.contains("took       1.00 ms\n"), "{text}");
        assert!(text.ends_with("\nerror: cannot reach host-b\n"), "{text}");
    }

    #[test]
    fn a_migration_in_doubt_says_what_both_sides_know_and_how_it_ends() {
        let doubt = Doubt {
            here: "container redis-1 stands still here, frozen".into(),
            there: "cannot reach host-b".into(),
            questions: 4,
            asked_ms: START,
        };
        let migration = Migration { phase: Phase::Unknown.into(), doubt: Some(doubt), ..running() };
        let text = details(&migration, START + 1);
        for words in ["frozen", "cannot reach host-b (asked 4 times, last 2026-", "resolve 3f2c --run-here"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn a_clock_that_went_back_gives_no_duration() {
        assert_eq!(took(&running(), START - 1), "-");
    }
}
