use std::path::PathBuf;
use std::process::ExitCode;

use perennial::run::CheckOptions;
use perennial::{Job, run};

use crate::logging::LogArgs;
use crate::terminal::{Failure, print};

/// Check a job file without running the job.
///
/// Parses it, plans the SQL, and prints for each query its plan, its columns and the guarantee that it gives, with its weakest part. Then
/// every source and sink is connected to; nothing is read or written.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial check job.yaml\n  perennial check job.yaml --offline\n\n\
                        Exit codes: 0 the job can run, 1 a connection does not work, 78 the job file is wrong.")]
pub struct Check {
    /// The job file.
    #[arg(value_name = "JOB")]
    job: PathBuf,

    /// Do not connect to anything.
    #[arg(long)]
    offline: bool,

    #[command(flatten)]
    log: LogArgs,
}

impl Check {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        self.log.start();
        let job = Job::from_file(&self.job)?;
        let report = run::runtime()?.block_on(job.check(CheckOptions { offline: self.offline }))?;
        print(&report.to_string())?;
        Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
