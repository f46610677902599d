//! Root file systems made of this machine's programs and the libraries they load.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::output;

/// Directories that programs expect; the rest of a path is made when a file is put there.
const DIRECTORIES: [&str; 12] =
    ["dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/sbin", "var/log", "data"];
/// Debian's merged /usr.
const LINKS: [(&str, &str); 4] =
    [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];
/// Users of a container.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/data:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1000:\n";

/// A directory that is, or will be, the root of a container.
#[derive(Debug)]
pub struct Rootfs {
    root: PathBuf,
}

impl Rootfs {
    /// A root file system without programs. `/data` and `/tmp` may be written by everyone.
    pub fn create(root: &Path) -> Result<Self> {
        for directory in DIRECTORIES {
            make_directory(&root.join(directory))?;
        }
        make_directory(&root.join("usr/lib64"))?;
        for (link, target) in LINKS {
            symlink(target, root.join(link)).with_context(|| format!("cannot make the link /{link}"))?;
        }
        let this = Self { root: root.into() };
        this.file("/etc/passwd", PASSWD)?;
        this.file("/etc/group", GROUP)?;
        for open in ["data", "tmp"] {
            std::fs::set_permissions(root.join(open), std::fs::Permissions::from_mode(0o1777))?;
        }
        Ok(this)
    }

    /// Copies a program of this machine, with its libraries, to the same path.
    pub fn program(&self, program: &Path) -> Result<()> {
        self.program_as(program, program)
    }

    /// Copies a directory with everything in it to the same path, and the libraries of its libraries.
    pub fn directory(&self, directory: &Path) -> Result<()> {
        let entries = std::fs::read_dir(directory);
        for entry in entries.with_context(|| format!("cannot list {}", directory.display()))? {
            let path = entry?.path();
            match path.extension() {
                _ if path.is_dir() => self.directory(&path)?,
                Some(extension) if extension == "so" => self.program(&path)?,
                Some(_) | None => self.copy(&path, &path)?,
            }
        }
        Ok(())
    }

    /// Copies a program to `path` and its libraries to where the loader looks for them.
    pub fn program_as(&self, program: &Path, path: &Path) -> Result<()> {
        self.copy(program, path)?;
        libraries(program)?.iter().try_for_each(|library| self.copy(library, library))
    }

    /// Writes a text file.
    pub fn file(&self, path: &str, text: &str) -> Result<()> {
        let target = self.inside(Path::new(path))?;
        std::fs::write(&target, text).with_context(|| format!("cannot write {}", target.display()))
    }

    /// Makes a FIFO.
    pub fn fifo(&self, path: &str) -> Result<()> {
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        nix::unistd::mkfifo(&self.inside(Path::new(path))?, mode)
            .with_context(|| format!("cannot make {path}"))
    }

    /// Gives a file to a user of the container.
    pub fn give(&self, path: &str, uid: u32) -> Result<()> {
        chown(self.inside(Path::new(path))?, Some(uid), Some(uid))
            .with_context(|| format!("cannot give away {path}"))
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let target = self.inside(to)?;
        if !target.exists() {
            std::fs::copy(from, &target).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        Ok(())
    }

    /// Where `path` of the container is here; its directory exists.
    fn inside(&self, path: &Path) -> Result<PathBuf> {
        let target = self.root.join(path.strip_prefix("/").unwrap_or(path));
        target.parent().map_or(Ok(()), make_directory)?;
        Ok(target)
    }
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

/// The shared libraries of a program, loader included; none for a static one.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let listed = match output(Command::new("ldd").arg(program)) {
        Ok(text) => text,
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => String::new(),
        Err(error) => return Err(error),
    };
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}
