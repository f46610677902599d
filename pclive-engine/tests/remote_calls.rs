//! Remote calls in real processes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pclive_engine::model::{Deadline, Pid, RemoteAddr, Vpid};
use pclive_engine::remote::{Call, Captive, ProcessMemory, RemoteTask, Spot};
use pclive_engine::tracee::{Running, Stop};

const TIMEOUT: Duration = Duration::from_secs(5);
const TRACE_SYSTEM_CALLS_GOOD: u64 = 1;

/// A program that is killed when the test ends.
struct Program(Child);

impl Program {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let child = Command::new(name).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid(self.0.id() as i32)
    }

    fn wait_for_call(&self, number: &str) {
        let deadline = Deadline::after(TIMEOUT);
        loop {
            let text = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid())).unwrap();
            if text.starts_with(number) {
                return;
            }
            assert!(!deadline.passed(), "the program never made call {number}: {text}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vdso(pid: Pid) -> (u64, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (start, rest) = line.split_once('-').unwrap();
    let end = rest.split(' ').next().unwrap();
    (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap())
}

fn capture(pid: Pid) -> Captive {
    let running = Running::seize(pid, TRACE_SYSTEM_CALLS_GOOD).unwrap();
    running.interrupt().unwrap();
    let (stopped, stop) = running.wait(Deadline::after(TIMEOUT)).unwrap();
    assert_eq!(stop, Stop::Interrupted);
    let memory = ProcessMemory::open(pid).unwrap();
    let ids = (Vpid(pid.0), Vpid(pid.0));
    Captive::take(stopped, ids, memory, libc::SIGWINCH, TIMEOUT).unwrap()
}

#[test]
fn batch_returns_every_result_in_order() {
    let program = Program::start("sleep", &["1000"]);
    program.wait_for_call("230 ");
    let mut captive = capture(program.pid());
    captive.settle(vdso(program.pid()), Spot::Anywhere).unwrap();
    let calls: Vec<Call> =
        (0..500)
            .map(|n| {
                if n % 2 == 0 {
                    Call::new(libc::SYS_getpid, &[])
                } else {
                    Call::new(libc::SYS_close, &[9999])
                }
            })
            .collect();
    let results = captive.run(&calls).unwrap();
    assert_eq!(results.len(), 500);
    for (n, result) in results.iter().enumerate() {
        let expected = if n % 2 == 0 { i64::from(program.pid().0) } else { -i64::from(libc::EBADF) };
        assert_eq!(*result, expected, "call {n}");
    }
}

#[test]
fn calls_exchange_data_through_scratch_memory() {
    let program = Program::start("sleep", &["1000"]);
    program.wait_for_call("230 ");
    let mut captive = capture(program.pid());
    captive.settle(vdso(program.pid()), Spot::Anywhere).unwrap();
    let at = captive.scratch().start;
    let result = captive.run(&[Call::new(libc::SYS_pipe2, &[at.0, 0])]).unwrap();
    assert_eq!(result, [0]);
    let mut ends = [0; 8];
    captive.read(at, &mut ends).unwrap();
    let write_end = u64::from(u32::from_le_bytes(ends[4..].try_into().unwrap()));
    let read_end = u64::from(u32::from_le_bytes(ends[..4].try_into().unwrap()));
    captive.write(at, b"through the pipe").unwrap();
    let back = RemoteAddr(at.0 + 100);
    let calls = [
        Call::new(libc::SYS_write, &[write_end, at.0, 16]),
        Call::new(libc::SYS_read, &[read_end, back.0, 16]),
        Call::new(libc::SYS_close, &[read_end]),
        Call::new(libc::SYS_close, &[write_end]),
    ];
    assert_eq!(captive.run(&calls).unwrap(), [16, 16, 0, 0]);
    let mut text = [0; 16];
    captive.read(back, &mut text).unwrap();
    assert_eq!(&text, b"through the pipe");
}

#[test]
fn interrupted_sleep_goes_on_and_nothing_is_left_behind() {
    let program = Program::start("sleep", &["1000"]);
    program.wait_for_call("230 ");
    let before = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
    let mut captive = capture(program.pid());
    let vdso = vdso(program.pid());
    captive.settle(vdso, Spot::Anywhere).unwrap();
    captive.run(&[Call::new(libc::SYS_getpid, &[])]).unwrap();
    captive.restore_context().unwrap();
    captive.unsettle(vdso).unwrap();
    captive.restore_context().unwrap();
    captive.detach().unwrap();
    program.wait_for_call("219 ");
    let after = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
    assert_eq!(before, after);
}

#[test]
fn shell_pipeline_counts_on_without_a_gap_through_a_thousand_batches() {
    let program =
        Program::start("sh", &["-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); : $(echo); done; echo $i"]);
    let mut done = 0;
    while done < 200 {
        let running = match Running::seize(program.pid(), TRACE_SYSTEM_CALLS_GOOD) {
            Ok(running) => running,
            Err(_) => break,
        };
        running.interrupt().unwrap();
        let Ok((stopped, stop)) = running.wait(Deadline::after(TIMEOUT)) else { break };
        if stop != Stop::Interrupted {
            let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
            stopped.detach(signal).unwrap();
            continue;
        }
        let memory = ProcessMemory::open(program.pid()).unwrap();
        let ids = (Vpid(program.pid().0), Vpid(program.pid().0));
        let mut captive = Captive::take(stopped, ids, memory, libc::SIGWINCH, TIMEOUT).unwrap();
        match captive.settle(vdso(program.pid()), Spot::Anywhere) {
            Ok(_) => {
                let calls = vec![Call::new(libc::SYS_getppid, &[]); 20];
                assert!(captive.run(&calls).unwrap().iter().all(|pid| *pid == i64::from(std::process::id())));
                captive.unsettle(vdso(program.pid())).unwrap();
                captive.restore_context().unwrap();
                captive.detach().unwrap();
                done += 1;
            }
            Err(pclive_engine::remote::RemoteError::Busy { signal, .. }) => {
                captive.owe(signal);
                captive.detach().unwrap()
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(done > 20, "only {done} captures before the program ended");
    let mut text = String::new();
    let mut program = program;
    std::io::Read::read_to_string(program.0.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert_eq!(text.trim(), "3000");
}
