//! What is done when a migration does not converge.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::decision::Obstacle;

/// What the user wants when the predicted downtime does not come below the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "kebab-case")]
pub enum Policy {
    /// Stop the container, longer than wanted.
    #[default]
    StopAnyway,
    /// Take CPU time from it, step by step, and go on copying; stop it anyway when that does not help either.
    Throttle,
    /// Give the migration up; the container runs on.
    Cancel,
    /// Stop the container for its small state only; its last pages come while it runs at the destination.
    PostCopy,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::StopAnyway, Self::Throttle, Self::Cancel, Self::PostCopy];

    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StopAnyway => "stop-anyway",
            Self::Throttle => "throttle",
            Self::Cancel => "cancel",
            Self::PostCopy => "post-copy",
        }
    }

    /// What to do about an obstacle; `step` is how much the container is slowed down already, `limited` whether a limit
    /// of the bandwidth holds the rounds back.
    pub fn answer(self, obstacle: Obstacle, step: Option<Step>, limited: bool) -> Action {
        // The stop would use all of the link for what is left: a running container is better off with rounds that do.
        let last = if limited { Action::Hurry } else { Action::Stop };
        match (self, obstacle) {
            (Self::Cancel, _) => Action::Cancel,
            (Self::StopAnyway, Obstacle::NotShrinking) => last,
            (Self::Throttle, Obstacle::NotShrinking) => Step::after(step).map_or(last, Action::Throttle),
            // What else is done needs rounds and time to show, and there are none left; or it would change nothing.
            (
                Self::StopAnyway | Self::Throttle,
                Obstacle::MaxRounds | Obstacle::MaxTime | Obstacle::Floor,
            )
            | (Self::PostCopy, _) => Action::Stop,
        }
    }
}

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is none of {}", known()))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a policy asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Stop the container now.
    Stop,
    /// Slow it down to this, and go on.
    Throttle(Step),
    /// Send as fast as the link carries, and go on.
    Hurry,
    /// End the migration.
    Cancel,
}

/// How much CPU time is left to a container, in percent of what it used. Percents fall from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step(u32);

impl Step {
    /// Halves: rounds shrink by as much, and the container notices as little as possible.
    const ALL: [Self; 4] = [Self(50), Self(25), Self(12), Self(6)];

    /// The step after one, the first after none; `None` after the last: less would stop the container in all but name.
    pub fn after(step: Option<Self>) -> Option<Self> {
        Self::ALL.into_iter().find(|next| step.is_none_or(|step| next.0 < step.0))
    }

    /// What is left, in percent.
    pub fn percent(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_answers_every_obstacle() {
        use Obstacle::{Floor, MaxRounds, MaxTime, NotShrinking};
        let last = Some(Step(6));
        let table = [
            (Policy::StopAnyway, NotShrinking, None, Action::Stop),
            (Policy::StopAnyway, MaxRounds, None, Action::Stop),
            (Policy::StopAnyway, MaxTime, None, Action::Stop),
            (Policy::PostCopy, NotShrinking, None, Action::Stop),
            (Policy::PostCopy, MaxRounds, None, Action::Stop),
            (Policy::PostCopy, MaxTime, None, Action::Stop),
            (Policy::Cancel, NotShrinking, None, Action::Cancel),
            (Policy::Cancel, MaxRounds, None, Action::Cancel),
            (Policy::Cancel, MaxTime, None, Action::Cancel),
            (Policy::Throttle, NotShrinking, None, Action::Throttle(Step(50))),
            (Policy::Throttle, NotShrinking, Some(Step(50)), Action::Throttle(Step(25))),
            (Policy::Throttle, NotShrinking, last, Action::Stop),
            (Policy::Throttle, MaxRounds, None, Action::Stop),
            (Policy::Throttle, MaxTime, Some(Step(25)), Action::Stop),
            (Policy::StopAnyway, Floor, None, Action::Stop),
            (Policy::PostCopy, Floor, None, Action::Stop),
            (Policy::Cancel, Floor, None, Action::Cancel),
            (Policy::Throttle, Floor, None, Action::Stop),
            (Policy::Throttle, Floor, Some(Step(25)), Action::Stop),
        ];
        for (policy, obstacle, step, action) in table {
            assert_eq!(policy.answer(obstacle, step, false), action, "{policy} {obstacle:?} {step:?}");
            // A limit is lifted before a container is stopped that rounds could still help.
            let helps = obstacle == NotShrinking && policy != Policy::PostCopy;
            let limited = if helps && action == Action::Stop { Action::Hurry } else { action };
            assert_eq!(policy.answer(obstacle, step, true), limited, "{policy} {obstacle:?} {step:?}");
        }
    }

    #[test]
    fn steps_fall_and_end() {
        let steps: Vec<u32> = std::iter::successors(Step::after(None), |step| Step::after(Some(*step)))
            .map(Step::percent)
            .collect();
        assert_eq!(steps, [50, 25, 12, 6]);
    }
}
