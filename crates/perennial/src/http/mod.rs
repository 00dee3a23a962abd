//! The HTTP server: health for probes and people, metrics for Prometheus.
//!
//! It has a thread and a runtime of its own, so that it answers also when the job's runtime hangs (and says so), and a storm of requests
//! does not slow a batch. It reads the [`StatusBoard`]; what acts on the job needs a token. Connections, headers, the time for them and bodies
//! are bounded. An endpoint is an entry in [`ENDPOINTS`], from which the routes and `/openapi.json` are made.

mod act;
mod health;
mod metrics;
mod openapi;
mod progress;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{MethodRouter, get, post};
use perennial_core::control::Controls;
use perennial_core::dead_letter::DeadLetters;
use perennial_core::status::StatusBoard;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Job;
use crate::progress::{ProgressBook, QueryProgress};
use openapi::{Answer, html, json_of, text};

pub use metrics::{Exposition, render as render_metrics};
pub(crate) use metrics::{Family, Value as MetricValue, families};
pub use server::{Listener, Server, Tls, bind};

/// What the endpoints read.
#[derive(Clone)]
pub struct HttpContext {
    /// How the job is.
    pub board: Arc<StatusBoard>,
    /// What the last batches did.
    pub progress: Arc<ProgressBook>,
    /// Whether the job's runtime makes progress.
    pub heartbeat: Heartbeat,
    /// The dead letters.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// What people tell the job to do.
    pub controls: Arc<Controls>,
    /// Ends the job, after the batch at hand.
    pub stop: CancellationToken,
    /// The job.
    pub job: Arc<Job>,
    /// The runtime of the job, for what is too much for the one of the server.
    pub runtime: tokio::runtime::Handle,
}

/// What a client sends at most, beside the head.
const MAX_BODY: usize = 64 * 1024;

/// An endpoint: how it is asked, what it tells or does, what it answers, and who answers.
struct Endpoint {
    path: &'static str,
    /// Whether it acts on the job, so that it is asked with POST and a token.
    acts: bool,
    what: &'static str,
    answers: &'static [Answer],
    /// The body of the request.
    body: Option<openapi::SchemaOf>,
    handler: fn() -> MethodRouter<HttpContext>,
}

const fn tells(
    path: &'static str,
    what: &'static str,
    answers: &'static [Answer],
    handler: fn() -> MethodRouter<HttpContext>,
) -> Endpoint {
    Endpoint { path, acts: false, what, answers, body: None, handler }
}

const fn acts(
    path: &'static str,
    what: &'static str,
    answers: &'static [Answer],
    handler: fn() -> MethodRouter<HttpContext>,
) -> Endpoint {
    Endpoint { path, acts: true, what, answers, body: None, handler }
}

/// The endpoints.
static ENDPOINTS: &[Endpoint] = &[
    tells("/health", "how the job is, in short", &[json_of::<health::Summary>(200)], || get(health::summary)),
    tells("/health/detailed", "how the job and each of its queries are", &[json_of::<health::Detailed>(200)], || {
        get(health::detailed)
    }),
    tells(
        "/health/dlq",
        "what is in the dead letters",
        &[json_of::<health::DeadLetterAnswer>(200), json_of::<health::Unavailable>(503)],
        || get(health::dead_letters),
    ),
    tells(
        "/health/ready",
        "200 when the job can do its work, else 503",
        &[json_of::<health::Ready>(200), json_of::<health::NotReady>(503)],
        || get(health::ready),
    ),
    tells(
        "/health/live",
        "200 as long as the process makes progress, else 503",
        &[json_of::<health::Live>(200), json_of::<health::Live>(503)],
        || get(health::live),
    ),
    tells(
        "/queries",
        "the last batch of each query, as Spark's StreamingQueryProgress",
        &[json_of::<progress::Last>(200)],
        || get(progress::last),
    ),
    tells(
        "/queries/{query}/progress",
        "the last 100 batches of a query, oldest first, as Spark's StreamingQueryProgress",
        &[json_of::<Vec<QueryProgress>>(200), json_of::<act::Refusal>(404)],
        || get(progress::recent),
    ),
    tells("/metrics", "metrics in the Prometheus text format", &[text(200, Exposition::CONTENT_TYPE)], || {
        get(metrics::endpoint)
    }),
    tells("/openapi.json", "this list, for machines", &[json_of::<serde_json::Value>(200)], || get(openapi::endpoint)),
    tells("/", "this list, for people", &[html(200)], || get(index)),
    acts(
        "/queries/{query}/pause",
        "the query finishes its batch and begins no other",
        &[json_of::<act::QueryAnswer>(200), json_of::<act::Refusal>(404)],
        || post(act::pause),
    ),
    acts(
        "/queries/{query}/resume",
        "the query goes on after a pause",
        &[json_of::<act::QueryAnswer>(200), json_of::<act::Refusal>(404)],
        || post(act::resume),
    ),
    acts("/stop", "the job ends, after the batches at hand", &[json_of::<act::StopAnswer>(202)], || post(act::stop)),
    Endpoint {
        body: Some(openapi::schema_of::<act::ReplayBody>),
        ..acts(
            "/dlq/replay",
            "dead letters are run again, through the job as it is now",
            &[json_of::<act::ReplayAnswer>(202), json_of::<act::Refusal>(400)],
            || post(act::replay),
        )
    },
];

/// The routes of a job.
pub fn router(context: HttpContext) -> Router {
    let mut router = Router::new();
    for endpoint in ENDPOINTS {
        router = router.route(endpoint.path, (endpoint.handler)());
    }
    finish(router).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(context)
}

/// Answers to requests for what is not there, in the form of all others.
pub(crate) fn finish<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    // Which methods there are is in the header `allow`.
    router
        .fallback(async || not_here(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async || not_here(StatusCode::METHOD_NOT_ALLOWED))
}

fn not_here(status: StatusCode) -> Response {
    let error = match status {
        StatusCode::METHOD_NOT_ALLOWED => "this path is not asked with this method",
        _ => "there is nothing at this path",
    };
    let endpoints: serde_json::Map<_, _> =
        ENDPOINTS.iter().map(|endpoint| (endpoint.path.into(), endpoint.what.into())).collect();
    (status, Json(json!({ "error": error, "endpoints": endpoints }))).into_response()
}

async fn index(State(context): State<HttpContext>) -> Html<String> {
    let status = context.board.snapshot();
    let row = |Endpoint { path, acts, what, .. }: &Endpoint| match acts {
        true => format!("<li>POST {path}: {what}</li>\n"),
        false => format!("<li><a href=\"{path}\">{path}</a>: {what}</li>\n"),
    };
    let rows: String = ENDPOINTS.iter().map(row).collect();
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
