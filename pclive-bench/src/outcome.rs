//! What came out of a run: one line of `runs.jsonl`.

use std::time::Duration;

use pclive_tests::ctl::Report;
use pclive_tests::footprint::Footprint;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::setting::Setting;
use crate::view::ClientView;

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    /// What was measured.
    pub(crate) setting: Setting,
    /// Which of the runs with this setting.
    pub(crate) repetition: u32,
    /// Of the contents and of the clients' choices.
    pub(crate) seed: u64,
    /// Unix time of its begin.
    pub(crate) began_unix_ms: u64,
    /// Where.
    pub(crate) machine: Machine,
    /// How it ended.
    pub(crate) outcome: Outcome,
}

impl Run {
    /// Whether both measure the same for the same time.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.setting, self.repetition) == (&other.setting, other.repetition)
    }

    /// What was measured, if it was.
    pub(crate) fn measures(&self) -> Option<&Measures> {
        match &self.outcome {
            Outcome::Measured(measures) => Some(measures),
            Outcome::Failed { .. } => None,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// With measurements.
    Measured(Box<Measures>),
    /// With an error. The next session measures it again.
    Failed {
        /// In words.
        why: String,
    },
}

/// The measurements of one migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measures {
    /// The agents' report.
    pub(crate) report: Report,
    /// What the clients saw; none of a container without clients.
    pub(crate) clients: Option<ClientView>,
    /// The container beside its copy, where both hosts can be looked into.
    pub(crate) container: Option<ContainerCost>,
}

/// What the container takes itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerCost {
    /// At the source, before the migration.
    pub(crate) at_rest: Footprint,
    /// At the destination, after it.
    pub(crate) afterwards: Footprint,
    /// CPU time that it used in each second before the migration.
    pub(crate) cpu_at_rest: f64,
    /// The same while rounds ran; `None` when that was too short to tell.
    #[serde(default)]
    pub(crate) cpu_in_rounds: Option<f64>,
}

impl Measures {
    /// How long the container stood still.
    pub(crate) fn downtime(&self) -> Duration {
        Duration::from_nanos(self.report.downtime_ns)
    }

    /// The destination's part of it.
    pub(crate) fn restore(&self) -> Duration {
        Duration::from_nanos(self.report.restore_ns)
    }

    /// CPU seconds of each end's agent per GiB that was sent: source, destination. `None` when little was sent: what a
    /// migration costs besides would be told as a cost of each GiB.
    pub(crate) fn cpu_per_gib(&self) -> Option<[f64; 2]> {
        /// Bytes that tell the cost of more.
        const ENOUGH: u64 = 256 << 20;
        let gib = self.report.bytes as f64 / f64::from(1 << 30);
        let per_gib = |cpu_ns: u64| cpu_ns as f64 / 1e9 / gib;
        let (source, destination) = (self.report.source.as_ref()?, self.report.destination.as_ref()?);
        (self.report.bytes >= ENOUGH).then(|| [per_gib(source.cpu_ns), per_gib(destination.cpu_ns)])
    }

    /// Memory that the agents took at most, both together.
    pub(crate) fn agents_memory(&self) -> Option<u64> {
        let peak = |usage: &Option<pclive_tests::ctl::Usage>| Some(usage.as_ref()?.peak_memory_bytes);
        Some(peak(&self.report.source)? + peak(&self.report.destination)?)
    }
}
