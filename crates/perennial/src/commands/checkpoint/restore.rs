use std::fmt::Write as _;
use std::process::ExitCode;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use perennial_core::checkpoint::{Inspector, Look};
use perennial_core::error::{Error, Result, class};
use serde_json::json;

use super::copy::{Backup, Manifest, QueryManifest, Take};
use super::output::{Bar, Consent, Format, needs_yes};
use super::place::Place;
use super::sinks::{self, Back};
use crate::terminal::Failure;

/// So many epochs are passed over: processes that ran after the backup took some, and sinks refuse a writer with a lesser one.
const EPOCHS_BETWEEN: u64 = 1_000;

/// Bring a checkpoint back from a backup.
///
/// The backup is read and compared with its manifest before anything is written. The query goes on from its last batch; what it means for the sink is
/// said first, as for a rewind.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial checkpoint restore backup.tar.zst --to job.yaml\n  \
                        perennial checkpoint restore backup.tar.zst per_minute --to job.yaml --replace --yes")]
pub struct Restore {
    /// The backup: a directory, a URL or a `.tar.zst` file.
    #[arg(value_name = "BACKUP")]
    backup: String,

    /// The query; all without it.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// Job file, directory or URL of the checkpoint.
    #[arg(long, value_name = "CHECKPOINT")]
    to: String,

    /// Replace a checkpoint that is there.
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    consent: Consent,

    #[command(flatten)]
    format: Format,
}

/// Files that are copied below a query's directory.
struct Into<'a> {
    place: &'a Place,
    inspector: Inspector,
}

impl Take for Into<'_> {
    async fn put(&mut self, name: &str, content: Bytes) -> Result<()> {
        self.place.env.storage.put(&self.inspector.path(name), content.into()).await?;
        Ok(())
    }
}

impl Restore {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let backup = Backup::open(&self.backup)?;
        let mut manifest = backup.verify().await.map_err(|error| error.at(self.backup.clone()))?;
        if let Some(wanted) = &self.query {
            manifest.queries.retain(|query| query.query == *wanted);
        }
        if manifest.queries.is_empty() {
            return Err(Error::new(class::STORAGE_NOT_FOUND, format!("{} has no such query", self.backup)).into());
        }
        let place = Place::open(&self.to).await?;
        let mut text = String::new();
        for query in &manifest.queries {
            let look = place.look(&query.query).await?;
            self.describe(&place, query, &look, &mut text)?;
        }
        let json = json!({ "done": self.consent.yes, "queries": summary(&manifest) });
        if !self.consent.yes {
            return needs_yes(self.format, &text, &json);
        }
        for query in &manifest.queries {
            let owned = place.own(&query.query, self.consent.fence).await?;
            self.bring_back(&backup, &place, query, owned.log.epoch()).await?;
        }
        self.format.print(&text, &json)?;
        Ok(ExitCode::SUCCESS)
    }

    fn describe(&self, place: &Place, query: &QueryManifest, look: &Look, text: &mut String) -> Result<()> {
        let name = &query.query;
        let there = look.last_commit().map(|(batch, _)| batch);
        if !look.files.is_empty() && !self.replace {
            let until = there.map_or_else(String::new, |batch| format!(", up to batch {batch}"));
            return Err(Error::new(
                class::CONFIG_INVALID,
                format!(
                    "{} has a checkpoint of {name} already{until}; restore to another place, or give --replace, which removes it (back it up first)",
                    place.location
                ),
            ));
        }
        let _ =
            writeln!(text, "{name}: {} files, the query goes on after batch {}", query.files.len(), query.last_batch);
        if !look.files.is_empty() {
            let _ = writeln!(text, "  the {} files that are there are removed", look.files.len());
        }
        let last = look.offsets.keys().chain(look.commits.keys()).max().copied();
        if last.is_none_or(|last| last > query.last_batch) {
            let back = Back::new(place, look, query.last_batch, last, false);
            for line in sinks::meaning(place.sink(name), &back) {
                let _ = writeln!(text, "  {line}");
            }
        }
        Ok(())
    }

    async fn bring_back(&self, backup: &Backup, place: &Place, query: &QueryManifest, epoch: u64) -> Result<()> {
        let inspector = place.inspector(&query.query);
        let look = inspector.look().await?;
        // Epochs stay, so that they remain ordered. The identity goes first: what is left of an interrupted restore is refused.
        let (identity, others): (Vec<&String>, Vec<&String>) = look
            .files
            .keys()
            .filter(|name| !name.starts_with("_perennial/epochs/"))
            .partition(|name| name.ends_with("metadata"));
        let bar = Bar::bytes(&format!("restoring {}", query.query));
        for name in identity.into_iter().chain(others) {
            match place.env.storage.delete(&inspector.path(name)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let epoch = epoch.max(query.epoch) + EPOCHS_BETWEEN;
        let mut target = Into { place, inspector };
        let owner = json!({ "epoch": epoch, "since_ms": place.env.now_ms(), "restored_from": self.backup });
        target.put(&format!("_perennial/epochs/{epoch}"), owner.to_string().into()).await?;
        backup.restore(query, &mut target, |done, all| bar.at(done, all)).await
    }
}

fn summary(manifest: &Manifest) -> serde_json::Value {
    manifest
        .queries
        .iter()
        .map(|q| json!({ "query": q.query, "last_batch": q.last_batch, "files": q.files.len() }))
        .collect()
}
