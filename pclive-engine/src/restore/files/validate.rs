//! What descriptors from the peer must look like before anything is opened. Pure.

use std::collections::{HashMap, HashSet};

use super::error::FilesError;
use crate::model::file::{EpollWatch, Owner};
use crate::model::socket::SocketKind;
use crate::model::terminal::MOST_TERMINALS;
use crate::model::{Descriptor, FileId, FileKind, OpenFile, OpenFiles, Vpid};

/// Descriptor numbers end here (`fs.nr_open` by default).
pub(super) const MOST_DESCRIPTORS: i32 = 1 << 20;
/// Largest pipe that is asked for, bytes.
const PIPE_CAPACITY: u32 = 64 << 20;
/// `PATH_MAX` without its NUL.
const PATH_BYTES: usize = 4095;
/// Times above would overflow what the kernel stores (292 years).
const TIME_NS: u64 = i64::MAX as u64;
const SIGNALS: i32 = 64;

type Check = Result<(), String>;

/// Checks every file by itself, and all references.
pub fn all(files: &[OpenFile], wanted: &[(Vpid, Vec<Descriptor>)]) -> Result<(), FilesError> {
    check(files, wanted).map_err(|what| FilesError::Invalid { what })
}

/// Checks what is to be opened ahead.
pub fn ahead(told: &OpenFiles) -> Result<(), FilesError> {
    all(&told.files, &told.descriptors)?;
    let mut listeners = Vec::new();
    for file in told.files.iter().filter(|file| !matches!(file.kind, FileKind::Path { .. })) {
        let refused = || FilesError::Invalid {
            what: format!("open file {}, which is nothing for that, ahead of the stop", file.id.0),
        };
        let FileKind::Socket(socket) = &file.kind else { return Err(refused()) };
        let SocketKind::TcpListener { .. } = &socket.kind else { return Err(refused()) };
        listeners.push((file.id, &**socket, file.flags));
    }
    Ok(crate::restore::sockets::check(&listeners)?)
}

fn check(files: &[OpenFile], wanted: &[(Vpid, Vec<Descriptor>)]) -> Check {
    let mut known = HashSet::new();
    for file in files {
        require(known.insert(file.id), || format!("open file {} twice", file.id.0))?;
        one(file).map_err(|what| format!("open file {} with {what}", file.id.0))?;
    }
    let table = tables(&known, wanted)?;
    pipes(files)?;
    terminals(files)?;
    for file in files {
        if let FileKind::Epoll { watches } = &file.kind {
            for watch in watches {
                watched(file.id, watch, &table)?;
            }
        }
    }
    Ok(())
}

/// Which file every descriptor is, and which files each process has.
#[derive(Default)]
struct Tables {
    descriptors: HashMap<(Vpid, i32), FileId>,
    held: HashSet<(Vpid, FileId)>,
}

fn tables(known: &HashSet<FileId>, wanted: &[(Vpid, Vec<Descriptor>)]) -> Result<Tables, String> {
    let mut tables = Tables::default();
    let mut processes = HashSet::new();
    for (vpid, descriptors) in wanted {
        require(processes.insert(*vpid), || format!("descriptors of process {vpid} twice"))?;
        for Descriptor { fd, file, .. } in descriptors {
            let number = || format!("descriptor {fd} of process {vpid}");
            require((0..MOST_DESCRIPTORS).contains(fd), || format!("{}, beyond every limit", number()))?;
            require(known.contains(file), || format!("{}, which is no open file", number()))?;
            let fresh = tables.descriptors.insert((*vpid, *fd), *file).is_none();
            require(fresh, || format!("{} twice", number()))?;
            tables.held.insert((*vpid, *file));
        }
    }
    Ok(tables)
}

fn watched(epoll: FileId, watch: &EpollWatch, tables: &Tables) -> Check {
    let there = tables.descriptors.get(&(watch.process, watch.fd)) == Some(&watch.file)
        && tables.held.contains(&(watch.process, epoll));
    require(there, || {
        format!(
            "epoll instance {} with a watch on descriptor {} that process {} lacks",
            epoll.0, watch.fd, watch.process
        )
    })
}

fn one(file: &OpenFile) -> Check {
    if let Some(Owner { kind, id, signal }) = file.owner {
        let valid = (0..=2).contains(&kind) && id.0 >= 0 && (0..=SIGNALS).contains(&signal);
        require(valid, || "an impossible signal owner".into())?;
    }
    match &file.kind {
        FileKind::Path { path: name, offset, file_type } => {
            path(name)?;
            let opaque = file.flags & libc::O_PATH != 0;
            let carried = [libc::S_IFREG, libc::S_IFDIR, libc::S_IFCHR].contains(file_type);
            require(opaque || carried, || "a file type that is not carried".into())?;
            require(*offset >= 0 || *file_type != libc::S_IFREG, || "a negative offset".into())
        }
        FileKind::Pipe { path: name, capacity, contents, .. } => {
            name.as_deref().map_or(Ok(()), path)?;
            require((1..=PIPE_CAPACITY).contains(capacity), || format!("a pipe of {capacity} bytes"))?;
            require(contents.len() <= *capacity as usize, || "more in a pipe than fits".into())
        }
        FileKind::Memory { offset, .. } => require(*offset >= 0, || "a negative offset".into()),
        FileKind::Stdio(stream) => require(*stream < 3, || format!("standard stream {stream}")),
        FileKind::Event { count, .. } => require(*count < u64::MAX, || "a full event counter".into()),
        FileKind::Timer { clock, left_ns, interval_ns, .. } => {
            let clocks = [
                libc::CLOCK_REALTIME,
                libc::CLOCK_MONOTONIC,
                libc::CLOCK_BOOTTIME,
                libc::CLOCK_REALTIME_ALARM,
                libc::CLOCK_BOOTTIME_ALARM,
            ];
            require(clocks.contains(clock), || format!("a timer of clock {clock}"))?;
            require(*left_ns <= TIME_NS && *interval_ns <= TIME_NS, || "a timer beyond all time".into())
        }
        FileKind::Master(told) => {
            require(told.number < MOST_TERMINALS, || format!("terminal {}", told.number))?;
            require(told.mode <= 0o7777, || "impossible permissions".into())?;
            let valid = told.session.is_none_or(|session| session.leader.0 > 0 && session.foreground.0 > 0);
            require(valid, || "an impossible session".into())
        }
        FileKind::Slave { path: name, .. } => path(name),
        // Sockets are checked where they are built.
        FileKind::Signal { .. } | FileKind::Epoll { .. } | FileKind::Socket(_) => Ok(()),
    }
}

fn path(path: &[u8]) -> Check {
    let valid = path.starts_with(b"/") && path.len() <= PATH_BYTES && !path.contains(&0);
    require(valid, || "a path that is not absolute, too long or not a path".into())
}

/// Ends of one pipe agree about it, and one of them at most has its contents.
fn pipes(files: &[OpenFile]) -> Check {
    let mut pipes = HashMap::new();
    for file in files {
        let FileKind::Pipe { pipe, path, capacity, owner, contents } = &file.kind else { continue };
        let (about, filled) = pipes.entry(*pipe).or_insert(((path, capacity, owner), false));
        require(*about == (path, capacity, owner), || {
            format!("ends of pipe {pipe} that contradict each other")
        })?;
        require(!*filled || contents.is_empty(), || format!("contents of pipe {pipe} twice"))?;
        *filled |= !contents.is_empty();
    }
    Ok(())
}

/// Every terminal has one master.
fn terminals(files: &[OpenFile]) -> Check {
    let mut masters = HashSet::new();
    for file in files {
        if let FileKind::Master(told) = &file.kind {
            let number = told.number;
            require(masters.insert(number), || format!("two masters of terminal {number}"))?;
        }
    }
    for file in files {
        if let FileKind::Slave { terminal, .. } = &file.kind {
            require(masters.contains(terminal), || format!("a slave of terminal {terminal} alone"))?;
        }
    }
    Ok(())
}

fn require(condition: bool, what: impl FnOnce() -> String) -> Check {
    if condition { Ok(()) } else { Err(what()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(id: u32, kind: FileKind) -> OpenFile {
        OpenFile { id: FileId(id), flags: 0, owner: None, kind }
    }

    fn descriptor(fd: i32, file: u32) -> Descriptor {
        Descriptor { fd, file: FileId(file), close_on_exec: false }
    }

    fn refused(files: &[OpenFile], descriptors: Vec<Descriptor>) -> String {
        check(files, &[(Vpid(1), descriptors)]).unwrap_err()
    }

    #[test]
    fn references_must_lead_somewhere() {
        let event = file(1, FileKind::Event { count: 0, semaphore: false });
        let watch = EpollWatch { process: Vpid(1), fd: 4, file: FileId(1), events: 1, data: 0 };
        let epoll = file(2, FileKind::Epoll { watches: vec![watch] });
        let files = [event, epoll];
        assert!(check(&files, &[(Vpid(1), vec![descriptor(4, 1), descriptor(5, 2)])]).is_ok());
        assert!(refused(&files, vec![descriptor(5, 2)]).contains("lacks"));
        assert!(refused(&files, vec![descriptor(4, 1)]).contains("lacks"));
        assert!(refused(&files, vec![descriptor(4, 3)]).contains("no open file"));
        assert!(refused(&files, vec![descriptor(4, 1), descriptor(4, 2)]).contains("twice"));
        assert!(refused(&files, vec![descriptor(-1, 1)]).contains("limit"));
        assert!(refused(&files, vec![descriptor(MOST_DESCRIPTORS, 1)]).contains("limit"));
    }

    #[test]
    fn a_pipe_holds_no_more_than_its_capacity() {
        let kind = |contents| FileKind::Pipe { pipe: 1, path: None, capacity: 4, owner: (0, 0), contents };
        assert!(check(&[file(1, kind(vec![0; 4])), file(2, kind(vec![]))], &[]).is_ok());
        assert!(refused(&[file(1, kind(vec![0; 5]))], vec![]).contains("than fits"));
        assert!(refused(&[file(1, kind(vec![1])), file(2, kind(vec![1]))], vec![]).contains("twice"));
    }

    #[test]
    fn paths_are_absolute_and_without_a_nul() {
        let kind = |path: &[u8]| FileKind::Path { path: path.into(), offset: 0, file_type: libc::S_IFREG };
        assert!(check(&[file(1, kind(b"/etc/passwd"))], &[]).is_ok());
        for path in [&b"etc"[..], b"", b"/a\0b", &[b'/'; 4096]] {
            assert!(check(&[file(1, kind(path))], &[]).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_document_is_accepted_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            type Document = (Vec<OpenFile>, Vec<(Vpid, Vec<Descriptor>)>);
            if let Ok((files, wanted)) = crate::model::codec::decode::<Document>(&bytes) {
                let _ = all(&files, &wanted);
            }
        }
    }
}
