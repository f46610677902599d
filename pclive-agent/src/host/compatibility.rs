//! Whether a container of one host can live on another. Pure: both hosts' facts in, findings out.

use pclive_proto::peer::HostFacts;

use crate::error::{ErrorCode, MigrationError};

/// A clock jump that nobody notices, nanoseconds.
const SMALL_JUMP_NS: u64 = 1_000_000_000;

/// What is asked of the destination.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Memory that the container has in use, bytes.
    pub memory_bytes: u64,
    /// Whether the monotonic clock may go back for the container.
    pub allow_clock_step_back: bool,
}

/// Why the destination cannot take the container, and what the administrator should know if it can.
#[derive(Debug, Default)]
pub struct Findings {
    /// Each of them is enough to refuse.
    pub refusals: Vec<MigrationError>,
    /// Things that the application may notice.
    pub warnings: Vec<String>,
}

impl Findings {
    /// All refusals as one error.
    pub fn into_result(mut self) -> Result<Vec<String>, MigrationError> {
        if self.refusals.is_empty() {
            return Ok(self.warnings);
        }
        let mut first = self.refusals.remove(0);
        for other in self.refusals {
            first.message = format!("{}; {}", first.message, other.message);
        }
        Err(first)
    }
}

/// Compares two hosts. The clocks are compared as they were told, so the messages' way is in the difference: it
/// makes a destination look ahead by that much, never behind.
pub fn compare(source: &HostFacts, destination: &HostFacts, demand: Demand) -> Findings {
    let mut findings = Findings::default();
    machine(source, destination, &mut findings);
    clocks(source, destination, demand, &mut findings);
    if demand.memory_bytes > destination.memory_available_bytes {
        let (need, have) = (mib(demand.memory_bytes), mib(destination.memory_available_bytes));
        let message = format!("the container uses {need} MiB and the destination has {have} MiB available");
        findings.refusals.push(MigrationError::new(ErrorCode::NoMemory, message));
    }
    findings
}

fn machine(source: &HostFacts, destination: &HostFacts, findings: &mut Findings) {
    let mut refuse = |message: String, hint: &str| {
        findings.refusals.push(MigrationError::new(ErrorCode::IncompatibleHost, message).hint(hint));
    };
    if source.machine != destination.machine {
        let message = format!("the source is {} and the destination {}", source.machine, destination.machine);
        refuse(message, "migrate between hosts of one architecture");
    }
    let missing = source.xstate_features & !destination.xstate_features;
    if missing != 0 {
        let message = format!(
            "the destination's CPU or kernel lacks extended registers of the source (XCR0 bits {missing:#x})"
        );
        refuse(message, "migrate to a host with the same or a newer CPU");
    }
    if source.vdso_digest != destination.vdso_digest {
        let (from, to) = (&source.kernel_release, &destination.kernel_release);
        let message = format!("the kernels have different vDSOs (source {from}, destination {to})");
        refuse(message, "run the same kernel build on both hosts");
    } else if source.kernel_release != destination.kernel_release {
        let (from, to) = (&source.kernel_release, &destination.kernel_release);
        findings.warnings.push(format!("the kernels differ: source {from}, destination {to}"));
    }
}

fn clocks(source: &HostFacts, destination: &HostFacts, demand: Demand, findings: &mut Findings) {
    let (from, to) = (source.monotonic_ns, destination.monotonic_ns);
    if to < from && !demand.allow_clock_step_back {
        let message = format!(
            "the destination's monotonic clock is {} ms behind the source's",
            (from - to) / 1_000_000
        );
        let hint = "a program may hang when this clock steps back; allow it (--allow-clock-step-back) if yours copes";
        findings.refusals.push(MigrationError::new(ErrorCode::IncompatibleHost, message).hint(hint));
    } else if to < from {
        findings
            .warnings
            .push(format!("the monotonic clock will step back by {} ms", (from - to) / 1_000_000));
    } else if to - from > SMALL_JUMP_NS {
        findings
            .warnings
            .push(format!("the monotonic clock will jump ahead by {} ms", (to - from) / 1_000_000));
    }
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostFacts {
        HostFacts {
            kernel_release: "6.18.0".into(),
            machine: "x86_64".into(),
            agent_version: "0.1.0".into(),
            xstate_features: 0xe7,
            vdso_digest: 42,
            monotonic_ns: 10_000_000_000,
            boottime_ns: 10_000_000_000,
            memory_available_bytes: 1 << 30,
            cpus: 2,
        }
    }

    fn check(destination: HostFacts, demand: Demand) -> Findings {
        compare(&host(), &destination, demand)
    }

    const SMALL: Demand = Demand { memory_bytes: 1 << 20, allow_clock_step_back: false };

    fn codes(findings: &Findings) -> Vec<ErrorCode> {
        findings.refusals.iter().map(|error| error.code).collect()
    }

    #[test]
    fn equal_hosts_fit_without_a_word() {
        let findings = check(host(), SMALL);
        assert!(findings.into_result().unwrap().is_empty());
    }

    #[test]
    fn a_newer_cpu_is_fine_and_an_older_one_is_not() {
        assert!(check(HostFacts { xstate_features: 0xfff, ..host() }, SMALL).refusals.is_empty());
        let refused = check(HostFacts { xstate_features: 0x7, ..host() }, SMALL);
        assert!(refused.refusals[0].message.contains("0xe0"), "{refused:?}");
    }

    #[test]
    fn all_reasons_are_given_at_once() {
        let bad =
            HostFacts { machine: "aarch64".into(), vdso_digest: 1, memory_available_bytes: 0, ..host() };
        let findings = check(bad, SMALL);
        let expected = [ErrorCode::IncompatibleHost, ErrorCode::IncompatibleHost, ErrorCode::NoMemory];
        assert_eq!(codes(&findings), expected);
        assert!(findings.into_result().unwrap_err().message.contains("aarch64"));
    }

    #[test]
    fn a_clock_behind_is_refused_unless_allowed() {
        let behind = HostFacts { monotonic_ns: 1_000_000_000, ..host() };
        assert_eq!(codes(&check(behind.clone(), SMALL)), [ErrorCode::IncompatibleHost]);
        let allowed = check(behind, Demand { allow_clock_step_back: true, ..SMALL });
        assert!(allowed.refusals.is_empty() && allowed.warnings[0].contains("9000 ms"));
    }

    #[test]
    fn a_clock_far_ahead_is_told() {
        let ahead = HostFacts { monotonic_ns: 60_000_000_000, ..host() };
        assert!(check(ahead, SMALL).warnings[0].contains("50000 ms"));
    }

    #[test]
    fn another_kernel_with_the_same_vdso_is_told() {
        let other = HostFacts { kernel_release: "6.18.1".into(), ..host() };
        assert!(check(other, SMALL).warnings[0].contains("6.18.1"));
    }
}
