//! `pclive.control.v1`: what users call.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream;
use pclive_proto::control::control_server::Control;
use pclive_proto::control::{
    CancelMigrationRequest, CancelMigrationResponse, CheckContainerRequest, CheckContainerResponse, Event,
    GetHostRequest, GetMigrationRequest, Host, ListContainersRequest, ListContainersResponse,
    ListMigrationsRequest, ListMigrationsResponse, Migration, Peer, PlanMigrationRequest,
    PlanMigrationResponse, Resolution, ResolveMigrationRequest, ResolveMigrationResponse,
    StartMigrationRequest, StartMigrationResponse, UndoMigrationRequest, UndoMigrationResponse,
    WatchMigrationRequest,
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::caller;
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError, blocker_message, phase_name};
use crate::host;
use crate::journal::Asker;
use crate::migration;
use crate::recovery::{self, decision::Wish};

/// The control service of one agent.
#[derive(Debug, Clone)]
pub(super) struct ControlService {
    agent: Arc<Agent>,
}

impl ControlService {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn start_migration(
        &self,
        request: Request<StartMigrationRequest>,
    ) -> Result<Response<StartMigrationResponse>, Status> {
        let caller = caller(&request)?;
        let entry = migration::start(&self.agent, &caller, request.into_inner()).await?;
        Ok(Response::new(StartMigrationResponse { migration_id: entry.id().into() }))
    }

    async fn get_migration(
        &self,
        request: Request<GetMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        let entry = self.agent.registry.get(&request.get_ref().migration_id)?;
        Ok(Response::new(entry.snapshot()))
    }

    async fn list_migrations(
        &self,
        _request: Request<ListMigrationsRequest>,
    ) -> Result<Response<ListMigrationsResponse>, Status> {
        Ok(Response::new(ListMigrationsResponse { migrations: self.agent.registry.list() }))
    }

    type WatchMigrationStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn watch_migration(
        &self,
        request: Request<WatchMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        let watcher = self.agent.registry.get(&request.get_ref().migration_id)?.watch();
        let events = stream::unfold(watcher, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((Ok(event), watcher))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn cancel_migration(
        &self,
        request: Request<CancelMigrationRequest>,
    ) -> Result<Response<CancelMigrationResponse>, Status> {
        let entry = self.agent.registry.get(&request.get_ref().migration_id)?;
        let why = MigrationError::new(ErrorCode::Cancelled, "the migration was cancelled by a user");
        let phase = entry.current_phase();
        if entry.cancel_for(Some(Asker::from(&caller(&request)?)), why) {
            return Ok(Response::new(CancelMigrationResponse { phase: phase.into() }));
        }
        let message = format!("cannot cancel migration {}: it is {}", entry.id(), phase_name(phase));
        Err(MigrationError::new(ErrorCode::AlreadyCommitted, message).into())
    }

    async fn resolve_migration(
        &self,
        request: Request<ResolveMigrationRequest>,
    ) -> Result<Response<ResolveMigrationResponse>, Status> {
        let operator = Asker::from(&caller(&request)?);
        let request = request.into_inner();
        let wish = match request.resolution() {
            Resolution::RunHere => Wish::RunHere,
            Resolution::DiscardHere => Wish::DiscardHere,
            Resolution::Unspecified => {
                let message = "cannot resolve a migration without a decision";
                return Err(MigrationError::new(ErrorCode::InvalidRequest, message)
                    .hint("say where the container is to run")
                    .into());
            }
        };
        let (agent, id, overridden) = (Arc::clone(&self.agent), request.migration_id, request.r#override);
        let decided = async move { recovery::resolve(&agent, &id, wish, overridden, operator).await };
        let (phase, peer) = to_its_end(decided).await?;
        Ok(Response::new(ResolveMigrationResponse { phase: phase.into(), peer }))
    }

    async fn undo_migration(
        &self,
        request: Request<UndoMigrationRequest>,
    ) -> Result<Response<UndoMigrationResponse>, Status> {
        let operator = Asker::from(&caller(&request)?);
        let UndoMigrationRequest { migration_id, confirmed } = request.into_inner();
        let undone = recovery::undo(Arc::clone(&self.agent), migration_id, confirmed, operator);
        Ok(Response::new(to_its_end(undone).await?))
    }

    async fn check_container(
        &self,
        request: Request<CheckContainerRequest>,
    ) -> Result<Response<CheckContainerResponse>, Status> {
        let request = request.into_inner();
        let checked = migration::check(&self.agent, &request).await?;
        Ok(Response::new(CheckContainerResponse {
            blockers: checked.blockers.iter().map(blocker_message).collect(),
            warnings: checked.warnings,
        }))
    }

    async fn plan_migration(
        &self,
        request: Request<PlanMigrationRequest>,
    ) -> Result<Response<PlanMigrationResponse>, Status> {
        Ok(Response::new(migration::plan(&self.agent, request.into_inner()).await?))
    }

    async fn list_containers(
        &self,
        _request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        Ok(Response::new(ListContainersResponse { containers: self.agent.containers().await }))
    }

    async fn get_host(&self, _request: Request<GetHostRequest>) -> Result<Response<Host>, Status> {
        let facts = host::facts().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        let peers = self.agent.config.peers.iter();
        Ok(Response::new(Host {
            agent_name: self.agent.name.clone(),
            agent_version: facts.agent_version,
            features: host::features(&facts.kernel_release),
            kernel_release: facts.kernel_release,
            runtimes: self.agent.runtimes.keys().cloned().collect(),
            peers: peers
                .map(|(name, address)| Peer { name: name.clone(), address: address.clone() })
                .collect(),
            active_migrations: self.agent.registry.live(),
        }))
    }
}

/// Runs a decision to its end, also when the client that wants it leaves.
async fn to_its_end<T: Send + 'static>(
    decision: impl Future<Output = Result<T, MigrationError>> + Send + 'static,
) -> Result<T, MigrationError> {
    let decided = tokio::spawn(decision).await;
    decided.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?
}
