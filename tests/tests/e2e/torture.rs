//! The memory torture: every byte, after every migration, for many seeds.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use pclive_tests::Lab;
use pclive_tests::host::Links;
use pclive_tests::huge_pages::HugePages;
use pclive_tests::link::GIGABIT;
use pclive_tests::workload::torture::bundle;
use pclive_tests::workload::verifier::Verifier;

use crate::{migrate, ready};

/// Seeds of a run by each strategy.
const SEEDS: Range<u64> = 1..9;
/// Migrations of each.
const TURNS: usize = 4;

/// These seeds, or those of `LAB_SEEDS=FROM..TO`.
pub(crate) fn seeds(usual: Range<u64>) -> Result<Range<u64>> {
    let Ok(text) = std::env::var("LAB_SEEDS") else { return Ok(usual) };
    let (from, to) = text.split_once("..").context("LAB_SEEDS is FROM..TO")?;
    Ok(from.parse()?..to.parse()?)
}

/// Policies are tried with all strategies in turn.
pub(crate) fn strategy(seed: u64) -> &'static str {
    ["global", "pipelined", "one-shot"][(seed % 3) as usize]
}

/// Moves the torture there and back with every seed. `strategy` has the words for `pclivectl` after `--strategy`;
/// `options` are the torture's.
fn survives(strategy: &[&str], seeds: Range<u64>, options: &[&str]) -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    survives_in(&Lab::new()?, strategy, seeds, options)
}

fn survives_in(lab: &Lab, strategy: &[&str], seeds: Range<u64>, options: &[&str]) -> Result<()> {
    for seed in seeds {
        let container = lab.start(&bundle(&format!("torture-{seed}"), seed, options))?;
        let verifier = Verifier::new(&lab.client, container.v4);
        let words = [&["--strategy"], strategy].concat();
        let told = || format!("seed {seed} by {}", strategy.join(" "));
        for turn in 0..TURNS {
            let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
            verifier.check().with_context(told)?;
            migrate(&container, from, to, &words).with_context(told)?;
            verifier.check().with_context(|| format!("{} after migration {turn}", told()))?;
        }
        let stats = verifier.ask("STATS")?;
        ensure!(stats.contains("failed=false"), "{}: {stats}", told());
        let programs = options.contains(&"--programs").then_some(" programs=0 ");
        for never in [" forks=0 ", " threads=0 ", " opened=0 ", " objects=0 "].into_iter().chain(programs) {
            ensure!(!stats.contains(never), "{}: {stats}", told());
        }
        container.delete(&lab.a)?;
    }
    Ok(())
}

#[test]
fn torture_keeps_every_byte_by_the_global_strategy() -> Result<()> {
    survives(&["global"], seeds(SEEDS)?, &["--pause-us", "50"])
}

#[test]
fn torture_keeps_every_byte_by_the_one_shot_strategy() -> Result<()> {
    survives(&["one-shot"], seeds(SEEDS)?, &["--pause-us", "50"])
}

#[test]
fn torture_keeps_every_byte_by_the_pipelined_strategy() -> Result<()> {
    survives(&["pipelined"], seeds(SEEDS)?, &["--pause-us", "50"])
}

#[test]
fn torture_keeps_every_byte_of_huge_pages() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let _allowed = HugePages::allow(400)?;
    for strategy in ["global", "one-shot", "pipelined"] {
        survives(&[strategy], seeds(500..502)?, &["--pause-us", "50", "--huge"])?;
    }
    Ok(())
}

/// Among the container's processes are some that execute another program amid their threads, in rounds and in stops.
#[test]
fn torture_keeps_every_byte_while_programs_are_executed() -> Result<()> {
    for strategy in ["global", "one-shot", "pipelined"] {
        survives(&[strategy], seeds(700..702)?, &["--pause-us", "50", "--programs"])?;
    }
    Ok(())
}

#[test]
fn torture_keeps_every_byte_when_restorers_live_late() -> Result<()> {
    survives(&["global", "--restore-after", "2"], seeds(200..203)?, &["--pause-us", "50"])?;
    survives(&["pipelined", "--restore-after", "2"], seeds(200..203)?, &["--pause-us", "50"])
}

#[test]
fn torture_without_a_pause_keeps_every_byte() -> Result<()> {
    survives(&["global"], seeds(100..102)?, &[])?;
    survives(&["pipelined"], seeds(100..102)?, &[])
}

/// Migrations that do not converge and are given up leave the original as it was; one that comes after them moves it.
#[test]
fn torture_keeps_every_byte_when_migrations_are_given_up() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::with_speed(Some(GIGABIT), Links::Tls)?;
    for seed in seeds(600..603)? {
        let container = lab.start(&bundle(&format!("torture-{seed}"), seed, &[]))?;
        let verifier = Verifier::new(&lab.client, container.v4);
        for strategy in ["global", "pipelined", "one-shot"] {
            let told = || format!("seed {seed} by {strategy}");
            verifier.check().with_context(told)?;
            let limits = ["--policy", "cancel", "--max-downtime", "1ms", "--max-rounds", "3"];
            let words = [&["--strategy", strategy][..], &limits].concat();
            let refusal = lab.a.migrate_in_vain(&container.name, lab.b.name(), &words).with_context(told)?;
            ensure!(refusal.problem.code == "not-converging", "{}: {refusal:?}", told());
            verifier.check().with_context(|| format!("{}, given up", told()))?;
        }
        migrate(&container, &lab.a, &lab.b, &["--strategy", "global"])?;
        verifier.check().with_context(|| format!("seed {seed} after its migration"))?;
        container.delete(&lab.b)?;
    }
    Ok(())
}

#[test]
fn torture_keeps_every_byte_when_it_is_slowed_down() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::with_speed(Some(GIGABIT), Links::Tls)?;
    for seed in seeds(400..403)? {
        let words = [strategy(seed), "--policy", "throttle", "--max-downtime", "1ms", "--max-rounds", "12"];
        survives_in(&lab, &words, seed..seed + 1, &[])?;
    }
    ensure!(lab.a.agent_log().contains("container slowed down"), "it never was");
    Ok(())
}
