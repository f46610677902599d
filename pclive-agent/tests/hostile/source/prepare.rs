//! What it asks for.

use pclive_proto::peer::{Interface, Prepare};

use super::{in_prepare, suite};
use crate::proxy::Attack;

type Edit = fn(&mut Prepare);

const ATTACKS: [(&str, &[&str], Edit); 14] = [
    ("pages that come later, compared before", &["compared before"], |p| {
        (p.tail_token, p.verify) = ("token".into(), true);
    }),
    ("another protocol version", &["protocol version 99"], |p| p.protocol_version = 99),
    ("an id that is a path", &["migration id"], |p| p.migration_id = "../../../etc/passwd".into()),
    ("a container outside", &["container's name"], |p| p.container_id = "../../etc".into()),
    ("an unknown strategy", &["strategy"], |p| p.strategy = 77),
    ("an unknown runtime of a million letters", &["name of the runtime"], |p| {
        p.runtime = "x".repeat(1 << 20);
    }),
    ("all memory there is", &["MiB"], |p| p.memory_bytes = u64::MAX),
    ("a bundle with a terminal's orders", &["name of the bundle"], |p| p.bundle = "/a\u{1b}[2J".into()),
    ("a bundle that is a device", &["config.json"], |p| p.bundle = "/dev/zero".into()),
    ("a name without end", &["name of the agent"], |p| p.source_agent = "x".repeat(4 << 20)),
    ("a token without end", &["name of the token"], |p| p.tail_token = "x".repeat(4 << 20)),
    ("an interface that is a path", &["network interfaces"], |p| {
        p.interfaces = vec![Interface { name: "../../etc".into(), mtu: 1500, ..Default::default() }];
    }),
    ("a thousand interfaces", &["too many interfaces"], |p| {
        p.interfaces = vec![Interface { name: "eth0".into(), mtu: 1500, ..Default::default() }; 1000];
    }),
    ("a machine with a terminal's orders", &["the source is \u{fffd}[2J"], |p| {
        p.host.as_mut().unwrap().machine = "\u{1b}[2J\n".into();
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_before_anything_is_made() {
    let Some(mut pair) = suite("prepare").await else { return };
    for (name, words, edit) in ATTACKS {
        pair.refuses(name, words, in_prepare(edit)).await;
    }
    pair.finish(Attack::default()).await;
}
