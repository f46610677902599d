//! `migrate` and `plan`: where to, by which strategy, within which limits.

use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use pclive_proto::control::{
    PlanMigrationRequest, Policy as WirePolicy, StartMigrationRequest, Strategy as WireStrategy,
};

use super::units::{bandwidth, positive_duration, whole_milliseconds};

/// `migrate`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Migrate {
    /// Name of the container at its runtime
    pub(crate) container: String,
    /// Where to: a peer of the agent's configuration, or host:port
    #[arg(long, value_name = "PEER|ADDRESS")]
    pub(crate) to: String,
    /// How memory reaches the destination [default: the agent's configuration]
    #[arg(long, value_enum)]
    pub(crate) strategy: Option<Strategy>,
    /// Merge the rounds before this one at the destination, then build the copy [default: the agent's configuration]
    #[arg(long, value_name = "N")]
    pub(crate) restore_after: Option<u32>,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Most bandwidth of the copy while the container runs: 500Mbit, 1Gbit, or bytes a second
    #[arg(long, value_name = "RATE", value_parser = bandwidth)]
    pub(crate) bandwidth: Option<u64>,
    /// Connections that the pages spread over [default: the agent's configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) streams: Option<u32>,
    /// Compare the memory of both ends before the commit, or not [default: the agent's configuration]
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) verify: Option<bool>,
    /// What becomes of TCP connections; those that the container has with itself are always kept
    #[arg(long, value_enum, default_value_t = Tcp::Keep)]
    pub(crate) tcp: Tcp,
    /// Keep the original, frozen, once the copy runs: `undo` goes back to it while this lasts
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub(crate) keep_source_for: Option<Duration>,
    /// Runtime of the container [default: the one that knows it]
    #[arg(long, value_name = "NAME")]
    pub(crate) runtime: Option<String>,
    /// Accept a destination whose monotonic clock is behind this host's
    #[arg(long)]
    pub(crate) allow_clock_step_back: bool,
    /// An id of your own: asking again with the same one returns the same migration and starts none
    #[arg(long, value_name = "ID")]
    pub(crate) request_id: Option<String>,
    /// Print the migration's id and leave; follow it with watch
    #[arg(long)]
    pub(crate) detach: bool,
}

/// When copying ends, and what happens when the wanted downtime cannot be reached.
#[derive(Debug, ClapArgs)]
pub(crate) struct Limits {
    /// Freeze once the predicted downtime is below this [default: the agent's configuration]
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub(crate) max_downtime: Option<Duration>,
    /// Most rounds while the container runs [default: the agent's configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_rounds: Option<u32>,
    /// Longest time until the rounds end [default: the agent's configuration]
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub(crate) max_time: Option<Duration>,
    /// What to do when the predicted downtime stays too long [default: the agent's configuration]
    #[arg(long, value_enum)]
    pub(crate) policy: Option<Policy>,
}

/// `plan`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Plan {
    /// Name of the container at its runtime
    pub(crate) container: String,
    /// Where to: a peer of the agent's configuration, or host:port
    #[arg(long, value_name = "PEER|ADDRESS", required_unless_present = "bandwidth")]
    pub(crate) to: Option<String>,
    /// As for migrate; without --to the bandwidth of the link: 500Mbit, 1Gbit, or bytes a second
    #[arg(long, value_name = "RATE", value_parser = bandwidth)]
    pub(crate) bandwidth: Option<u64>,
    /// Merge the rounds before this one at the destination [default: the agent's configuration]
    #[arg(long, value_name = "N")]
    pub(crate) restore_after: Option<u32>,
    /// How long to watch the container
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = positive_duration)]
    pub(crate) watch: Duration,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Runtime of the container [default: the one that knows it]
    #[arg(long, value_name = "NAME")]
    pub(crate) runtime: Option<String>,
}

/// How memory reaches the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Strategy {
    /// Stage everything at the destination, restore after the stop
    OneShot,
    /// Rebuild it there while it runs here; a round is put in place while the next one is on its way
    Pipelined,
    /// Rebuild the container at the destination while it runs here
    Global,
}

impl From<Strategy> for WireStrategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::OneShot => Self::OneShot,
            Strategy::Pipelined => Self::Pipelined,
            Strategy::Global => Self::Global,
        }
    }
}

/// What to do when the predicted downtime stays too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// Stop the container all the same
    StopAnyway,
    /// Take CPU time from the container, step by step, until it writes less
    Throttle,
    /// Give the migration up; the container runs on
    Cancel,
    /// Experimental: stop the container for its small state only; its last pages come while it runs at the destination
    PostCopy,
}

impl From<Policy> for WirePolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::StopAnyway => Self::StopAnyway,
            Policy::Throttle => Self::Throttle,
            Policy::Cancel => Self::Cancel,
            Policy::PostCopy => Self::PostCopy,
        }
    }
}

/// What becomes of TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tcp {
    /// They move with the container and its addresses
    Keep,
    /// They end: the container lives with the addresses that the destination gives it, and still listens
    Close,
}

impl Limits {
    fn max_downtime_ms(&self) -> u64 {
        self.max_downtime.map_or(0, whole_milliseconds)
    }

    fn max_time_ms(&self) -> u64 {
        self.max_time.map_or(0, whole_milliseconds)
    }

    fn policy(&self) -> i32 {
        self.policy.map_or(WirePolicy::Unspecified, WirePolicy::from).into()
    }
}

impl Plan {
    /// The request. What was not given is left to the agent's configuration.
    pub(crate) fn request(&self) -> PlanMigrationRequest {
        PlanMigrationRequest {
            container: self.container.clone(),
            runtime: self.runtime.clone().unwrap_or_default(),
            destination: self.to.clone().unwrap_or_default(),
            watch_ms: whole_milliseconds(self.watch),
            bandwidth_bytes_per_second: self.bandwidth.unwrap_or(0),
            max_downtime_ms: self.limits.max_downtime_ms(),
            max_rounds: self.limits.max_rounds.unwrap_or(0),
            max_time_ms: self.limits.max_time_ms(),
            policy: self.limits.policy(),
            restore_after: self.restore_after,
        }
    }
}

impl Migrate {
    /// The request. What was not given is left to the agent's configuration.
    pub(crate) fn request(&self) -> StartMigrationRequest {
        StartMigrationRequest {
            container: self.container.clone(),
            destination: self.to.clone(),
            strategy: self.strategy.map_or(WireStrategy::Unspecified, WireStrategy::from).into(),
            runtime: self.runtime.clone().unwrap_or_default(),
            max_downtime_ms: self.limits.max_downtime_ms(),
            max_rounds: self.limits.max_rounds.unwrap_or(0),
            allow_clock_step_back: self.allow_clock_step_back,
            policy: self.limits.policy(),
            max_time_ms: self.limits.max_time_ms(),
            bandwidth_bytes_per_second: self.bandwidth.unwrap_or(0),
            request_id: self.request_id.clone().unwrap_or_default(),
            restore_after: self.restore_after,
            streams: self.streams.unwrap_or(0),
            verify: self.verify,
            close_connections: self.tcp == Tcp::Close,
            keep_source_for_ms: self.keep_source_for.map_or(0, whole_milliseconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Args, Command};
    use super::*;

    fn migrate(arguments: &[&str]) -> Result<StartMigrationRequest, clap::Error> {
        let all = ["pclivectl", "migrate", "redis-1", "--to", "host-b"].iter().chain(arguments);
        Args::try_parse_from(all).map(|args| match args.command {
            Command::Migrate(migrate) => migrate.request(),
            other => panic!("parsed as {other:?}"),
        })
    }

    #[test]
    fn what_is_not_given_is_left_to_the_agent() {
        let expected = StartMigrationRequest {
            container: "redis-1".into(),
            destination: "host-b".into(),
            ..StartMigrationRequest::default()
        };
        assert_eq!(migrate(&[]).unwrap(), expected);
    }

    #[test]
    fn every_option_of_migrate_reaches_the_request() {
        let arguments = [
            "--strategy",
            "pipelined",
            "--restore-after",
            "2",
            "--max-downtime",
            "300ms",
            "--max-rounds",
            "7",
            "--max-time",
            "2min",
            "--policy",
            "throttle",
            "--bandwidth",
            "500Mbit",
            "--runtime",
            "runc",
            "--allow-clock-step-back",
            "--request-id",
            "job-7",
            "--verify",
            "--tcp",
            "close",
            "--keep-source-for",
            "10min",
        ];
        let expected = StartMigrationRequest {
            container: "redis-1".into(),
            destination: "host-b".into(),
            strategy: WireStrategy::Pipelined.into(),
            runtime: "runc".into(),
            max_downtime_ms: 300,
            max_rounds: 7,
            allow_clock_step_back: true,
            policy: WirePolicy::Throttle.into(),
            max_time_ms: 120_000,
            bandwidth_bytes_per_second: 62_500_000,
            request_id: "job-7".into(),
            restore_after: Some(2),
            streams: 0,
            verify: Some(true),
            close_connections: true,
            keep_source_for_ms: 600_000,
        };
        assert_eq!(migrate(&arguments).unwrap(), expected);
    }

    #[test]
    fn restoring_from_the_first_round_on_is_not_taken_for_the_default() {
        assert_eq!(migrate(&["--restore-after", "0"]).unwrap().restore_after, Some(0));
        assert_eq!(migrate(&[]).unwrap().restore_after, None);
    }

    #[test]
    fn a_comparison_can_be_switched_off_against_the_configuration() {
        assert_eq!(migrate(&["--verify=false"]).unwrap().verify, Some(false));
        assert_eq!(migrate(&[]).unwrap().verify, None);
        assert_eq!(migrate(&["--verify=perhaps"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_downtime_below_a_millisecond_is_not_taken_for_the_default() {
        assert_eq!(migrate(&["--max-downtime", "200us"]).unwrap().max_downtime_ms, 1);
    }

    #[test]
    fn times_without_a_unit_and_empty_limits_are_wrong_usage() {
        for arguments in [["--max-downtime", "300"], ["--max-downtime", "0ms"], ["--max-rounds", "0"]] {
            assert_eq!(migrate(&arguments).unwrap_err().exit_code(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn a_plan_needs_a_destination_or_a_bandwidth() {
        let parse = |arguments: &[&str]| {
            Args::try_parse_from([&["pclivectl", "plan", "redis-1"], arguments].concat())
        };
        assert_eq!(parse(&[]).unwrap_err().exit_code(), 2);
        assert!(parse(&["--to", "host-b"]).is_ok());
        let all = ["--bandwidth", "1Gbit", "--max-downtime", "50ms", "--restore-after", "2"];
        let Command::Plan(plan) = parse(&all).unwrap().command else { panic!("not a plan") };
        let expected = PlanMigrationRequest {
            container: "redis-1".into(),
            watch_ms: 3000,
            bandwidth_bytes_per_second: 125_000_000,
            max_downtime_ms: 50,
            restore_after: Some(2),
            ..PlanMigrationRequest::default()
        };
        assert_eq!(plan.request(), expected);
    }
}
