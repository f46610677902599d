//! Everything that stands in the way of a migration, without touching the container.

use pclive_engine::capture::{Connections, FilesAhead, Source, SourceOptions};
use pclive_engine::model::{Blocker, Pid, Place, Vpid};
use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::control::CheckContainerRequest;
use pclive_proto::peer::{HelloRequest, HelloResponse, HostFacts};
use tonic::transport::Channel;

use pclive_proto::peer::peer_client::PeerClient;

use crate::agent::{Agent, Located};
use crate::config::RoundKind;
use crate::error::{ErrorCode, MigrationError, printable_name};
use crate::host;
use crate::host::compatibility::{self, Demand};
use crate::link;
use crate::network::{self, Namespace};
use crate::runtime::Bundle;

/// What a check found.
#[derive(Debug, Default)]
pub struct Checked {
    /// Each of them prevents the migration.
    pub blockers: Vec<Blocker>,
    /// What the application may notice.
    pub warnings: Vec<String>,
    /// Memory in use, bytes.
    pub memory_bytes: u64,
}

/// Checks a container and, if one is named, the destination.
pub async fn check(agent: &Agent, request: &CheckContainerRequest) -> Result<Checked, MigrationError> {
    let located = agent.locate_running(&request.container, &request.runtime).await?;
    let options = source_options(agent);
    let task = tokio::task::spawn_blocking({
        let located = located.clone();
        move || local(&located, options)
    });
    let mut checked = task.await.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))??;
    if !request.destination.is_empty() {
        remote(agent, &request.destination, &located, &mut checked).await?;
    }
    Ok(checked)
}

/// The engine's options as configured.
pub(super) fn source_options(agent: &Agent) -> SourceOptions {
    let migration = &agent.config.migration;
    SourceOptions {
        batch_bytes: usize::try_from(migration.batch_bytes).unwrap_or(1 << 20),
        stop_timeout: migration.stop_timeout(),
        ahead: FilesAhead {
            files: migration.capture_each_round.contains(&RoundKind::Files),
            listeners: migration.capture_each_round.contains(&RoundKind::Sockets),
        },
        connections: Connections::Carry,
    }
}

/// What can be found out on this host. Blocks; the engine wants one thread for all of it.
fn local(located: &Located, options: SourceOptions) -> Result<Checked, MigrationError> {
    let pid = located.container.pid;
    let mut blockers = configuration(located)?;
    let capture = |error| MigrationError::caused(ErrorCode::CaptureFailed, &error);
    let mut source = Source::open(Pid(pid), options).map_err(capture)?;
    blockers.extend(source.check().map_err(capture)?);
    let looked = unmoved(pid);
    let warnings = looked.as_ref().cloned().unwrap_or_default();
    blockers.extend(looked.err().map(|error| network_blocker(pid, &error)));
    let memory_bytes = source.memory_bytes().map_err(capture)?;
    Ok(Checked { blockers, warnings, memory_bytes })
}

/// What its configuration has in the way.
pub(super) fn configuration(located: &Located) -> Result<Vec<Blocker>, MigrationError> {
    let bundle = Bundle::load(&located.container.bundle);
    let bundle = bundle.map_err(|error| MigrationError::caused(ErrorCode::BundleMissing, &error))?;
    Ok(bundle.blockers(located.container.pid))
}

/// What of its network would stay behind; an error if the rest cannot be carried.
fn unmoved(pid: i32) -> Result<Vec<String>, network::Error> {
    let namespace = Namespace::of(pid)?;
    namespace.refuse_host()?;
    network::capture(&namespace)?;
    Ok(network::unmoved(&namespace))
}

fn network_blocker(pid: i32, error: &network::Error) -> Blocker {
    Blocker {
        pid,
        vpid: Vpid(1),
        comm: "network".into(),
        place: Place::Process,
        what: crate::error::chain(error),
        hint: error.hint().unwrap_or_default().into(),
    }
}

async fn remote(
    agent: &Agent,
    destination: &str,
    located: &Located,
    checked: &mut Checked,
) -> Result<(), MigrationError> {
    let address = agent.peer_address(destination)?;
    let mut client =
        link::connect(&address, &agent.config.peer, &agent.config.migration, agent.keeper.as_ref()).await?;
    let answer = hello(agent, &mut client).await?;
    let here = host::facts().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    let there = super::wire::facts(answer.host.unwrap_or_default());
    let findings = findings(&here, &there, checked.memory_bytes);
    checked.warnings.extend(findings.warnings);
    checked.blockers.extend(findings.refusals.into_iter().map(|refusal| Blocker {
        pid: located.container.pid,
        vpid: Vpid(1),
        comm: answer.agent_name.clone(),
        place: Place::Process,
        what: refusal.message,
        hint: refusal.hint,
    }));
    Ok(())
}

/// A check does not know what the migration will allow: clocks that differ are told, not refused.
fn findings(here: &HostFacts, there: &HostFacts, memory_bytes: u64) -> compatibility::Findings {
    compatibility::compare(here, there, Demand { memory_bytes, allow_clock_step_back: true })
}

/// Asks the peer who it is; refuses one that speaks another version.
pub(super) async fn hello(
    agent: &Agent,
    client: &mut PeerClient<Channel>,
) -> Result<HelloResponse, MigrationError> {
    let request = HelloRequest { protocol_version: PROTOCOL_VERSION, agent_name: agent.name.clone() };
    let answered =
        tokio::time::timeout(agent.config.migration.connect_timeout(), client.hello(request)).await;
    let answer = match answered {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return Err(super::wire::status_error(&status)),
        Err(_) => return Err(MigrationError::new(ErrorCode::Timeout, "the other agent does not answer")),
    };
    version_matches(PROTOCOL_VERSION, answer.protocol_version, &answer.agent_name)?;
    Ok(HelloResponse { agent_name: printable_name(&answer.agent_name), ..answer })
}

/// Refuses an agent of another protocol version, naming both.
pub(crate) fn version_matches(ours: u32, theirs: u32, agent: &str) -> Result<(), MigrationError> {
    if ours == theirs {
        return Ok(());
    }
    let agent = printable_name(agent);
    let message =
        format!("cannot talk to agent {agent}: it speaks protocol version {theirs}, this agent {ours}");
    Err(MigrationError::new(ErrorCode::ProtocolMismatch, message))
}
