//! What processes have open by a path, while the container runs: the destination opens it before the stop.

use std::collections::HashSet;

use super::description::Description;
use super::scene::{Finding, Sample, Scene};
use super::{FilesError, Mode, Table, descriptors, path, terminal};
use crate::memory::Objects;
use crate::model::{FileId, FileKind, OpenFile, OpenFiles, Pid, Vpid};

impl Table {
    /// The files of `processes` that a path leads to. What goes away meanwhile is left out, and so is what cannot be
    /// carried: the final dump looks at everything again.
    pub fn ahead(&self, processes: &[(Pid, Vpid)], objects: &Objects) -> Result<OpenFiles, FilesError> {
        self.look_at(processes, Mode::Check, objects, |scene, descriptions| {
            let mut open = OpenFiles::default();
            for (index, description) in descriptions.iter().enumerate() {
                let found = Mode::Check.forgive(by_path(scene, index, description))?;
                open.files.extend(found.flatten());
            }
            let told: HashSet<FileId> = open.files.iter().map(|file| file.id).collect();
            open.descriptors = scene.holders.iter().map(descriptors).collect();
            open.descriptors.iter_mut().for_each(|(_, own)| own.retain(|own| told.contains(&own.file)));
            Ok(open)
        })
    }
}

fn by_path(
    scene: &Scene<'_>,
    index: usize,
    description: &Description,
) -> Result<Option<OpenFile>, FilesError> {
    let (holder, entry) = description.first(scene.holders);
    let locked = description.held.iter().any(|at| scene.entry(*at).info.lock.is_some());
    if !entry.target.starts_with(b"/") || locked {
        return Ok(None);
    }
    let sample = Sample::look(holder, entry, index)?;
    if terminal::is_terminal(&sample) {
        return Ok(None);
    }
    Ok(match path::capture(scene, description, &sample)? {
        Finding::Carried(FileKind::Path { path, file_type, .. }) => {
            let kind = FileKind::Path { path, offset: 0, file_type };
            Some(OpenFile { id: FileId(index as u32), flags: sample.info.status(), owner: None, kind })
        }
        Finding::Carried(_) | Finding::Outside { .. } | Finding::NotNow(_) | Finding::Refused(_) => None,
    })
}
