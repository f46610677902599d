//! A helper process inside a PID namespace, which chooses the ids of the tasks that are born there next.
//!
//! `/proc/sys/kernel/ns_last_pid` (Linux 3.3) speaks of the namespace of the process that writes it, so the
//! writer must be inside. The helper is a fork of the calling process that makes system calls only.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::model::Pid;

const LAST_PID: &CStr = c"/proc/sys/kernel/ns_last_pid";

/// The helper. It ends when this is dropped, when the thread that started it ends, or with the namespace.
#[derive(Debug)]
pub struct PidChooser {
    pid: Pid,
    requests: File,
    answers: File,
}

impl PidChooser {
    /// Starts a helper in the namespace behind `namespace` (an open `/proc/PID/ns/pid`). The calling thread's own
    /// children are born in its own namespace again afterwards. The helper takes one id of the namespace.
    pub fn start(namespace: impl AsFd) -> Result<Self> {
        let (request_read, request_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (answer_read, answer_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let own = File::open("/proc/self/ns/pid")?;
        let only = nix::sched::CloneFlags::CLONE_NEWPID;
        nix::sched::setns(&namespace, only)?;
        // SAFETY: the child runs `serve`, which makes system calls on its own stack only and never returns; it
        // takes no lock and allocates nothing.
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            serve(&request_read, &answer_write);
        }
        let failure = (forked == -1).then(Error::last_os_error);
        nix::sched::setns(own, only)?;
        match failure {
            Some(error) => Err(error),
            None => Ok(Self {
                pid: Pid(forked),
                requests: File::from(request_write),
                answers: File::from(answer_read),
            }),
        }
    }

    /// The helper, as the caller sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Makes `last` the last id handed out: the next task of the namespace gets `last + 1`, or the next free id
    /// after it.
    pub fn set_last(&mut self, last: i32) -> Result<()> {
        self.requests.write_all(&last.to_ne_bytes())?;
        let mut answer = [0; 4];
        self.answers.read_exact(&mut answer).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::from_raw_os_error(libc::ESRCH),
            _ => error,
        })?;
        match i32::from_ne_bytes(answer) {
            0 => Ok(()),
            errno => Err(Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for PidChooser {
    fn drop(&mut self) {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid.0), nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.pid.0), None);
    }
}

/// The helper's life: ids in, errnos out, until the other end closes.
fn serve(requests: &OwnedFd, answers: &OwnedFd) -> ! {
    let (requests, answers) = (requests.as_raw_fd(), answers.as_raw_fd());
    // SAFETY: only system calls with plain numbers and buffers of this stack frame; the two descriptors that are
    // used afterwards are kept; `_exit` does not return.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let (low, high) = if requests < answers { (requests, answers) } else { (answers, requests) };
        libc::syscall(libc::SYS_close_range, 0, low - 1, 0);
        libc::syscall(libc::SYS_close_range, low + 1, high - 1, 0);
        libc::syscall(libc::SYS_close_range, high + 1, u32::MAX, 0);
        let last_pid = libc::open(LAST_PID.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        let open_errno = if last_pid == -1 { *libc::__errno_location() } else { 0 };
        loop {
            let mut request = [0u8; 4];
            if libc::read(requests, request.as_mut_ptr().cast(), 4) != 4 {
                libc::_exit(0);
            }
            let mut errno = open_errno;
            let mut digits = [0u8; 12];
            let text = decimal(i32::from_ne_bytes(request), &mut digits);
            if errno == 0 && libc::pwrite(last_pid, text.as_ptr().cast(), text.len(), 0) == -1 {
                errno = *libc::__errno_location();
            }
            if libc::write(answers, errno.to_ne_bytes().as_ptr().cast(), 4) != 4 {
                libc::_exit(1);
            }
        }
    }
}

/// A non-negative number in decimal, without allocating; negative ones read as 0.
fn decimal(number: i32, buffer: &mut [u8; 12]) -> &[u8] {
    let mut left = number.max(0) as u32;
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            return &buffer[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_what_the_standard_library_says() {
        for number in [0, 1, 9, 10, 4_194_303, i32::MAX] {
            assert_eq!(decimal(number, &mut [0; 12]), number.to_string().as_bytes());
        }
        assert_eq!(decimal(-5, &mut [0; 12]), b"0");
    }
}
