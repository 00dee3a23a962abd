//! Logs: text for people, JSON for machines, both on standard error.

use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::writer::MakeWriterExt;

use crate::terminal::colours;

/// Whether whoever started this process reads its logs with a machine.
static JSON: AtomicBool = AtomicBool::new(false);

/// Whether the logs of this process are JSON, and errors are to be too.
pub fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Flags about logs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Lines for people or JSON objects for machines.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "PERENNIAL_LOG_FORMAT")]
    log_format: LogFormat,

    /// What is logged: `error`, `warn`, `info`, `debug` or `trace`, for all or by module (`info,perennial_core=debug`).
    #[arg(long, default_value = "info", value_parser = filter, env = "PERENNIAL_LOG_LEVEL", value_name = "LEVEL")]
    log_level: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Times in UTC with milliseconds.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        write!(out, "{}", chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl LogArgs {
    /// Sends the logs of this process to standard error. Has no effect the second time.
    pub fn start(&self) {
        JSON.store(self.is_json(), Ordering::Relaxed);
        // The Delta kernel tells of each step of each commit at INFO. The progress of each batch is for machines; who reads text asks for it
        // with `--log-level info,perennial_progress=info`.
        let quiet = match self.log_format {
            LogFormat::Text => "delta_kernel=warn,perennial_progress=warn",
            LogFormat::Json => "delta_kernel=warn",
        };
        let filter = EnvFilter::new(format!("{quiet},{}", self.log_level));
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_timer(Utc)
            .with_writer(std::io::stderr.with_max_level(tracing::Level::TRACE));
        // The result says whether there was one already; then it stays.
        let _ = match self.log_format {
            LogFormat::Text => builder.with_target(false).with_ansi(colours(&std::io::stderr())).try_init(),
            LogFormat::Json => {
                builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
            }
        };
    }

    /// Whether logs are for machines.
    pub fn is_json(&self) -> bool {
        matches!(self.log_format, LogFormat::Json)
    }
}
