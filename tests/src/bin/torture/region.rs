//! A run of pages that one thread owns, and what each of them must be.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::memory::{self, Address, Backing, Protection};
use super::object::{Object, Sort};
use super::page::{BYTES, Base, Content, FILE_PAGES, HUGE_PAGES, WORDS};
use pclive_tests::random::Random;

/// What a region's pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Private,
    Huge,
    Shared,
    File,
    Object(Sort),
}

impl Kind {
    /// Whether forked children write to the same pages.
    pub(crate) fn is_shared(self) -> bool {
        match self {
            Self::Shared | Self::Object(_) => true,
            Self::Private | Self::Huge | Self::File => false,
        }
    }
}

/// One page: its contents and what may be done with it now.
#[derive(Debug, Clone)]
struct Page {
    content: Content,
    /// The page of the file below it, when there is one.
    below: Option<usize>,
    protection: Protection,
}

/// Mapped pages. Dropping a region unmaps it.
#[derive(Debug)]
pub(crate) struct Region {
    address: Address,
    pages: Vec<Page>,
    kind: Kind,
    /// What its pages are of, and those of what was cut off from it.
    object: Option<Arc<Object>>,
}

/// A byte that is not what it must be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mismatch {
    kind: Kind,
    address: Address,
    page: usize,
    pages: usize,
    word: usize,
    wrong_words: usize,
    expected: u64,
    found: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, address, page, pages, word, wrong_words, expected, found } = self;
        write!(
            f,
            "{kind:?} region at {address:x}, page {page} of {pages}: {wrong_words} words differ, the first is word \
             {word}: {found:016x} instead of {expected:016x}"
        )
    }
}

impl Region {
    /// New memory of `kind`, `pages` long (a view of the file is cut to the file's end, huge pages are whole).
    pub(crate) fn map(kind: Kind, pages: usize, file: &File, random: &mut Random) -> std::io::Result<Self> {
        let first = random.below(FILE_PAGES);
        let (backing, pages) = match kind {
            Kind::Private => (Ok(Backing::Private), pages),
            Kind::Huge => (Ok(Backing::Huge), pages.next_multiple_of(HUGE_PAGES)),
            Kind::Shared => (Ok(Backing::Shared), pages),
            Kind::File => (Ok(Backing::File(file, first)), pages.min(FILE_PAGES - first)),
            Kind::Object(sort) => (Err(sort), pages),
        };
        let (address, object) = match backing {
            Ok(backing) => (memory::map(pages, Protection::Write, backing)?, None),
            Err(sort) => {
                let (address, object) = Object::map(sort, pages, random.next())?;
                (address, Some(Arc::new(object)))
            }
        };
        let page = |number: usize| {
            let below = (kind == Kind::File).then_some(first + number);
            Page { content: fresh(below), below, protection: Protection::Write }
        };
        Ok(Self { address, pages: (0..pages).map(page).collect(), kind, object })
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    fn page(&self, index: usize) -> Address {
        self.address + index * BYTES
    }

    /// Writes a whole page, if it may be written.
    pub(crate) fn rewrite(&mut self, index: usize, seed: u64) {
        let page = self.page(index);
        if self.pages[index].protection == Protection::Write {
            let content = Content::new(Base::Random(seed));
            let mut words = [0; WORDS];
            content.expand(&mut words);
            // SAFETY: the page is this region's and writable.
            unsafe { memory::write(page, &words) };
            self.pages[index].content = content;
        }
    }

    /// Writes one word, if it may be written and the model has room for it; else the whole page.
    pub(crate) fn patch(&mut self, index: usize, random: &mut Random) {
        let (word, value, page) = (random.below(WORDS), random.next(), self.page(index));
        if self.pages[index].protection != Protection::Write {
            return;
        }
        if self.pages[index].content.patch(word, value) {
            // SAFETY: the page is this region's and writable; `word` is below WORDS.
            unsafe { memory::poke(page, word, value) };
        } else {
            self.rewrite(index, value);
        }
    }

    /// Compares a page with what it must be; pages that may not be read are left out. Allocates nothing.
    pub(crate) fn check(&self, index: usize) -> Result<(), Mismatch> {
        if self.pages[index].protection == Protection::Nothing {
            return Ok(());
        }
        let (mut expected, mut found) = ([0; WORDS], [0; WORDS]);
        self.pages[index].content.expand(&mut expected);
        // SAFETY: the page is this region's and readable.
        unsafe { memory::read(self.page(index), &mut found) };
        let differs = |word: &usize| expected[*word] != found[*word];
        match (0..WORDS).find(differs) {
            None => Ok(()),
            Some(word) => Err(Mismatch {
                kind: self.kind,
                address: self.address,
                page: index,
                pages: self.len(),
                word,
                wrong_words: (0..WORDS).filter(differs).count(),
                expected: expected[word],
                found: found[word],
            }),
        }
    }

    /// Of a page that is not mapped any more: no word of it is right.
    fn lost(&self, page: usize) -> Mismatch {
        let mut expected = [0; WORDS];
        self.pages[page].content.expand(&mut expected);
        Mismatch {
            kind: self.kind,
            address: self.address,
            page,
            pages: self.len(),
            word: 0,
            wrong_words: WORDS,
            expected: expected[0],
            found: 0,
        }
    }

    /// Compares every page, those that may not be read included: they are made readable for the moment.
    pub(crate) fn check_all(&mut self) -> Result<(), Mismatch> {
        for index in 0..self.len() {
            let hidden = self.pages[index].protection == Protection::Nothing;
            if hidden && self.protect(index..index + 1, Protection::Read).is_err() {
                // As many mappings as a process may have leave no room for one more; a lost one is no reason.
                if memory::is_mapped(self.page(index)) {
                    continue;
                }
                return Err(self.lost(index));
            }
            self.check(index)?;
            if hidden {
                // It could be changed a moment ago; if it stays readable, the model knows.
                let _ = self.protect(index..index + 1, Protection::Nothing);
            }
        }
        Ok(())
    }

    /// Changes a byte of a writable page and does not tell the model; false when there is none.
    pub(crate) fn corrupt(&mut self) -> bool {
        let Some(index) = self.pages.iter().position(writable) else { return false };
        let (mut words, page) = ([0; WORDS], self.page(index));
        self.pages[index].content.expand(&mut words);
        // SAFETY: the page is this region's and writable.
        unsafe { memory::poke(page, WORDS - 1, words[WORDS - 1] ^ 0x100) };
        true
    }

    /// What a call that is meant for a range works on: whole huge pages.
    fn whole(&self, range: Range<usize>) -> Range<usize> {
        match self.kind {
            Kind::Huge => range.start / HUGE_PAGES * HUGE_PAGES..range.end.next_multiple_of(HUGE_PAGES),
            Kind::Private | Kind::Shared | Kind::File | Kind::Object(_) => range,
        }
    }

    /// Changes what may be done with pages.
    pub(crate) fn protect(&mut self, range: Range<usize>, protection: Protection) -> std::io::Result<()> {
        let range = self.whole(range);
        // SAFETY: the pages are this region's, and the model notes what is allowed.
        unsafe { memory::protect(self.page(range.start), range.len(), protection)? };
        self.pages[range].iter_mut().for_each(|page| page.protection = protection);
        Ok(())
    }

    /// Discards pages: private memory becomes zero or the file again, shared memory stays.
    pub(crate) fn discard(&mut self, range: Range<usize>) -> std::io::Result<()> {
        let range = self.whole(range);
        // SAFETY: the pages are this region's, and the model notes what they become.
        unsafe { memory::advise(self.page(range.start), range.len(), libc::MADV_DONTNEED)? };
        if !self.kind.is_shared() {
            self.pages[range].iter_mut().for_each(|page| page.content = fresh(page.below));
        }
        Ok(())
    }

    /// Punches a hole into shared memory: the pages are zero for everyone.
    pub(crate) fn punch(&mut self, range: Range<usize>) -> std::io::Result<()> {
        if self.kind.is_shared() && self.pages[range.clone()].iter().all(writable) {
            // SAFETY: as for `discard`.
            unsafe { memory::advise(self.page(range.start), range.len(), libc::MADV_REMOVE)? };
            self.pages[range].iter_mut().for_each(|page| page.content = Content::new(Base::Zero));
        }
        Ok(())
    }

    /// Asks for huge pages, or for none; contents stay.
    pub(crate) fn prefer_huge(&mut self, huge: bool) -> std::io::Result<()> {
        if self.kind == Kind::Huge {
            return Ok(());
        }
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: the pages are this region's; the advice leaves contents alone.
        unsafe { memory::advise(self.address, self.len(), advice) }
    }

    /// Unmaps pages; what was behind them becomes a region of its own.
    pub(crate) fn cut(mut self, range: Range<usize>) -> std::io::Result<Vec<Self>> {
        let range = self.whole(range);
        // SAFETY: the pages are this region's, and no region has them afterwards.
        unsafe { memory::unmap(self.page(range.start), range.len())? };
        let (address, kind, object) = (self.page(range.end), self.kind, self.object.clone());
        let tail = self.pages.split_off(range.end);
        self.pages.truncate(range.start);
        let tail = Self { address, pages: tail, kind, object };
        Ok([self, tail].into_iter().filter(|region| region.len() > 0).collect())
    }

    /// Makes the region longer or shorter, and perhaps moves it. What the kernel refuses changes nothing.
    pub(crate) fn resize(&mut self, pages: usize) {
        // Beyond the end of a shared object or of the file there is nothing.
        let pages = if self.kind == Kind::Private { pages } else { pages.min(self.len()) };
        // The kernel does not move a part of huge pages without losing count of them (Linux 6.18).
        if self.kind == Kind::Huge || !self.pages.iter().all(writable) {
            return;
        }
        // SAFETY: the pages are this region's, which takes the new address.
        if let Ok(address) = unsafe { memory::remap(self.address, self.len(), pages, None) } {
            self.address = address;
            let new = Page { content: fresh(None), below: None, protection: Protection::Write };
            self.pages.resize(pages, new);
        }
    }

    /// Moves the region elsewhere: in one go but for its last page, or page by page.
    ///
    /// The kernel moves a mapping in one go, not several, and whether neighbours are one mapping is its own choice.
    /// A move that also shrinks is refused as a whole then; one that does not may move the first of them and refuse
    /// the others since Linux 6.17.
    pub(crate) fn relocate(&mut self) -> std::io::Result<()> {
        if self.kind == Kind::Huge {
            return Ok(());
        }
        let shorter = self.len() - 1;
        if shorter > 0 {
            // When the kernel refuses, this stays mapped: it can be another thread's already.
            let target = memory::map(shorter, Protection::Nothing, Backing::Private)?;
            // SAFETY: both ranges are this region's, which takes the new address.
            if let Ok(address) = unsafe { memory::remap(self.address, self.len(), shorter, Some(target)) } {
                self.address = address;
                self.pages.truncate(shorter);
                return Ok(());
            }
        }
        let target = memory::map(self.len(), Protection::Nothing, Backing::Private)?;
        for index in 0..self.len() {
            let to = Some(target + index * BYTES);
            // SAFETY: both pages are this region's, which takes the new address.
            unsafe { memory::remap(self.page(index), 1, 1, to)? };
        }
        self.address = target;
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if !self.pages.is_empty() {
            // SAFETY: the pages are this region's and nobody uses them any more.
            let _ = unsafe { memory::unmap(self.address, self.len()) };
        }
    }
}

fn fresh(below: Option<usize>) -> Content {
    Content::new(below.map_or(Base::Zero, Base::File))
}

fn writable(page: &Page) -> bool {
    page.protection == Protection::Write
}
