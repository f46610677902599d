//! POSIX timers and interval timers.

use super::*;
use crate::restore::timers::make_by_counting;

fn posix_timers(pid: Pid) -> Vec<PosixTimer> {
    let timer = |id, clock, notify, signal, left_s| PosixTimer {
        id,
        clock,
        notify,
        signal,
        value: 0xdead_beef_0000 + id as u64,
        thread: if notify == libc::SIGEV_THREAD_ID { pid.0 } else { 0 },
        time: IntervalTimer { left_ns: left_s * SECOND, interval_ns: 3 * SECOND },
        overrun: 0,
    };
    vec![
        timer(2, libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, libc::SIGRTMIN(), 4000),
        timer(77, libc::CLOCK_REALTIME, libc::SIGEV_THREAD_ID, libc::SIGUSR1, 5000),
        timer(200, libc::CLOCK_BOOTTIME, libc::SIGEV_NONE, 0, 6000),
        timer(201, -6, libc::SIGEV_SIGNAL, libc::SIGPROF, 7000),
    ]
}

fn assert_timers(found: &[PosixTimer], wanted: &[PosixTimer]) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert_just_below(found.time.left_ns, wanted.time.left_ns);
        let time = wanted.time;
        assert_eq!(&PosixTimer { time, ..found.clone() }, wanted);
    }
}

#[test]
fn posix_timers_keep_their_ids() {
    let mut destination = Sleeper::new();
    let mut wanted = destination.capture();
    wanted.posix_timers = posix_timers(destination.pid());
    destination.restore(&wanted).unwrap();
    assert_timers(&destination.capture().posix_timers, &wanted.posix_timers);
}

#[test]
fn posix_timers_keep_their_ids_where_ids_only_count_up() {
    let mut destination = Sleeper::new();
    let wanted = posix_timers(destination.pid());
    make_by_counting(destination.captive(), &wanted).unwrap();
    assert_timers(&destination.capture().posix_timers, &wanted);
}

#[test]
fn timer_that_was_about_to_ring_rings() {
    let mut destination = Sleeper::new();
    let mut wanted = destination.capture();
    wanted.interval_timers[0] = IntervalTimer { left_ns: 1, interval_ns: 0 };
    destination.restore(&wanted).unwrap();
    let status = destination.run_to_its_end();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGALRM));
}
