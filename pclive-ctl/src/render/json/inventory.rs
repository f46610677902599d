//! The host, its containers, a check, a cancellation.

use pclive_proto::control::{CheckContainerResponse, Container as WireContainer, Host as WireHost, Phase};
use serde::Serialize;

use super::{Blocker, told};
use crate::render::name;

/// `containers`.
#[derive(Debug, Serialize)]
pub(crate) struct Containers<'a> {
    containers: Vec<Container<'a>>,
}

#[derive(Debug, Serialize)]
struct Container<'a> {
    container: &'a str,
    runtime: &'a str,
    status: &'a str,
    pid: Option<i32>,
    bundle: &'a str,
    migration_id: Option<&'a str>,
}

impl<'a> From<&'a [WireContainer]> for Containers<'a> {
    fn from(containers: &'a [WireContainer]) -> Self {
        Self { containers: containers.iter().map(Container::from).collect() }
    }
}

impl<'a> From<&'a WireContainer> for Container<'a> {
    fn from(container: &'a WireContainer) -> Self {
        Self {
            container: &container.id,
            runtime: &container.runtime,
            status: &container.status,
            pid: (container.pid > 0).then_some(container.pid),
            bundle: &container.bundle,
            migration_id: told(&container.migration_id),
        }
    }
}

/// `host`.
#[derive(Debug, Serialize)]
pub(crate) struct Host<'a> {
    agent_name: &'a str,
    agent_version: &'a str,
    kernel_release: &'a str,
    runtimes: &'a [String],
    peers: Vec<Peer<'a>>,
    features: Vec<Feature<'a>>,
    active_migrations: u32,
}

#[derive(Debug, Serialize)]
struct Peer<'a> {
    name: &'a str,
    address: &'a str,
}

#[derive(Debug, Serialize)]
struct Feature<'a> {
    name: &'a str,
    present: bool,
    needed_for: &'a str,
}

impl<'a> From<&'a WireHost> for Host<'a> {
    fn from(host: &'a WireHost) -> Self {
        let feature = |feature: &'a pclive_proto::control::Feature| Feature {
            name: &feature.name,
            present: feature.present,
            needed_for: &feature.needed_for,
        };
        Self {
            agent_name: &host.agent_name,
            agent_version: &host.agent_version,
            kernel_release: &host.kernel_release,
            runtimes: &host.runtimes,
            peers: host.peers.iter().map(|peer| Peer { name: &peer.name, address: &peer.address }).collect(),
            features: host.features.iter().map(feature).collect(),
            active_migrations: host.active_migrations,
        }
    }
}

/// `check`.
#[derive(Debug, Serialize)]
pub(crate) struct Check<'a> {
    container: &'a str,
    to: Option<&'a str>,
    blockers: Vec<Blocker<'a>>,
    warnings: &'a [String],
}

impl<'a> Check<'a> {
    /// What was found about this container, and this destination if it was asked.
    pub(crate) fn new(container: &'a str, to: Option<&'a str>, found: &'a CheckContainerResponse) -> Self {
        let blockers = found.blockers.iter().map(Blocker::from).collect();
        Self { container, to, blockers, warnings: &found.warnings }
    }
}

/// `cancel`.
#[derive(Debug, Serialize)]
pub(crate) struct Cancelling<'a> {
    migration_id: &'a str,
    phase: Option<&'static str>,
}

impl<'a> Cancelling<'a> {
    /// The migration, and the phase that it was in when the agent was asked.
    pub(crate) fn new(migration_id: &'a str, phase: Phase) -> Self {
        Self { migration_id, phase: name::phase_json(phase) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_one_document() {
        let found = CheckContainerResponse { blockers: Vec::new(), warnings: vec!["w".into()] };
        assert_eq!(
            serde_json::to_string(&Check::new("redis-1", None, &found)).unwrap(),
            r#"{"container":"redis-1","to":null,"blockers":[],"warnings":["w"]}"#
        );
    }

    #[test]
    fn a_container_that_does_not_run_has_no_pid() {
        let stopped = WireContainer { id: "web".into(), runtime: "runc".into(), ..WireContainer::default() };
        assert_eq!(
            serde_json::to_string(&Containers::from([stopped].as_slice())).unwrap(),
            r#"{"containers":[{"container":"web","runtime":"runc","status":"","pid":null,"bundle":"","migration_id":null}]}"#
        );
    }
}
