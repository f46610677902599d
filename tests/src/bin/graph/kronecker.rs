//! The graph of Graph500: edges that fall into quadrants of the adjacency matrix with fixed probabilities, at every scale
//! down to a single vertex; then all vertices get other numbers.

use pclive_tests::random::Random;

/// Of 100 edges, how many fall into the quadrants; the rest into the last one.
const QUADRANTS: [u64; 3] = [57, 19, 19];

/// `factor` edges for each of two to the power of `scale` vertices. Some connect a vertex with itself, some come twice.
pub(crate) fn edges(scale: u32, factor: u32, seed: u64) -> Vec<(u32, u32)> {
    let mut random = Random::new(seed);
    let names = shuffled(1 << scale, &mut random);
    let count = (1_usize << scale) * factor as usize;
    let edge = |_| {
        let (from, to) = place(scale, &mut random);
        (names[from], names[to])
    };
    (0..count).map(edge).collect()
}

fn place(scale: u32, random: &mut Random) -> (usize, usize) {
    let (mut from, mut to) = (0, 0);
    for _ in 0..scale {
        let number = random.next() % 100;
        let [first, second, third] = QUADRANTS;
        let (down, right) = match number {
            number if number < first => (0, 0),
            number if number < first + second => (0, 1),
            number if number < first + second + third => (1, 0),
            _ => (1, 1),
        };
        (from, to) = (from << 1 | down, to << 1 | right);
    }
    (from, to)
}

/// The numbers below `count` in another order.
fn shuffled(count: u32, random: &mut Random) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..count).collect();
    for index in (1..numbers.len()).rev() {
        numbers.swap(index, random.below(index + 1));
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_edges_as_asked_for_among_the_vertices_and_a_few_vertices_have_most_of_them() {
        let edges = edges(10, 16, 7);
        assert_eq!(edges.len(), 16 << 10);
        assert!(edges.iter().all(|(from, to)| *from < 1024 && *to < 1024));
        let mut degrees = vec![0_usize; 1024];
        edges.iter().for_each(|(from, to)| [*from, *to].iter().for_each(|end| degrees[*end as usize] += 1));
        degrees.sort_unstable();
        let most: usize = degrees.iter().rev().take(100).sum();
        assert!(most > edges.len(), "a tenth of the vertices has half of the ends: {most}");
        assert_eq!(edges, super::edges(10, 16, 7), "the same seed makes the same graph");
    }
}
