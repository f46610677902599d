//! What the fetcher does, from its begin to the last page: a process with one thread that hears, asks and places.
//!
//! One thread, because every step is a short system call and handing pages from one thread to another takes longer than
//! all of them. The agent's end of the socket may close at any time; then it goes on alone, if the copy was let go.

use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pclive_engine::model::PAGE_SIZE;
use pclive_engine::tail::Lack;
use pclive_proto::peer::fetch_request::Request;
use pclive_proto::peer::{FetchComplete, FetchPages, FetchReply, FetchRequest};
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tonic::Status;

use super::frame::{self, Kind};
use super::orders::Orders;
use super::serving::Serving;
use super::stream::{Exchange, Line};
use super::tally::Tally;
use super::{Setup, copy, hurry, write_marker};
use crate::config::Config;
use crate::error::{ErrorCode, MigrationError};
use crate::migration::{status_error, verify};
use crate::recovery::process;
use crate::tls::Keeper;

/// How soon something is tried again for which there was no room.
const RETRY: Duration = Duration::from_millis(1);
/// How long the source is told that it is over; it learns that from the agent as well.
const LAST_WORD: Duration = Duration::from_secs(60);
/// How often the copy is looked at, and what could not be written is written again.
const LOOK: Duration = Duration::from_secs(1);
/// Pauses before a line is opened again, unless the last one was of use.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the agent gets to write down that the copy lost pages and to end it.
const GRACE: Duration = Duration::from_secs(10);

fn failed(error: &(dyn std::error::Error + 'static)) -> MigrationError {
    MigrationError::caused(ErrorCode::Internal, error)
}

/// What comes from the agent.
enum Control {
    Lacks(Vec<(Lack, OwnedFd)>),
    Go,
    Release,
    Closed,
}

/// The fetcher's life: its socket to the agent is standard input.
pub fn run() -> Result<(), MigrationError> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| failed(&error))?;
    let socket = UnixStream::from(socket);
    let Some((Kind::Setup, body)) = frame::read(&socket).map_err(|error| failed(&error))? else {
        return Ok(());
    };
    let setup: Setup = serde_json::from_slice(&body).map_err(|error| failed(&error))?;
    let config: Config = toml::from_str(&setup.config).map_err(|error| failed(&error))?;
    // Without it nobody reads why something failed, and nothing else is different.
    let _ = crate::logging::start(&config.log);
    hurry();
    let keeper = Keeper::load(&config).map_err(|error| failed(&error))?;
    let (sender, controls) = mpsc::unbounded_channel();
    let listening = socket.try_clone().map_err(|error| failed(&error))?;
    std::thread::spawn(move || listen(&listening, &sender));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let exchange = Exchange { setup: Arc::new(setup), config: Arc::new(config), keeper };
    runtime.map_err(|error| failed(&error))?.block_on(work(exchange, controls, &socket))
}

/// Hands on what the agent says.
fn listen(socket: &UnixStream, controls: &mpsc::UnboundedSender<Control>) {
    loop {
        let control = match frame::read(socket) {
            Ok(Some((Kind::Lacks, body))) => match frame::read_lacks(socket, &body) {
                Ok(lacks) => Control::Lacks(lacks),
                Err(error) => {
                    tracing::error!("cannot take what is lacking: {error}");
                    Control::Closed
                }
            },
            Ok(Some((Kind::Go, _))) => Control::Go,
            Ok(Some((Kind::Release, _))) => Control::Release,
            Ok(Some((Kind::Setup | Kind::Taken | Kind::Done, _))) => continue,
            Ok(None) | Err(_) => Control::Closed,
        };
        let closed = matches!(control, Control::Closed);
        if controls.send(control).is_err() || closed {
            return;
        }
    }
}

async fn work(
    exchange: Exchange,
    mut controls: mpsc::UnboundedReceiver<Control>,
    socket: &UnixStream,
) -> Result<(), MigrationError> {
    let Some(Control::Lacks(lacks)) = controls.recv().await else { return Ok(()) };
    let runs = lacks
        .iter()
        .flat_map(|(lack, _)| lack.later.runs.iter().map(|(start, end)| (lack.later.vpid, *start, *end)));
    let orders = Orders::new(runs);
    let pages = lacks.iter().map(|(lack, _)| lack.later.pages()).sum();
    let serving = Serving::new(lacks).map_err(|error| failed(&error))?;
    // An agent that is gone meanwhile is noticed by what it does not send.
    let _ = frame::write(socket, Kind::Taken, &[]);
    let opening = (pages > 0).then(|| tokio::spawn(exchange.clone().open(Duration::ZERO)));
    let fetcher = Fetcher {
        exchange,
        socket,
        serving,
        orders,
        tally: Tally::new(pages),
        line: None,
        opening,
        pause: FIRST_PAUSE,
        looking: None,
        go: false,
        alone: false,
        is_unwritable: false,
        complete: None,
        told: pages == 0,
    };
    fetcher.fetch(controls).await
}

struct Fetcher<'a> {
    exchange: Exchange,
    socket: &'a UnixStream,
    serving: Serving,
    orders: Orders,
    tally: Tally,
    line: Option<Line>,
    opening: Option<JoinHandle<Line>>,
    /// How long to wait before the next one is opened.
    pause: Duration,
    /// Whether the copy lives although the agent is gone.
    looking: Option<JoinHandle<bool>>,
    /// The copy was let go.
    go: bool,
    /// The agent holds no descriptor.
    alone: bool,
    /// The marker could not be written just now.
    is_unwritable: bool,
    /// When every page was in place, and what that took.
    complete: Option<(Instant, FetchComplete)>,
    /// The source knows.
    told: bool,
}

impl Fetcher<'_> {
    async fn fetch(mut self, mut controls: mpsc::UnboundedReceiver<Control>) -> Result<(), MigrationError> {
        let ended = self.go_on(&mut controls).await;
        if let Err(error) = &ended {
            self.lost(error).await;
        }
        ended
    }

    async fn go_on(&mut self, controls: &mut mpsc::UnboundedReceiver<Control>) -> Result<(), MigrationError> {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.turn()?;
            if self.is_over() {
                return Ok(());
            }
            let retry = self.serving.owes();
            tokio::select! {
                biased;
                _ = tick.tick() => self.look(),
                ready = self.serving.ready() => ready.map_err(|error| failed(&error))?,
                reply = next_reply(&mut self.line) => self.replied(reply)?,
                line = opened(&mut self.opening) => self.opened(line),
                control = controls.recv(), if !self.alone => self.told_by_agent(control),
                lives = looked(&mut self.looking) => {
                    if !lives {
                        // It was never let go: nothing is lacking, and nobody may be told otherwise.
                        return Ok(());
                    }
                    self.go = true;
                }
                () = tokio::time::sleep(RETRY), if retry => {}
            }
        }
    }

    /// What is to be seen to now and then.
    fn look(&mut self) {
        self.is_unwritable = false;
        if self.go && !self.serving.is_complete() && !process::is_there(self.exchange.setup.init) {
            tracing::info!("the container has ended: the pages that it lacks are not needed any more");
            self.serving.release();
        }
    }

    /// It cannot go on. A copy that may run ends before its memory is let go: it would read zeros.
    async fn lost(&self, error: &MigrationError) {
        tracing::error!("the last pages of the container cannot be fetched: {error}");
        if self.serving.is_complete() || !self.go && !self.alone {
            return;
        }
        // An agent that is there hears of it by that.
        let _ = self.socket.shutdown(Shutdown::Both);
        let grace = if self.alone { Duration::ZERO } else { GRACE };
        copy::end(self.exchange.setup.init, grace).await;
    }

    /// Everything that can be done now.
    fn turn(&mut self) -> Result<(), MigrationError> {
        let (serving, orders) = (&mut self.serving, &mut self.orders);
        serving.hear(|vpid, page| orders.want(vpid, page)).map_err(|error| failed(&error))?;
        serving.settle(&mut self.tally).map_err(|error| failed(&error))?;
        if self.serving.is_complete() {
            self.completed();
        } else {
            self.ask();
        }
        Ok(())
    }

    fn ask(&mut self) {
        let Some(line) = &self.line else { return };
        if !self.go && !self.serving.is_awaited() {
            // The copy is about to be let go, which is not to be delayed.
            return;
        }
        if self.orders.is_idle() {
            // Not reached while every page is asked for by its run; kept so that nothing can be waited for in vain.
            self.serving.first_missing().into_iter().for_each(|(vpid, start, end)| {
                self.orders.add(vpid, start, end);
            });
        }
        while line.requests.capacity() > 0 {
            let next = self.orders.next(Instant::now(), |vpid, page| self.serving.lacks(vpid, page));
            let Some((id, order)) = next else { break };
            let pages = FetchPages {
                id,
                process: order.vpid.0,
                start: order.start,
                pages: u32::try_from(order.pages).unwrap_or(1),
                urgent: order.urgent,
            };
            // A line that has ended is noticed by its replies.
            let _ = line.requests.try_send(FetchRequest { request: Some(Request::Pages(pages)) });
        }
    }

    fn replied(&mut self, reply: Result<Option<FetchReply>, Status>) -> Result<(), MigrationError> {
        let reply = match reply {
            Ok(Some(reply)) if verify(&reply.payload, reply.checksum).is_ok() => reply,
            Ok(Some(_)) => {
                self.broke("pages were damaged on their way");
                return Ok(());
            }
            Ok(None) => {
                self.broke("the source has closed it");
                return Ok(());
            }
            Err(status) => {
                self.broke(&status_error(&status).to_string());
                return Ok(());
            }
        };
        if reply.complete {
            self.told = true;
            return Ok(());
        }
        let Some(order) = self.orders.answered(reply.id, Instant::now()) else { return Ok(()) };
        let wanted = order.pages * PAGE_SIZE;
        if reply.payload.len() as u64 != wanted {
            self.orders.again(order);
            self.broke(&format!("the source sent {} bytes instead of {wanted}", reply.payload.len()));
            return Ok(());
        }
        self.pause = Duration::ZERO;
        self.serving.place(order, reply.payload, &mut self.tally).map_err(|error| failed(&error))
    }

    fn broke(&mut self, why: &str) {
        tracing::warn!("the link to the source broke; tasks that want a page wait: {why}");
        self.line = None;
        self.orders.link_broke();
        self.tally.reconnects += 1;
        self.opening = Some(tokio::spawn(self.exchange.clone().open(self.pause)));
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    }

    fn opened(&mut self, line: Line) {
        self.opening = None;
        self.line = Some(line);
        self.tell_source();
    }

    fn told_by_agent(&mut self, control: Option<Control>) {
        match control {
            Some(Control::Go) => {
                self.go = true;
                self.tally.go();
            }
            Some(Control::Release) => self.alone = true,
            Some(Control::Closed) | None => {
                self.alone = true;
                if !self.go && self.looking.is_none() {
                    let init = self.exchange.setup.init;
                    self.looking = Some(tokio::task::spawn_blocking(move || process::outlived_tracer(init)));
                }
            }
            // Once only.
            Some(Control::Lacks(_)) => {}
        }
    }

    /// Every page is in place: written down, then told.
    fn completed(&mut self) {
        if !self.go || self.is_unwritable {
            return;
        }
        if self.complete.is_none() {
            let complete = self.tally.complete(self.orders.shortest());
            if let Err(error) = write_marker(&self.exchange.setup.marker) {
                let marker = self.exchange.setup.marker.display();
                tracing::error!("cannot write {marker}, and tries again: {error}");
                self.is_unwritable = true;
                return;
            }
            let _ = frame::write(self.socket, Kind::Done, &complete.encode_to_vec());
            self.complete = Some((Instant::now(), complete));
            self.tell_source();
        }
        if self.alone {
            self.serving.release();
        }
    }

    fn tell_source(&self) {
        let (Some((_, complete)), Some(line)) = (&self.complete, &self.line) else { return };
        let _ = line.requests.try_send(FetchRequest { request: Some(Request::Complete(*complete)) });
    }

    fn is_over(&self) -> bool {
        let Some((at, _)) = &self.complete else { return false };
        self.alone && (self.told || at.elapsed() >= LAST_WORD)
    }
}

/// The next reply of a line; `None`, or a status: it broke. Without a line, never.
async fn next_reply(line: &mut Option<Line>) -> Result<Option<FetchReply>, Status> {
    match line {
        Some(line) => line.replies.message().await,
        None => std::future::pending().await,
    }
}

async fn opened(opening: &mut Option<JoinHandle<Line>>) -> Line {
    match opening {
        Some(task) => match task.await {
            Ok(line) => line,
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn looked(looking: &mut Option<JoinHandle<bool>>) -> bool {
    let Some(task) = looking else { return std::future::pending().await };
    let lives = task.await.unwrap_or(false);
    *looking = None;
    lives
}
