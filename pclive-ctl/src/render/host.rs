//! The host, its containers, and what stands in the way of one of them.

use std::fmt::Write;

use pclive_proto::control::{CheckContainerResponse, Container, Host};

use super::problem;
use super::table::{Align, table};
use super::text::{or_dash, printable};

/// The host.
pub(crate) fn host(host: &Host) -> String {
    let mut text = String::new();
    let runtimes: Vec<_> = host.runtimes.iter().map(|name| printable(name).into_owned()).collect();
    let facts = [
        ("agent", format!("{} (pclive-agent {})", or_dash(&host.agent_name), or_dash(&host.agent_version))),
        ("kernel", or_dash(&host.kernel_release).into_owned()),
        ("runtimes", or_dash(&runtimes.join(", ")).into_owned()),
        ("migrations", format!("{} running", host.active_migrations)),
    ];
    for (fact, value) in facts {
        let _ = writeln!(text, "{fact:<11} {value}");
    }
    if !host.peers.is_empty() {
        let head = [("PEER", Align::Left), ("ADDRESS", Align::Left)];
        let rows: Vec<_> = host
            .peers
            .iter()
            .map(|peer| [or_dash(&peer.name).into_owned(), or_dash(&peer.address).into_owned()])
            .collect();
        let _ = write!(text, "\n{}", table(0, head, &rows));
    }
    if !host.features.is_empty() {
        let head = [("KERNEL FEATURE", Align::Left), ("", Align::Left), ("NEEDED FOR", Align::Left)];
        let rows: Vec<_> = host
            .features
            .iter()
            .map(|feature| {
                let present = if feature.present { "present" } else { "missing" };
                [
                    or_dash(&feature.name).into_owned(),
                    present.to_owned(),
                    or_dash(&feature.needed_for).into_owned(),
                ]
            })
            .collect();
        let _ = write!(text, "\n{}", table(0, head, &rows));
    }
    text
}

/// The containers, a line each.
pub(crate) fn containers(containers: &[Container]) -> String {
    if containers.is_empty() {
        return "no containers\n".to_owned();
    }
    let head = [
        ("CONTAINER", Align::Left),
        ("RUNTIME", Align::Left),
        ("STATUS", Align::Left),
        ("PID", Align::Right),
        ("MIGRATION", Align::Left),
        ("BUNDLE", Align::Left),
    ];
    let rows: Vec<_> = containers.iter().map(container).collect();
    table(0, head, &rows)
}

fn container(container: &Container) -> [String; 6] {
    let pid = if container.pid > 0 { container.pid.to_string() } else { "-".to_owned() };
    [
        or_dash(&container.id).into_owned(),
        or_dash(&container.runtime).into_owned(),
        or_dash(&container.status).into_owned(),
        pid,
        or_dash(&container.migration_id).into_owned(),
        or_dash(&container.bundle).into_owned(),
    ]
}

/// The outcome of a check of this container, and of this destination if it was asked.
pub(crate) fn check(container: &str, destination: Option<&str>, found: &CheckContainerResponse) -> String {
    let container = printable(container);
    let to = destination.map(|peer| format!(" to {}", printable(peer))).unwrap_or_default();
    let mut text = match found.blockers.len() {
        0 => format!("{container} can be migrated{to}\n"),
        1 => format!("{container} cannot be migrated{to}: 1 blocker\n"),
        count => format!("{container} cannot be migrated{to}: {count} blockers\n"),
    };
    text.push_str(&problem::blockers(2, &found.blockers));
    for warning in &found.warnings {
        let _ = writeln!(text, "warning: {}", printable(warning));
    }
    text
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{Blocker, Feature, Peer};

    use super::*;

    #[test]
    fn a_host_is_shown_with_its_peers_and_its_kernel() {
        let feature = |name: &str, present, needed_for: &str| Feature {
            name: name.into(),
            present,
            needed_for: needed_for.into(),
        };
        let sample = Host {
            agent_name: "host-a".into(),
            agent_version: "0.1.0".into(),
            kernel_release: "6.18.0".into(),
            runtimes: vec!["runc".into()],
            peers: vec![Peer { name: "host-b".into(), address: "10.0.0.2:7071".into() }],
            features: vec![
                feature("PAGEMAP_SCAN", true, "finding dirty pages"),
                feature("TCP_REPAIR", false, "TCP connections"),
            ],
            active_migrations: 1,
        };
        let expected = "\
agent       host-a (pclive-agent 0.1.0)
kernel      6.18.0
runtimes    runc
migrations  1 running

PEER    ADDRESS
host-b  10.0.0.2:7071

KERNEL FEATURE           NEEDED FOR
PAGEMAP_SCAN    present  finding dirty pages
TCP_REPAIR      missing  TCP connections
";
        assert_eq!(host(&sample), expected);
    }

    #[test]
    fn containers_are_listed_with_the_migration_that_moves_them() {
        let container = |id: &str, status: &str, pid, migration_id: &str| Container {
            id: id.into(),
            runtime: "runc".into(),
            status: status.into(),
            pid,
            bundle: "/run/bundles/x".into(),
            migration_id: migration_id.into(),
        };
        let sample = [container("redis-1", "running", 812, "3f2c"), container("web", "stopped", 0, "")];
        let expected = "\
CONTAINER  RUNTIME  STATUS   PID  MIGRATION  BUNDLE
redis-1    runc     running  812  3f2c       /run/bundles/x
web        runc     stopped    -  -          /run/bundles/x
";
        assert_eq!(containers(&sample), expected);
        assert_eq!(containers(&[]), "no containers\n");
    }

    #[test]
    fn a_check_lists_every_blocker() {
        let blocker = |what: &str| Blocker {
            pid: 812,
            place: "descriptor 9".into(),
            what: what.into(),
            hint: "close it".into(),
            ..Blocker::default()
        };
        let found = CheckContainerResponse {
            blockers: vec![blocker("io_uring instance"), blocker("fanotify group")],
            warnings: vec!["clock jumps forward by 3 s".into()],
        };
        let expected = "\
redis-1 cannot be migrated to host-b: 2 blockers
  pid 812, descriptor 9: io_uring instance
    hint: close it
  pid 812, descriptor 9: fanotify group
    hint: close it
warning: clock jumps forward by 3 s
";
        assert_eq!(check("redis-1", Some("host-b"), &found), expected);
        assert_eq!(check("web", None, &CheckContainerResponse::default()), "web can be migrated\n");
    }
}
