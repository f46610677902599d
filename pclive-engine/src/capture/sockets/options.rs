//! Options of a socket at the source.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::SocketRefusal;
use crate::model::socket::SocketOption;
use crate::model::socket_options::{Form, Scope, TABLE};
use crate::sys::socket::{get_int, get_option};

/// `SO_BUF_LOCK` (Linux 5.14): which buffer sizes the application has set.
pub(super) const SO_BUF_LOCK: i32 = 72;

/// Options that stand for state which cannot be carried: a value other than zero is refused.
const REFUSED: &[(i32, i32, Scope, &str)] = &[
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY, Scope::INET, "socket with MSG_ZEROCOPY enabled (SO_ZEROCOPY)"),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING, Scope::ANY, "socket with packet timestamps (SO_TIMESTAMPING)"),
    (libc::IPPROTO_UDP, libc::UDP_CORK, Scope::UDP, "corked UDP socket (UDP_CORK)"),
    (libc::IPPROTO_UDP, 100, Scope::UDP, "UDP socket of a kernel tunnel (UDP_ENCAP)"),
];

/// Header options of every packet (`IP_OPTIONS`, RFC 3542): nobody uses them, and so nobody carries them.
const HEADERS: &[(i32, i32, Scope)] = &[
    (libc::IPPROTO_IP, libc::IP_OPTIONS, Scope::INET),
    (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, Scope::V6),
    (libc::IPPROTO_IPV6, libc::IPV6_RTHDR, Scope::V6),
    (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, Scope::V6),
];

/// Refuses sockets with header options; for a check.
pub(super) fn refuse_headers(fd: BorrowedFd<'_>, scope: Scope) -> Result<(), SocketRefusal> {
    for &(level, name, _) in HEADERS.iter().filter(|(_, _, has)| has.meets(scope)) {
        if get_option(fd, level, name, &mut [0; 64]).is_ok_and(|length| length > 0) {
            let hint = "the application must clear them before a migration";
            return Err(SocketRefusal::lasting("socket with IP header options (IP_OPTIONS)", hint));
        }
    }
    Ok(())
}

/// The options of the table that are not at their default.
pub(super) fn read(fd: BorrowedFd<'_>, scope: Scope) -> Result<Vec<SocketOption>, SocketRefusal> {
    refuse_state(fd, scope)?;
    let mut options = Vec::new();
    for spec in TABLE.iter().filter(|spec| spec.scope.meets(scope)) {
        let mut room = [0; 16];
        let length =
            match get_option(fd, spec.level, spec.name, room.get_mut(..spec.form.size()).unwrap_or_default())
            {
                Ok(length) => length,
                Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => continue,
                Err(errno) => {
                    return Err(SocketRefusal::failed(&format!("read its option {}", spec.label), errno));
                }
            };
        let value = trimmed(spec.form, room.get(..length).unwrap_or_default());
        if !spec.form.is_default(value) {
            options.push(SocketOption { level: spec.level, name: spec.name, value: value.to_vec() });
        }
    }
    Ok(options)
}

/// Names come padded with NULs.
fn trimmed(form: Form, value: &[u8]) -> &[u8] {
    match form {
        Form::Name => value.split(|byte| *byte == 0).next().unwrap_or_default(),
        Form::Int(_) | Form::HostInt | Form::Zeroes(_) | Form::LongOnes => value,
    }
}

fn refuse_state(fd: BorrowedFd<'_>, scope: Scope) -> Result<(), SocketRefusal> {
    for &(level, name, _, what) in REFUSED.iter().filter(|(_, _, refused, _)| refused.meets(scope)) {
        // An option that this kernel does not have is not set.
        if get_int(fd, level, name).is_ok_and(|value| value != 0) {
            return Err(SocketRefusal::lasting(
                what,
                "the application must switch it off before a migration",
            ));
        }
    }
    Ok(())
}
