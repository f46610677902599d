//! What a container that arrives will depend on: CPU state, vDSO, clocks, memory.
//!
//! Kernel: `/proc/meminfo`, `/proc/self/maps` and `/proc/self/mem` (for the vDSO's code), uname(2),
//! clock_gettime(2).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::time::{ClockId, clock_gettime};
use pclive_engine::sys::cpu;
use pclive_proto::peer::HostFacts;
use xxhash_rust::xxh3::xxh3_64;

/// Largest vDSO that is believed, bytes. Today's are two pages.
const MAX_VDSO: u64 = 1 << 20;

/// A fact that this host does not tell.
#[derive(Debug, thiserror::Error)]
#[error("cannot find out {what}")]
pub struct FactsError {
    /// Which fact.
    what: &'static str,
    /// Why.
    source: io::Error,
}

/// The facts of this host, now.
pub fn facts() -> Result<HostFacts, FactsError> {
    let of = |what| move |source: io::Error| FactsError { what, source };
    let name = nix::sys::utsname::uname().map_err(io::Error::from).map_err(of("the kernel's release"))?;
    Ok(HostFacts {
        kernel_release: name.release().to_string_lossy().into_owned(),
        machine: name.machine().to_string_lossy().into_owned(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        xstate_features: cpu::enabled_xstate(),
        vdso_digest: vdso_digest().map_err(of("the vDSO's contents"))?,
        monotonic_ns: clock(ClockId::CLOCK_MONOTONIC).map_err(of("the monotonic clock"))?,
        boottime_ns: clock(ClockId::CLOCK_BOOTTIME).map_err(of("the boot clock"))?,
        memory_available_bytes: memory_available().map_err(of("the available memory"))?,
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
    })
}

fn clock(id: ClockId) -> io::Result<u64> {
    let time = clock_gettime(id)?;
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    Ok(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0)))
}

/// Bytes that can be used without swapping (`MemAvailable`).
pub fn memory_available() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    field_kib(&text, "MemAvailable:").ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}

/// The value of a line like `MemAvailable:  12 kB`, in bytes.
pub(super) fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn vdso_digest() -> io::Result<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let Some((start, end)) = vdso_range(&maps) else { return Ok(0) };
    let length = end.saturating_sub(start);
    if length > MAX_VDSO {
        return Err(io::Error::other(format!("a vDSO of {length} bytes")));
    }
    let mut code = vec![0; usize::try_from(length).unwrap_or(0)];
    File::open("/proc/self/mem")?.read_exact_at(&mut code, start)?;
    Ok(xxh3_64(&code))
}

fn vdso_range(maps: &str) -> Option<(u64, u64)> {
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_of_one_host_agree_but_for_time_and_memory() {
        let (first, second) = (facts().unwrap(), facts().unwrap());
        assert_eq!(first.vdso_digest, second.vdso_digest);
        assert_eq!(first.xstate_features, second.xstate_features);
        assert!(second.monotonic_ns >= first.monotonic_ns && first.monotonic_ns > 0);
        assert!(first.memory_available_bytes > 0 && first.cpus > 0);
    }

    #[test]
    fn memory_lines_are_in_bytes() {
        assert_eq!(field_kib("MemTotal: 3 kB\nMemAvailable:   24 kB\n", "MemAvailable:"), Some(24 * 1024));
        assert_eq!(field_kib("MemTotal: 3 kB\n", "MemAvailable:"), None);
        assert_eq!(field_kib("MemAvailable: lots kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn the_vdso_is_found_in_maps() {
        let maps = "7f00-7f10 r--p 0 0:0 0 [vvar]\n7ffe8000-7ffea000 r-xp 00000000 00:00 0   [vdso]\n";
        assert_eq!(vdso_range(maps), Some((0x7ffe_8000, 0x7ffe_a000)));
        assert_eq!(vdso_range("zz-yy r-xp 0 0:0 0 [vdso]\n"), None);
    }
}
