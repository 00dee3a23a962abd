use std::process::ExitCode;

use perennial::job_file;

use crate::terminal::{Failure, print};

/// Print the JSON Schema of the job file.
///
/// Editors complete and check job files with it. In VS Code, with the YAML extension, write it to a file and put
/// `# yaml-language-server: $schema=perennial.schema.json` on the first line of the job file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial schema > perennial.schema.json")]
pub struct Schema {}

impl Schema {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        print(&format!("{:#}\n", job_file::json_schema()))?;
        Ok(ExitCode::SUCCESS)
    }
}
