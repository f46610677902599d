//! Shared memory objects of the copy that have no path: born, and dressed at the end.
//!
//! Anonymous memory is born in a restorer and then known by the descriptor that `/proc/PID/map_files` gives; a memfd is
//! made by the agent. Owners and seals come last: a sealed memfd can be filled no more.

use std::ffi::CString;
use std::fs::File;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown};

use super::RestoreError;
use super::channel::need;
use super::mappings::MAP_HUGE;
use super::restorer::Restorer;
use super::segments;
use crate::memory::{ObjectStore, errno};
use crate::model::layout::{Layout, ObjectKind, ObjectLayout};
use crate::model::tree::{Ownership, Segment};
use crate::model::{PAGE_SIZE, Pid, Vma};
use crate::remote::{Call, RemoteTask};
use crate::sys::{fcntl, memfd};

/// Maps a fresh shared object, for the moment in which the agent opens it, in a restorer that will map it.
pub(super) fn bear(
    object: &ObjectLayout,
    layout: &Layout,
    restorers: &mut [Restorer],
) -> Result<File, RestoreError> {
    let maps_it = |vma: &Vma| vma.mapping.object() == Some(object.id);
    let user = layout.processes.iter().find(|process| process.vmas.iter().any(maps_it));
    let vpid = user.map(|process| process.vpid).ok_or(RestoreError::NoObject { id: object.id })?;
    let restorer = restorers.iter_mut().find(|restorer| restorer.vpid == vpid);
    let restorer = restorer.ok_or(RestoreError::NoProcess { vpid })?;
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let huge = if object.huge { MAP_HUGE } else { 0 };
    let flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | huge) as u64;
    let size = object.size.next_multiple_of(PAGE_SIZE);
    let map = Call::new(libc::SYS_mmap, &[0, size, protection, flags, u64::MAX, 0]);
    let what = format!("make a shared memory object of {} bytes", object.size);
    let start = need(restorer.vpid, restorer.leader.run(&[map])?[0], &what)?;
    let link = format!("/proc/{}/map_files/{:x}-{:x}", restorer.leader.pid(), start, start + size);
    let opened = File::options().read(true).write(true).open(&link);
    let unmap = Call::new(libc::SYS_munmap, &[start, size]);
    need(restorer.vpid, restorer.leader.run(&[unmap])?[0], "unmap a shared memory object")?;
    opened.map_err(|source| RestoreError::OpenMapped { path: link, source })
}

/// Makes a memfd of the object's size.
pub(super) fn make_memfd(object: &ObjectLayout, name: &[u8]) -> Result<File, RestoreError> {
    let failed = |verb| move |source| RestoreError::Object { verb, id: object.id, source };
    let name = CString::new(name).map_err(|_| Errno::EINVAL);
    let file = name.and_then(|name| memfd::create_sealable(&name, object.huge)).map_err(failed("make"))?;
    file.set_len(object.size).map_err(|error| failed("resize")(errno(&error)))?;
    Ok(file)
}

/// Gives objects their owners and seals; segments too.
pub(super) fn finish(objects: &ObjectStore, layout: &Layout, init: Pid) -> Result<(), RestoreError> {
    for object in &layout.objects {
        let Some(file) = objects.file(object.id) else { continue };
        let failed = |verb| move |source| RestoreError::Object { verb, id: object.id, source };
        match &object.kind {
            ObjectKind::Memfd { owner, seals, .. } => {
                dress(file, *owner).map_err(failed("give away"))?;
                if *seals != 0 {
                    fcntl::add_seals(file, *seals).map_err(failed("seal"))?;
                }
            }
            ObjectKind::Unlinked { owner, .. } => dress(file, *owner).map_err(failed("give away"))?,
            ObjectKind::Anonymous | ObjectKind::File(_) | ObjectKind::TreeFile | ObjectKind::Segment(_) => {}
        }
    }
    let segments: Vec<Segment> =
        layout.objects.iter().filter_map(|object| segment_of(&object.kind)).collect();
    segments::finish(init, &segments)?;
    Ok(())
}

/// The segment that an object is.
pub(super) fn segment_of(kind: &ObjectKind) -> Option<Segment> {
    match kind {
        ObjectKind::Segment(segment) => Some(*segment),
        ObjectKind::Anonymous
        | ObjectKind::File(_)
        | ObjectKind::TreeFile
        | ObjectKind::Unlinked { .. }
        | ObjectKind::Memfd { .. } => None,
    }
}

/// Owner first: a new one takes permission bits away.
fn dress(file: &File, owner: Ownership) -> nix::Result<()> {
    fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    fchmod(file, Mode::from_bits_truncate(owner.mode))
}
