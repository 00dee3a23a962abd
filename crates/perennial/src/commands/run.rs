use std::path::PathBuf;
use std::process::ExitCode;

use perennial::Job;
use perennial::job_file::Trigger;
use perennial::run;
use perennial_core::error::Error;

use crate::logging::LogArgs;
use crate::signals::stop_on_signals;
use crate::terminal::{Failure, print};

/// Run a job.
///
/// It runs until it is stopped (Ctrl-C or SIGTERM: the batch at hand is finished; a second one stops at once), and goes on from its
/// checkpoint when it is started again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial run job.yaml\n  perennial run job.yaml --available-now\n  \
                        perennial run job.yaml --standby\n  perennial run job.yaml --log-format json --log-level warn")]
pub struct Run {
    /// The job file.
    #[arg(value_name = "JOB")]
    job: PathBuf,

    /// Work off everything that is there now, then end: the trigger `available_now`, whatever the job file says.
    #[arg(long)]
    available_now: bool,

    /// Stand by: wait beside the process that runs the job, and take over when it gives no more signs of life (`lease` in the job file).
    #[arg(long)]
    standby: bool,

    /// Where a query changed since its last batch: go on without the state that cannot be kept. Without this it does not start, and says
    /// what would be lost.
    #[arg(long)]
    accept_state_changes: bool,

    #[command(flatten)]
    log: LogArgs,
}

impl Run {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        self.log.start();
        let mut job = Job::from_file(&self.job)?;
        if self.available_now {
            job.trigger = Trigger::AvailableNow;
        }
        job.accept_state_changes = self.accept_state_changes;
        let summary = run::runtime()?.block_on(async {
            let stop = stop_on_signals().map_err(|error| Error::bug(format!("signals cannot be received: {error}")))?;
            if self.standby { job.stand_by(stop).await } else { job.run(stop).await }
        })?;
        if !self.log.is_json() {
            print(&summary.to_string())?;
        }
        Ok(if summary.failed().next().is_none() && !summary.taken_over { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
