//! `perennial dlq`: looking into dead letters, and running them again.

mod change;
mod view;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Subcommand;
use perennial::dlq::{self, Filter, Found};
use perennial::{Job, run};
use perennial_core::dead_letter::DeadLetters;
use perennial_core::error::Result;

use crate::terminal::Failure;

/// Look into dead letters, mend them, run them again.
///
/// An entry is one batch and class of error; all its records are kept whole beside it. `replay` hands entries to the job, running or not: their
/// records go through the query once more, exactly once, and update its state as any record does.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  perennial dlq stats job.yaml\n  perennial dlq list job.yaml --class MalformedRecord --since 2026-11-01\n  \
                  perennial dlq show job.yaml raw-42-MalformedRecord\n  perennial dlq replay job.yaml --query raw --dry-run\n  \
                  perennial dlq replay job.yaml --class ExpectationFailed --set 'battery = least(battery, 100)'"
)]
pub struct Dlq {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one")]
enum Action {
    Stats(view::Stats),
    List(view::List),
    Show(view::Show),
    Group(view::Group),
    Export(view::Export),
    Replay(change::Replay),
    Resolve(change::Resolve),
    Purge(change::Purge),
}

impl Dlq {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        run::runtime()?.block_on(async {
            match &self.action {
                Action::Stats(command) => command.execute().await,
                Action::List(command) => command.execute().await,
                Action::Show(command) => command.execute().await,
                Action::Group(command) => command.execute().await,
                Action::Export(command) => command.execute().await,
                Action::Replay(command) => command.execute().await,
                Action::Resolve(command) => command.execute().await,
                Action::Purge(command) => command.execute().await,
            }
        })
    }
}

/// The dead letters of a job.
struct Letters {
    job: Job,
    letters: Arc<dyn DeadLetters>,
}

impl Letters {
    fn of(job: &str) -> Result<Self, Failure> {
        let job = Job::from_file(job)?;
        let letters = job.open_dead_letters()?;
        Ok(Self { job, letters })
    }

    /// The entries that a filter takes, oldest first.
    async fn find(&self, filter: &Filter) -> Result<Vec<Found>> {
        dlq::find(self.letters.as_ref(), filter).await
    }
}
