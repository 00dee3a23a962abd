//! The commands that change how entries stand.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;

use chrono::Utc;
use perennial::dlq;
use perennial_core::checkpoint::request_replay;
use perennial_core::dead_letter::{DeadLetters, Mark, Outcome, timestamp_text};
use perennial_core::error::{Error, Result, class};
use perennial_core::replay::{ReplayRequest, ReplayedEntry};
use serde_json::{Value, json};

use super::{Filter, Found, Letters};
use crate::commands::checkpoint::output::{Bar, Consent, Format, needs_yes};
use crate::terminal::Failure;

/// An entry that failed so often is not replayed again without `--force`.
const MOST_REPLAYS: u64 = 3;

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
        let replays = letters.letters.replays().await?;
        let often = |one: &Found| replays.get(&one.entry.id).is_some_and(|count| *count >= MOST_REPLAYS) && !self.force;
        let (tired, found): (Vec<Found>, Vec<Found>) = letters
            .find(&self.filter)
            .await?
            .into_iter()
            .filter(|one| one.is_open() || !self.filter.ids.is_empty())
            .partition(often);

        let bar = Bar::count("reading");
        let mut by_query: BTreeMap<String, ReplayRequest> = BTreeMap::new();
        for (number, one) in found.iter().enumerate() {
            let mut records = Vec::new();
            for record in letters.letters.records(&one.entry).await? {
                let Value::Object(record) = record else {
                    return Err(Error::new(class::CHECKPOINT_CORRUPT, "a record of the dead letters is no object").into());
                };
                records.push(record);
            }
            if !sets.is_empty() {
                records = dlq::mend(&letters.job, &one.entry.query, &sets, records).await?;
            }
            let request = by_query.entry(one.entry.query.clone()).or_default();
            request.entries.push(ReplayedEntry { id: one.entry.id.clone(), records });
            bar.at(number as u64 + 1, found.len() as u64);
        }
        drop(bar);

        let mut text = String::new();
        let mut json = Vec::new();
        for (query, request) in &by_query {
            let records: usize = request.entries.iter().map(|entry| entry.records.len()).sum();
            if self.dry_run {
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
                continue;
            }
            let env = letters.job.checkpoint_env()?;
            // Marked first: a request that is not there yet can be made again, one that is there must not be.
            letters.letters.mark(&marks(request.entries.iter().map(|e| &e.id), Outcome::Replaying, None)).await?;
            let number = request_replay(&env, query, request).await?;
            text += &format!(
                "{query}: {} entries with {records} records are handed to the job (request {number}); `perennial dlq list` tells what becomes of them\n",
                request.entries.len()
            );
            json.push(json!({ "query": query, "request": number, "entries": request.entries.len(), "records": records }));
        }
        for one in &tired {
            text += &format!("{}: left out, it was replayed {MOST_REPLAYS} times already (--force)\n", one.entry.id);
        }
        if by_query.is_empty() {
            text += "no entry is left to replay\n";
        }
        let left_out: Vec<&str> = tired.iter().map(|one| one.entry.id.as_str()).collect();
        self.format.print(&text, &json!({ "dry_run": self.dry_run, "queries": json, "left_out": left_out }))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn marks<'a>(entries: impl Iterator<Item = &'a String>, outcome: Outcome, note: Option<&String>) -> Vec<Mark> {
    let timestamp = timestamp_text(Utc::now().timestamp_micros());
    let mark = |entry: &String| Mark {
        entry: entry.clone(),
        outcome,
        timestamp: timestamp.clone(),
        failed: 0,
        note: note.cloned(),
    };
    entries.map(mark).collect()
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
