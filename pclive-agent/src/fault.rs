//! The agent's own points at which a test ends, stops or holds it; see [`pclive_engine::fault`].

use crate::journal::{Phase, Record, Role};

pclive_engine::fault_points! {
    SourceBegun "source-begun" => Source, "stop-anyway";
    SourceOpened "source-opened" => Source, "stop-anyway";
    SourceConnected "source-connected" => Source, "stop-anyway";
    SourcePrepareSent "source-prepare-sent" => Source, "stop-anyway";
    SourceNegotiated "source-negotiated" => Source, "stop-anyway";
    SourceRoundSent "source-round-sent" => Source, "stop-anyway";
    SourceRound "source-round" => Source, "stop-anyway";
    SourceCounted "source-counted" => Source, "stop-anyway";
    SourceSlowingWritten "source-slowing-written" => Source, "throttle";
    SourceSlowed "source-slowed" => Source, "throttle";
    SourceOutdatedDropped "source-outdated-dropped" => Source, "post-copy";
    SourceLockPrepared "source-lock-prepared" => Source, "stop-anyway";
    SourceLocked "source-locked" => Source, "stop-anyway";
    SourceFrozen "source-frozen" => Source, "stop-anyway";
    SourceStateSent "source-state-sent" => Source, "stop-anyway";
    SourceDumped "source-dumped" => Source, "stop-anyway";
    SourceCompared "source-compared" => Source, "verify";
    SourceOffered "source-offered" => Source, "stop-anyway";
    SourceLockOutlives "source-lock-outlives" => Source, "stop-anyway";
    SourceHeld "source-held" => Source, "stop-anyway";
    SourceCommitSent "source-commit-sent" => Decided, "stop-anyway";
    SourceTailBegun "source-tail-begun" => Destination, "post-copy";
    SourceAnswered "source-answered" => Destination, "stop-anyway";
    SourceRuntimeForgot "source-runtime-forgot" => Destination, "stop-anyway";
    SourceRelayed "source-relayed" => Destination, "stop-anyway";
    SourceRetired "source-retired" => Destination, "stop-anyway";
    SourceDestroyed "source-destroyed" => Destination, "stop-anyway";
    SourceGivingUp "source-giving-up" => Source, "cancel";
    SourceGaveUp "source-gave-up" => Source, "cancel";
    SourceBeginStaged "source-begin-staged" => Source, "stop-anyway";
    SourceBeginRenamed "source-begin-renamed" => Source, "stop-anyway";
    SourceCommittingStaged "source-committing-staged" => Source, "stop-anyway";
    SourceCommittingRenamed "source-committing-renamed" => Source, "stop-anyway";
    SourceKeptStaged "source-kept-staged" => Destination, "keep";
    SourceKeptRenamed "source-kept-renamed" => Destination, "keep";
    SourceUndoingStaged "source-undoing-staged" => Destination, "undo";
    SourceUndoingRenamed "source-undoing-renamed" => Source, "undo";
    SourceUndone "source-undone" => Source, "undo";
    SourceEndStaged "source-end-staged" => Destination, "stop-anyway";
    SourceEndRenamed "source-end-renamed" => Destination, "stop-anyway";
    DestinationAdmitted "destination-admitted" => Source, "stop-anyway";
    DestinationBegun "destination-begun" => Source, "stop-anyway";
    DestinationCreated "destination-created" => Source, "stop-anyway";
    DestinationFetcherStarted "destination-fetcher-started" => Source, "post-copy";
    DestinationNetworkBuilt "destination-network-built" => Source, "stop-anyway";
    DestinationAccepted "destination-accepted" => Source, "stop-anyway";
    DestinationRound "destination-round" => Source, "stop-anyway";
    DestinationFinalBegun "destination-final-begun" => Source, "stop-anyway";
    DestinationLacksHanded "destination-lacks-handed" => Source, "post-copy";
    DestinationRestored "destination-restored" => Source, "stop-anyway";
    DestinationCompared "destination-compared" => Source, "verify";
    DestinationOffered "destination-offered" => Source, "stop-anyway";
    DestinationCommitted "destination-committed" => Source, "stop-anyway";
    DestinationOpened "destination-opened" => Destination, "stop-anyway";
    DestinationResumed "destination-resumed" => Destination, "stop-anyway";
    DestinationSaid "destination-said" => Destination, "stop-anyway";
    DestinationTold "destination-told" => Destination, "stop-anyway";
    DestinationStarted "destination-started" => Destination, "stop-anyway";
    DestinationFetched "destination-fetched" => Destination, "post-copy";
    DestinationGivingUp "destination-giving-up" => Source, "cancel";
    DestinationGaveUp "destination-gave-up" => Source, "cancel";
    DestinationDeleted "destination-deleted" => Source, "cancel";
    DestinationBeginStaged "destination-begin-staged" => Source, "stop-anyway";
    DestinationBeginRenamed "destination-begin-renamed" => Source, "stop-anyway";
    DestinationCommittingStaged "destination-committing-staged" => Source, "stop-anyway";
    DestinationCommittingRenamed "destination-committing-renamed" => Source, "stop-anyway";
    DestinationTailStaged "destination-tail-staged" => Destination, "post-copy";
    DestinationTailRenamed "destination-tail-renamed" => Destination, "post-copy";
    DestinationWithdrawnStaged "destination-withdrawn-staged" => Source, "undo";
    DestinationWithdrawnRenamed "destination-withdrawn-renamed" => Source, "undo";
    DestinationWithdrawn "destination-withdrawn" => Source, "undo";
    DestinationEndStaged "destination-end-staged" => Destination, "stop-anyway";
    DestinationEndRenamed "destination-end-renamed" => Destination, "stop-anyway";
}

/// A record of the journal is about to take the place of the one before.
pub(crate) fn staged(record: &Record) {
    let point = match (record.role, &record.phase) {
        (Role::Source, Phase::Begun) => Point::SourceBeginStaged,
        (Role::Source, Phase::Committing) => Point::SourceCommittingStaged,
        (Role::Source, Phase::Ended(_)) => Point::SourceEndStaged,
        (Role::Destination, Phase::Begun) => Point::DestinationBeginStaged,
        (Role::Destination, Phase::Committing) => Point::DestinationCommittingStaged,
        (Role::Destination, Phase::Tail) => Point::DestinationTailStaged,
        (Role::Destination, Phase::Ended(_)) => Point::DestinationEndStaged,
        (Role::Source, Phase::Kept(_)) => Point::SourceKeptStaged,
        (Role::Source, Phase::Undoing(_)) => Point::SourceUndoingStaged,
        (Role::Destination, Phase::Withdrawn) => Point::DestinationWithdrawnStaged,
        (_, Phase::Discarded | Phase::Torn | Phase::Tail | Phase::Kept(_) | Phase::Undoing(_))
        | (Role::Source, Phase::Withdrawn) => return,
    };
    reached(point);
}

/// A record of the journal has taken the place of the one before, and that is not durable yet.
pub(crate) fn renamed(record: &Record) {
    let point = match (record.role, &record.phase) {
        (Role::Source, Phase::Begun) => Point::SourceBeginRenamed,
        (Role::Source, Phase::Committing) => Point::SourceCommittingRenamed,
        (Role::Source, Phase::Ended(_)) => Point::SourceEndRenamed,
        (Role::Destination, Phase::Begun) => Point::DestinationBeginRenamed,
        (Role::Destination, Phase::Committing) => Point::DestinationCommittingRenamed,
        (Role::Destination, Phase::Tail) => Point::DestinationTailRenamed,
        (Role::Destination, Phase::Ended(_)) => Point::DestinationEndRenamed,
        (Role::Source, Phase::Kept(_)) => Point::SourceKeptRenamed,
        (Role::Source, Phase::Undoing(_)) => Point::SourceUndoingRenamed,
        (Role::Destination, Phase::Withdrawn) => Point::DestinationWithdrawnRenamed,
        (_, Phase::Discarded | Phase::Torn | Phase::Tail | Phase::Kept(_) | Phase::Undoing(_))
        | (Role::Source, Phase::Withdrawn) => return,
    };
    reached(point);
}

/// Every point of agent and engine, one a line: its name, where the container runs after the agent was killed there, and
/// the policy of a migration that comes to it.
#[cfg(feature = "fault-injection")]
pub fn list() -> String {
    use pclive_engine::fault::Survivor;
    let survivor = |survivor| match survivor {
        Survivor::Source => "source",
        Survivor::Destination => "destination",
        Survivor::Decided => "decided",
    };
    let points = POINTS.iter().chain(pclive_engine::fault::POINTS);
    points.map(|(name, place, policy)| format!("{name} {} {policy}\n", survivor(*place))).collect()
}
