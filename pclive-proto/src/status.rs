//! The structured [`Error`] inside a gRPC status.
//!
//! A call that fails carries an encoded [`Error`] in the details of its status, so that the caller learns the
//! code, the place and the hint, not only a sentence. Details travel in HTTP/2 trailers, which are limited: long
//! lists of blockers are cut (`CheckContainer` and the event stream carry whole lists).

use prost::Message;
use tonic::{Code, Status};

use crate::control::Error;

/// Most blockers that a status carries.
const MAX_BLOCKERS: usize = 16;
/// Most bytes of an error that a status carries; a longer one goes without its blockers.
const MAX_DETAILS_BYTES: usize = 8 * 1024;
/// Most bytes of message and of hint: parts of both may come from another host.
const MAX_TEXT_BYTES: usize = 1024;

impl Error {
    /// The status that carries this error. Blockers beyond what trailers can hold are left out.
    pub fn into_status(mut self, code: Code) -> Status {
        cut(&mut self.message);
        cut(&mut self.hint);
        self.blockers.truncate(MAX_BLOCKERS);
        if self.encoded_len() > MAX_DETAILS_BYTES {
            self.blockers.clear();
        }
        Status::with_details(code, self.message.clone(), self.encode_to_vec().into())
    }

    /// The error inside a status; `None` if it carries none (it came from the transport, or from gRPC itself).
    pub fn from_status(status: &Status) -> Option<Self> {
        if status.details().is_empty() {
            return None;
        }
        Self::decode(status.details()).ok().filter(|error| !error.code.is_empty())
    }
}

/// Shortens a text to [`MAX_TEXT_BYTES`], at the end of a character.
fn cut(text: &mut String) {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Blocker, Phase, Role};

    fn sample(blockers: usize) -> Error {
        Error {
            code: "blocked".into(),
            role: Role::Source.into(),
            phase: Phase::Negotiating.into(),
            message: "the container cannot be migrated".into(),
            hint: "see the blockers".into(),
            retryable: false,
            blockers: vec![Blocker { what: "io_uring instance".into(), ..Blocker::default() }; blockers],
        }
    }

    #[test]
    fn an_error_survives_the_way_through_a_status() {
        let error = sample(2);
        let status = error.clone().into_status(Code::FailedPrecondition);
        assert_eq!(status.message(), error.message);
        assert_eq!(Error::from_status(&status), Some(error));
    }

    #[test]
    fn a_status_without_details_has_no_error() {
        assert_eq!(Error::from_status(&Status::not_found("nothing")), None);
    }

    #[test]
    fn details_of_another_kind_are_not_taken_for_an_error() {
        let status = Status::with_details(Code::Internal, "x", vec![0xff; 7].into());
        assert_eq!(Error::from_status(&status), None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let error = Error { message: "é".repeat(10_000), ..sample(0) };
        let status = error.into_status(Code::Internal);
        assert_eq!(status.message(), "é".repeat(MAX_TEXT_BYTES / 2));
    }

    #[test]
    fn a_long_list_of_blockers_is_cut() {
        let status = sample(1000).into_status(Code::FailedPrecondition);
        assert!(status.details().len() <= MAX_DETAILS_BYTES);
        assert_eq!(Error::from_status(&status).map(|error| error.blockers.len()), Some(MAX_BLOCKERS));
    }
}
