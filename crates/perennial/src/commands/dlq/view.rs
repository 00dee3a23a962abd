//! The commands that only look.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use perennial_core::error::{Error, Result, class};
use serde_json::{Value, json};

use super::{Filter, Found, Letters};
use crate::commands::checkpoint::output::{Format, table};
use crate::terminal::{Failure, print};

/// Count the entries by class, query and status.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial dlq stats job.yaml --json")]
pub struct Stats {
    /// The job file.
    job: String,
    #[command(flatten)]
    format: Format,
}

impl Stats {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let letters = Letters::of(&self.job)?;
        let found = letters.find(&Filter::default()).await?;
        let mut groups: BTreeMap<(&str, &str, &str), (u64, u64)> = BTreeMap::new();
        for one in &found {
            let group = groups.entry((&one.entry.query, &one.entry.error.class, one.status())).or_default();
            *group = (group.0 + 1, group.1 + one.entry.records);
        }
        let rows: Vec<Vec<String>> = groups
            .iter()
            .map(|((query, class, status), (entries, records))| {
                vec![(*query).into(), (*class).into(), (*status).into(), entries.to_string(), records.to_string()]
            })
            .collect();
        let records: u64 = found.iter().map(|one| one.entry.records).sum();
        let stats = letters.letters.stats().await?;
        let text = format!(
            "{}: {} entries, {records} records\n{}",
            stats.dlq_directory,
            found.len(),
            table(&["QUERY", "CLASS", "STATUS", "ENTRIES", "RECORDS"], &rows)
        );
        let groups: Vec<Value> = groups
            .iter()
            .map(|((query, class, status), (entries, records))| {
                json!({ "query": query, "class": class, "status": status, "entries": entries, "records": records })
            })
            .collect();
        self.format.print(&text, &json!({ "dlq": stats, "records": records, "groups": groups }))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn json_of(found: &Found) -> Value {
    let mut json = json!(found.entry);
    json["status"] = found.status().into();
    if let Some(mark) = &found.mark {
        json["status_since"] = mark.timestamp.clone().into();
        json["note"] = json!(mark.note);
    }
    json
}

/// The first line of a message, as far as it fits.
fn short(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    if line.chars().count() <= 80 { line.to_owned() } else { line.chars().take(79).chain(['…']).collect() }
}

/// List entries.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial dlq list job.yaml --class ConstraintViolation --status open")]
pub struct List {
    /// The job file.
    job: String,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    format: Format,
}

impl List {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let found = Letters::of(&self.job)?.find(&self.filter).await?;
        let rows: Vec<Vec<String>> = found
            .iter()
            .map(|one| {
                let entry = &one.entry;
                vec![
                    entry.id.clone(),
                    entry.timestamp.clone(),
                    entry.records.to_string(),
                    one.status().to_owned(),
                    short(&entry.error.message),
                ]
            })
            .collect();
        let text = table(&["ID", "TIME", "RECORDS", "STATUS", "MESSAGE"], &rows);
        self.format.print(&text, &found.iter().map(json_of).collect::<Value>())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Show one entry with its records, whole.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial dlq show job.yaml raw-42-MalformedRecord --limit 5")]
pub struct Show {
    /// The job file.
    job: String,
    /// The entry.
    id: String,
    /// At most so many records.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

impl Show {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let letters = Letters::of(&self.job)?;
        let filter = Filter { ids: vec![self.id.clone()], ..Filter::default() };
        let found = letters.find(&filter).await?;
        let one = found.first().ok_or_else(|| Error::bug("an entry that was found is gone"))?;
        let mut records = letters.letters.records(&one.entry).await?;
        let all = records.len();
        records.truncate(self.limit);
        let entry = &one.entry;
        let mut text = format!(
            "{}\n  class     {}\n  message   {}\n  to do     {}\n  query     {}, batch {}, {}\n  status    {}\n  records   {all}\n",
            entry.id,
            entry.error.class,
            entry.error.message,
            entry.error.recommendation,
            entry.query,
            entry.batch_id,
            entry.timestamp,
            one.status(),
        );
        for record in &records {
            text.push_str(&format!("{}\n", Value::from(record.clone())));
        }
        if all > records.len() {
            text.push_str(&format!("… {} more (--limit)\n", all - records.len()));
        }
        let mut json = json_of(one);
        json["all_records"] = records.into();
        self.format.print(&text, &json)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A message without what differs from record to record: numbers and quoted values.
fn fingerprint(message: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    for c in message.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '\'' | '"' | '`') => {
                out.push('?');
                quote = Some(c);
            }
            None if c.is_ascii_digit() => {
                if !out.ends_with('#') {
                    out.push('#');
                }
            }
            None => out.push(c),
        }
    }
    out
}

/// Group entries by class and by what their messages have in common.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial dlq group job.yaml --status open")]
pub struct Group {
    /// The job file.
    job: String,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    format: Format,
}

impl Group {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let found = Letters::of(&self.job)?.find(&self.filter).await?;
        let mut groups: BTreeMap<(&str, String), Vec<&Found>> = BTreeMap::new();
        for one in &found {
            let print = fingerprint(&one.entry.error.message);
            groups.entry((&one.entry.error.class, print)).or_default().push(one);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        let records = |group: &[&Found]| group.iter().map(|one| one.entry.records).sum::<u64>();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(records(group)));
        let rows: Vec<Vec<String>> = groups
            .iter()
            .map(|((class, print), group)| {
                vec![records(group).to_string(), group.len().to_string(), (*class).to_owned(), short(print)]
            })
            .collect();
        let json: Value = groups
            .iter()
            .map(|((class, print), group)| {
                let ids: Vec<&str> = group.iter().map(|one| one.entry.id.as_str()).collect();
                json!({ "class": class, "fingerprint": print, "records": records(group), "entries": ids })
            })
            .collect();
        self.format.print(&table(&["RECORDS", "ENTRIES", "CLASS", "MESSAGE"], &rows), &json)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Write the records of entries, whole, as JSON lines.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial dlq export job.yaml --class MalformedRecord --to malformed.jsonl")]
pub struct Export {
    /// The job file.
    job: String,
    #[command(flatten)]
    filter: Filter,
    /// The file to write; by default they go to standard output.
    #[arg(long)]
    to: Option<PathBuf>,
}

impl Export {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let letters = Letters::of(&self.job)?;
        let mut lines = Vec::new();
        let mut count = 0;
        for one in letters.find(&self.filter).await? {
            for record in letters.letters.records(&one.entry).await? {
                writeln!(lines, "{}", Value::from(record)).map_err(|error| Error::bug(error.to_string()))?;
                count += 1;
            }
        }
        match &self.to {
            None => print(&String::from_utf8_lossy(&lines))?,
            Some(path) => {
                let failed = |error: std::io::Error| {
                    Error::new(class::STORAGE_UNAVAILABLE, format!("{} cannot be written: {error}", path.display()))
                };
                std::fs::write(path, lines).map_err(failed)?;
                print(&format!("{count} records written to {}\n", path.display()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_differ_in_values_are_one_group() {
        let print = fingerprint("row 17 of \"t-1\" breaks `battery` at 2026-01-01");
        assert_eq!(print, "row # of ? breaks ? at #-#-#");
        assert_eq!(print, fingerprint("row 4711 of \"other\" breaks `ph` at 2025-12-31"));
    }
}
