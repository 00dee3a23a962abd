//! The job that a case is: as somebody would have written it who moves a query from Spark.

use std::collections::BTreeMap;

use perennial::connectors::format::{Format, JsonFormat, Mode};
use perennial::{Job, JobQuery, JobSource, JobTable, schema};
use perennial_core::config::HumanDuration;
use perennial_core::sink::OutputMode;
use perennial_core::watermark::WatermarkPolicy;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use crate::case::{Case, Source, lines};
use crate::outside::{Lines, Target, Units};

/// Name of the one query.
pub const QUERY: &str = "query";

/// Spark's `spark.sql.shuffle.partitions` of the recordings.
const PARTITIONS: usize = 2;

/// The outside of a case.
#[derive(Debug, Default)]
pub struct Outside {
    /// The streams.
    pub streams: BTreeMap<String, Units>,
    /// The target.
    pub target: Target,
}

impl Outside {
    /// The outside of a case that has not begun.
    pub fn new(case: &Case) -> Self {
        let streams = case.sources.keys().map(|name| (name.clone(), Units::default()));
        Self { streams: streams.collect(), target: Target::default() }
    }
}

/// The job of a case. The error is the job's refusal: what `check` says of it.
pub fn job(case: &Case, outside: &Outside) -> Result<Job, String> {
    let mut builder = Job::builder("conformance").parallelism(PARTITIONS);
    for (name, units) in &outside.streams {
        let source = case.sources.get(name).ok_or_else(|| format!("there is no source {name}"))?;
        builder = builder.source(name, job_source(source, units.clone())?);
    }
    for (name, table) in &case.static_tables {
        let rows = Lines(lines(&table.rows).into());
        let columns = schema(&table.schema).map_err(|error| error.to_string())?;
        builder = builder.table(name, JobTable::new(rows, columns).format(json(&BTreeMap::new())?));
    }
    let mode: StrDeserializer<'_, ValueError> = case.output_mode.as_str().into_deserializer();
    let mode = OutputMode::deserialize(mode).map_err(|error| error.to_string())?;
    let mut query = JobQuery::new(&case.sql, outside.target.clone()).output_mode(mode);
    for (setting, value) in &case.conf {
        query = match (setting.as_str(), value.as_str()) {
            ("spark.sql.streaming.multipleWatermarkPolicy", "min") => query.watermark_policy(WatermarkPolicy::Min),
            ("spark.sql.streaming.multipleWatermarkPolicy", "max") => query.watermark_policy(WatermarkPolicy::Max),
            ("spark.sql.streaming.noDataMicroBatches.enabled", "true" | "false") => {
                query.no_data_batches(value == "true")
            }
            ("spark.sql.session.timeZone", zone) => {
                builder = builder.time_zone(zone);
                query
            }
            _ => return Err(format!("the setting {setting} = {value} is not known")),
        };
    }
    builder.query(QUERY, query).build().map_err(|error| error.to_string())
}

fn job_source(source: &Source, units: Units) -> Result<JobSource, String> {
    let columns = schema(&source.schema).map_err(|error| error.to_string())?;
    let mut job = JobSource::new(units, columns).format(json(&source.reader_options)?);
    if let Some(watermark) = &source.watermark {
        let delay: HumanDuration = watermark.delay.parse()?;
        job = job.watermark(&watermark.column, delay.0);
    }
    if let Some(deduplicate) = &source.deduplicate {
        job = job.deduplicate(&deduplicate.columns, deduplicate.within_watermark);
    }
    Ok(job)
}

/// The JSON format with the options of Spark's reader, whose names know no case.
fn json(options: &BTreeMap<String, String>) -> Result<Format, String> {
    let mut format = JsonFormat { mode: Mode::Permissive, ..JsonFormat::default() };
    for (option, value) in options {
        let flag = || value.parse().map_err(|_| format!("the reader's option {option} is {value}"));
        match option.to_ascii_lowercase().as_str() {
            "mode" => {
                format.mode = match value.to_ascii_uppercase().as_str() {
                    "PERMISSIVE" => Mode::Permissive,
                    "DROPMALFORMED" => Mode::Dropmalformed,
                    "FAILFAST" => Mode::Failfast,
                    _ => return Err(format!("the reader's mode {value} is not known")),
                }
            }
            "columnnameofcorruptrecord" => format.corrupt_record_column = value.clone(),
            "timezone" => format.time_zone = Some(value.clone()),
            "timestampformat" => format.timestamp_format = Some(value.clone()),
            "timestampntzformat" => format.timestamp_ntz_format = Some(value.clone()),
            "dateformat" => format.date_format = Some(value.clone()),
            "allowcomments" => format.allow_comments = flag()?,
            "allowunquotedfieldnames" => format.allow_unquoted_field_names = flag()?,
            "allowsinglequotes" => format.allow_single_quotes = flag()?,
            "allownumericleadingzeros" => format.allow_numeric_leading_zeros = flag()?,
            "allownonnumericnumbers" => format.allow_non_numeric_numbers = flag()?,
            "allowbackslashescapinganycharacter" => format.allow_backslash_escaping_any_character = flag()?,
            "allowunquotedcontrolchars" => format.allow_unquoted_control_chars = flag()?,
            _ => return Err(format!("the reader's option {option} is not known")),
        }
    }
    Ok(Format::Json(format))
}
