//! Controlling terminals of the skeleton's sessions.
//!
//! A process inherits its terminal at birth, only a session leader can get one, and a session whose leader ends or
//! gives its terminal up loses it. So leaders come first; whoever inherited a terminal that it should not have (it
//! was born before its leader took it, or has given it up) drops it after all births.

use super::RestoreError;
use super::skeleton::Skeleton;
use super::terminals;
use crate::model::{FileKind, OpenFile, ProcessLayout, Vpid};
use crate::proc::root::ContainerRoot;
use crate::remote::RemoteTask;

impl Skeleton {
    /// Before births: session leaders that are there give up terminals that they no longer have, then take new ones.
    pub(super) fn change_terminals(&mut self, live: &[&ProcessLayout]) -> Result<(), RestoreError> {
        let mut takes = Vec::new();
        for process in live.iter().filter(|process| process.sid == process.vpid) {
            let Ok(at) = self.index(process.vpid) else { continue };
            let restorer = &self.restorers[at];
            if restorer.sid == process.vpid && restorer.terminal != process.terminal {
                self.give_terminal_up(at)?;
                takes.push((at, process.terminal));
            }
        }
        takes.into_iter().try_for_each(|(at, terminal)| self.take_terminal(at, terminal))
    }

    /// After births: processes without a terminal drop the one that they have inherited.
    pub(super) fn drop_terminals(&mut self, live: &[&ProcessLayout]) -> Result<(), RestoreError> {
        for process in live {
            let at = self.index(process.vpid)?;
            if process.terminal.is_none() {
                self.give_terminal_up(at)?;
            } else if self.restorers[at].terminal != process.terminal {
                return Err(RestoreError::Terminal { vpid: process.vpid });
            }
        }
        Ok(())
    }

    /// Lets a session's leader, which has no terminal, take this one.
    pub(super) fn take_terminal(&mut self, at: usize, terminal: Option<u32>) -> Result<(), RestoreError> {
        let Some(number) = terminal else { return Ok(()) };
        let init = self.restorers[0].leader.pid();
        let root = ContainerRoot::open(init).map_err(|source| RestoreError::Root { pid: init, source })?;
        let ends = self.terminals.obtain(number, &root)?;
        terminals::take(&mut self.restorers[at].leader, ends)?;
        self.restorers[at].terminal = terminal;
        Ok(())
    }

    /// A session whose leader has ended has no terminal.
    pub(super) fn forget_terminal_of(&mut self, session: Vpid) {
        self.restorers.iter_mut().filter(|r| r.sid == session).for_each(|r| r.terminal = None);
    }

    /// Sets the foreground groups of the sessions that the terminals among `files` control.
    pub(super) fn set_foregrounds(&mut self, files: &[OpenFile]) -> Result<(), RestoreError> {
        for file in files {
            let FileKind::Master(told) = &file.kind else { continue };
            let Some(session) = told.session else { continue };
            let at = self.index(session.leader)?;
            let restorer = &mut self.restorers[at];
            let ends = self.terminals.get(told.number).filter(|_| restorer.terminal == Some(told.number));
            let ends = ends.ok_or(RestoreError::Terminal { vpid: session.leader })?;
            terminals::set_foreground(&mut restorer.leader, ends, session)?;
        }
        Ok(())
    }

    fn give_terminal_up(&mut self, at: usize) -> Result<(), RestoreError> {
        let restorer = &mut self.restorers[at];
        let Some(number) = restorer.terminal.take() else { return Ok(()) };
        let ends = self.terminals.get(number).ok_or(RestoreError::Terminal { vpid: restorer.vpid })?;
        terminals::give_up(&mut restorer.leader, ends)?;
        let vpid = restorer.vpid;
        if restorer.sid == vpid {
            self.forget_terminal_of(vpid);
        }
        Ok(())
    }
}
