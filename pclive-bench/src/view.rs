//! What clients saw of a migration: how long they waited, before, in its rounds, at the stop and after, and how many
//! answers came when.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use pclive_tests::measure::Moved;
use serde::{Deserialize, Serialize};

use crate::clients::{Answer, Failure, Record};

/// Answers are counted in intervals of this length.
pub(crate) const BUCKET: Duration = Duration::from_millis(10);
/// A part of a run that is shorter tells nothing of the rate in it.
const SHORTEST: Duration = Duration::from_millis(100);
/// Latencies are kept to three digits.
const DIGITS: u8 = 3;

/// The clients' view.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ClientView {
    /// Until the migration was asked for.
    pub(crate) before: Part,
    /// While rounds ran.
    pub(crate) rounds: Part,
    /// From the stop until all was cleaned up.
    pub(crate) stop: Part,
    /// From then on.
    pub(crate) after: Part,
    /// Longest time that a request took which was on its way during the migration.
    pub(crate) longest_wait_ns: u64,
    /// Connections that ended, answers that were wrong.
    pub(crate) failures: Vec<String>,
    /// Acknowledged updates that were not there afterwards.
    pub(crate) lost_updates: u64,
    /// Answers in each [`BUCKET`] of the run.
    pub(crate) answers: Vec<u32>,
    /// When, from the clients' start, the rounds began and ended, milliseconds.
    pub(crate) rounds_ms: [u64; 2],
}

/// Of the requests whose answers came in a part of the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// How long it was.
    pub(crate) length_ns: u64,
    /// How many answers.
    pub(crate) answers: u64,
    /// Half of them took no longer.
    pub(crate) p50_ns: u64,
    /// Of 100, 99 took no longer.
    pub(crate) p99_ns: u64,
    /// Of 1000, 999 took no longer.
    pub(crate) p999_ns: u64,
}

impl Part {
    /// A figure of its answers, if there were any.
    pub(crate) fn some(&self, figure: impl Fn(&Self) -> f64) -> Option<f64> {
        (self.answers > 0).then(|| figure(self))
    }

    /// Answers a second; `None` of a part that is too short to tell.
    pub(crate) fn rate(&self) -> Option<f64> {
        let length = Duration::from_nanos(self.length_ns);
        (length >= SHORTEST).then(|| self.answers as f64 / length.as_secs_f64())
    }
}

impl ClientView {
    /// Of what `record` has; the instants are those of the migration.
    ///
    /// # Errors
    /// When there was no client, or the migration was before their start.
    pub(crate) fn new(record: &Record, moved: &Moved) -> Result<Self> {
        let answers = &record.answers;
        let failures: Vec<String> = record.failures.iter().map(in_words).collect();
        let last = answers.last().with_context(|| format!("clients without an answer: {failures:?}"))?.at;
        let since = |instant: Instant| instant.saturating_duration_since(record.start);
        let marks = [moved.asked, moved.rounds_began, moved.stopped, moved.ended].map(since);
        let part = |from, to| part(answers, from, to);
        let [asked, began, stopped, ended] = marks;
        Ok(Self {
            before: part(Duration::ZERO, asked)?,
            rounds: part(began, stopped)?,
            stop: part(stopped, ended)?,
            after: part(ended, last.max(ended))?,
            longest_wait_ns: longest(answers, asked, ended),
            failures,
            lost_updates: record.lost_updates,
            answers: buckets(answers, last),
            rounds_ms: [began, stopped].map(|at| nanoseconds(at) / 1_000_000),
        })
    }

    /// # Errors
    /// When the clients were to ask more often than they could even before the migration: their waits tell of that.
    pub(crate) fn keeps_up(&self, rate: Option<u32>) -> Result<()> {
        let (Some(wanted), Some(reached)) = (rate, self.before.rate()) else { return Ok(()) };
        let is_enough = reached >= 0.95 * f64::from(wanted);
        ensure!(is_enough, "{reached:.0} answers a second before the migration, {wanted} were to come");
        Ok(())
    }

    /// Whether every connection survived and every acknowledged update was there.
    pub(crate) fn nothing_lost(&self) -> bool {
        self.failures.is_empty() && self.lost_updates == 0
    }

    /// What is left of the rate while rounds run.
    pub(crate) fn kept(&self) -> Option<f64> {
        Some(self.rounds.rate()? / self.before.rate().filter(|&rate| rate > 0.0)?)
    }
}

fn in_words(failure: &Failure) -> String {
    match failure {
        Failure::Lost(why) => format!("connection lost: {why}"),
        Failure::Wrong(what) => format!("wrong answer: {what}"),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The longest wait of those that were in part in `from..to`.
fn longest(answers: &[Answer], from: Duration, to: Duration) -> u64 {
    let overlaps = |answer: &&Answer| answer.at >= from && answer.at.saturating_sub(answer.took) < to;
    answers.iter().filter(overlaps).map(|answer| nanoseconds(answer.took)).max().unwrap_or_default()
}

/// The part `from..to` of answers that are in the order of their arrival.
fn part(answers: &[Answer], from: Duration, to: Duration) -> Result<Part> {
    let first = answers.partition_point(|answer| answer.at < from);
    let end = answers.partition_point(|answer| answer.at < to).max(first);
    let mut waits = Histogram::<u64>::new(DIGITS)?;
    for answer in &answers[first..end] {
        waits.record(nanoseconds(answer.took))?;
    }
    Ok(Part {
        length_ns: nanoseconds(to.saturating_sub(from)),
        answers: waits.len(),
        p50_ns: waits.value_at_quantile(0.5),
        p99_ns: waits.value_at_quantile(0.99),
        p999_ns: waits.value_at_quantile(0.999),
    })
}

/// How many of the answers came in each interval, up to the one that ends at or after `last`.
fn buckets(answers: &[Answer], last: Duration) -> Vec<u32> {
    let index = |at: Duration| usize::try_from(at.as_nanos() / BUCKET.as_nanos()).unwrap_or(usize::MAX);
    let mut buckets = vec![0; index(last) + 1];
    for answer in answers {
        if let Some(bucket) = buckets.get_mut(index(answer.at)) {
            *bucket += 1;
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(each: &[(u64, u64)]) -> Vec<Answer> {
        let ms = Duration::from_millis;
        each.iter().map(|&(at, took)| Answer { at: ms(at), took: ms(took) }).collect()
    }

    #[test]
    fn part_has_the_answers_that_came_in_it() {
        let answers = answers(&[(5, 1), (10, 2), (15, 3), (250, 240)]);
        let part = part(&answers, Duration::from_millis(10), Duration::from_millis(210)).unwrap();
        assert_eq!(part.answers, 2);
        assert_eq!(part.rate(), Some(10.0));
        assert!((2_000_000..2_010_000).contains(&part.p50_ns), "{part:?}");
        assert!((3_000_000..3_010_000).contains(&part.p999_ns), "{part:?}");
    }

    #[test]
    fn part_that_is_too_short_has_no_rate() {
        let part = part(&answers(&[(5, 1)]), Duration::ZERO, Duration::from_millis(99)).unwrap();
        assert_eq!((part.answers, part.rate()), (1, None));
    }

    #[test]
    fn part_that_ends_before_it_begins_is_empty() {
        let part =
            part(&answers(&[(5, 1), (15, 1)]), Duration::from_millis(20), Duration::from_millis(10)).unwrap();
        assert_eq!(part, Part::default());
    }

    #[test]
    fn longest_wait_is_one_of_the_migration() {
        let answers = answers(&[(50, 40), (120, 30), (230, 25), (400, 150)]);
        let ms = Duration::from_millis;
        assert_eq!(longest(&answers, ms(100), ms(210)), 30_000_000);
        assert_eq!(longest(&answers, ms(300), ms(310)), 150_000_000);
        assert_eq!(longest(&answers, ms(500), ms(600)), 0);
    }

    #[test]
    fn every_answer_is_in_the_interval_of_its_arrival() {
        let answers = answers(&[(0, 0), (9, 1), (10, 1), (35, 20)]);
        assert_eq!(buckets(&answers, Duration::from_millis(35)), [2, 1, 0, 1]);
    }
}
