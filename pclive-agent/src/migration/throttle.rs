//! CPU time taken from a container, so that it writes less.
//!
//! Guard: the limit that was there before is put back, to the letter, when this is dropped or lifted, unless somebody
//! else has changed it meanwhile. Nothing is limited before [`Throttle::limit`]. A cgroup that holds anything but the
//! container's processes is never touched. Only the quota is changed, never its period.
//! Kernel: cgroup v2 `cpu.max`, or `cpu.cfs_quota_us` of the v1 controller (CONFIG_CFS_BANDWIDTH).
//! Fails: an agent that is killed leaves the limit behind, and its successor puts it back ([`undo`]); one that cannot
//! write the file any more says it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::convergence::Step;
use crate::journal::{JournalError, Slowed};

/// What a container keeps in any case, of one CPU: less, and the engine's own calls in it take too long. The kernel hands
/// the quota of a period out in slices of 5 ms (`sched_cfs_bandwidth_slice_us`), to one CPU each.
const LEAST_CPU: f64 = 0.2;
/// Clock ticks a second of `/proc/PID/stat` (USER_HZ, the same on every x86-64 kernel).
const TICKS_PER_SECOND: f64 = 100.0;

/// A container's CPU time cannot be limited.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ThrottleError {
    /// No cgroup with a CPU controller that is the container's alone.
    #[error("cannot find a CPU cgroup that belongs to the container of pid {pid} alone")]
    NoCgroup {
        /// Its init.
        pid: i32,
    },
    /// A file of `/proc` or the cgroup.
    #[error("cannot access {path}")]
    Access {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something else than the kernel's documentation.
    #[error("cannot understand the CPU limit {text:?} in {path}")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// What is to be put back could not be written down first.
    #[error("cannot note the limit that was there before")]
    Note(#[from] JournalError),
}

/// What tells the CPU time that a container has used. A process that has ended has used some, too.
#[derive(Debug)]
enum Meter {
    /// `cpu.stat` of cgroup v2.
    Unified(PathBuf),
    /// `cpuacct.usage` of version 1.
    Accounting(PathBuf),
    /// `cgroup.procs`: what its processes have used, and those that they have waited for.
    Processes(PathBuf),
}

impl Meter {
    /// So far; zero for a container that has gone.
    fn read(&self) -> Duration {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        match self {
            Self::Unified(path) => {
                let text = text(path);
                let used = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
                Duration::from_micros(used.unwrap_or(0))
            }
            Self::Accounting(path) => Duration::from_nanos(text(path).trim_end().parse().unwrap_or(0)),
            Self::Processes(path) => {
                Duration::from_secs_f64(text(path).lines().map(ticks).sum::<u64>() as f64 / TICKS_PER_SECOND)
            }
        }
    }
}

/// The limit of one container's CPU time.
#[derive(Debug)]
pub(super) struct Throttle {
    /// v2 writes the period beside the quota.
    unified: bool,
    period_us: u64,
    /// What was there before, without its line feed, and what this guard has written since.
    slowed: Slowed,
    /// What is there now, by this guard.
    written: Option<String>,
    meter: Meter,
    /// When its use was first looked at, and the CPU time used until then.
    since: (Instant, Duration),
    /// CPUs that it used before it was limited.
    used: Option<f64>,
}

impl Throttle {
    /// Finds what limits the container of this init. Nothing is changed.
    pub(super) fn find(pid: i32) -> Result<Self, ThrottleError> {
        let cgroups = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
        let mounts = read(Path::new("/proc/self/mounts"))?;
        let own = |kind, controller, name: &str| {
            let path = cgroup_of(&cgroups, controller).filter(|path| *path != "/")?;
            let places = mounted(&mounts, kind, controller).into_iter();
            let mut places = places.map(|mount| mount.join(path.trim_start_matches('/')));
            places.find(|directory| directory.join(name).exists() && belongs_to(directory, pid))
        };
        if let Some(directory) = own("cgroup2", "", "cpu.max") {
            let meter = Meter::Unified(directory.join("cpu.stat"));
            return Self::of(directory, true, meter);
        }
        let directory = own("cgroup", "cpu", "cpu.cfs_quota_us").ok_or(ThrottleError::NoCgroup { pid })?;
        let meter = match own("cgroup", "cpuacct", "cpuacct.usage") {
            Some(directory) => Meter::Accounting(directory.join("cpuacct.usage")),
            None => Meter::Processes(directory.join("cgroup.procs")),
        };
        Self::of(directory, false, meter)
    }

    /// The limit of a cgroup.
    fn of(directory: PathBuf, unified: bool, meter: Meter) -> Result<Self, ThrottleError> {
        let file = directory.join(if unified { "cpu.max" } else { "cpu.cfs_quota_us" });
        let before = read(&file)?.trim_end().to_owned();
        let period = if unified {
            before.split(' ').nth(1).unwrap_or_default().to_owned()
        } else {
            read(&directory.join("cpu.cfs_period_us"))?.trim_end().to_owned()
        };
        let unknown = || ThrottleError::Unknown { path: file.clone(), text: before.clone() };
        let period_us = period.parse().ok().filter(|period| *period > 0).ok_or_else(unknown)?;
        let since = (Instant::now(), meter.read());
        let slowed = Slowed { file, before, written: Vec::new() };
        Ok(Self { unified, period_us, slowed, written: None, meter, since, used: None })
    }

    /// Leaves the container this part of the CPU time that it has used so far. Returns the CPUs that it may use. `note`
    /// writes down what a successor would have to put back.
    pub(super) fn limit(
        &mut self,
        step: Step,
        note: impl FnOnce(&Slowed) -> Result<(), JournalError>,
    ) -> Result<f64, ThrottleError> {
        let used = match self.used {
            Some(used) => used,
            None => *self.used.insert(self.measure()),
        };
        let cpus = (used * f64::from(step.percent()) / 100.0).max(LEAST_CPU).min(self.allowed());
        let quota_us = (cpus * self.period_us as f64) as u64;
        let text = if self.unified { format!("{quota_us} {}", self.period_us) } else { quota_us.to_string() };
        self.slowed.written.push(text.clone());
        note(&self.slowed)?;
        write(&self.slowed.file, &text)?;
        // In the kernel's own words, to know them again.
        self.written = Some(read(&self.slowed.file).map_or(text, |now| now.trim_end().to_owned()));
        Ok(cpus)
    }

    /// Puts the old limit back. On `Err` it is tried again when this is dropped.
    pub(super) fn lift(&mut self) -> Result<(), ThrottleError> {
        let Some(written) = &self.written else { return Ok(()) };
        put_back(&self.slowed, |now| now == written)?;
        self.written = None;
        Ok(())
    }

    /// CPUs that the old limit allows.
    fn allowed(&self) -> f64 {
        let quota = self.slowed.before.split(' ').next().and_then(|quota| quota.parse::<u64>().ok());
        quota.map_or(f64::INFINITY, |quota| quota as f64 / self.period_us as f64)
    }

    fn measure(&self) -> f64 {
        let (since, before) = self.since;
        let used = self.meter.read().saturating_sub(before);
        used.as_secs_f64() / since.elapsed().as_secs_f64().max(0.01)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        if let Err(error) = self.lift() {
            let (file, before) = (self.slowed.file.display(), &self.slowed.before);
            tracing::error!(%error, "the container stays slowed down: write {before:?} to {file}");
        }
    }
}

/// Puts back what an agent that was killed has changed. What somebody else has written since stays.
pub(crate) fn undo(slowed: &Slowed) -> Result<(), ThrottleError> {
    let name = slowed.file.file_name().and_then(|name| name.to_str());
    if !matches!(name, Some("cpu.max" | "cpu.cfs_quota_us")) {
        return Err(ThrottleError::Unknown { path: slowed.file.clone(), text: slowed.before.clone() });
    }
    put_back(slowed, |now| now == slowed.before || slowed.written.iter().any(|written| written == now))
}

fn put_back(slowed: &Slowed, ours: impl FnOnce(&str) -> bool) -> Result<(), ThrottleError> {
    match read(&slowed.file) {
        Ok(now) if ours(now.trim_end()) => write(&slowed.file, &slowed.before),
        Ok(now) => {
            let now = now.trim_end();
            tracing::warn!("somebody has changed the container's CPU limit to {now:?}: it stays");
            Ok(())
        }
        // The container has gone, and its limit with it.
        Err(ThrottleError::Access { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, text: &str) -> Result<(), ThrottleError> {
    fs::write(path, text).map_err(|source| ThrottleError::Access { path: path.into(), source })
}

fn read(path: &Path) -> Result<String, ThrottleError> {
    fs::read_to_string(path).map_err(|source| ThrottleError::Access { path: path.into(), source })
}

/// The path in the hierarchy with this controller, "" for cgroup v2 (cgroups(7): `id:controllers:path`).
fn cgroup_of<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

fn mounted(text: &str, kind: &str, controller: &str) -> Vec<PathBuf> {
    let place = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let (place, found, options) = (words.get(1)?, words.get(2)?, words.get(3)?);
        let fits =
            *found == kind && (kind == "cgroup2" || options.split(',').any(|option| option == controller));
        fits.then(|| PathBuf::from(place))
    };
    text.lines().filter_map(place).collect()
}

/// True if every process of the cgroup is in the PID namespace of the container's init, which is not this agent's.
fn belongs_to(directory: &Path, init: i32) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(&init.to_string());
    let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    own.is_some()
        && own != namespace("self")
        && pids.lines().count() > 0
        && pids.lines().all(|pid| namespace(pid) == own)
}

/// CPU time of a process, and of those that it has waited for, in clock ticks.
fn ticks(pid: &str) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // utime, stime, cutime, cstime: fields 14 to 17, the twelfth after the name and on (proc_pid_stat(5)).
    let words = after_name.split(' ').skip(11).take(4).filter_map(|word| word.parse::<u64>().ok());
    words.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    /// A v1 cgroup of the test's own with a process that spins; both end with the value.
    struct Spinning {
        directory: PathBuf,
        child: Child,
        /// Process 1 of the namespace, as this process sees it.
        init: i32,
    }

    impl Spinning {
        /// `None`, said aloud, where there is no v1 CPU controller to use.
        fn start(name: &str) -> Option<Self> {
            Self::start_program(name, "while :; do :; done")
        }

        /// The same with a shell's program.
        fn start_program(name: &str, program: &str) -> Option<Self> {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            let mount = mounted(&mounts, "cgroup", "cpu").pop();
            let directory = mount.map(|mount| mount.join(format!("pclive-{name}-{}", std::process::id())));
            let made = directory.filter(|directory| fs::create_dir(directory).is_ok());
            let Some(directory) = made else {
                assert!(std::env::var_os("CI").is_none(), "no v1 CPU cgroup can be made here");
                eprintln!("not tested: no v1 CPU cgroup can be made here");
                return None;
            };
            let child = Command::new("unshare")
                .args(["--pid", "--fork", "--kill-child=SIGKILL", "sh", "-c", program])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let init = only_child(&child);
            let spinning = Self { directory, child, init };
            fs::write(spinning.directory.join("cgroup.procs"), init.to_string()).unwrap();
            Some(spinning)
        }

        fn quota(&self) -> String {
            fs::read_to_string(self.directory.join("cpu.cfs_quota_us")).unwrap().trim_end().to_owned()
        }

        fn set_quota(&self, quota: &str) {
            fs::write(self.directory.join("cpu.cfs_quota_us"), quota).unwrap();
        }
    }

    impl Drop for Spinning {
        fn drop(&mut self) {
            // `unshare` may not have tied its child's life to its own yet.
            let _ = kill(Pid::from_raw(self.init), Signal::SIGKILL);
            let _ = self.child.kill();
            let _ = self.child.wait();
            let deadline = Instant::now() + Duration::from_secs(10);
            while fs::remove_dir(&self.directory).is_err() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }

    /// The child of `unshare`, once it is there.
    fn only_child(unshare: &Child) -> i32 {
        let path = format!("/proc/{0}/task/{0}/children", unshare.id());
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let children = fs::read_to_string(&path).unwrap_or_default();
            if let Some(pid) = children.split_whitespace().next() {
                return pid.parse().unwrap();
            }
            assert!(Instant::now() < deadline, "unshare has no child");
            std::thread::yield_now();
        }
    }

    fn first() -> Step {
        Step::after(None).unwrap()
    }

    /// Waits until it has used so much that no process which lives can have.
    fn await_use(throttle: &Throttle) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while throttle.meter.read() < throttle.since.1 + Duration::from_millis(400) {
            assert!(Instant::now() < deadline, "{:?} is all that {throttle:?} says", throttle.meter.read());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn untold(_: &Slowed) -> Result<(), JournalError> {
        Ok(())
    }

    #[test]
    fn a_successor_puts_back_what_a_killed_agent_has_left() {
        let Some(spinning) = Spinning::start("successor") else { return };
        spinning.set_quota("90000");
        let mut throttle = Throttle::find(spinning.init).unwrap();
        throttle.used = Some(1.0);
        let mut noted = None;
        for step in [first(), Step::after(Some(first())).unwrap()] {
            throttle
                .limit(step, |slowed| {
                    noted = Some(slowed.clone());
                    Ok(())
                })
                .unwrap();
        }
        std::mem::forget(throttle);
        assert_eq!(spinning.quota(), "25000");
        let noted = noted.unwrap();
        undo(&noted).unwrap();
        assert_eq!(spinning.quota(), "90000");
        spinning.set_quota("77000");
        undo(&noted).unwrap();
        assert_eq!(spinning.quota(), "77000", "somebody else's");
    }

    #[test]
    fn a_note_that_leads_elsewhere_is_refused() {
        let slowed = Slowed { file: "/etc/passwd".into(), before: String::new(), written: Vec::new() };
        assert!(undo(&slowed).is_err());
    }

    #[test]
    fn what_cannot_be_noted_is_not_limited() {
        let Some(spinning) = Spinning::start("note") else { return };
        let mut throttle = Throttle::find(spinning.init).unwrap();
        let path = std::path::PathBuf::from("/full");
        let full = JournalError::Write { path, source: io::ErrorKind::StorageFull.into() };
        assert!(throttle.limit(first(), |_| Err(full)).is_err());
        assert_eq!(spinning.quota(), "-1");
    }

    #[test]
    fn a_container_is_slowed_down_and_its_old_limit_put_back() {
        for before in ["-1", "80000"] {
            let Some(spinning) = Spinning::start("lift") else { return };
            spinning.set_quota(before);
            let mut throttle = Throttle::find(spinning.init).unwrap();
            assert_eq!(spinning.quota(), before, "finding changes nothing");
            throttle.used = Some(1.0);
            assert!((throttle.limit(first(), untold).unwrap() - 0.5).abs() < 1e-9);
            assert_eq!(spinning.quota(), "50000");
            throttle.limit(Step::after(Some(first())).unwrap(), untold).unwrap();
            assert_eq!(spinning.quota(), "25000");
            throttle.lift().unwrap();
            assert_eq!(spinning.quota(), before);
        }
    }

    #[test]
    fn a_throttle_that_is_dropped_puts_the_old_limit_back() {
        let Some(spinning) = Spinning::start("drop") else { return };
        spinning.set_quota("120000");
        let mut throttle = Throttle::find(spinning.init).unwrap();
        throttle.used = Some(2.0);
        // Never more than it was allowed before.
        assert!((throttle.limit(first(), untold).unwrap() - 1.0).abs() < 1e-9);
        drop(throttle);
        assert_eq!(spinning.quota(), "120000");
    }

    #[test]
    fn a_limit_that_somebody_else_has_set_meanwhile_stays() {
        let Some(spinning) = Spinning::start("else") else { return };
        let mut throttle = Throttle::find(spinning.init).unwrap();
        throttle.limit(first(), untold).unwrap();
        spinning.set_quota("33000");
        drop(throttle);
        assert_eq!(spinning.quota(), "33000");
    }

    #[test]
    fn the_use_of_a_spinning_process_is_measured() {
        let Some(spinning) = Spinning::start("measure") else { return };
        let throttle = Throttle::find(spinning.init).unwrap();
        await_use(&throttle);
        assert!(throttle.measure() > 0.01);
    }

    #[test]
    fn the_use_of_processes_that_have_ended_is_measured() {
        let short = "while :; do (i=0; while [ $i -lt 9999 ]; do i=$((i+1)); done); done";
        let Some(spinning) = Spinning::start_program("ended", short) else { return };
        let meter = Meter::Processes(spinning.directory.join("cgroup.procs"));
        await_use(&Throttle::of(spinning.directory.clone(), false, meter).unwrap());
    }

    #[test]
    fn the_use_of_a_cgroup_is_read_from_the_kernels_own_count() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("count");
        fs::write(&file, "usage_usec 1500000\nuser_usec 1200000\nsystem_usec 300000\n").unwrap();
        assert_eq!(Meter::Unified(file.clone()).read(), Duration::from_millis(1500));
        fs::write(&file, "2500000000\n").unwrap();
        assert_eq!(Meter::Accounting(file).read(), Duration::from_millis(2500));
        assert_eq!(Meter::Unified(directory.path().join("gone")).read(), Duration::ZERO);
    }

    #[test]
    fn a_cgroup_that_is_not_the_containers_alone_is_not_touched() {
        let Some(spinning) = Spinning::start("alone") else { return };
        fs::write(spinning.directory.join("cgroup.procs"), spinning.child.id().to_string()).unwrap();
        let error = Throttle::find(spinning.init).unwrap_err();
        assert!(matches!(error, ThrottleError::NoCgroup { .. }), "{error}");
    }

    #[test]
    fn a_unified_limit_is_written_with_its_period() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cpu.max");
        fs::write(&file, "max 50000\n").unwrap();
        let mut throttle =
            Throttle::of(directory.path().into(), true, Meter::Unified(PathBuf::new())).unwrap();
        throttle.used = Some(1.0);
        throttle.limit(first(), untold).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "25000 50000");
        drop(throttle);
        assert_eq!(fs::read_to_string(&file).unwrap(), "max 50000");
    }

    #[test]
    fn hierarchies_are_found_by_controller() {
        let text = "3:cpu,cpuacct:/a:b\n1:name=systemd:/s\n0::/u\n";
        assert_eq!(
            [cgroup_of(text, "cpu"), cgroup_of(text, ""), cgroup_of(text, "pids")],
            [Some("/a:b"), Some("/u"), None]
        );
    }
}
