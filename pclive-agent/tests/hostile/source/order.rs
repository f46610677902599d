//! What it says when it should not.

use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{
    Commit, DocumentPart, FinalState, Frames, Later, PageBatch, Prepare, RoundBegin, RoundEnd, Settle,
};

use super::{saying, suite};
use crate::pair::Pair;
use crate::proxy::Attack;

/// Puts a message in front of the first that `is_it`.
fn before(is_it: fn(&Message) -> bool, early: Message) -> Attack {
    let mut early = Some(early);
    saying(move |message| {
        let first = if is_it(&message) { early.take() } else { None };
        Some(first.into_iter().chain([message]).collect())
    })
}

/// Says the first message that `is_it` in another way.
fn instead(is_it: fn(&Message) -> bool, other: fn(Message) -> Vec<Message>) -> Attack {
    let mut done = false;
    saying(move |message| {
        if done || !is_it(&message) {
            return Some(vec![message]);
        }
        done = true;
        Some(other(message))
    })
}

fn begins(message: &Message) -> bool {
    matches!(message, Message::RoundBegin(_))
}

fn has_pages(message: &Message) -> bool {
    matches!(message, Message::PageBatch(_))
}

fn ends(message: &Message) -> bool {
    matches!(message, Message::RoundEnd(_))
}

fn is_state(message: &Message) -> bool {
    matches!(message, Message::FinalState(_))
}

async fn early(pair: &mut Pair) {
    let process = pclive_proto::peer::page_batch::Target::Process(1);
    let pages = PageBatch { target: Some(process), ..Default::default() };
    let later = Later { process: 1, runs: vec![4096, 1] };
    let wrong = &["out of turn", "cannot take"];
    for (name, message) in [
        ("pages before a layout", Message::PageBatch(pages)),
        ("a commit before anything", Message::Commit(Commit {})),
        ("a second request", Message::Prepare(Prepare::default())),
        ("the end of a round that did not begin", Message::RoundEnd(RoundEnd::default())),
        ("a later round first", Message::RoundBegin(RoundBegin { round: 5, ..Default::default() })),
        ("the final round first", Message::RoundBegin(RoundBegin { r#final: true, ..Default::default() })),
        ("a state before a layout", Message::FinalState(FinalState::default())),
        ("frames before a copy", Message::Frames(Frames::default())),
        ("pages that come later, unasked", Message::Later(later.clone())),
        ("outdated pages, unasked", Message::Outdated(later)),
        ("a question before a round", Message::Settle(Settle {})),
    ] {
        pair.refuses(name, wrong, before(begins, message)).await;
    }
    pair.refuses("a question within a round", wrong, before(has_pages, Message::Settle(Settle {}))).await;
    pair.refuses("a commit before the state", wrong, before(is_state, Message::Commit(Commit {}))).await;
}

async fn instead_of(pair: &mut Pair) {
    let wrong = &["out of turn", "cannot take"];
    pair.refuses("a round of another number", wrong, {
        instead(ends, |_| vec![Message::RoundEnd(RoundEnd { round: 9, data_pages: 0 })])
    })
    .await;
    pair.refuses("pages that nobody announced", &["announced"], {
        instead(ends, |message| match message {
            Message::RoundEnd(end) => vec![Message::RoundEnd(RoundEnd { data_pages: u64::MAX, ..end })],
            other => vec![other],
        })
    })
    .await;
    pair.refuses("a round twice", wrong, instead(begins, |begin| vec![begin.clone(), begin])).await;
    // Whoever says it twice has the commit refused, which the source finds out by asking.
    pair.refuses("a state twice", &["out of turn", "does not run there"], {
        instead(is_state, |state| vec![state.clone(), state])
    })
    .await;
    pair.refuses("a layout that is none", &["cannot decode"], {
        instead(begins, |_| {
            let layout = vec![0xff; 100].into();
            vec![Message::RoundBegin(RoundBegin { layout, ..Default::default() })]
        })
    })
    .await;
    pair.refuses("a state that is none", &["cannot decode"], {
        instead(is_state, |message| match message {
            Message::FinalState(state) => {
                vec![Message::FinalState(FinalState { state: vec![0xff; 1000].into(), ..state })]
            }
            other => vec![other],
        })
    })
    .await;
    pair.refuses("a layout with something behind it", &["bytes follow"], {
        instead(begins, |message| match message {
            Message::RoundBegin(mut begin) => {
                begin.layout = [&begin.layout[..], &[0; 64]].concat().into();
                vec![Message::RoundBegin(begin)]
            }
            other => vec![other],
        })
    })
    .await;
    pair.refuses("a message that is too large", &["link to the other agent"], {
        instead(begins, |_| {
            vec![Message::DocumentPart(DocumentPart { part: vec![0; 9 << 20].into(), document_bytes: 0 })]
        })
    })
    .await;
}

async fn silent(pair: &mut Pair) {
    let attack = saying(|message| match message {
        Message::Commit(_) => Some(vec![Message::Frames(Frames::default())]),
        other => Some(vec![other]),
    });
    // Either end may be the first to have waited long enough.
    let words = &["the source sent nothing", "did not say that the container runs"];
    pair.refuses("frames without a commit", words, attack).await;
    for number in [0, 1, 2, 4, 8] {
        let mut left = number;
        let attack = saying(move |message| {
            left = usize::checked_sub(left, 1)?;
            Some(vec![message])
        });
        let words = &["the link to the other agent ended", "the link to the other agent failed"];
        pair.refuses(&format!("nothing after {number} messages"), words, attack).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_out_of_order_are_refused() {
    let Some(mut pair) = suite("order").await else { return };
    early(&mut pair).await;
    instead_of(&mut pair).await;
    silent(&mut pair).await;
    pair.finish(Attack::default()).await;
}
