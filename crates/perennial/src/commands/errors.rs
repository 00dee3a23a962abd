use std::fmt::Write;
use std::process::ExitCode;

use perennial::{ErrorClass, catalogue};
use perennial_core::error::CATALOGUE;
use perennial_core::policy::default_action;

use crate::terminal::{Failure, print};

/// List the classes of errors, or explain one.
///
/// The code of a class is what stands as `type` in dead letters, in `errors_by_type` of the health answer, and in metrics.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial errors\n  perennial errors ConnectionRefused\n  perennial errors --json")]
pub struct Errors {
    /// The code of a class, as it stands in a message.
    code: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Errors {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        let one = self.code.as_deref().map(catalogue::find).transpose()?;
        let text = match one {
            Some(class) if self.json => format!("{:#}\n", json(class)),
            Some(class) => explain(class),
            None if self.json => format!("{:#}\n", CATALOGUE.iter().copied().map(json).collect::<serde_json::Value>()),
            None => list(),
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn json(class: &'static ErrorClass) -> serde_json::Value {
    serde_json::json!({
        "code": class.code,
        "kind": class.kind.to_string(),
        "meaning": class.meaning,
        "recommendation": class.recommendation,
        "action": default_action(class),
    })
}

fn explain(class: &'static ErrorClass) -> String {
    format!(
        "{}\n  kind          {}\n  when          {}\n  what to do    {}\n  what is done  {}\n",
        class.code,
        class.kind,
        class.meaning,
        class.recommendation,
        default_action(class),
    )
}

fn list() -> String {
    let width = CATALOGUE.iter().map(|class| class.code.len()).max().unwrap_or(0);
    CATALOGUE.iter().fold(String::new(), |mut text, class| {
        let _ = writeln!(text, "{:width$}  {:9}  {}", class.code, class.kind.to_string(), class.meaning);
        text
    })
}
