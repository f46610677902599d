//! The connections that a migration's conversation goes over: kept open from here, the source.

use std::sync::Arc;
use std::time::Duration;

use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::peer::peer_client::PeerClient;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{DestinationMessage, Join, SourceMessage};
use tokio_stream::StreamExt;
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::Instrument;

use crate::agent::Agent;
use crate::conversation::{Carrier, Line, LineEnd};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::link::{self, Pacing, PeerAddress};
use crate::migration::wire;

/// Pauses between attempts to open a connection again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The lines of a source.
pub(super) type Sending = Carrier<SourceMessage, DestinationMessage>;

/// What it takes to open a connection of one migration.
#[derive(Debug)]
pub(super) struct Lines {
    agent: Arc<Agent>,
    destination: PeerAddress,
    migration: String,
    token: String,
    carrier: Arc<Sending>,
    pacing: Pacing,
}

/// A connection, and what comes on it.
type Open = (Line, Streaming<DestinationMessage>);

impl Lines {
    /// Of the migration that this destination is to let join by this token.
    pub(super) fn new(
        agent: &Arc<Agent>,
        destination: &PeerAddress,
        migration: &str,
        token: &str,
        carrier: &Arc<Sending>,
        pacing: &Pacing,
    ) -> Arc<Self> {
        Arc::new(Self {
            agent: Arc::clone(agent),
            destination: destination.clone(),
            migration: migration.into(),
            token: token.into(),
            carrier: Arc::clone(carrier),
            pacing: pacing.clone(),
        })
    }

    /// A connection to the destination.
    pub(super) async fn connect(&self) -> Result<PeerClient<Channel>, MigrationError> {
        let Self { agent, destination, pacing, .. } = self;
        let (peer, migration) = (&agent.config.peer, &agent.config.migration);
        link::connect_paced(destination, peer, migration, agent.keeper.as_ref(), pacing.clone()).await
    }

    /// The first one, over a connection that exists; it is kept open.
    pub(super) async fn begin(self: &Arc<Self>, client: PeerClient<Channel>) -> Result<(), MigrationError> {
        let line = self.carrier.line(0);
        let words = self.carrier.words(line.id());
        let open = self.open(client, line, words).await?;
        self.spawn(0, Some(open));
        Ok(())
    }

    /// Further ones, so that there are so many. They are opened meanwhile; without them the migration goes on.
    pub(super) fn widen(self: &Arc<Self>, lines: u32) {
        (1..lines).for_each(|slot| self.spawn(slot, None));
    }

    fn spawn(self: &Arc<Self>, slot: u32, open: Option<Open>) {
        let lines = Arc::clone(self);
        tokio::spawn(async move { lines.keep(slot, open).await }.in_current_span());
    }

    /// Keeps a line open until the conversation is over.
    async fn keep(&self, slot: u32, mut open: Option<Open>) {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some((line, words)) = open.take() {
                match self.carrier.listen(line, words).await {
                    LineEnd::Over => return,
                    LineEnd::Broken(status) => {
                        tracing::warn!(slot, "a connection of the migration broke: {}", chain(&status));
                        if self.agent.config.migration.reconnect_timeout().is_zero() {
                            return;
                        }
                    }
                }
            }
            let joined = tokio::select! {
                biased;
                () = self.carrier.closed() => return,
                joined = self.join(slot) => joined,
            };
            match joined {
                Ok(joined) => {
                    tracing::info!(slot, "a connection of the migration was opened");
                    (open, pause) = (Some(joined), FIRST_PAUSE);
                }
                Err(error) => {
                    tracing::debug!(slot, "cannot open a connection of the migration: {error}");
                    tokio::select! {
                        biased;
                        () = self.carrier.closed() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn join(&self, slot: u32) -> Result<Open, MigrationError> {
        let client = self.connect().await?;
        let line = self.carrier.line(slot);
        let join = Join {
            protocol_version: PROTOCOL_VERSION,
            migration_id: self.migration.clone(),
            token: self.token.clone(),
            slot,
        };
        let first = tokio_stream::once(wire::source_message(Message::Join(join)));
        let words = first.chain(self.carrier.words(line.id()));
        self.open(client, line, words).await
    }

    async fn open(
        &self,
        mut client: PeerClient<Channel>,
        line: Line,
        words: impl tokio_stream::Stream<Item = SourceMessage> + Send + 'static,
    ) -> Result<Open, MigrationError> {
        let patience = self.agent.config.migration.connect_timeout();
        match tokio::time::timeout(patience, client.migrate(words)).await {
            Ok(Ok(response)) => Ok((line, response.into_inner())),
            Ok(Err(status)) => Err(wire::status_error(&status)),
            Err(_) => {
                Err(MigrationError::new(ErrorCode::Timeout, "the other agent does not take the migration"))
            }
        }
    }
}
