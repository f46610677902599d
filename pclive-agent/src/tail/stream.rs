//! The fetcher's line to the source, opened again as often as it takes.

use std::sync::Arc;
use std::time::Duration;

use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::peer::fetch_request::Request;
use pclive_proto::peer::{FetchBegin, FetchReply, FetchRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Setup;
use crate::config::Config;
use crate::error::MigrationError;
use crate::link::{self, PeerAddress};
use crate::migration::status_error;
use crate::tls::Keeper;

/// Requests that may wait for the link.
const REQUESTS: usize = 4096;
/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// An open line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) requests: mpsc::Sender<FetchRequest>,
    pub(super) replies: Streaming<FetchReply>,
}

/// Where lines are opened to.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) setup: Arc<Setup>,
    pub(super) config: Arc<Config>,
    pub(super) keeper: Option<Arc<Keeper>>,
}

impl Exchange {
    /// Opens a line after a pause, however long it takes.
    pub(super) async fn open(self, after: Duration) -> Line {
        tokio::time::sleep(after).await;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.attempt().await {
                Ok(line) => return line,
                Err(error) => tracing::info!("pages cannot be fetched yet: {error}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self) -> Result<Line, MigrationError> {
        let Setup { peer_name, peer_address, migration_id, token, agent_name, .. } = &*self.setup;
        let address = PeerAddress { name: peer_name.clone(), address: peer_address.clone() };
        let (config, keeper) = (&self.config, self.keeper.as_ref());
        let mut client = link::connect(&address, &config.peer, &config.migration, keeper).await?;
        let (requests, stream) = mpsc::channel(REQUESTS);
        let begin = FetchBegin {
            protocol_version: PROTOCOL_VERSION,
            migration_id: migration_id.clone(),
            token: token.clone(),
            agent_name: agent_name.clone(),
        };
        // There is room: it is the first.
        let _ = requests.try_send(FetchRequest { request: Some(Request::Begin(begin)) });
        let opened = client.fetch(ReceiverStream::new(stream));
        let opened = tokio::time::timeout(config.migration.connect_timeout(), opened).await;
        let late = |_| tonic::Status::deadline_exceeded("the source does not answer");
        let replies = opened.map_err(late).flatten().map_err(|status| status_error(&status))?.into_inner();
        Ok(Line { requests, replies })
    }
}
