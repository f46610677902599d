//! Points at which a test ends or stops the agent. Without the feature `fault-injection` nothing of it is built in.
//!
//! With it, the environment variable `FAULT_INJECTION` holds `POINT:ACTION`; the actions are `kill` (SIGKILL) and
//! `stop` (SIGSTOP), both of the whole agent, so that it ends or stands still right there.

/// A point of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    SourceBegun,
    SourceRound,
    SourceFrozen,
    SourceDumped,
    SourceOffered,
    SourceHeld,
    SourceCommitSent,
    SourceAnswered,
    SourceDestroyed,
    DestinationBegun,
    DestinationCreated,
    DestinationRound,
    DestinationRestored,
    DestinationOffered,
    DestinationCommitted,
    DestinationResumed,
    DestinationTold,
}

/// The migration has come this far.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub(crate) fn reached(_: Point) {}

/// The migration has come this far: does what the environment asks for.
#[cfg(feature = "fault-injection")]
pub(crate) fn reached(point: Point) {
    use nix::sys::signal::{Signal, raise};
    let Ok(wanted) = std::env::var("FAULT_INJECTION") else { return };
    let Some((name, action)) = wanted.split_once(':') else { return };
    if name != point.name() {
        return;
    }
    tracing::warn!(point = name, action, "fault injected");
    let signal = if action == "stop" { Signal::SIGSTOP } else { Signal::SIGKILL };
    // A signal that cannot be raised shows in the test: the agent goes on.
    let _ = raise(signal);
}

#[cfg(feature = "fault-injection")]
impl Point {
    fn name(self) -> &'static str {
        match self {
            Self::SourceBegun => "source-begun",
            Self::SourceRound => "source-round",
            Self::SourceFrozen => "source-frozen",
            Self::SourceDumped => "source-dumped",
            Self::SourceOffered => "source-offered",
            Self::SourceHeld => "source-held",
            Self::SourceCommitSent => "source-commit-sent",
            Self::SourceAnswered => "source-answered",
            Self::SourceDestroyed => "source-destroyed",
            Self::DestinationBegun => "destination-begun",
            Self::DestinationCreated => "destination-created",
            Self::DestinationRound => "destination-round",
            Self::DestinationRestored => "destination-restored",
            Self::DestinationOffered => "destination-offered",
            Self::DestinationCommitted => "destination-committed",
            Self::DestinationResumed => "destination-resumed",
            Self::DestinationTold => "destination-told",
        }
    }
}
