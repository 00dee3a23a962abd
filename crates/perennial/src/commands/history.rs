use std::path::PathBuf;
use std::process::ExitCode;

use perennial::history::{History, Run};
use perennial::{Job, run};
use serde_json::json;

use crate::commands::checkpoint::output::{Format, table};
use crate::terminal::Failure;

/// List the runs of a job: when it ran, why it ended, and what it did.
///
/// They are in the job's checkpoint; the last 100 are kept. A run that died has no end, and its counts are those of at most a minute before.
#[derive(Debug, clap::Args)]
#[command(name = "history", after_help = "Examples:\n  perennial history job.yaml\n  perennial history job.yaml --json")]
pub struct Runs {
    /// The job file.
    #[arg(value_name = "JOB")]
    job: PathBuf,
    #[command(flatten)]
    format: Format,
}

impl Runs {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        let job = Job::from_file(&self.job)?;
        let runs = run::runtime()?.block_on(History::new(job.checkpoint_env()?).runs())?;
        let row = |(number, run): (usize, &Run)| {
            vec![
                run.run_id.chars().take(8).collect(),
                run.start.chars().take(19).collect(),
                run.end.as_ref().unwrap_or(&run.last_seen).chars().take(19).collect(),
                run.outcome(number + 1 == runs.len()).to_owned(),
                format!("{} ({})", run.job_version, run.version),
                run.batches.to_string(),
                run.records.to_string(),
                run.errors.to_string(),
            ]
        };
        let rows: Vec<Vec<String>> = runs.iter().enumerate().map(row).collect();
        let header = ["run", "start", "end or last seen", "why it ended", "version", "batches", "records", "errors"];
        self.format.print(&table(&header, &rows), &json!({ "runs": runs }))?;
        Ok(ExitCode::SUCCESS)
    }
}
