//! An undirected graph: the neighbours of every vertex, one vertex after the other.

use std::hash::{DefaultHasher, Hash, Hasher};

use pclive_tests::random::Random;

#[derive(Debug)]
pub(crate) struct Graph {
    /// Where the neighbours of each vertex begin; one more at the end.
    starts: Vec<usize>,
    neighbours: Vec<u32>,
}

impl Graph {
    /// Of so many vertices. What connects a vertex with itself is left out.
    pub(crate) fn of(vertices: usize, edges: &[(u32, u32)]) -> Self {
        let ends =
            || edges.iter().filter(|(from, to)| from != to).flat_map(|&(from, to)| [(from, to), (to, from)]);
        let mut starts = vec![0; vertices + 1];
        ends().for_each(|(from, _)| starts[from as usize + 1] += 1);
        for vertex in 0..vertices {
            starts[vertex + 1] += starts[vertex];
        }
        let mut next = starts.clone();
        let mut neighbours = vec![0; starts[vertices]];
        for (from, to) in ends() {
            neighbours[next[from as usize]] = to;
            next[from as usize] += 1;
        }
        for vertex in 0..vertices {
            neighbours[starts[vertex]..starts[vertex + 1]].sort_unstable();
        }
        Self { starts, neighbours }
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Ascending.
    pub(crate) fn neighbours(&self, vertex: u32) -> &[u32] {
        &self.neighbours[self.starts[vertex as usize]..self.starts[vertex as usize + 1]]
    }

    /// A vertex with neighbours.
    pub(crate) fn some_vertex(&self, random: &mut Random) -> u32 {
        loop {
            let vertex = random.below(self.len()) as u32;
            if !self.neighbours(vertex).is_empty() {
                return vertex;
            }
        }
    }

    /// Differs if a byte of the graph does.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.starts, &self.neighbours).hash(&mut hasher);
        hasher.finish()
    }
}
