//! `pclive.peer.v1`: what other agents call.

use std::sync::Arc;

use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::peer::peer_server::Peer;
use pclive_proto::peer::{
    DestinationMessage, FetchReply, FetchRequest, HelloRequest, HelloResponse, InquireRequest,
    InquireResponse, ProbeChunk, ProbeResponse, SourceMessage,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::caller;
use crate::agent::Agent;
use crate::conversation::Said;
use crate::error::{ErrorCode, MigrationError};
use crate::host;
use crate::migration;
use crate::recovery;
use crate::tail;

/// The peer service of one agent.
#[derive(Debug, Clone)]
pub(super) struct PeerService {
    agent: Arc<Agent>,
}

impl PeerService {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    /// Answers any version with this agent's own, so that the caller can name both.
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        caller(&request)?.speaks_for(&request.get_ref().agent_name)?;
        let hello = request.into_inner();
        tracing::debug!(agent = hello.agent_name, version = hello.protocol_version, "hello");
        let facts = host::facts().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        Ok(Response::new(HelloResponse {
            protocol_version: PROTOCOL_VERSION,
            agent_name: self.agent.name.clone(),
            host: Some(facts),
        }))
    }

    async fn probe(
        &self,
        request: Request<Streaming<ProbeChunk>>,
    ) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(migration::probed(request.into_inner()).await))
    }

    async fn inquire(&self, request: Request<InquireRequest>) -> Result<Response<InquireResponse>, Status> {
        caller(&request)?.speaks_for(&request.get_ref().source_agent)?;
        Ok(Response::new(recovery::answer(&self.agent, request.into_inner()).await?))
    }

    type FetchStream = ReceiverStream<Result<FetchReply, Status>>;

    async fn fetch(
        &self,
        request: Request<Streaming<FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let caller = caller(&request)?;
        let replies = tail::fetch(&self.agent, &caller, request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    type MigrateStream = Said<Result<DestinationMessage, Status>>;

    async fn migrate(
        &self,
        request: Request<Streaming<SourceMessage>>,
    ) -> Result<Response<Self::MigrateStream>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(migration::receive(&self.agent, caller, request.into_inner())))
    }
}
