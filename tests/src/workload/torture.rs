//! The memory torture of `src/bin/torture` in a container.

use crate::bundle::Bundle;

/// The container: `torture` with this seed and these further options.
pub fn bundle(name: &str, seed: u64, options: &[&str]) -> Bundle {
    let seed = seed.to_string();
    let arguments = [&["/usr/bin/torture", "--seed", &seed], options].concat();
    Bundle::new(name, &arguments).own_program("torture")
}
