//! The HTTP server: health for probes and people, metrics for Prometheus.
//!
//! It has a thread and a runtime of its own, so that it answers also when the job's runtime hangs (and says so), and a storm of requests
//! does not slow a batch. It only reads the [`StatusBoard`]. Connections, headers, the time for them and bodies are bounded. An endpoint
//! is a line in [`ENDPOINTS`].

mod health;
mod metrics;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{MethodRouter, get};
use perennial_core::dead_letter::DeadLetters;
use perennial_core::status::StatusBoard;
use serde_json::json;

pub use metrics::{Exposition, render as render_metrics};
pub use server::{Listener, Server, bind};

/// What the endpoints read.
#[derive(Clone)]
pub struct HttpContext {
    /// How the job is.
    pub board: Arc<StatusBoard>,
    /// Whether the job's runtime makes progress.
    pub heartbeat: Heartbeat,
    /// The dead letters.
    pub dead_letters: Arc<dyn DeadLetters>,
}

/// An endpoint: path, what it tells, who answers.
type Endpoint = (&'static str, &'static str, fn() -> MethodRouter<HttpContext>);

/// The endpoints.
static ENDPOINTS: &[Endpoint] = &[
    ("/health", "how the job is, in short", || get(health::summary)),
    ("/health/detailed", "how the job and each of its queries are", || get(health::detailed)),
    ("/health/dlq", "what is in the dead letters", || get(health::dead_letters)),
    ("/health/ready", "200 when the job can do its work, else 503", || get(health::ready)),
    ("/health/live", "200 as long as the process makes progress, else 503", || get(health::live)),
    ("/metrics", "metrics in the Prometheus text format", || get(metrics::endpoint)),
];

/// The routes of a job.
pub fn router(context: HttpContext) -> Router {
    let mut router = Router::new().route("/", get(index));
    for (path, _, handler) in ENDPOINTS {
        router = router.route(path, handler());
    }
    finish(router).with_state(context)
}

/// Answers to requests for what is not there, in the form of all others.
pub(crate) fn finish<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router.fallback(async || not_here(StatusCode::NOT_FOUND)).method_not_allowed_fallback(async || {
        let mut answer = not_here(StatusCode::METHOD_NOT_ALLOWED);
        answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        answer
    })
}

fn not_here(status: StatusCode) -> Response {
    let error = match status {
        StatusCode::METHOD_NOT_ALLOWED => "only GET and HEAD are answered here",
        _ => "there is nothing at this path",
    };
    let endpoints: serde_json::Map<_, _> =
        ENDPOINTS.iter().map(|(path, what, _)| ((*path).into(), (*what).into())).collect();
    (status, Json(json!({ "error": error, "endpoints": endpoints }))).into_response()
}

async fn index(State(context): State<HttpContext>) -> Html<String> {
    let status = context.board.snapshot();
    let rows: String =
        ENDPOINTS.iter().map(|(path, what, _)| format!("<li><a href=\"{path}\">{path}</a>: {what}</li>\n")).collect();
    Html(format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{0} - Perennial</title>\n<h1>{0}</h1>\n<p>This job is \
         {1}.</p>\n<ul>\n{rows}</ul>\n</html>\n",
        escape(&status.job),
        status.health().as_str(),
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Whether the job's runtime makes progress: a task of it stamps the time, and whoever asks compares. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    origin: Instant,
    last_millis: Arc<AtomicU64>,
}

impl Heartbeat {
    /// How often the task stamps.
    pub const INTERVAL: Duration = Duration::from_secs(1);

    /// A runtime that has not stamped for this long hangs.
    pub const HANGS_AFTER: Duration = Duration::from_secs(30);

    /// A heart that has just beaten.
    pub fn new() -> Self {
        Self { origin: Instant::now(), last_millis: Arc::default() }
    }

    /// Beats for as long as the runtime that it is spawned on makes progress.
    pub async fn keep_beating(self) {
        let mut ticks = tokio::time::interval(Self::INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.beat(self.origin.elapsed());
        }
    }

    fn beat(&self, now: Duration) {
        self.last_millis.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago the last beat was.
    pub fn silence(&self) -> Duration {
        self.silence_at(self.origin.elapsed())
    }

    fn silence_at(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_millis(self.last_millis.load(Ordering::Relaxed)))
    }

    fn is_alive(silence: Duration) -> bool {
        silence < Self::HANGS_AFTER
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}
