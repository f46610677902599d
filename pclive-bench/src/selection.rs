//! Which settings are measured, and in which order.

use std::collections::BTreeSet;

use clap::ValueEnum;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::setting::{CLIENTS, Channel, Link, Oltp, Setting, Strategy, Workload, Ycsb};

/// A ready-made set of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Selection {
    /// About a quarter of an hour on two CPUs.
    Quick,
    /// The paper's tables: hours, and 13 GiB of memory.
    Full,
}

impl Selection {
    /// Its settings.
    pub(crate) fn settings(self, channel: Channel) -> BTreeSet<Setting> {
        let parts = match self {
            Self::Quick => vec![
                Axes {
                    strategies: vec![Strategy::OneShot, Strategy::Pipelined, Strategy::Global],
                    workloads: ycsb(&[250_000], &[10, 90]),
                    links: vec![Link::Gigabit, Link::TenGigabit],
                    bandwidth: None,
                },
                Axes {
                    strategies: vec![Strategy::OneShot, Strategy::Global],
                    workloads: ycsb(&[50_000, 500_000], &[90]),
                    links: vec![Link::TenGigabit],
                    bandwidth: None,
                },
                Axes {
                    strategies: vec![Strategy::Global],
                    workloads: [
                        stress(512, &[1_000, 10_000, 50_000]),
                        vec![idle(250_000), graph(18), oltp(100_000)],
                    ]
                    .concat(),
                    links: vec![Link::TenGigabit],
                    bandwidth: None,
                },
                half_of_a_gigabit(ycsb(&[250_000], &[90])),
            ],
            Self::Full => vec![
                Axes {
                    strategies: vec![
                        Strategy::OneShot,
                        Strategy::Pipelined,
                        Strategy::PipelinedAfter(2),
                        Strategy::Global,
                        Strategy::PostCopy,
                    ],
                    workloads: ycsb(&[1_000_000], &[10, 30, 50, 70, 90]),
                    links: vec![Link::Gigabit, Link::TenGigabit],
                    bandwidth: None,
                },
                Axes {
                    strategies: vec![Strategy::OneShot, Strategy::Pipelined, Strategy::Global],
                    workloads: ycsb(&[250_000, 500_000, 1_000_000, 2_000_000], &[90]),
                    links: vec![Link::TenGigabit],
                    bandwidth: None,
                },
                Axes {
                    strategies: vec![Strategy::OneShot, Strategy::Global],
                    workloads: ycsb(&[1_000_000], &[10, 90]),
                    links: vec![Link::Unshaped],
                    bandwidth: None,
                },
                Axes {
                    strategies: vec![Strategy::OneShot, Strategy::Global, Strategy::PostCopy],
                    workloads: stress(2048, &[1_000, 5_000, 20_000, 50_000, 100_000]),
                    links: vec![Link::TenGigabit],
                    bandwidth: None,
                },
                Axes {
                    strategies: vec![Strategy::OneShot, Strategy::Pipelined, Strategy::Global],
                    workloads: vec![graph(20), graph(22), oltp(1_000_000)],
                    links: vec![Link::Gigabit, Link::TenGigabit],
                    bandwidth: None,
                },
                Axes {
                    strategies: vec![Strategy::Global],
                    workloads: [stress(4096, &[50_000]), vec![idle(1_000_000)]].concat(),
                    links: vec![Link::TenGigabit],
                    bandwidth: None,
                },
                half_of_a_gigabit(ycsb(&[1_000_000], &[10, 50, 90])),
            ],
        };
        parts.iter().flat_map(|part| part.settings(channel)).collect()
    }
}

/// What a limit leaves to clients, and what it takes.
fn half_of_a_gigabit(workloads: Vec<Workload>) -> Axes {
    Axes { strategies: vec![Strategy::Global], workloads, links: vec![Link::Gigabit], bandwidth: Some(500) }
}

/// All combinations of these.
#[derive(Debug, Clone)]
pub(crate) struct Axes {
    pub(crate) strategies: Vec<Strategy>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) links: Vec<Link>,
    /// One limit for all of them, Mbit/s.
    pub(crate) bandwidth: Option<u32>,
}

impl Axes {
    /// The combinations.
    pub(crate) fn settings(&self, channel: Channel) -> BTreeSet<Setting> {
        let mut settings = BTreeSet::new();
        for workload in &self.workloads {
            for &strategy in &self.strategies {
                let with = |&link| Setting {
                    workload: workload.clone(),
                    strategy,
                    link,
                    channel,
                    bandwidth: self.bandwidth,
                };
                settings.extend(self.links.iter().map(with));
            }
        }
        settings
    }
}

fn ycsb(records: &[u64], reads: &[u8]) -> Vec<Workload> {
    let of = |&records: &u64| {
        reads.iter().map(move |&reads_percent| {
            Workload::Ycsb(Ycsb { records, reads_percent, clients: CLIENTS, rate: None })
        })
    };
    records.iter().flat_map(of).collect()
}

fn idle(records: u64) -> Workload {
    Workload::Ycsb(Ycsb { records, reads_percent: 100, clients: 0, rate: None })
}

fn stress(mib: u64, rates: &[u64]) -> Vec<Workload> {
    rates.iter().map(|&pages_per_second| Workload::Stress { mib, pages_per_second }).collect()
}

fn oltp(rows: u64) -> Workload {
    Workload::Oltp(Oltp { rows, clients: CLIENTS })
}

fn graph(scale: u32) -> Workload {
    Workload::Graph { scale, threads: 2 }
}

/// Every run of these settings in an order that the seed chooses, so that what changes on the machine meanwhile does
/// not favour one of them.
pub(crate) fn order(settings: &BTreeSet<Setting>, repetitions: u32, seed: u64) -> Vec<(Setting, u32)> {
    let each = |repetition| settings.iter().map(move |setting| (setting.clone(), repetition));
    let mut runs: Vec<_> = (1..=repetitions).flat_map(each).collect();
    runs.shuffle(&mut StdRng::seed_from_u64(seed));
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_has_every_run_once_and_repeats_with_its_seed() {
        let settings = Selection::Quick.settings(Channel::Tls);
        let runs = order(&settings, 2, 1);
        assert_eq!(runs, order(&settings, 2, 1));
        assert_ne!(runs, order(&settings, 2, 2));
        let distinct: BTreeSet<_> = runs.iter().cloned().collect();
        assert_eq!((runs.len(), distinct.len()), (2 * settings.len(), 2 * settings.len()));
    }

    #[test]
    fn every_selection_has_one_shot_beside_global() {
        for selection in Selection::value_variants() {
            let settings = selection.settings(Channel::Plain);
            for reads_percent in [10, 90] {
                for strategy in [Strategy::OneShot, Strategy::Global] {
                    let wanted = |setting: &&Setting| {
                        matches!(&setting.workload, Workload::Ycsb(ycsb) if ycsb.reads_percent == reads_percent)
                            && setting.strategy == strategy
                            && setting.link == Link::Gigabit
                    };
                    assert!(settings.iter().any(|setting| wanted(&setting)), "{selection:?} {strategy}");
                }
            }
        }
    }
}
