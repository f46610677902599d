//! Signals.

use serde::{Deserialize, Serialize};

use super::ids::RemoteAddr;

/// `struct kernel_sigaction` of one signal (rt_sigaction(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    /// Signal number, 1 to 64.
    pub signal: u8,
    /// Handler address, 0 = default, 1 = ignore.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Trampoline.
    pub restorer: u64,
    /// Signals blocked during the handler.
    pub mask: u64,
}

/// A queued signal: raw `siginfo_t`, 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSignal {
    /// `siginfo_t` as `PTRACE_PEEKSIGINFO` returns it.
    #[serde(with = "serde_bytes")]
    pub siginfo: Vec<u8>,
}

/// `stack_t` (sigaltstack(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AltStack {
    /// First address.
    pub address: RemoteAddr,
    /// `SS_*`.
    pub flags: i32,
    /// Bytes.
    pub size: u64,
}
