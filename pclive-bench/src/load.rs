//! How many CPUs a container uses while it is moved.

use std::ops::Range;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Between two looks: shorter than any round that is worth a figure.
const INTERVAL: Duration = Duration::from_millis(20);
/// What is shorter tells nothing.
const ENOUGH: Duration = Duration::from_millis(200);

/// Does something, and looks meanwhile at the CPU time that a container has used so far (`None` once it is gone).
pub(crate) fn during<T>(used: impl Fn() -> Option<Duration> + Send, work: impl FnOnce() -> T) -> (T, Load) {
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
        (outcome, watch.join().unwrap_or_default())
    })
}

/// What was seen, and when.
#[derive(Debug, Default)]
pub(crate) struct Load(Vec<(Instant, Duration)>);

impl Load {
    fn add(&mut self, now: Instant, used: Duration) {
        self.0.push((now, used));
    }

    /// The CPUs that were used in this time; `None` when it was too short to tell.
    pub(crate) fn cpus(&self, time: Range<Instant>) -> Option<f64> {
        let mut seen = self.0.iter().filter(|(at, _)| time.contains(at));
        let ((began, first), (ended, last)) = (seen.next()?, seen.next_back()?);
        let length = *ended - *began;
        (length >= ENOUGH).then(|| last.saturating_sub(*first).as_secs_f64() / length.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_what_is_used_in_the_time_counts() {
        let (mut load, began) = (Load::default(), Instant::now());
        for (second, used) in [(0, 7), (1, 17), (2, 18), (3, 19), (4, 29)] {
            load.add(began + SECOND * second, SECOND * used);
        }
        assert_eq!(load.cpus(began + SECOND..began + SECOND * 4), Some(1.0));
    }

    #[test]
    fn what_is_short_or_gone_tells_nothing() {
        let (mut load, began) = (Load::default(), Instant::now());
        let time = began..began + SECOND * 2;
        assert_eq!(load.cpus(time.clone()), None);
        load.add(began, SECOND);
        load.add(began + Duration::from_millis(199), SECOND * 2);
        assert_eq!(load.cpus(time.clone()), None);
        let (outcome, gone) = during(|| None, || 7);
        assert_eq!((outcome, gone.cpus(time)), (7, None));
    }

    #[test]
    fn use_is_looked_at_while_the_work_is_done() {
        let (seen, looked) = channel();
        let used = move || seen.send(()).ok().map(|()| SECOND);
        let (outcome, load) = during(used, || looked.iter().take(3).count());
        assert!(outcome == 3 && load.0.len() >= 3, "{outcome} of {load:?}");
    }
}
