//! Hears what arrives at a container's interfaces while the lock keeps it from being delivered.
//!
//! [`Tap::prepare`] opens the sockets while the container runs; they receive nothing yet. [`Tap::listen`] comes just
//! before the lock: what arrives between the two is delivered and heard, which to TCP is a duplicate. Frames wait
//! in the kernel, in a buffer with a limit; what comes when it is full is lost, as in a network, and counted.
//!
//! Kernel: packet(7) sockets inside the container's namespace, one an interface. They see a frame before the ingress
//! hook drops it, with its offload header, and not what the interface itself sends (PACKET_IGNORE_OUTGOING, Linux
//! 4.20). A filter keeps frames for other hosts out, and those with a VLAN tag, which the kernel would take off.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recvmsg, setsockopt, socket, sockopt};
use pclive_engine::sys::packet::{self, Instruction, OFFLOAD_HEADER_BYTES};

use super::arrival::{Allowance, Arrival, MAX_FRAME_BYTES};
use super::error::{Error, Result};
use super::interface::Interface;
use super::links;
use super::namespace::Namespace;
use super::netlink::RouteSocket;

/// ETH_P_ALL.
const EVERY_PROTOCOL: u16 = 3;
/// Frames that one look at a socket takes at most, whatever they are.
const MAX_LOOKS: usize = 4096;

/// One interface.
struct Ear {
    socket: OwnedFd,
    /// Its place in the container's list.
    number: u32,
    index: i32,
    name: String,
}

/// Sockets at a container's interfaces. Dropped: what they heard is forgotten.
pub struct Tap {
    ears: Vec<Ear>,
    allowance: Allowance,
    scratch: Box<[u8]>,
    lost: u64,
}

impl Tap {
    /// Opens the sockets of all Ethernet interfaces that are up. `limit_bytes` bounds what waits in the kernel (with
    /// the kernel's own overhead, up to twice as much) and what is ever taken; 0: there is nothing to hear.
    pub fn prepare(namespace: &Namespace, interfaces: &[Interface], limit_bytes: u64) -> Result<Self> {
        let mut ears = Vec::new();
        if limit_bytes > 0 {
            let present = links::list(&mut RouteSocket::open(namespace)?, namespace)?;
            for (number, interface) in (0..).zip(interfaces) {
                let heard = interface.up && interface.mac.is_some() && !interface.is_loopback();
                let Some(link) = present.iter().find(|link| heard && link.name == interface.name) else {
                    continue;
                };
                let name = link.name.clone();
                let socket = open(namespace, limit_bytes)?;
                ears.push(Ear { socket, number, index: link.index as i32, name });
            }
        }
        let scratch = vec![0; OFFLOAD_HEADER_BYTES + MAX_FRAME_BYTES].into_boxed_slice();
        Ok(Self { ears, allowance: Allowance::new(limit_bytes), scratch, lost: 0 })
    }

    /// From the return on, everything that arrives is heard. One system call an interface.
    pub fn listen(&self) -> Result<()> {
        self.ears.iter().try_for_each(|ear| {
            packet::listen_at(&ear.socket, ear.index, EVERY_PROTOCOL)
                .map_err(|source| Error::Listen { interface: ear.name.clone(), source })
        })
    }

    /// Waits until something was heard, at most for `patience`.
    pub fn wait(&self, patience: Duration) {
        let mut polled: Vec<PollFd<'_>> =
            self.ears.iter().map(|ear| PollFd::new(ear.socket.as_fd(), PollFlags::POLLIN)).collect();
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        // An interrupted wait is a short one.
        let _ = poll(&mut polled, patience);
    }

    /// What was heard so far, in order, until it is `most_bytes`; the rest waits.
    pub fn take(&mut self, most_bytes: usize) -> Vec<Arrival> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for ear in &self.ears {
            for _ in 0..MAX_LOOKS {
                if bytes >= most_bytes {
                    return taken;
                }
                match receive(&ear.socket, &mut self.scratch) {
                    Ok(Some((offload, contents))) => {
                        let arrival = Arrival { interface: ear.number, offload, contents };
                        if self.allowance.take(&arrival) {
                            bytes += arrival.bytes();
                            taken.push(arrival);
                        } else {
                            self.lost += 1;
                        }
                    }
                    // The kernel has no offload header for it, or it is too long.
                    Ok(None) | Err(Errno::EINVAL) => self.lost += 1,
                    Err(Errno::EINTR) => {}
                    // EAGAIN: that was all. ENETDOWN: the interface has gone down, and hears nothing more.
                    Err(_) => break,
                }
            }
        }
        taken
    }

    /// Frames that were not heard or not taken, because they were too many.
    pub fn lost(&mut self) -> u64 {
        let in_kernel = self.ears.iter().map(|ear| packet::take_lost(&ear.socket).unwrap_or_default());
        self.lost += in_kernel.map(u64::from).sum::<u64>();
        self.lost
    }
}

/// A socket that receives nothing until it is bound.
fn open(namespace: &Namespace, limit_bytes: u64) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = namespace.run(|| {
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        packet::set_offload_header(&socket)?;
        packet::ignore_outgoing(&socket)?;
        packet::attach_filter(&socket, &filter())?;
        let room = usize::try_from(limit_bytes).unwrap_or(usize::MAX).min(i32::MAX as usize / 2);
        setsockopt(&socket, sockopt::RcvBufForce, &room)?;
        Ok(socket)
    })?;
    opened.map_err(|errno: Errno| Error::Socket {
        kind: "packet",
        namespace: namespace.to_string(),
        source: errno.into(),
    })
}

/// Lets pass what is for this host or for everybody and has no VLAN tag.
fn filter() -> [Instruction; 6] {
    let statement = |code: u32, k: u32| Instruction { code: code as u16, jt: 0, jf: 0, k };
    let about =
        |what: i32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (libc::SKF_AD_OFF + what) as u32);
    let equals = |k: u32, jt: u8, jf: u8| Instruction {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let verdict = |bytes: u32| statement(libc::BPF_RET | libc::BPF_K, bytes);
    [
        about(libc::SKF_AD_PKTTYPE),
        equals(u32::from(libc::PACKET_OTHERHOST), 3, 0),
        about(libc::SKF_AD_VLAN_TAG_PRESENT),
        equals(0, 0, 1),
        verdict(u32::MAX),
        verdict(0),
    ]
}

/// One frame with its offload header; `None` if it is longer than any that is carried.
fn receive(socket: &OwnedFd, scratch: &mut [u8]) -> nix::Result<Option<(Bytes, Bytes)>> {
    let mut parts = [IoSliceMut::new(scratch)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, MsgFlags::MSG_DONTWAIT)?;
    let (bytes, cut) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
    let whole = Bytes::copy_from_slice(scratch.get(..bytes).unwrap_or_default());
    if cut || whole.len() < OFFLOAD_HEADER_BYTES {
        return Ok(None);
    }
    Ok(Some((whole.slice(..OFFLOAD_HEADER_BYTES), whole.slice(OFFLOAD_HEADER_BYTES..))))
}
