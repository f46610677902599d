//! Real containers for the engine's tests.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::process::{Command, Stdio};

use pclive_engine::model::Pid;

/// A created container that is deleted when the test ends.
pub(crate) struct Created {
    pub(crate) directory: tempfile::TempDir,
    id: String,
}

impl Created {
    /// Creates a container that would run `program` (arguments) if it were started. Its rootfs has busybox as
    /// `/bin/busybox`, `/bin/sh` and `/bin/other`.
    pub(crate) fn new(name: &str, program: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("bundle");
        for part in ["bin", "proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(bundle.join("rootfs").join(part)).unwrap();
        }
        let busybox = bundle.join("rootfs/bin/busybox");
        fs::copy("/bin/busybox", &busybox).expect("busybox-static must be installed");
        fs::copy("/bin/busybox", bundle.join("rootfs/bin/other")).unwrap();
        fs::copy("/bin/busybox", bundle.join("rootfs/bin/sh")).unwrap();
        let made =
            Command::new("runc").arg("spec").current_dir(&bundle).status().expect("runc must be installed");
        assert!(made.success());
        let config = bundle.join("config.json");
        let text = fs::read_to_string(&config).unwrap().replace("\"terminal\": true", "\"terminal\": false");
        let arguments = program.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(",");
        let text = text.replace("\"sh\"", &arguments);
        fs::write(&config, text).unwrap();
        let id = format!("engine-{name}-{}", std::process::id());
        let created = Self { directory, id };
        let output = fs::File::create(created.directory.path().join("output")).unwrap();
        let status = created
            .runc()
            .args(["create", "--bundle"])
            .arg(&bundle)
            .arg(&created.id)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .status()
            .unwrap();
        assert!(status.success(), "{}", fs::read_to_string(created.directory.path().join("output")).unwrap());
        created
    }

    /// runc on this container's state directory.
    pub(crate) fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.path().join("state"));
        command
    }

    /// The container's init, as the host sees it.
    pub(crate) fn init(&self) -> Pid {
        let state = self.runc().args(["state", &self.id]).output().unwrap();
        let text = String::from_utf8(state.stdout).unwrap();
        let pid = text.lines().find_map(|line| line.trim().strip_prefix("\"pid\": ")).unwrap();
        Pid(pid.trim_end_matches(',').parse().unwrap())
    }
}

impl Created {
    /// Starts the program.
    pub(crate) fn start(&self) {
        assert!(self.runc().args(["start", &self.id]).status().unwrap().success());
    }

    /// The lines that the container has printed so far. One that it is about to print is left out: where it lies
    /// across pages of the file, a reader can see a part of it.
    pub(crate) fn output(&self) -> String {
        let mut text = fs::read_to_string(self.directory.path().join("output")).unwrap();
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        text
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        let _ = self.runc().args(["delete", "--force", &self.id]).status();
    }
}
