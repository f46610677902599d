//! Calls to the agent.
//!
//! Every call but the event stream has a deadline. The connection comes back by itself for the next call after it
//! broke.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use pclive_proto::control::control_client::ControlClient;
use pclive_proto::control::{
    CancelMigrationRequest, CheckContainerRequest, CheckContainerResponse, Container, Event, GetHostRequest,
    GetMigrationRequest, Host, ListContainersRequest, ListMigrationsRequest, Migration, Phase,
    PlanMigrationRequest, PlanMigrationResponse, ResolveMigrationRequest, ResolveMigrationResponse,
    StartMigrationRequest, UndoMigrationRequest, UndoMigrationResponse, WatchMigrationRequest,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};

use crate::address::Address;
use crate::args::Tls;
use crate::failure::{self, Failure};
use crate::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For calls that the agent answers from memory.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For calls that look at containers, or ask a peer.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(60);
/// A host that has gone without a word is noticed after twice this time.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Statuses carry structured errors in their trailers.
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// A connection to the agent.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    control: ControlClient<Channel>,
}

impl Client {
    /// Connects. On an error nothing was asked of the agent.
    pub(crate) async fn connect(agent: &Address, tls: &Tls) -> Result<Self, Failure> {
        let channel = match agent {
            Address::Unix(path) => {
                let path = path.clone();
                // The URI names nobody: the connector alone decides where to.
                let endpoint = tuned(Endpoint::from_static("http://agent"));
                let connector = tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                endpoint.connect_with_connector(connector).await
            }
            Address::Https(uri) => {
                let connector = tls::connector(tls)?;
                // TLS is the connector's part; to the endpoint it is a connection like any other.
                match Endpoint::from_shared(uri.replacen("https", "http", 1)) {
                    Ok(endpoint) => tuned(endpoint).connect_with_connector(connector).await,
                    Err(error) => Err(error),
                }
            }
            Address::Http(uri) => match Endpoint::from_shared(uri.clone()) {
                Ok(endpoint) => tuned(endpoint).connect().await,
                Err(error) => Err(error),
            },
        };
        let channel = channel.map_err(|source| Failure::Unreachable { agent: agent.clone(), source })?;
        Ok(Self { control: ControlClient::new(channel) })
    }

    /// Starts a migration; its id.
    pub(crate) async fn start(&mut self, request: StartMigrationRequest) -> Result<String, Failure> {
        let container = request.container.clone();
        match self.control.start_migration(within(INSPECT_TIMEOUT, request)).await {
            Ok(answer) => Ok(answer.into_inner().migration_id),
            Err(status) if failure::is_answer(&status) => {
                Err(Failure::call(format!("start the migration of {container}"), status))
            }
            Err(status) => Err(Failure::StartUnknown { container, source: Box::new(status) }),
        }
    }

    /// One migration.
    pub(crate) async fn migration(&mut self, id: &str) -> Result<Migration, Failure> {
        let request = within(CALL_TIMEOUT, GetMigrationRequest { migration_id: id.to_owned() });
        let answer = self.control.get_migration(request).await;
        Ok(answer.map_err(|status| Failure::call(format!("get migration {id}"), status))?.into_inner())
    }

    /// All migrations, newest first.
    pub(crate) async fn migrations(&mut self) -> Result<Vec<Migration>, Failure> {
        let answer = self.control.list_migrations(within(CALL_TIMEOUT, ListMigrationsRequest {})).await;
        Ok(answer.map_err(|status| Failure::call("list the migrations", status))?.into_inner().migrations)
    }

    /// The events of a migration: those so far, then each new one.
    pub(crate) async fn watch(&mut self, id: &str) -> Result<Streaming<Event>, Failure> {
        let request = WatchMigrationRequest { migration_id: id.to_owned() };
        let answer = tokio::time::timeout(CALL_TIMEOUT, self.control.watch_migration(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
        Ok(answer.map_err(|status| Failure::call(format!("watch migration {id}"), status))?.into_inner())
    }

    /// Asks a migration to end; the phase that it was in.
    pub(crate) async fn cancel(&mut self, id: &str) -> Result<Phase, Failure> {
        let request = within(CALL_TIMEOUT, CancelMigrationRequest { migration_id: id.to_owned() });
        let answer = self.control.cancel_migration(request).await;
        Ok(answer
            .map_err(|status| Failure::call(format!("cancel migration {id}"), status))?
            .into_inner()
            .phase())
    }

    /// Decides a migration in doubt.
    pub(crate) async fn resolve(
        &mut self,
        request: ResolveMigrationRequest,
    ) -> Result<ResolveMigrationResponse, Failure> {
        let what = format!("resolve migration {}", request.migration_id);
        let answer = self.control.resolve_migration(within(INSPECT_TIMEOUT, request)).await;
        Ok(answer.map_err(|status| Failure::call(what, status))?.into_inner())
    }

    /// Goes back to an original that is kept, if it is confirmed; the agent waits for the destination.
    pub(crate) async fn undo(
        &mut self,
        request: UndoMigrationRequest,
    ) -> Result<UndoMigrationResponse, Failure> {
        let what = format!("undo migration {}", request.migration_id);
        let answer = self.control.undo_migration(within(INSPECT_TIMEOUT, request)).await;
        Ok(answer.map_err(|status| Failure::call(what, status))?.into_inner())
    }

    /// What stands in the way of a container.
    pub(crate) async fn check(
        &mut self,
        request: CheckContainerRequest,
    ) -> Result<CheckContainerResponse, Failure> {
        let what = format!("check container {}", request.container);
        let answer = self.control.check_container(within(INSPECT_TIMEOUT, request)).await;
        Ok(answer.map_err(|status| Failure::call(what, status))?.into_inner())
    }

    /// How a migration would go; the agent watches the container for `watch`.
    pub(crate) async fn plan(
        &mut self,
        request: PlanMigrationRequest,
        watch: Duration,
    ) -> Result<PlanMigrationResponse, Failure> {
        let what = format!("plan the migration of {}", request.container);
        let patience = INSPECT_TIMEOUT.saturating_add(watch);
        let answer = self.control.plan_migration(within(patience, request)).await;
        Ok(answer.map_err(|status| Failure::call(what, status))?.into_inner())
    }

    /// The containers of the host.
    pub(crate) async fn containers(&mut self) -> Result<Vec<Container>, Failure> {
        let answer = self.control.list_containers(within(INSPECT_TIMEOUT, ListContainersRequest {})).await;
        Ok(answer.map_err(|status| Failure::call("list the containers", status))?.into_inner().containers)
    }

    /// The host.
    pub(crate) async fn host(&mut self) -> Result<Host, Failure> {
        let answer = self.control.get_host(within(CALL_TIMEOUT, GetHostRequest {})).await;
        Ok(answer.map_err(|status| Failure::call("ask about the host", status))?.into_inner())
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
}

fn within<T>(time: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time);
    request
}
