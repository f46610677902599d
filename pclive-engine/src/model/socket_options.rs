//! The socket options that are carried: one table for both ends.
//!
//! The source reads every option of the table that the socket's family has and carries those that are not at
//! their default; the destination applies options of the table only, in the table's order. What is not in the
//! table is either state that the engine handles by itself (buffers, `SO_REUSEADDR`, `TCP_REPAIR*`), not stable
//! (`SO_INCOMING_CPU`), without effect on the kind of socket (`IP_PKTINFO` of TCP), or makes the source refuse it.
//! A system call per option and socket is made while the container stands still: keep the table short.
//!
//! Kernel: socket(7), ip(7), ipv6(7), tcp(7), udp(7), unix(7); numbers from asm-generic/socket.h (x86-64).

/// One option of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// `SOL_*` / `IPPROTO_*`.
    pub level: i32,
    /// Option name.
    pub name: i32,
    /// The name as people write it.
    pub label: &'static str,
    /// Form of the value.
    pub form: Form,
    /// Sockets that have it.
    pub scope: Scope,
    /// When the destination sets it.
    pub moment: Moment,
}

/// Form of an option value and its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `int`.
    Int(i32),
    /// `int` whose default depends on the host: always carried.
    HostInt,
    /// That many bytes, all zero by default (`struct linger`, `struct timeval`).
    Zeroes(usize),
    /// `unsigned long`, all ones by default.
    LongOnes,
    /// Text of at most 16 bytes (`IFNAMSIZ`, `TCP_CA_NAME_MAX`), empty by default.
    Name,
}

impl Form {
    /// Largest size of a value, bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Int(_) | Self::HostInt => 4,
            Self::Zeroes(size) => size,
            Self::LongOnes => 8,
            Self::Name => 16,
        }
    }

    /// Whether `value` has this form.
    pub fn fits(self, value: &[u8]) -> bool {
        match self {
            Self::Int(_) | Self::HostInt | Self::Zeroes(_) | Self::LongOnes => value.len() == self.size(),
            Self::Name => value.len() <= self.size(),
        }
    }

    /// Whether `value` is what a fresh socket has.
    pub fn is_default(self, value: &[u8]) -> bool {
        match self {
            Self::Int(default) => value == default.to_ne_bytes(),
            Self::HostInt => false,
            Self::Zeroes(_) => value.iter().all(|byte| *byte == 0),
            Self::LongOnes => value.iter().all(|byte| *byte == 0xff),
            Self::Name => value.first().is_none_or(|byte| *byte == 0),
        }
    }
}

/// A set of socket families and protocols, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope(u8);

impl Scope {
    /// Unix sockets.
    pub const UNIX: Self = Self(1);
    /// TCP over IPv4.
    pub const TCP4: Self = Self(2);
    /// TCP over IPv6.
    pub const TCP6: Self = Self(4);
    /// UDP over IPv4.
    pub const UDP4: Self = Self(8);
    /// UDP over IPv6.
    pub const UDP6: Self = Self(16);
    /// TCP.
    pub const TCP: Self = Self(2 | 4);
    /// UDP.
    pub const UDP: Self = Self(8 | 16);
    /// IPv6.
    pub const V6: Self = Self(4 | 16);
    /// IPv4 and IPv6.
    pub const INET: Self = Self(2 | 4 | 8 | 16);
    /// All.
    pub const ANY: Self = Self(31);

    /// Whether the two sets meet.
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// When the destination sets an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before bind, connect and listen.
    Early,
    /// Once the socket has its addresses and queues.
    Late,
    /// After the rest of the send queue went out.
    AfterData,
}

const fn spec(
    level: i32,
    name: i32,
    label: &'static str,
    form: Form,
    scope: Scope,
    moment: Moment,
) -> OptionSpec {
    OptionSpec { level, name, label, form, scope, moment }
}

const SOCKET: i32 = 1;
const IP: i32 = 0;
const TCP: i32 = 6;
const UDP: i32 = 17;
const IPV6: i32 = 41;

use Form::{HostInt, Int, LongOnes, Name, Zeroes};
use Moment::{AfterData, Early, Late};

/// Every option that is carried, in the order of setting.
pub const TABLE: &[OptionSpec] = &[
    spec(SOCKET, 25, "SO_BINDTODEVICE", Name, Scope::INET, Early),
    spec(SOCKET, 15, "SO_REUSEPORT", Int(0), Scope::INET, Early),
    spec(SOCKET, 36, "SO_MARK", Int(0), Scope::INET, Early),
    spec(SOCKET, 5, "SO_DONTROUTE", Int(0), Scope::UDP, Early),
    spec(SOCKET, 6, "SO_BROADCAST", Int(0), Scope::UDP, Early),
    spec(IP, 15, "IP_FREEBIND", Int(0), Scope::INET, Early),
    spec(IP, 19, "IP_TRANSPARENT", Int(0), Scope::INET, Early),
    spec(IP, 24, "IP_BIND_ADDRESS_NO_PORT", Int(0), Scope::UDP, Early),
    spec(IP, 51, "IP_LOCAL_PORT_RANGE", Int(0), Scope::UDP, Early),
    spec(IP, 10, "IP_MTU_DISCOVER", Int(1), Scope::INET, Early),
    spec(IPV6, 26, "IPV6_V6ONLY", Int(0), Scope::V6, Early),
    spec(IPV6, 78, "IPV6_FREEBIND", Int(0), Scope::V6, Early),
    spec(IPV6, 75, "IPV6_TRANSPARENT", Int(0), Scope::V6, Early),
    spec(IPV6, 23, "IPV6_MTU_DISCOVER", Int(1), Scope::V6, Early),
    spec(TCP, 13, "TCP_CONGESTION", Name, Scope::TCP, Early),
    spec(SOCKET, 9, "SO_KEEPALIVE", Int(0), Scope::TCP, Late),
    spec(SOCKET, 10, "SO_OOBINLINE", Int(0), Scope::ANY, Late),
    spec(SOCKET, 11, "SO_NO_CHECK", Int(0), Scope::UDP, Late),
    spec(SOCKET, 13, "SO_LINGER", Zeroes(8), Scope::ANY, Late),
    spec(SOCKET, 16, "SO_PASSCRED", Int(0), Scope::UNIX, Late),
    spec(SOCKET, 34, "SO_PASSSEC", Int(0), Scope::UNIX, Late),
    spec(SOCKET, 76, "SO_PASSPIDFD", Int(0), Scope::UNIX, Late),
    spec(SOCKET, 83, "SO_PASSRIGHTS", Int(1), Scope::UNIX, Late),
    spec(SOCKET, 18, "SO_RCVLOWAT", Int(1), Scope::ANY, Late),
    spec(SOCKET, 20, "SO_RCVTIMEO", Zeroes(16), Scope::ANY, Late),
    spec(SOCKET, 21, "SO_SNDTIMEO", Zeroes(16), Scope::ANY, Late),
    spec(SOCKET, 29, "SO_TIMESTAMP", Int(0), Scope::ANY, Late),
    spec(SOCKET, 35, "SO_TIMESTAMPNS", Int(0), Scope::ANY, Late),
    spec(SOCKET, 40, "SO_RXQ_OVFL", Int(0), Scope::UDP, Late),
    spec(SOCKET, 42, "SO_PEEK_OFF", Int(-1), Scope::ANY, Late),
    spec(SOCKET, 45, "SO_SELECT_ERR_QUEUE", Int(0), Scope::UDP, Late),
    spec(SOCKET, 46, "SO_BUSY_POLL", Int(0), Scope::INET, Late),
    spec(SOCKET, 69, "SO_PREFER_BUSY_POLL", Int(0), Scope::UDP, Late),
    spec(SOCKET, 47, "SO_MAX_PACING_RATE", LongOnes, Scope::INET, Late),
    spec(SOCKET, 75, "SO_RCVMARK", Int(0), Scope::UDP, Late),
    spec(IP, 1, "IP_TOS", Int(0), Scope::INET, Late),
    spec(IP, 2, "IP_TTL", Int(64), Scope::INET, Late),
    spec(IP, 6, "IP_RECVOPTS", Int(0), Scope::UDP, Late),
    spec(IP, 7, "IP_RETOPTS", Int(0), Scope::UDP, Late),
    spec(IP, 8, "IP_PKTINFO", Int(0), Scope::UDP, Late),
    spec(IP, 11, "IP_RECVERR", Int(0), Scope::INET, Late),
    spec(IP, 12, "IP_RECVTTL", Int(0), Scope::UDP, Late),
    spec(IP, 13, "IP_RECVTOS", Int(0), Scope::UDP, Late),
    spec(IP, 20, "IP_RECVORIGDSTADDR", Int(0), Scope::UDP, Late),
    spec(IP, 21, "IP_MINTTL", Int(0), Scope::INET, Late),
    spec(IP, 25, "IP_RECVFRAGSIZE", Int(0), Scope::UDP, Late),
    spec(IP, 33, "IP_MULTICAST_TTL", Int(1), Scope::UDP4, Late),
    spec(IP, 34, "IP_MULTICAST_LOOP", Int(1), Scope::UDP4, Late),
    spec(IP, 49, "IP_MULTICAST_ALL", Int(1), Scope::UDP4, Late),
    spec(IPV6, 16, "IPV6_UNICAST_HOPS", Int(64), Scope::V6, Late),
    spec(IPV6, 18, "IPV6_MULTICAST_HOPS", Int(1), Scope::UDP6, Late),
    spec(IPV6, 19, "IPV6_MULTICAST_LOOP", Int(1), Scope::UDP6, Late),
    spec(IPV6, 29, "IPV6_MULTICAST_ALL", Int(1), Scope::UDP6, Late),
    spec(IPV6, 25, "IPV6_RECVERR", Int(0), Scope::V6, Late),
    spec(IPV6, 49, "IPV6_RECVPKTINFO", Int(0), Scope::UDP6, Late),
    spec(IPV6, 51, "IPV6_RECVHOPLIMIT", Int(0), Scope::UDP6, Late),
    spec(IPV6, 66, "IPV6_RECVTCLASS", Int(0), Scope::UDP6, Late),
    spec(IPV6, 67, "IPV6_TCLASS", Int(0), Scope::V6, Late),
    spec(IPV6, 62, "IPV6_DONTFRAG", Int(0), Scope::UDP6, Late),
    spec(IPV6, 33, "IPV6_FLOWINFO_SEND", Int(0), Scope::UDP6, Late),
    spec(IPV6, 73, "IPV6_MINHOPCOUNT", Int(0), Scope::V6, Late),
    spec(IPV6, 74, "IPV6_RECVORIGDSTADDR", Int(0), Scope::UDP6, Late),
    // After IP_TOS, which sets the priority too.
    spec(SOCKET, 12, "SO_PRIORITY", Int(0), Scope::ANY, Late),
    spec(TCP, 4, "TCP_KEEPIDLE", HostInt, Scope::TCP, Late),
    spec(TCP, 5, "TCP_KEEPINTVL", HostInt, Scope::TCP, Late),
    spec(TCP, 6, "TCP_KEEPCNT", HostInt, Scope::TCP, Late),
    spec(TCP, 7, "TCP_SYNCNT", Int(6), Scope::TCP, Late),
    spec(TCP, 8, "TCP_LINGER2", Int(60), Scope::TCP, Late),
    spec(TCP, 9, "TCP_DEFER_ACCEPT", Int(0), Scope::TCP, Late),
    spec(TCP, 12, "TCP_QUICKACK", Int(1), Scope::TCP, Late),
    spec(TCP, 16, "TCP_THIN_LINEAR_TIMEOUTS", Int(0), Scope::TCP, Late),
    spec(TCP, 18, "TCP_USER_TIMEOUT", Int(0), Scope::TCP, Late),
    spec(TCP, 25, "TCP_NOTSENT_LOWAT", Int(0), Scope::TCP, Late),
    spec(TCP, 27, "TCP_SAVE_SYN", Int(0), Scope::TCP, Late),
    spec(TCP, 36, "TCP_INQ", Int(0), Scope::TCP, Late),
    spec(UDP, 103, "UDP_SEGMENT", Int(0), Scope::UDP, Late),
    spec(UDP, 104, "UDP_GRO", Int(0), Scope::UDP, Late),
    spec(TCP, 1, "TCP_NODELAY", Int(0), Scope::TCP, AfterData),
    spec(TCP, 3, "TCP_CORK", Int(0), Scope::TCP, AfterData),
];

/// The table's entry for an option.
pub fn find(level: i32, name: i32) -> Option<&'static OptionSpec> {
    TABLE.iter().find(|spec| spec.level == level && spec.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_in_the_table_once() {
        for (index, spec) in TABLE.iter().enumerate() {
            assert_eq!(TABLE.iter().position(|s| (s.level, s.name) == (spec.level, spec.name)), Some(index));
        }
    }

    #[test]
    fn defaults_and_lengths_are_told_by_the_form() {
        assert!(Int(64).is_default(&64_i32.to_ne_bytes()));
        assert!(!Int(64).is_default(&63_i32.to_ne_bytes()));
        assert!(!HostInt.is_default(&0_i32.to_ne_bytes()));
        assert!(Zeroes(8).is_default(&[0; 8]) && !Zeroes(8).fits(&[0; 9]));
        assert!(Name.is_default(b"\0") && Name.is_default(b"") && !Name.is_default(b"cubic"));
        assert!(Name.fits(&[1; 16]) && !Name.fits(&[1; 17]));
    }
}
