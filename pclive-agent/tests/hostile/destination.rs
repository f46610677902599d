//! A hostile destination against a real source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pclive_proto::control::{Error, Phase, Strategy};
use pclive_proto::peer::destination_message::Message;
use pclive_proto::peer::inquire_response::Answer;
use pclive_proto::peer::source_message::Message as Said;
use pclive_proto::peer::{
    Accepted, DestinationLedger, DestinationMessage, Digests, Failure, InquireResponse, Ready, RoundApplied,
    Running, Settled, SourceMessage,
};
use tonic::{Code, Status};

use crate::pair::Pair;
use crate::proxy::Attack;
use crate::ready;

/// A text that no terminal should see, and no log should keep.
fn long_and_evil() -> String {
    format!("\u{1b}[2J\n\u{202e}{}", "x".repeat(256 << 10))
}

/// A destination that changes its answers: what comes instead of each, `None` for nothing any more.
fn answering(mut change: impl FnMut(Message) -> Option<Vec<Message>> + Send + 'static) -> Attack {
    let change = move |answer: DestinationMessage| {
        let instead = change(answer.message?)?;
        Some(
            instead
                .into_iter()
                .map(|message| DestinationMessage { message: Some(message), place: 0 })
                .collect(),
        )
    };
    Attack { destination: Some(Box::new(change)), ..Attack::default() }
}

/// Another answer in the place of the first that `is_it`.
fn instead(is_it: fn(&Message) -> bool, others: fn() -> Vec<Message>) -> Attack {
    let mut done = false;
    answering(move |message| {
        if done || !is_it(&message) {
            return Some(vec![message]);
        }
        done = true;
        Some(others())
    })
}

fn is_accepted(message: &Message) -> bool {
    matches!(message, Message::Accepted(_))
}

fn is_applied(message: &Message) -> bool {
    matches!(message, Message::RoundApplied(_))
}

fn is_ready(message: &Message) -> bool {
    matches!(message, Message::Ready(_))
}

fn failure() -> Message {
    let text = long_and_evil;
    Message::Failure(Failure {
        code: text(),
        role: text(),
        phase: text(),
        message: text(),
        hint: text(),
        retryable: true,
    })
}

/// The name, what must be said of it, which answer is replaced, and by what.
type Swap = (&'static str, &'static [&'static str], fn(&Message) -> bool, fn() -> Vec<Message>);

const SWAPS: [Swap; 15] = [
    ("ready at once", &["Ready out of turn"], is_accepted, || vec![Message::Ready(Ready::default())]),
    ("running at once", &["Running out of turn"], is_accepted, || vec![Message::Running(Running::default())]),
    ("a round before it was sent", &["RoundApplied out of turn"], is_accepted, || {
        vec![Message::RoundApplied(RoundApplied::default())]
    }),
    ("accepted without facts", &["machine", "the source is"], is_accepted, || {
        vec![Message::Accepted(Accepted::default())]
    }),
    ("a machine with a terminal's orders", &["machine", "the source is"], is_accepted, || {
        let host = Some(pclive_proto::peer::HostFacts { machine: long_and_evil(), ..Default::default() });
        vec![Message::Accepted(Accepted { host, agent_name: long_and_evil(), ..Accepted::default() })]
    }),
    ("another round", &["RoundApplied out of turn"], is_applied, || {
        vec![Message::RoundApplied(RoundApplied { round: 7, ..Default::default() })]
    }),
    ("ready without the state", &["Ready out of turn"], is_applied, || {
        vec![Message::Ready(Ready::default())]
    }),
    ("running without a commit", &["Running out of turn"], is_ready, || {
        vec![Message::Running(Running { init_pid: -1, ..Default::default() })]
    }),
    ("settled, unasked", &["Settled out of turn"], is_applied, || vec![Message::Settled(Settled {})]),
    ("digests, unasked", &["Digests out of turn"], is_ready, || {
        vec![Message::Digests(Digests { digests: vec![0; 16].into() })]
    }),
    ("answers without end", &["out of turn"], is_applied, || vec![Message::Settled(Settled {}); 20_000]),
    ("a failure of megabytes", &["xxxx"], is_accepted, || vec![failure()]),
    ("a failure during the stop", &["xxxx"], is_ready, || vec![failure()]),
    ("a message that is too large", &["link to the other agent"], is_accepted, || {
        vec![Message::Failure(Failure { message: "x".repeat(9 << 20), ..Default::default() })]
    }),
    ("no answer", &["did not put a round in place"], is_applied, Vec::new),
];

/// Nothing is ever in place.
fn never_in_place() -> Attack {
    answering(|message| match message {
        Message::RoundApplied(applied) => {
            let most = u64::MAX;
            let applied = RoundApplied { staged_bytes: most, apply_ns: most, backlog_ns: most, ..applied };
            Some(vec![Message::RoundApplied(applied)])
        }
        other => Some(vec![other]),
    })
}

async fn streams_that_end(pair: &mut Pair) {
    for number in [0, 1, 2] {
        let mut left = number;
        let attack = answering(move |message| {
            left = usize::checked_sub(left, 1)?;
            Some(vec![message])
        });
        let words = &["the link to the other agent ended", "the link to the other agent failed"];
        pair.refuses(&format!("nothing after {number} answers"), words, attack).await;
    }
    let mut first = true;
    let empty = move |message: DestinationMessage| {
        let instead =
            if std::mem::take(&mut first) { DestinationMessage { message: None, place: 0 } } else { message };
        Some(vec![instead])
    };
    let attack = Attack { destination: Some(Box::new(empty)), ..Attack::default() };
    pair.refuses("an answer that is none", &["an empty message"], attack).await;
}

async fn greetings(pair: &mut Pair) {
    let hello = |change: fn(&mut pclive_proto::peer::HelloResponse)| Attack {
        hello: Some(Box::new(move |mut answer| {
            change(&mut answer);
            Ok(answer)
        })),
        ..Attack::default()
    };
    let attack = hello(|answer| {
        (answer.protocol_version, answer.agent_name) = (99, long_and_evil());
    });
    pair.refuses("another protocol version", &["protocol version 99"], attack).await;
    let refusal = || {
        let text = || "\u{1b}[2J\nx".repeat(500);
        let (code, message, hint) = (text(), text(), text());
        Error { code, message, hint, ..Default::default() }.into_status(Code::FailedPrecondition)
    };
    let attack = Attack { hello: Some(Box::new(move |_| Err(refusal()))), ..Attack::default() };
    pair.refuses("a status with a terminal's orders", &["[2J"], attack).await;
    let attack = Attack {
        hello: Some(Box::new(|_| Err(Status::internal("\u{1b}[2J\nx".repeat(500))))),
        ..Attack::default()
    };
    pair.refuses("words with a terminal's orders", &["[2J"], attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_make_no_sense_end_the_migration_and_nothing_else() {
    if !ready() {
        return;
    }
    let mut pair = Pair::start("answers").await;
    for (name, words, is_it, others) in SWAPS {
        pair.refuses(name, words, instead(is_it, others)).await;
    }
    pair.refuses("rounds that wait for ever", &["does not converge"], never_in_place()).await;
    streams_that_end(&mut pair).await;
    greetings(&mut pair).await;
    let odd = answering(|message| match message {
        Message::Running(_) => Some(vec![Message::Running(most_odd())]),
        other => Some(vec![other]),
    });
    let ended = pair.finish(odd).await;
    assert!(ended.report.is_some_and(|report| report.restore_ns == u64::MAX));
}

/// What is told of a copy that runs is for people only.
fn most_odd() -> Running {
    let most = u64::MAX;
    let ledger = DestinationLedger {
        fill_ns: most,
        reconcile_ns: most,
        files_ns: most,
        tasks_ns: most,
        resume_ns: most,
        restore_ns: most,
        verify_ns: most,
    };
    Running {
        ledger: Some(ledger),
        init_pid: -7,
        cpu_ns: most,
        peak_memory_bytes: most,
        staging_peak_bytes: most,
    }
}

/// A destination that keeps the commit for itself and never says what became of it: the container stands still until
/// it does, however often it is asked, and goes on once it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn container_stands_still_as_long_as_its_destination_does_not_decide() {
    if !ready() {
        return;
    }
    let mut pair = Pair::start("pending").await;
    let swallow = |said: SourceMessage| match said.message {
        Some(Said::Commit(_)) => Some(Vec::new()),
        _ => Some(vec![said]),
    };
    let pending = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&pending);
    let answer = move || InquireResponse {
        answer: if asked.load(Ordering::Relaxed) { Answer::Pending.into() } else { 77 },
        agent_name: long_and_evil(),
        detail: long_and_evil(),
    };
    pair.proxy.prepare(Attack {
        source: Some(Box::new(swallow)),
        inquire: Some(Box::new(answer)),
        ..Attack::default()
    });
    let doubtful = pair.migrate(Strategy::Global, |migration| migration.phase() == Phase::Unknown).await;
    let asked_often = |migration: &pclive_proto::control::Migration| {
        migration.doubt.as_ref().is_some_and(|doubt| doubt.questions > 2)
    };
    let told = pair.until(&doubtful.id, asked_often).await;
    assert!(pair.container.stands_still(), "it runs although nobody knows");
    pending.store(false, Ordering::Relaxed);
    let questions = told.doubt.as_ref().map_or(0, |doubt| doubt.questions);
    let told = pair.until(&doubtful.id, |migration| {
        migration.doubt.as_ref().is_some_and(|doubt| doubt.questions > questions + 1)
    });
    let there = told.await.doubt.unwrap_or_default().there;
    assert!(there.len() < 16 << 10 && !there.contains(char::is_control), "{} bytes", there.len());
    assert!(pair.container.stands_still(), "it runs although nobody knows");
    pair.proxy.prepare(Attack::default());
    pair.until(&doubtful.id, |migration| migration.phase() == Phase::Failed).await;
    pair.unharmed("a destination that does not decide").await;
    pair.finish(Attack::default()).await;
}
