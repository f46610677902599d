//! The memory of `src/bin/writer`, which is written at a set rate, in a container.

use crate::bundle::Bundle;

/// The container: `writer` with this much memory, of which so many pages are written each second.
pub fn bundle(name: &str, mib: u64, pages_per_second: u64) -> Bundle {
    let (mib, rate) = (mib.to_string(), pages_per_second.to_string());
    Bundle::new(name, &["/usr/bin/writer", "--mib", &mib, "--pages-per-second", &rate]).own_program("writer")
}
