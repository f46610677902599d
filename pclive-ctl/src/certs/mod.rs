//! `certs`: a CA for the fleet, and certificates of it for agents and users. Needs no agent.
//!
//! One directory holds `ca.pem`, `ca.key`, and `NAME.pem` and `NAME.key` of every name. Keys are made with mode 0600
//! and never printed. Nothing is overwritten unless `issue --replace` says so, and the CA never is.

mod files;
mod issue;
mod show;

use std::path::PathBuf;

use pclive_tls::NotCertificate;
use thiserror::Error;

use crate::args::{Certs, CertsCommand};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;

/// The CA's file name without its ending.
const AUTHORITY: &str = "ca";

/// A command about certificates could not be carried out. Files that were there are as they were.
#[derive(Debug, Error)]
pub(crate) enum CertsError {
    /// The names of files and of hosts are few.
    #[error("cannot use {0:?} as a name")]
    Name(String),
    /// Something would be overwritten.
    #[error("cannot write {}: it exists", .0.display())]
    Exists(PathBuf),
    /// The directory has no CA.
    #[error("cannot read the CA {}", path.display())]
    NoAuthority {
        /// The missing file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has something else in it.
    #[error("cannot use {}: it holds no certificate in PEM", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// Why.
        source: NotCertificate,
    },
    /// The certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

impl CertsError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Name(_) => {
                "an agent's name is a host's name; letters, digits, - and . (and _ for users); not ca"
            }
            Self::Exists(_) => "issue --replace renews a certificate; a CA is only removed by hand",
            Self::NoAuthority { .. } => "make it first (pclivectl certs init), or say where it is (--dir)",
            Self::Read { .. } | Self::Contents { .. } => "certs show takes files, or a directory with --dir",
            Self::Write { .. } => "run it as root, or choose another directory (--dir)",
            Self::Make(_) => "",
        }
    }
}

/// Runs the command.
pub(crate) fn run(certs: Certs, output: &mut Output) -> Result<Exit, Failure> {
    match certs.command {
        CertsCommand::Init { name, valid } => issue::authority(&certs.dir, &name, valid, output),
        CertsCommand::Issue(order) => issue::certificate(&certs.dir, &order, output),
        CertsCommand::Show { files } => show::run(&certs.dir, files, output),
    }
}
