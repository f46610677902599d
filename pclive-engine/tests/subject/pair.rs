//! A process with private memory and a copy of it, from round to round.

use std::io::Write;

use pclive_engine::capture::SinkError;
use pclive_engine::memory::layout_diff::plan;
use pclive_engine::memory::{AddressSpace, Filler, MemoryError, Objects, Staging, StagingError};
use pclive_engine::model::{Batch, Layout, ProcessLayout, Vma, Vpid};
use pclive_engine::remote::RemoteTask;

use super::{ARENA, PAGE, Subject};

/// A process, its copy, and what lies between them.
pub(crate) struct Pair {
    pub(crate) source: Subject,
    pub(crate) space: AddressSpace,
    pub(crate) copy: Subject,
    pub(crate) filler: Filler,
    pub(crate) vmas: Vec<Vma>,
    pub(crate) file: tempfile::NamedTempFile,
    /// Where batches wait, if they do.
    pub(crate) staging: Option<Staging>,
    /// How many batches are put in place between two that arrive.
    pub(crate) slices: usize,
}

/// Puts a batch in place as the engine does.
fn put(filler: &mut Filler, copy: &mut Subject, batch: &Batch) {
    let lifted = filler.lift(batch).unwrap().calls();
    assert!(copy.task.run(&lifted).unwrap().iter().all(|result| *result == 0));
    let calls = filler.fill(batch).unwrap().calls();
    assert!(copy.task.run(&calls).unwrap().iter().all(|result| *result == 0));
}

impl Pair {
    pub(crate) fn start() -> Self {
        let mut source = Subject::start();
        let copy = Subject::start();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let contents: Vec<u8> = (0..40 * PAGE).map(|at| (at / 7 + at / PAGE) as u8).collect();
        file.write_all(&contents).unwrap();
        let (space, filler) = (source.track(), Filler::new(copy.pid()));
        Self { source, space, copy, filler, vmas: Vec::new(), file, staging: None, slices: 0 }
    }

    /// A pair whose batches wait until their round is whole, and are then put in place while the next one arrives.
    pub(crate) fn pipelined(slices: usize) -> Self {
        Self { staging: Some(Staging::new(1 << 30).unwrap()), slices, ..Self::start() }
    }

    /// The mappings as a layout of one process.
    fn layout(&self) -> Layout {
        let process = ProcessLayout {
            vpid: self.space.vpid(),
            start_time: 1,
            parent: Vpid(0),
            pgid: Vpid(1),
            sid: Vpid(1),
            terminal: None,
            zombie: None,
            generation: 1,
            exe: Vec::new(),
            threads: Vec::new(),
            vmas: self.vmas.clone(),
            vdso: Default::default(),
        };
        Layout { processes: vec![process], ..Layout::default() }
    }

    /// Puts everything in place that waits.
    pub(crate) fn settle(&mut self) {
        let Some(staging) = &mut self.staging else { return };
        let (filler, copy) = (&mut self.filler, &mut self.copy);
        let put = &mut |batch: &Batch| -> Result<(), StagingError> {
            put(filler, copy, batch);
            Ok(())
        };
        staging.apply(put).unwrap();
        assert_eq!(staging.staged_bytes(), 0);
    }

    /// One round; the sink fails after `patience` batches. Returns what was handed over.
    pub(crate) fn round(&mut self, patience: usize) -> (Vec<Batch>, Result<(), MemoryError>) {
        let vmas = self.source.vmas(&mut Objects::new());
        self.copy.follow(&plan(&self.vmas, &vmas));
        self.filler.set_layout(&vmas).unwrap();
        self.vmas = vmas;
        let layout = self.layout();
        if let Some(staging) = &mut self.staging {
            staging.follow(&layout).unwrap();
        }
        let mut batches = Vec::new();
        let (filler, copy, staging) = (&mut self.filler, &mut self.copy, &mut self.staging);
        let result = self.space.round(&self.vmas, 5 * PAGE as usize, &mut |batch| {
            if batches.len() == patience {
                return Err(SinkError { reason: "the test's sink is full".into() });
            }
            match staging {
                None => put(filler, copy, &batch),
                Some(staging) => {
                    staging.stage(&batch).unwrap();
                    for _ in 0..self.slices {
                        let place = &mut |batch: &Batch| -> Result<(), StagingError> {
                            put(filler, copy, batch);
                            Ok(())
                        };
                        staging.apply_next(place).unwrap();
                    }
                }
            }
            batches.push(batch);
            Ok(())
        });
        if let (Some(staging), Ok(_)) = (&mut self.staging, &result) {
            staging.seal();
        }
        (batches, result.map(drop))
    }

    /// A round that must succeed.
    pub(crate) fn complete_round(&mut self) -> Vec<Batch> {
        let (batches, result) = self.round(usize::MAX);
        result.unwrap();
        batches
    }

    /// Every page of the arena is the same in both.
    pub(crate) fn assert_same(&self, pages: u64) {
        self.assert_same_from(ARENA, pages);
    }

    /// So many pages from an address on are the same in both.
    pub(crate) fn assert_same_from(&self, start: u64, pages: u64) {
        for page in 0..pages {
            let at = start + page * PAGE;
            let (ours, theirs) = (self.source.page(at), self.copy.page(at));
            assert!(ours == theirs, "page {page}: {:x?} and {:x?}", head(&ours), head(&theirs));
        }
    }
}

fn head(page: &Option<Vec<u8>>) -> Option<&[u8]> {
    page.as_deref().map(|page| &page[..16])
}
