//! `/proc/PID/net/igmp` and `igmp6`: the multicast groups that applications of a network namespace have joined.
//! Groups that the kernel joins by itself are left out. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Groups of `/proc/PID/net/igmp`: a line of eight hexadecimal digits (byte order of the host) for each.
pub fn joined_v4(text: &[u8]) -> Vec<IpAddr> {
    let groups = lines(text).filter_map(|line| u32::from_str_radix(line.split_whitespace().next()?, 16).ok());
    let addresses = groups.map(|word| Ipv4Addr::from(word.to_ne_bytes()));
    addresses.filter(|ip| ip.is_multicast() && *ip != Ipv4Addr::new(224, 0, 0, 1)).map(IpAddr::V4).collect()
}

/// Groups of `/proc/PID/net/igmp6`: index, interface, 32 hexadecimal digits.
pub fn joined_v6(text: &[u8]) -> Vec<IpAddr> {
    let groups =
        lines(text).filter_map(|line| u128::from_str_radix(line.split_whitespace().nth(2)?, 16).ok());
    groups.map(Ipv6Addr::from).filter(|ip| ip.is_multicast() && !is_kernels(*ip)).map(IpAddr::V6).collect()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok())
}

/// All nodes and all routers of the small scopes, and solicited-node addresses (RFC 4291).
fn is_kernels(ip: Ipv6Addr) -> bool {
    let [scope, a, b, c, d, e, f, g] = ip.segments();
    let well_known = (a, b, c, d, e, f) == (0, 0, 0, 0, 0, 0) && matches!(scope, 0xff01 | 0xff02 | 0xff05);
    let solicited = (scope, a, b, c, d, e, f >> 8) == (0xff02, 0, 0, 0, 0, 1, 0xff);
    (well_known && g <= 2) || solicited
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_applications_are_told_from_the_kernels() {
        let v4 = b"Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n2\teth0      :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n";
        assert_eq!(joined_v4(v4), ["224.0.0.251".parse::<IpAddr>().unwrap()]);
        let v6 = b"1    lo              ff020000000000000000000000000001     1 0000000C 0\n2    eth0            ff0200000000000000000001ff000001     1 00000004 0\n2    eth0            ff0200000000000000000000000000fb     1 00000004 0\n";
        assert_eq!(joined_v6(v6), ["ff02::fb".parse::<IpAddr>().unwrap()]);
    }
}
