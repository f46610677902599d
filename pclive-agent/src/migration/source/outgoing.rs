//! The stream to the destination: the engine's messages in order, and a last word that overtakes them.

use std::pin::Pin;
use std::task::{Context, Poll};

use pclive_proto::peer::SourceMessage;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;

/// The request stream of a migration. It ends after the last word, or when all senders are gone.
#[derive(Debug)]
pub(super) struct Outgoing {
    messages: mpsc::Receiver<SourceMessage>,
    last_word: Option<oneshot::Receiver<SourceMessage>>,
    ended: bool,
}

impl Outgoing {
    /// The stream, the sender of its messages, and the sender of its last word.
    pub(super) fn new(
        capacity: usize,
    ) -> (Self, mpsc::Sender<SourceMessage>, oneshot::Sender<SourceMessage>) {
        let (sender, messages) = mpsc::channel(capacity);
        let (last, last_word) = oneshot::channel();
        (Self { messages, last_word: Some(last_word), ended: false }, sender, last)
    }

    fn poll_last_word(&mut self, context: &mut Context<'_>) -> Option<SourceMessage> {
        let word = Pin::new(self.last_word.as_mut()?);
        match std::future::Future::poll(word, context) {
            Poll::Pending => None,
            Poll::Ready(said) => {
                self.last_word = None;
                said.ok()
            }
        }
    }
}

impl Stream for Outgoing {
    type Item = SourceMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SourceMessage>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(word) = self.poll_last_word(context) {
            self.ended = true;
            self.messages.close();
            return Poll::Ready(Some(word));
        }
        self.messages.poll_recv(context)
    }
}

#[cfg(test)]
mod tests {
    use pclive_proto::peer::source_message::Message;
    use pclive_proto::peer::{Commit, Failure};
    use tokio_stream::StreamExt;

    use super::*;
    use crate::migration::wire::source_message;

    fn failure() -> SourceMessage {
        source_message(Message::Failure(Failure::default()))
    }

    fn commit() -> SourceMessage {
        source_message(Message::Commit(Commit {}))
    }

    #[tokio::test]
    async fn the_last_word_overtakes_what_waits_and_ends_the_stream() {
        let (mut stream, sender, last) = Outgoing::new(4);
        sender.send(commit()).await.unwrap();
        last.send(failure()).unwrap();
        assert_eq!(stream.next().await, Some(failure()));
        assert_eq!(stream.next().await, None);
        assert!(sender.send(commit()).await.is_err());
    }

    #[tokio::test]
    async fn without_a_last_word_all_messages_come_and_the_stream_ends() {
        let (mut stream, sender, last) = Outgoing::new(4);
        sender.send(commit()).await.unwrap();
        drop((sender, last));
        assert_eq!(stream.next().await, Some(commit()));
        assert_eq!(stream.next().await, None);
    }
}
