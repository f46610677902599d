//! One client's life.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult};

use super::keys::Keys;
use super::record::{self, FIELDS, Filler, Value};
use super::whole;

/// One request's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// When it came, from the clients' start.
    pub(crate) at: Duration,
    /// How long it took; on a schedule, from the time at which the request was due.
    pub(crate) took: Duration,
}

/// Why a client could not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection ended, or said nothing for too long.
    Lost(String),
    /// The answer was not what it must be.
    Wrong(String),
}

/// A record's number and a field's.
type Place = (u64, u8);

/// What one client saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) answers: Vec<Answer>,
    pub(super) failure: Option<Failure>,
    /// Its last acknowledged update of each field.
    updates: HashMap<Place, Value>,
    /// An update that was sent and not answered: it may be there.
    unanswered: Option<(Place, Value)>,
}

/// A client, and its connection.
pub(super) struct Client {
    connection: Connection,
    keys: Keys,
    filler: Filler,
    reads_percent: u8,
    /// Its number, and that of its last update.
    last: Value,
    seen: Seen,
}

impl Client {
    pub(super) fn new(connection: Connection, number: u16, keys: Keys, reads_percent: u8) -> Self {
        let last = Value { client: u64::from(number), number: 0 };
        let filler = Filler::new(u64::from(number));
        Self { connection, keys, filler, reads_percent, last, seen: Seen::default() }
    }

    /// Asks until it is told to stop or something fails. With a `pace`, a request is due so long after the one before
    /// it, and late ones are sent as soon as they can be.
    pub(super) fn run(&mut self, start: Instant, stop: &AtomicBool, pace: Option<Duration>) {
        let mut due = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            match pace {
                Some(pace) => {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    due += pace;
                }
                None => due = Instant::now(),
            }
            if let Err(failure) = self.ask() {
                self.seen.failure = Some(failure);
                return;
            }
            let now = Instant::now();
            let asked = due - pace.unwrap_or_default();
            self.seen.answers.push(Answer { at: now - start, took: now - asked });
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
        let found: RedisResult<Vec<(String, Vec<u8>)>> =
            redis::cmd("HGETALL").arg(&key).query(&mut self.connection);
        let found = found.map_err(|error| Failure::Lost(format!("HGETALL {key}: {error}")))?;
        if whole(&found) { Ok(()) } else { Err(Failure::Wrong(format!("{key} has {} fields", found.len()))) }
    }

    fn update(&mut self, record: u64) -> Result<(), Failure> {
        let field = self.keys.below(FIELDS);
        self.last.number += 1;
        self.seen.unanswered = Some(((record, field), self.last));
        let key = record::key(record);
        let value = self.filler.value(self.last);
        let told: RedisResult<u64> =
            redis::cmd("HSET").arg(&key).arg(record::field(field)).arg(value).query(&mut self.connection);
        match told {
            Ok(0) => {
                self.seen.unanswered = None;
                self.seen.updates.insert((record, field), self.last);
                Ok(())
            }
            Ok(_) => Err(Failure::Wrong(format!("{key} had no field {field}"))),
            Err(error) => Err(Failure::Lost(format!("HSET {key}: {error}"))),
        }
    }
}

/// What each field may have: the last update of one of those that wrote it, or one that nobody knows the fate of.
pub(super) fn acknowledged(seen: &[Seen]) -> HashMap<Place, Vec<Value>> {
    let mut fields: HashMap<Place, Vec<Value>> = HashMap::new();
    for (&place, &value) in seen.iter().flat_map(|seen| &seen.updates) {
        fields.entry(place).or_default().push(value);
    }
    for (place, value) in seen.iter().filter_map(|seen| seen.unanswered) {
        if let Some(last) = fields.get_mut(&place) {
            last.push(value);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (5, 1);

    fn seen(client: u64, acknowledged: u64, unanswered: Option<u64>) -> Seen {
        let value = |number| Value { client, number };
        Seen {
            updates: HashMap::from([(PLACE, value(acknowledged))]),
            unanswered: unanswered.map(|number| (PLACE, value(number))),
            ..Seen::default()
        }
    }

    #[test]
    fn field_has_the_last_update_of_one_of_its_writers() {
        let fields = acknowledged(&[seen(0, 7, None), seen(1, 9, None)]);
        assert_eq!(fields[&PLACE], [Value { client: 0, number: 7 }, Value { client: 1, number: 9 }]);
    }

    #[test]
    fn update_without_an_answer_may_be_there() {
        let fields = acknowledged(&[seen(0, 7, Some(8))]);
        assert_eq!(fields[&PLACE], [Value { client: 0, number: 7 }, Value { client: 0, number: 8 }]);
    }
}
