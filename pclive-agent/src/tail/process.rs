//! The agent's hold of a fetcher: a process of the same program, which outlives it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pclive_engine::tail::Lack;
use pclive_proto::peer::FetchComplete;
use prost::Message;

use super::Setup;
use super::frame::{self, Kind};
use crate::error::{ErrorCode, MigrationError};
use crate::journal::Process;
use crate::recovery::process;

/// How long the fetcher may take to take what is lacking.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a fetcher ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    /// Every page is in place.
    Complete(FetchComplete),
    /// It was lost before.
    Lost,
}

/// A fetcher that waits for its work, or does it. It is killed when this is dropped before [`Self::go`].
#[derive(Debug)]
pub(crate) struct Fetcher {
    child: Option<Child>,
    socket: UnixStream,
    identity: Process,
    /// Held here as well: if the fetcher is killed, tasks wait.
    held: Vec<(Lack, OwnedFd)>,
    going: bool,
}

fn failed(error: &io::Error) -> MigrationError {
    MigrationError::caused(ErrorCode::Internal, error)
}

impl Fetcher {
    /// Starts it. Blocks shortly.
    pub(crate) fn start(setup: &Setup) -> Result<Self, MigrationError> {
        let (socket, theirs) = UnixStream::pair().map_err(|error| failed(&error))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("fetch-pages").stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // A terminal's signals are for the agent.
        command.process_group(0);
        let child = command.spawn().map_err(|error| failed(&error))?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let gone = || MigrationError::new(ErrorCode::Internal, "the process that fetches pages has ended");
        let identity = process::identify(pid).ok_or_else(gone)?;
        let fetcher = Self { child: Some(child), socket, identity, held: Vec::new(), going: false };
        let setup =
            serde_json::to_vec(setup).map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        frame::write(&fetcher.socket, Kind::Setup, &setup).map_err(|error| failed(&error))?;
        Ok(fetcher)
    }

    /// The process.
    pub(crate) fn identity(&self) -> Process {
        self.identity
    }

    /// How many pages it is to fetch.
    pub(crate) fn pages(&self) -> u64 {
        self.held.iter().map(|(lack, _)| lack.later.pages()).sum()
    }

    /// Hands over what is lacking. On Ok it listens. Blocks.
    pub(crate) fn hand(&mut self, lacks: Vec<(Lack, OwnedFd)>) -> Result<(), MigrationError> {
        self.held = lacks;
        frame::write_lacks(&self.socket, &self.held).map_err(|error| failed(&error))?;
        self.socket.set_read_timeout(Some(PATIENCE)).map_err(|error| failed(&error))?;
        match frame::read(&self.socket).map_err(|error| failed(&error))? {
            Some((Kind::Taken, _)) => {}
            Some(_) | None => {
                let message = "the process that fetches pages does not take its work";
                return Err(MigrationError::new(ErrorCode::Internal, message));
            }
        }
        self.socket.set_read_timeout(None).map_err(|error| failed(&error))
    }

    /// The copy was let go: from here on the fetcher is not ended.
    pub(crate) fn go(&mut self) {
        self.going = true;
        // One that is gone is noticed by its outcome.
        let _ = frame::write(&self.socket, Kind::Go, &[]);
    }

    /// Waits until every page is in place, or the fetcher is lost. Blocks for as long as that takes. The descriptors of
    /// a lost one are in the result: as long as they are held, tasks wait.
    pub(crate) fn outcome(mut self) -> (Outcome, Vec<(Lack, OwnedFd)>) {
        loop {
            match frame::read(&self.socket) {
                Ok(Some((Kind::Done, body))) => {
                    self.held.clear();
                    let _ = frame::write(&self.socket, Kind::Release, &[]);
                    let complete = FetchComplete::decode(body.as_slice()).unwrap_or_default();
                    return (Outcome::Complete(complete), Vec::new());
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return (Outcome::Lost, std::mem::take(&mut self.held)),
            }
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if !self.going {
            // One that has ended already needs no end.
            let _ = child.kill();
        }
        // It may have a last word to say. Without a thread it is reaped when this agent ends.
        let _ = std::thread::Builder::new().name("reaper".into()).spawn(move || child.wait());
    }
}
