//! What the commands print: tables for people, JSON for machines, bars while something takes long.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use perennial_core::checkpoint::{Plan, Step};
use serde_json::{Value, json};

use crate::terminal::{Failure, print};

/// `--yes` is missing: as clap's own code for wrong usage.
const NEEDS_YES: u8 = 2;

/// Flags of all commands.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Format {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl Format {
    /// Prints one of both.
    pub fn print(self, text: &str, json: &Value) -> Result<(), Failure> {
        if self.json { print(&format!("{json:#}\n")) } else { print(text) }
    }
}

/// Flags of commands that change something.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Consent {
    /// Do it; without it only the plan is shown.
    #[arg(long)]
    pub yes: bool,

    /// In an object store: take the checkpoint over even if it was written within the last minute. A job that still runs stops.
    #[arg(long)]
    pub fence: bool,
}

/// Shows what was done, or would be.
pub fn report(format: Format, consent: Consent, plan: &Plan, what: &[String]) -> Result<ExitCode, Failure> {
    let done = consent.yes && plan.unresolved.is_empty();
    let json = json!({
        "done": consent.yes, "steps": plan.steps.iter().map(step_json).collect::<Vec<_>>(), "notes": plan.notes,
        "sink": what, "unresolved": plan.unresolved,
    });
    let mut text = String::new();
    for note in &plan.notes {
        let _ = writeln!(text, "{note}");
    }
    for line in what {
        let _ = writeln!(text, "{line}");
    }
    if !plan.steps.is_empty() {
        let _ = writeln!(text, "{}", if consent.yes { "done:" } else { "the plan:" });
    }
    const SHOWN: usize = 20;
    for step in plan.steps.iter().take(SHOWN) {
        let _ = match step {
            Step::SetAside { file } => writeln!(text, "  set aside {file}"),
            Step::Remove { file } => writeln!(text, "  remove    {file}"),
            Step::Write { file, .. } => writeln!(text, "  write     {file}"),
        };
    }
    if plan.steps.len() > SHOWN {
        let _ = writeln!(text, "  and {} more", plan.steps.len() - SHOWN);
    }
    for unresolved in &plan.unresolved {
        let _ = writeln!(text, "cannot be mended: {unresolved}");
    }
    if plan.steps.is_empty() && plan.unresolved.is_empty() && plan.notes.is_empty() {
        text += "there is nothing to do\n";
    }
    let asks = !consent.yes && !plan.steps.is_empty();
    if asks {
        text += "nothing was changed: add --yes to do it\n";
    }
    format.print(&text, &json)?;
    Ok(match (asks, done || plan.unresolved.is_empty()) {
        (true, _) => ExitCode::from(NEEDS_YES),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    })
}

fn step_json(step: &Step) -> Value {
    match step {
        Step::SetAside { file } => json!({ "action": "set_aside", "file": file }),
        Step::Remove { file } => json!({ "action": "remove", "file": file }),
        Step::Write { file, .. } => json!({ "action": "write", "file": file }),
    }
}

/// Tells that the plan needs `--yes`.
pub fn needs_yes(format: Format, text: &str, json: &Value) -> Result<ExitCode, Failure> {
    format.print(&format!("{text}nothing was changed: add --yes to do it\n"), json)?;
    Ok(ExitCode::from(NEEDS_YES))
}

/// Columns with a header; numbers are to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
        cells.max().unwrap_or(0).max(header[column].len())
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let is_number = |column: usize| {
        !rows.is_empty()
            && rows.iter().all(|row| {
                row.get(column).is_some_and(|c| {
                    c == "-" || c.starts_with(|c: char| c.is_ascii_digit()) && !c.contains(['-', ':', '.'])
                })
            })
    };
    let right: Vec<bool> = (0..header.len()).map(is_number).collect();
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if right[column] { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:<width$}  ") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Milliseconds since the epoch as people read them.
pub fn time(ms: i64) -> String {
    DateTime::<Utc>::from_timestamp_millis(ms)
        .map_or_else(|| ms.to_string(), |time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

/// A watermark: 0 stands for none yet.
pub fn watermark(ms: i64) -> String {
    if ms == 0 { "-".into() } else { time(ms) }
}

/// A size as people read it.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A bar on standard error, where that is a terminal. It goes when it is dropped.
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar of bytes.
    pub fn bytes(what: &str) -> Self {
        Self::new(what, "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    }

    /// A bar of things.
    pub fn count(what: &str) -> Self {
        Self::new(what, "{msg} {wide_bar} {pos}/{len} {eta}")
    }

    fn new(what: &str, template: &str) -> Self {
        let bar = ProgressBar::new(0).with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// How far it is.
    pub fn at(&self, done: u64, all: u64) {
        self.0.set_length(all);
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
