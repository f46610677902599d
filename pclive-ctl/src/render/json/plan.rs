//! `plan`.

use pclive_proto::control::{Plan as WirePlan, PlanMigrationResponse, WrittenPages};
use serde::Serialize;

use crate::render::name;

/// How a migration would go.
#[derive(Debug, Serialize)]
pub(crate) struct Plan<'a> {
    container: &'a str,
    to: Option<&'a str>,
    memory_pages: u64,
    bandwidth_bytes_per_second: u64,
    written: Vec<Written>,
    plans: Vec<Course<'a>>,
    recommended: Option<&'static str>,
    reason: &'a str,
}

impl<'a> Plan<'a> {
    /// What was found about this container on its way to this destination.
    pub(crate) fn new(container: &'a str, to: Option<&'a str>, found: &'a PlanMigrationResponse) -> Self {
        Self {
            container,
            to,
            memory_pages: found.memory_pages,
            bandwidth_bytes_per_second: found.bandwidth_bytes_per_second,
            written: found.written.iter().map(Written::from).collect(),
            plans: found.plans.iter().map(Course::from).collect(),
            recommended: name::strategy_json(found.recommended()),
            reason: &found.reason,
        }
    }
}

#[derive(Debug, Serialize)]
struct Written {
    after_ms: u64,
    pages: u64,
}

impl From<&WrittenPages> for Written {
    fn from(written: &WrittenPages) -> Self {
        Self { after_ms: written.after_ms, pages: written.pages }
    }
}

#[derive(Debug, Serialize)]
struct Course<'a> {
    strategy: Option<&'static str>,
    /// Without the final one.
    rounds: u32,
    bytes: u64,
    total_ns: u64,
    downtime_ns: u64,
    tail_bytes: u64,
    destination_memory_bytes: u64,
    converges: bool,
    verdict: &'a str,
}

impl<'a> From<&'a WirePlan> for Course<'a> {
    fn from(plan: &'a WirePlan) -> Self {
        Self {
            strategy: name::strategy_json(plan.strategy()),
            rounds: plan.rounds,
            bytes: plan.bytes,
            total_ns: plan.total_ns,
            downtime_ns: plan.downtime_ns,
            tail_bytes: plan.tail_bytes,
            destination_memory_bytes: plan.destination_memory_bytes,
            converges: plan.converges,
            verdict: &plan.verdict,
        }
    }
}
