//! DataFusion's errors as Perennial's: classified by their root cause, with Spark's condition names and positions in the SQL.

use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::dialect::SparkSqlDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use perennial_core::error::{Error, ErrorClass, class};

/// A refusal on its way through DataFusion's planner.
pub(crate) fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// What happened while a batch ran. The root cause decides: an error of an input stream comes out as it went in.
pub(crate) fn execution_error(error: DataFusionError) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(error) => *error,
            Err(inner) => Error::bug(inner.to_string()),
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => execution_error(*inner),
        // An error that several partitions share cannot be moved out: it keeps its class and its text.
        DataFusionError::Shared(shared) => Error::new(class_of(&shared), message_of(&shared)),
        DataFusionError::Collection(mut errors) if !errors.is_empty() => execution_error(errors.swap_remove(0)),
        DataFusionError::ArrowError(inner, _) => match *inner {
            ArrowError::ExternalError(inner) => match inner.downcast::<DataFusionError>() {
                Ok(error) => execution_error(*error),
                Err(inner) => Error::bug(inner.to_string()),
            },
            ArrowError::DivideByZero => Error::new(class::EXPRESSION_FAILED, DIVIDE_BY_ZERO),
            inner => Error::from(inner),
        },
        error => Error::new(class_of(&error), message_of(&error)).caused_by(error),
    }
}

const DIVIDE_BY_ZERO: &str = "DIVIDE_BY_ZERO: division by zero: use try_divide() to get NULL, or filter such rows";

/// Messages of DataFusion that say what a condition of Spark says.
const MESSAGES: &[(&str, &str)] = &[
    ("map key must be unique", "DUPLICATED_MAP_KEY"),
    ("map key cannot be null", "NULL_MAP_KEY"),
    ("Aggregate functions are not allowed in the WHERE clause", "INVALID_WHERE_CONDITION"),
    ("Aggregate function calls cannot be nested", "NESTED_AGGREGATE_FUNCTION"),
    ("requires a boolean expression", "DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE"),
    ("Cannot infer common argument type", "DATATYPE_MISMATCH.BINARY_OP_DIFF_TYPES"),
    ("Cannot infer common type for bitwise operation", "DATATYPE_MISMATCH.BINARY_OP_WRONG_TYPE"),
];

fn class_of(error: &DataFusionError) -> &'static ErrorClass {
    match error.find_root() {
        DataFusionError::External(inner) => inner.downcast_ref::<Error>().map_or(class::INTERNAL, Error::class),
        DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
            ArrowError::ArithmeticOverflow(_)
            | ArrowError::DivideByZero
            | ArrowError::CastError(_)
            | ArrowError::ParseError(_)
            | ArrowError::InvalidArgumentError(_)
            | ArrowError::ComputeError(_) => class::EXPRESSION_FAILED,
            _ => class::INTERNAL,
        },
        DataFusionError::Execution(_) => class::EXPRESSION_FAILED,
        DataFusionError::ResourcesExhausted(_) => class::MEMORY_LIMIT,
        _ => class::INTERNAL,
    }
}

fn message_of(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::External(inner) => inner.to_string(),
        DataFusionError::Execution(message) => match MESSAGES.iter().find(|(theirs, _)| message.contains(theirs)) {
            Some((_, condition)) => format!("{condition}: {message}"),
            None => message.clone(),
        },
        DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
            ArrowError::DivideByZero => DIVIDE_BY_ZERO.to_owned(),
            inner => inner.to_string(),
        },
        root => root.strip_backtrace(),
    }
}

/// What is wrong with a SQL text, in Spark's words where Spark has some, with the position in the text.
pub(crate) fn planning_error(error: DataFusionError, sql: &str) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(error) => *error,
            Err(inner) => Error::new(class::ANALYSIS, inner.to_string()),
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => planning_error(*inner, sql),
        DataFusionError::Collection(mut errors) if !errors.is_empty() => planning_error(errors.swap_remove(0), sql),
        DataFusionError::SQL(inner, _) => syntax_error(&inner),
        DataFusionError::SchemaError(inner, _) => schema_error(&inner, sql),
        error => plain_error(&error, sql),
    }
}

/// The message of the SQL parser; it already names line and column.
pub(crate) fn syntax_error(error: &ParserError) -> Error {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => "the expression is nested too deeply",
    };
    Error::new(class::ANALYSIS, format!("PARSE_SYNTAX_ERROR: the SQL does not parse: {text}"))
}

fn schema_error(error: &SchemaError, sql: &str) -> Error {
    let message = match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let mut known: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            unresolved("UNRESOLVED_COLUMN", "column", &field.name, &known, sql)
        }
        SchemaError::AmbiguousReference { field } => format!(
            "AMBIGUOUS_REFERENCE: the column `{}` is in several tables{}: write the table before it, as in `t.{}`",
            field.name,
            position(sql, &field.name),
            field.name
        ),
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            format!("COLUMN_ALREADY_EXISTS: two columns have the name `{name}`: give one of them another with AS")
        }
    };
    Error::new(class::ANALYSIS, message)
}

/// Names that were not found, with the nearest known ones.
fn unresolved(condition: &str, what: &str, name: &str, known: &[&str], sql: &str) -> String {
    let at = position(sql, name);
    if known.is_empty() {
        return format!("{condition}.WITHOUT_SUGGESTION: there is no {what} `{name}`{at}");
    }
    let mut nearest: Vec<&str> = known.to_vec();
    nearest.sort_by_key(|candidate| {
        datafusion::common::utils::datafusion_strsim::levenshtein(
            &candidate.to_ascii_lowercase(),
            &name.to_ascii_lowercase(),
        )
    });
    let list: Vec<String> = nearest.iter().take(5).map(|name| format!("`{name}`")).collect();
    format!("{condition}.WITH_SUGGESTION: there is no {what} `{name}`{at}: did you mean one of {}?", list.join(", "))
}

/// Errors that DataFusion only has as text.
fn plain_error(error: &DataFusionError, sql: &str) -> Error {
    let root = error.find_root();
    let text = root.strip_backtrace();
    let text = text.split("\nThis issue was likely caused by a bug in DataFusion").next().unwrap_or_default();
    if matches!(root, DataFusionError::ArrowError(inner, _) if matches!(inner.as_ref(), ArrowError::DivideByZero)) {
        return Error::new(class::EXPRESSION_FAILED, message_of(error));
    }
    if let Some(what) = text.strip_prefix("This feature is not implemented: ") {
        return Error::new(class::ANALYSIS, format!("UNSUPPORTED_FEATURE: not supported: {what}"));
    }
    let text = text.strip_prefix("Error during planning: ").unwrap_or(text).to_owned();
    let quoted = |from: &str| text.split_once(from).and_then(|(_, rest)| rest.split('\'').next()).map(str::to_owned);
    let message = if let Some(name) = quoted("Invalid function '") {
        let hint = quoted("Did you mean '").map(|near| format!(": did you mean `{near}`?")).unwrap_or_default();
        format!("UNRESOLVED_ROUTINE: there is no function `{name}`{}{hint}", position(sql, &name))
    } else if let Some(name) = quoted("table '").filter(|_| text.contains("not found")) {
        let name = name.rsplit('.').next().unwrap_or_default().to_owned();
        format!(
            "TABLE_OR_VIEW_NOT_FOUND: there is no source `{name}`{}: the query can read the sources of the job file",
            position(sql, &name)
        )
    } else if ["ORDER BY", "HAVING"].iter().any(|part| text.contains(&format!("Column in {part} must be in GROUP BY")))
    {
        format!("UNRESOLVED_COLUMN.WITH_SUGGESTION: {text}")
    } else if text.contains("must appear in the GROUP BY clause") || text.contains("must be in GROUP BY") {
        format!("MISSING_AGGREGATION: {text}")
    } else if let Some((_, condition)) = MESSAGES.iter().find(|(theirs, _)| text.contains(theirs)) {
        format!("{condition}: {text}")
    } else if text.contains("coerce") || text.contains("Cannot infer common") || text.contains("type mismatch") {
        format!("DATATYPE_MISMATCH: {text}")
    } else {
        text
    };
    Error::new(class::ANALYSIS, message)
}

/// `, line L, column C` of the first place where a name stands in the SQL, or nothing.
pub(crate) fn position(sql: &str, name: &str) -> String {
    let Ok(tokens) = Tokenizer::new(&SparkSqlDialect {}, sql).tokenize_with_location() else { return String::new() };
    tokens
        .iter()
        .find(|token| matches!(&token.token, Token::Word(word) if word.value.eq_ignore_ascii_case(name)))
        .map(|token| format!(" (line {}, column {})", token.span.start.line, token.span.start.column))
        .unwrap_or_default()
}

/// A query that Spark refuses, or that cannot be run incrementally yet. `condition` is Spark's name of the refusal.
pub(crate) fn refused(condition: &str, message: impl std::fmt::Display) -> DataFusionError {
    external(Error::new(class::UNSUPPORTED_OPERATION, format!("{condition}: {message}")))
}

/// A query that does not fit its tables, in Spark's words.
pub(crate) fn refused_analysis(condition: &str, message: impl std::fmt::Display) -> DataFusionError {
    external(Error::new(class::ANALYSIS, format!("{condition}: {message}")))
}

/// A row on which an expression fails in ANSI mode. `condition` is Spark's name of the failure.
pub(crate) fn failed(condition: &str, message: impl std::fmt::Display) -> DataFusionError {
    DataFusionError::Execution(format!("{condition}: {message}"))
}

/// A query that Spark runs and Perennial does not.
pub(crate) fn unsupported(message: impl Into<String>) -> DataFusionError {
    external(Error::new(class::STATE_UNSUPPORTED, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_root_cause_decides_the_class() {
        let inner = Error::new(class::CONNECTION_LOST, "the broker went away");
        let wrapped = external(inner).context("outer");
        let error = execution_error(wrapped);
        assert_eq!(error.class(), class::CONNECTION_LOST);
        assert_eq!(error.message(), "the broker went away");

        let shared = DataFusionError::Shared(Arc::new(external(Error::new(class::TIMEOUT, "slow"))));
        assert_eq!(execution_error(shared).class(), class::TIMEOUT);

        let division = DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None);
        assert_eq!(execution_error(division).class(), class::EXPRESSION_FAILED);
    }

    #[test]
    fn names_are_found_in_the_sql() {
        assert_eq!(position("SELECT\n  usr FROM t", "usr"), " (line 2, column 3)");
        assert_eq!(position("SELECT 1", "usr"), "");
    }
}
