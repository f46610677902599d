//! Names and contents of records.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Fields of a record.
pub(super) const FIELDS: u8 = 10;
/// Bytes of a field.
pub(super) const VALUE_BYTES: usize = 100;
/// Bytes at the start of a field that say who wrote it.
const HEAD_BYTES: usize = 16;

/// Of every key: it tells that the key is this program's.
pub(super) const PREFIX: &str = "pclive-bench:";

pub(super) fn key(record: u64) -> String {
    format!("{PREFIX}user{record:019}")
}

/// A seed for one of many.
pub(super) fn seed_of(seed: u64, number: u64) -> u64 {
    xxh3_64_with_seed(&number.to_le_bytes(), seed)
}

/// What a record has before any client began.
pub(super) fn loaded(record: u64, seed: u64) -> Vec<Vec<u8>> {
    let mut filler = Filler::new(seed_of(seed, record));
    (0..FIELDS).map(|_| filler.value(Value::LOADED)).collect()
}

pub(super) fn field(field: u8) -> String {
    format!("field{field}")
}

/// Who wrote a field, and with which of its updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) client: u64,
    pub(super) number: u64,
}

impl Value {
    /// Written before any client began.
    pub(super) const LOADED: Self = Self { client: u64::MAX, number: 0 };

    /// `None` when it is not a whole value.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (client, rest) = bytes.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        let whole = bytes.len() == VALUE_BYTES;
        whole.then(|| Self { client: u64::from_le_bytes(*client), number: u64::from_le_bytes(*number) })
    }
}

/// Makes contents that do not compress.
#[derive(Debug)]
pub(super) struct Filler(StdRng);

impl Filler {
    pub(super) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    pub(super) fn value(&mut self, value: Value) -> Vec<u8> {
        let mut bytes = vec![0; VALUE_BYTES];
        bytes[..8].copy_from_slice(&value.client.to_le_bytes());
        bytes[8..HEAD_BYTES].copy_from_slice(&value.number.to_le_bytes());
        self.0.fill_bytes(&mut bytes[HEAD_BYTES..]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_tells_who_wrote_it() {
        let value = Value { client: 3, number: 77 };
        let bytes = Filler::new(1).value(value);
        assert_eq!(bytes.len(), VALUE_BYTES);
        assert_eq!(Value::read(&bytes), Some(value));
    }

    #[test]
    fn loaded_record_is_the_same_each_time_and_like_no_other() {
        assert_eq!(loaded(5, 1), loaded(5, 1));
        assert_eq!(loaded(5, 1).len(), usize::from(FIELDS));
        for other in [loaded(6, 1), loaded(5, 2)] {
            assert_ne!(loaded(5, 1)[0], other[0]);
        }
    }

    #[test]
    fn part_of_a_value_is_none() {
        let bytes = Filler::new(1).value(Value::LOADED);
        for end in [0, 7, 15, 16, VALUE_BYTES - 1] {
            assert_eq!(Value::read(&bytes[..end]), None, "{end}");
        }
    }
}
