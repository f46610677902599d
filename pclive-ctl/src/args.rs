//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};
use pclive_proto::control::{
    PlanMigrationRequest, Policy as WirePolicy, Resolution, ResolveMigrationRequest, StartMigrationRequest,
    Strategy as WireStrategy,
};
use pclive_tls::Role;

use crate::address::Address;

const EXIT_CODES: &str = "\
Exit codes:
  0    migrated; or the command did what it was asked
  1    the migration failed and the container runs on at the source; or the command could not be carried out
  2    wrong usage
  3    it is not known where the container runs: look at both hosts before starting anything
  130  left by a second Ctrl-C: the migration goes on

docs/CLI.md describes every command, the JSON output and the exit codes.";

/// Moves running containers between hosts.
#[derive(Debug, Parser)]
#[command(name = "pclivectl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Args {
    /// The agent: unix:///path, a path, or https://host:port (http:// for an agent that is configured to be insecure)
    #[arg(
        long,
        global = true,
        env = "PCLIVE_AGENT",
        value_name = "ADDRESS",
        default_value = "unix:///run/pclive/agent.sock",
        value_hint = ValueHint::FilePath
    )]
    pub(crate) agent: Address,
    /// How https is spoken.
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Print JSON: one document, or one event a line for migrate and watch
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// How long to keep asking an agent that stopped answering while a migration is followed
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) patience: Duration,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Certificates for an agent at https://host:port.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Tls {
    /// https: your certificate, which carries your role (pclivectl certs issue --role)
    #[arg(long, global = true, env = "PCLIVE_CERT", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) cert: Option<PathBuf>,
    /// https: the certificate's key
    #[arg(long, global = true, env = "PCLIVE_KEY", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key: Option<PathBuf>,
    /// https: the CA that the agent's certificate is of
    #[arg(
        long,
        global = true,
        env = "PCLIVE_CA",
        value_name = "FILE",
        default_value = "/etc/pclive/tls/ca.pem",
        value_hint = ValueHint::FilePath
    )]
    pub(crate) ca: PathBuf,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Move a container to another host and follow it to the end
    #[command(after_help = EXIT_CODES)]
    Migrate(Migrate),
    /// List the migrations that the agent knows, newest first
    List,
    /// Show a migration; the exit code tells its state
    #[command(after_help = EXIT_CODES)]
    Status(Id),
    /// Follow a migration to its end; Ctrl-C leaves it alone
    #[command(after_help = EXIT_CODES)]
    Watch(Id),
    /// Ask the agent to give up a migration; the container runs on at the source
    Cancel(Id),
    /// Decide where a container belongs whose migration is in doubt; the other agent is asked first
    #[command(after_help = EXIT_CODES)]
    Resolve(Resolve),
    /// List everything that stands in the way of migrating a container; exits with 1 if there is anything
    Check(Check),
    /// Watch a container for some seconds and say how its migration would go; nothing is stopped
    Plan(Plan),
    /// List the containers of this host
    Containers,
    /// Show the host: agent, kernel, runtimes, peers
    Host,
    /// Make a CA, and certificates for agents and users; needs no agent
    Certs(Certs),
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

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
    /// Bandwidth of the link, instead of measuring it: 500Mbit, 1Gbit, or bytes a second
    #[arg(long, value_name = "RATE", value_parser = bandwidth)]
    pub(crate) bandwidth: Option<u64>,
    /// How long to watch the container
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = positive_duration)]
    pub(crate) watch: Duration,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Runtime of the container [default: the one that knows it]
    #[arg(long, value_name = "NAME")]
    pub(crate) runtime: Option<String>,
}

/// `certs`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Certs {
    /// Where CA, certificates and keys are
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = "/etc/pclive/tls")]
    pub(crate) dir: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: CertsCommand,
}

/// The commands of `certs`.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make the CA: ca.pem for every host, ca.key for nobody else
    Init {
        /// Its name in certificates
        #[arg(long, default_value = "PCLive CA")]
        name: String,
        /// How long it is valid
        #[arg(long, value_name = "TIME", default_value = "3650days", value_parser = validity)]
        valid: Duration,
    },
    /// Issue a certificate: NAME.pem and NAME.key
    Issue(Issue),
    /// Show what is in certificates; exits with 1 if one of them is not valid now
    Show {
        /// The files [default: every .pem of the directory]
        files: Vec<PathBuf>,
    },
}

/// `certs issue`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Issue {
    /// The agent's name, as in agent.name and as other agents list it; with --role, the user's
    pub(crate) name: String,
    /// An IP address by which the agent is called, too; may be repeated
    #[arg(long, value_name = "IP", conflicts_with = "role")]
    pub(crate) address: Vec<IpAddr>,
    /// Issue it to a user of the control API: a viewer looks, an operator does everything
    #[arg(long, value_name = "viewer|operator")]
    pub(crate) role: Option<Role>,
    /// How long it is valid, at most as long as the CA
    #[arg(long, value_name = "TIME", default_value = "825days", value_parser = validity)]
    pub(crate) valid: Duration,
    /// Replace a certificate that is there: both files, by renaming
    #[arg(long)]
    pub(crate) replace: bool,
}

/// A command about one migration.
#[derive(Debug, ClapArgs)]
pub(crate) struct Id {
    /// The migration's id
    pub(crate) id: String,
}

/// `resolve`.
#[derive(Debug, ClapArgs)]
#[command(group = clap::ArgGroup::new("decision").required(true))]
pub(crate) struct Resolve {
    /// The migration's id
    pub(crate) id: String,
    /// Let the container run on here, at its source
    #[arg(long, group = "decision")]
    pub(crate) run_here: bool,
    /// Remove the container here: it runs at the destination
    #[arg(long, group = "decision")]
    pub(crate) discard_here: bool,
    /// Do it although the destination does not confirm it: two copies may run then, or none
    #[arg(long)]
    pub(crate) r#override: bool,
}

/// `check`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Check {
    /// Name of the container at its runtime
    pub(crate) container: String,
    /// Also ask this peer whether it would take the container
    #[arg(long, value_name = "PEER|ADDRESS")]
    pub(crate) to: Option<String>,
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
}

impl From<Policy> for WirePolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::StopAnyway => Self::StopAnyway,
            Policy::Throttle => Self::Throttle,
            Policy::Cancel => Self::Cancel,
        }
    }
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
        }
    }
}

impl Resolve {
    /// The request.
    pub(crate) fn request(&self) -> ResolveMigrationRequest {
        let resolution = if self.run_here { Resolution::RunHere } else { Resolution::DiscardHere };
        ResolveMigrationRequest {
            migration_id: self.id.clone(),
            resolution: resolution.into(),
            r#override: self.r#override,
        }
    }
}

/// Rounded up, so that a positive time never becomes 0 (which means "the default").
fn whole_milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and its unit, as in 300ms"))
}

/// `500Mbit`, `1Gbit`, `800kbit` (decimal, a second), or bytes a second: `62500000`, `60MiB`, `60MB`.
fn bandwidth(text: &str) -> Result<u64, String> {
    let wrong = || "write a rate like 500Mbit, 1Gbit, 60MiB or bytes a second".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit_bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        "kbit" => 1e3 / 8.0,
        "mbit" => 1e6 / 8.0,
        "gbit" => 1e9 / 8.0,
        _ => return Err(wrong()),
    };
    // A cast of a float saturates.
    match (number * unit_bytes).round() as u64 {
        0 => Err("must be more than nothing".to_owned()),
        bytes => Ok(bytes),
    }
}

/// At most 100 years: certificates end before the year 9999.
fn validity(text: &str) -> Result<Duration, String> {
    let time = positive_duration(text)?;
    let longest = Duration::from_secs(100 * 366 * 24 * 3600);
    if time > longest { Err("must be at most 100 years".to_owned()) } else { Ok(time) }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than nothing".to_owned()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn migrate(arguments: &[&str]) -> Result<StartMigrationRequest, clap::Error> {
        let all = ["pclivectl", "migrate", "redis-1", "--to", "host-b"].iter().chain(arguments);
        Args::try_parse_from(all).map(|args| match args.command {
            Command::Migrate(migrate) => migrate.request(),
            other => panic!("parsed as {other:?}"),
        })
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Args::command().debug_assert();
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
        };
        assert_eq!(migrate(&arguments).unwrap(), expected);
    }

    #[test]
    fn restoring_from_the_first_round_on_is_not_taken_for_the_default() {
        assert_eq!(migrate(&["--restore-after", "0"]).unwrap().restore_after, Some(0));
        assert_eq!(migrate(&[]).unwrap().restore_after, None);
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
    fn rates_are_bits_by_name_and_bytes_otherwise() {
        let cases = [
            ("1Gbit", 125_000_000),
            ("500Mbit", 62_500_000),
            ("2.5gbit", 312_500_000),
            ("800kbit", 100_000),
            ("1000", 1000),
            ("60MB", 60_000_000),
            ("1MiB", 1 << 20),
        ];
        for (text, bytes) in cases {
            assert_eq!(bandwidth(text), Ok(bytes), "{text}");
        }
        for text in ["", "Mbit", "1Tbit", "0", "fast", "-1", "1.2.3", "1 Gbit"] {
            assert!(bandwidth(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_plan_needs_a_destination_or_a_bandwidth() {
        let parse = |arguments: &[&str]| {
            Args::try_parse_from([&["pclivectl", "plan", "redis-1"], arguments].concat())
        };
        assert_eq!(parse(&[]).unwrap_err().exit_code(), 2);
        assert!(parse(&["--to", "host-b"]).is_ok());
        let Command::Plan(plan) = parse(&["--bandwidth", "1Gbit", "--max-downtime", "50ms"]).unwrap().command
        else {
            panic!("not a plan")
        };
        let expected = PlanMigrationRequest {
            container: "redis-1".into(),
            watch_ms: 3000,
            bandwidth_bytes_per_second: 125_000_000,
            max_downtime_ms: 50,
            ..PlanMigrationRequest::default()
        };
        assert_eq!(plan.request(), expected);
    }

    #[test]
    fn a_decision_is_one_of_two() {
        let parse =
            |words: &[&str]| Args::try_parse_from(["pclivectl", "resolve", "m-1"].iter().chain(words));
        assert!(parse(&["--run-here"]).is_ok() && parse(&["--discard-here", "--override"]).is_ok());
        assert_eq!(parse(&[]).unwrap_err().exit_code(), 2);
        assert_eq!(parse(&["--run-here", "--discard-here"]).unwrap_err().exit_code(), 2);
    }

    /// The text of a command's chapter in docs/CLI.md; the options of every command stand before the first one.
    fn chapter<'a>(document: &'a str, command: &str) -> &'a str {
        let start = document.find(&format!("### `pclivectl {command}")).map_or(0, |start| start + 1);
        let end = document[start..].find("\n##").map_or(document.len(), |length| start + length);
        &document[start..end]
    }

    #[test]
    fn every_command_and_option_is_documented() {
        let document = include_str!("../../docs/CLI.md");
        let command = Args::command();
        for sub in command.get_subcommands() {
            let name = sub.get_name();
            assert!(document.contains(&format!("### `pclivectl {name}")), "{name} is not in docs/CLI.md");
            let inner = sub.get_subcommands().flat_map(clap::Command::get_opts);
            for option in sub.get_opts().chain(inner).filter_map(|option| option.get_long()) {
                let text = chapter(document, name);
                assert!(text.contains(&format!("`--{option}")), "{name} --{option} is not in its chapter");
            }
        }
        let every = &document[..document.find("## Commands").unwrap()];
        for option in command.get_opts().filter_map(|option| option.get_long()) {
            assert!(every.contains(&format!("`--{option}")), "--{option} is not in docs/CLI.md");
        }
    }
}
