//! What the last batches did.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::{HttpContext, act};
use crate::progress::QueryProgress;

/// The last batch of each query.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Last {
    /// By the name of the query; null before its first batch.
    queries: BTreeMap<String, Option<QueryProgress>>,
}

pub(super) async fn last(State(context): State<HttpContext>) -> Json<Last> {
    Json(Last { queries: context.progress.last() })
}

pub(super) async fn recent(State(context): State<HttpContext>, query: Path<String>) -> Response {
    match context.progress.recent(&query.0) {
        Some(recent) => Json(recent).into_response(),
        None => act::refuse(StatusCode::NOT_FOUND, format!("the job has no query `{}`", query.0)),
    }
}
