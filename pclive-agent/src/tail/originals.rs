//! The source's side: pages of a container that stands still, for the fetcher of its destination.
//!
//! What may be read is decided by the journal: a migration whose COMMIT may have been sent. From there on the container
//! does not run until somebody decides that it does, and then [`Tails::close`] comes first.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pclive_engine::model::{PAGE_SIZE, Pid, Vpid};
use pclive_engine::tail::Original;
use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::peer::fetch_request::Request;
use pclive_proto::peer::{FetchBegin, FetchComplete, FetchPages, FetchReply, FetchRequest};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use xxhash_rust::xxh3::xxh3_64;

use super::hurry;
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError};
use crate::journal::{self, Log, Phase, Role};
use crate::tls::Caller;

/// Most pages of one request.
const MOST_PAGES: u32 = 256;
/// Requests and replies that may wait.
const QUEUE: usize = 4096;
const REPLIES: usize = 64;
/// How long pages may be asked for before the commit, by a fetcher that is early.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// Every migration whose pages are being fetched, or were.
#[derive(Debug, Default)]
pub(crate) struct Tails {
    tails: Mutex<HashMap<String, Arc<Tail>>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Tail {
    /// The original may run again: what is read from now on is not what was at the stop.
    closed: AtomicBool,
    complete: watch::Sender<Option<FetchComplete>>,
    /// Ends the line that serves it, when another is opened: there is one fetcher, with one thread for it here.
    line: Mutex<CancellationToken>,
    /// When something was last asked for.
    heard: Mutex<Option<Instant>>,
}

impl Tails {
    /// The tail of a migration, begun if it is not yet.
    pub(crate) fn of(&self, id: &str) -> Arc<Tail> {
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let complete = watch::Sender::new(None);
            Arc::new(Tail {
                closed: AtomicBool::new(false),
                complete,
                line: Mutex::default(),
                heard: Mutex::default(),
            })
        };
        Arc::clone(tails.entry(id.into()).or_insert_with(new))
    }

    /// The container is about to run here: no page of it is given away any more.
    pub(crate) fn close(&self, id: &str) {
        self.of(id).closed.store(true, Ordering::SeqCst);
    }

    /// The migration has ended.
    pub(crate) fn forget(&self, id: &str) {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Tail {
    /// A line is opened, in the place of the one before it; cancelled when it is to end.
    fn open(&self) -> CancellationToken {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.cancel();
        *line = CancellationToken::new();
        line.clone()
    }

    /// Waits until the destination says that every page is in place.
    pub(crate) async fn completed(&self) -> FetchComplete {
        let mut complete = self.complete.subscribe();
        // The sender is here, too: it does not end.
        let told = complete.wait_for(Option::is_some).await.ok().and_then(|complete| *complete);
        told.unwrap_or_default()
    }

    /// What the destination said of the end, if it did.
    pub(crate) fn told(&self) -> Option<FetchComplete> {
        *self.complete.borrow()
    }

    /// When something was last asked for.
    pub(crate) fn heard(&self) -> Option<Instant> {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(message: &str) -> MigrationError {
    MigrationError::new(ErrorCode::AccessDenied, message)
}

/// Serves one line of a fetcher; replies come out of the receiver.
pub(crate) async fn fetch(
    agent: &Arc<Agent>,
    caller: &Caller,
    mut incoming: Streaming<FetchRequest>,
) -> Result<mpsc::Receiver<Result<FetchReply, Status>>, MigrationError> {
    let patience = agent.config.migration.connect_timeout();
    let first = tokio::time::timeout(patience, incoming.message()).await;
    let Ok(Ok(Some(FetchRequest { request: Some(Request::Begin(begin)) }))) = first else {
        return Err(refused("cannot give pages to a caller that does not say of which container"));
    };
    caller.speaks_for(&begin.agent_name)?;
    crate::migration::version_matches(PROTOCOL_VERSION, begin.protocol_version, &begin.agent_name)?;
    let (log, init) = admitted(agent, &begin)?;
    let tail = agent.tails.of(&begin.migration_id);
    let (replies, receiver) = mpsc::channel(REPLIES);
    let (requests, queue) = mpsc::channel(QUEUE);
    let reader = Reader { tail: Arc::clone(&tail), log, init, replies: replies.clone() };
    let spawned = std::thread::Builder::new().name("pages".into()).spawn(move || reader.serve(queue));
    spawned.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    tracing::info!(id = begin.migration_id, "pages are being fetched");
    let line = tail.open();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = line.cancelled() => tracing::info!("pages are fetched by another line"),
            () = take(incoming, tail, requests, replies) => {}
        }
    });
    Ok(receiver)
}

/// The log and the init of the migration whose pages are asked for by who has its token.
fn admitted(agent: &Agent, begin: &FetchBegin) -> Result<(Arc<Mutex<Log>>, Pid), MigrationError> {
    let unknown = || refused("cannot give pages of a migration that is not under way with this caller");
    let log = agent.journal.log(&begin.migration_id).ok_or_else(unknown)?;
    let record = journal::guard(&log).record().clone();
    let known = record.role == Role::Source
        && !record.is_ended()
        && !record.tail_token.is_empty()
        && record.tail_token == begin.token
        && record.boot_id == crate::recovery::process::boot_id();
    let init = record.init.filter(|_| known).ok_or_else(unknown)?;
    Ok((log, Pid(init.pid)))
}

/// Hands requests to the reader, until the line ends.
async fn take(
    mut incoming: Streaming<FetchRequest>,
    tail: Arc<Tail>,
    requests: mpsc::Sender<FetchPages>,
    replies: mpsc::Sender<Result<FetchReply, Status>>,
) {
    while let Ok(Some(FetchRequest { request: Some(request) })) = incoming.message().await {
        *tail.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        match request {
            Request::Pages(pages) => {
                if requests.send(pages).await.is_err() {
                    return;
                }
            }
            Request::Complete(complete) => {
                tail.complete.send_replace(Some(complete));
                let reply = FetchReply { complete: true, checksum: xxh3_64(&[]), ..FetchReply::default() };
                let _ = replies.send(Ok(reply)).await;
            }
            Request::Begin(_) => return,
        }
    }
}

/// Reads pages on a thread of its own.
struct Reader {
    tail: Arc<Tail>,
    log: Arc<Mutex<Log>>,
    init: Pid,
    replies: mpsc::Sender<Result<FetchReply, Status>>,
}

impl Reader {
    fn serve(self, mut queue: mpsc::Receiver<FetchPages>) {
        hurry();
        let mut original = None;
        let (mut urgent, mut rest) = (VecDeque::new(), VecDeque::new());
        while let Some(first) = queue.blocking_recv() {
            let mut next = Some(first);
            while let Some(request) = next.take() {
                let lane = if request.urgent { &mut urgent } else { &mut rest };
                lane.push_back(request);
                // No more than may wait anyway: the line is slowed down by what is not taken from it.
                while urgent.len() + rest.len() < QUEUE
                    && let Ok(request) = queue.try_recv()
                {
                    let lane = if request.urgent { &mut urgent } else { &mut rest };
                    lane.push_back(request);
                }
                let Some(request) = urgent.pop_front().or_else(|| rest.pop_front()) else { break };
                let reply = self.read(&mut original, &request);
                let failed = reply.is_err();
                if self.replies.blocking_send(reply.map_err(Status::from)).is_err() || failed {
                    return;
                }
                next = urgent.pop_front().or_else(|| rest.pop_front());
            }
        }
    }

    fn read(
        &self,
        original: &mut Option<Original>,
        request: &FetchPages,
    ) -> Result<FetchReply, MigrationError> {
        self.await_commit()?;
        let failed = |error| MigrationError::caused(ErrorCode::CaptureFailed, &error);
        let original = match original {
            Some(original) => original,
            None => original.insert(Original::open(self.init).map_err(failed)?),
        };
        if request.pages == 0 || request.pages > MOST_PAGES || !request.start.is_multiple_of(PAGE_SIZE) {
            return Err(MigrationError::new(ErrorCode::BadMessage, "cannot read pages that are none"));
        }
        let mut payload = vec![0; request.pages as usize * PAGE_SIZE as usize];
        original.read(Vpid(request.process), request.start, &mut payload).map_err(failed)?;
        // Looked at after the pages were read: what was read before the container may run is right.
        if self.tail.closed.load(Ordering::SeqCst) {
            return Err(refused("cannot give pages of a container that runs here again"));
        }
        let checksum = xxh3_64(&payload);
        Ok(FetchReply { id: request.id, payload: payload.into(), checksum, complete: false })
    }

    /// A fetcher asks once the copy runs, which is after COMMIT.
    fn await_commit(&self) -> Result<(), MigrationError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match journal::guard(&self.log).record().phase {
                Phase::Committing => return Ok(()),
                Phase::Begun if Instant::now() < deadline => {}
                Phase::Begun
                | Phase::Discarded
                | Phase::Tail
                | Phase::Torn
                | Phase::Kept(_)
                | Phase::Undoing(_)
                | Phase::Withdrawn
                | Phase::Ended(_) => {
                    return Err(refused("cannot give pages of a container that was not handed over"));
                }
            }
            std::thread::sleep(PAUSE);
        }
    }
}
