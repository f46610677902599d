//! Engine values <-> messages of the peer protocol. Nothing that the peer says is believed unchecked: every
//! count, length and address is compared with a limit before anything is made of it.

use bytes::Bytes;
use pclive_engine::model::codec;
use pclive_engine::model::{Batch, Extent, ExtentKind, PAGE_SIZE, Target, Vpid};
use pclive_engine::tail::Later;
use pclive_proto::control;
use pclive_proto::peer::extent::Kind;
use pclive_proto::peer::page_batch::Encoding;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{self, PageBatch, SourceMessage, page_batch};
use prost::Message as _;
use serde::de::DeserializeOwned;
use tonic::Status;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::Strategy;
use crate::error::{ErrorCode, MigrationError, chain, printable, printable_name};
use crate::migration::compression::{Packed, Unpacker};
use crate::migration::convergence::Policy;
use crate::network::Waiting;

/// Most contents of one batch, bytes: what the source's configuration allows.
const MAX_PAYLOAD: usize = 4 << 20;
/// Most runs of one batch: an engine's has 4,096, or as many as pages.
const MAX_EXTENTS: usize = 4096;
/// Runs of pages that come later in one message.
pub(super) const RUNS_PER_MESSAGE: usize = 1 << 16;
/// First address that no process of x86-64 has (five page table levels).
const ADDRESS_END: u64 = 1 << 56;
/// Largest id of a task (`/proc/sys/kernel/pid_max` at most).
const MAX_PID: i32 = 1 << 22;

/// A batch as a message, with its checksum, its contents packed.
pub(super) fn page_batch(batch: Batch, pack: impl FnOnce(Bytes) -> Packed) -> SourceMessage {
    let target = match batch.target {
        Target::Process(vpid) => page_batch::Target::Process(vpid.0),
        Target::Object(id) => page_batch::Target::Object(id),
    };
    let checksum = xxh3_64(&batch.payload);
    let (encoding, payload) = match pack(batch.payload) {
        Packed::Plain(payload) => (Encoding::Plain, payload),
        Packed::Zstd(payload) => (Encoding::Zstd, payload),
    };
    let message = PageBatch {
        target: Some(target),
        extents: batch.extents.iter().map(extent_message).collect(),
        checksum,
        payload,
        encoding: encoding.into(),
    };
    source_message(Message::PageBatch(message))
}

/// A message of the source.
pub(super) fn source_message(message: Message) -> SourceMessage {
    SourceMessage { message: Some(message), place: 0 }
}

fn extent_message(extent: &Extent) -> peer::Extent {
    let kind = match extent.kind {
        ExtentKind::Data => Kind::Data,
        ExtentKind::Zero => Kind::Zero,
        ExtentKind::Hole => Kind::Hole,
        ExtentKind::Guard => Kind::Guard,
    };
    peer::Extent { start: extent.start, pages: extent.pages, kind: kind.into() }
}

/// A batch as it came: everything is checked but its contents.
#[derive(Debug)]
pub(super) struct Arrived {
    target: Target,
    pub(super) extents: Vec<Extent>,
    contents: Packed,
    /// Bytes of the contents once they are unpacked: at most `MAX_PAYLOAD`.
    pub(super) data_bytes: usize,
    /// Bytes of the contents as they came.
    pub(super) wire_bytes: u64,
    checksum: u64,
}

impl Arrived {
    /// Memory that it may take once it is in place, bytes: zeros do where they hide a file, guard pages never do.
    pub(super) fn claimed_bytes(&self) -> u64 {
        let claims = |kind| match kind {
            ExtentKind::Data | ExtentKind::Zero => true,
            ExtentKind::Hole | ExtentKind::Guard => false,
        };
        let extents = self.extents.iter().filter(|extent| claims(extent.kind));
        extents.fold(0, |sum: u64, extent| sum.saturating_add(extent.len_bytes()))
    }

    /// Memory that it takes until it is in place, KiB.
    pub(super) fn kib(&self) -> u32 {
        let runs = self.extents.len() * size_of::<Extent>();
        u32::try_from((self.data_bytes + runs).div_ceil(1024)).unwrap_or(u32::MAX)
    }

    /// The batch, if its contents are what the source had.
    pub(super) fn unpack(self, unpacker: &mut Unpacker) -> Result<Batch, MigrationError> {
        let payload = unpacker.unpack(self.contents, self.data_bytes);
        let payload = payload.map_err(|error| bad(format!("pages that cannot be unpacked: {error}")))?;
        verify(&payload, self.checksum)?;
        Ok(Batch { target: self.target, extents: self.extents, payload })
    }
}

/// A message of the source, by the functions that a destination calls for it: for tests and fuzzers.
pub(crate) fn take_apart(bytes: &[u8]) -> Result<(), MigrationError> {
    let message = SourceMessage::decode(bytes).map_err(|error| bad(error.to_string()))?;
    match message.message {
        Some(Message::PageBatch(pages)) => batch(pages)?.unpack(&mut Unpacker::default()).map(drop),
        Some(Message::Later(runs) | Message::Outdated(runs)) => later(runs).map(drop),
        Some(Message::Prepare(prepare)) => strategy(prepare.strategy()).map(drop),
        Some(Message::Frames(frames)) => {
            Waiting::new(MAX_PAYLOAD as u64).take(frames);
            Ok(())
        }
        // Nothing is made of these but what the decoder has made; documents have a target of their own.
        Some(
            Message::RoundBegin(_)
            | Message::RoundEnd(_)
            | Message::FinalState(_)
            | Message::Commit(_)
            | Message::Failure(_)
            | Message::DocumentPart(_)
            | Message::Settle(_)
            | Message::Join(_)
            | Message::Received(_)
            | Message::End(_),
        )
        | None => Ok(()),
    }
}

/// A batch out of a message.
pub(super) fn batch(message: PageBatch) -> Result<Arrived, MigrationError> {
    if message.payload.len() > MAX_PAYLOAD || message.extents.len() > MAX_EXTENTS {
        let (bytes, runs) = (message.payload.len(), message.extents.len());
        return Err(bad(format!("a batch of {bytes} bytes in {runs} runs, more than the limits")));
    }
    let target = match message.target {
        Some(page_batch::Target::Process(vpid)) if (1..=MAX_PID).contains(&vpid) => {
            Target::Process(Vpid(vpid))
        }
        Some(page_batch::Target::Process(vpid)) => return Err(bad(format!("pages for process {vpid}"))),
        Some(page_batch::Target::Object(id)) => Target::Object(id),
        None => return Err(bad("pages without a target")),
    };
    let extents = extents(&message.extents)?;
    let claimed = extents.iter().filter(|extent| extent.kind == ExtentKind::Data);
    let claimed =
        claimed.fold(0u64, |sum, extent| sum.saturating_add(extent.pages.saturating_mul(PAGE_SIZE)));
    let data_bytes = usize::try_from(claimed).unwrap_or(usize::MAX);
    let there = message.payload.len();
    let (encoding, checksum, wire_bytes) = (message.encoding, message.checksum, there as u64);
    let (contents, sound) = match message.encoding() {
        Encoding::Plain if encoding != 0 => return Err(bad(format!("pages in encoding {encoding}"))),
        Encoding::Plain => (Packed::Plain(message.payload), there == data_bytes),
        Encoding::Zstd => (Packed::Zstd(message.payload), there < data_bytes && data_bytes <= MAX_PAYLOAD),
    };
    if !sound {
        return Err(bad(format!("a batch that claims {claimed} bytes and has {there}")));
    }
    Ok(Arrived { target, extents, contents, data_bytes, wire_bytes, checksum })
}

fn extents(messages: &[peer::Extent]) -> Result<Vec<Extent>, MigrationError> {
    let mut end = 0;
    let mut extents = Vec::with_capacity(messages.len());
    for message in messages {
        let kind = match message.kind() {
            Kind::Data => ExtentKind::Data,
            Kind::Zero => ExtentKind::Zero,
            Kind::Hole => ExtentKind::Hole,
            Kind::Guard => ExtentKind::Guard,
            Kind::Unspecified => return Err(bad(format!("a run of kind {}", message.kind))),
        };
        let extent = Extent { start: message.start, pages: message.pages, kind };
        let sound = extent.start.is_multiple_of(PAGE_SIZE)
            && extent.start >= end
            && extent.pages > 0
            && extent.end() <= ADDRESS_END;
        if !sound {
            return Err(bad(format!("a run of {} pages at {:#x}", extent.pages, extent.start)));
        }
        end = extent.end();
        extents.push(extent);
    }
    Ok(extents)
}

/// Pages that come later.
pub(super) fn later(message: peer::Later) -> Result<Later, MigrationError> {
    if !(1..=MAX_PID).contains(&message.process) || !message.runs.len().is_multiple_of(2) {
        return Err(bad("pages that come later of no process, or runs without an end"));
    }
    // One without runs says nothing, and would wait beside the others all the same.
    if message.runs.is_empty() || message.runs.len() / 2 > RUNS_PER_MESSAGE {
        let runs = message.runs.len() / 2;
        return Err(bad(format!("a list of {runs} runs of pages that come later")));
    }
    let run = |pair: &[u64]| {
        let [start, pages] = pair else { return None };
        let end = start.checked_add(pages.checked_mul(PAGE_SIZE)?)?;
        let sound = *pages > 0 && start.is_multiple_of(PAGE_SIZE) && end <= ADDRESS_END;
        sound.then_some((*start, end))
    };
    let runs: Option<Vec<(u64, u64)>> = message.runs.chunks_exact(2).map(run).collect();
    let runs = runs.ok_or_else(|| bad("pages that come later where there can be none"))?;
    Ok(Later { vpid: Vpid(message.process), runs })
}

/// Compares contents with the checksum that came with them.
pub(crate) fn verify(payload: &[u8], checksum: u64) -> Result<(), MigrationError> {
    if xxh3_64(payload) == checksum {
        return Ok(());
    }
    Err(bad(format!("{} bytes of pages that do not match their checksum", payload.len())))
}

/// A host's facts as the other agent tells them, its words made harmless.
pub(super) fn facts(told: peer::HostFacts) -> peer::HostFacts {
    let [kernel_release, machine, agent_version] =
        [&told.kernel_release, &told.machine, &told.agent_version].map(|word| printable_name(word));
    peer::HostFacts { kernel_release, machine, agent_version, ..told }
}

/// A document of the engine out of a message.
pub(super) fn document<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MigrationError> {
    codec::decode(bytes).map_err(|error| bad(chain(&error)))
}

/// A document of the engine, to be sent.
pub(super) fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, MigrationError> {
    codec::encode(value).map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))
}

/// A message that makes no sense here.
pub(super) fn bad(what: impl std::fmt::Display) -> MigrationError {
    MigrationError::new(ErrorCode::BadMessage, format!("the other agent sent {what}"))
}

/// What a status of the other agent says: its own error if it carries one, else the transport's.
pub(crate) fn status_error(status: &Status) -> MigrationError {
    if let Some(error) = control::Error::from_status(status) {
        let code = ErrorCode::from_peer(&error.code);
        let message = printable(error.message);
        return MigrationError { retryable: error.retryable, ..MigrationError::new(code, message) }
            .hint(printable(error.hint));
    }
    let message = format!("the link to the other agent failed: {}", printable(status.message().into()));
    MigrationError::new(ErrorCode::PeerLost, message)
}

/// The link ended without a word.
pub(super) fn link_ended() -> MigrationError {
    MigrationError::new(ErrorCode::PeerLost, "the link to the other agent ended")
}

/// Strategy as peers say it.
pub(super) fn peer_strategy(strategy: Strategy) -> peer::Strategy {
    match strategy {
        Strategy::Global => peer::Strategy::Global,
        Strategy::Pipelined => peer::Strategy::Pipelined,
        Strategy::OneShot => peer::Strategy::OneShot,
    }
}

/// Strategy as users see it.
pub(super) fn control_strategy(strategy: Strategy) -> control::Strategy {
    match strategy {
        Strategy::Global => control::Strategy::Global,
        Strategy::Pipelined => control::Strategy::Pipelined,
        Strategy::OneShot => control::Strategy::OneShot,
    }
}

/// Policy as users see it.
pub(super) fn control_policy(policy: Policy) -> control::Policy {
    match policy {
        Policy::StopAnyway => control::Policy::StopAnyway,
        Policy::Throttle => control::Policy::Throttle,
        Policy::Cancel => control::Policy::Cancel,
        Policy::PostCopy => control::Policy::PostCopy,
    }
}

/// Strategy that a peer asks for.
pub(super) fn strategy(asked: peer::Strategy) -> Result<Strategy, MigrationError> {
    match asked {
        peer::Strategy::Global => Ok(Strategy::Global),
        peer::Strategy::Pipelined => Ok(Strategy::Pipelined),
        peer::Strategy::OneShot => Ok(Strategy::OneShot),
        peer::Strategy::Unspecified => Err(bad("a strategy that this agent does not know")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn page(start: u64, pages: u64, kind: Kind) -> peer::Extent {
        peer::Extent { start, pages, kind: kind.into() }
    }

    fn message(extents: Vec<peer::Extent>, payload: Vec<u8>) -> PageBatch {
        let checksum = xxh3_64(&payload);
        let target = Some(page_batch::Target::Process(1));
        PageBatch { target, extents, payload: payload.into(), checksum, encoding: Encoding::Plain.into() }
    }

    fn refusal(message: PageBatch) -> String {
        let error = batch(message).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadMessage);
        error.message
    }

    #[test]
    fn a_batch_survives_the_wire() {
        let sent = Batch {
            target: Target::Object(9),
            extents: vec![
                Extent { start: 0, pages: 1, kind: ExtentKind::Zero },
                Extent { start: 4096, pages: 2, kind: ExtentKind::Data },
                Extent { start: 3 * 4096, pages: 5, kind: ExtentKind::Hole },
            ],
            payload: Bytes::from(vec![7; 8192]),
        };
        for pack in [Packed::Plain, |contents: Bytes| {
            Packed::Zstd(zstd::bulk::compress(&contents, 1).unwrap().into())
        }] {
            let Some(Message::PageBatch(message)) = page_batch(sent.clone(), pack).message else {
                panic!("not a batch")
            };
            let arrived = batch(message).unwrap();
            assert_eq!((arrived.data_bytes, arrived.extents.len()), (8192, 3));
            assert_eq!(arrived.unpack(&mut Unpacker::default()).unwrap(), sent);
        }
    }

    #[test]
    fn damaged_contents_are_noticed() {
        assert!(verify(b"pages", xxh3_64(b"pages")).is_ok());
        assert!(verify(b"pagez", xxh3_64(b"pages")).is_err());
    }

    #[test]
    fn runs_that_lie_are_refused() {
        for extents in [
            vec![page(1, 1, Kind::Zero)],
            vec![page(0, 0, Kind::Zero)],
            vec![page(0, u64::MAX, Kind::Zero)],
            vec![page(u64::MAX - 4095, 2, Kind::Hole)],
            vec![page(8192, 1, Kind::Zero), page(4096, 1, Kind::Zero)],
            vec![page(0, 2, Kind::Zero), page(4096, 1, Kind::Zero)],
            vec![page(0, 1, Kind::Unspecified)],
        ] {
            refusal(message(extents, Vec::new()));
        }
    }

    #[test]
    fn a_payload_of_another_length_than_claimed_is_refused() {
        let said = refusal(message(vec![page(0, 2, Kind::Data)], vec![0; 4096]));
        assert!(said.contains("8192") && said.contains("4096"), "{said}");
        refusal(message(vec![page(0, 1, Kind::Zero)], vec![0; 4096]));
    }

    #[test]
    fn packed_contents_that_cannot_be_are_refused() {
        let extents = vec![page(0, 2, Kind::Data)];
        let unknown = PageBatch { encoding: 7, ..message(extents.clone(), vec![0; 8192]) };
        assert!(refusal(unknown).contains("encoding 7"));
        let packed =
            |extents, payload| PageBatch { encoding: Encoding::Zstd.into(), ..message(extents, payload) };
        refusal(packed(extents.clone(), vec![0; 8192]));
        let pages = MAX_PAYLOAD as u64 / PAGE_SIZE + 1;
        refusal(packed(vec![page(0, pages, Kind::Data)], vec![0; 10]));
        let garbage = batch(packed(extents, vec![0; 10])).unwrap();
        assert_eq!(garbage.unpack(&mut Unpacker::default()).unwrap_err().code, ErrorCode::BadMessage);
    }

    #[test]
    fn targets_that_cannot_be_are_refused() {
        for target in [Some(page_batch::Target::Process(0)), Some(page_batch::Target::Process(-1)), None] {
            refusal(PageBatch { target, ..message(Vec::new(), Vec::new()) });
        }
    }

    #[test]
    fn oversized_batches_are_refused() {
        refusal(message(Vec::new(), vec![0; MAX_PAYLOAD + 1]));
        refusal(message(vec![page(0, 1, Kind::Zero); MAX_EXTENTS + 1], Vec::new()));
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_never_claims_more_than_it_has(
            runs in proptest::collection::vec((any::<u64>(), any::<u64>(), 0i32..6), 0..20),
            payload in 0usize..3,
        ) {
            let extents = runs.into_iter().map(|(start, pages, kind)| peer::Extent { start, pages, kind }).collect();
            if let Ok(batch) = batch(message(extents, vec![0; payload * 4096])) {
                let batch = batch.unpack(&mut Unpacker::default()).unwrap();
                prop_assert_eq!(batch.data_bytes(), batch.payload.len() as u64);
            }
        }

        #[test]
        fn garbage_documents_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = document::<pclive_engine::model::Layout>(&bytes);
            let _ = document::<pclive_engine::model::FinalState>(&bytes);
        }
    }
}
