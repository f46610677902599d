//! Digests of the copy's memory, as it will be resumed.

use std::collections::BTreeMap;

use super::{Destination, RestoreError};
use crate::memory::contents::{self, Contents, Process, Unwanted};
use crate::model::Vpid;
use crate::remote::RemoteTask;

impl Destination {
    /// After [`Self::restore`]: digests of what the restorers have in memory. Nothing of it is changed.
    pub fn contents(&self, unwanted: Unwanted<'_>) -> Result<Contents, RestoreError> {
        #[cfg(feature = "fault-injection")]
        self.spoil();
        let mut processes: BTreeMap<Vpid, Process> = BTreeMap::new();
        for restorer in &self.skeleton.restorers {
            processes.insert(restorer.vpid, Process::of(restorer.leader.pid(), restorer.pids())?);
        }
        let objects = self.mappings.objects();
        Ok(contents::contents(&self.layout, &processes, &|id| objects.file(id), unwanted)?)
    }

    /// A test wants one byte to be another one.
    #[cfg(feature = "fault-injection")]
    fn spoil(&self) {
        use crate::model::Mapping;
        use crate::sys::process_vm::{self, RemoteRange};
        if !crate::fault::asked("destination-memory", "flip") {
            return;
        }
        let Some(restorer) = self.skeleton.restorers.first() else { return };
        let is_data = |vma: &&crate::model::Vma| {
            vma.mapping == Mapping::PrivateAnonymous && vma.protection.read && vma.protection.write
        };
        let Some(vma) = restorer.vmas.iter().find(is_data) else { return };
        let (pid, range) = (restorer.leader.pid(), RemoteRange { start: vma.start, len: 1 });
        let mut byte = bytes::BytesMut::with_capacity(1);
        let read = process_vm::read_append(pid, &[range], &mut byte);
        let flipped = byte.first().map(|byte| process_vm::write(pid, &[!byte], &[range]));
        tracing::warn!(?read, ?flipped, at = range.start, "a byte of the copy was flipped");
    }
}
