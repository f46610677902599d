//! What CRIU tells of a dump, in its file `stats-dump`: two words that name the kind of file, a length, and a message.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use prost::Message;

/// The two words, bytes.
const HEAD: usize = 8;

/// One dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dump {
    /// Until all tasks stood still.
    pub(super) freezing: Duration,
    /// How long they stood still; part of it: writing memory into the page server's connection.
    pub(super) frozen: Duration,
    pub(super) writing: Duration,
    /// Pages that went over the link.
    pub(super) pages: u64,
    /// When it was over.
    pub(super) ended: SystemTime,
}

impl Dump {
    /// Reads the file; it is written when the dump is over.
    ///
    /// # Errors
    /// When it is not there, or is not what CRIU 4 writes.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let read = || Ok::<_, anyhow::Error>((fs::read(path)?, fs::metadata(path)?.modified()?));
        let (bytes, ended) = read().with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&bytes, ended).with_context(|| format!("{} is not what CRIU 4 writes", path.display()))
    }

    fn parse(bytes: &[u8], ended: SystemTime) -> Result<Self> {
        let rest = bytes.get(HEAD..).context("no head")?;
        let (length, rest) = rest.split_at_checked(4).context("no length")?;
        let length = u32::from_le_bytes(length.try_into()?);
        let told = rest.get(..usize::try_from(length)?).context("shorter than it says")?;
        let told = Stats::decode(told)?.dump.context("no dump")?;
        let micros = |time: u32| Duration::from_micros(time.into());
        Ok(Self {
            freezing: micros(told.freezing_us),
            frozen: micros(told.frozen_us),
            writing: micros(told.writing_us),
            pages: told.private_pages.saturating_add(told.shared_pages),
            ended,
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct Stats {
    #[prost(message, optional, tag = "1")]
    dump: Option<Told>,
}

/// Times in microseconds, pages written.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Told {
    #[prost(uint32, tag = "1")]
    freezing_us: u32,
    #[prost(uint32, tag = "2")]
    frozen_us: u32,
    #[prost(uint32, tag = "4")]
    writing_us: u32,
    #[prost(uint64, tag = "7")]
    private_pages: u64,
    #[prost(uint64, tag = "14")]
    shared_pages: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_read_from_what_criu_writes() {
        let told = Told {
            freezing_us: 900,
            frozen_us: 350_000,
            writing_us: 300_000,
            private_pages: 77,
            shared_pages: 3,
        };
        let file = |more: u32| {
            let body = Stats { dump: Some(told) }.encode_to_vec();
            [&[0; HEAD][..], &(u32::try_from(body.len()).unwrap() + more).to_le_bytes(), &body].concat()
        };
        let dump = Dump::parse(&file(0), SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((dump.frozen, dump.pages), (Duration::from_millis(350), 80));
        assert!(Dump::parse(&file(1), SystemTime::UNIX_EPOCH).is_err());
        for length in 0..file(0).len() {
            assert!(Dump::parse(&file(0)[..length], SystemTime::UNIX_EPOCH).is_err(), "{length}");
        }
    }
}
