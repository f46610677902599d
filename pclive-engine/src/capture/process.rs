//! The small state of a process with its leader thread, in one batch of remote calls.
//!
//! State of the world: the leader is a stopped tracee of the calling OS thread, under `task`; it is left as it was.
//! The other threads are added by [`super::thread::capture`], the descriptors by the part that owns files.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use super::attributes::ProcessAttributesPlan;
use super::failure::{CaptureStateError, TextError, read_file};
use super::limits::LimitsPlan;
use super::mm::{FutureLock, MmPlan};
use super::scheduling::CpuSet;
use super::signals::{self, Actions};
use super::thread::{Frame, Outside, ThreadPlan};
use super::timers::{self, IntervalTimers};
use super::xstate::{self, PermissionPlan};
use crate::model::state::ProcessState;
use crate::model::{Pid, Vpid};
use crate::remote::{Batch, RemoteTask};

/// Captures a process and its leader thread; `descriptors` stays empty and `job_stopped` false.
///
/// `cpus` is what the container may use, read once before the freeze. Errors leave the process as it was;
/// [`CaptureStateError::Unsupported`] names what only shows once a task is stopped.
pub fn capture(
    task: &mut dyn RemoteTask,
    frame: Frame<'_>,
    cpus: &CpuSet,
) -> Result<ProcessState, CaptureStateError> {
    let (pid, vpid) = (task.pid(), task.vpid());
    let mut batch = Batch::new(task);
    let actions = Actions::plan(&mut batch)?;
    let intervals = IntervalTimers::plan(&mut batch)?;
    let limits = LimitsPlan::plan(&mut batch)?;
    let mm = MmPlan::plan(&mut batch);
    let future_lock = FutureLock::plan(&mut batch)?;
    let permission = PermissionPlan::plan(&mut batch)?;
    let attributes = ProcessAttributesPlan::plan(&mut batch)?;
    let leader = ThreadPlan::plan(&mut batch)?;
    let answers = batch.run(task)?;

    // Afterwards: a timer that has expired meanwhile has left its signal.
    let outside = Outside::of(pid, vpid, cpus)?;
    let (umask, shared_pending) = (outside.status.umask, outside.status.shared_pending);
    let attributes = attributes.take(&answers, vpid)?;
    let mut filters = Vec::new();
    let mut thread = leader.take(&answers, task, frame, outside, &mut filters)?;
    let xstate_layout = xstate::layout(&thread.xstate);
    thread.xstate = xstate::pack(&thread.xstate, &xstate_layout);
    Ok(ProcessState {
        vpid,
        mm: mm.take(&answers, pid, vpid)?,
        cwd: directory(pid, vpid)?,
        umask,
        dumpable: attributes.dumpable,
        job_stopped: false,
        child_subreaper: attributes.child_subreaper,
        thp_disable: attributes.thp_disable,
        memory_deny_write_exec: attributes.memory_deny_write_exec,
        memory_merge: attributes.memory_merge,
        lock_future: future_lock.take(&answers, vpid)?,
        coredump_filter: number(pid, "coredump_filter", 16)? as u32,
        oom_score_adj: number(pid, "oom_score_adj", 10)? as i32,
        rlimits: limits.take(&answers, vpid)?,
        actions: actions.take(&answers, vpid)?,
        pending: signals::pending(pid, vpid, true, shared_pending)?,
        interval_timers: intervals.take(&answers, vpid)?,
        posix_timers: timers::posix(task)?,
        seccomp_filters: filters,
        xstate_layout,
        xstate_permission: permission.take(&answers, vpid)?,
        descriptors: Vec::new(),
        threads: vec![thread],
    })
}

/// The current directory, as a path inside the container.
fn directory(pid: Pid, vpid: Vpid) -> Result<Vec<u8>, CaptureStateError> {
    let path = format!("/proc/{pid}/cwd");
    let read = |source| CaptureStateError::Read { path: path.clone(), source };
    let link = std::fs::read_link(&path).map_err(read)?;
    let bytes = link.as_os_str().as_bytes();
    if bytes.ends_with(b" (deleted)") && std::fs::metadata(&path).map_err(read)?.nlink() == 0 {
        return Err(CaptureStateError::Unsupported {
            vpid,
            what: format!("its current directory {} is deleted", link.display()),
            hint: "let the program change to a directory that exists",
        });
    }
    Ok(bytes.to_vec())
}

/// A file of one number.
pub(crate) fn number(pid: Pid, name: &str, radix: u32) -> Result<i64, CaptureStateError> {
    let (path, bytes) = read_file(pid, name)?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    i64::from_str_radix(text, radix)
        .map_err(|_| CaptureStateError::Text { path, source: TextError::Number(text.to_owned()) })
}
