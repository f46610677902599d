//! OCI bundles: what runs in a container, and its `config.json` on each host.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command::{installed, output, workspace_binary};
use crate::rootfs::Rootfs;

/// Most descriptors that a container may ask for: the harness may not raise hard limits.
const DESCRIPTORS: u64 = 20_000;

/// What is to run in a container.
#[derive(Debug, Clone)]
pub struct Bundle {
    name: String,
    arguments: Vec<String>,
    programs: Vec<String>,
    programs_at: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    own_programs: Vec<String>,
    files: Vec<(String, String)>,
    fifos: Vec<String>,
    uid: u32,
    separate_rootfs: bool,
    network: Option<String>,
    huge_pages: bool,
    annotations: Vec<(String, String)>,
}

impl Bundle {
    /// A container called `name` that will run `arguments` (the first is a path inside it).
    pub fn new(name: &str, arguments: &[&str]) -> Self {
        Self {
            name: name.into(),
            arguments: arguments.iter().map(|&word| word.into()).collect(),
            programs: Vec::new(),
            programs_at: Vec::new(),
            directories: Vec::new(),
            own_programs: Vec::new(),
            files: Vec::new(),
            fifos: Vec::new(),
            uid: 0,
            separate_rootfs: false,
            network: None,
            huge_pages: false,
            annotations: Vec::new(),
        }
    }

    /// Adds an installed program of this machine, at the path that it has here.
    pub fn program(mut self, name: &str) -> Self {
        self.programs.push(name.into());
        self
    }

    /// Adds an installed program by its path, which it keeps.
    pub fn program_at(mut self, path: &Path) -> Self {
        self.programs_at.push(path.into());
        self
    }

    /// Adds a directory of this machine with everything in it, at the path that it has here; what is in it may be
    /// libraries, whose own are added too.
    pub fn directory(mut self, path: &Path) -> Self {
        self.directories.push(path.into());
        self
    }

    /// Adds a binary of this workspace as `/usr/bin/NAME`.
    pub fn own_program(mut self, name: &str) -> Self {
        self.own_programs.push(name.into());
        self
    }

    /// Adds a text file.
    pub fn file(mut self, path: &str, text: &str) -> Self {
        self.files.push((path.into(), text.into()));
        self
    }

    /// Adds a FIFO.
    pub fn fifo(mut self, path: &str) -> Self {
        self.fifos.push(path.into());
        self
    }

    /// Runs it as this user; default root with the runtime's few capabilities.
    pub fn user(mut self, uid: u32) -> Self {
        self.uid = uid;
        self
    }

    /// Gives each host its own copy of the root file system; only `/data` is on storage that the hosts share.
    pub fn separate_rootfs(mut self) -> Self {
        self.separate_rootfs = true;
        self
    }

    /// Runs it in the network `name` of its host ([`crate::Host::network`]), as platforms do that make networks themselves.
    pub fn network(mut self, name: &str) -> Self {
        self.network = Some(name.into());
        self
    }

    /// Lets it use huge pages of every kind: a hugetlbfs at `/dev/hugepages`, and what segments of them need.
    pub fn huge_pages(mut self) -> Self {
        self.huge_pages = true;
        self
    }

    /// Adds an annotation, for the runtime.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.into(), value.into()));
        self
    }

    /// The container's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes the bundle for one host into `directory`; containers of that host live below `cgroup`.
    ///
    /// `shared` is where hosts that share storage have the root file system; it is made when it is not there.
    pub fn write(&self, directory: &Path, shared: &Path, cgroup: &str) -> Result<()> {
        let root = if self.separate_rootfs { directory.join("rootfs") } else { shared.join(&self.name) };
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        if !root.exists() {
            self.fill(&root)?;
        }
        let spec = directory.join("config.json");
        output(Command::new("runc").arg("spec").arg("--bundle").arg(directory))?;
        let text = std::fs::read_to_string(&spec).context("cannot read what `runc spec` wrote")?;
        let mut config: Value = serde_json::from_str(&text).context("cannot parse what `runc spec` wrote")?;
        self.adjust(&mut config, &root, cgroup);
        if self.separate_rootfs {
            let data = shared.join(format!("{}-data", self.name));
            std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
            let mounts = config["mounts"].as_array_mut().context("`runc spec` wrote no mounts")?;
            mounts.push(
                json!({ "destination": "/data", "type": "bind", "source": data, "options": ["rbind", "rw"] }),
            );
        }
        std::fs::write(&spec, serde_json::to_vec_pretty(&config)?).context("cannot write config.json")
    }

    fn fill(&self, root: &Path) -> Result<()> {
        let rootfs = Rootfs::create(root)?;
        for program in &self.programs {
            let path = installed(program).with_context(|| format!("{program} is not installed"))?;
            rootfs.program(&path)?;
        }
        self.programs_at.iter().try_for_each(|path| rootfs.program(path))?;
        self.directories.iter().try_for_each(|path| rootfs.directory(path))?;
        for program in &self.own_programs {
            rootfs.program_as(&workspace_binary(program)?, &PathBuf::from("/usr/bin").join(program))?;
        }
        for path in &self.fifos {
            rootfs.fifo(path)?;
        }
        for (path, text) in &self.files {
            rootfs.file(path, text)?;
            rootfs.give(path, self.uid)?;
        }
        Ok(())
    }

    fn adjust(&self, config: &mut Value, root: &Path, cgroup: &str) {
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(self.arguments);
        config["process"]["cwd"] = json!("/data");
        config["process"]["user"] = json!({ "uid": self.uid, "gid": self.uid });
        config["process"]["rlimits"] =
            json!([{ "type": "RLIMIT_NOFILE", "hard": DESCRIPTORS, "soft": DESCRIPTORS }]);
        config["root"] = json!({ "path": root, "readonly": false });
        config["hostname"] = json!(self.name);
        if let Some(name) = &self.network {
            let namespaces = config["linux"]["namespaces"].as_array_mut();
            let network = namespaces.into_iter().flatten().find(|namespace| namespace["type"] == "network");
            network.into_iter().for_each(|network| network["path"] = json!(format!("/run/netns/{name}")));
        }
        if self.huge_pages {
            let mount = json!({ "destination": "/dev/hugepages", "type": "hugetlbfs", "source": "hugetlbfs",
                "options": ["pagesize=2M"] });
            config["mounts"].as_array_mut().into_iter().for_each(|mounts| mounts.push(mount.clone()));
            for set in ["bounding", "effective", "permitted"] {
                let set = config["process"]["capabilities"][set].as_array_mut();
                set.into_iter().for_each(|set| set.push(json!("CAP_IPC_LOCK")));
            }
        }
        for (key, value) in &self.annotations {
            config["annotations"][key] = json!(value);
        }
        config["linux"]["cgroupsPath"] = json!(format!("{cgroup}/{}", self.name));
    }
}
