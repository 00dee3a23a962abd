use std::process::ExitCode;

use super::output::{Bar, Consent, Format, report};
use super::place::Place;
use crate::terminal::Failure;

/// Remove files that no batch needs.
///
/// Those are state that a crash left behind, what repairs and rewinds set aside, and, with `--keep`, all but the last batches. A running job tidies up
/// by itself (`batches_to_retain`).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial checkpoint gc job.yaml per_minute --yes\n  \
                        perennial checkpoint gc job.yaml per_minute --keep 10 --yes")]
pub struct Gc {
    /// Job file, directory or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    /// The query; not needed where there is one.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// Keep the last so many batches, at least 2; all without it.
    #[arg(long, value_name = "BATCHES")]
    keep: Option<u64>,

    #[command(flatten)]
    consent: Consent,

    #[command(flatten)]
    format: Format,
}

impl Gc {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let place = Place::open(&self.checkpoint).await?;
        let query = place.query(self.query.as_deref()).await?;
        // The plan is made from what is there when nobody else writes.
        let owned = if self.consent.yes { Some(place.own(&query, self.consent.fence).await?) } else { None };
        let plan = place.survey(&query).await?.gc(self.keep)?;
        if let Some(owned) = owned {
            let bar = Bar::count("removing");
            owned.log.carry_out(&plan, |done| bar.at(done, plan.steps.len() as u64)).await?;
        }
        report(self.format, self.consent, &plan, &[])
    }
}
