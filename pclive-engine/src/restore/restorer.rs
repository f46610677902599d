//! One process of the skeleton: its threads, all stopped, and the memory that it has so far.
//!
//! A restorer runs remote calls only; its own program never runs before [`super::Destination::resume`].

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::RestoreError;
use super::channel::need;
use super::files::Installed;
use super::spans::{self, Span};
use crate::model::layout::VdsoLayout;
use crate::model::{Pid, ProcessLayout, RemoteAddr, ThreadLayout, Vma, Vpid};
use crate::remote::{Call, Captive, Outcome, ProcessMemory, RemoteError, RemoteTask, Slot, Spot};
use crate::sys::ptrace;
use crate::tracee::{Running, Stop};

/// Ptrace options of every restorer: it dies with the agent, and its children are restorers too.
pub(super) const OPTIONS: u64 = ptrace::EXIT_KILL
    | ptrace::TRACE_BIRTHS
    | ptrace::TRACE_EXEC
    | ptrace::TRACE_SYSTEM_CALLS_GOOD
    | ptrace::SUSPEND_SECCOMP;

/// The signal that ends a batch. Restorers handle none, and the agent keeps this one from them.
const MARKER: i32 = libc::SIGWINCH;
const CLONE_THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// A process of the skeleton.
#[derive(Debug)]
pub(super) struct Restorer {
    pub(super) vpid: Vpid,
    pub(super) start_time: u64,
    pub(super) generation: u32,
    pub(super) exe: Vec<u8>,
    pub(super) sid: Vpid,
    pub(super) pgid: Vpid,
    /// Its controlling terminal.
    pub(super) terminal: Option<u32>,
    pub(super) leader: Captive,
    pub(super) threads: Vec<(ThreadLayout, Captive)>,
    pub(super) vmas: Vec<Vma>,
    pub(super) vdso: VdsoLayout,
    /// What it has open, if that is known.
    pub(super) descriptors: Option<Installed>,
}

impl Restorer {
    /// Takes over the created container's init: stops it; its program is still the runtime's.
    pub(super) fn adopt(init: Pid, vpid: Vpid, timeout: Duration) -> Result<Self, RestoreError> {
        let running = Running::seize(init, OPTIONS).map_err(RemoteError::from)?;
        running.interrupt().map_err(RemoteError::from)?;
        let leader = captive_at_first_stop(running, (vpid, vpid), timeout)?;
        Ok(Self {
            vpid,
            start_time: 0,
            generation: 0,
            exe: Vec::new(),
            sid: vpid,
            pgid: vpid,
            terminal: None,
            leader,
            threads: Vec::new(),
            vmas: Vec::new(),
            vdso: VdsoLayout::default(),
            descriptors: None,
        })
    }

    /// Bears a process with an empty address space. The caller has chosen its id.
    pub(super) fn fork(&mut self, vpid: Vpid, timeout: Duration) -> Result<Self, RestoreError> {
        let slot = self.slot()?;
        let born = self.clone_task(libc::SIGCHLD, vpid)?;
        let mut leader = captive_at_first_stop(Running::born(born), (vpid, vpid), timeout)?;
        leader.join(slot);
        let mut child = Self {
            vpid,
            start_time: 0,
            generation: 0,
            exe: self.exe.clone(),
            sid: self.sid,
            pgid: self.pgid,
            terminal: self.terminal,
            leader,
            threads: Vec::new(),
            vmas: Vec::new(),
            vdso: self.vdso,
            descriptors: Some(Installed::new()),
        };
        // It has what its parent has open.
        child.wipe_after(vec![Call::new(libc::SYS_close_range, &[0, u64::from(u32::MAX), 0])])?;
        Ok(child)
    }

    /// Bears a thread. The caller has chosen its id.
    pub(super) fn spawn_thread(
        &mut self,
        thread: &ThreadLayout,
        timeout: Duration,
    ) -> Result<(), RestoreError> {
        let slot = self.slot()?;
        let born = self.clone_task(CLONE_THREAD_FLAGS, thread.vtid)?;
        let running = Running::born(born);
        let mut captive = captive_at_first_stop(running, (thread.vtid, self.vpid), timeout)?;
        captive.join(slot);
        self.threads.push((thread.clone(), captive));
        Ok(())
    }

    /// Ends the threads that `keep` refuses.
    pub(super) fn end_threads(&mut self, keep: impl Fn(&ThreadLayout) -> bool) -> Result<(), RestoreError> {
        let (kept, ended) =
            std::mem::take(&mut self.threads).into_iter().partition(|(thread, _)| keep(thread));
        self.threads = kept;
        for (_, mut captive) in ended {
            match captive.run(&[Call::new(libc::SYS_exit, &[0])]) {
                Err(RemoteError::Trace(crate::tracee::TraceError::Gone { .. })) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(RestoreError::ThreadLives { vtid: captive.vpid() }),
            }
        }
        Ok(())
    }

    /// Gives the process the executable and the kernel mappings of `layout`, and an empty address space.
    pub(super) fn become_program(&mut self, layout: &ProcessLayout) -> Result<(), RestoreError> {
        let spot = spans::free_spot(layout, Slot::BYTES).ok_or(RestoreError::NoRoom { vpid: self.vpid })?;
        if self.leader.slot().is_none() {
            self.settle_in_runtime()?;
        }
        self.execute(&layout.exe)?;
        self.threads.clear();
        self.descriptors = None;
        let vdso = self.own_vdso()?;
        self.leader.settle(vdso, Spot::At(RemoteAddr(spot)))?;
        self.exe.clone_from(&layout.exe);
        self.vdso = spans::kernel_mappings(self.leader.pid())?;
        self.wipe()
    }

    /// Maps the slot in the runtime's own program. That is written in Go, whose scheduler sends SIGURG to its threads at
    /// any time: to a program that is about to be replaced, it is lost without loss. Any other signal is meant.
    fn settle_in_runtime(&mut self) -> Result<(), RestoreError> {
        const ATTEMPTS: u32 = 100;
        let vdso = self.own_vdso()?;
        for _ in 1..ATTEMPTS {
            match self.leader.settle(vdso, Spot::Anywhere) {
                Err(RemoteError::Busy { signal: libc::SIGURG, .. }) => {}
                settled => return settled.map(drop).map_err(RestoreError::from),
            }
        }
        self.leader.settle(vdso, Spot::Anywhere).map(drop).map_err(RestoreError::from)
    }

    /// execve of the executable, with an empty environment: it sets `/proc/PID/exe`, ends other threads and makes
    /// the security label's transition. The new program is stopped before its first instruction.
    fn execute(&mut self, exe: &[u8]) -> Result<(), RestoreError> {
        let area = self.leader.scratch().start.0;
        let path_at = area + 32;
        let mut bytes = Vec::with_capacity(64 + exe.len());
        for word in [path_at, 0, 0, 0] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(exe);
        bytes.push(0);
        self.leader.write(RemoteAddr(area), &bytes)?;
        let call = Call::new(libc::SYS_execve, &[path_at, area, area + 8]);
        match self.leader.run_to(&[call])? {
            (Outcome::Replaced, _) => Ok(()),
            (Outcome::Done, results) => {
                let path = Path::new(OsStr::from_bytes(exe)).display().to_string();
                let result = results.first().copied().unwrap_or(-i64::from(libc::EIO));
                need(self.vpid, result, &format!("execute {path}"))?;
                Err(RestoreError::Execute { vpid: self.vpid, path })
            }
        }
    }

    /// Unmaps everything but the slot and the kernel's own mappings.
    pub(super) fn wipe(&mut self) -> Result<(), RestoreError> {
        self.wipe_after(Vec::new())
    }

    /// The same after other calls.
    fn wipe_after(&mut self, mut calls: Vec<Call>) -> Result<(), RestoreError> {
        let mut keep = self.own_spans()?;
        let unmap = |(start, end): Span| Call::new(libc::SYS_munmap, &[start, end - start]);
        calls.extend(spans::complement(&mut keep).into_iter().map(unmap));
        for result in self.leader.run(&calls)? {
            need(self.vpid, result, "clear the process")?;
        }
        self.vmas.clear();
        Ok(())
    }

    /// What it has beside the mappings of its process: the slot and the kernel's.
    pub(super) fn own_spans(&self) -> Result<Vec<Span>, RestoreError> {
        let mut own = spans::spans_of(&self.vdso);
        own.push(self.slot()?.range());
        Ok(own)
    }

    /// Moves the slot out of the way of `layout`, and the kernel's mappings to where the source has them.
    pub(super) fn make_way(&mut self, layout: &ProcessLayout) -> Result<(), RestoreError> {
        let slot = self.slot()?;
        if spans::overlaps(layout, slot.range()) {
            let spot =
                spans::free_spot(layout, Slot::BYTES).ok_or(RestoreError::NoRoom { vpid: self.vpid })?;
            let vdso = self.own_vdso()?;
            let new = self.leader.settle(vdso, Spot::At(RemoteAddr(spot)))?;
            let unmap = Call::new(libc::SYS_munmap, &[slot.range().0, Slot::BYTES]);
            need(self.vpid, self.leader.run(&[unmap])?[0], "unmap the engine's old memory")?;
            self.threads.iter_mut().for_each(|(_, captive)| captive.join(new));
        }
        self.move_kernel_mappings(&layout.vdso)
    }

    fn move_kernel_mappings(&mut self, wanted: &VdsoLayout) -> Result<(), RestoreError> {
        if self.vdso == *wanted {
            return Ok(());
        }
        let moves = spans::moves(&self.vdso, wanted).ok_or_else(|| self.vdso_differs(wanted))?;
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let calls: Vec<Call> = moves
            .iter()
            .map(|(from, to, len)| Call::new(libc::SYS_mremap, &[*from, *len, *len, flags, *to]))
            .collect();
        for result in self.leader.run(&calls)? {
            need(self.vpid, result, "move the vdso")?;
        }
        self.vdso = *wanted;
        Ok(())
    }

    fn vdso_differs(&self, wanted: &VdsoLayout) -> RestoreError {
        let (here, wanted) = (Box::new(self.vdso), Box::new(*wanted));
        RestoreError::VdsoDiffers { vpid: self.vpid, here, wanted }
    }

    /// Removes the engine's mapping; the restorer makes no remote call afterwards.
    pub(super) fn unsettle(&mut self) -> Result<(), RestoreError> {
        let vdso = self.own_vdso()?;
        Ok(self.leader.unsettle(vdso)?)
    }

    /// From here on its threads run on when the agent dies, the leader at last. On `Err` all do that can.
    pub(super) fn keep(&self) -> Result<(), RestoreError> {
        let others = self.threads.iter().map(|(_, captive)| captive);
        let kept =
            others.chain([&self.leader]).map(|captive| captive.set_options(OPTIONS & !ptrace::EXIT_KILL));
        Ok(kept.fold(Ok(()), Result::and)?)
    }

    /// Every thread, the leader first.
    pub(super) fn captives(&mut self) -> impl Iterator<Item = &mut Captive> {
        std::iter::once(&mut self.leader).chain(self.threads.iter_mut().map(|(_, captive)| captive))
    }

    /// Agent-side ids of all threads.
    pub(super) fn pids(&self) -> impl Iterator<Item = Pid> {
        std::iter::once(self.leader.pid()).chain(self.threads.iter().map(|(_, captive)| captive.pid()))
    }

    fn slot(&self) -> Result<Slot, RestoreError> {
        self.leader.slot().ok_or(RestoreError::Remote(RemoteError::NoVdso { pid: self.leader.pid() }))
    }

    fn own_vdso(&self) -> Result<Span, RestoreError> {
        let pid = self.leader.pid();
        match self.vdso.vdso {
            Some(range) if self.leader.slot().is_some() => Ok(range),
            _ => spans::kernel_mappings(pid)?.vdso.ok_or(RestoreError::Remote(RemoteError::NoVdso { pid })),
        }
    }

    /// Bears a task; returns its id as the agent sees it.
    fn clone_task(&mut self, flags: i32, vpid: Vpid) -> Result<Pid, RestoreError> {
        let result = self.leader.run(&[Call::new(libc::SYS_clone, &[flags as u64])])?[0];
        let id = need(self.vpid, result, &format!("bear task {vpid}"))?;
        let born = self.leader.take_births().pop().ok_or(RestoreError::NotBorn { vpid })?;
        if id != vpid.0 as u64 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(born.0), nix::sys::signal::SIGKILL);
            return Err(RestoreError::IdTaken { wanted: vpid, got: Vpid(id as i32) });
        }
        Ok(born)
    }
}

/// Waits for the first stop of a task that is interrupted or newborn.
fn captive_at_first_stop(
    running: Running,
    ids: (Vpid, Vpid),
    timeout: Duration,
) -> Result<Captive, RestoreError> {
    let deadline = crate::model::Deadline::after(timeout);
    let mut running = running;
    loop {
        let (stopped, stop) = running.wait(deadline).map_err(RemoteError::from)?;
        match stop {
            Stop::Interrupted => {
                let memory = ProcessMemory::open(stopped.pid())?;
                return Ok(Captive::take(stopped, ids, memory, MARKER, timeout)?);
            }
            // A signal of the runtime's own (the Go scheduler sends SIGURG): it dies with the runtime's program.
            Stop::Signal(_) | Stop::SystemCall | Stop::Event(_) => {
                running = stopped.go_on_to_stop(0).map_err(RemoteError::from)?;
            }
        }
    }
}

const _: () = assert!(libc::SYS_clone == 56);
