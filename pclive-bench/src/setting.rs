//! What a run measures: a workload, how it is moved, and the link between the hosts.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use pclive_tests::link::{GIGABIT, Speed, TEN_GIGABIT};
use serde::{Deserialize, Serialize};

/// Runs with the same setting are repetitions of one measurement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) workload: Workload,
    pub(crate) strategy: Strategy,
    pub(crate) link: Link,
    /// How the agents talk.
    pub(crate) channel: Channel,
    /// The limit that `--bandwidth` sets for the rounds, Mbit/s; none: as fast as it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bandwidth: Option<u32>,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {} over {}", self.workload, self.strategy, self.way())
    }
}

impl Setting {
    /// The link, and how it is used when that is not as usual.
    pub(crate) fn way(&self) -> String {
        let plain = match self.channel {
            Channel::Tls => "",
            Channel::Plain => ", in plain text",
        };
        let limit = self.bandwidth.map(|limit| format!(", at most {limit} Mbit/s")).unwrap_or_default();
        format!("{}{plain}{limit}", self.link)
    }

    /// The words for `pclivectl migrate`; none of what it cannot do.
    pub(crate) fn words(&self) -> Option<Vec<String>> {
        let limit = self.bandwidth.map(|limit| ["--bandwidth".into(), format!("{limit}Mbit")]);
        Some(self.strategy.words()?.into_iter().chain(limit.into_iter().flatten()).collect())
    }
}

/// How the agents talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Channel {
    /// By mutual TLS.
    Tls,
    /// In plain text.
    Plain,
}

/// What runs in the container, and what its clients do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Workload {
    /// Redis with records and clients as YCSB's core workload has them.
    Ycsb(Ycsb),
    /// A program that writes its memory all over at a set rate; see the tests' `writer`.
    Stress {
        /// Its memory, MiB.
        mib: u64,
        /// Pages that it writes in a second.
        pages_per_second: u64,
    },
    /// PostgreSQL with transactions as sysbench's `oltp_read_write` has them.
    Oltp(Oltp),
    /// Breadth-first search over a Kronecker graph, as Graph500 has it; see the tests' `graph`.
    Graph {
        /// The graph has two to the power of this vertices, and 16 edges for each.
        scale: u32,
        /// Threads that search together.
        threads: u16,
    },
}

impl Workload {
    /// Whether there are clients whose view is measured.
    pub(crate) fn has_clients(&self) -> bool {
        match self {
            Self::Ycsb(ycsb) => ycsb.clients > 0,
            Self::Oltp(oltp) => oltp.clients > 0,
            Self::Stress { .. } | Self::Graph { .. } => false,
        }
    }

    /// Bytes that the container has in memory, about.
    pub(crate) fn memory_bytes(&self) -> u64 {
        /// What a record of 10 fields takes in Redis 7 and 8, with its key and its table.
        const RECORD_BYTES: u64 = 2000;
        /// 16 edges, told at both ends, what a search knows of a vertex, and the list that the graph is made of.
        const VERTEX_BYTES: u64 = 2 * 16 * 4 + 16 + 16 * 8;
        match self {
            Self::Ycsb(ycsb) => ycsb.records.saturating_mul(RECORD_BYTES),
            Self::Stress { mib, .. } => mib << 20,
            // Most of the table is in files; what is in memory is bounded by the server's buffers.
            Self::Oltp(_) => (2 * BUFFERS_MIB) << 20,
            Self::Graph { scale, .. } => VERTEX_BYTES << scale,
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ycsb(Ycsb { records, clients: 0, .. }) => write!(f, "idle Redis of {records} records"),
            Self::Ycsb(Ycsb { records, reads_percent, clients, rate }) => {
                write!(f, "Redis of {records} records, {reads_percent} % reads")?;
                if *clients != CLIENTS {
                    write!(f, ", {clients} clients")?;
                }
                rate.map_or(Ok(()), |rate| write!(f, ", {rate} requests/s"))
            }
            Self::Stress { mib, pages_per_second } => {
                write!(f, "{mib} MiB, {pages_per_second} pages/s written")
            }
            Self::Oltp(Oltp { rows, clients }) => {
                write!(f, "PostgreSQL, transactions of {clients} clients on {rows} rows")
            }
            Self::Graph { scale, threads } => {
                write!(f, "search over a graph of scale {scale} by {threads} threads")
            }
        }
    }
}

/// Client threads of a Redis that is not idle, if nobody says otherwise.
pub(crate) const CLIENTS: u16 = 4;

/// Shared buffers of PostgreSQL, MiB.
pub(crate) const BUFFERS_MIB: u64 = 256;

/// The parameters of the transactions that are varied here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Oltp {
    /// Rows of the table.
    pub(crate) rows: u64,
    /// Client threads, each on one connection.
    pub(crate) clients: u16,
}

/// The parameters of YCSB's core workload that are varied here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Ycsb {
    /// Records, of 10 fields of 100 bytes.
    pub(crate) records: u64,
    /// Of 100 requests, those that read a record; the others update one field of one.
    pub(crate) reads_percent: u8,
    /// Client threads, each on one connection; none: Redis idles.
    pub(crate) clients: u16,
    /// Requests a second of all clients together, sent on a schedule (open loop); `None`: each client sends its next
    /// request when it has the answer to the last (closed loop).
    pub(crate) rate: Option<u32>,
}

/// How the container is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) enum Strategy {
    /// Everything is staged and restored after the stop.
    OneShot,
    /// A round is put in place while the next one is on its way.
    Pipelined,
    /// The same, with the rounds before this one merged.
    PipelinedAfter(u32),
    /// Rebuilt while it runs at the source.
    Global,
    /// The same, and the last pages follow while it runs at the destination, unless it would stand still for less than
    /// 20 ms with them.
    PostCopy,
    /// Not by PCLive, but by CRIU.
    Criu,
}

/// Before the number of a round.
const RESTORE_AFTER: &str = "pipelined+restore-after-";

impl Strategy {
    fn words(self) -> Option<Vec<String>> {
        let words: &[&str] = match self {
            Self::OneShot => &["--strategy", "one-shot"],
            Self::Pipelined | Self::PipelinedAfter(_) => &["--strategy", "pipelined"],
            Self::Global => &["--strategy", "global"],
            Self::PostCopy => &["--strategy", "global", "--policy", "post-copy", "--max-downtime", "20ms"],
            Self::Criu => return None,
        };
        let mut words: Vec<String> = words.iter().map(|&word| word.into()).collect();
        if let Self::PipelinedAfter(round) = self {
            words.extend(["--restore-after".into(), round.to_string()]);
        }
        Some(words)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneShot => f.write_str("one-shot"),
            Self::Pipelined => f.write_str("pipelined"),
            Self::PipelinedAfter(round) => write!(f, "{RESTORE_AFTER}{round}"),
            Self::Global => f.write_str("global"),
            Self::PostCopy => f.write_str("global+post-copy"),
            Self::Criu => f.write_str("CRIU"),
        }
    }
}

impl FromStr for Strategy {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "one-shot" => Self::OneShot,
            "pipelined" => Self::Pipelined,
            "global" => Self::Global,
            "global+post-copy" => Self::PostCopy,
            "CRIU" => Self::Criu,
            _ => match name.strip_prefix(RESTORE_AFTER) {
                Some(round) => {
                    Self::PipelinedAfter(round.parse().with_context(|| format!("{round} is no round"))?)
                }
                None => bail!(
                    "{name} is no strategy: one-shot, pipelined, {RESTORE_AFTER}N, global, global+post-copy"
                ),
            },
        })
    }
}

impl From<Strategy> for String {
    fn from(strategy: Strategy) -> Self {
        strategy.to_string()
    }
}

impl TryFrom<String> for Strategy {
    type Error = anyhow::Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

/// The link between each host and the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
pub(crate) enum Link {
    /// 1 Gbit/s.
    #[value(name = "1g")]
    #[serde(rename = "1g")]
    Gigabit,
    /// 10 Gbit/s.
    #[value(name = "10g")]
    #[serde(rename = "10g")]
    TenGigabit,
    /// As fast as this machine copies.
    #[value(name = "unshaped")]
    #[serde(rename = "unshaped")]
    Unshaped,
    /// What is between two hosts that are not of a lab.
    #[value(skip)]
    #[serde(rename = "own")]
    Own,
}

impl Link {
    /// For the lab.
    pub(crate) fn speed(self) -> Option<Speed> {
        match self {
            Self::Gigabit => Some(GIGABIT),
            Self::TenGigabit => Some(TEN_GIGABIT),
            Self::Unshaped | Self::Own => None,
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gigabit => "1 Gbit/s",
            Self::TenGigabit => "10 Gbit/s",
            Self::Unshaped => "an unshaped link",
            Self::Own => "the hosts' own link",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRATEGIES: [Strategy; 6] = [
        Strategy::OneShot,
        Strategy::Pipelined,
        Strategy::PipelinedAfter(2),
        Strategy::Global,
        Strategy::PostCopy,
        Strategy::Criu,
    ];

    #[test]
    fn strategies_are_read_as_they_are_written() {
        for strategy in STRATEGIES {
            assert_eq!(strategy.to_string().parse::<Strategy>().unwrap(), strategy);
        }
        for wrong in ["", "globl", "pipelined+restore-after-", "pipelined+restore-after-x"] {
            assert!(wrong.parse::<Strategy>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn settings_survive_their_line() {
        let ycsb = Ycsb { records: 1000, reads_percent: 90, clients: 4, rate: Some(500) };
        for strategy in STRATEGIES {
            for bandwidth in [None, Some(300)] {
                let (workload, link, channel) =
                    (Workload::Ycsb(ycsb.clone()), Link::TenGigabit, Channel::Plain);
                let setting = Setting { workload, strategy, link, channel, bandwidth };
                let line = serde_json::to_string(&setting).unwrap();
                assert_eq!(serde_json::from_str::<Setting>(&line).unwrap(), setting, "{line}");
            }
        }
        assert!(serde_json::from_str::<Strategy>("\"other\"").is_err());
    }

    #[test]
    fn settings_that_differ_are_told_apart() {
        let usual = Ycsb { records: 1000, reads_percent: 90, clients: CLIENTS, rate: None };
        let others = [Ycsb { rate: Some(500), ..usual.clone() }, Ycsb { clients: 9, ..usual.clone() }];
        assert_eq!(Workload::Ycsb(usual).to_string(), "Redis of 1000 records, 90 % reads");
        let told = others.map(|ycsb| Workload::Ycsb(ycsb).to_string());
        assert!(told[0].ends_with("500 requests/s") && told[1].ends_with("9 clients"), "{told:?}");
    }

    #[test]
    fn strategies_and_limits_become_options_of_the_command() {
        let words = |strategy: Strategy| strategy.words().unwrap();
        assert_eq!(words(Strategy::PipelinedAfter(3)), ["--strategy", "pipelined", "--restore-after", "3"]);
        let post_copy = ["--strategy", "global", "--policy", "post-copy", "--max-downtime", "20ms"];
        assert_eq!(words(Strategy::PostCopy), post_copy);
        assert_eq!(Strategy::Criu.words(), None);
        let (workload, link, channel) =
            (Workload::Stress { mib: 1, pages_per_second: 1 }, Link::Gigabit, Channel::Tls);
        let limited = Setting { workload, strategy: Strategy::Global, link, channel, bandwidth: Some(300) };
        assert_eq!(limited.words().unwrap(), ["--strategy", "global", "--bandwidth", "300Mbit"]);
        assert!(limited.to_string().ends_with("over 1 Gbit/s, at most 300 Mbit/s"), "{limited}");
    }
}
