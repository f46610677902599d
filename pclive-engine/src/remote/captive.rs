//! A stopped thread that makes system calls for the engine.
//!
//! Life: [`Captive::take`] (a stopped thread; its registers and mask are kept), [`Captive::settle`] (maps the
//! slot with one stub call) or [`Captive::join`] (a slot is there already), any number of `run`s, and
//! [`Captive::restore_context`] before the thread is detached or resumed.
//!
//! Invariants: a thread whose agent dies in the middle of a batch gets its own registers and mask back by itself
//! and goes on where it was (the order SETREGS, SETSIGMASK matters: the code that undoes the mask must be where
//! the thread runs before the mask changes). Between batches the thread is in a stop from which the kernel
//! applies its restart rules, so that the application's interrupted call is restarted as if nothing had been.
//!
//! Kernel: Linux 3.11 (PTRACE_SETSIGMASK). Threads of one process share a slot and run one at a time.

use std::time::Duration;

use super::code::{self, STUB_BYTES};
use super::restart::{interrupted_call, saved_block};
use super::slot::{ENTRY_BYTES, MAX_CALLS, SAVED_ROOM, Slot, Spot};
use super::{Call, ProcessMemory, RemoteError, RemoteTask, ScratchArea};
use crate::model::{Deadline, PAGE_SIZE, Pid, RemoteAddr, Vpid};
use crate::tracee::{Registers, Running, Stop, Stopped};

/// How long a thread gets to stop that did not come back from a call in time.
const CATCH: Duration = Duration::from_millis(100);

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All calls were made.
    Done,
    /// A call replaced the program (`execve`): slot and memory are gone.
    Replaced,
}

/// A stopped thread under the engine's control.
#[derive(Debug)]
pub struct Captive {
    vpid: Vpid,
    leader: Vpid,
    state: State,
    memory: ProcessMemory,
    slot: Option<Slot>,
    original: Registers,
    original_mask: u64,
    mask_changed: bool,
    marker: i32,
    owed: i32,
    births: Vec<Pid>,
    timeout: Duration,
}

/// Where the thread is: kept apart from `Captive` so that a failed wait leaves a truthful state behind.
#[derive(Debug)]
enum State {
    Stopped(Stopped),
    Running(Running),
}

impl Captive {
    /// Takes a stopped thread (`vpid`, of the process `leader`, both inside the container). `marker` is a signal
    /// that the program neither handles nor blocks with one pending, and that is ignored by default.
    pub fn take(
        stopped: Stopped,
        (vpid, leader): (Vpid, Vpid),
        memory: ProcessMemory,
        marker: i32,
        timeout: Duration,
    ) -> Result<Self, RemoteError> {
        let original = interrupted_call(stopped.registers()?);
        let original_mask = stopped.signal_mask()?;
        Ok(Self {
            vpid,
            leader,
            state: State::Stopped(stopped),
            memory,
            slot: None,
            original,
            original_mask,
            mask_changed: false,
            marker,
            owed: 0,
            births: Vec::new(),
            timeout,
        })
    }

    /// Uses the slot that the process already has.
    pub fn join(&mut self, slot: Slot) {
        self.slot = Some(slot);
    }

    /// Maps a slot; `vdso` is the range of the process's vdso.
    pub fn settle(&mut self, vdso: (u64, u64), spot: Spot) -> Result<Slot, RemoteError> {
        let (hint, fixed) = match spot {
            Spot::Anywhere => (0, 0),
            Spot::At(address) => (address.0, libc::MAP_FIXED_NOREPLACE),
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let map =
            Call::new(libc::SYS_mmap, &[hint, Slot::BYTES, protection as u64, flags as u64, u64::MAX, 0]);
        let start = self.stub_call(vdso, map)?;
        let start = self.succeeded(start, || format!("map the engine's memory at {hint:#x}"))?;
        let slot = Slot::at(RemoteAddr(start));
        self.memory.write(slot.start, &code::call_loop(slot.start, slot.calls(), slot.saved()))?;
        self.slot = Some(slot);
        let data = slot.saved().0;
        let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let protect = Call::new(libc::SYS_mprotect, &[data, Slot::BYTES - PAGE_SIZE, writable]);
        let result = self.run(&[protect])?;
        self.succeeded(result[0], || "make the engine's memory writable".into())?;
        Ok(slot)
    }

    /// Unmaps the slot; the last thing that a captive does. The thread is stopped afterwards.
    pub fn unsettle(&mut self, vdso: (u64, u64)) -> Result<(), RemoteError> {
        let Some(slot) = self.slot.take() else { return Ok(()) };
        let unmap = Call::new(libc::SYS_munmap, &[slot.start.0, Slot::BYTES]);
        let result = self.stub_call(vdso, unmap)?;
        self.succeeded(result, || "unmap the engine's memory".into()).map(drop)
    }

    /// Makes one call through a stub in the unused end of the vdso, which is zero again afterwards.
    pub fn stub_call(&mut self, vdso: (u64, u64), call: Call) -> Result<i64, RemoteError> {
        let at = self.unused_vdso_bytes(vdso)?;
        self.memory.write(at, &code::stub(at, &saved_block(&self.original)))?;
        let mut registers = self.original;
        registers.rip = at.0;
        registers.rax = call.number as u64;
        registers.orig_rax = u64::MAX;
        let [a1, a2, a3, a4, a5, a6] = call.args;
        (registers.rdi, registers.rsi, registers.rdx) = (a1, a2, a3);
        (registers.r10, registers.r8, registers.r9) = (a4, a5, a6);
        self.stopped()?.set_registers(&registers)?;
        let entered = self.reach_system_call_stop();
        if let Err(error) = entered {
            if matches!(error, RemoteError::Busy { .. }) {
                self.stopped()?.set_registers(&self.original)?;
                self.memory.write(at, &[0; STUB_BYTES])?;
            }
            return Err(error);
        }
        self.reach_system_call_stop()?;
        let result = self.stopped()?.registers()?.rax as i64;
        self.memory.write(at, &[0; STUB_BYTES])?;
        self.reach_restartable_stop()?;
        Ok(result)
    }

    /// From a system call's exit stop to a stop from which the kernel applies its restart rules. Not one
    /// instruction of the thread runs in between: the interrupt is pending when it is resumed.
    fn reach_restartable_stop(&mut self) -> Result<(), RemoteError> {
        let running = Running::born(self.stopped()?.pid());
        running.interrupt()?;
        self.resume()?;
        match self.wait()? {
            Stop::Interrupted => Ok(()),
            stop => Err(self.unexpected(stop)),
        }
    }

    fn reach_system_call_stop(&mut self) -> Result<(), RemoteError> {
        loop {
            let State::Stopped(stopped) = self.replace_state() else { return Ok(()) };
            self.state = State::Running(stopped.resume_to_system_call()?);
            match self.wait()? {
                Stop::SystemCall => return Ok(()),
                Stop::Interrupted => {}
                Stop::Signal(signal) => return Err(RemoteError::Busy { pid: self.pid(), signal }),
                stop @ Stop::Event(_) => return Err(self.unexpected(stop)),
            }
        }
    }

    /// Runs calls of which the last may be an `execve`.
    pub fn run_to(&mut self, calls: &[Call]) -> Result<(Outcome, Vec<i64>), RemoteError> {
        self.run_to_beside(calls, &mut || {})
    }

    /// The same; `meanwhile` is done once the thread is on its way.
    fn run_to_beside(
        &mut self,
        calls: &[Call],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(Outcome, Vec<i64>), RemoteError> {
        let slot = self.slot_there()?;
        self.load(slot, calls)?;
        let mut registers = self.original;
        registers.rip = slot.start.0;
        registers.orig_rax = u64::MAX;
        self.stopped()?.set_registers(&registers)?;
        if !self.mask_changed {
            self.stopped()?.set_signal_mask(!(1 << (self.marker - 1)))?;
            self.mask_changed = true;
        }
        let marker_entry = slot.calls().0 + (calls.len() * ENTRY_BYTES) as u64;
        self.resume()?;
        meanwhile();
        loop {
            match self.wait()? {
                Stop::Signal(signal) if signal == self.marker => {
                    let registers = self.stopped()?.registers()?;
                    if registers.rbx == marker_entry && registers.orig_rax as i64 == libc::SYS_tgkill {
                        break;
                    }
                    // The application's own: it gets it when it is let go.
                    self.owed = signal;
                }
                Stop::Event(
                    libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE,
                ) => {
                    let newborn = self.stopped()?.newborn()?;
                    self.births.push(newborn);
                }
                Stop::Event(libc::PTRACE_EVENT_EXEC) => {
                    self.leave_execve()?;
                    return Ok((Outcome::Replaced, Vec::new()));
                }
                Stop::Interrupted => {}
                stop @ (Stop::Event(_) | Stop::SystemCall | Stop::Signal(_)) => {
                    return Err(self.unexpected(stop));
                }
            }
            self.resume()?;
        }
        let mut bytes = vec![0; calls.len() * ENTRY_BYTES];
        self.memory.read(slot.calls(), &mut bytes)?;
        let word = |entry: &[u8]| i64::from_le_bytes(entry[ENTRY_BYTES - 8..].try_into().unwrap_or_default());
        Ok((Outcome::Done, bytes.chunks_exact(ENTRY_BYTES).map(word).collect()))
    }

    /// From the exec event past the call's own register changes, and takes stock of the new program.
    fn leave_execve(&mut self) -> Result<(), RemoteError> {
        self.reach_system_call_stop()?;
        self.reach_restartable_stop()?;
        self.memory = ProcessMemory::open(self.pid())?;
        self.original = self.stopped()?.registers()?;
        self.slot = None;
        Ok(())
    }

    /// Puts the thread's own registers and mask back; it stays stopped. One that a call kept is stopped for that.
    pub fn restore_context(&mut self) -> Result<(), RemoteError> {
        if let State::Running(running) = self.state {
            self.catch(running)?;
        }
        if self.mask_changed {
            self.stopped()?.set_signal_mask(self.original_mask)?;
            self.mask_changed = false;
        }
        Ok(self.stopped()?.set_registers(&self.original)?)
    }

    /// Stops a thread that did not come back from a call. Past the end of its batch it does not get without its tracer.
    fn catch(&mut self, running: Running) -> Result<(), RemoteError> {
        running.interrupt()?;
        let (stopped, stop) = running.wait(Deadline::after(CATCH))?;
        match stop {
            Stop::Signal(signal) if signal != self.marker => self.owed = signal,
            Stop::Signal(_) | Stop::Interrupted | Stop::SystemCall | Stop::Event(_) => {}
        }
        self.state = State::Stopped(stopped);
        Ok(())
    }

    /// Lets the thread go with the context it has, and with any signal that was kept from it.
    pub fn detach(self) -> Result<(), RemoteError> {
        match self.state {
            State::Stopped(stopped) => Ok(stopped.detach(self.owed)?),
            State::Running(running) => Err(crate::tracee::TraceError::Deadline { pid: running.pid() }.into()),
        }
    }

    /// Ends the thread's process by a signal that has its default action.
    pub fn end_by(&mut self, signal: i32) -> Result<(), RemoteError> {
        if let State::Stopped(stopped) = self.replace_state() {
            self.state = State::Running(stopped.resume(signal)?);
        }
        match self.wait() {
            Err(RemoteError::Trace(crate::tracee::TraceError::Gone { .. })) => Ok(()),
            Ok(stop) => Err(self.unexpected(stop)),
            Err(error) => Err(error),
        }
    }

    /// After [`RemoteError::Busy`]: the thread gets the signal that came when it is let go.
    pub fn owe(&mut self, signal: i32) {
        self.owed = signal;
    }

    /// The context that the thread will have when it is let go: another's, which no signal that came here concerns.
    pub fn set_context(&mut self, registers: Registers, mask: u64) {
        self.original = registers;
        self.original_mask = mask;
        self.mask_changed = true;
        self.owed = 0;
    }

    /// The number of the interrupted call, where the registers have only that of its continuation.
    pub fn is_in_call(&mut self, number: u64) {
        self.original.orig_rax = number;
    }

    /// Changes where the application goes on when it is let go: the abort handler of a restartable sequence.
    pub fn go_on_at(&mut self, rip: u64) {
        self.original.rip = rip;
    }

    /// The application's registers, as they were when the thread was taken.
    pub fn registers(&self) -> &Registers {
        &self.original
    }

    /// The application's signal mask, as it was when the thread was taken.
    pub fn signal_mask(&self) -> u64 {
        self.original_mask
    }

    /// Tasks born in the last batches, as the agent sees them, in order.
    pub fn take_births(&mut self) -> Vec<Pid> {
        std::mem::take(&mut self.births)
    }

    /// The process's memory.
    pub fn memory(&self) -> &ProcessMemory {
        &self.memory
    }

    /// The slot, once there is one.
    pub fn slot(&self) -> Option<Slot> {
        self.slot
    }

    /// Replaces the ptrace options.
    pub fn set_options(&self, options: u64) -> Result<(), RemoteError> {
        Ok(self.stopped()?.set_options(options)?)
    }

    /// The value of a call's result, or an error that says what the call was for.
    pub fn succeeded(&self, result: i64, what: impl FnOnce() -> String) -> Result<u64, RemoteError> {
        if (-4095..0).contains(&result) {
            let source = nix::Error::from_raw(-result as i32);
            return Err(RemoteError::Call { vpid: self.leader, what: what(), source });
        }
        Ok(result as u64)
    }

    fn load(&self, slot: Slot, calls: &[Call]) -> Result<(), RemoteError> {
        if calls.len() > MAX_CALLS {
            let limit = MAX_CALLS * ENTRY_BYTES;
            return Err(RemoteError::TooLarge { bytes: calls.len() * ENTRY_BYTES, limit });
        }
        let mut bytes = Vec::with_capacity(SAVED_ROOM + (calls.len() + 3) * ENTRY_BYTES);
        bytes.extend_from_slice(&saved_block(&self.original));
        let mask_at = slot.saved().0 + bytes.len() as u64;
        bytes.extend_from_slice(&self.original_mask.to_le_bytes());
        bytes.resize(SAVED_ROOM, 0);
        let marker =
            Call::new(libc::SYS_tgkill, &[self.leader.0 as u64, self.vpid.0 as u64, self.marker as u64]);
        let unmask = Call::new(libc::SYS_rt_sigprocmask, &[libc::SIG_SETMASK as u64, mask_at, 0, 8]);
        for call in calls.iter().chain([&marker, &unmask]) {
            bytes.extend_from_slice(&(call.number as u64 + 1).to_le_bytes());
            call.args.iter().for_each(|argument| bytes.extend_from_slice(&argument.to_le_bytes()));
            bytes.extend_from_slice(&[0; 8]);
        }
        bytes.extend_from_slice(&[0; ENTRY_BYTES]);
        self.memory.write(slot.saved(), &bytes)
    }

    fn unused_vdso_bytes(&self, vdso: (u64, u64)) -> Result<RemoteAddr, RemoteError> {
        let none = RemoteError::NoVdso { pid: self.pid() };
        let start = vdso.1.saturating_sub(PAGE_SIZE).max(vdso.0);
        let mut page = vec![0; (vdso.1 - start) as usize];
        self.memory.read(RemoteAddr(start), &mut page)?;
        let used = page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let at = (used + 8).next_multiple_of(16);
        if at + STUB_BYTES <= page.len() { Ok(RemoteAddr(start + at as u64)) } else { Err(none) }
    }

    fn slot_there(&self) -> Result<Slot, RemoteError> {
        self.slot.ok_or(RemoteError::NoVdso { pid: self.pid() })
    }

    fn stopped(&self) -> Result<&Stopped, RemoteError> {
        match &self.state {
            State::Stopped(stopped) => Ok(stopped),
            State::Running(running) => Err(crate::tracee::TraceError::Deadline { pid: running.pid() }.into()),
        }
    }

    fn resume(&mut self) -> Result<(), RemoteError> {
        if let State::Stopped(stopped) = self.replace_state() {
            self.state = State::Running(stopped.resume(0)?);
        }
        Ok(())
    }

    /// Takes the state out; `Running` stays behind, which is what the thread is if the caller fails to resume it.
    fn replace_state(&mut self) -> State {
        let running = State::Running(Running::born(self.pid()));
        std::mem::replace(&mut self.state, running)
    }

    fn wait(&mut self) -> Result<Stop, RemoteError> {
        let running = Running::born(self.pid());
        let (stopped, stop) = running.wait(Deadline::after(self.timeout))?;
        self.state = State::Stopped(stopped);
        Ok(stop)
    }

    fn unexpected(&self, stop: Stop) -> RemoteError {
        RemoteError::UnexpectedStop { pid: self.pid(), stop }
    }
}

impl RemoteTask for Captive {
    fn pid(&self) -> Pid {
        match &self.state {
            State::Stopped(stopped) => stopped.pid(),
            State::Running(running) => running.pid(),
        }
    }

    fn vpid(&self) -> Vpid {
        self.vpid
    }

    fn scratch(&self) -> ScratchArea {
        let none = RemoteAddr(0);
        self.slot.map_or(ScratchArea { start: none, len: 0, spare_page: none }, Slot::scratch)
    }

    fn run(&mut self, calls: &[Call]) -> Result<Vec<i64>, RemoteError> {
        self.run_beside(calls, &mut || {})
    }

    fn run_beside(&mut self, calls: &[Call], meanwhile: &mut dyn FnMut()) -> Result<Vec<i64>, RemoteError> {
        let mut results = Vec::with_capacity(calls.len());
        let mut first = Some(meanwhile);
        for part in calls.chunks(MAX_CALLS) {
            match self.run_to_beside(part, first.take().unwrap_or(&mut || {}))? {
                (Outcome::Done, part) => results.extend(part),
                (Outcome::Replaced, _) => {
                    let event = Stop::Event(libc::PTRACE_EVENT_EXEC);
                    return Err(self.unexpected(event));
                }
            }
        }
        Ok(results)
    }

    fn write(&mut self, to: RemoteAddr, bytes: &[u8]) -> Result<(), RemoteError> {
        self.memory.write(to, bytes)
    }

    fn read(&mut self, from: RemoteAddr, bytes: &mut [u8]) -> Result<(), RemoteError> {
        self.memory.read(from, bytes)
    }
}
