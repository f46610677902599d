//! What an agent and its fetcher say to each other: frames on a unix socket, with descriptors behind some.
//!
//! Both are the same program. Blocks.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pclive_engine::model::codec;
use pclive_engine::sys::scm;
use pclive_engine::tail::Lack;

/// Longest frame: a list of pages is the longest that there is.
const MAX_BYTES: u32 = 256 << 20;
/// Descriptors in one message.
const PER_MESSAGE: usize = 100;
/// How long the receiver of descriptors gets when its queue is full.
const PAUSE: Duration = Duration::from_millis(1);
const ATTEMPTS: u32 = 5_000;

/// A frame's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// To the fetcher: [`super::Setup`], as JSON.
    Setup,
    /// To the fetcher: what is lacking, and a descriptor for each.
    Lacks,
    /// To the fetcher: the copy was let go.
    Go,
    /// To the fetcher: the agent holds no descriptor any more.
    Release,
    /// From the fetcher: it has the descriptors.
    Taken,
    /// From the fetcher: every page is in place; what that took, as `FetchComplete`.
    Done,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Setup, Self::Lacks, Self::Go, Self::Release, Self::Taken, Self::Done];
}

/// Writes a frame.
pub(super) fn write(mut socket: &UnixStream, kind: Kind, body: &[u8]) -> io::Result<()> {
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= MAX_BYTES);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a frame that is too long"))?;
    let mut head = vec![kind as u8];
    head.extend_from_slice(&len.to_le_bytes());
    socket.write_all(&head)?;
    socket.write_all(body)
}

/// Reads a frame; `None` at the end.
pub(super) fn read(mut socket: &UnixStream) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut head = [0; 5];
    match socket.read_exact(&mut head) {
        Ok(()) => {}
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let [kind, len @ ..] = head;
    let kind = Kind::ALL.get(usize::from(kind)).copied().ok_or_else(|| bad("a frame of no kind"))?;
    let len = u32::from_le_bytes(len);
    if len > MAX_BYTES {
        return Err(bad("a frame that is too long"));
    }
    let mut body = vec![0; usize::try_from(len).unwrap_or(0)];
    socket.read_exact(&mut body)?;
    Ok(Some((kind, body)))
}

/// Hands over what is lacking, and the descriptors.
pub(super) fn write_lacks(socket: &UnixStream, lacks: &[(Lack, OwnedFd)]) -> io::Result<()> {
    let list: Vec<&Lack> = lacks.iter().map(|(lack, _)| lack).collect();
    write(socket, Kind::Lacks, &codec::encode(&list).map_err(io::Error::other)?)?;
    for part in lacks.chunks(PER_MESSAGE) {
        let fds: Vec<_> = part.iter().map(|(_, fd)| fd.as_fd()).collect();
        let mut attempts = 0;
        while let Err(error) = scm::send(socket, &fds) {
            attempts += 1;
            if error != nix::Error::EAGAIN || attempts == ATTEMPTS {
                return Err(error.into());
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Takes what came with [`Kind::Lacks`].
pub(super) fn read_lacks(socket: &UnixStream, body: &[u8]) -> io::Result<Vec<(Lack, OwnedFd)>> {
    let list: Vec<Lack> = codec::decode(body).map_err(io::Error::other)?;
    let mut fds = Vec::with_capacity(list.len());
    while fds.len() < list.len() {
        let received = scm::receive(socket)?;
        if received.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "fewer descriptors than promised"));
        }
        fds.extend(received);
    }
    Ok(list.into_iter().zip(fds).collect())
}

#[cfg(test)]
mod tests {
    use pclive_engine::model::Vpid;
    use pclive_engine::tail::Later;

    use super::*;

    #[test]
    fn lacks_arrive_with_their_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lack = |vpid| Lack {
            later: Later { vpid: Vpid(vpid), runs: vec![(4096, 8192)] },
            areas: vec![(0, 1 << 20)],
        };
        let lacks: Vec<(Lack, OwnedFd)> =
            (1..=250).map(|vpid| (lack(vpid), std::fs::File::open("/dev/null").unwrap().into())).collect();
        let sender = std::thread::spawn(move || {
            write_lacks(&ours, &lacks).unwrap();
            write(&ours, Kind::Go, &[]).unwrap();
        });
        let (kind, body) = read(&theirs).unwrap().unwrap();
        assert_eq!(kind, Kind::Lacks);
        let taken = read_lacks(&theirs, &body).unwrap();
        assert_eq!(taken.len(), 250);
        assert_eq!(taken[249].0, lack(250));
        assert_eq!(read(&theirs).unwrap().unwrap().0, Kind::Go);
        sender.join().unwrap();
        assert!(read(&theirs).unwrap().is_none());
    }

    #[test]
    fn garbage_is_no_frame() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[99, 0, 0, 0, 0]).unwrap();
        assert!(read(&theirs).is_err());
        ours.write_all(&[0, 255, 255, 255, 255]).unwrap();
        assert!(read(&theirs).is_err());
    }
}
