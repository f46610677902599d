//! One system call or ioctl a function: typed in and out, no policy, no logging. All `unsafe` lives here.

pub mod pagemap;
pub mod process_vm;
pub mod ptrace;
pub mod userfaultfd;
pub mod wait;
