//! Range checks. All problems are found, not only the first.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use tracing_subscriber::filter::LevelFilter;

use super::place::Places;
use super::{Config, Migration, RoundKind};
use crate::audit::{LEAST_BYTES, MOST_BYTES};
use crate::migration::convergence::Policy;
use crate::migration::{LEAST_BANDWIDTH, MOST_STREAMS};

/// One key that cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key.
    pub key: String,
    /// Where it was set.
    pub place: String,
    /// What is wrong and what would be right.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.key, self.what, self.place)
    }
}

/// Longest timeout that makes sense, milliseconds: an hour.
const LONGEST_MS: u64 = 3_600_000;

/// Most bytes of frames that may wait in the kernel for one migration.
const MOST_CAPTURED: u64 = 256 << 20;

struct Checker<'a> {
    places: &'a Places,
    problems: Vec<Problem>,
}

/// Every value that is out of its range.
pub(crate) fn problems(config: &Config, places: &Places) -> Vec<Problem> {
    let mut checker = Checker { places, problems: Vec::new() };
    checker.agent(config);
    checker.addresses(config);
    checker.security(config);
    checker.runtimes(config);
    checker.migration(&config.migration);
    checker.timeouts(config);
    checker.hooks(config);
    checker.problems
}

impl Checker<'_> {
    fn agent(&mut self, config: &Config) {
        self.absolute("agent.state_dir", &config.agent.state_dir);
        self.range("agent.audit_max_bytes", config.agent.audit_max_bytes, LEAST_BYTES..=MOST_BYTES);
        self.absolute("control.socket", &config.control.socket);
        self.absolute("migration.stdio_dir", &config.migration.stdio_dir);
        if config.agent.name.len() > 253 || config.agent.name.chars().any(char::is_control) {
            self.complain("agent.name", "at most 253 printable characters".into());
        }
        if !is_filter(&config.log.filter) {
            self.complain(
                "log.filter",
                format!("{:?} is not a level like info or info,pclive_engine=debug", config.log.filter),
            );
        }
        if config.control.socket.as_os_str().len() > 107 {
            self.complain("control.socket", "at most 107 bytes: the kernel's limit for socket paths".into());
        }
        let bridge = &config.network.bridge;
        if bridge.len() > 15 || bridge.chars().any(|c| c == '/' || c.is_whitespace()) {
            self.complain("network.bridge", format!("{bridge:?} cannot be an interface's name"));
        }
        self.range("network.capture_bytes", config.network.capture_bytes, 0..=MOST_CAPTURED);
        let congestion = &config.peer.congestion;
        if congestion.len() > 15 || !congestion.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            self.complain("peer.congestion", "at most 15 letters, digits and underscores".into());
        }
    }

    fn addresses(&mut self, config: &Config) {
        self.listen("peer.listen", &config.peer.listen);
        if !config.control.tcp.is_empty() {
            self.listen("control.tcp", &config.control.tcp);
        }
        for (name, address) in &config.peers {
            if !is_host_port(address) {
                self.complain(&format!("peers.{name}"), format!("{address:?} is not host:port"));
            }
        }
    }

    /// Plain text is asked for, and twice where others than this host can reach it.
    fn security(&mut self, config: &Config) {
        self.absolute("tls.ca", &config.tls.ca);
        for (key, path) in [("tls.certificate", &config.tls.certificate), ("tls.key", &config.tls.key)] {
            if !path.as_os_str().is_empty() {
                self.absolute(key, path);
            }
        }
        let (control, peer) = (&config.control, &config.peer);
        self.insecure("peer", &peer.listen, peer.insecure, peer.insecure_outside_loopback);
        if !control.tcp.is_empty() {
            self.insecure("control", &control.tcp, control.insecure, control.insecure_outside_loopback);
        }
    }

    fn insecure(&mut self, table: &str, address: &str, insecure: bool, outside_loopback: bool) {
        let outside = address.parse::<SocketAddr>().is_ok_and(|address| !address.ip().is_loopback());
        if insecure && outside && !outside_loopback {
            let what = format!(
                "plain text on {address}, which others than this host reach: use certificates, listen on 127.0.0.1, \
                 or say {table}.insecure_outside_loopback = true, too"
            );
            self.complain(&format!("{table}.insecure"), what);
        }
    }

    fn runtimes(&mut self, config: &Config) {
        for (name, runtime) in &config.runtimes.0 {
            self.absolute(&format!("runtimes.{name}.root"), &runtime.root);
            if runtime.binary.as_os_str().is_empty() {
                self.complain(&format!("runtimes.{name}.binary"), "a program, not nothing".into());
            }
        }
    }

    fn migration(&mut self, m: &Migration) {
        self.range("migration.max_downtime_ms", m.max_downtime_ms, 1..=LONGEST_MS);
        self.range("migration.max_rounds", m.max_rounds.into(), 1..=1000);
        if RoundKind::NEEDED.iter().any(|kind| !m.capture_each_round.contains(kind)) {
            let what = "\"memory\", \"tree\" and \"vmas\" are in every round: pages have no place without the others";
            self.complain("migration.capture_each_round", what.into());
        }
        self.range("migration.max_time_ms", m.max_time_ms, 0..=LONGEST_MS * 24);
        if m.bandwidth_bytes_per_second != 0 && m.bandwidth_bytes_per_second < LEAST_BANDWIDTH {
            let what = format!("0 (no limit) or at least {LEAST_BANDWIDTH}");
            self.complain("migration.bandwidth_bytes_per_second", what);
        }
        self.range("migration.batch_bytes", m.batch_bytes, 64 << 10..=4 << 20);
        if !m.batch_bytes.is_multiple_of(4096) {
            self.complain("migration.batch_bytes", format!("{} is not a multiple of 4096", m.batch_bytes));
        }
        self.range("migration.in_flight_bytes", m.in_flight_bytes, 16 << 20..=1 << 30);
        if m.restore_after > 0 && m.restore_after >= m.max_rounds {
            let what = format!("{} is not below migration.max_rounds, {}", m.restore_after, m.max_rounds);
            self.complain("migration.restore_after", what);
        }
        if m.verify && m.policy == Policy::PostCopy {
            let what = "memory that comes after the commit cannot be compared before it (migration.policy = \"post-copy\")";
            self.complain("migration.verify", what.into());
        }
        self.range("migration.streams", m.streams.into(), 0..=MOST_STREAMS.into());
        self.range("migration.max_concurrent", m.max_concurrent.into(), 1..=64);
        self.range("migration.history", m.history.into(), 1..=100_000);
    }

    fn timeouts(&mut self, config: &Config) {
        let m = &config.migration;
        self.range("peer.keepalive_interval_ms", config.peer.keepalive_interval_ms, 100..=LONGEST_MS);
        self.range("peer.keepalive_timeout_ms", config.peer.keepalive_timeout_ms, 100..=LONGEST_MS);
        self.range("migration.connect_timeout_ms", m.connect_timeout_ms, 10..=LONGEST_MS);
        self.range("migration.reconnect_timeout_ms", m.reconnect_timeout_ms, 0..=LONGEST_MS);
        self.range("migration.prepare_timeout_ms", m.prepare_timeout_ms, 10..=LONGEST_MS);
        self.range("migration.progress_timeout_ms", m.progress_timeout_ms, 10..=LONGEST_MS);
        self.range("migration.stop_timeout_ms", m.stop_timeout_ms, 10..=LONGEST_MS);
        self.range("migration.handover_timeout_ms", m.handover_timeout_ms, 10..=LONGEST_MS);
        self.range("migration.commit_grace_ms", m.commit_grace_ms, 0..=LONGEST_MS);
        self.range("migration.runtime_timeout_ms", m.runtime_timeout_ms, 10..=LONGEST_MS);
        self.range("migration.shutdown_grace_ms", m.shutdown_grace_ms, 0..=LONGEST_MS);
    }

    fn hooks(&mut self, config: &Config) {
        let hooks = &config.hooks;
        for (key, command) in [
            ("hooks.before_freeze", &hooks.before_freeze),
            ("hooks.after_resume", &hooks.after_resume),
            ("hooks.after_source_destroyed", &hooks.after_source_destroyed),
            ("hooks.on_rollback", &hooks.on_rollback),
        ] {
            if let Some(program) = command.first() {
                self.absolute(key, Path::new(program));
            }
            if command.iter().any(|word| word.contains('\0')) {
                self.complain(key, "a word of a command cannot contain a zero byte".into());
            }
        }
        self.range("hooks.timeout_ms", hooks.timeout_ms, 10..=LONGEST_MS);
        if hooks.timeout_ms >= config.migration.progress_timeout_ms {
            let what = format!(
                "{} is not below migration.progress_timeout_ms, {}: the other agent hears nothing while a hook runs",
                hooks.timeout_ms, config.migration.progress_timeout_ms
            );
            self.complain("hooks.timeout_ms", what);
        }
    }

    fn range(&mut self, key: &str, value: u64, allowed: RangeInclusive<u64>) {
        if !allowed.contains(&value) {
            let (low, high) = (allowed.start(), allowed.end());
            self.complain(key, format!("{value} is not between {low} and {high}"));
        }
    }

    fn absolute(&mut self, key: &str, path: &Path) {
        if !path.is_absolute() {
            self.complain(key, format!("{path:?} is not an absolute path"));
        }
    }

    fn listen(&mut self, key: &str, address: &str) {
        if address.parse::<SocketAddr>().is_err() {
            self.complain(key, format!("{address:?} is not address:port, like 0.0.0.0:7413 or [::]:7413"));
        }
    }

    fn complain(&mut self, key: &str, what: String) {
        self.problems.push(Problem { key: key.into(), place: self.places.of(key), what });
    }
}

/// True for levels and `module=level`, separated by commas. (The subscriber alone takes any word for a module.)
fn is_filter(filter: &str) -> bool {
    filter.split(',').all(|part| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        level.trim().parse::<LevelFilter>().is_ok()
    })
}

/// True for `name:port`, `address:port` and `[v6]:port` with a port above 0.
pub(crate) fn is_host_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]%".contains(&b));
    !host.is_empty() && plain && !bare_v6 && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_of(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::default();
        change(&mut config);
        problems(&config, &Places::default()).into_iter().map(|p| p.key).collect()
    }

    #[test]
    fn the_defaults_are_in_range() {
        assert!(keys_of(|_| {}).is_empty());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let keys = keys_of(|c| {
            c.migration.max_rounds = 0;
            c.migration.batch_bytes = (1 << 20) + 1;
            c.peer.listen = "everywhere".into();
            c.agent.state_dir = "relative".into();
        });
        assert_eq!(keys, ["agent.state_dir", "peer.listen", "migration.max_rounds", "migration.batch_bytes"]);
    }

    #[test]
    fn hooks_are_absolute_and_shorter_than_the_other_agents_patience() {
        let keys = keys_of(|c| {
            c.hooks.before_freeze = vec!["route".into()];
            c.hooks.after_resume = vec!["/usr/bin/route".into(), "a\0b".into()];
            c.hooks.timeout_ms = c.migration.progress_timeout_ms;
        });
        assert_eq!(keys, ["hooks.before_freeze", "hooks.after_resume", "hooks.timeout_ms"]);
    }

    #[test]
    fn plain_text_outside_loopback_must_be_said_twice() {
        assert_eq!(keys_of(|c| c.peer.insecure = true), ["peer.insecure"]);
        let twice = |c: &mut Config| (c.peer.insecure, c.peer.insecure_outside_loopback) = (true, true);
        assert!(keys_of(twice).is_empty());
        for loopback in ["127.0.0.1:7413", "[::1]:7413"] {
            assert!(keys_of(|c| (c.peer.insecure, c.peer.listen) = (true, loopback.into())).is_empty());
        }
        let control = |c: &mut Config| (c.control.insecure, c.control.tcp) = (true, "10.0.0.1:1".into());
        assert_eq!(keys_of(control), ["control.insecure"]);
        assert!(keys_of(|c| c.control.insecure = true).is_empty(), "no listener, nothing to refuse");
    }

    #[test]
    fn certificates_are_absolute_paths() {
        assert_eq!(keys_of(|c| c.tls.ca = "ca.pem".into()), ["tls.ca"]);
        assert_eq!(keys_of(|c| c.tls.key = "x.key".into()), ["tls.key"]);
    }

    #[test]
    fn limits_are_inclusive() {
        assert!(keys_of(|c| c.migration.batch_bytes = 4 << 20).is_empty());
        assert_eq!(keys_of(|c| c.migration.batch_bytes = (4 << 20) + 4096), ["migration.batch_bytes"]);
        assert_eq!(keys_of(|c| c.migration.in_flight_bytes = (16 << 20) - 1), ["migration.in_flight_bytes"]);
        assert!(keys_of(|c| c.migration.restore_after = c.migration.max_rounds - 1).is_empty());
        assert_eq!(
            keys_of(|c| c.migration.restore_after = c.migration.max_rounds),
            ["migration.restore_after"]
        );
        assert!(keys_of(|c| c.migration.shutdown_grace_ms = 0).is_empty());
        assert_eq!(keys_of(|c| c.migration.connect_timeout_ms = 0), ["migration.connect_timeout_ms"]);
    }

    #[test]
    fn memory_that_comes_later_cannot_be_compared() {
        let policy =
            |policy| keys_of(|c: &mut Config| (c.migration.verify, c.migration.policy) = (true, policy));
        assert!(policy(Policy::StopAnyway).is_empty());
        assert_eq!(policy(Policy::PostCopy), ["migration.verify"]);
    }

    #[test]
    fn peers_need_a_host_and_a_port() {
        for good in ["host-b:7413", "10.0.0.2:1", "[fe80::1%eth0]:7413"] {
            assert!(is_host_port(good), "{good}");
        }
        for bad in
            ["host-b", "host-b:", ":7413", "host-b:0", "host-b:70000", "fe80::1:7413", "a b:1", "http://x:1"]
        {
            assert!(!is_host_port(bad), "{bad}");
        }
    }

    #[test]
    fn a_log_filter_by_module_is_a_level() {
        assert!(keys_of(|c| c.log.filter = "info,pclive_engine=debug".into()).is_empty());
        assert_eq!(keys_of(|c| c.log.filter = "loudly".into()), ["log.filter"]);
    }
}
