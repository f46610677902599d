//! The pages that a process has of its own: of anonymous memory what is populated, of a private mapping of a file what is
//! not the file's.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::Process;
use super::piece::{Behind, Piece, cut};
use crate::memory::error::{MemoryError, errno};
use crate::memory::ranges::RangeSet;
use crate::memory::tracker::{POPULATED, scan};
use crate::model::{Mapping, Pid, Vma};
use crate::proc::maps::{MapsEntry, parse_maps};
use crate::sys::pagemap::{self, Query, Region, category as is};

const REGIONS: usize = 4096;

/// What a process has of its own.
pub(super) struct Own {
    pid: Pid,
    pages: RangeSet,
    /// The kernel's list, for the files behind mappings; empty where no page of such a mapping is of interest.
    maps: Vec<MapsEntry>,
}

impl Own {
    /// Looks through the private mappings of a stopped process, ascending.
    pub(super) fn find(pid: Pid, mappings: &[&Vma]) -> Result<Self, MemoryError> {
        let failed = |name: &str, error: &std::io::Error| MemoryError::Proc {
            pid,
            name: name.into(),
            source: errno(error),
        };
        let open = File::open(format!("/proc/{pid}/pagemap"));
        let pagemap = open.map_err(|error| failed("pagemap", &error))?;
        let mut regions = vec![Region::default(); REGIONS];
        let guard = guard(&pagemap, &mut regions);
        let (mut pages, mut of_files) = (RangeSet::new(), false);
        for vma in mappings {
            let file = match &vma.mapping {
                Mapping::PrivateFile(_) | Mapping::PrivateObject { .. } => is::FILE,
                Mapping::PrivateAnonymous
                | Mapping::PrivateHuge
                | Mapping::SharedFile { .. }
                | Mapping::SharedObject { .. } => 0,
            };
            let without = guard | file;
            let query = Query { inverted: without, all_of: without, any_of: POPULATED, ..Query::default() };
            let found = &mut |region: &Region| {
                of_files |= file != 0;
                pages.insert(region.start, region.end);
            };
            scan(pid, pagemap.as_fd(), &mut regions, (vma.start, vma.end), query, found)?;
        }
        let maps = if of_files {
            let text =
                crate::proc::read(format!("/proc/{pid}/maps")).map_err(|error| failed("maps", &error))?;
            parse_maps(&text).map_err(|error| failed("maps", &std::io::Error::other(error)))?
        } else {
            Vec::new()
        };
        Ok(Self { pid, pages, maps })
    }

    /// Cuts the own pages of a mapping into pieces.
    pub(super) fn pieces(
        &self,
        index: usize,
        vma: &Vma,
        process: &Process,
        pieces: &mut Vec<Piece<'_>>,
    ) -> Result<(), MemoryError> {
        let masked = process.not_compared.iter().filter(|(start, end)| *start < vma.end && *end > vma.start);
        let masked: Arc<[(u64, u64)]> = masked.copied().collect();
        let mut add = |from: u64, to: u64, behind: &Behind| {
            let piece = |runs| Piece::of_process(index, self.pid, behind.clone(), masked.clone(), runs);
            cut(self.pages.within(from, to), |runs| pieces.push(piece(runs)));
        };
        match &vma.mapping {
            Mapping::PrivateFile(_) | Mapping::PrivateObject { .. } => {
                let within = self.maps.iter().filter(|map| map.start < vma.end && map.end > vma.start);
                for map in within {
                    let (from, to) = (map.start.max(vma.start), map.end.min(vma.end));
                    if self.pages.within(from, to).next().is_some() {
                        add(from, to, &self.behind(map)?);
                    }
                }
            }
            Mapping::PrivateAnonymous
            | Mapping::PrivateHuge
            | Mapping::SharedFile { .. }
            | Mapping::SharedObject { .. } => {
                add(vma.start, vma.end, &Behind::Zeros);
            }
        }
        Ok(())
    }

    /// The file behind a mapping of the kernel's list. What is no regular file (`/dev/zero`) shows zeros.
    fn behind(&self, map: &MapsEntry) -> Result<Behind, MemoryError> {
        let name = format!("map_files/{:x}-{:x}", map.start, map.end);
        let failed = |error: std::io::Error| MemoryError::Proc {
            pid: self.pid,
            name: name.clone(),
            source: errno(&error),
        };
        let file = File::open(format!("/proc/{}/{name}", self.pid)).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Ok(Behind::Zeros);
        }
        Ok(Behind::File { file: Arc::new(file), start: map.start, offset: map.offset })
    }
}

/// [`is::GUARD`] where the kernel knows guard pages, else 0.
fn guard(pagemap: &File, regions: &mut [Region]) -> u64 {
    let query = Query { any_of: is::GUARD, ..Query::default() };
    if pagemap::scan(pagemap.as_fd(), 0, 0, query, regions).is_ok() { is::GUARD } else { 0 }
}
