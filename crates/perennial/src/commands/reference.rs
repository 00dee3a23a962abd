use std::process::ExitCode;

use perennial::job_file;

use crate::terminal::{Failure, print};

/// Print the reference page of the job file (docs/job-file.md).
#[derive(Debug, clap::Args)]
pub struct Reference {}

impl Reference {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        print(&job_file::reference_page())?;
        Ok(ExitCode::SUCCESS)
    }
}
