//! What holds for every key that nobody has set. `configs/agent.toml` says the same, and a test compares them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{
    Agent, Compression, Control, Hooks, Log, LogFormat, Migration, Network, Peer, RoundKind, Runtime,
    Runtimes, Strategy, Tls,
};
use crate::migration::convergence::Policy;

impl Default for Agent {
    fn default() -> Self {
        Self { name: String::new(), state_dir: "/var/lib/pclive".into(), audit_max_bytes: 16 << 20 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: "/run/pclive/agent.sock".into(),
            tcp: String::new(),
            insecure: false,
            insecure_outside_loopback: false,
        }
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:7413".into(),
            insecure: false,
            insecure_outside_loopback: false,
            accept_unlisted: false,
            congestion: "cubic".into(),
            keepalive_interval_ms: 2_000,
            keepalive_timeout_ms: 5_000,
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self { ca: "/etc/pclive/tls/ca.pem".into(), certificate: PathBuf::new(), key: PathBuf::new() }
    }
}

impl Default for Runtimes {
    fn default() -> Self {
        Self(BTreeMap::from([("runc".into(), Runtime::default())]))
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self { binary: "runc".into(), root: "/run/runc".into() }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self { bridge: String::new(), capture_bytes: 16 << 20 }
    }
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            strategy: Strategy::Global,
            restore_after: 0,
            max_downtime_ms: 300,
            capture_each_round: RoundKind::ALL.to_vec(),
            max_rounds: 15,
            max_time_ms: 0,
            policy: Policy::StopAnyway,
            bandwidth_bytes_per_second: 0,
            compression: Compression::Off,
            verify: false,
            batch_bytes: 1 << 20,
            in_flight_bytes: 64 << 20,
            max_concurrent: 4,
            staging_limit_bytes: 0,
            history: 100,
            stdio_dir: "/var/log/pclive".into(),
            connect_timeout_ms: 5_000,
            streams: 0,
            reconnect_timeout_ms: 15_000,
            prepare_timeout_ms: 30_000,
            progress_timeout_ms: 60_000,
            stop_timeout_ms: 5_000,
            handover_timeout_ms: 20_000,
            commit_grace_ms: 10_000,
            runtime_timeout_ms: 30_000,
            shutdown_grace_ms: 20_000,
        }
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            before_freeze: Vec::new(),
            after_resume: Vec::new(),
            after_source_destroyed: Vec::new(),
            on_rollback: Vec::new(),
            timeout_ms: 10_000,
        }
    }
}
