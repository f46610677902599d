//! The skeleton: the container's process tree at the destination, stopped, in step with the source's.
//!
//! [`Skeleton::follow`] ends what is gone, bears what is new, and puts sessions, groups, executables, mappings
//! and threads right. Ids are chosen by the [`PidChooser`]; a task must be born of the right parent and in the
//! right session, since both are inherited. Where the task that handed a session or group down has ended, a
//! *ghost* takes its id for the moment of the birth.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::RestoreError;
use super::channel::need;
use super::files::Tables;
use super::mappings::Mappings;
use super::restorer::Restorer;
use super::terminals::Terminals;
use super::validate;
use crate::fault::{self, Point};
use crate::model::layout::Layout;
use crate::model::{Pid, ProcessLayout, ThreadLayout, Vpid};
use crate::remote::{Call, Processes, RemoteError, RemoteTask};
use crate::sys::pid_namespace::PidChooser;
use crate::tracee::{TraceError, end};

/// The ids from which the chooser takes its own, counted down from the namespace's end.
const HELPER_IDS: i32 = 200;

/// A stopped process tree.
#[derive(Debug)]
pub(super) struct Skeleton {
    pub(super) restorers: Vec<Restorer>,
    chooser: Option<PidChooser>,
    pub(super) terminals: Terminals,
    timeout: Duration,
    /// Its tasks outlive the agent.
    kept: bool,
}

impl Skeleton {
    /// A tree of one: the created container's init.
    pub(super) fn adopt(init: Pid, timeout: Duration) -> Result<Self, RestoreError> {
        let restorer = Restorer::adopt(init, Vpid(1), timeout)?;
        let terminals = Terminals::default();
        let mut skeleton = Self { restorers: vec![restorer], chooser: None, terminals, timeout, kept: false };
        skeleton.chooser = Some(start_chooser(init)?);
        Ok(skeleton)
    }

    /// Makes the tree match `layout`, which is checked first.
    pub(super) fn follow(&mut self, layout: &Layout, mappings: &mut Mappings) -> Result<(), RestoreError> {
        validate::layout(layout)?;
        let live: Vec<&ProcessLayout> = layout.processes.iter().filter(|p| p.zombie.is_none()).collect();
        if live.first().is_none_or(|init| init.vpid != Vpid(1)) {
            return Err(RestoreError::Layout { vpid: Vpid(1), why: "init has ended" });
        }
        if self.restorers[0].start_time == 0 {
            self.restorers[0].start_time = live[0].start_time;
        }
        self.end_gone(&live)?;
        self.set_programs(&live)?;
        self.change_terminals(&live)?;
        for process in &live {
            self.bear_with_siblings(process, &live)?;
        }
        self.set_groups(&live)?;
        self.drop_terminals(&live)?;
        self.set_programs(&live)?;
        for process in &live {
            self.restorer_mut(process.vpid)?.make_way(process)?;
        }
        mappings.follow(layout, &mut self.restorers)?;
        for process in &live {
            self.set_threads(process)?;
        }
        Ok(())
    }

    /// Makes the zombies of the final layout. Nothing is born afterwards.
    pub(super) fn bear_zombies(&mut self, layout: &Layout) -> Result<(), RestoreError> {
        for process in &layout.processes {
            let Some(status) = process.zombie else { continue };
            let parent = self.index(process.parent)?;
            let mut zombie = self.fork(parent, process.vpid)?;
            let (code, signal) = (status >> 8 & 0xff, status & 0x7f);
            if signal == 0 {
                self.expect_end(&mut zombie, code)?;
            } else {
                zombie.leader.end_by(signal)?;
            }
        }
        Ok(())
    }

    /// Sets what the next id of the namespace would have been at the source, and lets the helper go.
    pub(super) fn dismiss_chooser(&mut self, last: i32) -> Result<(), RestoreError> {
        if let Some(mut chooser) = self.chooser.take()
            && last > 0
        {
            let result = chooser.set_last(last);
            result.map_err(|source| RestoreError::ChooseId { vpid: Vpid(last), source })?;
        }
        Ok(())
    }

    /// Whether some process is to execute a program for this layout.
    pub(super) fn will_execute(&self, layout: &Layout) -> bool {
        layout.processes.iter().filter(|process| process.zombie.is_none()).any(|process| {
            let there = self.restorers.iter().find(|restorer| restorer.vpid == process.vpid);
            there.is_none_or(|restorer| restorer.exe != process.exe)
        })
    }

    /// Takes out what is known to be open in the processes.
    pub(super) fn take_tables(&mut self) -> Tables {
        let take = |restorer: &mut Restorer| Some((restorer.vpid, restorer.descriptors.take()?));
        self.restorers.iter_mut().filter_map(take).collect()
    }

    /// Notes what is open in the processes.
    pub(super) fn put_tables(&mut self, mut tables: Tables) {
        for restorer in &mut self.restorers {
            restorer.descriptors = tables.remove(&restorer.vpid);
        }
    }

    /// A process.
    pub(super) fn restorer_mut(&mut self, vpid: Vpid) -> Result<&mut Restorer, RestoreError> {
        let at = self.index(vpid)?;
        Ok(&mut self.restorers[at])
    }

    /// From here on the tasks outlive the agent; init is the last. On `Err` all do that can. Doing it twice is doing it
    /// once.
    pub(super) fn keep(&mut self) -> Result<(), RestoreError> {
        let mut result = Ok(());
        if !self.kept
            && let Some((init, others)) = self.restorers.split_first()
        {
            result = others.iter().map(Restorer::keep).fold(Ok(()), Result::and);
            fault::reached(Point::DestinationOthersKept);
            result = result.and(init.keep());
            fault::reached(Point::DestinationKept);
        }
        self.kept = true;
        result
    }

    /// Gives the processes away; the tree no longer kills them.
    pub(super) fn release(mut self) -> Vec<Restorer> {
        std::mem::take(&mut self.restorers)
    }

    /// Lets the processes that are there execute what they should. Before births, so that the created init has
    /// left the runtime's program when it forks, and after them, for the newborn.
    fn set_programs(&mut self, live: &[&ProcessLayout]) -> Result<(), RestoreError> {
        for process in live {
            let Ok(at) = self.index(process.vpid) else { continue };
            let restorer = &mut self.restorers[at];
            if restorer.exe == process.exe && restorer.generation == process.generation {
                continue;
            }
            restorer.end_threads(|_| false)?;
            if restorer.exe == process.exe {
                restorer.wipe()?
            } else {
                restorer.become_program(process)?
            }
            restorer.generation = process.generation;
        }
        Ok(())
    }

    fn end_gone(&mut self, live: &[&ProcessLayout]) -> Result<(), RestoreError> {
        let stays = |r: &Restorer| live.iter().any(|p| p.vpid == r.vpid && p.start_time == r.start_time);
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.restorers).into_iter().partition(stays);
        self.restorers = kept;
        gone.iter().for_each(|restorer| self.forget_terminal_of(restorer.vpid));
        if self.restorers.first().is_none_or(|init| init.vpid != Vpid(1)) {
            self.restorers.extend(gone);
            return Err(RestoreError::Layout { vpid: Vpid(1), why: "its start time changed" });
        }
        let pids: Vec<Pid> = gone.iter().flat_map(Restorer::pids).collect();
        gone.iter().for_each(|restorer| end::kill(restorer.leader.pid()));
        end::await_ends(&pids, self.timeout).map_err(RemoteError::from)?;
        for restorer in &gone {
            self.reap(restorer.vpid)?;
        }
        Ok(())
    }

    /// Reaps an ended child in whichever process is its parent now, so that its id is free again.
    fn reap(&mut self, vpid: Vpid) -> Result<(), RestoreError> {
        let flags = (libc::WNOHANG | libc::__WALL) as u64;
        let call = Call::new(libc::SYS_wait4, &[vpid.0 as u64, 0, flags, 0]);
        for restorer in &mut self.restorers {
            if restorer.leader.run(&[call])?[0] == i64::from(vpid.0) {
                return Ok(());
            }
        }
        Err(RestoreError::NotReaped { vpid })
    }

    /// Bears a process unless it is there. Siblings that still belong to the parent's old session come first.
    fn bear_with_siblings(
        &mut self,
        process: &ProcessLayout,
        live: &[&ProcessLayout],
    ) -> Result<(), RestoreError> {
        if self.index(process.vpid).is_ok() {
            return Ok(());
        }
        let parent = self.index(process.parent)?;
        let parent_leads_later =
            process.sid == process.parent && self.restorers[parent].sid != process.parent;
        if parent_leads_later {
            let old_session = self.restorers[parent].sid;
            for sibling in live.iter().filter(|p| p.parent == process.parent && p.sid == old_session) {
                if self.index(sibling.vpid).is_err() {
                    self.bear(sibling)?;
                }
            }
            let leader = live.iter().find(|leader| leader.vpid == process.parent);
            self.lead_session(parent, leader.and_then(|leader| leader.terminal))?;
        }
        self.bear(process)
    }

    fn bear(&mut self, process: &ProcessLayout) -> Result<(), RestoreError> {
        let parent = self.index(process.parent)?;
        let leads = process.sid == process.vpid;
        let mut born = if leads || self.restorers[parent].sid == process.sid {
            self.fork(parent, process.vpid)?
        } else {
            self.fork_in_session(process)?
        };
        born.start_time = process.start_time;
        born.generation = process.generation;
        self.restorers.push(born);
        if leads {
            self.lead_session(self.restorers.len() - 1, process.terminal)?;
        }
        Ok(())
    }

    /// A child of a process in another session: its first parent has ended, and it was handed to a reaper.
    fn fork_in_session(&mut self, process: &ProcessLayout) -> Result<Restorer, RestoreError> {
        let leader = match self.index(process.sid) {
            Ok(leader) => leader,
            Err(_) => {
                let mut ghost = self.fork(0, process.sid)?;
                let result = ghost.leader.run(&[Call::new(libc::SYS_setsid, &[])])?[0];
                need(process.sid, result, "lead a session")?;
                (ghost.sid, ghost.pgid) = (process.sid, process.sid);
                let born = self.fork_from(&mut ghost, process.vpid)?;
                self.end_ghost(ghost)?;
                return self.checked_orphan(born, process);
            }
        };
        let ghost_id = self.unused_id()?;
        let mut ghost = self.fork(leader, ghost_id)?;
        let born = self.fork_from(&mut ghost, process.vpid)?;
        self.end_ghost(ghost)?;
        self.checked_orphan(born, process)
    }

    /// An orphan goes to the nearest reaper, which must be the parent that the source has.
    fn checked_orphan(&self, born: Restorer, process: &ProcessLayout) -> Result<Restorer, RestoreError> {
        if process.parent == Vpid(1) {
            return Ok(born);
        }
        end::kill(born.leader.pid());
        Err(RestoreError::Session { vpid: process.vpid, sid: process.sid, parent: process.parent })
    }

    fn end_ghost(&mut self, mut ghost: Restorer) -> Result<(), RestoreError> {
        self.expect_end(&mut ghost, 0)?;
        self.reap(ghost.vpid)
    }

    fn expect_end(&self, restorer: &mut Restorer, code: i32) -> Result<(), RestoreError> {
        match restorer.leader.run(&[Call::new(libc::SYS_exit_group, &[code as u64])]) {
            Err(RemoteError::Trace(TraceError::Gone { .. })) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(RestoreError::ThreadLives { vtid: restorer.vpid }),
        }
    }

    fn fork(&mut self, parent: usize, vpid: Vpid) -> Result<Restorer, RestoreError> {
        self.choose(vpid)?;
        let timeout = self.timeout;
        self.restorers[parent].fork(vpid, timeout)
    }

    fn fork_from(&mut self, parent: &mut Restorer, vpid: Vpid) -> Result<Restorer, RestoreError> {
        self.choose(vpid)?;
        parent.fork(vpid, self.timeout)
    }

    fn choose(&mut self, vpid: Vpid) -> Result<(), RestoreError> {
        let failed = |source| RestoreError::ChooseId { vpid, source };
        let chooser = self.chooser.as_mut().ok_or(failed(std::io::Error::from_raw_os_error(libc::ESRCH)))?;
        chooser.set_last(vpid.0 - 1).map_err(failed)
    }

    /// Makes a process lead a session, which has a terminal before it has children: they inherit it.
    fn lead_session(&mut self, at: usize, terminal: Option<u32>) -> Result<(), RestoreError> {
        let restorer = &mut self.restorers[at];
        let result = restorer.leader.run(&[Call::new(libc::SYS_setsid, &[])])?[0];
        need(restorer.vpid, result, "lead a session")?;
        (restorer.sid, restorer.pgid) = (restorer.vpid, restorer.vpid);
        restorer.terminal = None;
        self.take_terminal(at, terminal)
    }

    /// Sessions of processes that were there already, then groups: leaders first.
    fn set_groups(&mut self, live: &[&ProcessLayout]) -> Result<(), RestoreError> {
        for process in live {
            let at = self.index(process.vpid)?;
            if process.sid == process.vpid && self.restorers[at].sid != process.vpid {
                self.lead_session(at, process.terminal)?;
            }
            if process.pgid == process.vpid {
                self.join_group(at, process.pgid)?;
            }
        }
        for process in live {
            let at = self.index(process.vpid)?;
            if self.restorers[at].pgid == process.pgid {
                continue;
            }
            let group_lives = self.restorers.iter().any(|r| r.pgid == process.pgid);
            if group_lives {
                self.join_group(at, process.pgid)?;
            } else {
                let mut ghost = self.fork(at, process.pgid)?;
                let result = ghost.leader.run(&[Call::new(libc::SYS_setpgid, &[0, 0])])?[0];
                need(process.pgid, result, "lead a process group")?;
                self.join_group(at, process.pgid)?;
                self.end_ghost(ghost)?;
            }
        }
        Ok(())
    }

    fn join_group(&mut self, at: usize, pgid: Vpid) -> Result<(), RestoreError> {
        let restorer = &mut self.restorers[at];
        if restorer.pgid != pgid {
            let result = restorer.leader.run(&[Call::new(libc::SYS_setpgid, &[0, pgid.0 as u64])])?[0];
            need(restorer.vpid, result, &format!("join process group {pgid}"))?;
            restorer.pgid = pgid;
        }
        Ok(())
    }

    fn set_threads(&mut self, process: &ProcessLayout) -> Result<(), RestoreError> {
        let at = self.index(process.vpid)?;
        let wanted = process.threads.get(1..).unwrap_or_default();
        let places: HashMap<&ThreadLayout, usize> = wanted.iter().zip(0..).collect();
        self.restorers[at].end_threads(|thread| places.contains_key(thread))?;
        let there: HashSet<Vpid> = self.restorers[at].threads.iter().map(|(thread, _)| thread.vtid).collect();
        for thread in wanted.iter().filter(|thread| !there.contains(&thread.vtid)) {
            self.choose(thread.vtid)?;
            let timeout = self.timeout;
            self.restorers[at].spawn_thread(thread, timeout)?;
        }
        // The order of the layout is the order of the thread states to come.
        self.restorers[at].threads.sort_by_key(|(thread, _)| places.get(thread).copied());
        Ok(())
    }

    fn unused_id(&self) -> Result<Vpid, RestoreError> {
        let highest = highest_id();
        let taken =
            |id: &i32| self.restorers.iter().any(|r| r.vpid.0 == *id || r.pgid.0 == *id || r.sid.0 == *id);
        let id = (highest - HELPER_IDS..highest - HELPER_IDS / 2).find(|id| !taken(id));
        id.map(Vpid).ok_or(RestoreError::NotBorn { vpid: Vpid(0) })
    }

    pub(super) fn index(&self, vpid: Vpid) -> Result<usize, RestoreError> {
        let found = self.restorers.iter().position(|restorer| restorer.vpid == vpid);
        found.ok_or(RestoreError::NoProcess { vpid })
    }
}

impl Processes for Skeleton {
    fn pid(&self, vpid: Vpid) -> Option<Pid> {
        self.restorers.iter().find(|restorer| restorer.vpid == vpid).map(|restorer| restorer.leader.pid())
    }

    fn leader(&mut self, vpid: Vpid) -> Option<&mut dyn RemoteTask> {
        let restorer = self.restorers.iter_mut().find(|restorer| restorer.vpid == vpid)?;
        Some(&mut restorer.leader)
    }
}

impl Drop for Skeleton {
    fn drop(&mut self) {
        // The helper first: init's end waits until every task of the namespace has been reaped.
        self.chooser = None;
        // Init next: the kernel takes the rest of the namespace down with it.
        let pids: Vec<Pid> = self.restorers.iter().flat_map(Restorer::pids).collect();
        pids.iter().copied().for_each(end::kill);
        if let Err(error) = end::await_ends(&pids, self.timeout) {
            tracing::warn!(%error, "a discarded restorer has not ended");
        }
    }
}

/// A helper with an id that no task of a container is likely to have: the first takes the next id of the young
/// namespace, moves the counter to the end, and makes room for the one that stays.
fn start_chooser(init: Pid) -> Result<PidChooser, RestoreError> {
    let failed = |source| RestoreError::ChooseId { vpid: Vpid(0), source };
    let namespace: OwnedFd = File::open(format!("/proc/{init}/ns/pid")).map_err(failed)?.into();
    PidChooser::start(&namespace)
        .and_then(|mut first| first.set_last(highest_id() - HELPER_IDS / 2))
        .map_err(failed)?;
    PidChooser::start(&namespace).map_err(failed)
}

/// `kernel.pid_max`, or its default.
fn highest_id() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(32768)
}
