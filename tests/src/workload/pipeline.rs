//! A shell pipeline: a tree of processes with pipes between them, in which children are born and die all the time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bundle::Bundle;
use crate::container::Container;
use crate::host::Host;
use crate::wait::until;

/// How long the pipeline may take for a few more numbers.
const LIMIT: Duration = Duration::from_secs(60);

/// Counts in one process, hands each number through a forked `sed` in the second, checks the order in the third
/// and notes every hundredth number in `/data/count`. A number out of order goes to `/data/broken`.
const SCRIPT: &str = r#"
n=0
while :; do n=$((n + 1)); echo "x$n"; done |
while read -r word; do
    case $word in
    *00) echo "$word" | busybox sed s/x//;;
    *) (echo "${word#x}");;
    esac
done | {
    expected=1
    while read -r number; do
        [ "$number" = "$expected" ] || echo "$number instead of $expected" >> /data/broken
        expected=$((number + 1))
        case $number in *00) echo "$number" > /data/count.new && busybox mv /data/count.new /data/count;; esac
    done
    echo "the pipeline ended" >> /data/broken
}
"#;

/// The container.
pub fn bundle(name: &str) -> Bundle {
    Bundle::new(name, &["/usr/bin/dash", "/etc/pipeline.sh"])
        .program("dash")
        .program("busybox")
        .file("/etc/pipeline.sh", SCRIPT)
}

/// The last number that was noted.
pub fn count(container: &Container, host: &Host) -> Result<u64> {
    let text = container.exec(host, &["/usr/bin/busybox", "cat", "/data/count"])?;
    text.trim().parse().with_context(|| format!("the count is {text:?}"))
}

/// Waits until the pipeline on `host` has noted a number above `number`; the number.
///
/// # Errors
/// When it does not go on, or when a number was lost, doubled or out of order.
pub fn wait_beyond(container: &Container, host: &Host, number: u64) -> Result<u64> {
    let mut now = number;
    until("progress of the pipeline", LIMIT, || {
        now = count(container, host).unwrap_or(number);
        Ok(now > number)
    })?;
    let broken =
        container.exec(host, &["/usr/bin/busybox", "sh", "-c", "cat /data/broken 2>/dev/null; true"])?;
    ensure!(broken.is_empty(), "the pipeline lost its place: {broken}");
    Ok(now)
}
