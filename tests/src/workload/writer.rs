//! The memory of `src/bin/writer`, of which a part is always written, in a container.

use crate::bundle::Bundle;

/// The container: `writer` with this much memory, of which so many pages of a hundred are written.
pub fn bundle(name: &str, mib: u64, percent: u64) -> Bundle {
    let (mib, percent) = (mib.to_string(), percent.to_string());
    Bundle::new(name, &["/usr/bin/writer", "--mib", &mib, "--percent", &percent]).own_program("writer")
}
