//! Where pages wait on their way into the copy: all that the strategies differ in.
//!
//! * `global` without delay: nowhere; a batch goes into the restorers as it comes.
//! * `one-shot`: in staging, until the final state has come.
//! * Delayed restoration: in staging until the round from which on restorers live; the rest by the strategy.
//! * `pipelined`: in staging until its round is whole; then batch by batch, between the commands of the stream, so
//!   that the next round arrives meanwhile. `global` after a delay empties staging in the same way, and what comes
//!   goes past it and supersedes what still waits; so does the final round of every strategy but `one-shot`.
//!
//! Invariant: restorers that live have the newest layout, and staging follows every layout as well, so what waits
//! fits however late it is put in place (see [`Staging`]). Thread: the engine's.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use pclive_engine::memory::contents::{Contents, Unwanted};
use pclive_engine::memory::staging::{Staging, StagingError};
use pclive_engine::model::{Batch, FinalState, Layout};
use pclive_engine::restore::{Destination, RestoreError, RestoreLedger, check_layout};
use pclive_engine::tail::{Lack, Later};

use crate::error::{ErrorCode, MigrationError};

/// How fast pages are put in place as long as that was not measured, bytes a second.
const FIRST_GUESS: u64 = 1 << 30;

/// How pages wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StagingPlan {
    /// The most that may wait, bytes.
    pub(super) limit_bytes: u64,
    /// Restorers live from this round on; `None`: they get everything after the final state has come.
    pub(super) live_from: Option<u32>,
    /// What comes once they live goes past staging.
    pub(super) direct: bool,
}

impl StagingPlan {
    /// True if this round is not the one with which restorers begin to live. The final one always is, unless they
    /// begin after it.
    fn waits(&self, round: u32, is_final: bool) -> bool {
        self.live_from.is_none_or(|first| round < first && !is_final)
    }
}

/// The copy and what waits for it.
pub(super) struct Placement {
    destination: Destination,
    store: Option<Store>,
    /// What the newest round leaves for later.
    later: Vec<Later>,
}

struct Store {
    plan: StagingPlan,
    pages: Staging,
    /// Restorers have the newest layout.
    live: bool,
    /// The round on its way goes past staging, if they live.
    direct: bool,
    /// The newest layout, until they live.
    layout: Layout,
    /// What was put in place out of staging, and the time that it took.
    placed_bytes: u64,
    placing: Duration,
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn restore_error(error: RestoreError) -> MigrationError {
    MigrationError::caused(ErrorCode::RestoreFailed, &error)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn staging_error(error: StagingError) -> MigrationError {
    let code = match error {
        StagingError::Full { .. } | StagingError::Scattered { .. } => ErrorCode::NoMemory,
        StagingError::Malformed(_) => ErrorCode::BadMessage,
        StagingError::Memory { .. } => ErrorCode::RestoreFailed,
    };
    MigrationError::caused(code, &error).hint("migrate with --strategy global, which stages nothing")
}

/// Staged pages could not be put in place.
struct Unplaced(MigrationError);

impl From<StagingError> for Unplaced {
    fn from(error: StagingError) -> Self {
        Self(staging_error(error))
    }
}

impl Placement {
    /// `plan`: how pages wait; `None`: they do not.
    pub(super) fn new(destination: Destination, plan: Option<StagingPlan>) -> Result<Self, MigrationError> {
        let store = plan.map(Store::new).transpose()?;
        Ok(Self { destination, store, later: Vec::new() })
    }

    /// A round begins.
    pub(super) fn follow(
        &mut self,
        layout: Layout,
        round: u32,
        is_final: bool,
    ) -> Result<(), MigrationError> {
        self.later.clear();
        check_layout(&layout).map_err(restore_error)?;
        if let Some(store) = &mut self.store {
            store.pages.follow(&layout).map_err(staging_error)?;
            if !store.live && store.plan.waits(round, is_final) {
                store.layout = layout;
                return Ok(());
            }
            if !store.live {
                store.live = true;
                store.pages.seal();
            }
            // No round follows the final one: staging it would only add a copy to the downtime.
            store.direct = store.plan.direct || is_final;
        }
        self.destination.apply_layout(&layout).map_err(restore_error)
    }

    /// Pages of the round.
    pub(super) fn take(&mut self, batch: &Batch) -> Result<(), MigrationError> {
        match &mut self.store {
            Some(store) if !(store.live && store.direct) => {
                store.make_room(batch.payload.len() as u64, &mut self.destination)?;
                return store.pages.stage(batch).map_err(staging_error);
            }
            Some(store) => store.pages.supersede(batch).map_err(staging_error)?,
            None => {}
        }
        self.destination.fill(batch).map_err(restore_error)
    }

    /// Pages of the round that come when the copy runs.
    pub(super) fn go_without(&mut self, later: Later) {
        self.later.push(later);
    }

    /// Pages that are of no use any more. Where no restorers live there is nothing to drop yet.
    pub(super) fn drop_outdated(&mut self, outdated: &Later) -> Result<(), MigrationError> {
        if self.store.as_ref().is_some_and(|store| !store.live) {
            return Ok(());
        }
        self.destination.drop_outdated(outdated).map_err(restore_error)
    }

    /// True if [`Self::place_some`] has something to do: rounds that are whole wait for restorers that live.
    pub(super) fn lags(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.live && store.pages.has_whole())
    }

    /// Puts one batch in place of what waits and may be.
    pub(super) fn place_some(&mut self) -> Result<(), MigrationError> {
        match &mut self.store {
            Some(store) if store.live => store.place_one(&mut self.destination).map(drop),
            Some(_) | None => Ok(()),
        }
    }

    /// The round is whole: it may be put in place.
    pub(super) fn seal(&mut self) {
        if let Some(store) = &mut self.store {
            store.pages.seal();
        }
    }

    /// Puts everything in place that waits, then the small state.
    pub(super) fn restore(
        &mut self,
        state: &FinalState,
    ) -> Result<(Duration, RestoreLedger), MigrationError> {
        let begun = Instant::now();
        if let Some(mut store) = self.store.take() {
            if !store.live {
                self.destination.apply_layout(&store.layout).map_err(restore_error)?;
            }
            store.pages.seal();
            while store.place_one(&mut self.destination)? {}
        }
        let filled = begun.elapsed();
        for later in std::mem::take(&mut self.later) {
            self.destination.go_without(later).map_err(restore_error)?;
        }
        let parts = self.destination.restore(state).map_err(restore_error)?;
        Ok((filled, parts))
    }

    /// Bytes that wait in staging.
    pub(super) fn staged_bytes(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.pages.staged_bytes())
    }

    /// The most that waited, bytes.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.pages.peak_bytes())
    }

    /// How long putting in place will take what waits; nothing for one-shot, which does that after the stop whenever
    /// it comes.
    pub(super) fn backlog(&self) -> Duration {
        match &self.store {
            Some(store) if store.plan.live_from.is_some() => store.backlog(),
            Some(_) | None => Duration::ZERO,
        }
    }

    /// What the copy lacks, after [`Self::restore`].
    pub(super) fn take_lacks(&mut self) -> Vec<(Lack, OwnedFd)> {
        self.destination.take_lacks()
    }

    /// Digests of the copy's memory, after [`Self::restore`].
    pub(super) fn contents(&self, unwanted: Unwanted<'_>) -> Result<Contents, MigrationError> {
        self.destination.contents(unwanted).map_err(restore_error)
    }

    /// The copy alone, after [`Self::restore`].
    pub(super) fn into_destination(self) -> Destination {
        self.destination
    }
}

impl Store {
    fn new(plan: StagingPlan) -> Result<Self, MigrationError> {
        let pages = Staging::new(plan.limit_bytes).map_err(staging_error)?;
        let layout = Layout::default();
        Ok(Self { plan, pages, live: false, direct: false, layout, placed_bytes: 0, placing: Duration::ZERO })
    }

    /// Puts one batch in place; false when nothing whole is left.
    fn place_one(&mut self, destination: &mut Destination) -> Result<bool, MigrationError> {
        let begun = Instant::now();
        let placed = &mut self.placed_bytes;
        let put = &mut |batch: &Batch| {
            *placed += batch.payload.len() as u64;
            destination.fill(batch).map_err(|error| Unplaced(restore_error(error)))
        };
        let more = self.pages.apply_next(put).map_err(|Unplaced(error)| error)?;
        self.placing += begun.elapsed();
        Ok(more)
    }

    /// With restorers that live a full store is no failure: older pages are put in place first, and if that is not
    /// enough, those of the round on its way.
    fn make_room(&mut self, bytes: u64, destination: &mut Destination) -> Result<(), MigrationError> {
        while self.live && self.pages.staged_bytes().saturating_add(bytes) > self.pages.limit_bytes() {
            if !self.pages.has_whole() {
                self.pages.seal();
            }
            if !self.pages.has_whole() {
                break;
            }
            self.place_one(destination)?;
        }
        Ok(())
    }

    fn backlog(&self) -> Duration {
        let staged = u128::from(self.pages.staged_bytes());
        let (bytes, time) = match self.placed_bytes {
            0 => (FIRST_GUESS, Duration::from_secs(1)),
            placed => (placed, self.placing),
        };
        let nanoseconds = staged * time.as_nanos() / u128::from(bytes);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(live_from: Option<u32>) -> StagingPlan {
        StagingPlan { limit_bytes: 1 << 20, live_from, direct: false }
    }

    #[test]
    fn restorers_live_from_their_round_on_and_from_the_final_one_at_the_latest() {
        assert!(!plan(Some(0)).waits(0, false));
        assert!(plan(Some(2)).waits(1, false));
        assert!(!plan(Some(2)).waits(2, false));
        assert!(!plan(Some(2)).waits(1, true));
    }

    #[test]
    fn one_shot_restorers_wait_beyond_the_final_round() {
        assert!(plan(None).waits(0, false) && plan(None).waits(7, true));
    }

    #[test]
    fn what_waits_is_timed_by_what_was_put_in_place() {
        let target = pclive_engine::model::Target::Object(1);
        let kind = pclive_engine::model::ExtentKind::Data;
        let extents = vec![pclive_engine::model::Extent { start: 0, pages: 4, kind }];
        let batch = Batch { target, extents, payload: vec![7; 4 * 4096].into() };
        let mut store = Store::new(plan(Some(0))).unwrap();
        assert_eq!(store.backlog(), Duration::ZERO);
        store.pages.stage(&batch).unwrap();
        (store.placed_bytes, store.placing) = (2 * 4096, Duration::from_millis(3));
        assert_eq!(store.backlog(), Duration::from_millis(6));
    }
}
