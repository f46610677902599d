//! Mappings of this very process, and of texts that a container could show.

use super::*;
use crate::model::Protection;

fn myself() -> Pid {
    Pid(std::process::id().cast_signed())
}

fn entry(name: &str, permissions: &str) -> SmapsEntry {
    let text = format!("1000-3000 {permissions} 00000000 00:01 77 {name}\n");
    let map = parse_maps(text.as_bytes()).unwrap().remove(0);
    SmapsEntry { map, flags: VmaFlags::default(), kind: VmaKind::default() }
}

fn obstacle(name: &str, permissions: &str) -> String {
    match kind_of(&entry(name, permissions)) {
        MappingKind::Unsupported(obstacle) => obstacle.what,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn mappings_that_cannot_be_carried_are_named() {
    assert_eq!(obstacle("/[aio] (deleted)", "rw-s"), "an asynchronous I/O ring (io_setup)");
    assert_eq!(obstacle("anon_inode:[io_uring]", "rw-s"), "an io_uring");
    assert_eq!(obstacle("anon_inode:[perf_event]", "rw-s"), "a special mapping (anon_inode:[perf_event])");
    assert_eq!(obstacle("[uprobes]", "--xp"), "a special mapping ([uprobes])");
}

#[test]
fn memory_without_a_path_is_told_by_its_name() {
    assert_eq!(kind_of(&entry("/SYSV0000002a (deleted)", "rw-s")), MappingKind::Segment);
    let memfd = |name: &[u8]| MappingKind::Memfd(name.to_vec());
    assert_eq!(kind_of(&entry("/memfd:jit (deleted)", "rw-s")), memfd(b"jit"));
    assert_eq!(kind_of(&entry("/memfd:jit (deleted)", "r-xp")), memfd(b"jit"));
}

#[test]
fn anonymous_memory_has_several_names() {
    for name in ["", "[heap]", "[stack]", "[anon:arena]"] {
        assert_eq!(kind_of(&entry(name, "rw-p")), MappingKind::PrivateAnonymous);
    }
    for access in ["rw-p", "rw-s"] {
        assert_eq!(kind_of(&entry("/anon_hugepage (deleted)", access)), MappingKind::AnonymousHuge);
    }
    for name in ["/dev/zero (deleted)", "[anon_shmem:pool]"] {
        assert_eq!(kind_of(&entry(name, "rw-s")), MappingKind::SharedAnonymous);
    }
}

#[test]
fn a_file_may_be_named_like_a_kernel_object() {
    assert_eq!(kind_of(&entry("/SYSV1", "r--p")), MappingKind::File);
}

#[test]
fn the_program_of_this_process_is_found_at_its_path() {
    let mut objects = Objects::new();
    let read = read_vmas(myself(), &mut objects, &[], true).unwrap();
    assert_eq!(read.blockers, []);
    assert!(read.vdso.vdso.is_some() && read.vdso.vvar.is_some());
    let exe = std::env::current_exe().unwrap();
    let exe = exe.as_os_str().as_encoded_bytes();
    let text = read.vmas.iter().find_map(|vma| match &vma.mapping {
        Mapping::PrivateFile(file) if file.path == exe && vma.protection.exec => Some(file),
        _ => None,
    });
    let text = text.expect("the program's text is mapped");
    assert_eq!(text.size, std::fs::metadata(std::env::current_exe().unwrap()).unwrap().len());
    let stack = read.vmas.iter().find(|vma| vma.flags.grows_down);
    assert!(stack.is_some_and(|vma| vma.protection.write));
    crate::memory::layout_diff::check_vmas(&read.vmas).unwrap();
}

#[test]
fn scratch_memory_is_cut_out() {
    let map = entry("", "rw-p").map;
    assert_eq!(remaining(&map, &[(0x2000, 0x3000)]), [(0x1000, 0x2000)]);
    assert_eq!(remaining(&map, &[(0, 0x1000), (0x1000, 0x2000), (0x9000, 0xa000)]), [(0x2000, 0x3000)]);
    assert_eq!(remaining(&map, &[(0x1000, 0x3000)]), []);
}

#[test]
fn flags_are_carried_by_address() {
    let vma = |start, end, dont_fork| Vma {
        start,
        end,
        protection: Protection::default(),
        flags: VmaFlags { dont_fork, ..VmaFlags::default() },
        mapping: Mapping::PrivateAnonymous,
    };
    let old = [vma(0x1000, 0x3000, true), vma(0x3000, 0x4000, true), vma(0x5000, 0x6000, false)];
    let mut split = [vma(0x1000, 0x2000, false), vma(0x2000, 0x3000, false)];
    assert!(carry_flags(&old, &mut split));
    assert!(split.iter().all(|vma| vma.flags.dont_fork));
    let mut joined_and_grown = [vma(0x1000, 0x5000, false)];
    assert!(carry_flags(&old, &mut joined_and_grown));
    assert!(joined_and_grown[0].flags.dont_fork);
    assert!(!carry_flags(&old, &mut [vma(0x3000, 0x6000, false)]), "two kinds of flags");
    assert!(!carry_flags(&old, &mut [vma(0x8000, 0x9000, false)]), "a new mapping");
}

#[test]
fn mapping_that_grew_while_the_list_was_read_replaces_what_it_covers() {
    let ranges = |texts: &[(u64, u64)]| {
        let line = |(start, end): &(u64, u64)| format!("{start:x}-{end:x} rw-p 00000000 00:00 0 \n");
        let text: String = texts.iter().map(line).collect();
        let entries = parse_maps(text.as_bytes()).unwrap();
        let plain = |map| SmapsEntry { map, flags: VmaFlags::default(), kind: VmaKind::default() };
        let mended = mend(entries.into_iter().map(plain).collect());
        mended.iter().map(|entry| (entry.map.start, entry.map.end)).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&[(0x1000, 0x3000), (0x3000, 0x5000)]), [(0x1000, 0x3000), (0x3000, 0x5000)]);
    assert_eq!(ranges(&[(0x1000, 0x3000), (0x2000, 0x5000)]), [(0x1000, 0x2000), (0x2000, 0x5000)]);
    assert_eq!(ranges(&[(0x1000, 0x2000), (0x2000, 0x3000), (0x1000, 0x5000)]), [(0x1000, 0x5000)]);
}

/// The mapping of this program's text.
fn text(pid: Pid) -> MapsEntry {
    let exe = std::env::current_exe().unwrap();
    let entries = read_entries(pid, false).unwrap().into_iter().map(|entry| entry.map);
    let mut texts =
        entries.filter(|map| map.name == exe.as_os_str().as_encoded_bytes() && map.protection.exec);
    texts.next().unwrap()
}

#[test]
fn mapping_that_was_replaced_since_it_was_listed_is_not_taken_for_what_it_was() {
    let mut objects = Objects::new();
    let listed = text(myself());
    let replaced = MapsEntry { inode: listed.inode + 1, ..listed.clone() };
    let mut reader = Reader { pid: myself(), objects: &mut objects, root: None };
    let found = reader.object(&replaced, file_key(&replaced), ObjectKind::Anonymous).unwrap();
    assert_eq!(found, Err(None));
    let found = reader.object(&listed, file_key(&listed), ObjectKind::Anonymous).unwrap();
    assert!(matches!(found, Ok(Mapping::PrivateObject { .. })), "{found:?}");
    assert_eq!(objects.find(file_key(&replaced)), None);
    assert!(objects.find(file_key(&listed)).is_some());
}

#[test]
fn shared_file_that_was_replaced_since_it_was_found_is_not_taken_for_what_it_was() {
    let mut objects = Objects::new();
    let mut listed = text(myself());
    (listed.shared, listed.protection.write) = (true, true);
    let another = crate::memory::object::KnownFile::new(&std::fs::metadata("/proc/self/stat").unwrap());
    objects.files.insert((file_key(&listed), listed.name.clone()), another);
    let mut reader = Reader { pid: myself(), objects: &mut objects, root: None };
    assert_eq!(reader.file(&listed).unwrap(), Err(None));
    objects.files.clear();
    let mut reader = Reader { pid: myself(), objects: &mut objects, root: None };
    let found = reader.file(&listed).unwrap();
    assert!(matches!(found, Ok(Mapping::SharedFile { object: Some(_), .. })), "{found:?}");
}
