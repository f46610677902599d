//! Stands between two agents and changes what one of them says.

use std::sync::{Arc, Mutex};

use pclive_proto::peer::destination_message::Message as Answered;
use pclive_proto::peer::peer_client::PeerClient;
use pclive_proto::peer::peer_server::{Peer, PeerServer};
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{
    DestinationMessage, FetchReply, FetchRequest, HelloRequest, HelloResponse, InquireRequest,
    InquireResponse, ProbeChunk, ProbeResponse, SourceMessage,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// What is said instead of a message; `None`: nothing any more.
pub(crate) type Change<M> = Box<dyn FnMut(M) -> Option<Vec<M>> + Send>;
/// What is said instead of an answer.
pub(crate) type Answer<M> = Box<dyn Fn(M) -> Result<M, Status> + Send>;

/// What is changed.
#[derive(Default)]
pub(crate) struct Attack {
    pub(crate) source: Option<Change<SourceMessage>>,
    pub(crate) destination: Option<Change<DestinationMessage>>,
    pub(crate) hello: Option<Answer<HelloResponse>>,
    /// Asked instead of the destination.
    pub(crate) inquire: Option<Box<dyn Fn() -> InquireResponse + Send>>,
}

/// The proxy; it ends with the runtime.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) address: String,
    destination: String,
    /// The bundle at the destination.
    bundle: String,
    attack: Arc<Mutex<Attack>>,
}

impl Proxy {
    /// In front of the agent at `destination`.
    pub(crate) async fn start(destination: &str, bundle: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (destination, bundle) = (destination.into(), bundle.into());
        let proxy = Self { address, destination, bundle, attack: Arc::default() };
        let service = PeerServer::new(proxy.clone()).max_decoding_message_size(usize::MAX);
        tokio::spawn(
            Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
        );
        proxy
    }

    /// From now on; the next migration.
    pub(crate) fn prepare(&self, attack: Attack) {
        *self.attack.lock().unwrap() = attack;
    }

    async fn client(&self) -> PeerClient<Channel> {
        let client = PeerClient::connect(format!("http://{}", self.destination)).await.unwrap();
        client.max_decoding_message_size(usize::MAX)
    }
}

/// A message that has a place in the conversation.
trait Placed: Send + 'static {
    fn place(&mut self) -> &mut u64;
    /// The place that it confirms, if it is a confirmation.
    fn confirms(&mut self) -> Option<&mut u64>;
}

impl Placed for SourceMessage {
    fn place(&mut self) -> &mut u64 {
        &mut self.place
    }

    fn confirms(&mut self) -> Option<&mut u64> {
        match &mut self.message {
            Some(Message::Received(received)) => Some(&mut received.place),
            _ => None,
        }
    }
}

impl Placed for DestinationMessage {
    fn place(&mut self) -> &mut u64 {
        &mut self.place
    }

    fn confirms(&mut self) -> Option<&mut u64> {
        match &mut self.message {
            Some(Answered::Received(received)) => Some(&mut received.place),
            _ => None,
        }
    }
}

/// Where the messages of one direction were before some were changed: in the order of those that were passed on.
#[derive(Debug, Clone, Default)]
struct Places(Arc<Mutex<Vec<u64>>>);

impl Places {
    /// The place of the next message that is passed on.
    fn next(&self, original: u64) -> u64 {
        let mut places = self.0.lock().unwrap();
        places.push(original);
        places.len() as u64
    }

    fn original(&self, place: u64) -> u64 {
        let places = self.0.lock().unwrap();
        place.checked_sub(1).and_then(|index| places.get(index as usize)).copied().unwrap_or(0)
    }
}

/// Passes messages on, changed; `here` has the places of this direction, `there` those of the other one.
fn pass<M: Placed>(
    mut incoming: Streaming<M>,
    mut change: Change<M>,
    mut say: impl FnMut(M) -> M + Send + 'static,
    (here, there): (Places, Places),
) -> mpsc::Receiver<Result<M, Status>> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            match incoming.message().await {
                Ok(Some(mut message)) => {
                    if let Some(place) = message.confirms() {
                        *place = there.original(*place);
                        if sender.send(Ok(message)).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    let original = *message.place();
                    let Some(instead) = change(say(message)) else { return };
                    for mut message in instead {
                        if original > 0 {
                            *message.place() = here.next(original);
                        }
                        if sender.send(Ok(message)).await.is_err() {
                            return;
                        }
                    }
                }
                Ok(None) => return,
                Err(status) => {
                    let _ = sender.send(Err(status)).await;
                    return;
                }
            }
        }
    });
    receiver
}

fn unchanged<M>() -> Change<M> {
    Box::new(|message| Some(vec![message]))
}

#[tonic::async_trait]
impl Peer for Proxy {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let answer = self.client().await.hello(request.into_inner()).await?.into_inner();
        match &self.attack.lock().unwrap().hello {
            Some(change) => change(answer).map(Response::new),
            None => Ok(Response::new(answer)),
        }
    }

    async fn probe(&self, _: Request<Streaming<ProbeChunk>>) -> Result<Response<ProbeResponse>, Status> {
        Err(Status::unimplemented("not of interest here"))
    }

    async fn inquire(&self, request: Request<InquireRequest>) -> Result<Response<InquireResponse>, Status> {
        if let Some(answer) = &self.attack.lock().unwrap().inquire {
            return Ok(Response::new(answer()));
        }
        self.client().await.inquire(request.into_inner()).await
    }

    type FetchStream = ReceiverStream<Result<FetchReply, Status>>;

    async fn fetch(
        &self,
        _: Request<Streaming<FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented("not of interest here"))
    }

    type MigrateStream = ReceiverStream<Result<DestinationMessage, Status>>;

    async fn migrate(
        &self,
        request: Request<Streaming<SourceMessage>>,
    ) -> Result<Response<Self::MigrateStream>, Status> {
        let (source, destination) = {
            let mut attack = self.attack.lock().unwrap();
            (attack.source.take(), attack.destination.take())
        };
        let bundle = self.bundle.clone();
        let here = move |mut message: SourceMessage| {
            if let Some(Message::Prepare(prepare)) = &mut message.message {
                prepare.bundle.clone_from(&bundle);
            }
            message
        };
        let (forth, back) = (Places::default(), Places::default());
        let source = source.unwrap_or_else(unchanged);
        let mut said = pass(request.into_inner(), source, here, (forth.clone(), back.clone()));
        let (sender, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(Ok(message)) = said.recv().await {
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        let answers = self.client().await.migrate(ReceiverStream::new(stream)).await?.into_inner();
        let destination = destination.unwrap_or_else(unchanged);
        let answers = pass(answers, destination, |message| message, (back, forth));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
