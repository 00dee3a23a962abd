//! `perennial dlq`: looking into dead letters, and running them again.

mod change;
mod view;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Subcommand;
use perennial::{Job, run};
use perennial_core::dead_letter::{Entry, FileDeadLetters, Mark, Outcome};
use perennial_core::error::{Error, Result, class};

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

/// Which entries are meant. All conditions must hold.
#[derive(Debug, Default, clap::Args)]
struct Filter {
    /// Entries by their ids.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Of this query.
    #[arg(long)]
    query: Option<String>,
    /// Of this class of errors.
    #[arg(long)]
    class: Option<String>,
    /// Of this batch.
    #[arg(long)]
    batch: Option<u64>,
    /// From this time on (UTC): `2026-11-21` or `2026-11-21T09:45`.
    #[arg(long)]
    since: Option<String>,
    /// Before this time (UTC).
    #[arg(long)]
    until: Option<String>,
    /// With this text in the message or a sample record.
    #[arg(long)]
    text: Option<String>,
    /// That stand like this: open, replaying, recovered, failed_again or resolved.
    #[arg(long)]
    status: Option<String>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        let Self { ids, query, class, batch, since, until, text, status } = self;
        let words = [query, class, since, until, text, status];
        ids.is_empty() && batch.is_none() && words.iter().all(|word| word.is_none())
    }

    fn takes(&self, found: &Found) -> bool {
        let entry = &found.entry;
        // Timestamps are text in an order that is that of time.
        (self.ids.is_empty() || self.ids.contains(&entry.id))
            && self.query.as_ref().is_none_or(|query| *query == entry.query)
            && self.class.as_ref().is_none_or(|class| class.eq_ignore_ascii_case(&entry.error.class))
            && self.batch.is_none_or(|batch| batch == entry.batch_id)
            && self.since.as_ref().is_none_or(|since| entry.timestamp >= *since)
            && self.until.as_ref().is_none_or(|until| entry.timestamp < *until)
            && self.text.as_ref().is_none_or(|text| {
                entry.error.message.contains(text)
                    || entry.sample_records.iter().any(|record| record.to_string().contains(text))
            })
            && self.status.as_ref().is_none_or(|status| status == found.status())
    }
}

/// An entry and how it stands.
struct Found {
    entry: Entry,
    mark: Option<Mark>,
}

impl Found {
    fn status(&self) -> &'static str {
        self.mark.as_ref().map_or("open", |mark| mark.outcome.name())
    }

    /// Whether something is left to do.
    fn is_open(&self) -> bool {
        self.mark.as_ref().is_none_or(|mark| mark.outcome == Outcome::FailedAgain)
    }
}

/// The dead letters of a job.
struct Letters {
    job: Job,
    letters: FileDeadLetters,
}

impl Letters {
    fn of(job: &str) -> Result<Self, Failure> {
        let job = Job::from_file(job)?;
        let letters = job.open_dead_letters()?;
        Ok(Self { job, letters })
    }

    /// The entries that a filter takes, oldest first.
    async fn find(&self, filter: &Filter) -> Result<Vec<Found>> {
        let mut marks: BTreeMap<String, Mark> = self.letters.marks().await?;
        let entries = self.letters.entries().await?;
        if let Some(missing) = filter.ids.iter().find(|id| !entries.iter().any(|entry| entry.id == **id)) {
            return Err(Error::new(
                class::CONFIG_INVALID,
                format!("there is no entry {missing} in {}: `perennial dlq list` shows all", self.job.dead_letters.path),
            ));
        }
        let found = entries.into_iter().map(|entry| Found { mark: marks.remove(&entry.id), entry });
        Ok(found.filter(|found| filter.takes(found)).collect())
    }
}
