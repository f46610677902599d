//! What becomes of a migration whose agent was restarted, or whose commit got no answer. Pure.
//!
//! What makes it safe: a source sends COMMIT only once its container is frozen in a way that outlives the agent and
//! `Committing` is durable; a destination's tasks die with its agent until they are let go, init last, and are let
//! go only once `Committing` is durable. So a free container was never given away, and an init that outlived its
//! agent is a whole container.

use crate::journal::Phase;

/// What is left of the container at its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It stands still.
    Frozen,
    /// It is there, and nothing keeps it from running.
    Free,
    /// It has ended, or the host was restarted.
    Gone,
}

/// What the destination says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It was let go there.
    Runs,
    /// It never was and never will be.
    Discarded,
    /// It is about to be.
    Pending,
    /// It has no record of the migration.
    Unknown,
    /// Nobody answers.
    Silent,
}

/// What the source does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceStep {
    /// Nothing: it has ended.
    Nothing,
    /// Thaw, unlock: the container runs on here.
    LetGo,
    /// Remove the container: it runs at the destination.
    Destroy,
    /// Note that it failed: there is nothing here to let go.
    Lost,
    /// Leave it as it is and ask (again).
    Ask,
    /// Keep it as before: the copy is not to be had back.
    Keep,
}

/// What the source does with what it knows. Of a migration that is being undone the answer is that to a demand: the copy
/// has ended (`Discarded`), or will not be ended (`Runs`).
pub fn source(phase: &Phase, held: Held, answer: Answer) -> SourceStep {
    match (phase, held) {
        (
            Phase::Ended(_)
            | Phase::Discarded
            | Phase::Tail
            | Phase::Torn
            | Phase::Kept(_)
            | Phase::Withdrawn,
            _,
        ) => SourceStep::Nothing,
        (Phase::Begun, Held::Frozen | Held::Free) | (Phase::Committing, Held::Free) => SourceStep::LetGo,
        (Phase::Begun, Held::Gone) => SourceStep::Lost,
        // It was given away, whatever has thawed it since: it may be an undo that was interrupted, or somebody's hand.
        (Phase::Undoing(_), _) => match answer {
            Answer::Runs if held == Held::Gone => SourceStep::Destroy,
            Answer::Runs => SourceStep::Keep,
            Answer::Discarded if held == Held::Gone => SourceStep::Lost,
            Answer::Discarded => SourceStep::LetGo,
            Answer::Pending | Answer::Unknown | Answer::Silent => SourceStep::Ask,
        },
        (Phase::Committing, Held::Frozen | Held::Gone) => match answer {
            Answer::Runs => SourceStep::Destroy,
            Answer::Discarded if held == Held::Gone => SourceStep::Lost,
            Answer::Discarded => SourceStep::LetGo,
            Answer::Pending | Answer::Unknown | Answer::Silent => SourceStep::Ask,
        },
    }
}

/// What a restarted destination does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestinationStep {
    /// Nothing: it has ended.
    Nothing,
    /// Remove what is left of the copy.
    Discard,
    /// The copy runs, or ran: tell the runtime.
    Finish,
    /// The copy runs and its last pages are being fetched: wait for that.
    Follow,
    /// The copy runs and lacks pages that nobody fetches any more: end it, and leave the rest to an operator.
    Tear,
    /// The copy is to end because its source wants the original back: end it.
    Withdraw,
}

/// What became of the process that fetches the last pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetching {
    /// There is none: every page came before the commit.
    Never,
    /// It is at work.
    Running,
    /// Every page is in place.
    Complete,
    /// It has ended before.
    Lost,
}

/// What a restarted destination does; `lives`: the copy's init is there.
pub fn destination(phase: &Phase, lives: bool, fetching: Fetching) -> DestinationStep {
    match (phase, fetching) {
        (Phase::Ended(_) | Phase::Kept(_) | Phase::Undoing(_), _) => DestinationStep::Nothing,
        (Phase::Withdrawn, _) => DestinationStep::Withdraw,
        (Phase::Begun | Phase::Discarded, _) => DestinationStep::Discard,
        (Phase::Torn, _) => DestinationStep::Tear,
        (Phase::Committing | Phase::Tail, Fetching::Complete) => DestinationStep::Finish,
        (Phase::Committing, _) if !lives => DestinationStep::Discard,
        // The fetcher sees that the copy has ended, and writes down that it lacks nothing.
        (Phase::Tail, Fetching::Running) if !lives => DestinationStep::Follow,
        // Only what was complete is told to the source as running: the original is destroyed for that.
        (Phase::Tail, Fetching::Never | Fetching::Lost) if !lives => DestinationStep::Tear,
        (Phase::Committing | Phase::Tail, Fetching::Never) => DestinationStep::Finish,
        (Phase::Committing | Phase::Tail, Fetching::Running) => DestinationStep::Follow,
        (Phase::Committing | Phase::Tail, Fetching::Lost) => DestinationStep::Tear,
    }
}

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It is to run here.
    RunHere,
    /// It is to be removed here.
    DiscardHere,
}

/// Whether the destination's answer confirms a wish. What it does not confirm is done only when it is overridden.
pub fn confirms(answer: Answer, wish: Wish) -> bool {
    match wish {
        Wish::RunHere => answer == Answer::Discarded,
        Wish::DiscardHere => answer == Answer::Runs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::journal::{Ending, Kept, Reason};

    const HELD: [Held; 3] = [Held::Frozen, Held::Free, Held::Gone];
    const ANSWERS: [Answer; 5] =
        [Answer::Runs, Answer::Discarded, Answer::Pending, Answer::Unknown, Answer::Silent];

    const FETCHING: [Fetching; 4] = [Fetching::Never, Fetching::Running, Fetching::Complete, Fetching::Lost];

    const KEPT: Kept = Kept { until_boottime_ms: 1, stopped_ms: 2 };

    fn phases() -> [Phase; 5] {
        let failed = Ending::Failed(Reason::new(ErrorCode::PeerLost, "x", ""));
        let ended = [Phase::Ended(Ending::Done), Phase::Ended(failed)];
        let [done, failed] = ended;
        [Phase::Begun, Phase::Committing, Phase::Discarded, done, failed]
    }

    /// The whole table of the source, in the order of `HELD` and `ANSWERS`.
    #[test]
    fn every_phase_remainder_and_answer_has_its_step() {
        use SourceStep::{Ask, Destroy, Keep, LetGo, Lost, Nothing};
        let phases = phases().into_iter().chain([Phase::Kept(KEPT), Phase::Undoing(KEPT)]);
        let table = [
            [[LetGo; 5], [LetGo; 5], [Lost; 5]],
            [[Destroy, LetGo, Ask, Ask, Ask], [LetGo; 5], [Destroy, Lost, Ask, Ask, Ask]],
            [[Nothing; 5]; 3],
            [[Nothing; 5]; 3],
            [[Nothing; 5]; 3],
            [[Nothing; 5]; 3],
            [[Keep, LetGo, Ask, Ask, Ask], [Keep, LetGo, Ask, Ask, Ask], [Destroy, Lost, Ask, Ask, Ask]],
        ];
        for (phase, of_phase) in phases.zip(table) {
            for (held, of_held) in HELD.into_iter().zip(of_phase) {
                for (answer, expected) in ANSWERS.into_iter().zip(of_held) {
                    assert_eq!(source(&phase, held, answer), expected, "{phase:?} {held:?} {answer:?}");
                }
            }
        }
    }

    #[test]
    fn every_phase_of_the_destination_has_its_step() {
        use DestinationStep::{Discard, Finish, Follow, Nothing, Tear, Withdraw};
        let phases = phases().into_iter().chain([Phase::Tail, Phase::Torn, Phase::Withdrawn]);
        let table = [
            [[Discard; 4]; 2],
            [[Finish, Follow, Finish, Tear], [Discard, Discard, Finish, Discard]],
            [[Discard; 4]; 2],
            [[Nothing; 4]; 2],
            [[Nothing; 4]; 2],
            [[Finish, Follow, Finish, Tear], [Tear, Follow, Finish, Tear]],
            [[Tear; 4]; 2],
            [[Withdraw; 4]; 2],
        ];
        for (phase, of_phase) in phases.zip(table) {
            for (lives, of_life) in [true, false].into_iter().zip(of_phase) {
                for (fetching, expected) in FETCHING.into_iter().zip(of_life) {
                    assert_eq!(
                        destination(&phase, lives, fetching),
                        expected,
                        "{phase:?} {lives} {fetching:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn copy_that_ran_is_never_discarded_for_want_of_pages() {
        for lives in [true, false] {
            for fetching in FETCHING {
                for phase in [Phase::Tail, Phase::Torn] {
                    assert_ne!(destination(&phase, lives, fetching), DestinationStep::Discard);
                }
            }
        }
    }

    #[test]
    fn copy_that_is_gone_without_its_last_pages_is_never_said_to_run() {
        for fetching in FETCHING.into_iter().filter(|fetching| *fetching != Fetching::Complete) {
            assert_ne!(destination(&Phase::Tail, false, fetching), DestinationStep::Finish, "{fetching:?}");
        }
    }

    /// An original that is wanted back goes on only when its copy has ended, and is never removed for that.
    #[test]
    fn an_original_that_is_wanted_back_goes_on_only_after_its_copy() {
        for held in [Held::Frozen, Held::Free] {
            for answer in ANSWERS {
                let step = source(&Phase::Undoing(KEPT), held, answer);
                assert_eq!(step == SourceStep::LetGo, answer == Answer::Discarded, "{held:?} {answer:?}");
                assert_ne!(step, SourceStep::Destroy);
            }
        }
    }

    /// For every pair of phases and remainders in which both agents die: at most one copy, and one if none is lost.
    #[test]
    fn two_restarted_ends_never_both_run_and_never_both_give_up() {
        for destination_phase in [Phase::Begun, Phase::Committing, Phase::Discarded] {
            for lives in [true, false] {
                let there = destination(&destination_phase, lives, Fetching::Never);
                let answer = if there == DestinationStep::Finish { Answer::Runs } else { Answer::Discarded };
                let here = source(&Phase::Committing, Held::Frozen, answer);
                let runs = [here == SourceStep::LetGo, there == DestinationStep::Finish];
                assert_ne!(runs[0], runs[1], "{destination_phase:?} {lives}");
            }
        }
    }

    #[test]
    fn a_frozen_source_that_committed_moves_on_the_destinations_word_only() {
        for answer in [Answer::Pending, Answer::Unknown, Answer::Silent] {
            assert_eq!(source(&Phase::Committing, Held::Frozen, answer), SourceStep::Ask);
        }
    }

    #[test]
    fn a_wish_needs_the_answer_that_makes_it_safe() {
        for answer in ANSWERS {
            assert_eq!(confirms(answer, Wish::RunHere), answer == Answer::Discarded, "{answer:?}");
            assert_eq!(confirms(answer, Wish::DiscardHere), answer == Answer::Runs, "{answer:?}");
        }
    }
}
