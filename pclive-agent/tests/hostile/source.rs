//! A hostile source against a real destination.

mod layouts;
mod order;
mod pages;
mod prepare;
mod states;

use pclive_engine::model::codec;
use pclive_engine::model::{FinalState, Layout};
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{PageBatch, Prepare, SourceMessage};

use crate::pair::Pair;
use crate::proxy::Attack;
use crate::ready;

/// A source that changes its messages as `change` says: what comes instead of each, `None` for nothing any more.
fn saying(mut change: impl FnMut(Message) -> Option<Vec<Message>> + Send + 'static) -> Attack {
    let change = move |message: SourceMessage| {
        let instead = change(message.message?)?;
        Some(instead.into_iter().map(|message| SourceMessage { message: Some(message), place: 0 }).collect())
    };
    Attack { source: Some(Box::new(change)), ..Attack::default() }
}

fn in_prepare(edit: impl Fn(&mut Prepare) + Send + 'static) -> Attack {
    saying(move |mut message| {
        if let Message::Prepare(prepare) = &mut message {
            edit(prepare);
        }
        Some(vec![message])
    })
}

/// Changes the layout of the first round.
fn in_layout(edit: impl Fn(&mut Layout) + Send + 'static) -> Attack {
    saying(move |mut message| {
        if let Message::RoundBegin(begin) = &mut message
            && begin.round == 0
        {
            let mut layout = codec::decode(&begin.layout).unwrap();
            edit(&mut layout);
            begin.layout = codec::encode(&layout).unwrap().into();
        }
        Some(vec![message])
    })
}

/// Changes the small state.
fn in_state(edit: impl Fn(&mut FinalState) + Send + 'static) -> Attack {
    saying(move |mut message| {
        if let Message::FinalState(last) = &mut message {
            let mut state = codec::decode(&last.state).unwrap();
            edit(&mut state);
            last.state = codec::encode(&state).unwrap().into();
        }
        Some(vec![message])
    })
}

/// Changes the first batch of a process's pages that has contents.
fn in_pages(edit: impl Fn(&mut PageBatch) + Send + 'static) -> Attack {
    let mut done = false;
    saying(move |mut message| {
        if let Message::PageBatch(batch) = &mut message
            && !done
            && batch.payload.len() >= 8192
        {
            edit(batch);
            done = true;
        }
        Some(vec![message])
    })
}

async fn suite(name: &str) -> Option<Pair> {
    if ready() { Some(Pair::start(name).await) } else { None }
}
