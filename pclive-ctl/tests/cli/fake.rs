//! An agent that plays a script.
//!
//! It listens on a unix socket in a directory of its own and has a runtime of its own, so that it can go away as
//! completely as a killed process does.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pclive_proto::control::control_server::{Control, ControlServer};
use pclive_proto::control::*;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

/// What the agent does while somebody watches.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Tells an event.
    Tell(Box<Event>),
    /// Goes on once it was asked to cancel.
    AwaitCancel,
    /// Lets the test know that the script has come this far, and stays there.
    Stay,
    /// Breaks the stream.
    Break,
}

/// What the agent answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    /// One for each time that somebody watches; the last one serves all later watchers.
    pub(crate) watches: Vec<Vec<Step>>,
    /// One for each time that the migration is asked for; the last one serves all later questions.
    pub(crate) states: Vec<Migration>,
    /// Refuses to start, with this error.
    pub(crate) start_error: Option<Error>,
    /// Never answers a start.
    pub(crate) start_hangs: bool,
    /// Refuses to cancel, with this error.
    pub(crate) cancel_error: Option<Error>,
    /// Refuses to decide, with this error.
    pub(crate) resolve_error: Option<Error>,
    /// `resolve`.
    pub(crate) resolve: ResolveMigrationResponse,
    /// `undo`; `confirmed` decides about the phase.
    pub(crate) kept: Kept,
    /// `list`.
    pub(crate) migrations: Vec<Migration>,
    /// `check`.
    pub(crate) check: CheckContainerResponse,
    /// `plan`.
    pub(crate) plan: PlanMigrationResponse,
    /// `containers`.
    pub(crate) containers: Vec<Container>,
    /// `host`.
    pub(crate) host: Host,
}

/// The agent. It ends when it is dropped.
pub(crate) struct Fake {
    directory: TempDir,
    runtime: Option<Runtime>,
    told: Receiver<()>,
    seen: Arc<Seen>,
}

/// What it was asked.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    watches: AtomicUsize,
    states: AtomicUsize,
    cancels: AtomicUsize,
    starts: Mutex<Vec<StartMigrationRequest>>,
    checks: Mutex<Vec<CheckContainerRequest>>,
    resolves: Mutex<Vec<ResolveMigrationRequest>>,
}

impl Seen {
    /// How often somebody watched.
    pub(crate) fn watches(&self) -> usize {
        self.watches.load(Ordering::SeqCst)
    }

    /// How often it was asked to cancel.
    pub(crate) fn cancels(&self) -> usize {
        self.cancels.load(Ordering::SeqCst)
    }

    /// The migrations that it was asked to start.
    pub(crate) fn starts(&self) -> Vec<StartMigrationRequest> {
        self.starts.lock().unwrap().clone()
    }

    /// What it was asked to decide.
    pub(crate) fn resolves(&self) -> Vec<ResolveMigrationRequest> {
        self.resolves.lock().unwrap().clone()
    }

    /// The containers that it was asked to check.
    pub(crate) fn checks(&self) -> Vec<CheckContainerRequest> {
        self.checks.lock().unwrap().clone()
    }
}

impl Fake {
    /// Starts an agent.
    pub(crate) fn new(script: Script) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (tell, told) = channel();
        let seen = Arc::new(Seen::default());
        let agent = Agent { script, seen: Arc::clone(&seen), cancelled: Arc::new(Notify::new()), tell };
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(directory.path().join("agent.sock")).unwrap()
        };
        runtime.spawn(
            Server::builder()
                .add_service(ControlServer::new(agent))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { directory, runtime: Some(runtime), told, seen }
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// What it was asked so far.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Waits until the script stays somewhere.
    pub(crate) fn wait(&self) {
        self.told.recv_timeout(Duration::from_secs(20)).expect("the script was not played so far in 20 s");
    }

    /// Ends at once, with all its connections.
    pub(crate) fn vanish(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.vanish();
    }
}

struct Agent {
    script: Script,
    seen: Arc<Seen>,
    cancelled: Arc<Notify>,
    tell: Sender<()>,
}

fn refusal(error: &Error) -> Status {
    error.clone().into_status(Code::FailedPrecondition)
}

fn nth<T: Clone>(answers: &[T], index: usize) -> Option<T> {
    answers.get(index).or(answers.last()).cloned()
}

#[tonic::async_trait]
impl Control for Agent {
    async fn start_migration(
        &self,
        request: Request<StartMigrationRequest>,
    ) -> Result<Response<StartMigrationResponse>, Status> {
        self.seen.starts.lock().unwrap().push(request.into_inner());
        if self.script.start_hangs {
            self.tell.send(()).unwrap();
            std::future::pending::<()>().await;
        }
        match &self.script.start_error {
            Some(error) => Err(refusal(error)),
            None => Ok(Response::new(StartMigrationResponse { migration_id: "m-1".into() })),
        }
    }

    async fn get_migration(
        &self,
        request: Request<GetMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        let index = self.seen.states.fetch_add(1, Ordering::SeqCst);
        let id = request.into_inner().migration_id;
        match nth(&self.script.states, index) {
            Some(migration) => Ok(Response::new(migration)),
            None => Err(Status::not_found(format!("there is no migration {id}"))),
        }
    }

    async fn list_migrations(
        &self,
        _: Request<ListMigrationsRequest>,
    ) -> Result<Response<ListMigrationsResponse>, Status> {
        Ok(Response::new(ListMigrationsResponse { migrations: self.script.migrations.clone() }))
    }

    type WatchMigrationStream = ReceiverStream<Result<Event, Status>>;

    async fn watch_migration(
        &self,
        _: Request<WatchMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        let index = self.seen.watches.fetch_add(1, Ordering::SeqCst);
        let steps = nth(&self.script.watches, index).unwrap_or_default();
        let (events, stream) = tokio::sync::mpsc::channel(1);
        let (cancelled, tell) = (Arc::clone(&self.cancelled), self.tell.clone());
        tokio::spawn(async move {
            for step in steps {
                match step {
                    Step::Tell(event) => {
                        let _ = events.send(Ok(*event)).await;
                    }
                    Step::AwaitCancel => cancelled.notified().await,
                    Step::Stay => {
                        tell.send(()).unwrap();
                        std::future::pending().await
                    }
                    Step::Break => {
                        let _ = events.send(Err(Status::unknown("the link broke"))).await;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn cancel_migration(
        &self,
        _: Request<CancelMigrationRequest>,
    ) -> Result<Response<CancelMigrationResponse>, Status> {
        self.seen.cancels.fetch_add(1, Ordering::SeqCst);
        self.cancelled.notify_one();
        match &self.script.cancel_error {
            Some(error) => Err(refusal(error)),
            None => Ok(Response::new(CancelMigrationResponse { phase: Phase::PreCopy.into() })),
        }
    }

    async fn resolve_migration(
        &self,
        request: Request<ResolveMigrationRequest>,
    ) -> Result<Response<ResolveMigrationResponse>, Status> {
        self.seen.resolves.lock().unwrap().push(request.into_inner());
        match &self.script.resolve_error {
            Some(error) => Err(refusal(error)),
            None => Ok(Response::new(self.script.resolve.clone())),
        }
    }

    async fn undo_migration(
        &self,
        request: Request<UndoMigrationRequest>,
    ) -> Result<Response<UndoMigrationResponse>, Status> {
        let phase = if request.get_ref().confirmed { Phase::Failed } else { Phase::Done };
        Ok(Response::new(UndoMigrationResponse { phase: phase.into(), kept: Some(self.script.kept) }))
    }

    async fn check_container(
        &self,
        request: Request<CheckContainerRequest>,
    ) -> Result<Response<CheckContainerResponse>, Status> {
        self.seen.checks.lock().unwrap().push(request.into_inner());
        Ok(Response::new(self.script.check.clone()))
    }

    async fn plan_migration(
        &self,
        _: Request<PlanMigrationRequest>,
    ) -> Result<Response<PlanMigrationResponse>, Status> {
        Ok(Response::new(self.script.plan.clone()))
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        Ok(Response::new(ListContainersResponse { containers: self.script.containers.clone() }))
    }

    async fn get_host(&self, _: Request<GetHostRequest>) -> Result<Response<Host>, Status> {
        Ok(Response::new(self.script.host.clone()))
    }
}
