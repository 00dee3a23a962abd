//! The OpenAPI document, made from the endpoints and the types of what they answer.

use std::sync::LazyLock;

use axum::Json;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{ENDPOINTS, Endpoint, act};

/// Makes the schema of a type.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One way in which an endpoint answers.
pub(super) struct Answer {
    status: u16,
    content_type: &'static str,
    schema: Option<SchemaOf>,
}

pub(super) fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

pub(super) const fn json_of<T: JsonSchema>(status: u16) -> Answer {
    Answer { status, content_type: "application/json", schema: Some(schema_of::<T>) }
}

pub(super) const fn text(status: u16, content_type: &'static str) -> Answer {
    Answer { status, content_type, schema: None }
}

pub(super) const fn html(status: u16) -> Answer {
    text(status, "text/html; charset=utf-8")
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

pub(super) async fn endpoint() -> Json<&'static Value> {
    Json(&DOCUMENT)
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut generator = settings.with(|s| s.definitions_path = "/components/schemas".into()).into_generator();
    let paths: Map<String, Value> = ENDPOINTS
        .iter()
        .map(|endpoint| {
            let method = if endpoint.acts { "post" } else { "get" };
            (endpoint.path.to_owned(), json!({ method: operation(endpoint, &mut generator) }))
        })
        .collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Perennial",
            "description": "How a job is, and what it can be told to do. Times are UTC with microseconds.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

/// How those are answered who do not show the token.
static REFUSALS: [Answer; 2] = [json_of::<act::Refusal>(401), json_of::<act::Refusal>(403)];

fn operation(endpoint: &Endpoint, generator: &mut SchemaGenerator) -> Value {
    let refusals = if endpoint.acts { &REFUSALS[..] } else { &[] };
    let mut answers = Map::new();
    for answer in endpoint.answers.iter().chain(refusals) {
        let schema = answer.schema.map_or_else(|| json!({ "type": "string" }), |schema| schema(generator).to_value());
        let words = axum::http::StatusCode::from_u16(answer.status).ok().and_then(|status| status.canonical_reason());
        let content = json!({ answer.content_type: { "schema": schema } });
        answers.insert(answer.status.to_string(), json!({ "description": words, "content": content }));
    }
    let mut operation = json!({ "summary": endpoint.what, "responses": answers });
    if endpoint.path.contains("{query}") {
        let name = json!({ "name": "query", "in": "path", "required": true, "schema": { "type": "string" } });
        operation["parameters"] = json!([name]);
    }
    if let Some(body) = endpoint.body {
        let schema = body(generator).to_value();
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if endpoint.acts {
        operation["security"] = json!([{ "token": [] }]);
    }
    operation
}
