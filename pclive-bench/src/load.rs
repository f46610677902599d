//! How many CPUs a container uses while it is moved.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Between two looks: shorter than any round that is worth a figure.
const INTERVAL: Duration = Duration::from_millis(20);
/// What is shorter tells nothing.
const ENOUGH: Duration = Duration::from_millis(200);

/// Does something, and looks meanwhile at the CPU time that a container has used so far (`None` once it is gone): beside
/// the outcome, the CPUs that it used until it used none any more. That ends with the stop, of which nothing counts.
pub(crate) fn during<T>(
    used: impl Fn() -> Option<Duration> + Send,
    work: impl FnOnce() -> T,
) -> (T, Option<f64>) {
    std::thread::scope(|scope| {
        let (done, end) = channel::<()>();
        let watch = scope.spawn(move || {
            let mut load = Load::default();
            loop {
                let Some(used) = used() else { return load };
                load.add(Instant::now(), used);
                // The other end is dropped when the work is done.
                if end.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Disconnected) {
                    return load;
                }
            }
        });
        let outcome = work();
        drop(done);
        (outcome, watch.join().ok().and_then(|load| load.cpus()))
    })
}

/// The first look, and the last one that found more than the one before.
#[derive(Debug, Default)]
struct Load {
    first: Option<(Instant, Duration)>,
    last: Option<(Instant, Duration)>,
}

impl Load {
    fn add(&mut self, now: Instant, used: Duration) {
        self.first.get_or_insert((now, used));
        if self.last.is_none_or(|(_, last)| last < used) {
            self.last = Some((now, used));
        }
    }

    fn cpus(&self) -> Option<f64> {
        let ((began, first), (ended, last)) = (self.first?, self.last?);
        let time = ended - began;
        (time >= ENOUGH).then(|| (last - first).as_secs_f64() / time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_in_which_nothing_is_used_any_more_does_not_count() {
        let (mut load, began) = (Load::default(), Instant::now());
        for (second, used) in [(0, 7), (1, 8), (2, 9), (3, 9), (4, 9)] {
            load.add(began + SECOND * second, SECOND * used);
        }
        assert_eq!(load.cpus(), Some(1.0));
    }

    #[test]
    fn what_is_short_or_gone_tells_nothing() {
        let (mut load, began) = (Load::default(), Instant::now());
        assert_eq!(load.cpus(), None);
        load.add(began, SECOND);
        load.add(began + Duration::from_millis(199), SECOND * 2);
        assert_eq!(load.cpus(), None);
        assert_eq!(during(|| None, || 7), (7, None));
    }

    #[test]
    fn use_is_looked_at_while_the_work_is_done() {
        let began = Instant::now();
        let (outcome, cpus) = during(|| Some(began.elapsed() / 2), || std::thread::sleep(SECOND));
        assert_eq!(outcome, ());
        let cpus = cpus.unwrap();
        assert!((0.49..0.51).contains(&cpus), "{cpus}");
    }
}
