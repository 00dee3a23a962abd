//! A short set of seeds, and whether the simulator would find a bug.

use crate::simulator::{Bug, Simulator};

/// Seeds that failed once: lines of the dead letters that a process wrote over which had stood still, a refusal by one that was taken over while
/// it looked at the logs, an identity of which one copy was torn and the other was lost.
const FAILED_ONCE: &[u64] =
    &[917, 1015, 2332, 2890, 3581, 4465, 4539, 5730, 5822, 5954, 6019, 6271, 6541, 6623, 8447, 8746];

#[test]
fn no_seed_loses_or_doubles_anything() {
    let simulator = Simulator::new().unwrap();
    let (mut deaths, mut takeovers, mut duplicates) = (0, 0, 0);
    for seed in (0..100).chain(FAILED_ONCE.iter().copied()) {
        let outcome = simulator.run(seed, None).unwrap();
        assert!(
            outcome.violations.is_empty(),
            "{} ({}): see `cargo run -p perennial-sim -- --seed {seed}`\n{}",
            seed,
            outcome.about,
            outcome.violations.join("\n")
        );
        deaths += outcome.deaths;
        takeovers += outcome.takeovers;
        duplicates += outcome.duplicates;
    }
    assert!(
        deaths > 50 && takeovers > 5 && duplicates > 5,
        "{deaths} deaths, {takeovers} takeovers, {duplicates} duplicates"
    );
}

#[test]
fn one_seed_gives_one_trace() {
    let (one, other) = (Simulator::new().unwrap(), Simulator::new().unwrap());
    for seed in 0..20 {
        let (first, second) = (one.run(seed, None).unwrap().trace, other.run(seed, None).unwrap().trace);
        for (number, (first, second)) in first.iter().zip(&second).enumerate() {
            assert_eq!(first, second, "seed {seed}, line {number}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    let simulator = Simulator::new().unwrap();
    for bug in [Bug::CommitBeforeSink, Bug::StateVersion, Bug::LedgerOutside, Bug::MissingFence] {
        let found = (0..300).find(|seed| !simulator.run(*seed, Some(bug)).unwrap().violations.is_empty());
        assert!(found.is_some(), "{bug:?} is not found in 300 seeds");
    }
}
