use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::super::tracked::vdso_of;
use super::*;
use crate::remote::{Call, RemoteTask, Spot};

const TIMEOUT: Duration = Duration::from_secs(10);

/// What this program is when it has been started again.
const ROLE: &str = "PCLIVE_TEST_ROLE";
const GENERATION: &str = "PCLIVE_TEST_GENERATION";
/// Threads that wait for ever, beside the leader and the test's.
const THREADS: usize = 3;

/// This program, started again for the first test below only.
fn again(generation: u32) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(GENERATION, generation.to_string());
    command.args(["--exact", "capture::stop::tests::no_thread_runs_while_a_process_is_worked_on"]);
    command
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// What it does then.
fn play(role: &str) -> ! {
    (0..THREADS).for_each(|_| drop(std::thread::spawn(|| wait_for_ever())));
    let generation: u32 = std::env::var(GENERATION).unwrap().parse().unwrap();
    match role {
        "executes itself for ever" => std::thread::sleep(Duration::from_millis(1)),
        "executes itself once" if generation == 0 => {
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
        _ => wait_for_ever(),
    }
    let error = again(generation + 1).exec();
    panic!("{error}")
}

struct Program(Child);

impl Program {
    fn start(role: &str) -> Self {
        let child = again(0).env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid(self.0.id().cast_signed())
    }

    /// The process once all its threads are there.
    fn process(&self) -> TreeProcess {
        let deadline = Deadline::after(TIMEOUT);
        loop {
            let mut tree = tree::read(self.pid()).unwrap();
            if tree[0].threads.len() >= THREADS + 2 {
                return tree.swap_remove(0);
            }
            assert!(!deadline.passed(), "{tree:?}");
            std::thread::yield_now();
        }
    }

    /// Tells it to go on with what it waits for.
    fn go_on(&mut self) {
        drop(self.0.stdin.take());
    }

    /// How often it has executed itself.
    fn generation(&self) -> u32 {
        let deadline = Deadline::after(TIMEOUT);
        loop {
            let environment = std::fs::read(format!("/proc/{}/environ", self.pid())).unwrap_or_default();
            let environment = String::from_utf8_lossy(&environment);
            // While it executes itself there is none, or a part.
            let value = environment.split_once(GENERATION).and_then(|(_, rest)| rest.split_once('\0'));
            if let Some((value, _)) = value {
                return value.trim_start_matches('=').parse().unwrap();
            }
            assert!(!deadline.passed(), "it has ended");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn states(process: &TreeProcess) -> Vec<u8> {
    let stat = |thread: &TreeThread| crate::proc::read(format!("/proc/{}/stat", thread.pid)).ok();
    let stats = process.threads.iter().filter_map(stat);
    stats.map(|stat| crate::proc::task_ids::parse_stat(&stat).unwrap().state).collect()
}

/// All threads are there, and none is stopped.
fn runs(process: &TreeProcess) -> bool {
    let states = states(process);
    states.len() == process.threads.len() && states.iter().all(|state| !matches!(state, b't' | b'Z' | b'X'))
}

fn await_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Deadline::after(TIMEOUT);
    while !is_so() {
        assert!(!deadline.passed(), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn no_thread_runs_while_a_process_is_worked_on() {
    if let Ok(role) = std::env::var(ROLE) {
        play(&role);
    }
    let program = Program::start("waits");
    let process = program.process();
    let seen =
        with_process_stopped(&process, TIMEOUT, &mut InterruptedCalls::default(), |_| Ok(states(&process)))
            .unwrap();
    assert_eq!(seen, vec![b't'; process.threads.len()]);
    await_until("a thread stays stopped", || runs(&process));
}

#[test]
fn process_that_executes_itself_amid_its_threads_is_stopped_at_every_attempt() {
    let program = Program::start("executes itself for ever");
    await_until("it never executed itself", || program.generation() > 0);
    for turn in 0..200 {
        let processes = stop_tree(program.pid(), TIMEOUT, Deadline::after(TIMEOUT))
            .unwrap_or_else(|error| panic!("turn {turn}: {error}"));
        let stopped = states(&processes[0].tree);
        let_run(processes);
        assert!(
            !stopped.is_empty() && stopped.iter().all(|state| *state == b't'),
            "turn {turn}: {stopped:?}"
        );
        // As long as the program takes between two executions, at another point of it each time.
        std::thread::sleep(Duration::from_micros(turn * 37 % 3000));
    }
    await_until("it hardly executed itself", || program.generation() > 10);
    let last = program.generation();
    await_until("it was kept from its program", || program.generation() > last + 3);
}

#[test]
fn program_is_executed_although_a_tracer_has_lost_sight_of_threads() {
    let mut program = Program::start("executes itself once");
    let process = program.process();
    for thread in &process.threads {
        Running::seize(thread.pid, ptrace::TRACE_SYSTEM_CALLS_GOOD).unwrap();
    }
    program.go_on();
    await_until("its threads were not reaped", || program.generation() == 1);
}

#[test]
fn task_is_seized_while_another_thread_waits_for_the_end_of_tracees() {
    let mut program = Program::start("executes itself once");
    let process = program.process();
    let (leader, others) = process.threads.split_first().unwrap();
    for thread in others {
        Running::seize(thread.pid, ptrace::TRACE_SYSTEM_CALLS_GOOD).unwrap();
    }
    program.go_on();
    await_until("nothing ended", || states(&process).contains(&b'Z') || program.generation() == 1);
    // The lock of who executes is held until all are reaped.
    let running = Running::seize(leader.pid, ptrace::TRACE_SYSTEM_CALLS_GOOD).unwrap();
    running.interrupt().unwrap();
    let (stopped, _) = running.wait(Deadline::after(TIMEOUT)).unwrap();
    stopped.detach(0).unwrap();
    await_until("it was kept from its program", || program.generation() == 1);
}

#[test]
fn process_that_has_lost_its_leader_is_refused_and_runs_on() {
    let program = Program::start("waits");
    let process = program.process();
    let exits = |leader: &mut Captive| {
        leader.settle(vdso_of(process.pid)?, Spot::Anywhere)?;
        Ok(leader.run(&[Call::new(libc::SYS_exit, &[0])])?)
    };
    // The kernel says nothing of its end as long as the others live.
    with_stopped(&process, (process.pid, process.vpid), Duration::from_secs(1), exits).unwrap_err();
    let error = stop_tree(program.pid(), TIMEOUT, Deadline::after(TIMEOUT)).unwrap_err();
    let CaptureError::Blocked(blockers) = &error else { panic!("{error}") };
    assert_eq!(blockers.len(), 1);
    assert_eq!(blockers[0].what, "its first thread has ended while others run");
    let process = tree::read(program.pid()).unwrap().swap_remove(0);
    await_until("its other threads do not run on", || {
        let states = states(&process);
        states.contains(&b'S') && !states.contains(&b't')
    });
}

/// A call that does not come back in time: the thread goes on where it was before.
#[test]
fn thread_that_a_call_keeps_gets_its_context_back() {
    let program = Program::start("waits");
    let process = program.process();
    let thread = process.threads.last().unwrap();
    let call = || crate::proc::read(format!("/proc/{}/syscall", thread.pid)).unwrap();
    await_until("it does not wait", || call().starts_with(b"202 "));
    let before = call();
    let sleeps = |captive: &mut Captive| {
        captive.settle(vdso_of(process.pid)?, Spot::Anywhere)?;
        let time = captive.scratch().start;
        captive.write(time, &[1000u64.to_le_bytes(), [0; 8]].concat())?;
        Ok(captive.run(&[Call::new(libc::SYS_nanosleep, &[time.0, 0])])?)
    };
    let ids = (thread.pid, thread.layout.vtid);
    let error = with_stopped(&process, ids, Duration::from_millis(300), sleeps).unwrap_err();
    assert!(error.to_string().contains("did not stop within its deadline"), "{error}");
    assert!(!tracee::is_held(thread.pid));
    await_until("it is not where it was", || call() == before);
}

#[test]
fn failed_work_leaves_no_thread_stopped() {
    let program = Program::start("waits");
    let process = program.process();
    let fails = |_: &mut Captive| Err::<(), _>(CaptureError::NoFreezer { init: process.pid });
    with_thread_stopped(&process, TIMEOUT, fails).unwrap_err();
    // Its memory cannot be opened once it is stopped.
    let nowhere = TreeProcess { pid: Pid(i32::MAX), ..process.clone() };
    with_thread_stopped(&nowhere, TIMEOUT, |_| Ok(())).unwrap_err();
    await_until("a thread stays stopped", || runs(&process));
    assert!(process.threads.iter().all(|thread| !tracee::is_held(thread.pid)));
}
