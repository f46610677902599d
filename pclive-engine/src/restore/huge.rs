//! What it means that memory in huge pages cannot be mapped.

use std::error::Error;

use nix::errno::Errno;

use super::RestoreError;
use super::restorer::Restorer;
use crate::memory::layout_diff::{LayoutOp, plan};
use crate::memory::{ObjectStore, huge};
use crate::model::layout::Layout;
use crate::model::{HUGE_PAGE_SIZE, Mapping};

/// Names what is missing, if an error says that there is no memory and the layout still wants more huge pages than the
/// host can give.
pub(super) fn explain(
    error: RestoreError,
    layout: &Layout,
    restorers: &[Restorer],
    objects: &ObjectStore,
) -> RestoreError {
    if !is_out_of_memory(&error) {
        return error;
    }
    let (wanted, here) = (wanted(layout, restorers, objects), huge::available());
    if wanted > here { RestoreError::HugePages { wanted, here } } else { error }
}

fn is_out_of_memory(error: &RestoreError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let errno = error.downcast_ref::<Errno>().copied();
        let of_io = || error.downcast_ref::<std::io::Error>()?.raw_os_error().map(Errno::from_raw);
        if errno.or_else(of_io) == Some(Errno::ENOMEM) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Huge pages that are not mapped here yet: of shared memory, which is counted once, and of processes.
fn wanted(layout: &Layout, restorers: &[Restorer], objects: &ObjectStore) -> u64 {
    let shown =
        |id| restorers.iter().flat_map(|restorer| &restorer.vmas).any(|vma| vma.mapping.object() == Some(id));
    let shared = layout.objects.iter().filter(|object| object.huge);
    let missing = shared.filter(|object| !objects.contains(object.id) || !shown(object.id));
    let mut bytes: u64 = missing.map(|object| object.size).fold(0, u64::saturating_add);
    for process in &layout.processes {
        let before = restorers.iter().find(|restorer| restorer.vpid == process.vpid);
        let steps = plan(before.map_or(&[][..], |restorer| &restorer.vmas), &process.vmas);
        for step in steps {
            if let LayoutOp::Map(vma) = step
                && vma.mapping == Mapping::PrivateHuge
                && !vma.flags.no_reserve
            {
                bytes = bytes.saturating_add(vma.len());
            }
        }
    }
    bytes / HUGE_PAGE_SIZE
}
