use std::process::ExitCode;

use super::output::{Bar, Consent, Format, report};
use super::place::Place;
use super::sinks::{self, Back};
use crate::terminal::Failure;

/// Go back to a batch.
///
/// The query goes on after it: what was logged later is set aside (in `_perennial/aside`, until `gc`). Says first what that means for the sink, which
/// keeps the rows of those batches. With `--keep-ranges` the same batches run again over the same ranges, so that a sink that knows its batches
/// has each row once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial checkpoint rewind job.yaml per_minute --to 41\n  \
                        perennial checkpoint rewind job.yaml per_minute --to 41 --keep-ranges --yes")]
pub struct Rewind {
    /// Job file, directory or URL. With the job file it is said what the change means for the very sink.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    /// The query; not needed where there is one.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// The last batch that stays.
    #[arg(long, value_name = "BATCH")]
    to: u64,

    /// Run the batches after it again over the ranges that they had.
    #[arg(long)]
    keep_ranges: bool,

    #[command(flatten)]
    consent: Consent,

    #[command(flatten)]
    format: Format,
}

impl Rewind {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let place = Place::open(&self.checkpoint).await?;
        let query = place.query(self.query.as_deref()).await?;
        let owned = if self.consent.yes { Some(place.own(&query, self.consent.fence).await?) } else { None };
        let survey = place.survey(&query).await?;
        let plan = survey.rewind(self.to, self.keep_ranges)?;
        let last = survey.look.offsets.keys().chain(survey.look.commits.keys()).max().copied();
        let meaning = match last.filter(|last| *last > self.to) {
            Some(last) => {
                let back = Back::new(&place, &survey.look, self.to, Some(last), self.keep_ranges);
                sinks::meaning(place.sink(&query), &back)
            }
            None => Vec::new(),
        };
        if let Some(owned) = owned {
            let bar = Bar::count("going back");
            owned.log.carry_out(&plan, |done| bar.at(done, plan.steps.len() as u64)).await?;
        }
        report(self.format, self.consent, &plan, &meaning)
    }
}
