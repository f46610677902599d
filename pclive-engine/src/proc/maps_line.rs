//! The fields of a line of `/proc/PID/maps` and `/proc/PID/smaps`, taken off one by one.

/// What is left of a line.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(line: &'a [u8]) -> Self {
        Self { rest: line }
    }

    /// Everything up to the next `end`, which is taken too; `None` when there is none.
    pub(super) fn token(&mut self, end: u8) -> Option<&'a [u8]> {
        let at = self.rest.iter().position(|byte| *byte == end)?;
        let (token, rest) = (self.rest.get(..at)?, self.rest.get(at + 1..)?);
        self.rest = rest;
        Some(token)
    }

    /// A hexadecimal number up to `end`.
    pub(super) fn hex(&mut self, end: u8) -> Option<u64> {
        number(self.token(end)?, 16)
    }

    /// A decimal number up to the next space or the end of the line.
    pub(super) fn decimal(&mut self) -> Option<u64> {
        let length = self.rest.iter().position(|byte| *byte == b' ').unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(length);
        self.rest = rest;
        number(token, 10)
    }

    /// What is left, without the spaces before it.
    pub(super) fn rest(self) -> &'a [u8] {
        let blanks = self.rest.iter().take_while(|byte| **byte == b' ').count();
        self.rest.get(blanks..).unwrap_or_default()
    }
}

/// Digits only: no sign, no prefix, not empty, no overflow.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let digit = |byte: &u8| char::from(*byte).to_digit(radix).map(u64::from);
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| sum.checked_mul(radix.into())?.checked_add(digit(byte)?))
}
