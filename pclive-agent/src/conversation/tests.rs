//! Two ends and lines between them that break at random.

use std::sync::Mutex;

use futures_util::StreamExt;
use proptest::prelude::*;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    place: u64,
    text: u64,
    received: Option<u64>,
    weight: usize,
    end: bool,
}

impl Spoken for Word {
    fn place(&self) -> u64 {
        self.place
    }

    fn set_place(&mut self, place: u64) {
        self.place = place;
    }

    fn weight(&self) -> usize {
        self.weight
    }

    fn received(place: u64) -> Self {
        Self { place: 0, text: 0, received: Some(place), weight: 0, end: false }
    }

    fn as_received(&self) -> Option<u64> {
        self.received
    }

    fn end() -> Self {
        Self { end: true, ..word(0) }
    }

    fn is_end(&self) -> bool {
        self.end
    }
}

fn word(text: u64) -> Word {
    Word { place: 0, text, received: None, weight: 1000, end: false }
}

async fn heard(ears: &mut Ears<Word, Word>) -> Option<u64> {
    ears.message(Duration::MAX).await.unwrap().map(|word| word.text)
}

type End = Carrier<Word, Word>;
type Words = Said<Result<Word, Status>>;

const LIMITS: Limits = Limits { queued: 4, unconfirmed_bytes: 20_000 };

/// Carries what one end says on a line, until it has carried so much: then it breaks, with what was on its way.
fn carried(from: &Arc<End>, line: LineId, most: usize, held_back: usize) -> Words {
    let (sender, receiver) = mpsc::channel(held_back.max(1));
    let words = from.words(line);
    tokio::spawn(async move {
        let mut words = Box::pin(words);
        for _ in 0..most {
            let Some(word) = words.next().await else { return };
            if sender.send(Ok(word)).await.is_err() {
                return;
            }
        }
        // The line takes what is said, and loses it.
        for _ in 0..held_back {
            let lost = tokio::time::timeout(Duration::from_millis(1), words.next()).await;
            if lost.is_err() {
                break;
            }
        }
        let _ = sender.send(Err(Status::unavailable("cut"))).await;
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))
}

/// A line between two ends; it breaks for both at once. When one end has said everything, the other one may go on.
async fn connect(a: Arc<End>, b: Arc<End>, slot: u32, (most, held_back): (usize, usize)) {
    let (at_a, at_b) = (a.line(slot), b.line(slot));
    let (from_a, from_b) =
        (carried(&a, at_a.id(), most, held_back), carried(&b, at_b.id(), most * 3, held_back));
    let (at_a, at_b) = (a.listen(at_a, from_b), b.listen(at_b, from_a));
    tokio::pin!(at_a, at_b);
    tokio::select! {
        ended = &mut at_a => if matches!(ended, LineEnd::Over) { at_b.await; },
        ended = &mut at_b => if matches!(ended, LineEnd::Over) { at_a.await; },
    }
}

/// Both ends say so many messages over lines that break as they are told, then no more; all of them are heard.
async fn converse(messages: u64, breaks: Vec<(usize, usize)>, abreast: u32) {
    let (mouth_a, mut ears_a) = begin::<Word, Word>(LIMITS);
    let (mouth_b, mut ears_b) = begin::<Word, Word>(LIMITS);
    let breaks = Arc::new(Mutex::new(breaks));
    let mut lines = JoinSet::new();
    for slot in 0..abreast {
        let (a, b) = (Arc::clone(ears_a.carrier()), Arc::clone(ears_b.carrier()));
        let breaks = Arc::clone(&breaks);
        lines.spawn(async move {
            while !(a.closed.is_cancelled() || b.closed.is_cancelled()) {
                let end = breaks.lock().unwrap().pop().unwrap_or((usize::MAX / 4, 1));
                connect(Arc::clone(&a), Arc::clone(&b), slot, end).await;
            }
        });
    }
    for mouth in [mouth_a.clone(), mouth_b.clone()] {
        lines.spawn(async move {
            for text in 0..messages {
                mouth.send(word(text)).await.unwrap();
            }
        });
    }
    for text in 0..messages {
        assert_eq!(heard(&mut ears_b).await.unwrap(), text);
        assert_eq!(heard(&mut ears_a).await.unwrap(), text);
    }
    drop((mouth_a, mouth_b));
    assert_eq!(heard(&mut ears_a).await, None);
    assert_eq!(heard(&mut ears_b).await, None);
}

fn run<T>(task: impl Future<Output = T>) -> T {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), task).await.unwrap() })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn every_message_is_heard_once_and_in_order_whatever_breaks(
        breaks in proptest::collection::vec((0_usize..40, 0_usize..6), 0..20),
        abreast in 1_u32..5,
    ) {
        run(converse(200, breaks, abreast));
    }
}

#[tokio::test]
async fn what_is_not_confirmed_is_bounded() {
    let (mouth, ears) = begin::<Word, Word>(LIMITS);
    let carrier = Arc::clone(ears.carrier());
    let line = carrier.line(0);
    let mut words = Box::pin(carrier.words(line.id()));
    let full = tokio::spawn(async move {
        for text in 0.. {
            mouth.send(word(text)).await.unwrap();
        }
    });
    let mut said = 0;
    while tokio::time::timeout(Duration::from_millis(200), words.next()).await.is_ok() {
        said += 1;
    }
    assert_eq!(said, LIMITS.unconfirmed_bytes / 1000);
    full.abort();
}

#[tokio::test]
async fn the_last_word_overtakes_and_ends_what_is_said() {
    let (mouth, ears) = begin::<Word, Word>(LIMITS);
    let carrier = Arc::clone(ears.carrier());
    let mut words = Box::pin(carrier.words(carrier.line(0).id()));
    mouth.send(word(1)).await.unwrap();
    ears.last_word(word(2));
    assert_eq!(words.next().await.map(|word| (word.text, word.place)), Some((2, 0)));
    assert_eq!(words.next().await, None);
}

#[tokio::test]
async fn an_urgent_message_is_heard_before_what_waits_and_is_the_last() {
    let (_mouth, mut ears) = begin::<Word, Word>(LIMITS);
    let words = [Word { place: 1, ..word(1) }, word(2)].map(Ok);
    let carrier = Arc::clone(ears.carrier());
    let ended = carrier.listen(carrier.line(0), futures_util::stream::iter(words)).await;
    assert!(matches!(ended, LineEnd::Over), "{ended:?}");
    assert_eq!(heard(&mut ears).await, Some(2));
    assert_eq!(heard(&mut ears).await, None, "the other end has ended");
}

#[tokio::test]
async fn what_no_honest_end_says_breaks_the_line() {
    let confirmed_too_early = Word::received(1);
    let too_far_ahead = Word { place: 1 + MOST_UNCONFIRMED as u64, ..word(1) };
    let too_much_ahead = Word { place: 2, weight: inbox::MOST_WAITING + 1, ..word(1) };
    for bad in [confirmed_too_early, too_far_ahead, too_much_ahead] {
        let (_mouth, ears) = begin::<Word, Word>(LIMITS);
        let carrier = ears.carrier();
        let ended = carrier.listen(carrier.line(0), futures_util::stream::iter([Ok(bad.clone())])).await;
        assert!(matches!(ended, LineEnd::Broken(_)), "{bad:?}: {ended:?}");
    }
}

#[tokio::test]
async fn a_conversation_is_lost_when_no_line_has_lived_for_long_enough() {
    let (_mouth, ears) = begin::<Word, Word>(LIMITS);
    let patience = Duration::from_millis(50);
    let carrier = ears.carrier();
    let never = tokio::time::timeout(patience * 4, ears.lost(patience)).await;
    assert!(never.is_err(), "it had no line yet");
    let cut = || futures_util::stream::iter([Err(Status::unavailable("cut"))]);
    carrier.listen(carrier.line(0), cut()).await;
    let began = std::time::Instant::now();
    assert_eq!(ears.lost(patience).await.message(), "cut");
    assert!(began.elapsed() >= patience - Duration::from_millis(10));
    let line = carrier.line(0);
    let alive = tokio::time::timeout(patience * 4, ears.lost(patience)).await;
    assert!(alive.is_err(), "a line lives");
    drop(line);
    assert!(tokio::time::timeout(patience * 100, ears.lost(patience)).await.is_ok());
}

#[tokio::test]
async fn a_line_that_is_replaced_ends_and_what_it_carried_goes_again() {
    let (mouth, ears) = begin::<Word, Word>(LIMITS);
    let carrier = Arc::clone(ears.carrier());
    let old = carrier.line(3);
    let mut old_words = Box::pin(carrier.words(old.id()));
    mouth.send(word(7)).await.unwrap();
    assert_eq!(old_words.next().await.map(|word| word.text), Some(7));
    let new = carrier.line(3);
    assert_eq!(Box::pin(carrier.words(new.id())).next().await.map(|word| word.text), Some(7));
    let on_the_old_one = tokio::time::timeout(Duration::from_millis(50), old_words.next()).await;
    assert!(on_the_old_one.is_err(), "its end would be taken for the end of the conversation");
    assert!(matches!(carrier.listen(old, futures_util::stream::pending()).await, LineEnd::Over));
}

#[tokio::test]
async fn lines_end_when_nobody_hears_any_more() {
    let (_mouth, ears) = begin::<Word, Word>(LIMITS);
    let carrier = Arc::clone(ears.carrier());
    let line = carrier.line(0);
    let listening = tokio::spawn(async move { carrier.listen(line, futures_util::stream::pending()).await });
    drop(ears);
    assert!(matches!(listening.await.unwrap(), LineEnd::Over));
}
