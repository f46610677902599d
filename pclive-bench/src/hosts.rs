//! Two hosts of the user's, and a container with Redis that moves to and fro between them.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use pclive_tests::command::workspace_binary;
use pclive_tests::ctl::Following;
use pclive_tests::measure::follow;

use crate::measure::with_clients;
use crate::outcome::Measures;
use crate::setting::{Setting, Workload};
use crate::ycsb::Server;

/// The hosts, as options. What `pclivectl` needs to reach the agents is taken from the environment (PCLIVE_CERT ...).
#[derive(Debug, Clone, Args)]
pub(crate) struct HostsOptions {
    /// Instead of hosts on this machine: the agent of the host where the container is (a path, unix:///path or
    /// https://host:port).
    #[arg(
        long,
        value_name = "AGENT",
        required = false,
        requires_all = ["dest", "to", "back", "container", "redis"]
    )]
    source: String,
    /// The other host's agent.
    #[arg(long, value_name = "AGENT", required = false, requires = "source")]
    dest: String,
    /// What the agent of the source calls the destination.
    #[arg(long, value_name = "PEER", required = false, requires = "source")]
    to: String,
    /// What the agent of the destination calls the source: every other run goes back.
    #[arg(long, value_name = "PEER", required = false, requires = "source")]
    back: String,
    /// The container; its Redis is filled and emptied.
    #[arg(long, required = false, requires = "source")]
    container: String,
    /// Where its Redis answers, from this machine.
    #[arg(long, value_name = "IP:PORT", required = false, requires = "source")]
    redis: SocketAddr,
}

/// One of the hosts.
#[derive(Debug, Clone)]
struct End {
    agent: String,
    /// What its agent calls the other one.
    peer: String,
}

/// The hosts, the one that has the container first.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    ends: [End; 2],
    container: String,
    redis: SocketAddr,
}

impl Hosts {
    /// As the options say.
    pub(crate) fn new(options: &HostsOptions) -> Self {
        let HostsOptions { source, dest, to, back, container, redis } = options.clone();
        Self { ends: [End { agent: source, peer: to }, End { agent: dest, peer: back }], container, redis }
    }

    /// Fills Redis, and moves it to the other host.
    ///
    /// # Errors
    /// When Redis has data of others, or the migration fails. Where the container is then, the error says.
    pub(crate) fn measure(&mut self, setting: &Setting, seed: u64) -> Result<Measures> {
        let Workload::Ycsb(ycsb) = &setting.workload else {
            bail!("{}: there is only a Redis between these hosts", setting.workload);
        };
        let server = Server::new(None, self.redis);
        server.claim()?;
        let words = setting.strategy.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let measures = with_clients(server, ycsb, seed, || {
            let mut ctl = Command::new(workspace_binary("pclivectl")?);
            ctl.env("PCLIVE_AGENT", &self.ends[0].agent);
            let moved = follow(Following::by(ctl, &self.container, &self.ends[0].peer, &words)?)?;
            Ok((moved, None))
        });
        if measures.is_ok() {
            self.ends.swap(0, 1);
        }
        measures
    }
}
