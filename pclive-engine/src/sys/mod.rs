//! One system call or ioctl a function: typed in and out, no policy, no logging. All `unsafe` lives here.

pub mod cpu;
pub mod cpuid;
pub mod epoll;
pub mod eventfd;
pub mod fcntl;
pub mod kcmp;
pub mod memfd;
pub mod netns;
pub mod openat2;
pub mod packet;
pub mod pagemap;
pub mod pid_namespace;
pub mod pidfd;
pub mod pipe;
pub mod prlimit;
pub mod process_vm;
pub mod ptrace;
pub mod ptrace_state;
pub mod sched;
pub mod scm;
pub mod signalfd;
pub mod socket;
pub mod tcp;
pub mod timerfd;
pub mod userfaultfd;
pub mod wait;
