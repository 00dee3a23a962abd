use std::process::ExitCode;

use perennial_core::checkpoint::Look;
use serde_json::{Value, json};

use super::output::{Format, size, table, time, watermark};
use super::place::Place;
use crate::terminal::Failure;

/// List the queries of a checkpoint: last batch, watermark, state, size, and who uses it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  perennial checkpoint ls job.yaml\n  perennial checkpoint ls ./checkpoints/greenhouse --json"
)]
pub struct Ls {
    /// Job file, directory or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    #[command(flatten)]
    format: Format,
}

impl Ls {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let place = Place::open(&self.checkpoint).await?;
        let holder = place.holder()?;
        let mut looks = Vec::new();
        for query in place.queries(None).await? {
            looks.push(place.look(&query).await?);
        }
        let used = match (&holder, place.is_local()) {
            (Some(pid), _) => format!("in use by process {pid}"),
            (None, true) => "not in use".to_owned(),
            (None, false) => "whether a job uses it shows only in when it was written".to_owned(),
        };
        let rows: Vec<Vec<String>> = looks.iter().map(row).collect();
        let header = ["QUERY", "LAST BATCH", "COMMITTED", "WATERMARK", "STATE ROWS", "SIZE", "BATCHES KEPT", "LOGS"];
        let text = format!("{}: {used}\n{}", place.location, table(&header, &rows));
        let queries: Vec<Value> = looks.iter().map(json_of).collect();
        let holder = holder.map(|pid| pid.parse::<u64>().map_or(json!(pid), |pid| json!(pid)));
        self.format.print(&text, &json!({ "location": place.location, "in_use_by": holder, "queries": queries }))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Rows of all operators after the last batch.
fn state_rows(look: &Look) -> Option<u64> {
    let state = look.last_commit()?.1.perennial.as_ref()?.state.as_ref()?;
    Some(state.rows.iter().sum())
}

fn committed_ms(look: &Look) -> Option<i64> {
    let (batch, _) = look.last_commit()?;
    look.files.get(&format!("commits/{batch}")).map(|file| file.modified_ms)
}

fn row(look: &Look) -> Vec<String> {
    let last = look.last_commit();
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    vec![
        look.query.clone(),
        number(last.map(|(batch, _)| batch)),
        committed_ms(look).map_or_else(|| "-".to_owned(), time),
        last.map_or_else(|| "-".to_owned(), |(_, commit)| watermark(commit.next_watermark_ms)),
        number(state_rows(look)),
        size(look.bytes()),
        number(Some(look.commits.len() as u64)),
        status(look),
    ]
}

/// What the logs say at a glance; `verify` reads the rest.
fn status(look: &Look) -> String {
    let damaged = look
        .offsets
        .iter()
        .filter_map(|(batch, entry)| entry.problem().map(|_| format!("offsets/{batch}")))
        .chain(look.commits.iter().filter_map(|(batch, entry)| entry.problem().map(|_| format!("commits/{batch}"))))
        .chain(look.metadata.problem().map(|_| "metadata".to_owned()));
    let damaged: Vec<_> = damaged.collect();
    let begun = look.offsets.keys().next_back().filter(|last| !look.commits.contains_key(last));
    match (damaged.is_empty(), begun) {
        (false, _) => format!("damaged: {}", damaged.join(", ")),
        (true, Some(batch)) => format!("batch {batch} is begun"),
        (true, None) => "sound".to_owned(),
    }
}

fn json_of(look: &Look) -> Value {
    let last = look.last_commit();
    json!({
        "query": look.query,
        "id": look.metadata.good().map(|m| m.id.as_str()),
        "owner": look.metadata.good().and_then(|m| m.owner.as_ref()).map(|(job, query)| json!({ "job": job, "query": query })),
        "last_batch": last.map(|(batch, _)| batch),
        "committed_at_ms": committed_ms(look),
        "watermark_ms": last.map(|(_, commit)| commit.next_watermark_ms),
        "state_rows": state_rows(look),
        "bytes": look.bytes(),
        "batches_kept": look.commits.len(),
        "epoch": look.epoch,
        "logs": status(look),
    })
}
