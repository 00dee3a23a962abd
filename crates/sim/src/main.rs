//! Runs seeds of the simulator: `make sim SEEDS=10000`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Instant;

use clap::Parser;
use perennial_core::Result;
use perennial_core::error::ResultExt;
use perennial_sim::simulator::{Bug, Outcome, Simulator};

/// Runs whole jobs in a world that fails as a seed says, and checks what arrived.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,

    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,

    /// Run this seed alone and print what happens.
    #[arg(long)]
    seed: Option<u64>,

    /// A bug to plant.
    #[arg(long, value_enum)]
    bug: Option<Bug>,
}

fn print_failure(outcome: &Outcome) {
    println!("seed {} ({}) fails:", outcome.seed, outcome.about);
    outcome.violations.iter().for_each(|violation| println!("  {violation}"));
    println!("  see it again: cargo run -p perennial-sim -- --seed {}", outcome.seed);
}

fn run_all(arguments: &Arguments) -> Result<u64> {
    let started = Instant::now();
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (deaths, takeovers) = (AtomicU64::new(0), AtomicU64::new(0));
    let (duplicates, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || -> Result<()> {
        let simulator = Simulator::new()?;
        loop {
            let seed = next.fetch_add(1, SeqCst);
            if seed >= arguments.seeds {
                return Ok(());
            }
            let seed = arguments.from + seed;
            let outcome = simulator.run(seed, arguments.bug).at(|| format!("seed {seed}"))?;
            deaths.fetch_add(outcome.deaths, SeqCst);
            takeovers.fetch_add(outcome.takeovers, SeqCst);
            duplicates.fetch_add(outcome.duplicates, SeqCst);
            refused.fetch_add(u64::from(outcome.refused.is_some()), SeqCst);
            if !outcome.violations.is_empty() {
                failed.fetch_add(1, SeqCst);
                print_failure(&outcome);
            }
            let done = done.fetch_add(1, SeqCst) + 1;
            if done.is_multiple_of((arguments.seeds / 20).max(100)) || done == arguments.seeds {
                println!("{done} seeds, {} failed, {:.1} s", failed.load(SeqCst), started.elapsed().as_secs_f64());
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(perennial_core::Error::bug("a simulation panicked")))
        })
    })?;
    println!(
        "{} deaths, {} takeovers, {} batches that the sink had already, {} refusals after damage",
        deaths.load(SeqCst),
        takeovers.load(SeqCst),
        duplicates.load(SeqCst),
        refused.load(SeqCst)
    );
    Ok(failed.load(SeqCst))
}

fn run_one(seed: u64, bug: Option<Bug>) -> Result<u64> {
    let outcome = Simulator::new()?.run(seed, bug)?;
    outcome.trace.iter().for_each(|line| println!("{line}"));
    println!("seed {seed}: {}", outcome.about);
    if !outcome.violations.is_empty() {
        print_failure(&outcome);
    }
    Ok(outcome.violations.len() as u64)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let failed = match arguments.seed {
        Some(seed) => run_one(seed, arguments.bug),
        None => run_all(&arguments),
    };
    match failed {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
