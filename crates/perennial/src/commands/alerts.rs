use std::path::PathBuf;
use std::process::ExitCode;

use perennial::{Job, alerts};
use perennial_core::alert::{RULES, Setting};
use perennial_core::config::HumanDuration;
use serde_json::json;

use crate::commands::checkpoint::output::{Format, table};
use crate::terminal::{Failure, print};

/// List the rules by which a job alerts, or give them to Prometheus.
///
/// A running job looks itself and sends what it finds to the receivers in its job file (`alerts`). The same rules as a file for Prometheus
/// compare the job's metrics.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial alerts\n  perennial alerts job.yaml --prometheus > perennial-rules.yml")]
pub struct Alerts {
    /// The job file whose limits count; without it the usual ones.
    #[arg(value_name = "JOB")]
    job: Option<PathBuf>,
    /// Print a rule file for Prometheus.
    #[arg(long)]
    prometheus: bool,
    #[command(flatten)]
    format: Format,
}

impl Alerts {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        let settings = match &self.job {
            Some(job) => Job::from_file(job)?.alerts,
            None => Default::default(),
        };
        if self.prometheus {
            print(&alerts::prometheus_rules(&settings))?;
            return Ok(ExitCode::SUCCESS);
        }
        let rules = || RULES.iter().map(|rule| (rule, alerts::setting(&settings, rule)));
        let rows = rules().map(|(rule, Setting { enabled, threshold, hold, severity })| {
            let hold = if hold.is_zero() { "at once".to_owned() } else { HumanDuration(hold).to_string() };
            let state = if enabled { severity.as_str() } else { "off" };
            let what = format!("{} {threshold}", rule.comparison);
            vec![rule.name.to_owned(), state.to_owned(), what, hold, rule.summary.to_owned()]
        });
        let text = table(&["rule", "severity", "limit", "after", "what"], &rows.collect::<Vec<_>>());
        let json = rules().map(|(rule, Setting { enabled, threshold, hold, severity })| {
            json!({
                "rule": rule.name, "alert": rule.alert, "enabled": enabled, "severity": severity, "threshold": threshold,
                "for_seconds": hold.as_secs_f64(), "metric": rule.metric, "comparison": rule.comparison, "summary": rule.summary,
            })
        });
        self.format.print(&text, &json!({ "rules": json.collect::<Vec<_>>() }))?;
        Ok(ExitCode::SUCCESS)
    }
}
