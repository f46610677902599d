//! The small state in real processes: captured from one, changed, restored into another, captured again. The
//! kernel is the oracle: what it reports of the second process must be what was asked for.

mod privileges;
mod timers;

use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use super::failure::RestoreStateError;
use super::thread::RegisterSet;
use super::{process, thread};
use crate::capture;
use crate::capture::scheduling::CpuSet;
use crate::capture::thread::Frame;
use crate::model::creds::Capabilities;
use crate::model::signal::{AltStack, PendingSignal, SignalAction};
use crate::model::state::{ProcessState, Rlimit, SeccompFilter};
use crate::model::timer::{IntervalTimer, PosixTimer};
use crate::model::{Deadline, Pid, RemoteAddr, Vpid};
use crate::remote::{Call, Captive, ProcessMemory, RemoteTask, Spot};
use crate::sys::ptrace::{SUSPEND_SECCOMP, TRACE_SYSTEM_CALLS_GOOD};
use crate::tracee::{Running, Stop};

const TIMEOUT: Duration = Duration::from_secs(10);
const SECOND: u64 = 1_000_000_000;

/// A sleeping process under the engine's control, killed when the test ends.
struct Sleeper {
    child: Child,
    captive: Option<Captive>,
}

impl Sleeper {
    /// A `sleep` that a shell has started after `setup`.
    fn after(setup: &str) -> Self {
        let script = format!("{setup} sleep 1000");
        let child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        let pid = Pid(child.id() as i32);
        let mut sleeper = Self { child, captive: None };
        wait_for_sleep(pid);
        let running = Running::seize(pid, TRACE_SYSTEM_CALLS_GOOD | SUSPEND_SECCOMP).unwrap();
        running.interrupt().unwrap();
        let (stopped, stop) = running.wait(Deadline::after(TIMEOUT)).unwrap();
        assert_eq!(stop, Stop::Interrupted);
        capture::thread::admit(pid, Vpid(pid.0)).unwrap();
        let memory = ProcessMemory::open(pid).unwrap();
        let ids = (Vpid(pid.0), Vpid(pid.0));
        let mut captive = Captive::take(stopped, ids, memory, libc::SIGWINCH, TIMEOUT).unwrap();
        captive.settle(vdso(pid), Spot::Anywhere).unwrap();
        sleeper.captive = Some(captive);
        sleeper
    }

    fn new() -> Self {
        Self::after("exec")
    }

    fn captive(&mut self) -> &mut Captive {
        self.captive.as_mut().unwrap()
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    fn capture(&mut self) -> ProcessState {
        let pid = self.pid();
        let captive = self.captive();
        let registers = *captive.registers();
        let frame = Frame { registers: &registers, signal_mask: captive.signal_mask() };
        capture::process::capture(captive, frame, &CpuSet::of(pid)).unwrap()
    }

    fn restore(&mut self, state: &ProcessState) -> Result<(), RestoreStateError> {
        let pid = self.pid();
        let captive = self.captive();
        process::early(captive, state)?;
        let here = RegisterSet::of(pid)?;
        thread::restore(captive, state, &state.threads[0], &here)?;
        process::late(captive, state)?;
        thread::finish(captive, state, &state.threads[0])?;
        let (registers, mask) = thread::context(&state.threads[0])?;
        captive.set_context(registers, mask);
        Ok(())
    }

    /// The state of another process, made to fit this one: its ids, and the addresses that differ by chance.
    fn adapt(&mut self, state: &ProcessState) -> ProcessState {
        let own = self.capture();
        let mut state = state.clone();
        state.vpid = own.vpid;
        let thread = &mut state.threads[0];
        thread.vtid = own.vpid;
        thread.rseq = own.threads[0].rseq;
        thread.registers = own.threads[0].registers.clone();
        state
    }

    /// Lets the process go with the restored context and waits for its end.
    fn run_to_its_end(mut self) -> ExitStatus {
        let vdso = vdso(self.pid());
        let mut captive = self.captive.take().unwrap();
        captive.unsettle(vdso).unwrap();
        captive.restore_context().unwrap();
        captive.detach().unwrap();
        let deadline = Deadline::after(TIMEOUT);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(!deadline.passed(), "the process goes on sleeping");
            std::thread::yield_now();
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for_sleep(pid: Pid) {
    let deadline = Deadline::after(TIMEOUT);
    loop {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        if comm == "sleep\n" && call.starts_with("230 ") {
            return;
        }
        assert!(!deadline.passed(), "process {pid} ({comm}) does not sleep: {call}");
        std::thread::yield_now();
    }
}

fn vdso(pid: Pid) -> (u64, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let range = line.split(' ').next().unwrap().split_once('-').unwrap();
    (u64::from_str_radix(range.0, 16).unwrap(), u64::from_str_radix(range.1, 16).unwrap())
}

/// Equality of all but the timers that run; a failure shows what differs and not some thousand bytes. The sleep
/// that was interrupted asks for a restart in another way: see `super::restart`.
fn assert_same(found: &ProcessState, wanted: &ProcessState) {
    let mut found = found.clone();
    for (found, wanted) in found.interval_timers.iter_mut().zip(&wanted.interval_timers) {
        assert_just_below(found.left_ns, wanted.left_ns);
        found.left_ns = wanted.left_ns;
    }
    for (found, wanted) in found.threads.iter_mut().zip(&wanted.threads) {
        found.registers.clone_from(&wanted.registers);
    }
    let texts = [format!("{found:#?}"), format!("{wanted:#?}")];
    let differing: Vec<_> = texts[0].lines().zip(texts[1].lines()).filter(|(a, b)| a != b).take(8).collect();
    assert!(&found == wanted, "found, wanted: {differing:#?}");
}

/// Timers run on while they are compared: what is left of the first may be a little less than of the second.
fn assert_just_below(left: u64, from: u64) {
    // CPU time timers are rounded up to a clock tick.
    assert!(left <= from + SECOND / 100 && left + 10 * SECOND > from, "{left} ns of {from} ns left");
}

#[test]
fn captured_state_is_what_the_tools_have_set() {
    let mut sleeper = Sleeper::after(
        "umask 027; ulimit -Sn 512; ulimit -c 0; trap '' HUP USR2; cd /tmp; exec nice -n 5 ionice -c 2 -n 7 taskset 1",
    );
    let state = sleeper.capture();
    assert_eq!(state.umask, 0o27);
    assert_eq!(state.rlimits[libc::RLIMIT_NOFILE as usize].soft, 512);
    assert_eq!(state.rlimits[libc::RLIMIT_CORE as usize], Rlimit { soft: 0, hard: 0 });
    assert_eq!(state.cwd, b"/tmp");
    let ignored: Vec<u8> =
        state.actions.iter().filter(|action| action.handler == 1).map(|action| action.signal).collect();
    assert!(
        ignored.contains(&(libc::SIGHUP as u8)) && ignored.contains(&(libc::SIGUSR2 as u8)),
        "{ignored:?}"
    );
    let leader = &state.threads[0];
    assert_eq!(leader.comm, b"sleep");
    assert_eq!((leader.scheduling.nice, leader.scheduling.io_priority), (5, 2 << 13 | 7));
    assert_eq!(leader.scheduling.affinity, [1]);
    assert_eq!(leader.registers.len(), 216);
    assert!(leader.xstate.len() >= 576);
    assert!(leader.rseq.is_some(), "glibc registers rseq");
    assert_eq!(leader.robust_list.1, 24);
}

fn wait_for_state(pid: Pid, state: &str) {
    let deadline = Deadline::after(TIMEOUT);
    while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(state) {
        assert!(!deadline.passed(), "process {pid} does not become {state}");
        std::thread::yield_now();
    }
}

#[test]
fn stop_by_job_control_is_told_from_the_engines_own() {
    let child = Command::new("sh").args(["-c", "kill -STOP $$"]).spawn().unwrap();
    let pid = Pid(child.id() as i32);
    let _sleeper = Sleeper { child, captive: None };
    wait_for_state(pid, ") T ");
    let running = Running::seize(pid, TRACE_SYSTEM_CALLS_GOOD).unwrap();
    running.interrupt().unwrap();
    let (stopped, stop) = running.wait(Deadline::after(TIMEOUT)).unwrap();
    assert_eq!(stop, Stop::Interrupted);
    assert!(capture::thread::is_job_stopped(pid).unwrap());
    stopped.detach(0).unwrap();
    wait_for_state(pid, ") T ");
}

#[test]
fn stopped_process_stops_again_and_goes_on_when_told() {
    let mut destination = Sleeper::new();
    let mut wanted = destination.capture();
    wanted.job_stopped = true;
    destination.restore(&wanted).unwrap();
    let pid = destination.pid();
    let vdso = vdso(pid);
    let mut captive = destination.captive.take().unwrap();
    captive.unsettle(vdso).unwrap();
    captive.restore_context().unwrap();
    process::stop_again(pid, &wanted).unwrap();
    captive.detach().unwrap();
    wait_for_state(pid, ") T ");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::Signal::SIGCONT).unwrap();
    wait_for_state(pid, ") S ");
    wait_for_sleep(pid);
}

#[test]
fn unrestricted_affinity_is_carried_as_unrestricted() {
    assert!(Sleeper::new().capture().threads[0].scheduling.affinity.is_empty());
}

#[test]
fn captured_credentials_are_those_of_setpriv() {
    let mut sleeper = Sleeper::after(
        "exec setpriv --reuid 33 --regid 34 --groups 50,51 --inh-caps -all,+chown --ambient-caps -all,+chown \
         --bounding-set -sys_boot --securebits +noroot --no-new-privs --pdeathsig USR1",
    );
    let thread = sleeper.capture().threads.remove(0);
    let credentials = thread.credentials;
    assert_eq!((credentials.uids, credentials.gids), ([33; 4], [34; 4]));
    assert_eq!(credentials.groups, [50, 51]);
    let chown = 1;
    assert_eq!((credentials.capabilities.inheritable, credentials.capabilities.ambient), (chown, chown));
    assert_eq!(credentials.capabilities.effective, chown);
    assert_eq!(credentials.capabilities.bounding & 1 << 22, 0);
    assert_eq!((credentials.securebits & 1, credentials.no_new_privs), (1, true));
    assert_eq!(thread.parent_death_signal, libc::SIGUSR1);
}

#[test]
fn every_kind_of_state_arrives_in_another_process() {
    let source = Sleeper::after("trap '' HUP; cd /tmp; exec nice -n 3").capture();
    let mut destination = Sleeper::new();
    let mut wanted = destination.adapt(&source);
    wanted.umask = 0o26;
    wanted.child_subreaper = true;
    wanted.thp_disable = 1;
    wanted.dumpable = 0;
    wanted.oom_score_adj = 500;
    wanted.coredump_filter = 0x21;
    wanted.rlimits[libc::RLIMIT_NOFILE as usize].soft = 99;
    wanted.actions.push(SignalAction {
        signal: libc::SIGUSR1 as u8,
        handler: 0x1234_5000,
        flags: 0x1400_0004,
        restorer: 0x1234_6000,
        mask: 0x10,
    });
    wanted.actions.sort_by_key(|action| action.signal);
    wanted.interval_timers[0] = IntervalTimer { left_ns: 5000 * SECOND, interval_ns: 7 * SECOND };
    wanted.interval_timers[2] = IntervalTimer { left_ns: 6000 * SECOND, interval_ns: 0 };
    let leader = &mut wanted.threads[0];
    leader.comm = b"\xff) odd (name".to_vec();
    leader.alt_stack = AltStack { address: RemoteAddr(0x7000_0000), flags: 0, size: 1 << 16 };
    leader.robust_list = (RemoteAddr(0x7100_0000), 24);
    leader.clear_child_tid = RemoteAddr(0x7200_0000);
    leader.parent_death_signal = libc::SIGUSR2;
    leader.timer_slack_ns = 70_000;
    leader.personality |= 0x004_0000;
    leader.scheduling.affinity = vec![2];
    leader.scheduling.policy = libc::SCHED_BATCH as u32;
    leader.tsc_faults = true;
    leader.machine_check_policy = 1;
    leader.credentials.no_new_privs = true;
    destination.restore(&wanted).unwrap();

    assert_same(&destination.capture(), &wanted);
}

#[test]
fn extended_registers_arrive() {
    let mut destination = Sleeper::new();
    let mut wanted = destination.capture();
    let xstate = &mut wanted.threads[0].xstate;
    xstate[512] |= 0b11;
    xstate[32..40].fill(0x11);
    xstate[160..176].fill(0x5a);
    if xstate[464] & 0b100 != 0 {
        if xstate[512] & 0b100 == 0 {
            // The upper halves of the AVX registers: the first component.
            xstate.splice(576..576, [0; 256]);
        }
        xstate[512] |= 0b100;
        xstate[576..592].fill(0xa5);
    }
    destination.restore(&wanted).unwrap();
    assert_eq!(destination.capture().threads[0].xstate, wanted.threads[0].xstate);
}

fn signal(number: i32, code: i32, value: u64) -> PendingSignal {
    let mut siginfo = vec![0; 128];
    siginfo[..4].copy_from_slice(&number.to_ne_bytes());
    siginfo[8..12].copy_from_slice(&code.to_ne_bytes());
    siginfo[24..32].copy_from_slice(&value.to_ne_bytes());
    PendingSignal { siginfo }
}

#[test]
fn pending_signals_arrive_in_order_and_replace_what_was_there() {
    const SI_QUEUE: i32 = -1;
    let realtime = libc::SIGRTMIN() + 3;
    let mut destination = Sleeper::new();
    let mut stale = destination.capture();
    stale.pending = vec![signal(libc::SIGTERM, SI_QUEUE, 1)];
    destination.restore(&stale).unwrap();
    assert_eq!(destination.capture().pending, stale.pending);

    let mut wanted = destination.capture();
    wanted.pending = (0..40).map(|value| signal(realtime, SI_QUEUE, value)).collect();
    wanted.threads[0].pending = vec![signal(libc::SIGUSR1, SI_QUEUE, 7), signal(libc::SIGCHLD, SI_QUEUE, 8)];
    wanted.threads[0].signal_mask = !(1 << 8 | 1 << 18);
    destination.restore(&wanted).unwrap();
    let found = destination.capture();
    assert_eq!(found.pending, wanted.pending);
    assert_eq!(found.threads[0].pending, wanted.threads[0].pending);
}

#[test]
fn unblocked_pending_signal_is_delivered_when_the_thread_goes_on() {
    let mut destination = Sleeper::new();
    let mut wanted = destination.capture();
    wanted.pending = vec![signal(libc::SIGTERM, 0, 0)];
    destination.restore(&wanted).unwrap();
    let status = destination.run_to_its_end();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGTERM));
}

#[test]
fn state_that_no_kernel_reports_is_refused() {
    let mut destination = Sleeper::new();
    let good = destination.capture();
    let mut refuse = |change: &dyn Fn(&mut ProcessState)| {
        let mut state = good.clone();
        change(&mut state);
        let error = destination.restore(&state).unwrap_err();
        assert!(matches!(error, RestoreStateError::Invalid { .. }), "{error}");
    };
    refuse(&|state| state.vpid = Vpid(1));
    refuse(&|state| state.cwd = b"relative".to_vec());
    refuse(&|state| state.rlimits.truncate(3));
    refuse(&|state| state.mm.auxv.push(0));
    refuse(&|state| {
        state.actions.push(SignalAction { signal: 9, handler: 0, flags: 0, restorer: 0, mask: 0 })
    });
    refuse(&|state| state.pending.push(PendingSignal { siginfo: vec![1; 64] }));
    refuse(&|state| state.threads[0].registers.truncate(8));
    refuse(&|state| state.threads[0].registers[0x88] = 0x23);
    refuse(&|state| state.threads[0].xstate.truncate(100));
    refuse(&|state| state.threads[0].comm = vec![b'x'; 16]);
    refuse(&|state| state.threads[0].seccomp = vec![5]);
    refuse(&|state| state.threads[0].scheduling.policy = 6);
}

#[test]
fn lock_on_future_memory_is_found_whatever_was_locked_before() {
    for flags in [0, libc::MCL_CURRENT, libc::MCL_FUTURE, libc::MCL_FUTURE | libc::MCL_ONFAULT] {
        let mut program = Sleeper::new();
        let lock = Call::new(libc::SYS_mlockall, &[flags as u64]);
        let locked = if flags == 0 { 0 } else { program.captive().run(&[lock]).unwrap()[0] };
        assert_eq!(locked, 0, "mlockall({flags})");
        let future = flags & (libc::MCL_FUTURE | libc::MCL_ONFAULT);
        assert_eq!(program.capture().lock_future, future as u32, "mlockall({flags})");
        assert_eq!(program.capture().lock_future, future as u32, "asked twice");
    }
}
