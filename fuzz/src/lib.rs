//! What is fuzzed: the readers of bytes that come from the other agent, from the kernel about the container, from the disk and
//! from the administrator. A reader may refuse; it may not panic, nor take memory without a bound. Where it accepts,
//! what it has accepted must hold together.

use pclive_agent::untrusted;
use pclive_engine::model::{FileKind, FinalState, Layout, codec};
use pclive_engine::proc::{
    auxv, fdinfo, inet_diag, maps, mountinfo, multicast, smaps, sock_diag, stat, status, sysvipc, task_ids,
    timers,
};
use pclive_engine::restore;
use xxhash_rust::xxh3::xxh3_64;

/// Something that is fuzzed.
pub type Target = fn(&[u8]);

/// Every target, by the name of its folder of the corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("peer", peer),
    ("answers", answers),
    ("state", state),
    ("journal", journal),
    ("proc", proc),
    ("configuration", configuration),
];

/// A message of the source.
pub fn peer(bytes: &[u8]) {
    let _ = untrusted::source_message(bytes);
}

/// A message of the destination.
pub fn answers(bytes: &[u8]) {
    let _ = untrusted::destination_message(bytes);
}

/// A layout and a final state, as a destination looks at them before it builds anything.
pub fn state(bytes: &[u8]) {
    let Some((length, bytes)) = bytes.split_first_chunk() else { return };
    let (layout, state) = bytes.split_at(bytes.len().min(u16::from_le_bytes(*length).into()));
    let layout = codec::decode::<Layout>(layout).inspect(same_again);
    let state = codec::decode::<FinalState>(state).inspect(same_again);
    if let Ok(layout) = &layout {
        let _ = restore::check_layout(layout);
    }
    if let Ok(state) = &state {
        let sockets = state.files.iter().filter_map(|file| match &file.kind {
            FileKind::Socket(socket) => Some((file.id, &**socket, file.flags)),
            _ => None,
        });
        let _ = restore::sockets::check(&sockets.collect::<Vec<_>>());
        let wanted = state.processes.iter().map(|process| (process.vpid, process.descriptors.clone()));
        let _ = restore::files::check(&state.files, &wanted.collect::<Vec<_>>());
    }
    if let (Ok(layout), Ok(state)) = (&layout, &state) {
        let _ = restore::check_state(state, layout);
    }
}

/// What was read is what is written.
fn same_again<T>(value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = codec::encode(value).expect("what was decoded can be encoded");
    assert_eq!(&codec::decode::<T>(&bytes).expect("and decoded again"), value);
}

/// A file of the journal; and one with these contents and the digest that belongs to them, which no fuzzer guesses.
pub fn journal(bytes: &[u8]) {
    let _ = untrusted::journal(bytes);
    let mut page = format!("pclive-migration 1 {} {:016x}\n", bytes.len(), xxh3_64(bytes)).into_bytes();
    page.extend_from_slice(bytes);
    let _ = untrusted::journal(&page);
}

/// A file of `/proc`, or an answer of the kernel: the first byte says which.
pub fn proc(bytes: &[u8]) {
    let Some((which, text)) = bytes.split_first() else { return };
    match which {
        b'a' => drop((auxv::check(text), auxv::value(text, 3))),
        b'f' => drop(fdinfo::parse(text)),
        b'i' => drop(inet_diag::parse(text, &mut Vec::new())),
        b'm' => ascending(maps::parse_maps(text).unwrap_or_default().iter().map(|map| (map.start, map.end))),
        b'M' => drop(mountinfo::parse(text)),
        b'g' => drop((multicast::joined_v4(text), multicast::joined_v6(text))),
        b's' => drop(smaps::parse_smaps(text)),
        b'u' => drop(sock_diag::parse_unix(text, &mut Vec::new())),
        b'5' => drop(sock_diag::parse_md5(text)),
        b't' => drop((stat::parse(text), task_ids::parse_stat(text))),
        b'T' => drop((status::parse(text), task_ids::parse_status(text))),
        b'p' => drop(timers::parse(text)),
        b'v' => {
            let text = String::from_utf8_lossy(text);
            drop((sysvipc::parse_segments(&text), sysvipc::count(&text)));
        }
        _ => {}
    }
}

/// Ranges that are none would be taken for huge ones.
fn ascending(ranges: impl Iterator<Item = (u64, u64)>) {
    for (start, end) in ranges {
        assert!(start <= end, "{start:x}-{end:x}");
    }
}

/// A configuration file.
pub fn configuration(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = untrusted::configuration(text);
    }
}
