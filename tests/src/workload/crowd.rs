//! The process of many threads, mappings and files of `src/bin/crowd` in a container.

use crate::bundle::Bundle;

/// The container: `crowd` with these options.
pub fn bundle(name: &str, options: &[&str]) -> Bundle {
    Bundle::new(name, &[&["/usr/bin/crowd"], options].concat()).own_program("crowd")
}
