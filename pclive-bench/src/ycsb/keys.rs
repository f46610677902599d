//! Which record a request is for.

use anyhow::{Result, ensure};
use rand::distr::Distribution;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::Zipf;
use xxhash_rust::xxh3::xxh3_64;

use super::record::seed_of;

/// YCSB's skew: a few records are asked for most of the time.
const THETA: f64 = 0.99;
/// Ranks of which it draws, more than there are records: several ranks are for each, so that every record is asked for.
const RANKS: f64 = 1e10;

/// Chooses records by a zipfian distribution whose popular ones are spread over the whole key space ("scrambled").
#[derive(Debug)]
pub(super) struct Keys {
    records: u64,
    zipf: Zipf<f64>,
    random: StdRng,
}

impl Keys {
    /// Those of a client.
    ///
    /// # Errors
    /// When there are no records.
    pub(super) fn new(records: u64, seed: u64, client: u16) -> Result<Self> {
        ensure!(records > 0, "no records to ask for");
        let random = StdRng::seed_from_u64(seed_of(seed, u64::from(client)));
        Ok(Self { records, zipf: Zipf::new(RANKS, THETA)?, random })
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
        let mut keys = Keys::new(RECORDS, 7, 0).unwrap();
        let mut counts = HashMap::new();
        (0..DRAWS).for_each(|_| *counts.entry(keys.record()).or_insert(0) += 1);
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        counts
    }

    #[test]
    fn popularity_falls_with_the_rank_as_zipf_says() {
        // The sum over all ranks; by the integral where that differs by less than a thousandth.
        let head: f64 = (1..=100_000).map(|rank| f64::from(rank).powf(-THETA)).sum();
        let sum = head + (RANKS.powf(1.0 - THETA) - 100_000_f64.powf(1.0 - THETA)) / (1.0 - THETA);
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
        let sequence = |seed, client| {
            let mut keys = Keys::new(RECORDS, seed, client).unwrap();
            (0..100).map(|_| keys.record()).collect::<Vec<_>>()
        };
        assert_eq!(sequence(1, 0), sequence(1, 0));
        let all = (0..4).flat_map(|seed| (0..4).map(move |client| sequence(seed, client)));
        assert_eq!(all.collect::<std::collections::HashSet<_>>().len(), 16);
    }

    #[test]
    fn nearly_every_record_is_asked_for() {
        assert!(counts().len() as u64 > RECORDS * 99 / 100);
    }

    #[test]
    fn nothing_can_be_chosen_of_no_records() {
        assert!(Keys::new(0, 1, 0).is_err());
    }
}
