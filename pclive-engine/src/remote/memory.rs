//! The memory of another process through `/proc/PID/mem`, which also reaches mappings without access (proc(5)).

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::RemoteError;
use crate::model::{Pid, RemoteAddr};

/// An open `/proc/PID/mem`. It belongs to the address space of the moment: an `execve` makes it stale.
#[derive(Debug, Clone)]
pub struct ProcessMemory {
    pid: Pid,
    file: Arc<File>,
}

impl ProcessMemory {
    /// Opens the memory of a process.
    pub fn open(pid: Pid) -> Result<Self, RemoteError> {
        let file = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let file =
            file.map_err(|source| RemoteError::Memory { operation: "open the memory".into(), pid, source })?;
        Ok(Self { pid, file: Arc::new(file) })
    }

    /// Fills `bytes` from the process.
    pub fn read(&self, from: RemoteAddr, bytes: &mut [u8]) -> Result<(), RemoteError> {
        let result = self.file.read_exact_at(bytes, from.0);
        result.map_err(|source| self.failed("read", bytes.len(), from, source))
    }

    /// Writes `bytes` into the process, also where it may not write itself.
    pub fn write(&self, to: RemoteAddr, bytes: &[u8]) -> Result<(), RemoteError> {
        let result = self.file.write_all_at(bytes, to.0);
        result.map_err(|source| self.failed("write", bytes.len(), to, source))
    }

    fn failed(&self, verb: &str, len: usize, at: RemoteAddr, source: Error) -> RemoteError {
        let source = match source.kind() {
            // The file reads as empty once the address space is gone.
            ErrorKind::UnexpectedEof | ErrorKind::WriteZero => Error::from_raw_os_error(libc::ESRCH),
            _ => source,
        };
        RemoteError::Memory { operation: format!("{verb} {len} bytes at {at}"), pid: self.pid, source }
    }
}
