//! What two agents say to each other, as messages of a conversation.

use pclive_proto::peer::{
    DestinationMessage, End, Received, SourceMessage, destination_message, source_message,
};
use prost::Message;

use super::Spoken;

/// About what a run of pages takes beside its contents, bytes.
const RUN: usize = 32;

impl Spoken for SourceMessage {
    fn place(&self) -> u64 {
        self.place
    }

    fn set_place(&mut self, place: u64) {
        self.place = place;
    }

    fn weight(&self) -> usize {
        match &self.message {
            Some(source_message::Message::PageBatch(batch)) => {
                batch.payload.len() + batch.extents.len() * RUN
            }
            _ => self.encoded_len(),
        }
    }

    fn received(place: u64) -> Self {
        Self { message: Some(source_message::Message::Received(Received { place })), place: 0 }
    }

    fn as_received(&self) -> Option<u64> {
        match &self.message {
            Some(source_message::Message::Received(received)) => Some(received.place),
            _ => None,
        }
    }

    fn end() -> Self {
        Self { message: Some(source_message::Message::End(End {})), place: 0 }
    }

    fn is_end(&self) -> bool {
        matches!(self.message, Some(source_message::Message::End(End {})))
    }
}

impl Spoken for DestinationMessage {
    fn place(&self) -> u64 {
        self.place
    }

    fn set_place(&mut self, place: u64) {
        self.place = place;
    }

    fn weight(&self) -> usize {
        self.encoded_len()
    }

    fn received(place: u64) -> Self {
        Self { message: Some(destination_message::Message::Received(Received { place })), place: 0 }
    }

    fn as_received(&self) -> Option<u64> {
        match &self.message {
            Some(destination_message::Message::Received(received)) => Some(received.place),
            _ => None,
        }
    }

    fn end() -> Self {
        Self { message: Some(destination_message::Message::End(End {})), place: 0 }
    }

    fn is_end(&self) -> bool {
        matches!(self.message, Some(destination_message::Message::End(End {})))
    }
}
