//! The process tree of a container, read from `/proc` without stopping anything.
//!
//! Tasks come and go while it is read: what has vanished is left out, and the freeze reads until two readings
//! agree. Kernel: `/proc/PID/task/TID/children` (CONFIG_PROC_CHILDREN, Linux 3.5).

use std::collections::HashMap;
use std::io;

use crate::model::{Pid, ThreadLayout, Vpid};
use crate::proc::task_ids::{self, TaskIds, TaskStat};

/// A process of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeProcess {
    /// As the agent sees it.
    pub pid: Pid,
    /// Inside the container.
    pub vpid: Vpid,
    /// Clock ticks since boot.
    pub start_time: u64,
    /// Parent inside the container; 0 for init.
    pub parent: Vpid,
    /// Process group.
    pub pgid: Vpid,
    /// Session.
    pub sid: Vpid,
    /// Device number of its controlling terminal, 0 for none.
    pub terminal: u32,
    /// Wait status of a zombie.
    pub zombie: Option<i32>,
    /// PID namespaces that see it.
    pub depth: usize,
    /// Its tracer as the agent sees it, 0 for none.
    pub tracer: i32,
    /// A signal that ends a remote batch: not handled, not pending, ignored by default.
    pub marker: i32,
    /// Threads, the leader first; empty for a zombie.
    pub threads: Vec<TreeThread>,
}

/// A thread of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeThread {
    /// As the agent sees it.
    pub pid: Pid,
    /// What the destination needs to know.
    pub layout: ThreadLayout,
}

/// The tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The container has ended.
    #[error("the container's init, pid {init}, has ended")]
    Ended {
        /// Its init.
        init: Pid,
    },
    /// `/proc` cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// `/proc` says something that the engine does not understand.
    #[error("cannot understand {path}")]
    Parse {
        /// The file.
        path: String,
    },
}

/// Threads of which is known what they are called inside the container, and that none of them has ended since.
pub(super) type Known = HashMap<Pid, ThreadLayout>;

/// Reads the tree below `init`, parents before children.
pub fn read(init: Pid) -> Result<Vec<TreeProcess>, TreeError> {
    read_knowing(init, &Known::default())
}

/// The same; of threads that are known nothing is asked again.
pub(super) fn read_knowing(init: Pid, threads: &Known) -> Result<Vec<TreeProcess>, TreeError> {
    let mut tree: Vec<TreeProcess> = Vec::new();
    let mut known: HashMap<Pid, Vpid> = HashMap::new();
    let mut next = vec![init];
    while let Some(pid) = next.pop() {
        let Some((process, children)) = process(pid, &known, threads)? else {
            if pid == init {
                return Err(TreeError::Ended { init });
            }
            continue;
        };
        // A task met twice was handed to another parent meanwhile; the first reading stands until the next one.
        if known.insert(pid, process.vpid).is_none() {
            next.extend(children);
            tree.push(process);
        }
    }
    // Depth first is fine for parents before children, but a child that was handed over may come before.
    let mut placed: Vec<TreeProcess> = Vec::with_capacity(tree.len());
    let mut waiting = tree;
    while !waiting.is_empty() {
        let before = waiting.len();
        let has_parent = |p: &TreeProcess| p.pid == init || placed.iter().any(|q| q.vpid == p.parent);
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(has_parent);
        placed.extend(ready);
        waiting = rest;
        if waiting.len() == before {
            // Their parents ended while the tree was read: the next reading finds them elsewhere.
            break;
        }
    }
    Ok(placed)
}

/// Reads one process of the tree once more: its threads as they are now.
pub(super) fn again(old: &TreeProcess, threads: &Known) -> Result<Vec<TreeProcess>, TreeError> {
    let found = process(old.pid, &HashMap::new(), threads)?;
    let same = found.filter(|(process, _)| process.start_time == old.start_time);
    Ok(same.map(|(process, _)| TreeProcess { parent: old.parent, ..process }).into_iter().collect())
}

fn process(
    pid: Pid,
    known: &HashMap<Pid, Vpid>,
    known_threads: &Known,
) -> Result<Option<(TreeProcess, Vec<Pid>)>, TreeError> {
    let Some((ids, stat)) = leader(pid)? else { return Ok(None) };
    let has_ended = matches!(ids.state, b'Z' | b'X');
    let zombie = has_ended.then_some(stat.exit_status);
    let directory = format!("/proc/{pid}/task");
    // Known already, and not always listed: not while another takes its place.
    let mut threads = vec![TreeThread { pid, layout: layout_of(&ids, &stat) }];
    let mut children = children_of(&format!("{directory}/{pid}"))?;
    let Some(entries) = present(&directory, std::fs::read_dir(&directory))? else { return Ok(None) };
    for entry in entries {
        let Some(entry) = present(&directory, entry)? else { break };
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid) else {
            continue;
        };
        if tid == pid {
            continue;
        }
        let path = format!("{directory}/{tid}");
        let layout = match known_threads.get(&tid) {
            Some(layout) => layout.clone(),
            None => match task(&path)? {
                Some((ids, stat)) => layout_of(&ids, &stat),
                None => continue,
            },
        };
        children.extend(children_of(&path)?);
        threads.push(TreeThread { pid: tid, layout });
    }
    threads.sort_by_key(|thread| (thread.pid != pid, thread.layout.vtid));
    // Who executes a program may be in no list while it takes its leader's place; the count has it.
    if has_ended && ids.threads <= 1 {
        threads.clear();
    }
    let process = TreeProcess {
        pid,
        vpid: Vpid(ids.vpid),
        start_time: stat.start_time,
        parent: known.get(&Pid(ids.parent)).copied().unwrap_or(Vpid(0)),
        pgid: Vpid(ids.group),
        sid: Vpid(ids.session),
        terminal: stat.terminal,
        zombie,
        depth: ids.depth,
        tracer: ids.tracer,
        marker: marker(&ids),
        threads,
    };
    Ok(Some((process, children)))
}

/// The first thread of a process. One that was reaped while it was looked at may have left its id to another thread, which
/// executes a program: that one is looked at then.
fn leader(pid: Pid) -> Result<Option<(TaskIds, TaskStat)>, TreeError> {
    const LOOKS: usize = 100;
    for _ in 0..LOOKS {
        match task(&format!("/proc/{pid}"))? {
            Some((ids, _)) if ids.threads == 0 => {}
            found => return Ok(found),
        }
    }
    Ok(None)
}

fn layout_of(ids: &TaskIds, stat: &TaskStat) -> ThreadLayout {
    ThreadLayout { vtid: Vpid(ids.vpid), start_time: stat.start_time }
}

fn task(path: &str) -> Result<Option<(TaskIds, TaskStat)>, TreeError> {
    let (status_path, stat_path) = (format!("{path}/status"), format!("{path}/stat"));
    let Some(status) = present(&status_path, crate::proc::read(&status_path))? else { return Ok(None) };
    let Some(stat) = present(&stat_path, crate::proc::read(&stat_path))? else { return Ok(None) };
    let ids = task_ids::parse_status(&status).ok_or(TreeError::Parse { path: status_path })?;
    let stat = task_ids::parse_stat(&stat).ok_or(TreeError::Parse { path: stat_path })?;
    Ok(Some((ids, stat)))
}

fn children_of(path: &str) -> Result<Vec<Pid>, TreeError> {
    let path = format!("{path}/children");
    let text = present(&path, crate::proc::read(&path))?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    Ok(text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).map(Pid).collect())
}

/// `None` for what has vanished.
fn present<T>(path: &str, result: io::Result<T>) -> Result<Option<T>, TreeError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(source) => Err(TreeError::Read { path: path.into(), source }),
    }
}

/// The first of the signals that are ignored by default which the program neither handles nor is about to get.
fn marker(ids: &TaskIds) -> i32 {
    let candidates = [libc::SIGWINCH, libc::SIGURG, libc::SIGCHLD];
    let free = |signal: &i32| (ids.caught | ids.pending) & (1 << (signal - 1)) == 0;
    candidates.into_iter().find(free).unwrap_or(libc::SIGWINCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_tree_has_this_process_first_with_its_threads() {
        let own = Pid(std::process::id() as i32);
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receive.recv());
        let tree = read(own).unwrap();
        assert_eq!(tree[0].pid, own);
        assert!(tree[0].threads.len() >= 2);
        assert_eq!(tree[0].threads[0].pid, own);
        assert_eq!(tree[0].zombie, None);
        drop(send);
        let _ = thread.join();
    }

    #[test]
    fn unreaped_child_is_a_zombie_with_its_status() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let pid = Pid(child.id() as i32);
        let own = Pid(std::process::id() as i32);
        let deadline = crate::model::Deadline::after(std::time::Duration::from_secs(5));
        let status = loop {
            let tree = read(own).unwrap();
            if let Some(status) = tree.iter().find(|p| p.pid == pid).and_then(|p| p.zombie) {
                break status;
            }
            assert!(!deadline.passed());
        };
        assert_eq!(status, 3 << 8);
        child.wait().unwrap();
    }

    #[test]
    fn ended_container_is_named() {
        assert!(matches!(read(Pid(i32::MAX)), Err(TreeError::Ended { .. })));
    }
}
