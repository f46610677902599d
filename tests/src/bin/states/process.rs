//! What belongs to a process as a whole: limits, names, directories, scheduling, and all that `/proc` tells of it.

use std::fs::{read, read_link, read_to_string};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, chdir, getpgrp, getsid};

use crate::{Check, State, calls, same};

pub(crate) const STATES: &[State] = &[
    ("limits", limits),
    ("directory", directory),
    ("names", names),
    ("scheduling", scheduling),
    ("affinity", affinity),
    ("flags", flags),
    ("proc", proc),
];

fn limits() -> Result<Check> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 777, hard)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_STACK, 4 << 20, 64 << 20)?;
    let before = read_to_string("/proc/self/limits")?;
    ensure!(before.contains("777"), "the limit was not taken: {before}");
    Ok(Box::new(move || same("limits", &before, &read_to_string("/proc/self/limits")?)))
}

fn directory() -> Result<Check> {
    let path = "/data/a directory\nwith a line";
    std::fs::create_dir_all(path)?;
    chdir(path)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
    Ok(Box::new(move || {
        same("cwd", &std::path::PathBuf::from(path), &read_link("/proc/self/cwd")?)?;
        let found = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
        same("umask", &0o027, &found.bits())
    }))
}

fn names() -> Result<Check> {
    std::fs::write("/proc/self/comm", "a b) R 1").context("cannot set comm")?;
    let look = || -> Result<_> {
        Ok((
            read("/proc/self/comm")?,
            read("/proc/self/cmdline")?,
            read("/proc/self/environ")?,
            read("/proc/self/auxv")?,
            read_link("/proc/self/exe")?,
            (std::process::id(), getpgrp(), getsid(None)?),
            nix::unistd::gethostname()?,
        ))
    };
    let before = look()?;
    Ok(Box::new(move || same("names", &before, &look()?)))
}

fn scheduling() -> Result<Check> {
    calls::set_nice(5)?;
    calls::set_policy(libc::SCHED_BATCH)?;
    std::fs::write("/proc/self/oom_score_adj", "123").context("cannot set oom_score_adj")?;
    Ok(Box::new(|| {
        same("nice", &5, &calls::nice())?;
        same("policy", &libc::SCHED_BATCH, &calls::policy())?;
        same("oom_score_adj", &"123\n".to_owned(), &read_to_string("/proc/self/oom_score_adj")?)
    }))
}

fn affinity() -> Result<Check> {
    let (this, mut cpus) = (Pid::from_raw(0), CpuSet::new());
    cpus.set(0)?;
    sched_setaffinity(this, &cpus)?;
    Ok(Box::new(move || same("affinity", &cpus, &sched_getaffinity(this)?)))
}

fn flags() -> Result<Check> {
    const GETTERS: [(&str, libc::c_int); 6] = [
        ("dumpable", libc::PR_GET_DUMPABLE),
        ("no_new_privs", libc::PR_GET_NO_NEW_PRIVS),
        ("timer slack", libc::PR_GET_TIMERSLACK),
        ("keepcaps", libc::PR_GET_KEEPCAPS),
        ("thp_disable", libc::PR_GET_THP_DISABLE),
        ("securebits", libc::PR_GET_SECUREBITS),
    ];
    calls::prctl(libc::PR_SET_TIMERSLACK, 60_001)?;
    calls::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)?;
    let look = || GETTERS.map(|(name, option)| (name, calls::prctl(option, 0).ok()));
    let before = look();
    Ok(Box::new(move || same("prctl flags", &before, &look())))
}

/// The lines of `/proc/self/status` that a migration must not change.
fn proc() -> Result<Check> {
    const LINES: [&str; 16] = [
        "Umask:",
        "Tgid:",
        "Pid:",
        "PPid:",
        "Uid:",
        "Gid:",
        "Groups:",
        "Kthread:",
        "SigIgn:",
        "CapInh:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapAmb:",
        "NoNewPrivs:",
        "Seccomp:",
    ];
    let look = || -> Result<Vec<String>> {
        let text = read_to_string("/proc/self/status")?;
        let kept = text.lines().filter(|line| LINES.iter().any(|name| line.starts_with(name)));
        Ok(kept.map(str::to_owned).collect())
    };
    let personality = read_to_string("/proc/self/personality")?;
    let before = look()?;
    Ok(Box::new(move || {
        same("status", &before, &look()?)?;
        same("personality", &personality, &read_to_string("/proc/self/personality")?)
    }))
}
