//! What a soak has done, and what went wrong.

use std::collections::BTreeMap;
use std::fmt;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// No copy runs, it does not answer, a connection ended, or nobody tells what became of it.
    Lost,
    /// Two copies run.
    Duplicated,
    /// Its data is not what it should be.
    Corrupted,
    /// Something is left where it does not belong.
    Leaked,
    /// The soak itself could not go on.
    Stuck,
}

impl Wrong {
    const ALL: [Self; 5] = [Self::Lost, Self::Duplicated, Self::Corrupted, Self::Leaked, Self::Stuck];
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Corrupted => "corrupted",
            Self::Leaked => "leaked",
            Self::Stuck => "stuck",
        })
    }
}

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) migrated: u64,
    pub(crate) not_migrated: u64,
    faults: BTreeMap<&'static str, u64>,
    wrong: BTreeMap<Wrong, u64>,
}

impl Tally {
    pub(crate) fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    pub(crate) fn wrong(&mut self, kind: Wrong) {
        *self.wrong.entry(kind).or_default() += 1;
    }

    pub(crate) fn is_good(&self) -> bool {
        self.wrong.is_empty() && self.migrated > 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.migrated + self.not_migrated;
        writeln!(f, "migrations {total}: {} done, {} rolled back", self.migrated, self.not_migrated)?;
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(f, "faults {}: {}", self.faults.values().sum::<u64>(), faults.join(", "))?;
        let count = |kind: &Wrong| format!("{kind} {}", self.wrong.get(kind).copied().unwrap_or(0));
        f.write_str(&Wrong::ALL.iter().map(count).collect::<Vec<_>>().join(", "))
    }
}
