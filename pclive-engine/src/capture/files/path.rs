//! Regular files, directories and device nodes: carried by their path inside the container.
//!
//! A path is believed only if it leads to the same inode from the container's root. What is on a mount that the
//! container does not have, was deleted, or is hidden below another mount is not found that way.

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, fstat, major, makedev, minor};

use super::description::Description;
use super::refusal::{Refusal, lock, nameless_memory, printable};
use super::scene::{Finding, Sample, Scene};
use super::{FilesError, nameless, pipe};
use crate::model::FileKind;

/// Character devices that have no state: a second opening is as good as the first.
const DEVICES: [(u64, u64, &str); 5] = [
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
];

/// Captures a description whose link is a path.
pub(super) fn capture(
    scene: &Scene<'_>,
    description: &Description,
    sample: &Sample<'_>,
) -> Result<Finding, FilesError> {
    if let Some(refusal) = nameless_memory(sample.target) {
        return Ok(Finding::Refused(refusal));
    }
    if nameless::is_memory(scene, sample) {
        return Ok(nameless::capture(scene, description, sample));
    }
    let opaque = sample.info.flags & libc::O_PATH != 0;
    let file_type = file_type(&sample.stat);
    if !opaque && let Some(refusal) = unsupported(file_type, &sample.stat, sample.target) {
        return Ok(refusal);
    }
    let inside = scene.mounts.contains(sample.info.mount) && leads_to(scene, sample.target, &sample.stat)?;
    if !inside {
        return outside(scene, sample);
    }
    let locked = description.held.iter().find_map(|at| scene.entry(*at).info.lock.as_deref());
    if let Some(line) = locked {
        return Ok(Finding::Refused(lock(line)));
    }
    if !opaque && file_type == SFlag::S_IFIFO {
        return pipe::capture(scene, sample, Some(sample.target.to_vec()));
    }
    Ok(Finding::Carried(carried(sample, sample.target)))
}

fn carried(sample: &Sample<'_>, path: &[u8]) -> FileKind {
    let file_type = file_type(&sample.stat).bits();
    FileKind::Path { path: path.to_vec(), offset: sample.info.pos, file_type }
}

pub(super) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Types that are refused wherever they are.
fn unsupported(file_type: SFlag, stat: &FileStat, target: &[u8]) -> Option<Finding> {
    let name = printable(target);
    if file_type == SFlag::S_IFBLK {
        let refusal = Refusal::new(format!("block device {name}"), "block devices stay with their host");
        return Some(Finding::Refused(refusal));
    }
    if file_type != SFlag::S_IFCHR || device_name(stat).is_some() {
        return None;
    }
    let refusal =
        Refusal::new(format!("device {name}"), "devices stay with their host; stop the program that uses it");
    Some(Finding::Refused(refusal))
}

fn device_name(stat: &FileStat) -> Option<&'static str> {
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    DEVICES.iter().find(|(major, minor, _)| (*major, *minor) == device).map(|(_, _, path)| *path)
}

/// A file that the container's own tree does not show. One of the stateless devices is replaced by the
/// container's node unless it is stdio.
fn outside(scene: &Scene<'_>, sample: &Sample<'_>) -> Result<Finding, FilesError> {
    let name = printable(sample.target);
    let refusal = if sample.stat.st_nlink == 0 {
        let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
        Refusal::new(
            format!("deleted file {name}"),
            "let the application close it, or restart the application",
        )
    } else if scene.mounts.contains(sample.info.mount) {
        Refusal::new(
            format!("file {name}, to which its path does not lead any more"),
            "let the application open it again",
        )
    } else {
        Refusal::new(
            format!("file {name}, which is on no mount of the container"),
            "close the descriptor, or give the container its files by a mount",
        )
    };
    let substitute = match device_name(&sample.stat) {
        Some(path) if file_type(&sample.stat) == SFlag::S_IFCHR => substitute(scene, sample, path)?,
        Some(_) | None => None,
    };
    Ok(Finding::Outside { refusal, substitute })
}

fn substitute(scene: &Scene<'_>, sample: &Sample<'_>, path: &str) -> Result<Option<FileKind>, FilesError> {
    let Some(found) = resolve(scene, path.as_bytes())? else { return Ok(None) };
    let same = file_type(&found) == SFlag::S_IFCHR && found.st_rdev == sample.stat.st_rdev;
    Ok(same.then(|| carried(sample, path.as_bytes())))
}

/// Whether a path leads to this very file.
pub(super) fn leads_to(scene: &Scene<'_>, path: &[u8], stat: &FileStat) -> Result<bool, FilesError> {
    match resolve(scene, path)? {
        Some(found) => Ok((found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino)),
        None => Ok(false),
    }
}

/// `None` if the path leads nowhere.
pub(super) fn resolve(scene: &Scene<'_>, path: &[u8]) -> Result<Option<FileStat>, FilesError> {
    let failed = |source| FilesError::Resolve { path: printable(path), source };
    match scene.root.resolve(path) {
        Ok(file) => fstat(&file).map(Some).map_err(failed),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => Ok(None),
        Err(source) => Err(failed(source)),
    }
}

/// The device numbers that a restored device node may have.
pub fn is_carried_device(device: u64) -> bool {
    DEVICES.iter().any(|(major, minor, _)| makedev(*major, *minor) == device)
}
