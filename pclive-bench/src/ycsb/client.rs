//! One client's life.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult};

use super::keys::Keys;
use super::record::{self, FIELDS, Filler, VALUE_BYTES, Value, seed_of};
use crate::clients::{Answer, Failure};

/// A record's number and a field's.
type Place = (u64, u8);

/// An update that was answered; its times are from the clients' start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Update {
    value: Value,
    sent: Duration,
    answered: Duration,
}

/// What one client saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) answers: Vec<Answer>,
    pub(super) failure: Option<Failure>,
    /// Its last acknowledged update of each field.
    updates: HashMap<Place, Update>,
    /// An update that was sent and not answered: it may be there.
    unanswered: Option<(Place, Value)>,
}

/// A client, and its connection.
pub(super) struct Client {
    connection: Connection,
    keys: Keys,
    filler: Filler,
    reads_percent: u8,
    start: Instant,
    /// Its number, and that of its last update.
    last: Value,
    seen: Seen,
}

/// When requests are due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// The first.
    pub(super) first: Duration,
    /// From each to the next.
    pub(super) step: Duration,
}

impl Client {
    /// Client `number`; what it sees is timed from `start`.
    pub(super) fn new(
        connection: Connection,
        number: u16,
        keys: Keys,
        reads_percent: u8,
        seed: u64,
        start: Instant,
    ) -> Self {
        let last = Value { client: u64::from(number), number: 0 };
        // Not those by which it chooses records.
        let filler = Filler::new(!seed_of(seed, u64::from(number)));
        Self { connection, keys, filler, reads_percent, start, last, seen: Seen::default() }
    }

    /// Asks until it is told to stop or something fails. With a pace, requests that are late are sent as soon as they
    /// can be, and their time counts from when they were due.
    pub(super) fn run(&mut self, stop: &AtomicBool, pace: Option<Pace>) {
        let mut due = self.start + pace.map_or(Duration::ZERO, |pace| pace.first);
        while !stop.load(Ordering::Relaxed) {
            let asked = match pace {
                Some(_) => {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    due
                }
                None => Instant::now(),
            };
            if let Err(failure) = self.ask() {
                self.seen.failure = Some(failure);
                return;
            }
            let took = asked.elapsed();
            self.seen.answers.push(Answer { at: asked + took - self.start, took });
            due += pace.map_or(Duration::ZERO, |pace| pace.step);
        }
    }

    pub(super) fn seen(self) -> Seen {
        self.seen
    }

    fn ask(&mut self) -> Result<(), Failure> {
        let (record, dice) = (self.keys.record(), self.keys.below(100));
        if dice < self.reads_percent { self.read(record) } else { self.update(record) }
    }

    fn read(&mut self, record: u64) -> Result<(), Failure> {
        let key = record::key(record);
        let found: RedisResult<HashMap<String, Vec<u8>>> =
            redis::cmd("HGETALL").arg(&key).query(&mut self.connection);
        let found = found.map_err(|error| Failure::Lost(format!("HGETALL {key}: {error}")))?;
        for field in 0..FIELDS {
            let value = found.get(&record::field(field)).filter(|value| value.len() == VALUE_BYTES);
            let value = value.and_then(|value| Value::read(value));
            let value = value.ok_or_else(|| Failure::Wrong(format!("{key} has no whole field {field}")))?;
            // Nobody else writes what carries its number.
            let own = self.seen.updates.get(&(record, field)).filter(|_| value.client == self.last.client);
            if let Some(own) = own.filter(|own| own.value != value) {
                return Err(Failure::Wrong(format!("{key}, field {field}: {value:?} after {:?}", own.value)));
            }
        }
        Ok(())
    }

    fn update(&mut self, record: u64) -> Result<(), Failure> {
        let field = self.keys.below(FIELDS);
        self.last.number += 1;
        self.seen.unanswered = Some(((record, field), self.last));
        let key = record::key(record);
        let (bytes, sent) = (self.filler.value(self.last), self.start.elapsed());
        let told: RedisResult<u64> =
            redis::cmd("HSET").arg(&key).arg(record::field(field)).arg(bytes).query(&mut self.connection);
        match told {
            Ok(0) => {
                self.seen.unanswered = None;
                let update = Update { value: self.last, sent, answered: self.start.elapsed() };
                self.seen.updates.insert((record, field), update);
                Ok(())
            }
            Ok(_) => Err(Failure::Wrong(format!("{key} had no field {field}"))),
            Err(error) => Err(Failure::Lost(format!("HSET {key}: {error}"))),
        }
    }
}

/// What each field may have: an update after whose answer nobody began another, or one that nobody knows the fate of.
pub(super) fn acknowledged(seen: &[Seen]) -> HashMap<Place, Vec<Value>> {
    let mut last: HashMap<Place, Vec<Update>> = HashMap::new();
    for (&place, &update) in seen.iter().flat_map(|seen| &seen.updates) {
        last.entry(place).or_default().push(update);
    }
    let possible = |updates: Vec<Update>| {
        let outdated = |update: &Update| updates.iter().any(|other| other.sent > update.answered);
        updates.iter().filter(|update| !outdated(update)).map(|update| update.value).collect()
    };
    let mut fields: HashMap<Place, Vec<Value>> =
        last.into_iter().map(|(place, updates)| (place, possible(updates))).collect();
    for (place, value) in seen.iter().filter_map(|seen| seen.unanswered) {
        if let Some(possible) = fields.get_mut(&place) {
            possible.push(value);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (5, 1);

    /// A client whose last update was on its way for a time.
    fn seen(client: u64, number: u64, [sent, answered]: [u64; 2], unanswered: Option<u64>) -> Seen {
        let value = |number| Value { client, number };
        let [sent, answered] = [sent, answered].map(Duration::from_millis);
        Seen {
            updates: HashMap::from([(PLACE, Update { value: value(number), sent, answered })]),
            unanswered: unanswered.map(|number| (PLACE, value(number))),
            ..Seen::default()
        }
    }

    #[test]
    fn field_has_one_of_the_updates_that_were_made_at_the_same_time() {
        let fields = acknowledged(&[seen(0, 7, [10, 20], None), seen(1, 9, [15, 30], None)]);
        assert_eq!(fields[&PLACE], [Value { client: 0, number: 7 }, Value { client: 1, number: 9 }]);
    }

    #[test]
    fn update_before_anothers_is_no_longer_there() {
        let fields = acknowledged(&[seen(0, 7, [10, 20], None), seen(1, 9, [25, 30], None)]);
        assert_eq!(fields[&PLACE], [Value { client: 1, number: 9 }]);
    }

    #[test]
    fn update_without_an_answer_may_be_there() {
        let fields = acknowledged(&[seen(0, 7, [10, 20], Some(8))]);
        assert_eq!(fields[&PLACE], [Value { client: 0, number: 7 }, Value { client: 0, number: 8 }]);
    }
}
