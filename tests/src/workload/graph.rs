//! Breadth-first search of `src/bin/graph`, as Graph500 has it, in a container.

use crate::bundle::Bundle;

/// The container: `graph` with two to the power of `scale` vertices, searched by so many threads.
pub fn bundle(name: &str, scale: u32, threads: u16) -> Bundle {
    let (scale, threads) = (scale.to_string(), threads.to_string());
    Bundle::new(name, &["/usr/bin/graph", "--scale", &scale, "--threads", &threads]).own_program("graph")
}
