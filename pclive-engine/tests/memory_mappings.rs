//! Mappings of real processes: what can be carried and what is refused, and how a filler treats a peer.

mod subject;

use bytes::Bytes;
use pclive_engine::capture::vmas::read_vmas;
use pclive_engine::memory::{FillError, Filler, Objects};
use pclive_engine::model::layout::ObjectKind;
use pclive_engine::model::{Batch, Extent, ExtentKind, Mapping, PAGE_SIZE, Target, Vma};
use pclive_engine::remote::RemoteTask;
use subject::{ARENA, PAGE, Subject};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// What is said about the mapping at the arena's start.
fn refusal(subject: &Subject) -> String {
    let read = read_vmas(subject.pid(), &mut Objects::new(), &[], true).unwrap();
    let found = read.blockers.iter().find(|blocker| blocker.start == ARENA);
    found.unwrap_or_else(|| panic!("nothing is said of {:x?}", read.vmas)).what.clone()
}

fn carried(subject: &Subject) -> Vma {
    let read = read_vmas(subject.pid(), &mut Objects::new(), &[], true).unwrap();
    assert_eq!(read.blockers, []);
    read.vmas.into_iter().find(|vma| vma.start == ARENA).unwrap()
}

fn map_descriptor(subject: &mut Subject, fd: u64, len: u64) {
    let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
    subject.must(libc::SYS_mmap, &[ARENA, len, READ_WRITE as u64, flags, fd, 0]);
    subject.must(libc::SYS_close, &[fd]);
}

#[test]
fn memfd_is_an_object_by_its_name() {
    let mut subject = Subject::start();
    let name = subject.task.scratch().start;
    subject.task.write(name, b"jit code\0").unwrap();
    let fd = subject.must(libc::SYS_memfd_create, &[name.0, 0]);
    subject.must(libc::SYS_ftruncate, &[fd, PAGE]);
    map_descriptor(&mut subject, fd, PAGE);
    let mut objects = Objects::new();
    let read = read_vmas(subject.pid(), &mut objects, &[], true).unwrap();
    let vma = read.vmas.into_iter().find(|vma| vma.start == ARENA).unwrap();
    assert_eq!(vma.mapping, Mapping::SharedObject { object: 0, offset: 0, may_write: true });
    let kind = objects.layouts().remove(0).kind;
    assert!(
        matches!(&kind, ObjectKind::Memfd { name, seals: libc::F_SEAL_SEAL, .. } if name == b"jit code"),
        "{kind:?}"
    );
}

#[test]
fn system_v_segment_of_another_ipc_namespace_is_refused() {
    let mut subject = Subject::start();
    let id = subject.must(libc::SYS_shmget, &[0, PAGE, 0o600]);
    subject.must(libc::SYS_shmat, &[id, ARENA, 0]);
    subject.must(libc::SYS_shmctl, &[id, libc::IPC_RMID as u64, 0]);
    let expected = "shared memory of SysV IPC of another container, or of the host";
    assert_eq!(refusal(&subject), expected);
}

#[test]
fn huge_pages_whose_writes_the_kernel_cannot_track_are_refused() {
    let mut subject = Subject::start();
    let flags = libc::MAP_PRIVATE | libc::MAP_HUGETLB | libc::MAP_NORESERVE;
    let gigabyte = 1 << 30;
    // Not every CPU has such pages.
    if std::fs::exists("/sys/kernel/mm/hugepages/hugepages-1048576kB").unwrap() {
        assert!(subject.map(ARENA, gigabyte, READ_WRITE, flags | libc::MAP_HUGE_1GB) >= 0);
        assert_eq!(refusal(&subject), "huge pages of 1048576 KiB");
    }
    assert!(subject.map(ARENA, gigabyte, READ_WRITE, flags | libc::MAP_HUGE_2MB) >= 0);
    assert_eq!(carried(&subject).mapping, Mapping::PrivateHuge);
}

#[test]
fn deleted_file_is_refused_by_its_name() {
    let mut subject = Subject::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(PAGE).unwrap();
    let path = file.path().as_os_str().as_encoded_bytes().to_vec();
    subject.map_file(&path, (ARENA, ARENA + PAGE), READ_WRITE, libc::MAP_PRIVATE, 0);
    assert_eq!(carried(&subject).start, ARENA);
    drop(file);
    let name = String::from_utf8(path).unwrap();
    assert_eq!(refusal(&subject), format!("a deleted file ({name})"));
}

#[test]
fn device_is_refused() {
    let mut subject = Subject::start();
    let socket = subject.must(libc::SYS_socket, &[libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0]);
    let ring = subject.task.scratch().start;
    let shape: Vec<u8> = [4096u32, 1, 2048, 2].iter().flat_map(|word| word.to_le_bytes()).collect();
    subject.task.write(ring, &shape).unwrap();
    const PACKET_RX_RING: u64 = 5;
    subject.must(libc::SYS_setsockopt, &[socket, libc::SOL_PACKET as u64, PACKET_RX_RING, ring.0, 16]);
    map_descriptor(&mut subject, socket, PAGE);
    assert!(refusal(&subject).starts_with("a special mapping (socket:["), "{}", refusal(&subject));
}

#[test]
fn zeros_of_the_zero_device_are_anonymous_memory() {
    let mut subject = Subject::start();
    subject.map_file(b"/dev/zero", (ARENA, ARENA + PAGE), READ_WRITE, libc::MAP_PRIVATE, 0);
    assert_eq!(carried(&subject).mapping, Mapping::PrivateAnonymous);
    subject.map_file(b"/dev/zero", (ARENA, ARENA + PAGE), READ_WRITE, libc::MAP_SHARED, 0);
    assert_eq!(carried(&subject).mapping, Mapping::SharedObject { object: 0, offset: 0, may_write: true });
}

#[test]
fn file_that_can_never_be_written_through_its_mapping_has_no_object() {
    let mut subject = Subject::start();
    let fd = subject.open(b"/bin/sh", libc::O_RDONLY);
    let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
    subject.must(libc::SYS_mmap, &[ARENA, PAGE, libc::PROT_READ as u64, flags, fd, 0]);
    match carried(&subject).mapping {
        Mapping::SharedFile { may_write, object, .. } => assert_eq!((may_write, object), (false, None)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn properties_are_read() {
    let mut subject = Subject::start();
    assert!(subject.map(ARENA, PAGE, READ_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE) >= 0);
    for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP, libc::MADV_NOHUGEPAGE] {
        subject.must(libc::SYS_madvise, &[ARENA, PAGE, advice as u64]);
    }
    subject.must(libc::SYS_mlock, &[ARENA, PAGE]);
    let flags = carried(&subject).flags;
    assert!(flags.no_reserve && flags.dont_fork && flags.dont_dump && flags.no_huge_page && flags.locked);
    assert!(!flags.grows_down && !flags.wipe_on_fork && !flags.lock_on_fault);
}

fn batch(extents: &[(u64, u64, ExtentKind)], payload: usize) -> Batch {
    let extents =
        extents.iter().map(|(start, pages, kind)| Extent { start: *start, pages: *pages, kind: *kind });
    Batch {
        target: Target::Process(pclive_engine::model::Vpid(1)),
        extents: extents.collect(),
        payload: Bytes::from(vec![7; payload]),
    }
}

/// Something else was mapped at the source when the pages were read, or the file was longer.
#[test]
fn pages_behind_the_end_of_a_file_are_left_out() {
    let mut subject = Subject::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(PAGE + 1).unwrap();
    let path = file.path().to_str().unwrap().as_bytes();
    subject.map_file(path, (ARENA, ARENA + 4 * PAGE), libc::PROT_READ, libc::MAP_PRIVATE, 0);
    assert!(subject.map(ARENA + 4 * PAGE, PAGE, libc::PROT_READ, libc::MAP_PRIVATE) >= 0);
    let mut filler = Filler::new(subject.pid());
    filler.set_layout(&subject.vmas(&mut Objects::new())).unwrap();
    filler.fill(&batch(&[(ARENA, 5, ExtentKind::Data)], 5 * PAGE as usize)).unwrap();
    for page in [0, 1, 4] {
        assert_eq!(subject.page(ARENA + page * PAGE), Some(vec![7; PAGE as usize]), "page {page}");
    }
    for page in [2, 3] {
        assert_eq!(subject.page(ARENA + page * PAGE), None, "page {page}");
    }
    file.as_file().set_len(0).unwrap();
    filler.fill(&batch(&[(ARENA, 1, ExtentKind::Data)], PAGE as usize)).unwrap();
    let error = filler.fill(&batch(&[(ARENA + PAGE, 1, ExtentKind::Zero)], 0)).err();
    assert!(error.is_none(), "{error:?}");
    // Where nothing is mapped at all it is an error still.
    subject.must(libc::SYS_munmap, &[ARENA, 5 * PAGE]);
    let error = filler.fill(&batch(&[(ARENA + 4 * PAGE, 1, ExtentKind::Data)], PAGE as usize)).unwrap_err();
    assert!(matches!(error, FillError::Write { source: nix::Error::EIO, .. }), "{error:?}");
}

#[test]
fn pages_that_no_source_sends_are_refused_and_nothing_is_written() {
    let mut subject = Subject::start();
    assert!(subject.map(ARENA, 8 * PAGE, READ_WRITE, libc::MAP_PRIVATE) >= 0);
    assert!(subject.map(ARENA + 8 * PAGE, PAGE, READ_WRITE, libc::MAP_SHARED) >= 0);
    let mut filler = Filler::new(subject.pid());
    let vmas = subject.vmas(&mut Objects::new());
    filler.set_layout(&vmas).unwrap();
    let data = ExtentKind::Data;
    let page = PAGE as usize;
    for (what, bad) in [
        ("not page-aligned", batch(&[(ARENA + 1, 1, data)], page)),
        ("an empty extent", batch(&[(ARENA, 0, data)], 0)),
        ("extents that are not ascending", batch(&[(ARENA + PAGE, 1, data), (ARENA, 1, data)], 2 * page)),
        ("extents that are not ascending", batch(&[(ARENA, 2, data), (ARENA + PAGE, 1, data)], 3 * page)),
        ("beyond the end", batch(&[(ARENA, u64::MAX, data)], 0)),
        ("beyond the end", batch(&[(0xffff_8000_0000_0000, 1, ExtentKind::Zero)], 0)),
        ("a payload that does not match its extents", batch(&[(ARENA, 2, data)], page)),
        ("a payload that does not match its extents", batch(&[(ARENA, 1, ExtentKind::Zero)], page)),
        ("outside the private mappings of the process", batch(&[(ARENA + 7 * PAGE, 2, data)], 2 * page)),
        ("outside the private mappings of the process", batch(&[(0x1000, 1, data)], page)),
    ] {
        match filler.fill(&bad) {
            Err(FillError::Malformed { what: said, .. }) => assert_eq!(said, what),
            other => panic!("{what}: {other:?}"),
        }
    }
    for page in 0..9 {
        assert_eq!(subject.page(ARENA + page * PAGE), Some(vec![0; PAGE_SIZE as usize]));
    }
}
