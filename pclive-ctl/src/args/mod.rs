//! The command line.

mod certs;
mod migrate;
mod units;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use pclive_proto::control::{Resolution, ResolveMigrationRequest};

pub(crate) use self::certs::{Certs, CertsCommand, Issue};
pub(crate) use self::migrate::{Migrate, Plan};
use self::units::duration;
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
    /// Write a page (HTML, one file) about a migration: where its downtime went, and every round
    Report(Report),
    /// Follow a migration to its end; Ctrl-C leaves it alone
    #[command(after_help = EXIT_CODES)]
    Watch(Id),
    /// Ask the agent to give up a migration; the container runs on at the source
    Cancel(Id),
    /// Decide where a container belongs whose migration is in doubt; the other agent is asked first
    #[command(after_help = EXIT_CODES)]
    Resolve(Resolve),
    /// Go back to the original of a migration, which --keep-source-for has kept; without --yes nothing is done
    #[command(after_help = EXIT_CODES)]
    Undo(Undo),
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

/// A command about one migration.
#[derive(Debug, ClapArgs)]
pub(crate) struct Id {
    /// The migration's id
    pub(crate) id: String,
}

/// `report`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Report {
    /// The migration's id
    pub(crate) id: String,
    /// Where to; - is the standard output [default: pclive-ID.html]
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
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

/// `undo`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Undo {
    /// The migration's id
    pub(crate) id: String,
    /// Do it: what the container did at the destination is lost
    #[arg(long)]
    pub(crate) yes: bool,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Args::command().debug_assert();
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
        let document = include_str!("../../../docs/CLI.md");
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
