use std::fmt::Write as _;
use std::process::ExitCode;

use perennial_core::checkpoint::{Recovery, Survey};
use serde_json::{Value, json};

use super::output::Format;
use super::place::Place;
use crate::terminal::Failure;

/// Read every file of a checkpoint and compare it with its checksum.
///
/// Says what is damaged, what follows from it, and what a start of the query would do. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  perennial checkpoint verify job.yaml\n  perennial checkpoint verify job.yaml per_minute --json\n\n\
                        Exit codes: 0 all is sound, 1 something is damaged."
)]
pub struct Verify {
    /// Job file, directory or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    /// The query; all without it.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    #[command(flatten)]
    format: Format,
}

impl Verify {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let place = Place::open(&self.checkpoint).await?;
        let (mut text, mut queries, mut sound) = (String::new(), Vec::new(), true);
        for query in place.queries(self.query.as_deref()).await? {
            let survey = place.survey(&query).await?;
            sound &= survey.findings().is_empty() && survey.recovery().is_ok() && survey.newer().is_none();
            describe(&survey, &place.absolute(), &mut text);
            queries.push(json_of(&survey));
        }
        self.format.print(&text, &json!({ "location": place.location, "sound": sound, "queries": queries }))?;
        Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What a start of the query does.
fn start(survey: &Survey) -> String {
    if let Some(newer) = survey.newer() {
        return format!("a start refuses: {newer}");
    }
    let found = survey.found();
    match survey.recovery() {
        Ok(Recovery::Fresh) => "a start begins with batch 0".to_owned(),
        Ok(Recovery::Continue { last }) => format!("a start goes on after batch {last}"),
        Ok(recovery @ Recovery::RunAgain { from, last }) => {
            let batches = if from == last { format!("batch {from}") } else { format!("batches {from} to {last}") };
            let why = match found.repeats_commits(recovery) {
                true => ", if the query gives exactly-once (else it refuses)",
                false => ", which was begun and is not committed",
            };
            format!("a start runs {batches} again{why}")
        }
        Err(error) => format!("a start refuses: {}", error.message()),
    }
}

fn describe(survey: &Survey, location: &str, text: &mut String) {
    let look = &survey.look;
    let findings = survey.findings();
    let verdict = if findings.is_empty() && survey.recovery().is_ok() { "sound" } else { "damaged" };
    let good = survey.last_good().map_or_else(|| "none".to_owned(), |batch| format!("batch {batch}"));
    let _ = writeln!(
        text,
        "{}: {verdict}\n  {} files, {} batches, {} files of state; the newest good batch: {good}",
        look.query,
        look.files.len(),
        survey.batches().len(),
        survey.state.len()
    );
    for finding in &findings {
        let _ = writeln!(text, "  {}: {}\n    {}", finding.file, finding.what, finding.effect);
    }
    let _ = writeln!(text, "  {}", start(survey));
    if verdict == "damaged" {
        let _ = writeln!(text, "  {}", survey.advice(location));
    }
}

fn json_of(survey: &Survey) -> Value {
    let findings: Vec<Value> =
        survey.findings().iter().map(|f| json!({ "file": f.file, "what": f.what, "effect": f.effect })).collect();
    json!({
        "query": survey.look.query,
        "files": survey.look.files.len(),
        "batches": survey.batches().len(),
        "last_good_batch": survey.last_good(),
        "findings": findings,
        "start": start(survey),
    })
}
