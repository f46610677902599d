//! Waiting for events with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition that has no event of its own is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Looks at `condition` until it holds. For conditions that offer nothing to block on.
///
/// # Errors
/// The condition's own, at once; or that `what` did not come true before `limit` had passed.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !condition()? {
        if Instant::now() >= end {
            bail!("{what} did not happen within {limit:?}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
