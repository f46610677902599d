//! `certs`: a CA and its certificates.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use pclive_tls::Role;

use super::units::validity;

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
