//! What people see: results on standard output, errors on standard error, colours only where they show.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use perennial::job_file::JobFileError;
use perennial_core::error::{Error, class};

use crate::logging;

/// The job file is wrong (`EX_CONFIG` of sysexits.h).
pub const WRONG_JOB_FILE: u8 = 78;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// The job file is wrong.
    JobFile(Box<JobFileError>),
    /// Something else.
    Failed(Error),
}

impl From<Box<JobFileError>> for Failure {
    fn from(error: Box<JobFileError>) -> Self {
        Self::JobFile(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.find_cause::<JobFileError>() {
            Some(wrong) => Self::JobFile(Box::new(wrong.clone())),
            None => Self::Failed(error),
        }
    }
}

impl Failure {
    /// Tells it, in the form of the logs, and gives the exit code that goes with it.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::JobFile(error) if logging::is_json() => {
                for problem in &error.problems {
                    let (line, column) = problem.at.map_or((0, 0), |at| (at.line, at.column));
                    tracing::error!(
                        error_class = class::CONFIG_INVALID.code,
                        file = error.file,
                        line,
                        column,
                        key = problem.path,
                        help = problem.help,
                        "{}",
                        problem.message
                    );
                }
            }
            Self::JobFile(error) => {
                for line in error.to_string().lines() {
                    match line.strip_prefix("error:") {
                        Some(message) => eprintln!("{}{message}", red("error:")),
                        None => eprintln!("{line}"),
                    }
                }
            }
            Self::Failed(error) if logging::is_json() => {
                let class = error.class();
                tracing::error!(error_class = class.code, recommendation = class.recommendation, "{error}");
            }
            Self::Failed(error) => {
                eprintln!("{} {error}", red("error:"));
                eprintln!("  = {} ({})", error.class().recommendation, error.class().code);
            }
        }
        match self {
            Self::JobFile(_) => ExitCode::from(WRONG_JOB_FILE),
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

fn red(text: &str) -> String {
    if colours(&io::stderr()) { format!("\x1b[1;31m{text}\x1b[0m") } else { text.to_owned() }
}

/// Whether to colour what goes to `stream`: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
pub fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a result. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::from(object_store::Error::Generic { store: "stdout", source: Box::new(error) })
                .at("standard output")
                .into())
        }
        _ => Ok(()),
    }
}
