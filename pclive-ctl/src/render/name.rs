//! Names of the API's enumerations. The `..._json` names are part of the interface.

use pclive_proto::control::{Phase, Policy, Role, Strategy};

/// A phase, for people.
pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "-",
        Phase::Negotiating => "negotiating",
        Phase::PreCopy => "pre-copy",
        Phase::Frozen => "frozen",
        Phase::Ready => "ready",
        Phase::Committed => "committed",
        Phase::Done => "done",
        Phase::Failed => "failed",
        Phase::Unknown => "unknown",
        Phase::Queued => "queued",
    }
}

/// A phase, for programs.
pub(crate) fn phase_json(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Unspecified => None,
        Phase::PreCopy => Some("pre_copy"),
        Phase::Negotiating
        | Phase::Frozen
        | Phase::Ready
        | Phase::Committed
        | Phase::Done
        | Phase::Failed
        | Phase::Unknown
        | Phase::Queued => Some(self::phase(phase)),
    }
}

/// A role, for people and for programs; `None` if it was not told.
pub(crate) fn role(role: Role) -> Option<&'static str> {
    match role {
        Role::Unspecified => None,
        Role::Source => Some("source"),
        Role::Destination => Some("destination"),
    }
}

/// A policy, for programs.
pub(crate) fn policy_json(policy: Policy) -> Option<&'static str> {
    match policy {
        Policy::Unspecified => None,
        Policy::StopAnyway => Some("stop_anyway"),
        Policy::Throttle => Some("throttle"),
        Policy::Cancel => Some("cancel"),
        Policy::PostCopy => Some("post_copy"),
    }
}

/// A strategy, for people.
pub(crate) fn strategy(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Unspecified => "-",
        Strategy::OneShot => "one-shot",
        Strategy::Pipelined => "pipelined",
        Strategy::Global => "global",
    }
}

/// A strategy, for programs.
pub(crate) fn strategy_json(strategy: Strategy) -> Option<&'static str> {
    match strategy {
        Strategy::Unspecified => None,
        Strategy::OneShot => Some("one_shot"),
        Strategy::Pipelined => Some("pipelined"),
        Strategy::Global => Some("global"),
    }
}
