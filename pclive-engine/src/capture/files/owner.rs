//! Who gets SIGIO (fcntl(2), `F_SETOWN_EX`, `F_SETSIG`).

use std::collections::HashMap;

use nix::errno::Errno;

use super::FilesError;
use super::holder::Holder;
use super::scene::Sample;
use crate::model::file::Owner;
use crate::model::{Pid, Vpid};
use crate::sys::fcntl;

/// Ids of the agent's PID namespace -> ids inside the container.
#[derive(Debug)]
pub(super) struct Owners {
    processes: HashMap<Pid, Vpid>,
}

impl Owners {
    pub(super) fn new(holders: &[Holder]) -> Self {
        Self { processes: holders.iter().map(|holder| (holder.pid, holder.vpid)).collect() }
    }

    /// The owner of a description; `None` if there is none (or it is gone) and the signal is the default.
    pub(super) fn find(&self, sample: &Sample<'_>) -> Result<Option<Owner>, FilesError> {
        if sample.info.flags & libc::O_PATH != 0 {
            return Ok(None);
        }
        let failed = |source| FilesError::Owner { inode: sample.info.inode, source };
        let owner = fcntl::owner(sample).map_err(failed)?;
        let signal = fcntl::signal(sample).map_err(failed)?;
        let id = self.translate(owner.kind, Pid(owner.id));
        Ok((id.0 != 0 || signal != 0).then_some(Owner { kind: owner.kind, id, signal }))
    }

    /// 0 for an id that nobody in the container has: no signal is sent then, as at the source.
    fn translate(&self, kind: i32, id: Pid) -> Vpid {
        const GROUP: i32 = 2;
        if id.0 <= 0 {
            return Vpid(0);
        }
        if let Some(vpid) = self.processes.get(&id) {
            return *vpid;
        }
        match kind {
            GROUP => self.group(id),
            _ => self.thread(id),
        }
    }

    /// The process of an id of the agent's.
    pub(super) fn process(&self, pid: Pid) -> Option<Vpid> {
        self.processes.get(&pid).copied()
    }

    fn thread(&self, id: Pid) -> Vpid {
        match inner_id(id, "Tgid:") {
            Some(leader) if self.processes.contains_key(&Pid(leader.0)) => {
                inner_id(id, "NSpid:").unwrap_or(Vpid(0))
            }
            Some(_) | None => Vpid(0),
        }
    }

    /// A process group whose leader is gone: any member knows its number.
    pub(super) fn group(&self, group: Pid) -> Vpid {
        let member = |pid: &&Pid| nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid.0)));
        self.processes
            .keys()
            .find(|pid| member(pid) == Ok::<_, Errno>(nix::unistd::Pid::from_raw(group.0)))
            .and_then(|pid| inner_id(*pid, "NSpgid:"))
            .unwrap_or(Vpid(0))
    }
}

/// The last id of a line of `/proc/PID/status` (also of a thread); the last is the innermost namespace's.
pub(super) fn inner_id(pid: Pid, key: &str) -> Option<Vpid> {
    let text = crate::proc::read(format!("/proc/{pid}/status")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next_back()?.parse().ok().map(Vpid)
}
