//! What can be told to a running job. Each of these needs the token of the job.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use perennial_core::error::Error;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::HttpContext;
use crate::dlq::{self, Filter, Handed};

/// Why something is not done.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Refusal {
    /// Why.
    error: String,
}

pub(super) fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(Refusal { error: error.into() })).into_response()
}

/// Whoever asks has shown the token. A handler that takes this is only called for such.
pub(super) struct Authorized;

impl FromRequestParts<HttpContext> for Authorized {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, context: &HttpContext) -> Result<Self, Denied> {
        let token = context.job.http_token().ok_or(Denied::NoTokenSet)?;
        match bearer(&parts.headers) {
            Some(shown) if same(shown.as_bytes(), token.expose().as_bytes()) => Ok(Self),
            Some(_) => Err(Denied::Wrong),
            None => Err(Denied::Missing),
        }
    }
}

/// Why one who asks may not.
pub(super) enum Denied {
    NoTokenSet,
    Missing,
    Wrong,
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let why = match self {
            Self::NoTokenSet => {
                let how = "acting on the job needs a token: set `http.token` in the job file, or PERENNIAL_HTTP_TOKEN";
                return refuse(StatusCode::FORBIDDEN, how);
            }
            Self::Missing => "a bearer token is needed",
            Self::Wrong => "this is not the token",
        };
        let mut answer = refuse(StatusCode::UNAUTHORIZED, why);
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        answer
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Compares in a time that does not tell how much of it was right.
fn same(shown: &[u8], token: &[u8]) -> bool {
    let differences = shown.iter().zip(token).fold(0, |all, (a, b)| all | (a ^ b));
    shown.len() == token.len() && std::hint::black_box(differences) == 0
}

/// How a query stands now.
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueryAnswer {
    /// The query.
    query: String,
    /// Whether it is paused now.
    paused: bool,
}

pub(super) async fn pause(_: Authorized, context: State<HttpContext>, query: Path<String>) -> Response {
    set_paused(&context, query.0, true)
}

pub(super) async fn resume(_: Authorized, context: State<HttpContext>, query: Path<String>) -> Response {
    set_paused(&context, query.0, false)
}

fn set_paused(context: &HttpContext, query: String, paused: bool) -> Response {
    if !context.job.queries.contains_key(&query) {
        return refuse(StatusCode::NOT_FOUND, format!("the job has no query `{query}`"));
    }
    match paused {
        true => context.controls.pause(&query),
        false => {
            context.controls.resume(&query);
        }
    }
    tracing::info!(query, paused, "told over HTTP");
    Json(QueryAnswer { query, paused }).into_response()
}

/// The job ends.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StopAnswer {
    /// True.
    stopping: bool,
}

pub(super) async fn stop(_: Authorized, State(context): State<HttpContext>) -> (StatusCode, Json<StopAnswer>) {
    tracing::info!("told over HTTP to stop: the batches at hand are finished");
    context.stop.cancel();
    (StatusCode::ACCEPTED, Json(StopAnswer { stopping: true }))
}

/// Which dead letters are run again, and how they are mended before.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayBody {
    /// Which entries: all conditions must hold. Without ids those are left out that were recovered or resolved.
    #[serde(rename = "where")]
    filter: Filter,
    /// `column = expression` for each column to mend.
    set: Vec<String>,
    /// Also entries that failed again three times.
    force: bool,
}

/// What was handed to the job.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ReplayAnswer {
    /// By query.
    queries: Vec<Handed>,
    /// Entries that were replayed too often already.
    left_out: Vec<String>,
}

pub(super) async fn replay(
    _: Authorized,
    State(context): State<HttpContext>,
    body: Result<Json<ReplayBody>, JsonRejection>,
) -> Response {
    let body = match body {
        Ok(Json(body)) => body,
        Err(rejection) => return refuse(rejection.status(), rejection.body_text()),
    };
    if body.filter.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "say which entries: `{\"where\": {\"query\": …}}`");
    }
    let job = context.job.clone();
    // Reading and mending them is work for the runtime of the job.
    let replayed = context.runtime.spawn(async move {
        let sets = body.set.iter().map(|set| dlq::Set::parse(set)).collect::<Result<Vec<_>, _>>()?;
        let letters = job.open_dead_letters()?;
        let (found, left_out) = dlq::to_replay(letters.as_ref(), &body.filter, body.force).await?;
        let requests = dlq::requests(&job, letters.as_ref(), &found, &sets, |_, _| {}).await?;
        let queries = dlq::hand_over(&job, letters.as_ref(), &requests).await?;
        let left_out = left_out.into_iter().map(|one| one.entry.id).collect();
        Ok::<_, Error>(ReplayAnswer { queries, left_out })
    });
    match replayed.await {
        Ok(Ok(answer)) => {
            tracing::info!(queries = answer.queries.len(), "told over HTTP to run dead letters again");
            (StatusCode::ACCEPTED, Json(answer)).into_response()
        }
        Ok(Err(error)) => refuse(StatusCode::BAD_REQUEST, error.to_string()),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "it did not end well; the log says why"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole() {
        for (shown, right) in [("secret", true), ("secre", false), ("secrets", false), ("", false), ("Secret", false)] {
            assert_eq!(same(shown.as_bytes(), b"secret"), right, "{shown}");
        }
    }
}
