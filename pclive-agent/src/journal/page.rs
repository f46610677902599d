//! The text of one file: a line with name, version, length and digest, then the record as JSON, then spaces.
//!
//! Filled up to whole pages, so that a page that was written in advance can be written again without room being
//! needed, whatever is on it.

use super::record::Record;

/// Version of the format. Files of another one are left alone.
pub(super) const VERSION: u32 = 1;
const NAME: &str = "pclive-migration";
const PAGE_BYTES: usize = 4096;
/// No file is longer; nothing longer is read.
pub(super) const MAX_BYTES: usize = 64 << 10;

/// Why a text is not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Not a file of the journal.
    #[error("it is not a record of a migration")]
    Foreign,
    /// Written by another version of the agent.
    #[error("it has version {found} of the format, this agent knows {VERSION}")]
    Version {
        /// The file's version.
        found: u32,
    },
    /// Cut off, or changed.
    #[error("it is damaged: length or digest do not fit")]
    Torn,
    /// Whole, and yet no record.
    #[error("its contents make no sense: {0}")]
    Contents(String),
    /// More than there can be.
    #[error("it would be longer than {MAX_BYTES} bytes")]
    TooLong,
}

/// The text of a record.
pub(super) fn encode(record: &Record) -> Result<Vec<u8>, PageError> {
    let body = serde_json::to_vec(record).map_err(|error| PageError::Contents(error.to_string()))?;
    let digest = xxhash_rust::xxh3::xxh3_64(&body);
    let mut text = format!("{NAME} {VERSION} {} {digest:016x}\n", body.len()).into_bytes();
    text.extend_from_slice(&body);
    text.push(b'\n');
    text.resize(text.len().next_multiple_of(PAGE_BYTES), b' ');
    if text.len() > MAX_BYTES { Err(PageError::TooLong) } else { Ok(text) }
}

/// The record of a text.
pub(crate) fn decode(text: &[u8]) -> Result<Record, PageError> {
    let end = text.iter().position(|byte| *byte == b'\n').ok_or(PageError::Foreign)?;
    let head = std::str::from_utf8(&text[..end]).map_err(|_| PageError::Foreign)?;
    let words: Vec<&str> = head.split(' ').collect();
    let [NAME, version, rest @ ..] = words.as_slice() else { return Err(PageError::Foreign) };
    let found = version.parse().map_err(|_| PageError::Foreign)?;
    if found != VERSION {
        return Err(PageError::Version { found });
    }
    let [length, digest] = rest else { return Err(PageError::Torn) };
    let length: usize = length.parse().map_err(|_| PageError::Torn)?;
    let digest = u64::from_str_radix(digest, 16).map_err(|_| PageError::Torn)?;
    let body = text[end + 1..].get(..length).ok_or(PageError::Torn)?;
    if xxhash_rust::xxh3::xxh3_64(body) != digest {
        return Err(PageError::Torn);
    }
    let record: Record =
        serde_json::from_slice(body).map_err(|error| PageError::Contents(error.to_string()))?;
    if record.is_sound() { Ok(record) } else { Err(PageError::Contents("parts do not fit".into())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::record;
    use super::super::{Ending, Phase, Reason};
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn every_phase_survives_in_whole_pages() {
        let failed = Ending::Failed(Reason::new(ErrorCode::PeerLost, "the link \u{e9}nded\n", ""));
        let phases = [Phase::Begun, Phase::Committing, Phase::Ended(Ending::Done), Phase::Ended(failed)];
        for phase in phases {
            let record = super::Record { phase, ..record() };
            let text = encode(&record).unwrap();
            assert_eq!(text.len(), PAGE_BYTES);
            assert_eq!(decode(&text).unwrap(), record);
        }
    }

    #[test]
    fn a_torn_page_is_recognised_wherever_it_is_torn() {
        let text = encode(&record()).unwrap();
        let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap();
        for length in 0..whole {
            let error = decode(&text[..length]).unwrap_err();
            assert!(matches!(error, PageError::Foreign | PageError::Torn), "{length}: {error}");
        }
        for at in 0..whole {
            let mut changed = text.clone();
            changed[at] ^= 1;
            assert!(decode(&changed).is_err(), "{at}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let text = String::from_utf8(encode(&record()).unwrap()).unwrap();
        let newer = text.replacen(&format!("{NAME} {VERSION}"), &format!("{NAME} 7"), 1);
        assert_eq!(decode(newer.as_bytes()), Err(PageError::Version { found: 7 }));
    }

    #[test]
    fn a_record_that_leads_elsewhere_is_refused() {
        for change in [
            (|r| r.id = "../x".into()) as fn(&mut Record),
            |r| r.container = "../etc".into(),
            |r| r.phase = Phase::Discarded,
            |r| r.init = None,
        ] {
            let mut record = record();
            change(&mut record);
            assert!(matches!(decode(&encode(&record).unwrap()), Err(PageError::Contents(_))), "{record:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let record = Record { bundle: "x".repeat(MAX_BYTES).into(), ..record() };
        assert_eq!(encode(&record), Err(PageError::TooLong));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_nothing_worse(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&text).is_err());
        }
    }
}
