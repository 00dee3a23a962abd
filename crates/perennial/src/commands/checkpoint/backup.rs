use std::fmt::Write as _;
use std::path::Path as FsPath;
use std::process::ExitCode;

use perennial_connectors::storage::{self, StorageOptions};
use perennial_core::error::{Error, class};
use serde_json::json;

use super::copy::{Archive, Directory, MANIFEST, Manifest, QueryManifest, Take, copy_query, is_archive};
use super::output::{Bar, Format, size};
use super::place::Place;
use crate::terminal::Failure;

/// Copy a checkpoint to a directory, a bucket or an archive.
///
/// Every batch that can be gone back to is in it, with a manifest that has a checksum of each file. A job may run meanwhile: the
/// backup ends at its last commit.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial checkpoint backup job.yaml --to backup.tar.zst\n  \
                        perennial checkpoint backup job.yaml per_minute --to /backups/monday\n  \
                        perennial checkpoint backup job.yaml --to s3://bucket/backups/monday")]
pub struct Backup {
    /// Job file, directory or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    /// The query; all without it.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// A directory or URL, or a file that ends in `.tar.zst`. It must not exist yet.
    #[arg(long, value_name = "PLACE")]
    to: String,

    #[command(flatten)]
    format: Format,
}

impl Backup {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let place = Place::open(&self.checkpoint).await?;
        let taken = || Error::new(class::CONFIG_INVALID, format!("{} is there already and is left as it is", self.to));
        let manifest = if is_archive(&self.to) {
            if FsPath::new(&self.to).exists() {
                return Err(taken().into());
            }
            let mut archive = Archive::create(&self.to)?;
            let manifest = self.fill(&place, &mut archive).await?;
            archive.finish()?;
            manifest
        } else {
            let target = storage::open(&self.to, &StorageOptions::default())?;
            let listed = target.store.list_with_delimiter(None).await.map_err(Error::from)?;
            if !listed.objects.is_empty() || !listed.common_prefixes.is_empty() {
                return Err(taken().into());
            }
            self.fill(&place, &mut Directory(target)).await?
        };
        let mut text = String::new();
        for query in &manifest.queries {
            let bytes: u64 = query.files.iter().map(|file| file.bytes).sum();
            let _ = writeln!(
                text,
                "{}: up to batch {}, {} files, {}",
                query.query,
                query.last_batch,
                query.files.len(),
                size(bytes)
            );
        }
        let queries: Vec<_> = manifest
            .queries
            .iter()
            .map(|q| json!({ "query": q.query, "last_batch": q.last_batch, "files": q.files.len() }))
            .collect();
        let _ = writeln!(text, "written to {}", self.to);
        self.format.print(&text, &json!({ "to": self.to, "queries": queries }))?;
        Ok(ExitCode::SUCCESS)
    }

    async fn fill(&self, place: &Place, target: &mut impl Take) -> Result<Manifest, Failure> {
        let mut manifest = Manifest::new(place.env.now_ms(), &place.location);
        for query in place.queries(self.query.as_deref()).await? {
            let survey = place.survey(&query).await?;
            let Some(last) = survey.last_good() else {
                return Err(Error::new(
                    class::CHECKPOINT_CORRUPT,
                    format!("{query} has no batch that is committed and sound: there is nothing to back up"),
                )
                .into());
            };
            let bar = Bar::bytes(&format!("copying {query}"));
            let inspector = place.inspector(&query);
            let prefix = format!("{query}/");
            let files =
                copy_query(&inspector, &survey.look, last, &prefix, target, |done, all| bar.at(done, all)).await?;
            manifest.queries.push(QueryManifest { query, last_batch: last, epoch: survey.look.epoch, files });
        }
        target.put(MANIFEST, manifest.encode()?).await?;
        Ok(manifest)
    }
}
