//! Names and contents of records.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Fields of a record.
pub(super) const FIELDS: u8 = 10;
/// Bytes of a field.
pub(super) const VALUE_BYTES: usize = 100;
/// Bytes at the start of a field that say who wrote it.
const HEAD_BYTES: usize = 16;

pub(super) fn key(record: u64) -> String {
    format!("user{record:019}")
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
    fn part_of_a_value_is_none() {
        let bytes = Filler::new(1).value(Value::LOADED);
        for end in [0, 7, 15, 16, VALUE_BYTES - 1] {
            assert_eq!(Value::read(&bytes[..end]), None, "{end}");
        }
    }
}
