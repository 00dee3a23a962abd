use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use perennial::job_file;
use perennial_core::error::{Error, class};

use crate::terminal::{Failure, print};

/// Write a job file to begin with.
///
/// It has a comment on every key, and runs as it is: it simulates sensors and writes to a SQLite file. A file that exists is never
/// overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial init\n  perennial init greenhouse.yaml\n  perennial init -        print it")]
pub struct Init {
    /// The file to write; `-` prints it.
    #[arg(default_value = "job.yaml", value_name = "PATH")]
    path: PathBuf,
}

impl Init {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        let text = job_file::example();
        if self.path.as_os_str() == "-" {
            print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        let path = self.path.display();
        let written = OpenOptions::new().write(true).create_new(true).open(&self.path);
        written.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
            let why = match error.kind() {
                ErrorKind::AlreadyExists => format!("{path} exists already and is left as it is; name another file"),
                _ => format!("{path} cannot be written: {error}"),
            };
            Error::new(class::CONFIG_INVALID, why)
        })?;
        print(&format!("Wrote {path}.\nCheck it: perennial check {path}\nRun it:   perennial run {path}\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
