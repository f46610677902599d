//! Which record a request is for.

use anyhow::{Context, Result};
use rand::distr::Distribution;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::Zipf;
use xxhash_rust::xxh3::xxh3_64;

/// YCSB's skew: a few records are asked for most of the time.
const THETA: f64 = 0.99;

/// Chooses records by a zipfian distribution whose popular ones are spread over the whole key space ("scrambled").
#[derive(Debug)]
pub(super) struct Keys {
    records: u64,
    zipf: Zipf<f64>,
    random: StdRng,
}

impl Keys {
    /// # Errors
    /// When there are no records.
    pub(super) fn new(records: u64, seed: u64) -> Result<Self> {
        let zipf = Zipf::new(records as f64, THETA).with_context(|| format!("{records} records"))?;
        Ok(Self { records, zipf, random: StdRng::seed_from_u64(seed) })
    }

    /// The record of the next request.
    pub(super) fn record(&mut self) -> u64 {
        let rank = self.zipf.sample(&mut self.random) as u64;
        xxh3_64(&rank.to_le_bytes()) % self.records
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: u8) -> u8 {
        self.random.random_range(0..end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const RECORDS: u64 = 10_000;
    const DRAWS: u32 = 200_000;

    fn counts() -> Vec<(u64, u32)> {
        let mut keys = Keys::new(RECORDS, 7).unwrap();
        let mut counts = HashMap::new();
        (0..DRAWS).for_each(|_| *counts.entry(keys.record()).or_insert(0) += 1);
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        counts
    }

    #[test]
    fn popularity_falls_with_the_rank_as_zipf_says() {
        let sum: f64 = (1..=RECORDS).map(|rank| (rank as f64).powf(-THETA)).sum();
        let counts = counts();
        for rank in [1_usize, 2, 4, 8] {
            let expected = f64::from(DRAWS) * (rank as f64).powf(-THETA) / sum;
            let found = f64::from(counts[rank - 1].1);
            assert!((found / expected - 1.0).abs() < 0.1, "rank {rank}: {found} of {expected}");
        }
    }

    #[test]
    fn popular_records_are_spread_over_the_key_space() {
        let popular: Vec<u64> = counts().into_iter().take(100).map(|(record, _)| record).collect();
        let low = popular.iter().filter(|&&record| record < RECORDS / 2).count();
        assert!((30..70).contains(&low), "{low} of 100 in the lower half");
        assert!(popular.iter().all(|&record| record < RECORDS));
    }

    #[test]
    fn one_seed_makes_one_sequence() {
        let sequence = |seed| {
            let mut keys = Keys::new(RECORDS, seed).unwrap();
            (0..100).map(|_| keys.record()).collect::<Vec<_>>()
        };
        assert_eq!(sequence(1), sequence(1));
        assert_ne!(sequence(1), sequence(2));
    }

    #[test]
    fn nothing_can_be_chosen_of_no_records() {
        assert!(Keys::new(0, 1).is_err());
    }
}
