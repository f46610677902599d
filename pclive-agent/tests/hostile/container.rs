//! A container with a little of everything, whose heart can be heard from outside.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = "
import mmap, os, select, socket, threading, time
beat = os.open('/data/beat', os.O_RDWR | os.O_CREAT)
shm = os.open('/dev/shm/file', os.O_RDWR | os.O_CREAT)
os.ftruncate(shm, 65536)
shared = mmap.mmap(shm, 65536)
shared[:5] = b'hello'
reader, writer = os.pipe()
os.write(writer, b'waits')
pair = socket.socketpair()
listener = socket.socket()
listener.bind(('0.0.0.0', 7000))
listener.listen()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('127.0.0.1', 7001))
watch = select.epoll()
watch.register(reader, select.EPOLLIN)
threading.Thread(target=threading.Event().wait, daemon=True).start()
count = 0
while True:
    count += 1
    os.pwrite(beat, b'%20d' % count, 0)
    time.sleep(0.01)
";
/// Tasks that the container may have.
pub(crate) const MOST_TASKS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes note of a child's end. Its stops belong to the thread of this process that traces it (the source's): waiting for
/// it would take them, so it is looked at only.
fn reap(init: Pid) {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    while let Ok(status) = waitid(Id::Pid(init), look | WaitPidFlag::WNOWAIT) {
        if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
            let _ = waitid(Id::Pid(init), look);
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A bundle on both hosts and the container that was made of it on one.
pub(crate) struct Container {
    pub(crate) name: String,
    roots: [PathBuf; 2],
    pub(crate) bundles: [PathBuf; 2],
    directory: TempDir,
}

impl Container {
    /// Runs it by the runtime whose containers are in `roots[0]`.
    pub(crate) fn start(name: &str, roots: [PathBuf; 2]) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let directory = tempfile::tempdir().unwrap();
        let bundles = ["a", "b"].map(|host| directory.path().join(host));
        let container = Self { name, roots, bundles, directory };
        container.make_files();
        for (host, bundle) in ["a", "b"].into_iter().zip(&container.bundles) {
            container.write(host, bundle);
        }
        let bundle = container.bundles[0].to_str().unwrap().to_owned();
        let pid_file = container.directory.path().join("pid");
        let pid_words = ["--pid-file", pid_file.to_str().unwrap()];
        let words = [&["run", "--detach", "--bundle", &bundle][..], &pid_words, &[&container.name]].concat();
        container.runc(0, &words);
        let init = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
        // Its init is a child of this process, which takes in orphans.
        std::thread::spawn(move || reap(Pid::from_raw(init)));
        container.await_beat();
        container
    }

    /// What an attacker who has been in the container may have left there.
    fn make_files(&self) {
        let data = self.directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", data.join("escape")).unwrap();
        std::os::unix::fs::symlink("/", data.join("top")).unwrap();
        nix::unistd::mkfifo(&data.join("fifo"), Mode::S_IRWXU).unwrap();
        // The memory of the machine.
        mknod(&data.join("mem"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 1)).unwrap();
    }

    fn write(&self, host: &str, bundle: &Path) {
        let rootfs = self.directory.path().join("rootfs");
        for directory in ["dev", "proc", "sys", "usr", "data", "tmp"] {
            std::fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        for name in ["bin", "lib", "lib64"] {
            let _ = std::os::unix::fs::symlink(format!("usr/{name}"), rootfs.join(name));
        }
        std::fs::create_dir(bundle).unwrap();
        let made = Command::new("runc").arg("spec").arg("--bundle").arg(bundle).status().unwrap();
        assert!(made.success());
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/usr/bin/python3", "-I", "-c", PROGRAM]);
        config["root"] = json!({ "path": rootfs, "readonly": true });
        config["linux"]["cgroupsPath"] = json!(format!("/pclive-hostile-{host}-{}", self.name));
        config["linux"]["resources"]["pids"] = json!({ "limit": MOST_TASKS });
        let mounts = config["mounts"].as_array_mut().unwrap();
        let data = self.directory.path().join("data");
        for (source, target, options) in
            [(Path::new("/usr"), "/usr", ["bind", "ro"]), (&data, "/data", ["bind", "rw"])]
        {
            mounts
                .push(json!({ "destination": target, "type": "bind", "source": source, "options": options }));
        }
        std::fs::write(&path, config.to_string()).unwrap();
    }

    fn runc(&self, host: usize, words: &[&str]) {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.roots[host]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success(), "runc {words:?}");
    }

    fn beat(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.directory.path().join("data/beat")).ok()?;
        text.trim().parse().ok()
    }

    /// Waits until the program does something.
    pub(crate) fn await_beat(&self) {
        let (first, began) = (self.beat(), Instant::now());
        while self.beat() == first {
            assert!(began.elapsed() < PATIENCE, "the container does nothing");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// True if the program does nothing for some time in which it would do a lot.
    pub(crate) fn stands_still(&self) -> bool {
        let first = self.beat();
        std::thread::sleep(Duration::from_millis(300));
        self.beat() == first
    }

    /// Whether a host's runtime has it.
    pub(crate) fn is_on(&self, host: usize) -> bool {
        self.roots[host].join(&self.name).exists()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for root in &self.roots {
            let mut command = Command::new("runc");
            command.arg("--root").arg(root).args(["delete", "--force", &self.name]);
            let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}
