//! Kernel state of every kind: `src/bin/states` in a container.

use crate::bundle::Bundle;

/// The container: `states`, with the states of these names only (none: all but the large ones).
pub fn bundle(name: &str, states: &[&str]) -> Bundle {
    let arguments = [&["/usr/bin/states"], states].concat();
    // A FIFO on the hosts' common disk would be one FIFO, because the hosts have one kernel.
    Bundle::new(name, &arguments).own_program("states").program("busybox").fifo("/tmp/fifo").separate_rootfs()
}
