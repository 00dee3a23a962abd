//! The conformance runner: queries against what Spark recorded for them.
//!
//! `conformance DIR…` runs every case file below the directories through the same planner, operators, state store and batch loop as a
//! real job, and prints a line for each case that gives something else than Spark gave. `cases/` and `more/` have the cases of this
//! repository; its README says what a case is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use futures::{StreamExt, stream};

mod case;
mod compare;
mod job;
mod outside;
mod run;
#[cfg(test)]
mod spark_checkpoints;
mod values;

use case::Case;
use run::{Options, Passed, Results, StateBackend};

/// Debug builds of the planner go deep.
const STACK: usize = 16 << 20;

/// Runs recorded cases and prints each first difference.
#[derive(Debug, Parser)]
struct Args {
    /// Directories with case files, at any depth, or case files.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Stop the query and restore it from its checkpoint before every batch.
    #[arg(long)]
    restart_every_batch: bool,
    /// Where state is kept.
    #[arg(long, value_enum, default_value_t)]
    state_backend: StateBackend,
    /// Compare also what an implementation may choose: counts of single operators, names of error conditions.
    #[arg(long)]
    details: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options {
        restart_every_batch: args.restart_every_batch,
        state_backend: args.state_backend,
        details: args.details,
    };
    let results = files(&args.paths).and_then(|files| run_all(files, options));
    let results = match results {
        Ok(results) if results.is_empty() => Err("there are no case files".to_owned()),
        results => results,
    };
    match results {
        Ok(results) => report(&results),
        Err(error) => {
            eprintln!("conformance: {error}");
            ExitCode::from(2)
        }
    }
}

fn report(results: &Results) -> ExitCode {
    let mut failed = 0;
    for (name, result) in results {
        match result {
            Ok(Passed::AsAsked) => {}
            Ok(Passed::Forgetful) => eprintln!("{name}: records that Spark forgets watermarks at a restart"),
            Err(difference) => {
                failed += 1;
                println!("{name}: {difference}");
            }
        }
    }
    println!("conformance: {} passed, {failed} failed", results.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The case files below the paths.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut rest = paths.to_vec();
    while let Some(path) = rest.pop() {
        let fail = |error: std::io::Error| format!("{}: {error}", path.display());
        if std::fs::metadata(&path).map_err(fail)?.is_dir() {
            for entry in std::fs::read_dir(&path).map_err(fail)? {
                let entry = entry.map_err(fail)?.path();
                if entry.is_dir() || entry.extension().is_some_and(|extension| extension == "json") {
                    rest.push(entry);
                }
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Runs the cases on all cores.
fn run_all(files: Vec<PathBuf>, options: Options) -> Result<Results, String> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().thread_stack_size(STACK).build().map_err(|error| error.to_string())?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cases = files.into_iter().map(|path| {
        runtime.spawn(async move {
            let result = run_file(&path, options).await;
            (name(&path), result)
        })
    });
    runtime.block_on(async {
        let mut results = BTreeMap::new();
        let mut running = stream::iter(cases).buffer_unordered(cores);
        while let Some(done) = running.next().await {
            let (name, result) = done.map_err(|error| error.to_string())?;
            results.insert(name, result);
        }
        Ok(results)
    })
}

async fn run_file(path: &Path, options: Options) -> Result<Passed, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("the file cannot be read: {error}"))?;
    run::run(&Case::parse(&text)?, options).await
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn run_repository(options: Options) -> Results {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let cases = files(&[here.join("cases"), here.join("more")]).unwrap();
        let results = run_all(cases, Options { details: true, ..options }).unwrap();
        let pending: Vec<&str> = listed(include_str!("../pending.txt"));
        let failed: Vec<String> = results
            .iter()
            .filter(|(name, _)| !pending.contains(&name.as_str()))
            .filter_map(|(name, result)| Some(format!("{name}: {}", result.as_ref().err()?)))
            .collect();
        assert!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), results.len(), failed.join("\n"));
        results
    }

    /// The names in a list of cases.
    fn listed(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    }

    #[test]
    fn the_cases_give_what_spark_gave() {
        assert!(!run_repository(Options::default()).is_empty());
    }

    #[test]
    fn the_cases_give_the_same_with_state_on_disk() {
        run_repository(Options { state_backend: StateBackend::Disk, ..Options::default() });
    }

    #[test]
    fn the_cases_give_the_same_with_restarts() {
        let results = run_repository(Options { restart_every_batch: true, ..Options::default() });
        let forgetful: BTreeSet<&str> = results
            .iter()
            .filter(|(_, result)| matches!(result, Ok(Passed::Forgetful)))
            .map(|(name, _)| name.as_str())
            .collect();
        let expected = listed(include_str!("../spark-forgets.txt")).into_iter().collect();
        assert_eq!(forgetful, expected, "those of spark-forgets.txt, and no others");
    }
}
