//! The destination's part of a container that goes on without its last pages: who fetches them, and how that ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pclive_engine::restore::can_go_without_pages;
use pclive_engine::tail::{Lack, Later};
use pclive_proto::control;
use pclive_proto::peer::Prepare;

use super::Receiver;
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError};
use crate::fault::{self, Point};
use crate::journal::{self, Phase, Record};
use crate::link::PeerAddress;
use crate::migration::{SharedLog, wire, written};
use crate::recovery::{self, process};
use crate::registry::Entry;
use crate::tail::{self, Fetcher, MOST_RUNS, Outcome, Setup};

/// How much is named in lists of pages: of the final round what comes later, before it what is outdated.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tardy {
    pub(super) runs: usize,
    pub(super) pages: u64,
}

impl Tardy {
    /// Counts another list, which all wait in memory.
    pub(super) fn take(&mut self, more: &Later) -> Result<(), MigrationError> {
        self.runs = self.runs.saturating_add(more.runs.len());
        self.pages = self.pages.saturating_add(more.pages());
        if self.runs > MOST_RUNS {
            return Err(wire::bad("more runs of pages that come later than there can be"));
        }
        Ok(())
    }
}

/// Refuses a migration whose last pages may come later, if they could not be waited for, or not be fetched.
pub(super) fn admit(agent: &Agent, prepare: &Prepare) -> Result<(), MigrationError> {
    if prepare.tail_token.is_empty() {
        return Ok(());
    }
    if prepare.verify {
        return Err(wire::bad("memory that comes after the commit is to be compared before it"));
    }
    let hint = "migrate with another --policy";
    can_go_without_pages().map_err(|error| {
        let message = format!("cannot let a container go on without its pages: /dev/userfaultfd: {error}");
        MigrationError::new(ErrorCode::IncompatibleHost, message).hint(hint)
    })?;
    source(agent, prepare).map(drop)
}

/// Where the pages are fetched.
fn source(agent: &Agent, prepare: &Prepare) -> Result<PeerAddress, MigrationError> {
    agent.peer_address(&prepare.source_agent).map_err(|_| {
        let (name, source) = (&agent.name, &prepare.source_agent);
        let message = format!("cannot fetch pages from {source}: it is none of the [peers] of {name}");
        MigrationError::new(ErrorCode::InvalidRequest, message)
            .hint("add the source to [peers] of the destination, or migrate with another --policy")
    })
}

/// Starts what will fetch pages, if they may come later.
pub(super) async fn start_fetcher(
    agent: &Agent,
    prepare: &Prepare,
    init_pid: i32,
) -> Result<Option<Fetcher>, MigrationError> {
    if prepare.tail_token.is_empty() {
        return Ok(None);
    }
    let source = source(agent, prepare)?;
    let internal = |what: &str| MigrationError::new(ErrorCode::Internal, what);
    let config = toml::to_string(&agent.config);
    let setup = Setup {
        config: config.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?,
        agent_name: agent.name.clone(),
        peer_name: source.name,
        peer_address: source.address,
        migration_id: prepare.migration_id.clone(),
        token: prepare.tail_token.clone(),
        init: process::identify(init_pid)
            .ok_or_else(|| internal("the init of the created container has ended"))?,
        marker: tail::marker(&agent.config.agent.state_dir, &prepare.migration_id),
    };
    let started = tokio::task::spawn_blocking(move || Fetcher::start(&setup)).await;
    started.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?.map(Some)
}

impl Receiver<'_> {
    /// The copy is ready: whoever fetches its pages listens from now on.
    pub(super) async fn hand_to_fetcher(
        &mut self,
        lacks: Vec<(Lack, OwnedFd)>,
    ) -> Result<(), MigrationError> {
        let Some(mut fetcher) = self.fetcher.take() else { return Ok(()) };
        let handed = tokio::task::spawn_blocking(move || fetcher.hand(lacks).map(|()| fetcher)).await;
        let handed = handed.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        self.fetcher = Some(handed?);
        fault::reached(Point::DestinationLacksHanded);
        Ok(())
    }
}

/// Writes down that the copy runs and lacks pages: whatever becomes of it, it is not one that never ran.
pub(super) async fn write(log: &SharedLog, fetcher: Option<&Fetcher>, entry: &Entry) {
    if fetcher.is_none_or(|fetcher| fetcher.pages() == 0) {
        return;
    }
    let log = Arc::clone(log);
    let put = written(move || {
        let mut log = journal::guard(&log);
        let record = Record { phase: Phase::Tail, ..log.record().clone() };
        log.put(record)
    });
    if let Err(error) = put.await {
        entry.warn(format!("a restarted agent may not know that pages are being fetched: {error}"));
    }
}

/// Waits until every page is in place. On Err the copy lacks some for good, and was ended.
pub(super) async fn fetched(
    agent: &Agent,
    fetcher: Option<Fetcher>,
    log: &SharedLog,
) -> Result<Option<control::Tail>, MigrationError> {
    let Some(fetcher) = fetcher else { return Ok(None) };
    let pages = fetcher.pages();
    let outcome = tokio::task::spawn_blocking(move || fetcher.outcome()).await;
    let (outcome, held) = outcome.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    match outcome {
        Outcome::Complete(_) | Outcome::Lost if pages == 0 => Ok(None),
        Outcome::Complete(complete) => {
            tracing::info!(
                pages,
                demand = complete.demand_pages,
                pushed = complete.pushed_pages,
                faults = complete.faults,
                fault_median_us = complete.fault_median_ns / 1000,
                ms = complete.duration_ns / 1_000_000,
                "every page is in place"
            );
            Ok(Some(tail::tail(&complete)))
        }
        Outcome::Lost => {
            let record = journal::guard(log).record().clone();
            let error = recovery::tail::tear(agent, &record).await;
            // Until here tasks that wanted a page have waited.
            drop(held);
            Err(error)
        }
    }
}
