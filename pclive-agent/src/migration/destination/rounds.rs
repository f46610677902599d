//! What arrives before the handover: layouts and pages, round by round, and the final state.

use std::sync::Arc;
use std::time::Instant;

use pclive_proto::control;
use pclive_proto::peer::destination_message::Message;
use pclive_proto::peer::source_message::Message as Received;
use pclive_proto::peer::{self, FinalState, PageBatch, RoundBegin, RoundEnd, Settle, Settled};
use tracing::info;

use super::engine::{Pages, Restored};
use super::state::{Event, State};
use super::tail::Tardy;
use super::{Receiver, out_of_turn};
use crate::error::{ErrorCode, MigrationError};
use crate::fault::{self, Point};
use crate::migration::report::ns;
use crate::migration::{document, wire};

impl Receiver<'_> {
    /// One message of the rounds; the restored state once the final one has come.
    pub(super) async fn handle(
        &mut self,
        message: Received,
        at: Instant,
    ) -> Result<Option<Restored>, MigrationError> {
        match message {
            Received::RoundBegin(begin) => self.round_begin(begin).await?,
            Received::DocumentPart(part) => self.document.add(&part)?,
            Received::PageBatch(batch) => self.pages(batch).await?,
            Received::Later(later) => self.later(later).await?,
            Received::Outdated(outdated) => self.outdated(outdated).await?,
            Received::Settle(settle) => self.settle(settle).await?,
            Received::RoundEnd(ended) => self.round_end(&ended).await?,
            Received::FinalState(state) => return self.final_state(state, at).await.map(Some),
            other @ (Received::Prepare(_)
            | Received::Commit(_)
            | Received::Frames(_)
            | Received::Failure(_)
            | Received::Join(_)
            | Received::End(_)
            | Received::Received(_)) => {
                return Err(out_of_turn(&other));
            }
        }
        Ok(None)
    }

    async fn round_begin(&mut self, begin: RoundBegin) -> Result<(), MigrationError> {
        let event =
            if begin.r#final { Event::FinalBegun(begin.round) } else { Event::RoundBegun(begin.round) };
        self.advance(event)?;
        if begin.r#final {
            self.write_committing();
            fault::reached(Point::DestinationFinalBegun);
        }
        self.round = control::Round { number: begin.round, r#final: begin.r#final, ..Default::default() };
        let layout = self.document.finish(begin.layout)?;
        self.round.bytes = layout.len() as u64;
        self.round_began = Instant::now();
        self.later = Tardy::default();
        self.engine.layout(layout, begin.round, begin.r#final).await
    }

    async fn pages(&mut self, message: PageBatch) -> Result<(), MigrationError> {
        self.advance(Event::Pages)?;
        let batch = wire::batch(message)?;
        self.count(&batch)?;
        self.memory.take(batch.claimed_bytes(), crate::host::memory_available)?;
        // More than there is room for at all would wait for ever.
        let most = self.agent.config.migration.in_flight_kib_at_destination();
        let kib = batch.kib().min(u32::try_from(most).unwrap_or(u32::MAX));
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await;
        let room = room.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        self.engine.pages(Pages { batch, room }).await
    }

    /// Pages that come when the copy runs: of the final round, and if somebody is there to fetch them.
    async fn later(&mut self, message: peer::Later) -> Result<(), MigrationError> {
        if !matches!(self.state, State::Reconciling(_)) || self.fetcher.is_none() {
            return Err(out_of_turn(&Received::Later(message)));
        }
        let later = wire::later(message)?;
        self.later.take(&later)?;
        self.engine.later(later).await
    }

    /// Pages that are of no use any more: between two rounds, while the container runs.
    async fn outdated(&mut self, message: peer::Later) -> Result<(), MigrationError> {
        if !matches!(self.state, State::Filled(_)) || self.fetcher.is_none() {
            return Err(out_of_turn(&Received::Outdated(message)));
        }
        let outdated = wire::later(message)?;
        self.outdated.take(&outdated)?;
        self.engine.outdated(outdated).await
    }

    /// The source asks when everything before is done.
    async fn settle(&mut self, message: Settle) -> Result<(), MigrationError> {
        if !matches!(self.state, State::Filled(_)) {
            return Err(out_of_turn(&Received::Settle(message)));
        }
        self.engine.settle().await?;
        self.outdated = Tardy::default();
        self.say(Message::Settled(Settled {})).await
    }

    fn count(&mut self, batch: &wire::Arrived) -> Result<(), MigrationError> {
        use pclive_engine::model::ExtentKind;
        for extent in &batch.extents {
            let counter = match extent.kind {
                ExtentKind::Data => &mut self.round.data_pages,
                ExtentKind::Zero => &mut self.round.zero_pages,
                ExtentKind::Hole | ExtentKind::Guard => &mut self.round.hole_pages,
            };
            *counter =
                counter.checked_add(extent.pages).ok_or_else(|| wire::bad("more pages than there can be"))?;
        }
        self.round.bytes += batch.wire_bytes;
        Ok(())
    }

    async fn round_end(&mut self, ended: &RoundEnd) -> Result<(), MigrationError> {
        self.advance(Event::RoundEnded(ended.round))?;
        // A final dump that was put off is a round like any other.
        self.round.r#final = false;
        self.all_came(ended.data_pages)?;
        let began = Instant::now();
        let whole = tokio::select! {
            whole = self.engine.round_end() => whole?,
            why = self.entry.cancelled() => return Err(why),
        };
        self.finish_round();
        fault::reached(Point::DestinationRound);
        self.say(Message::RoundApplied(whole.answer(ended.round, began.elapsed()))).await
    }

    async fn final_state(&mut self, state: FinalState, at: Instant) -> Result<Restored, MigrationError> {
        self.all_came(state.data_pages)?;
        if !matches!(self.state, State::Reconciling(_)) {
            return Err(out_of_turn(&Received::FinalState(state)));
        }
        if self.later.pages != state.later_pages {
            let (came, told) = (self.later.pages, state.later_pages);
            return Err(wire::bad(format!("{came} pages were said to come later and {told} were announced")));
        }
        let state = self.document.finish(state.state)?;
        self.entry.state_moved(document::digest(&[], &state));
        let mut restored = self.engine.restore(state, at).await?;
        self.hand_to_fetcher(std::mem::take(&mut restored.lacks)).await?;
        self.advance(Event::StateRestored)?;
        self.finish_round();
        fault::reached(Point::DestinationRestored);
        Ok(restored)
    }

    fn all_came(&self, data_pages: u64) -> Result<(), MigrationError> {
        if self.round.data_pages == data_pages {
            return Ok(());
        }
        let came = self.round.data_pages;
        let round = self.round.number;
        Err(wire::bad(format!("{came} pages came in round {round} and {data_pages} were announced")))
    }

    fn finish_round(&mut self) {
        let elapsed = self.round_began.elapsed();
        self.round.duration_ns = ns(elapsed);
        let rate = u128::from(self.round.bytes) * 1_000_000_000 / elapsed.as_nanos().max(1);
        self.round.bytes_per_second = u64::try_from(rate).unwrap_or(u64::MAX);
        let round = self.round;
        info!(
            round = round.number,
            last = round.r#final,
            bytes = round.bytes,
            data_pages = round.data_pages,
            ms = round.duration_ns / 1_000_000,
            "round in place"
        );
        self.entry.round(round);
        self.rounds.push(round);
    }
}
