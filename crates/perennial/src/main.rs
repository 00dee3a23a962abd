//! The program `perennial`.

mod commands;
mod logging;
mod signals;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

/// Arrow's buffers and the state of groups are many and short-lived, on all threads: the C library's allocator takes up to half of the
/// time of a query for them (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Streaming analytics that must not stop, lose or double a record.
///
/// A job is a YAML file with Spark SQL in it: sources, queries, sinks. `perennial run` runs it until it is stopped, and goes on where it
/// stopped when it is started again.
#[derive(Debug, Parser)]
#[command(name = "perennial", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

const EXAMPLES: &str = "\
Examples:
  perennial init job.yaml        write a job file to begin with
  perennial check job.yaml       check it: settings, SQL, connections
  perennial run job.yaml         run it

Exit codes: 0 done, 1 the job failed, 2 wrong usage, 78 the job file is wrong.";

fn main() -> ExitCode {
    // `perennial schema | head` ends quietly instead of with a message about a broken pipe: output goes through `terminal::print`.
    Cli::parse().command.execute()
}
