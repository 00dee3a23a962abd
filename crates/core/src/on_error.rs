//! What happens with errors of which class: the job file's `on_error`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{CATALOGUE, ErrorClass, ErrorKind, class};
use crate::policy::RetryPolicy;

/// What is done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reaction {
    /// The batch is tried again with growing waits, then behind the circuit breaker; `None`: as the job's `retry` says.
    Retry(Option<RetryPolicy>),
    /// The rows that are at fault are found by bisection and go to the dead letters; the rest of the batch is processed.
    Isolate,
    /// All rows of the batch go to the dead letters, and the next batch follows.
    DeadLetterBatch,
    /// The query waits until a person resumes it.
    Pause,
    /// The query stops; the others go on.
    Stop,
}

const WORDS: [(&str, Reaction); 5] = [
    ("retry", Reaction::Retry(None)),
    ("isolate", Reaction::Isolate),
    ("dead_letter_batch", Reaction::DeadLetterBatch),
    ("pause", Reaction::Pause),
    ("stop", Reaction::Stop),
];

static NAMES: LazyLock<[&str; WORDS.len()]> = LazyLock::new(|| WORDS.map(|(name, _)| name));

/// Classes whose errors are the fault of single rows.
const OF_ROWS: [&ErrorClass; 3] = [class::EXPRESSION_FAILED, class::CONSTRAINT_VIOLATION, class::SINK_REJECTED];

impl Reaction {
    /// Why this cannot be done about errors of a class; `None` where it can.
    pub fn objection(&self, class: &'static ErrorClass) -> Option<String> {
        let final_kinds = [ErrorKind::Fenced, ErrorKind::Corrupt, ErrorKind::Bug];
        match self {
            Self::Isolate if !OF_ROWS.contains(&class) => {
                let of_rows: Vec<&str> = OF_ROWS.iter().map(|class| class.code).collect();
                Some(format!("no single row is at fault for {}; isolate is for {}", class.code, of_rows.join(", ")))
            }
            Self::DeadLetterBatch if !matches!(class.kind, ErrorKind::Data | ErrorKind::Schema) => {
                Some(format!("{} is not the fault of the rows, and good rows are no dead letters", class.code))
            }
            Self::Retry(_) | Self::Pause if final_kinds.contains(&class.kind) => {
                Some(format!("{} always stops the query: going on could lose or double rows", class.code))
            }
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Reaction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reactions;
        impl<'de> Visitor<'de> for Reactions {
            type Value = Reaction;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("retry, isolate, dead_letter_batch, pause, stop, or `retry: { … }`")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Reaction, E> {
                let found = WORDS.iter().find(|(name, _)| *name == word).map(|(_, reaction)| *reaction);
                found.ok_or_else(|| E::unknown_variant(word, &*NAMES))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Reaction, A::Error> {
                match map.next_key::<String>()?.as_deref() {
                    Some("retry") => Ok(Reaction::Retry(Some(map.next_value()?))),
                    Some(other) => Err(de::Error::unknown_field(other, &["retry"])),
                    None => Err(de::Error::missing_field("retry")),
                }
            }
        }
        deserializer.deserialize_any(Reactions)
    }
}

impl JsonSchema for Reaction {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Reaction".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What is done about an error: a word, or `retry` with its own settings.",
            "oneOf": [
                { "enum": *NAMES },
                {
                    "type": "object",
                    "properties": { "retry": generator.subschema_for::<RetryPolicy>() },
                    "required": ["retry"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

/// What can stand as a key.
static CODES: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| CATALOGUE.iter().map(|class| class.code).chain(["default"]).collect());

/// What happens with errors of which class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OnError {
    /// By the code of the class.
    pub classes: BTreeMap<&'static str, Reaction>,
    /// All others.
    pub default: Option<Reaction>,
}

impl OnError {
    /// Rows on which an expression fails go to the dead letters; all else as usual.
    pub fn dead_letter() -> Self {
        Self { classes: BTreeMap::from([(class::EXPRESSION_FAILED.code, Reaction::Isolate)]), default: None }
    }

    /// What is not said here as `general` says.
    #[must_use]
    pub fn or(mut self, general: &Self) -> Self {
        // A default that is nearer counts for more than a class that is further away.
        if self.default.is_none() {
            for (class, reaction) in &general.classes {
                self.classes.entry(class).or_insert(*reaction);
            }
            self.default = general.default;
        }
        self
    }

    /// What is done about an error of this class.
    pub fn reaction(&self, class: &'static ErrorClass) -> Reaction {
        if let Some(reaction) = self.classes.get(class.code) {
            return *reaction;
        }
        match self.default {
            Some(reaction) if reaction.objection(class).is_none() => reaction,
            _ => usual(class),
        }
    }

    /// Classes for which the reaction makes no sense, and why.
    pub fn objections(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.classes.iter().filter_map(|(code, reaction)| {
            let class = CATALOGUE.iter().find(|class| class.code == *code)?;
            Some((*code, reaction.objection(class)?))
        })
    }
}

/// What is done where the job file says nothing: what can go away by itself is tried again for ever, because a job outlives every outage; so
/// are credentials, which are often only late. Rows that the target refuses are set aside. What else a person must decide stops the query.
pub fn usual(class: &'static ErrorClass) -> Reaction {
    let late = [
        class::AUTHENTICATION_FAILED,
        class::AUTHORIZATION_FAILED,
        class::TLS_FAILED,
        class::TARGET_MISSING,
        class::STORAGE_PERMISSION_DENIED,
        class::STORAGE_AUTHENTICATION_FAILED,
    ];
    match class.kind {
        ErrorKind::Transient | ErrorKind::Throttled => Reaction::Retry(None),
        ErrorKind::Config if late.contains(&class) => Reaction::Retry(None),
        ErrorKind::Data if [class::CONSTRAINT_VIOLATION, class::SINK_REJECTED].contains(&class) => Reaction::Isolate,
        _ => Reaction::Stop,
    }
}

impl Serialize for OnError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let default = self.default.as_ref().map(|reaction| ("default", reaction));
        serializer.collect_map(self.classes.iter().map(|(code, reaction)| (*code, reaction)).chain(default))
    }
}

impl<'de> Deserialize<'de> for OnError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Classes;
        impl<'de> Visitor<'de> for Classes {
            type Value = OnError;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "fail, dead_letter, or what to do by class of error, such as `{ ConstraintViolation: isolate }`",
                )
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<OnError, E> {
                match word {
                    "fail" => Ok(OnError::default()),
                    "dead_letter" => Ok(OnError::dead_letter()),
                    _ => Err(E::unknown_variant(word, &["fail", "dead_letter"])),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OnError, A::Error> {
                let mut on_error = OnError::default();
                while let Some(code) = map.next_key::<String>()? {
                    if code == "default" {
                        on_error.default = Some(map.next_value()?);
                        continue;
                    }
                    let Some(class) = CATALOGUE.iter().find(|class| class.code == code) else {
                        return Err(de::Error::unknown_field(&code, CODES.as_slice()));
                    };
                    on_error.classes.insert(class.code, map.next_value()?);
                }
                Ok(on_error)
            }
        }
        deserializer.deserialize_any(Classes)
    }
}

impl JsonSchema for OnError {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OnError".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let reaction = generator.subschema_for::<Reaction>();
        let properties: serde_json::Map<String, serde_json::Value> =
            CODES.iter().map(|code| ((*code).to_owned(), reaction.clone().to_value())).collect();
        json_schema!({
            "description": "What happens with errors: `fail` (as in Spark), `dead_letter` (rows on which an expression fails go to the dead letters), \
                            or what to do by class of error (`perennial errors` lists them), such as `{ ConstraintViolation: isolate, default: stop }`.",
            "oneOf": [
                { "enum": ["fail", "dead_letter"] },
                { "type": "object", "properties": properties, "additionalProperties": false },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> Result<OnError, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_class_counts_before_the_default_and_the_query_before_the_job() {
        let job =
            parsed(r#"{"ConstraintViolation": "stop", "Throttled": {"retry": {"initial": "5s"}}, "default": "pause"}"#)
                .unwrap();
        let query = parsed(r#"{"ConstraintViolation": "isolate"}"#).unwrap().or(&job);
        assert_eq!(query.reaction(class::CONSTRAINT_VIOLATION), Reaction::Isolate);
        assert!(
            matches!(query.reaction(class::THROTTLED), Reaction::Retry(Some(policy)) if policy.initial.0.as_secs() == 5)
        );
        assert_eq!(query.reaction(class::TIMEOUT), Reaction::Pause);
        assert_eq!(query.reaction(class::FENCED), Reaction::Stop, "a default cannot make it go on");
        let own = parsed(r#"{"default": "stop"}"#).unwrap().or(&job);
        assert_eq!(own.reaction(class::THROTTLED), Reaction::Stop);
    }

    #[test]
    fn words_are_those_of_spark_users() {
        assert_eq!(parsed(r#""fail""#).unwrap().reaction(class::EXPRESSION_FAILED), Reaction::Stop);
        assert_eq!(parsed(r#""dead_letter""#).unwrap().reaction(class::EXPRESSION_FAILED), Reaction::Isolate);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (text, said) in [
            (r#""deadletter""#, "expected `fail` or `dead_letter`"),
            (r#"{"Timout": "retry"}"#, "unknown field `Timout`"),
            (r#"{"Timeout": "wait"}"#, "unknown variant `wait`"),
            (r#"{"Timeout": {"again": {}}}"#, "unknown field `again`"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        for (text, said) in [
            (r#"{"Timeout": "isolate"}"#, "no single row is at fault"),
            (r#"{"ConnectionRefused": "dead_letter_batch"}"#, "good rows are no dead letters"),
            (r#"{"Fenced": "retry"}"#, "always stops"),
        ] {
            let objections: Vec<_> = parsed(text).unwrap().objections().map(|(_, why)| why).collect();
            assert!(objections.len() == 1 && objections[0].contains(said), "{text}: {objections:?}");
        }
        assert_eq!(parsed(r#"{"SinkRejected": "dead_letter_batch"}"#).unwrap().objections().count(), 0);
    }
}
