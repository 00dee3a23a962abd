use std::process::ExitCode;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use perennial_core::checkpoint::{Inspector, Metadata};
use perennial_core::error::{Error, Result, class};
use serde_json::json;

use super::copy::{Take, copy_query};
use super::output::{Bar, Format};
use super::place::Place;
use crate::terminal::Failure;

/// Copy a query's checkpoint to another place, under an identity of its own.
///
/// The copy goes on from the same batch, beside the original, which may run meanwhile. To its sinks it is another query: give it targets of its
/// own.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  perennial checkpoint fork job.yaml per_minute --to ./checkpoints/trial --job trial\n  \
                        perennial checkpoint fork job.yaml per_minute --to ./checkpoints/greenhouse --as per_minute_2 --batch 41"
)]
pub struct Fork {
    /// Job file, directory or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    /// The query; not needed where there is one.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// Directory or URL of the new checkpoint (or a job file, whose `checkpoint` it is).
    #[arg(long, value_name = "CHECKPOINT")]
    to: String,

    /// Name of the query there. By default the same.
    #[arg(long = "as", value_name = "QUERY")]
    name: Option<String>,

    /// Name of the job that it will belong to. By default that of the job file that `--to` names, or the same.
    #[arg(long, value_name = "JOB")]
    job: Option<String>,

    /// The batch to go on from. By default the last one.
    #[arg(long, value_name = "BATCH")]
    batch: Option<u64>,

    #[command(flatten)]
    format: Format,
}

/// The files of the copy, but for the identity.
struct Copy<'a> {
    place: &'a Place,
    inspector: Inspector,
}

impl Take for Copy<'_> {
    async fn put(&mut self, name: &str, content: Bytes) -> Result<()> {
        if !name.ends_with("metadata") {
            self.place.env.storage.put(&self.inspector.path(name), content.into()).await?;
        }
        Ok(())
    }
}

impl Fork {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let from = Place::open(&self.checkpoint).await?;
        let query = from.query(self.query.as_deref()).await?;
        let to = Place::open(&self.to).await?;
        let name = self.name.clone().unwrap_or_else(|| query.clone());
        let inspector = to.inspector(&name);
        if !inspector.look().await?.files.is_empty() {
            return Err(Error::new(
                class::CONFIG_INVALID,
                format!("{} has a checkpoint of {name} already: name another one with --as", to.location),
            )
            .into());
        }
        let survey = from.survey(&query).await?;
        let good = survey.last_good().filter(|last| self.batch.is_none_or(|batch| batch <= *last));
        let batch = match (self.batch, good) {
            (None, Some(last)) => last,
            (Some(batch), Some(_)) if survey.batch(batch).is_good() => batch,
            _ => {
                return Err(Error::new(
                    class::CONFIG_INVALID,
                    format!("{query} cannot be continued from that batch: look with `perennial checkpoint verify`"),
                )
                .into());
            }
        };
        let old = survey.look.metadata.good().or(survey.look.metadata_copy.good());
        let same_job = old.and_then(|metadata| metadata.owner.as_ref()).map(|(job, _)| job.clone());
        let job = self.job.clone().or_else(|| to.job_name().map(str::to_owned)).or(same_job);
        let metadata = Metadata { id: to.env.uuid(), owner: job.map(|job| (job, name.clone())) };

        let bar = Bar::bytes(&format!("copying {query}"));
        let mut target = Copy { place: &to, inspector };
        copy_query(&from.inspector(&query), &survey.look, batch, "", &mut target, |done, all| bar.at(done, all))
            .await?;
        drop(bar);
        // Its own identity, last: without it the copy is not one.
        to.env.storage.put(&target.inspector.path("metadata"), metadata.encode().into()).await.map_err(Error::from)?;
        let owner = metadata
            .owner
            .as_ref()
            .map_or_else(|| "any job".to_owned(), |(job, query)| format!("job {job}, query {query}"));
        let text = format!(
            "{query}, up to batch {batch}, was copied to {}/{name}, for {owner}, with the identity {}\nto its sinks it is another query: it writes \
             what comes after batch {batch} again, so give it targets of its own\n",
            to.location, metadata.id
        );
        let json = json!({ "query": query, "batch": batch, "to": to.location, "as": name, "id": metadata.id });
        self.format.print(&text, &json)?;
        Ok(ExitCode::SUCCESS)
    }
}
