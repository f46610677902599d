//! The checks that Graph500 asks for: the result is a tree, of edges of the graph, of the shortest ways, and has everything
//! that can be reached.

use super::graph::Graph;
use super::search::{NOBODY, Search};

/// How many vertices were reached; or what is wrong.
pub(crate) fn search(graph: &Graph, search: &Search) -> Result<usize, String> {
    let Search { root, parents, .. } = search;
    if parents.len() != graph.len() {
        return Err(format!("it tells of {} vertices of {}", parents.len(), graph.len()));
    }
    let levels = levels(*root, parents)?;
    for (vertex, (&parent, &level)) in (0..).zip(parents.iter().zip(&levels)) {
        if level > 0 && graph.neighbours(vertex).binary_search(&parent).is_err() {
            return Err(format!("{vertex} was reached from {parent}, which is no neighbour"));
        }
        for &neighbour in graph.neighbours(vertex) {
            let other = levels[neighbour as usize];
            // Of vertices that were not reached the level is below all others by more than one.
            if level.abs_diff(other) > 1 {
                return Err(format!("{vertex} has level {level} and its neighbour {neighbour} {other}"));
            }
        }
    }
    Ok(levels.iter().filter(|level| **level >= 0).count())
}

/// A vertex that was not reached.
const NOWHERE: i32 = -10;
/// A vertex that was not looked at.
const UNKNOWN: i32 = -20;

/// How far each vertex is from the root, by its parents.
fn levels(root: u32, parents: &[u32]) -> Result<Vec<i32>, String> {
    if parents.get(root as usize) != Some(&root) {
        return Err("the root is not its own parent".into());
    }
    let mut levels = vec![UNKNOWN; parents.len()];
    levels[root as usize] = 0;
    let mut way = Vec::new();
    for start in 0..parents.len() {
        let mut at = start;
        while levels[at] == UNKNOWN {
            let parent = parents[at];
            if parent == NOBODY {
                levels[at] = NOWHERE;
                break;
            }
            if parent as usize >= parents.len() || way.len() > parents.len() {
                return Err(format!("the way from {start} to the root does not end"));
            }
            way.push(at);
            at = parent as usize;
        }
        if levels[at] < 0 && !way.is_empty() {
            return Err(format!("the way from {start} ends at {at}, which was not reached"));
        }
        let mut level = levels[at];
        while let Some(vertex) = way.pop() {
            level += 1;
            levels[vertex] = level;
        }
    }
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::super::{kronecker, search as searching};
    use super::*;

    fn found() -> (Graph, Search) {
        let graph = Graph::of(1 << 10, &kronecker::edges(10, 16, 3));
        let root = (0..).find(|vertex| !graph.neighbours(*vertex).is_empty()).unwrap();
        let search = searching::run(&graph, root, 3);
        (graph, search)
    }

    #[test]
    fn what_threads_find_together_is_right() {
        let (graph, found) = found();
        assert!(search(&graph, &found).unwrap() > 500);
        assert!(found.levels > 2);
    }

    #[test]
    fn a_result_with_any_other_parent_is_told_from_a_right_one() {
        let (graph, mut found) = found();
        let leaf =
            (0..graph.len()).find(|&v| found.parents[v] != NOBODY && v != found.root as usize).unwrap();
        let stranger =
            (0..graph.len() as u32).find(|v| graph.neighbours(leaf as u32).binary_search(v).is_err());
        for wrong in [NOBODY, leaf as u32, stranger.unwrap(), u32::MAX - 1] {
            let right = std::mem::replace(&mut found.parents[leaf], wrong);
            assert!(search(&graph, &found).is_err(), "{wrong}");
            found.parents[leaf] = right;
        }
        assert!(search(&graph, &found).is_ok());
    }
}
