use std::process::ExitCode;

use super::output::{Bar, Consent, Format, report};
use super::place::Place;
use crate::terminal::Failure;

/// Mend what can be mended exactly.
///
/// Restores `metadata` from its copy, takes damaged commits and snapshots out of the way, so that their batches run again from their logged
/// ranges, and cuts the history before a gap. What it takes away is kept in `_perennial/aside` until `gc`. Where nothing exact is possible
/// it says so and leaves that as it is: `rewind` or `restore` go on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial checkpoint repair job.yaml per_minute\n  \
                        perennial checkpoint repair job.yaml per_minute --yes")]
pub struct Repair {
    /// Job file, directory or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    /// The query; not needed where there is one.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    #[command(flatten)]
    consent: Consent,

    #[command(flatten)]
    format: Format,
}

impl Repair {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let place = Place::open(&self.checkpoint).await?;
        let query = place.query(self.query.as_deref()).await?;
        let owned = if self.consent.yes { Some(place.own(&query, self.consent.fence).await?) } else { None };
        let survey = place.survey(&query).await?;
        let plan = survey.repair();
        if let Some(owned) = owned {
            let bar = Bar::count("repairing");
            owned.log.carry_out(&plan, |done| bar.at(done, plan.steps.len() as u64)).await?;
        }
        let advice = if plan.unresolved.is_empty() { Vec::new() } else { vec![survey.advice(&place.absolute())] };
        report(self.format, self.consent, &plan, &advice)
    }
}
