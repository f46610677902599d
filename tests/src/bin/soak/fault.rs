//! What is done to a migration, and when.

use std::fmt;
use std::time::Duration;

use pclive_tests::random::Random;

/// An end of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// SIGKILL of the agent, which is started again after this time.
    Kill(End, Duration),
    /// Both agents, so long after each other.
    KillBoth(Duration),
    /// The agents' segments are dropped for this time.
    Cut(Duration),
    /// Their connections are reset for this time.
    Reset(Duration),
    /// The link has a hundredth of its rate for this time.
    Slow(Duration),
    Cancel(End),
    /// The container itself is killed.
    EndContainer,
}

impl Fault {
    /// Its kind, for the counts.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Kill(End::Source, _) => "source killed",
            Self::Kill(End::Destination, _) => "destination killed",
            Self::KillBoth(_) => "both killed",
            Self::Cut(_) => "link cut",
            Self::Reset(_) => "link reset",
            Self::Slow(_) => "link slowed",
            Self::Cancel(_) => "cancelled",
            Self::EndContainer => "container killed",
        }
    }

    fn choose(random: &mut Random) -> Self {
        let ms = |random: &mut Random, most: usize| Duration::from_millis(random.below(most) as u64);
        let end = |random: &mut Random| if random.below(2) == 0 { End::Source } else { End::Destination };
        match random.below(20) {
            0..=1 => Self::Nothing,
            2..=10 => Self::Kill(end(random), ms(random, 400)),
            11..=12 => Self::KillBoth(ms(random, 200)),
            13..=14 => Self::Cut(ms(random, 3000)),
            15 => Self::Reset(ms(random, 500)),
            16 => Self::Slow(ms(random, 2000)),
            17..=18 => Self::Cancel(end(random)),
            _ => Self::EndContainer,
        }
    }
}

/// When it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// So long after the request.
    After(Duration),
    /// So long after the container was stopped: where most is at stake.
    Stopped(Duration),
}

/// One step of the soak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) fault: Fault,
    pub(crate) moment: Moment,
    /// Which container the fault is about.
    pub(crate) container: usize,
    /// Whether the others move at the same time.
    pub(crate) together: bool,
    pub(crate) options: &'static [&'static str],
}

/// How migrations are asked for.
const OPTIONS: [&[&str]; 5] = [
    &[],
    &["--strategy", "pipelined"],
    &["--strategy", "one-shot"],
    &["--policy", "throttle", "--max-downtime", "1ms", "--max-rounds", "3"],
    &["--max-downtime", "1ms", "--max-rounds", "4"],
];

impl Step {
    pub(crate) fn choose(random: &mut Random) -> Self {
        let fault = Fault::choose(random);
        let moment = match random.below(2) {
            0 => Moment::After(Duration::from_millis(random.below(900) as u64)),
            _ => Moment::Stopped(Duration::from_micros(random.below(60_000) as u64)),
        };
        let container = random.below(2);
        let together = random.below(3) == 0;
        Self { fault, moment, container, together, options: OPTIONS[random.below(OPTIONS.len())] }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let together = if self.together { " beside another" } else { "" };
        write!(f, "{:?} at {:?}{together} {}", self.fault, self.moment, self.options.join(" "))
    }
}
