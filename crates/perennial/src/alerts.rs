//! Alerts of a running job: looked for now and then, and sent to whoever the job file names. The rules are in [`perennial_core::alert`].

mod mail;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mail::{Letter, Mailer};
use perennial_core::alert::{Alerts, Notice, Pace, RULES, Rule, Setting, Severity, Stage};
use perennial_core::dead_letter::timestamp_text;
use perennial_core::env::Clock;
use perennial_core::error::{Error, Result, class};
use perennial_core::status::{Status, StatusBoard};
use serde_json::{Map, Value, json};

use crate::job::Job;
use crate::job_file::{AlertSettings, RuleSettings, WebhookFormat, WebhookSettings};

pub(crate) use mail::Mailbox;

/// How long a receiver may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// So many messages wait for a receiver that does not answer; then the oldest is dropped.
const MOST_WAITING: usize = 100;
/// Alertmanager forgets what it is not told again; this is often enough.
const REMIND_ALERTMANAGER: Duration = Duration::from_secs(60);

/// The setting of a rule in a job.
pub fn setting(settings: &AlertSettings, rule: &Rule) -> Setting {
    let usual = rule.setting();
    match settings.rules.get(rule.name) {
        None => usual,
        Some(RuleSettings { enabled, threshold, hold, severity }) => Setting {
            enabled: *enabled,
            threshold: threshold.unwrap_or(usual.threshold),
            hold: hold.map_or(usual.hold, |hold| hold.0),
            severity: severity.unwrap_or(usual.severity),
        },
    }
}

/// The rules as a file for Prometheus.
pub fn prometheus_rules(settings: &AlertSettings) -> String {
    let mut text = "groups:\n  - name: perennial\n    rules:\n".to_owned();
    for rule in RULES {
        let Setting { enabled, threshold, hold, severity } = setting(settings, rule);
        if !enabled {
            continue;
        }
        let quoted = |text: &str| Value::from(text).to_string();
        let expression = format!("{} {} {threshold}", rule.metric, rule.comparison);
        let description = format!("The value is {{{{ $value }}}}, the limit {threshold}.");
        let _ = write!(
            text,
            "      - alert: {}\n        expr: {}\n        for: {}s\n        labels:\n          severity: {}\n        annotations:\n          \
             summary: {}\n          description: {}\n",
            rule.alert,
            quoted(&expression),
            hold.as_secs(),
            severity.as_str(),
            quoted(rule.summary),
            quoted(&description),
        );
    }
    text
}

/// One alert, as receivers get it.
fn json_of(status: &Status, notice: &Notice) -> Value {
    let labels: Map<String, Value> =
        notice.finding.labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect();
    let resolved = (notice.stage == Stage::Resolved).then(|| timestamp_text(notice.at_micros));
    json!({
        "alert": notice.alert,
        "rule": notice.rule,
        "status": notice.stage,
        "severity": notice.severity,
        "job": status.job,
        "labels": labels,
        "summary": notice.summary,
        "description": notice.finding.what,
        "value": notice.finding.value,
        "threshold": notice.threshold,
        "since": timestamp_text(notice.since_micros),
        "resolved_at": resolved,
    })
}

/// The body for a webhook.
fn webhook_body(format: WebhookFormat, status: &Status, notices: &[Notice]) -> Value {
    match format {
        WebhookFormat::Json => json!({
            "job": status.job,
            "version": status.version,
            "health": status.health(),
            "timestamp": timestamp_text(status.now_micros),
            "alerts": notices.iter().map(|notice| json_of(status, notice)).collect::<Vec<_>>(),
        }),
        WebhookFormat::Slack => json!({ "text": text_of(status, notices) }),
    }
}

/// What is new, in a word.
fn word(notice: &Notice) -> &'static str {
    match (notice.stage, notice.severity) {
        (Stage::Resolved, _) => "RESOLVED",
        (Stage::Firing, Severity::Critical) => "CRITICAL",
        (Stage::Firing, Severity::Warning) => "WARNING",
    }
}

/// What people read.
fn text_of(status: &Status, notices: &[Notice]) -> String {
    let line = |notice: &Notice| {
        let word = word(notice);
        let since = &timestamp_text(notice.since_micros)[..19];
        format!("{word} {}: {}: {} (since {since})", status.job, notice.summary, notice.finding.what)
    };
    notices.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Subject and text of a mail. The subject has the worst of what is new.
fn mail_of(status: &Status, notices: &[Notice]) -> Option<(String, String)> {
    let urgency = |notice: &&Notice| match (notice.stage, notice.severity) {
        (Stage::Firing, Severity::Critical) => 0,
        (Stage::Firing, Severity::Warning) => 1,
        (Stage::Resolved, _) => 2,
    };
    let first = notices.iter().min_by_key(urgency)?;
    let mut subject = format!("[{}] {}: {}", word(first), status.job, first.summary);
    if notices.len() > 1 {
        let _ = write!(subject, " (and {} more)", notices.len() - 1);
    }
    let text = format!(
        "{}\n\nThe job {} (version {}) is {}. Times are in UTC.\n",
        text_of(status, notices),
        status.job,
        status.version,
        status.health().as_str()
    );
    Some((subject, text))
}

/// The body for Alertmanager's API.
fn alertmanager_body(status: &Status, notices: &[Notice]) -> Value {
    let rfc3339 = |micros: i64| format!("{}Z", timestamp_text(micros));
    let one = |notice: &Notice| {
        let mut labels: Map<String, Value> =
            notice.finding.labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect();
        labels.insert("alertname".into(), notice.alert.into());
        labels.insert("job".into(), status.job.clone().into());
        labels.insert("severity".into(), notice.severity.as_str().into());
        let mut alert = json!({
            "labels": labels,
            "annotations": { "summary": notice.summary, "description": notice.finding.what },
            "startsAt": rfc3339(notice.since_micros),
        });
        if notice.stage == Stage::Resolved {
            alert["endsAt"] = rfc3339(notice.at_micros).into();
        }
        alert
    };
    notices.iter().map(one).collect()
}

enum Kind {
    Webhook(WebhookSettings),
    Alertmanager {
        url: String,
        /// When it was told all that fires.
        reminded_micros: Option<i64>,
    },
    Email(Box<Mailer>),
}

/// Who is told, with what it has not taken yet.
struct Receiver {
    kind: Kind,
    client: reqwest::Client,
    waiting: VecDeque<Vec<u8>>,
}

impl Receiver {
    /// A short name, without what is secret in an address.
    fn name(&self) -> String {
        let (word, url) = match &self.kind {
            Kind::Webhook(webhook) => ("webhook", webhook.url.expose()),
            Kind::Alertmanager { url, .. } => ("alertmanager", url.as_str()),
            Kind::Email(mailer) => return format!("email by {}", mailer.server()),
        };
        let host = url::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
        format!("{word} at {}", host.unwrap_or_default())
    }

    fn take(&mut self, status: &Status, notices: &[Notice], firing: &[Notice]) {
        let message = match &mut self.kind {
            Kind::Webhook(_) if notices.is_empty() => None,
            Kind::Webhook(webhook) => Some(webhook_body(webhook.format, status, notices).to_string().into_bytes()),
            Kind::Email(mailer) => mail_of(status, notices).and_then(|(subject, text)| {
                let id = rand::random();
                let letter = Letter { subject: &subject, text: &text, at_micros: status.now_micros, id };
                let message = mailer.message(&letter);
                message.inspect_err(|why| tracing::warn!("a mail cannot be written: {why}")).ok()
            }),
            Kind::Alertmanager { reminded_micros, .. } => {
                let remind = REMIND_ALERTMANAGER.as_micros() as i64;
                let due = reminded_micros.is_none_or(|at| status.now_micros - at >= remind);
                let resolved = notices.iter().filter(|notice| notice.stage == Stage::Resolved);
                let all: Vec<Notice> = firing.iter().chain(resolved).cloned().collect();
                let tell = !notices.is_empty() || due && !all.is_empty();
                if tell {
                    *reminded_micros = Some(status.now_micros);
                }
                tell.then(|| alertmanager_body(status, &all).to_string().into_bytes())
            }
        };
        self.waiting.extend(message);
        while self.waiting.len() > MOST_WAITING {
            tracing::warn!(receiver = self.name(), "too many messages wait; the oldest is dropped");
            self.waiting.pop_front();
        }
    }

    /// Sends what waits, in order, until one is not taken; that is tried again at the next look.
    async fn send(&mut self) {
        while let Some(message) = self.waiting.front() {
            match self.hand_over(message).await {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(why) => {
                    tracing::warn!(
                        receiver = self.name(),
                        waiting = self.waiting.len(),
                        "an alert was not taken: {why}"
                    );
                    return;
                }
            }
        }
    }

    async fn hand_over(&self, message: &[u8]) -> Result<(), String> {
        let request = match &self.kind {
            Kind::Webhook(webhook) => {
                let request = self.client.post(webhook.url.expose());
                webhook.headers.iter().fold(request, |request, (name, value)| request.header(name, value.expose()))
            }
            Kind::Alertmanager { url, .. } => self.client.post(format!("{}/api/v2/alerts", url.trim_end_matches('/'))),
            Kind::Email(mailer) => return mailer.send(message).await,
        };
        let request = request.header("content-type", "application/json").body(message.to_vec());
        // The address may hold a secret.
        let answer = request.send().await.map_err(|error| root_cause(&error.without_url()))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("it answered {status}")),
        }
    }
}

/// The innermost cause: what wraps it only says that something failed.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(inner) = root.source() {
        root = inner;
    }
    root.to_string()
}

/// Looks for alerts and sends them.
pub(crate) struct Watchman {
    board: Arc<StatusBoard>,
    clock: Arc<dyn Clock>,
    alerts: Alerts,
    receivers: Vec<Receiver>,
    every: Duration,
    /// What is written to a local disk: what it is called, and where.
    places: Vec<(&'static str, PathBuf)>,
}

impl Watchman {
    /// The one of a job.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(job: &Job, board: Arc<StatusBoard>, clock: Arc<dyn Clock>) -> Result<Self> {
        let settings = &job.alerts;
        let client = reqwest::Client::builder().timeout(TIMEOUT).user_agent("perennial").build();
        let client = client.map_err(|e| Error::new(class::TLS_FAILED, "alerts: TLS cannot be set up").caused_by(e))?;
        let webhooks = settings.webhooks.iter().cloned().map(Kind::Webhook);
        let alertmanager =
            settings.alertmanager.iter().map(|to| Kind::Alertmanager { url: to.url.clone(), reminded_micros: None });
        let email = settings.email.as_ref().map(|email| Mailer::new(email).map(|mailer| Kind::Email(Box::new(mailer))));
        let receiver = |kind| Receiver { kind, client: client.clone(), waiting: VecDeque::new() };
        let state = job.state.directory.as_deref().unwrap_or("./state");
        let places = [
            ("checkpoint", Some(job.checkpoint.as_str())),
            ("dead_letters", job.dead_letters.directory()),
            ("state", Some(state)),
        ];
        let local =
            places.into_iter().filter_map(|(name, path)| Some((name, path?))).filter(|(_, path)| !path.contains("://"));
        Ok(Self {
            board,
            clock,
            alerts: Alerts::new(
                |rule| setting(settings, rule),
                Pace { repeat: settings.repeat.0, resolve_after: settings.resolve_after.0 },
            ),
            receivers: webhooks.chain(alertmanager).chain(email.transpose()?).map(receiver).collect(),
            every: settings.every.0.max(Duration::from_millis(10)),
            places: local.map(|(name, path)| (name, PathBuf::from(path))).collect(),
        })
    }

    /// Looks and sends for as long as it is polled.
    pub async fn watch(&mut self) {
        loop {
            self.look().await;
            self.clock.sleep(self.every).await;
        }
    }

    /// Looks once, and sends what is to be told.
    pub async fn look(&mut self) {
        let places = self.places.clone();
        // A disk that hangs must not stop this.
        let disks = tokio::task::spawn_blocking(move || {
            places.iter().filter_map(|(name, path)| Some(((*name).to_owned(), free_share(path)?))).collect()
        });
        if let Ok(Ok(disks)) = tokio::time::timeout(TIMEOUT, disks).await {
            self.board.set_disks(disks);
        }
        let status = self.board.snapshot();
        let notices = self.alerts.step(&status);
        for notice in &notices {
            let (alert, what) = (notice.alert, &notice.finding.what);
            match notice.stage {
                Stage::Firing => {
                    tracing::warn!(alert, severity = notice.severity.as_str(), "alert: {}: {what}", notice.summary)
                }
                Stage::Resolved => tracing::info!(alert, "alert resolved: {}", notice.summary),
            }
        }
        let firing = self.alerts.firing(status.now_micros);
        join_all(self.receivers.iter_mut().map(|receiver| {
            receiver.take(&status, &notices, &firing);
            receiver.send()
        }))
        .await;
    }
}

/// The share of the disk that is free for this user, of the nearest directory that is there.
fn free_share(path: &Path) -> Option<f64> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|path| path.exists())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    (disk.f_blocks > 0).then(|| disk.f_bavail as f64 / disk.f_blocks as f64)
}

#[cfg(test)]
mod tests {
    use perennial_core::alert::Finding;

    use super::*;

    fn status() -> Status {
        let env = crate::env(Arc::new(object_store::memory::InMemory::new()));
        let board = StatusBoard::new(env.clock, "greenhouse", "1.0", ["raw"], Duration::from_secs(60));
        Status { now_micros: 1_763_715_660_000_000, ..board.snapshot() }
    }

    fn notice(stage: Stage) -> Notice {
        let labels = vec![("part", "sink".to_owned()), ("query", "raw".to_owned())];
        Notice {
            rule: "breaker_open",
            alert: "PerennialBreakerOpen",
            severity: Severity::Critical,
            summary: "A circuit breaker is open",
            stage,
            finding: Finding { labels, value: 1.0, what: "the circuit breaker of raw: sink is open".into() },
            threshold: 0.0,
            since_micros: 1_763_715_600_000_000,
            at_micros: 1_763_715_660_000_000,
        }
    }

    #[test]
    fn messages_have_the_forms_of_their_receivers() {
        let notices = [notice(Stage::Firing), notice(Stage::Resolved)];
        let body = webhook_body(WebhookFormat::Json, &status(), &notices);
        assert_eq!((&body["job"], &body["timestamp"]), (&json!("greenhouse"), &json!("2025-11-21T09:01:00.000000")));
        assert_eq!(
            body["alerts"][1],
            json!({"alert": "PerennialBreakerOpen", "rule": "breaker_open", "status": "resolved", "severity": "critical",
                   "job": "greenhouse", "labels": {"part": "sink", "query": "raw"}, "summary": "A circuit breaker is open",
                   "description": "the circuit breaker of raw: sink is open", "value": 1.0, "threshold": 0.0,
                   "since": "2025-11-21T09:00:00.000000", "resolved_at": "2025-11-21T09:01:00.000000"})
        );
        assert_eq!(
            webhook_body(WebhookFormat::Slack, &status(), &notices)["text"],
            "CRITICAL greenhouse: A circuit breaker is open: the circuit breaker of raw: sink is open (since 2025-11-21T09:00:00)\n\
             RESOLVED greenhouse: A circuit breaker is open: the circuit breaker of raw: sink is open (since 2025-11-21T09:00:00)"
        );
        let (subject, text) = mail_of(&status(), &notices).unwrap();
        assert_eq!(subject, "[CRITICAL] greenhouse: A circuit breaker is open (and 1 more)");
        assert!(
            text.contains("\nRESOLVED greenhouse: ")
                && text.ends_with("(version 1.0) is initializing. Times are in UTC.\n"),
            "{text}"
        );
        assert!(mail_of(&status(), &[]).is_none());
        assert_eq!(
            alertmanager_body(&status(), &notices[1..]),
            json!([{"labels": {"alertname": "PerennialBreakerOpen", "job": "greenhouse", "severity": "critical", "part": "sink", "query": "raw"},
                    "annotations": {"summary": "A circuit breaker is open", "description": "the circuit breaker of raw: sink is open"},
                    "startsAt": "2025-11-21T09:00:00.000000Z", "endsAt": "2025-11-21T09:01:00.000000Z"}])
        );
    }

    #[test]
    fn every_rule_compares_a_metric_that_is_there() {
        let metrics = crate::http::render_metrics(&status());
        for rule in RULES {
            let names = rule.metric.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for name in names.filter(|name| name.starts_with("perennial_") && *name != "perennial_memory_limit_bytes") {
                assert!(metrics.contains(&format!("# TYPE {name} ")), "{name} of {} is no metric", rule.name);
            }
        }
    }

    #[test]
    fn the_disk_is_found_of_what_is_not_there_yet() {
        let free = free_share(Path::new("./not/there/yet")).unwrap();
        assert!((0.0..=1.0).contains(&free), "{free}");
    }
}
