//! Stable names of errors, for programs.

use tonic::Code;

/// One name, one meaning, for good: orchestrators compare them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// No runtime here knows the container.
    ContainerNotFound,
    /// The container exists but does not run.
    ContainerNotRunning,
    /// Several runtimes know a container of this name.
    ContainerAmbiguous,
    /// No such migration.
    MigrationNotFound,
    /// A request that cannot be meant.
    InvalidRequest,
    /// No runtime of this name is configured here.
    RuntimeUnknown,
    /// A runtime's command failed.
    RuntimeFailed,
    /// The bundle is not at the same path at the destination, or it cannot be read.
    BundleMissing,
    /// The destination has a container of this name.
    NameTaken,
    /// Something of the container cannot be carried.
    Blocked,
    /// Something of the container cannot be carried at any of the moments at which it was stopped.
    NotNow,
    /// The container is being migrated already.
    Busy,
    /// As many migrations as allowed are running.
    TooMany,
    /// The agent is going down.
    ShuttingDown,
    /// The destination's agent cannot be reached.
    PeerUnreachable,
    /// One end of the link does not accept the other's certificate, or does not speak TLS as it must.
    TlsFailed,
    /// The caller may not do this.
    AccessDenied,
    /// The link to the other agent ended.
    PeerLost,
    /// The other agent speaks another version.
    ProtocolMismatch,
    /// The other agent sent something that makes no sense here.
    BadMessage,
    /// The two hosts differ in something that the container depends on.
    IncompatibleHost,
    /// The destination has too little memory.
    NoMemory,
    /// The source engine failed.
    CaptureFailed,
    /// The destination engine failed.
    RestoreFailed,
    /// The container's network could not be captured, set up, locked or opened.
    NetworkFailed,
    /// The copy's memory is not what the container has.
    MemoryDiffers,
    /// Something took longer than it may.
    Timeout,
    /// The predicted downtime stays above the limit, and the policy is to give up then.
    NotConverging,
    /// A user asked for the end.
    Cancelled,
    /// The migration is past the point of no return.
    AlreadyCommitted,
    /// COMMIT was sent and no answer came.
    CommitUnknown,
    /// A command of the site failed, or took too long.
    HookFailed,
    /// The journal of migrations cannot be written.
    JournalFailed,
    /// The agent was restarted while the migration went on.
    AgentRestarted,
    /// The source has asked what became of the migration, and was promised that its copy never runs.
    Discarded,
    /// The copy went on without its last pages, and they cannot be fetched any more.
    PagesLost,
    /// The destination does not confirm what an operator has decided.
    PeerDisagrees,
    /// There is nothing to decide about the migration.
    NotInDoubt,
    /// The original of the migration is not kept.
    NotKept,
    /// The original was wanted back, and goes on at the source.
    Undone,
    /// A fault of the agent itself.
    Internal,
    /// A code of the other agent that this one does not know.
    PeerFailed,
}

/// Every code, for look-ups and tests.
const ALL: [ErrorCode; 42] = [
    ErrorCode::ContainerNotFound,
    ErrorCode::ContainerNotRunning,
    ErrorCode::ContainerAmbiguous,
    ErrorCode::MigrationNotFound,
    ErrorCode::InvalidRequest,
    ErrorCode::RuntimeUnknown,
    ErrorCode::RuntimeFailed,
    ErrorCode::BundleMissing,
    ErrorCode::NameTaken,
    ErrorCode::Blocked,
    ErrorCode::NotNow,
    ErrorCode::Busy,
    ErrorCode::TooMany,
    ErrorCode::ShuttingDown,
    ErrorCode::PeerUnreachable,
    ErrorCode::TlsFailed,
    ErrorCode::AccessDenied,
    ErrorCode::PeerLost,
    ErrorCode::ProtocolMismatch,
    ErrorCode::BadMessage,
    ErrorCode::IncompatibleHost,
    ErrorCode::NoMemory,
    ErrorCode::CaptureFailed,
    ErrorCode::RestoreFailed,
    ErrorCode::NetworkFailed,
    ErrorCode::MemoryDiffers,
    ErrorCode::Timeout,
    ErrorCode::NotConverging,
    ErrorCode::Cancelled,
    ErrorCode::AlreadyCommitted,
    ErrorCode::CommitUnknown,
    ErrorCode::HookFailed,
    ErrorCode::JournalFailed,
    ErrorCode::AgentRestarted,
    ErrorCode::Discarded,
    ErrorCode::PagesLost,
    ErrorCode::PeerDisagrees,
    ErrorCode::NotInDoubt,
    ErrorCode::NotKept,
    ErrorCode::Undone,
    ErrorCode::Internal,
    ErrorCode::PeerFailed,
];

impl ErrorCode {
    /// The name that crosses the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ContainerNotFound => "container-not-found",
            Self::ContainerNotRunning => "container-not-running",
            Self::ContainerAmbiguous => "container-ambiguous",
            Self::MigrationNotFound => "migration-not-found",
            Self::InvalidRequest => "invalid-request",
            Self::RuntimeUnknown => "runtime-unknown",
            Self::RuntimeFailed => "runtime-failed",
            Self::BundleMissing => "bundle-missing",
            Self::NameTaken => "name-taken",
            Self::Blocked => "blocked",
            Self::NotNow => "not-now",
            Self::Busy => "busy",
            Self::TooMany => "too-many-migrations",
            Self::ShuttingDown => "shutting-down",
            Self::PeerUnreachable => "peer-unreachable",
            Self::TlsFailed => "tls-failed",
            Self::AccessDenied => "access-denied",
            Self::PeerLost => "peer-lost",
            Self::ProtocolMismatch => "protocol-mismatch",
            Self::BadMessage => "bad-message",
            Self::IncompatibleHost => "incompatible-host",
            Self::NoMemory => "no-memory",
            Self::CaptureFailed => "capture-failed",
            Self::RestoreFailed => "restore-failed",
            Self::NetworkFailed => "network-failed",
            Self::MemoryDiffers => "memory-differs",
            Self::Timeout => "timeout",
            Self::NotConverging => "not-converging",
            Self::Cancelled => "cancelled",
            Self::AlreadyCommitted => "already-committed",
            Self::CommitUnknown => "commit-unknown",
            Self::HookFailed => "hook-failed",
            Self::JournalFailed => "journal-failed",
            Self::AgentRestarted => "agent-restarted",
            Self::Discarded => "discarded",
            Self::PagesLost => "pages-lost",
            Self::PeerDisagrees => "peer-disagrees",
            Self::NotInDoubt => "not-in-doubt",
            Self::NotKept => "not-kept",
            Self::Undone => "undone",
            Self::Internal => "internal",
            Self::PeerFailed => "peer-failed",
        }
    }

    /// The code of a name that came from the other agent, or from the journal.
    pub fn from_peer(name: &str) -> Self {
        ALL.into_iter().find(|code| code.as_str() == name).unwrap_or(Self::PeerFailed)
    }

    /// True when the same request may succeed later with nothing changed.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Busy
            | Self::NotNow
            | Self::TooMany
            | Self::ShuttingDown
            | Self::PeerUnreachable
            | Self::PeerLost
            | Self::NoMemory
            | Self::Timeout
            | Self::NotConverging
            | Self::AgentRestarted
            | Self::Discarded
            | Self::Cancelled => true,
            Self::ContainerNotFound
            | Self::ContainerNotRunning
            | Self::ContainerAmbiguous
            | Self::MigrationNotFound
            | Self::InvalidRequest
            | Self::RuntimeUnknown
            | Self::RuntimeFailed
            | Self::BundleMissing
            | Self::NameTaken
            | Self::Blocked
            | Self::TlsFailed
            | Self::AccessDenied
            | Self::ProtocolMismatch
            | Self::BadMessage
            | Self::IncompatibleHost
            | Self::CaptureFailed
            | Self::RestoreFailed
            | Self::NetworkFailed
            | Self::MemoryDiffers
            | Self::AlreadyCommitted
            | Self::CommitUnknown
            | Self::HookFailed
            | Self::JournalFailed
            | Self::PagesLost
            | Self::PeerDisagrees
            | Self::NotInDoubt
            | Self::NotKept
            | Self::Undone
            | Self::Internal
            | Self::PeerFailed => false,
        }
    }

    /// What usually helps.
    pub fn hint(self) -> &'static str {
        match self {
            Self::ContainerNotFound => {
                "`pclivectl containers` lists what this agent sees; runtimes and their roots are in the agent's configuration"
            }
            Self::ContainerNotRunning => {
                "only a running container can be migrated live; start or resume it first"
            }
            Self::ContainerAmbiguous => "name the runtime (--runtime)",
            Self::MigrationNotFound => "`pclivectl list` shows the migrations that this agent remembers",
            Self::RuntimeUnknown => "add [runtimes.NAME] to the configuration of the agent that says this",
            Self::BundleMissing => {
                "the bundle (config.json and root file system) must be at the same path on both hosts"
            }
            Self::NameTaken => "remove the container at the destination, or migrate to another host",
            Self::Blocked => "each blocker has its own hint; `pclivectl check` lists them again",
            Self::NotNow => "try again: each of them ends by itself, as soon as the program gets to it",
            Self::Busy => "`pclivectl list` shows its migration; wait for it or cancel it",
            Self::TooMany => "try again when some of them have ended, or raise migration.max_concurrent",
            Self::PeerUnreachable => {
                "check the address, that pclive-agent runs there, and that its peer port is reachable from here"
            }
            Self::PeerLost => "check the link and the other agent's log, then try again",
            Self::ProtocolMismatch => "run the same version of pclive-agent on both hosts",
            Self::NoMemory => "free memory at the destination or choose another host",
            Self::MemoryDiffers => {
                "the container runs on at its source, unchanged; look for memory errors in both hosts' kernel logs, \
                 migrate it again with --verify, and report it with both agents' logs if it is there again"
            }
            Self::Timeout => "the timeouts are in [migration] of the agent's configuration",
            Self::NotConverging => {
                "try again when the container writes less, allow a longer downtime, or choose policy throttle or stop-anyway"
            }
            Self::CommitUnknown => {
                "the peer is asked again until it answers; `pclivectl resolve` decides without it (docs/RECOVERY.md)"
            }
            Self::HookFailed => {
                "the command is in [hooks] of the configuration of the agent that says this; the container was not stopped"
            }
            Self::JournalFailed => {
                "make room, or make agent.state_dir writable: without its journal no container is stopped"
            }
            Self::AgentRestarted => "the container was left as it was; migrate it again",
            Self::PeerDisagrees => {
                "wait until the peer answers; --override decides against it: two copies may run then, or none"
            }
            Self::NotInDoubt => "`pclivectl status` shows what became of the migration",
            Self::NotKept => {
                "an original is kept if the migration was started with --keep-source-for, until that time is over"
            }
            Self::Undone => {
                "what it did at the destination is lost, and its connections have ended; it can be migrated again"
            }
            Self::InvalidRequest
            | Self::RuntimeFailed
            | Self::TlsFailed
            | Self::AccessDenied
            | Self::ShuttingDown
            | Self::BadMessage
            | Self::IncompatibleHost
            | Self::CaptureFailed
            | Self::RestoreFailed
            | Self::NetworkFailed
            | Self::Cancelled
            | Self::AlreadyCommitted
            | Self::Discarded
            | Self::PagesLost
            | Self::Internal
            | Self::PeerFailed => "",
        }
    }

    /// The gRPC code of a call that is refused for this.
    pub fn grpc(self) -> Code {
        match self {
            Self::ContainerNotFound | Self::MigrationNotFound | Self::RuntimeUnknown => Code::NotFound,
            Self::InvalidRequest | Self::ContainerAmbiguous => Code::InvalidArgument,
            Self::NameTaken => Code::AlreadyExists,
            Self::ContainerNotRunning
            | Self::BundleMissing
            | Self::Blocked
            | Self::ProtocolMismatch
            | Self::IncompatibleHost
            | Self::AlreadyCommitted
            | Self::PeerDisagrees
            | Self::NotInDoubt
            | Self::NotKept => Code::FailedPrecondition,
            Self::TlsFailed => Code::Unauthenticated,
            Self::AccessDenied => Code::PermissionDenied,
            Self::Busy
            | Self::NotNow
            | Self::Cancelled
            | Self::NotConverging
            | Self::AgentRestarted
            | Self::Discarded
            | Self::Undone => Code::Aborted,
            Self::TooMany | Self::NoMemory => Code::ResourceExhausted,
            Self::ShuttingDown | Self::PeerUnreachable | Self::PeerLost => Code::Unavailable,
            Self::Timeout => Code::DeadlineExceeded,
            Self::BadMessage
            | Self::RuntimeFailed
            | Self::CaptureFailed
            | Self::RestoreFailed
            | Self::NetworkFailed
            | Self::MemoryDiffers
            | Self::CommitUnknown
            | Self::HookFailed
            | Self::JournalFailed
            | Self::PagesLost
            | Self::Internal
            | Self::PeerFailed => Code::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_documented_and_those_to_try_again_are_marked() {
        let text = include_str!("../../../docs/CLI.md");
        for code in ALL {
            let name = format!("`{}`", code.as_str());
            let mut cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
            let cell = cells.find(|cell| cell.contains(&name));
            let cell = cell.unwrap_or_else(|| panic!("{name} is not in docs/CLI.md"));
            assert_eq!(cell.contains(&format!("{name} +")), code.is_retryable(), "{name}");
        }
    }

    #[test]
    fn names_are_distinct_and_lead_back_to_their_codes() {
        let names: BTreeSet<_> = ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), ALL.len());
        for code in ALL {
            assert_eq!(ErrorCode::from_peer(code.as_str()), code);
        }
    }

    #[test]
    fn a_code_of_a_newer_peer_is_a_failure_of_the_peer() {
        assert_eq!(ErrorCode::from_peer("moon-phase"), ErrorCode::PeerFailed);
    }
}
