//! The comparison of memory between the final dump and the commit: digests of the stopped container against those of its
//! copy. The source compares, because the commit is its to give.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pclive_engine::memory::contents::Place;
use pclive_engine::model::{PAGE_SIZE, Pid, Vpid};
use pclive_proto::control::Verification;
use pclive_proto::peer::destination_message::Message as Answered;
use pclive_proto::peer::{Digests, Ready};
use tracing::info;

use super::engine::{Answer, Digested};
use super::state::Event;
use super::{Driver, out_of_turn};
use crate::error::{ErrorCode, MigrationError};
use crate::migration::{comparison_patience, wire};

/// Bytes of a digest.
const DIGEST: usize = 16;

impl Driver<'_> {
    /// Waits for `Ready`. Before it the digests come, if they were asked for: of `places`.
    pub(super) async fn ready(&mut self, places: usize) -> Result<Vec<u8>, MigrationError> {
        let mut told = Vec::new();
        // One deadline for all of them: the container stands still.
        let deadline = Instant::now() + self.patience();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.session.answer("restore the container", left).await? {
                Answered::Digests(digests) if self.order.verify => take(&mut told, &digests, places)?,
                Answered::Ready(Ready { .. }) => {
                    self.session.advance(Event::Ready)?;
                    return Ok(told);
                }
                other => return Err(out_of_turn(&other)),
            }
        }
    }

    /// Compares; `theirs` are the destination's digests. On `Err` nothing has been committed.
    pub(super) async fn compare(
        &mut self,
        own: Answer<Digested>,
        theirs: &[u8],
    ) -> Result<Verification, MigrationError> {
        let patience = self.patience();
        let own = self.session.step(own, patience).await?;
        let differing = differing(&own, theirs)?;
        if !differing.is_empty() {
            return Err(differs(&own, &differing));
        }
        let objects = own.places.iter().filter(|place| matches!(place, Place::Object { .. })).count() as u64;
        let mappings = own.places.len() as u64 - objects;
        let bytes = own.contents.pages.saturating_mul(PAGE_SIZE);
        info!(mappings, objects, bytes, "memory is the same at both ends");
        Ok(Verification { mappings, objects, bytes })
    }

    fn patience(&self) -> Duration {
        let bytes = if self.order.verify { self.memory_bytes } else { 0 };
        self.agent.config.migration.handover_timeout() + comparison_patience(bytes)
    }
}

/// Takes the destination's digests, as many as there are places.
pub(super) fn take(told: &mut Vec<u8>, digests: &Digests, places: usize) -> Result<(), MigrationError> {
    let bytes = told.len() + digests.digests.len();
    if digests.digests.is_empty()
        || !digests.digests.len().is_multiple_of(DIGEST)
        || bytes > places.saturating_mul(DIGEST)
    {
        let (came, most) = (bytes.div_ceil(DIGEST), places);
        return Err(wire::bad(format!(
            "{came} digests came of a container that has {most} pieces of memory"
        )));
    }
    told.extend_from_slice(&digests.digests);
    Ok(())
}

/// The places whose digests differ.
fn differing<'a>(own: &'a Digested, theirs: &[u8]) -> Result<Vec<&'a Place>, MigrationError> {
    let (theirs, rest) = theirs.as_chunks::<DIGEST>();
    let (here, there) = (own.contents.digests.len(), theirs.len());
    if here != there || !rest.is_empty() {
        return Err(wire::bad(format!(
            "{there} digests came of a container that has {here} pieces of memory"
        )));
    }
    let pairs = own.contents.digests.iter().zip(theirs).zip(&own.places);
    let other = pairs.filter(|((here, there), _)| **here != u128::from_le_bytes(**there));
    Ok(other.map(|(_, place)| place).collect())
}

/// The error of a comparison that has found these.
fn differs(own: &Digested, places: &[&Place]) -> MigrationError {
    let (count, all) = (places.len(), own.places.len());
    let first = places.first().map_or_else(String::new, |place| words(place, &own.pids));
    let message = format!(
        "cannot commit: the memory of the copy differs from the container's in {count} of {all} pieces, first in {first}"
    );
    MigrationError::new(ErrorCode::MemoryDiffers, message)
}

fn words(place: &Place, pids: &BTreeMap<Vpid, Pid>) -> String {
    let range = |vpid: &Vpid, start: u64, end: u64| match pids.get(vpid) {
        Some(pid) => format!("mapping {start:x}-{end:x} of process {pid} ({vpid} inside the container)"),
        None => format!("mapping {start:x}-{end:x} of process {vpid} inside the container"),
    };
    match place {
        Place::Mapping { vpid, start, end } => range(vpid, *start, *end),
        Place::Object { id, shown: Some((vpid, start, end)) } => {
            format!("shared memory {id}, {}", range(vpid, *start, *end))
        }
        Place::Object { id, shown: None } => format!("shared memory {id}, which no process maps"),
    }
}

#[cfg(test)]
mod tests {
    use pclive_engine::memory::contents::Contents;

    use super::*;

    fn own() -> Digested {
        let mapping = |start| Place::Mapping { vpid: Vpid(7), start, end: start + 0x1000 };
        let shown = Some((Vpid(7), 0x9000, 0xb000));
        let places = vec![mapping(0x1000), mapping(0x5000), Place::Object { id: 3, shown }];
        let contents = Contents { digests: vec![1, 0, u128::MAX], pages: 2 };
        Digested { contents, places, pids: BTreeMap::from([(Vpid(7), Pid(4711))]) }
    }

    fn told(digests: &[u128]) -> Vec<u8> {
        digests.iter().flat_map(|digest| digest.to_le_bytes()).collect()
    }

    #[test]
    fn equal_digests_differ_nowhere() {
        assert!(differing(&own(), &told(&[1, 0, u128::MAX])).unwrap().is_empty());
    }

    #[test]
    fn a_difference_names_process_and_mapping() {
        let own = own();
        let error = differs(&own, &differing(&own, &told(&[1, 2, 3])).unwrap());
        assert_eq!(error.code, ErrorCode::MemoryDiffers);
        let first = "in 2 of 3 pieces, first in mapping 5000-6000 of process 4711 (7 inside the container)";
        assert!(error.message.ends_with(first), "{}", error.message);
        let error = differs(&own, &differing(&own, &told(&[1, 0, 3])).unwrap());
        assert!(
            error.message.contains("shared memory 3, mapping 9000-b000 of process 4711"),
            "{}",
            error.message
        );
    }

    #[test]
    fn more_digests_than_there_is_memory_are_refused_before_they_are_kept() {
        let mut kept = Vec::new();
        let message = |digests: &[u128]| Digests { digests: told(digests).into() };
        take(&mut kept, &message(&[1, 2]), 3).unwrap();
        assert_eq!(take(&mut kept, &message(&[3, 4]), 3).unwrap_err().code, ErrorCode::BadMessage);
        assert_eq!(take(&mut kept, &message(&[]), 3).unwrap_err().code, ErrorCode::BadMessage);
        assert_eq!(kept.len(), 2 * DIGEST);
    }

    #[test]
    fn fewer_digests_than_there_is_memory_are_no_comparison() {
        for digests in [told(&[1, 0]), told(&[]), told(&[1, 0, u128::MAX])[..40].to_vec()] {
            assert_eq!(differing(&own(), &digests).unwrap_err().code, ErrorCode::BadMessage);
        }
    }
}
