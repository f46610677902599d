//! Points at which a test ends, stops or holds the agent. Without the feature `fault-injection` nothing of it is built
//! in.
//!
//! With it, the environment variable `FAULT_INJECTION` names a file. While that holds `POINT:ACTION`, the first to come to
//! the point removes it and does as it says: `kill` (SIGKILL) and `stop` (SIGSTOP) concern the whole agent, `hold` makes
//! the thread wait there until the file `FILE.held`, which it makes, is removed, and `wait-MS` for so many milliseconds.
//!
//! `destination-memory:flip` is no point: it changes a byte of the copy just before its memory is compared.
//!
//! Each point says where the container runs when the agent was killed there and started again: that is a rule, and not
//! left to chance. It also says by which policy of a migration one comes to it.

/// Where the container runs after the agent was killed at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivor {
    /// At its source.
    Source,
    /// At its destination.
    Destination,
    /// Where the destination's journal says: whether COMMIT has left the host is not known at the point.
    Decided,
}

/// Makes the enum `Point` of a crate and its function `reached`. A point is `Variant "name" => Survivor, "policy";`.
#[macro_export]
macro_rules! fault_points {
    ($($variant:ident $name:literal => $survivor:ident, $policy:literal;)*) => {
        /// A point of a migration.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Point {
            $(#[doc = $name] $variant,)*
        }

        /// Every point of this crate: its name, who survives there, and the policy by which one comes to it.
        #[cfg(feature = "fault-injection")]
        pub const POINTS: &[(&str, $crate::fault::Survivor, &str)] =
            &[$(($name, $crate::fault::Survivor::$survivor, $policy)),*];

        /// The migration has come this far.
        #[cfg(not(feature = "fault-injection"))]
        #[inline(always)]
        pub(crate) fn reached(_: Point) {}

        /// The migration has come this far: does what a test has asked for.
        #[cfg(feature = "fault-injection")]
        pub(crate) fn reached(point: Point) {
            $crate::fault::act(match point {
                $(Point::$variant => $name,)*
            });
        }
    };
}

fault_points! {
    SourceProcessStopped "source-process-stopped" => Source, "stop-anyway";
    SourceTracked "source-tracked" => Source, "stop-anyway";
    SourceLayoutSent "source-layout-sent" => Source, "stop-anyway";
    SourcePagesSent "source-pages-sent" => Source, "stop-anyway";
    SourceTasksStopped "source-tasks-stopped" => Source, "stop-anyway";
    SourceLastLayoutSent "source-last-layout-sent" => Source, "stop-anyway";
    SourceLastPagesSent "source-last-pages-sent" => Source, "stop-anyway";
    SourceFreezerHolds "source-freezer-holds" => Source, "stop-anyway";
    SourceConnectionMute "source-connection-mute" => Source, "stop-anyway";
    SourceDescriptorsRead "source-descriptors-read" => Source, "stop-anyway";
    SourceConnectionsRead "source-connections-read" => Source, "stop-anyway";
    SourceSmallStateRead "source-small-state-read" => Source, "stop-anyway";
    SourceFreezerEngaged "source-freezer-engaged" => Source, "stop-anyway";
    SourceSilenced "source-silenced" => Source, "stop-anyway";
    SourceKilled "source-killed" => Destination, "stop-anyway";
    SourceThawedToEnd "source-thawed-to-end" => Destination, "stop-anyway";
    DestinationSeized "destination-seized" => Source, "stop-anyway";
    DestinationSkeleton "destination-skeleton" => Source, "stop-anyway";
    DestinationFilled "destination-filled" => Source, "stop-anyway";
    DestinationEarlyState "destination-early-state" => Source, "stop-anyway";
    DestinationFiles "destination-files" => Source, "stop-anyway";
    DestinationTasks "destination-tasks" => Source, "stop-anyway";
    DestinationOthersKept "destination-others-kept" => Source, "stop-anyway";
    DestinationKept "destination-kept" => Destination, "stop-anyway";
    DestinationSocketsAwake "destination-sockets-awake" => Source, "stop-anyway";
    DestinationOthersReleased "destination-others-released" => Destination, "stop-anyway";
    DestinationReleased "destination-released" => Destination, "stop-anyway";
}

/// Does what a test has asked for at this point, if it has.
#[cfg(feature = "fault-injection")]
pub fn act(point: &str) {
    use nix::sys::signal::{Signal, raise};
    let Some(path) = std::env::var_os("FAULT_INJECTION").map(std::path::PathBuf::from) else { return };
    let Ok(wanted) = std::fs::read_to_string(&path) else { return };
    let Some((name, action)) = wanted.trim().split_once(':') else { return };
    // Whoever removes it acts.
    if name != point || std::fs::remove_file(&path).is_err() {
        return;
    }
    tracing::warn!(point, action, "fault injected");
    match action {
        "hold" => hold(&path.with_extension("held")),
        // A signal that cannot be raised shows in the test: the agent goes on.
        "stop" => drop(raise(Signal::SIGSTOP)),
        _ => match action.strip_prefix("wait-").and_then(|number| number.parse().ok()) {
            Some(milliseconds) => std::thread::sleep(std::time::Duration::from_millis(milliseconds)),
            None => drop(raise(Signal::SIGKILL)),
        },
    }
}

/// Whether a test has asked for something that is not the agent's end: once.
#[cfg(feature = "fault-injection")]
pub(crate) fn asked(what: &str, action: &str) -> bool {
    let Some(path) = std::env::var_os("FAULT_INJECTION").map(std::path::PathBuf::from) else { return false };
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    wanted.trim().split_once(':') == Some((what, action)) && std::fs::remove_file(&path).is_ok()
}

/// Waits until a file that this makes is removed; not for ever, in case that the test has failed.
#[cfg(feature = "fault-injection")]
fn hold(path: &std::path::Path) {
    const LONGEST: std::time::Duration = std::time::Duration::from_secs(30);
    const LOOK: std::time::Duration = std::time::Duration::from_millis(2);
    let begun = std::time::Instant::now();
    if std::fs::write(path, "").is_err() {
        return;
    }
    while path.exists() && begun.elapsed() < LONGEST {
        std::thread::sleep(LOOK);
    }
}
