//! Two hosts of the user's, and a container with Redis that moves to and fro between them.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use pclive_tests::command::{output, workspace_binary};
use pclive_tests::ctl::Following;
use pclive_tests::measure::follow;
use serde_json::Value;

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

impl End {
    /// `pclivectl` for its agent.
    fn ctl(&self) -> Result<Command> {
        let mut ctl = Command::new(workspace_binary("pclivectl")?);
        ctl.env("PCLIVE_AGENT", &self.agent);
        Ok(ctl)
    }

    /// Whether the container runs there.
    fn has(&self, container: &str) -> Result<bool> {
        let listed = output(self.ctl()?.args(["--json", "containers"]))?;
        let listed: Value = serde_json::from_str(listed.trim()).context("pclivectl containers: not JSON")?;
        let mut entries = listed["containers"].as_array().into_iter().flatten();
        Ok(entries.any(|entry| entry["container"] == container && entry["status"] == "running"))
    }
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

    /// Finds the host where the container runs: an earlier session may have ended with it at the other one.
    fn find(&mut self) -> Result<()> {
        let (here, there) = (self.ends[0].has(&self.container)?, self.ends[1].has(&self.container)?);
        match (here, there) {
            (true, false) => Ok(()),
            (false, true) => {
                self.ends.swap(0, 1);
                Ok(())
            }
            (true, true) => bail!("{} runs at both hosts", self.container),
            (false, false) => bail!("{} runs at neither host", self.container),
        }
    }

    fn server(&self) -> Server<'static> {
        Server::new(None, self.redis)
    }

    /// Takes the benchmark's data out of Redis.
    pub(crate) fn leave(&self) -> Result<()> {
        self.server().empty()
    }

    /// Fills Redis, and moves it to the other host.
    ///
    /// # Errors
    /// When Redis has data of others, the container is not found, or the migration fails.
    pub(crate) fn measure(&mut self, setting: &Setting, seed: u64) -> Result<Measures> {
        let Workload::Ycsb(ycsb) = &setting.workload else {
            bail!("{}: there is only a Redis between these hosts", setting.workload);
        };
        self.find()?;
        let server = self.server();
        server.empty()?;
        server.load(ycsb.records, seed)?;
        let words = setting.words().with_context(|| format!("{setting}: only on hosts of a lab"))?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let source = &self.ends[0];
        with_clients(server, ycsb, seed, || {
            let moved = follow(Following::by(source.ctl()?, &self.container, &source.peer, &words)?)?;
            Ok((moved, None))
        })
    }
}
