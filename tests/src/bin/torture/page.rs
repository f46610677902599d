//! What a page must contain, told without keeping its bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pclive_tests::random::Random;

/// Words of a page.
pub(crate) const WORDS: usize = 512;
/// Bytes of a page.
pub(crate) const BYTES: usize = WORDS * 8;
/// Pages of a huge page.
pub(crate) const HUGE_PAGES: usize = (2 << 20) / BYTES;
/// Pages of the file that is mapped privately.
pub(crate) const FILE_PAGES: usize = 256;
/// Single words that a page may differ in before it is rewritten as a whole.
const MOST_PATCHES: usize = 8;
/// Where the file is.
pub(crate) const FILE: &str = "/data/torture.bin";
/// What the file's pages are made of.
const FILE_SEED: u64 = 0xf11e;

/// A page's bytes.
pub(crate) type Words = [u64; WORDS];

/// Where a page's contents come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// Never written, or discarded.
    Zero,
    /// Written as a whole with the numbers of this seed.
    Random(u64),
    /// The file's page of this number.
    File(usize),
}

/// A page's contents.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    base: Base,
    /// Words that were written afterwards.
    patches: Vec<(usize, u64)>,
}

impl Content {
    pub(crate) fn new(base: Base) -> Self {
        Self { base, patches: Vec::new() }
    }

    /// The bytes, written to `words`. Allocates nothing: a forked child calls it.
    pub(crate) fn expand(&self, words: &mut Words) {
        match self.base {
            Base::Zero => words.fill(0),
            Base::Random(seed) => fill(seed, words),
            Base::File(number) => fill(FILE_SEED ^ ((number as u64) << 32), words),
        }
        for &(index, word) in &self.patches {
            words[index] = word;
        }
    }

    /// Notes that a word was written; false when the page has too many of them already.
    pub(crate) fn patch(&mut self, index: usize, word: u64) -> bool {
        let room = self.patches.len() < MOST_PATCHES;
        if room {
            self.patches.push((index, word));
        }
        room
    }
}

fn fill(seed: u64, words: &mut Words) {
    let mut random = Random::new(seed);
    words.fill_with(|| random.next());
}

/// Opens the file that regions map privately: it is there.
pub(crate) fn open_file() -> std::io::Result<File> {
    File::options().read(true).write(true).open(FILE)
}

/// Makes it.
pub(crate) fn make_file() -> std::io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(FILE)?;
    let mut words = [0; WORDS];
    for number in 0..FILE_PAGES {
        Content::new(Base::File(number)).expand(&mut words);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        file.write_all_at(&bytes, (number * BYTES) as u64)?;
    }
    Ok(file)
}
