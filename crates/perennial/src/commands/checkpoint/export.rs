use std::fmt::Write as _;
use std::process::ExitCode;

use perennial::Job;
use perennial_connectors::storage::{self, StorageOptions};
use perennial_core::error::ResultExt;
use perennial_spark_checkpoint::{Directory, Export as SparkExport, PathMap};
use serde_json::json;

use super::import::{map_pairs, one_query};
use super::output::Format;
use super::place::Place;
use crate::terminal::Failure;

/// Write a checkpoint from which Spark goes on.
///
/// The logs, and the state of aggregations and deduplications; other state is refused. Spark's query must do the same as the job's, over the same
/// sources in the same order. Spark goes on with the batch after the last one that is committed. Stop the job first: both would work on the same
/// input.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial checkpoint export --to-spark /data/checkpoints/per_minute job.yaml per_minute\n  \
                        perennial checkpoint export --to-spark ./spark job.yaml --partitions 200 --map-path ./in=/mnt/in")]
pub struct Export {
    /// Spark's new checkpoint: a directory or URL where nothing is yet.
    #[arg(long, value_name = "DIR")]
    to_spark: String,

    /// Job file.
    #[arg(value_name = "JOB")]
    job: String,

    /// The query; not needed where there is one.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// In how many partitions Spark has the state (`spark.sql.shuffle.partitions`). By default as many as it had, or as the job has.
    #[arg(long, value_name = "NUMBER")]
    partitions: Option<usize>,

    /// Input files that are in FROM will be in TO. Can be given several times.
    #[arg(long = "map-path", value_name = "FROM=TO")]
    paths: Vec<String>,

    #[command(flatten)]
    format: Format,
}

impl Export {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let job = Job::from_file(&self.job)?;
        let place = Place::at(&job.checkpoint)?;
        let queries = job.queries().await?;
        let query = one_query(&queries, self.query.as_deref())?;
        let name = place.query(Some(&query.name)).await?;
        let survey = place.survey(&name).await?;
        let to = storage::open(&self.to_spark, &StorageOptions::default()).at(|| self.to_spark.clone())?;
        let to = Directory::new(to.store, Default::default(), self.to_spark.clone());
        let export = SparkExport {
            to: &to,
            env: &place.env,
            query,
            survey: &survey,
            paths: PathMap::new(map_pairs(&self.paths)?),
            partitions: self.partitions,
        };
        let exported = export.run().await?;
        let mut text = format!(
            "{name} was written for Spark to {}; it goes on with batch {}\n",
            self.to_spark,
            exported.last + 1
        );
        for (operator, rows) in &exported.rows {
            let _ = writeln!(text, "  state of {operator}: {rows} rows in {} partitions", exported.partitions);
        }
        let state: Vec<_> =
            exported.rows.iter().map(|(operator, rows)| json!({ "operator": operator, "rows": rows })).collect();
        let json = json!({
            "query": name, "last_batch": exported.last, "next_batch": exported.last + 1,
            "partitions": exported.partitions, "state": state,
        });
        self.format.print(&text, &json)?;
        Ok(ExitCode::SUCCESS)
    }
}
