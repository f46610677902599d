//! A search that several threads make together, level by level.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, PoisonError, RwLock};

use super::graph::Graph;

/// No parent: the search has not come there.
pub(crate) const NOBODY: u32 = u32::MAX;
/// Vertices that a thread takes at a time.
const PIECE: usize = 64;

/// What a search has found.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) root: u32,
    /// From which vertex each was reached; the root from itself.
    pub(crate) parents: Vec<u32>,
    pub(crate) levels: usize,
}

/// One level, while threads work on it.
struct Level {
    vertices: RwLock<Vec<u32>>,
    next: AtomicUsize,
    found: Mutex<Vec<u32>>,
}

/// Searches from `root` with so many threads.
pub(crate) fn run(graph: &Graph, root: u32, threads: usize) -> Search {
    let parents: Vec<AtomicU32> = (0..graph.len()).map(|_| AtomicU32::new(NOBODY)).collect();
    parents[root as usize].store(root, Ordering::Relaxed);
    let level =
        Level { vertices: RwLock::new(vec![root]), next: AtomicUsize::new(0), found: Mutex::default() };
    let (barrier, levels) = (Barrier::new(threads), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !level.vertices.read().unwrap_or_else(PoisonError::into_inner).is_empty() {
                    level.work(graph, &parents);
                    if barrier.wait().is_leader() {
                        level.advance();
                        levels.fetch_add(1, Ordering::Relaxed);
                    }
                    barrier.wait();
                }
            });
        }
    });
    let parents = parents.into_iter().map(AtomicU32::into_inner).collect();
    Search { root, parents, levels: levels.into_inner() }
}

impl Level {
    /// Looks at vertices until none is left.
    fn work(&self, graph: &Graph, parents: &[AtomicU32]) {
        let vertices = self.vertices.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        loop {
            let start = self.next.fetch_add(PIECE, Ordering::Relaxed).min(vertices.len());
            let piece = &vertices[start..vertices.len().min(start + PIECE)];
            if piece.is_empty() {
                break;
            }
            for &vertex in piece {
                found.extend(graph.neighbours(vertex).iter().copied().filter(|&neighbour| {
                    let (parent, relaxed) = (&parents[neighbour as usize], Ordering::Relaxed);
                    parent.load(relaxed) == NOBODY
                        && parent.compare_exchange(NOBODY, vertex, relaxed, relaxed).is_ok()
                }));
            }
        }
        self.found.lock().unwrap_or_else(PoisonError::into_inner).append(&mut found);
    }

    /// Goes to the next level, while nobody works.
    fn advance(&self) {
        let found = std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner));
        *self.vertices.write().unwrap_or_else(PoisonError::into_inner) = found;
        self.next.store(0, Ordering::Relaxed);
    }
}
