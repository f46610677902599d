//! Descriptors that come and go, each with what it must give: the place in a file, what waits in a pipe or a socket.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use super::page::{BYTES, Base, Content, FILE, FILE_PAGES, WORDS};
use pclive_tests::random::Random;

/// Bytes that wait in a pipe or a socket at most: less than any of them takes.
const MOST_WAITING: usize = 2048;

/// Something open.
#[derive(Debug)]
pub(crate) enum Descriptor {
    /// The file of known contents, and the word in it that is read next.
    Place { file: File, word: usize },
    /// What waits in a pipe.
    Pipe { ends: (PipeReader, PipeWriter), waiting: VecDeque<u8> },
    /// What waits in a socket.
    Pair { ends: (UnixStream, UnixStream), waiting: VecDeque<u8> },
}

impl Descriptor {
    /// Opens something.
    pub(crate) fn open(random: &mut Random) -> std::io::Result<Self> {
        Ok(match random.below(3) {
            0 => {
                let (mut file, word) = (File::open(FILE)?, random.below(FILE_PAGES * WORDS));
                file.seek(SeekFrom::Start((word * 8) as u64))?;
                Self::Place { file, word }
            }
            1 => Self::Pipe { ends: std::io::pipe()?, waiting: VecDeque::new() },
            _ => Self::Pair { ends: UnixStream::pair()?, waiting: VecDeque::new() },
        })
    }

    /// Reads from it, or writes to it.
    pub(crate) fn turn(&mut self, random: &mut Random) -> Result<(), String> {
        match self {
            Self::Place { file, word } => {
                let mut bytes = [0; 8];
                file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
                let (found, expected) = (u64::from_ne_bytes(bytes), word_of(*word));
                let at = std::mem::replace(word, *word + 1);
                // Not beyond its end.
                if *word == FILE_PAGES * BYTES / 8 {
                    file.rewind().map_err(|error| error.to_string())?;
                    *word = 0;
                }
                if found == expected {
                    Ok(())
                } else {
                    Err(format!("word {at} of the open file: {found:016x} instead of {expected:016x}"))
                }
            }
            Self::Pipe { ends: (reader, writer), waiting } => queue(reader, writer, waiting, random),
            Self::Pair { ends: (reader, writer), waiting } => queue(reader, writer, waiting, random),
        }
    }
}

fn word_of(number: usize) -> u64 {
    let mut words = [0; WORDS];
    Content::new(Base::File(number / WORDS)).expand(&mut words);
    words[number % WORDS]
}

/// Lets more wait, or takes some of what waits.
fn queue(
    reader: &mut impl Read,
    writer: &mut impl Write,
    waiting: &mut VecDeque<u8>,
    random: &mut Random,
) -> Result<(), String> {
    let much = 1 + random.below(256);
    if waiting.len() + much <= MOST_WAITING && random.below(2) == 0 {
        let bytes: Vec<u8> = (0..much).map(|_| random.next() as u8).collect();
        writer.write_all(&bytes).map_err(|error| error.to_string())?;
        waiting.extend(bytes);
        return Ok(());
    }
    let mut found = vec![0; much.min(waiting.len())];
    reader.read_exact(&mut found).map_err(|error| error.to_string())?;
    let expected: Vec<u8> = waiting.drain(..found.len()).collect();
    if found == expected {
        Ok(())
    } else {
        Err(format!("{} bytes from a queue are not those that were sent", found.len()))
    }
}
