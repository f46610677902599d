//! Tells systemd how the agent is doing (sd_notify(3)). Without systemd nothing happens.

use sd_notify::NotifyState;

/// The agent serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The agent goes down.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot notify the service manager: {error}");
    }
}
