use std::fmt::Write as _;
use std::path::Path as FsPath;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use perennial::Job;
use perennial_connectors::storage::{self, StorageOptions};
use perennial_core::error::{Error, Result, ResultExt, class};
use perennial_core::job::QuerySpec;
use perennial_spark_checkpoint::{Directory, Import as SparkImport, Imported, PathMap};
use serde_json::json;

use super::output::Format;
use super::place::Place;
use crate::terminal::Failure;

/// Let a query go on from where Spark stopped, with its state.
///
/// Reads the checkpoint of a Spark query and writes one of Perennial, from which the job's query goes on with the next batch, or with the one that
/// Spark had begun. Spark's directory is only read. The query must do the same as Spark's, over the same sources in the same order; what
/// cannot be taken over exactly is refused. Stop Spark's query first.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  perennial checkpoint import --from-spark /data/checkpoints/per_minute job.yaml per_minute\n  \
                        perennial checkpoint import --from-spark ./spark job.yaml --map-path /mnt/old/in=/data/in --dry-run"
)]
pub struct Import {
    /// Spark's checkpoint: a directory or URL.
    #[arg(long, value_name = "DIR")]
    from_spark: String,

    /// Job file.
    #[arg(value_name = "JOB")]
    job: String,

    /// The query; not needed where there is one.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// Input files that were in FROM are now in TO. Can be given several times.
    #[arg(long = "map-path", value_name = "FROM=TO")]
    paths: Vec<String>,

    /// Read everything and say what would be taken over, and write nothing.
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    format: Format,
}

fn wrong(what: String) -> Error {
    Error::new(class::CONFIG_INVALID, what)
}

impl Import {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let job = Job::from_file(&self.job)?;
        let place = Place::at(&job.checkpoint)?;
        let queries = job.queries().await?;
        let query = one_query(&queries, self.query.as_deref())?;
        let in_place = self.is_place_of(&place, &query.name);
        if in_place && !self.paths.is_empty() {
            return Err(wrong(format!(
                "{} is where the job has its checkpoint: with --map-path, move it elsewhere first",
                self.from_spark
            ))
            .into());
        }
        let from = storage::open(&self.from_spark, &StorageOptions::default()).at(|| self.from_spark.clone())?;
        let from = Directory::new(from.store, Default::default(), self.from_spark.clone());
        let import = SparkImport {
            from: &from,
            env: &place.env,
            job: &job.name,
            query,
            paths: PathMap::new(map_pairs(&self.paths)?),
            in_place,
        };
        let imported = if self.dry_run {
            import.look().await?
        } else {
            let _lock = place.lock(&query.name, false).await?;
            import.run().await?
        };
        self.show(&query.name, &imported)?;
        Ok(ExitCode::SUCCESS)
    }

    fn is_place_of(&self, place: &Place, query: &str) -> bool {
        let own = FsPath::new(&place.absolute()).join(query);
        matches!((FsPath::new(&self.from_spark).canonicalize(), own.canonicalize()), (Ok(from), Ok(own)) if from == own)
    }

    fn show(&self, query: &str, imported: &Imported) -> Result<(), Failure> {
        let mut text = String::new();
        let verb = if self.dry_run { "can be taken over" } else { "was taken over" };
        let _ = match imported.last {
            Some(last) => writeln!(text, "{query} {verb} from Spark, whose last batch was {last}"),
            None => writeln!(text, "{query} {verb} from Spark, which committed no batch"),
        };
        let next = imported.last.map_or(0, |last| last + 1);
        let _ = match imported.again {
            Some(again) => writeln!(text, "  batch {again}, which Spark had begun, runs again with its logged ranges"),
            None => writeln!(text, "  it goes on with batch {next}"),
        };
        if let Some(at) = DateTime::<Utc>::from_timestamp_millis(imported.watermark_ms).filter(|_| imported.watermark_ms > 0) {
            let _ = writeln!(text, "  watermark: {}", at.to_rfc3339());
        }
        for (operator, rows) in &imported.rows {
            let _ = writeln!(text, "  state of {operator}: {rows} rows");
        }
        for (source, files) in &imported.files {
            let _ = writeln!(text, "  source {source}: {files} files were read");
        }
        for note in &imported.notes {
            let _ = writeln!(text, "  note: {note}");
        }
        let named = |list: &[(String, u64)], name: &str, count: &str| -> Vec<serde_json::Value> {
            list.iter().map(|(of, n)| json!({ name: of, count: n })).collect()
        };
        let json = json!({
            "query": query, "done": !self.dry_run, "last_batch": imported.last, "batch_again": imported.again,
            "next_batch": next, "watermark_ms": imported.watermark_ms,
            "state": named(&imported.rows, "operator", "rows"), "sources": named(&imported.files, "source", "files"),
            "notes": imported.notes,
        });
        self.format.print(&text, &json)
    }
}

/// The query that is meant.
pub fn one_query<'a>(queries: &'a [QuerySpec], named: Option<&str>) -> Result<&'a QuerySpec> {
    let names = || queries.iter().map(|query| query.name.as_str()).collect::<Vec<_>>().join(", ");
    match (named, queries) {
        (Some(name), queries) => queries
            .iter()
            .find(|query| query.name == name)
            .ok_or_else(|| wrong(format!("the job has no query {name}; it has {}", names()))),
        (None, [only]) => Ok(only),
        (None, _) => Err(wrong(format!("the job has several queries, name one: {}", names()))),
    }
}

/// What `--map-path` says, with absolute paths.
pub fn map_pairs(given: &[String]) -> Result<Vec<(String, String)>> {
    let absolute = |path: &str| -> Result<String> {
        if path.contains(":/") {
            return Ok(path.to_owned());
        }
        let absolute = std::path::absolute(path).map_err(|error| wrong(format!("--map-path: {path}: {error}")))?;
        Ok(absolute.to_string_lossy().into_owned())
    };
    let pair = |given: &String| {
        let (from, to) = given.split_once('=').ok_or_else(|| wrong(format!("--map-path {given}: write FROM=TO")))?;
        Ok((absolute(from)?, absolute(to)?))
    };
    given.iter().map(pair).collect()
}
