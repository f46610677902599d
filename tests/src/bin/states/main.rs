//! Kernel state of every kind, set up and then verified as often as asked: signals, timers, limits, registers,
//! descriptors with queues, threads inside system calls, children.
//!
//! `states [NAME...]` sets up the states with these names (none: all that need nothing special and stop the container for
//! a moment only) and
//! listens on TCP port 7000: `PING`, `LIST`, `CHECK` (`PASS ...`, or `FAIL` with everything that differs),
//! `CHECK NAME`. What a check consumes it puts back, so that the next migration meets it again. `states blockers`
//! holds things that cannot be migrated.

mod blockers;
mod calls;
mod children;
mod cpu;
mod descriptors;
mod files;
mod huge;
mod memory;
mod process;
mod shared;
mod signals;
mod sockets;
mod terminal;
mod threads;
mod timers;

use anyhow::{Context, Result, ensure};
use pclive_tests::answers;

/// Verifies one state; the error says what differs.
type Check = Box<dyn FnMut() -> Result<()>>;
/// A state's name and what sets it up.
type State = (&'static str, fn() -> Result<Check>);

/// Every state, in the order in which they are set up: first those that threads and children inherit.
fn all() -> Vec<State> {
    let groups: [&[State]; 11] = [
        process::STATES,
        signals::STATES,
        files::STATES,
        descriptors::STATES,
        sockets::STATES,
        memory::STATES,
        shared::STATES,
        timers::STATES,
        threads::STATES,
        children::STATES,
        terminal::STATES,
    ];
    groups.concat().into_iter().chain(cpu::STATES.iter().copied()).collect()
}

fn main() -> Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if names == ["blockers"] {
        let _held = blockers::hold()?;
        return answers::serve(|_| "PONG".into());
    }
    let known: Vec<State> = all().into_iter().chain(special()).collect();
    let chosen = |name: &str| {
        if names.is_empty() { !is_special(name) } else { names.iter().any(|wanted| wanted == name) }
    };
    let unknown = names.iter().find(|name| !known.iter().any(|(known, _)| known == name));
    ensure!(unknown.is_none(), "no state is called {unknown:?}");
    let mut checks = Vec::new();
    for (name, set_up) in known {
        if chosen(name) {
            checks.push((name, set_up().with_context(|| format!("cannot set up {name}"))?));
        }
    }
    answers::serve(|question| match question.split_once(' ').unwrap_or((question, "")) {
        ("PING", _) => "PONG".into(),
        ("LIST", _) => checks.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" "),
        ("CHECK", name) => check(&mut checks, name),
        _ => format!("FAIL unknown question {question}"),
    })
}

/// States that take so long to move that the clocks' checks would fail beside them, or that need what most hosts lack.
fn special() -> impl Iterator<Item = State> {
    sockets::LARGE.iter().chain(huge::STATES).copied()
}

fn is_special(name: &str) -> bool {
    special().any(|(special, _)| special == name)
}

/// Runs all checks, or the one of this name.
fn check(checks: &mut [(&'static str, Check)], wanted: &str) -> String {
    let mut failures = Vec::new();
    let mut passed = 0;
    for (name, check) in checks.iter_mut().filter(|(name, _)| wanted.is_empty() || *name == wanted) {
        match check() {
            Ok(()) => passed += 1,
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    if failures.is_empty() {
        format!("PASS {passed} states")
    } else {
        format!("FAIL {}", failures.join("; "))
    }
}

/// # Errors
/// When `found` is not `expected`.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, found: &T) -> Result<()> {
    ensure!(expected == found, "{what} is {found:?} and was {expected:?}");
    Ok(())
}
