//! The commands that change how entries stand.

use std::collections::HashSet;
use std::process::ExitCode;

use perennial::dlq::{self, Handed, MOST_REPLAYS, marks};
use perennial_core::dead_letter::Outcome;
use perennial_core::error::{Error, Result, class};
use serde_json::{Value, json};

use super::{Filter, Found, Letters};
use crate::commands::checkpoint::output::{Bar, Consent, Format, needs_yes};
use crate::terminal::Failure;

/// Run entries again, through the job as it is now.
///
/// The request waits in the checkpoint; a running job takes it within a second or so, another one at its next start. Entries that were recovered
/// or resolved are left out, unless they are named by their ids.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  perennial dlq replay job.yaml --query raw --dry-run\n  \
                  perennial dlq replay job.yaml raw-42-ExpectationFailed --set 'battery = least(battery, 100)'"
)]
pub struct Replay {
    /// The job file.
    job: String,
    #[command(flatten)]
    filter: Filter,
    /// Mend the records first: a column of the source, and a Spark SQL expression over its columns.
    #[arg(long, value_name = "COLUMN = EXPRESSION")]
    set: Vec<String>,
    /// Only say how many records would pass, and why the others would not. Sinks are not asked.
    #[arg(long)]
    dry_run: bool,
    /// Also entries that failed again three times.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

impl Replay {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let letters = Letters::of(&self.job)?;
        let sets = self.set.iter().map(|set| dlq::Set::parse(set)).collect::<Result<Vec<_>>>()?;
        let (found, tired) = dlq::to_replay(letters.letters.as_ref(), &self.filter, self.force).await?;

        let bar = Bar::count("reading");
        let by_query =
            dlq::requests(&letters.job, letters.letters.as_ref(), &found, &sets, |done, of| bar.at(done, of)).await?;
        drop(bar);

        let mut text = String::new();
        let mut json = Vec::new();
        if self.dry_run {
            for (query, request) in &by_query {
                let records: usize = request.entries.iter().map(|entry| entry.records.len()).sum();
                let rehearsal = dlq::rehearse(&letters.job, query, request).await?;
                text += &format!("{query}: {} of {records} records would pass\n", rehearsal.passed);
                for ((class, message), count) in &rehearsal.failed {
                    text += &format!("  {count} would not: {class}: {message}\n");
                }
                let failed: Vec<Value> = rehearsal
                    .failed
                    .iter()
                    .map(|((class, message), count)| json!({ "class": class, "message": message, "records": count }))
                    .collect();
                json.push(json!({ "query": query, "records": records, "passed": rehearsal.passed, "failed": failed }));
            }
        } else {
            for Handed { query, request, entries, records } in
                dlq::hand_over(&letters.job, letters.letters.as_ref(), &by_query).await?
            {
                text += &format!(
                    "{query}: {entries} entries with {records} records are handed to the job (request {request}); `perennial dlq list` tells what becomes of them\n"
                );
                json.push(json!({ "query": query, "request": request, "entries": entries, "records": records }));
            }
        }
        for one in &tired {
            text += &format!("{}: left out, it was replayed {MOST_REPLAYS} times already (--force)\n", one.entry.id);
        }
        let requested = |id: &String| by_query.values().flat_map(|request| &request.entries).any(|entry| entry.id == *id);
        let of_results: Vec<&str> =
            found.iter().map(|one| &one.entry.id).filter(|id| !requested(id)).map(String::as_str).collect();
        for id in &of_results {
            text += &format!(
                "{id}: left out, these are rows of the result that the sink refused, and the records that they came from are in the state: \
                 write them to the target by hand (`perennial dlq export`), then `perennial dlq resolve`\n"
            );
        }
        if by_query.is_empty() {
            text += "no entry is left to replay\n";
        }
        let left_out: Vec<&str> = tired.iter().map(|one| one.entry.id.as_str()).chain(of_results).collect();
        self.format.print(&text, &json!({ "dry_run": self.dry_run, "queries": json, "left_out": left_out }))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Note that nothing is left to do about entries.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial dlq resolve job.yaml raw-42-MalformedRecord --note 'test data'")]
pub struct Resolve {
    /// The job file.
    job: String,
    #[command(flatten)]
    filter: Filter,
    /// Why.
    #[arg(long)]
    note: Option<String>,
    #[command(flatten)]
    format: Format,
}

impl Resolve {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let letters = Letters::of(&self.job)?;
        if self.filter.is_empty() {
            return Err(Error::new(class::CONFIG_INVALID, "say which entries: ids, or a filter such as --query").into());
        }
        let found = letters.find(&self.filter).await?;
        let ids = found.iter().map(|one| &one.entry.id);
        letters.letters.mark(&marks(ids, Outcome::Resolved, self.note.as_ref())).await?;
        self.format.print(&format!("{} entries resolved\n", found.len()), &json!({ "resolved": found.len() }))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Remove entries with their records. By default only those that were recovered or resolved.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial dlq purge job.yaml --until 2026-11-01 --yes")]
pub struct Purge {
    /// The job file.
    job: String,
    #[command(flatten)]
    filter: Filter,
    /// Also entries about which something is left to do.
    #[arg(long)]
    unresolved: bool,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    format: Format,
}

impl Purge {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let letters = Letters::of(&self.job)?;
        let done = |one: &Found| {
            one.mark.as_ref().is_some_and(|mark| matches!(mark.outcome, Outcome::Recovered | Outcome::Resolved))
        };
        let found = letters.find(&self.filter).await?;
        let gone: HashSet<String> =
            found.iter().filter(|one| self.unresolved || done(one)).map(|one| one.entry.id.clone()).collect();
        if !self.consent.yes {
            let text = format!("{} entries would be removed with their records\n", gone.len());
            return needs_yes(self.format, &text, &json!({ "would_remove": gone.len() }));
        }
        let removed = letters.letters.purge(&gone).await?;
        self.format.print(&format!("{removed} entries removed\n"), &json!({ "removed": removed }))?;
        Ok(ExitCode::SUCCESS)
    }
}
