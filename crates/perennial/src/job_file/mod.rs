//! The job file.
//!
//! The structs here are the single place where a setting is described: parsing, the JSON Schema (`perennial schema`), the reference page
//! (`docs/job-file.md`), the file that `perennial init` writes and the checks come from them and their doc comments.

mod connector;
mod expand;
mod init;
mod problem;
mod read;
mod schema;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use perennial_connectors::dead_letters::PostgresLetters;
use perennial_connectors::format::Format;
use perennial_connectors::registry::{SinkConfig, SourceConfig, TableConfig};
use perennial_core::alert::Severity;
use perennial_core::config::{ByteSize, HumanDuration, Secret};
use perennial_core::expectation::OnViolation;
use perennial_core::guarantee::Guarantee;
use perennial_core::on_error::OnError;
use perennial_core::pace::PaceSettings;
use perennial_core::policy::{BreakerPolicy, RetryPolicy};
use perennial_core::sink::OutputMode;
use perennial_core::table::Refresh;
use perennial_core::watermark::{OnLate, WatermarkAfterRestart, WatermarkPolicy};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use expand::{Lookup, ProcessLookup};
pub use init::example;
pub(crate) use problem::nearest;
pub use problem::{JobFileError, Location, Problem};
pub use schema::{json_schema, reference_page};

/// A job: where records come from, what is made of them, where that goes.
///
/// A minimal job is a source, a query and a sink; everything else has a default. `${VAR}`, `${VAR:-default}` and `${file:/path}` are
/// expanded in all values (`$${` stands for `${` itself). Durations are written as people write them: `30s`, `10 minutes`. Relative paths
/// start at the directory in which the program is started.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// Name of the job, as sinks, consumer groups and monitors see it. Letters, digits, `_`, `-` and `.`. By default the name of the file
    /// without its extension. A job that is renamed is another job to its sinks.
    #[serde(default)]
    pub name: Option<String>,
    /// Version of the job, for people: it stands in the health answer and in the dead letters.
    #[serde(default = "default_version")]
    pub version: String,
    /// The sources by name. The name is the table name in SQL.
    pub sources: BTreeMap<String, SourceSettings>,
    /// Bounded tables by name, for the queries to join their sources with. The name is the table name in SQL.
    #[serde(default)]
    pub tables: BTreeMap<String, TableSettings>,
    /// The queries by name. Each has its own checkpoint; they fail and recover apart from each other.
    pub queries: BTreeMap<String, QuerySettings>,
    /// When a batch starts: `as_fast_as_possible` (when the one before is done and there is something new), `{ every: 10 seconds }`, or
    /// `available_now` (everything that is there when the job starts, and then the job ends).
    #[serde(default)]
    pub trigger: Trigger,
    /// Directory (or `s3://bucket/prefix`) of the checkpoints, one directory below it per query. By default `./checkpoints/<name>`. It is
    /// what makes a restart continue: keep it as long as the job.
    #[serde(default)]
    pub checkpoint: Option<String>,
    /// Where records go that cannot be processed.
    #[serde(default)]
    pub dead_letters: DeadLetterSettings,
    /// How a query is tried again after an error that may go away by itself.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// When to stop trying for a while.
    #[serde(default)]
    pub circuit_breaker: BreakerPolicy,
    /// What is done about errors, by class (`perennial errors` lists them): `retry` (or `retry: { … }` with settings of its own), `isolate` (the rows
    /// at fault are found by bisection and go to the dead letters), `dead_letter_batch` (all rows of the batch do), `pause` (until a person
    /// resumes the query) or `stop`. `default` is for all classes that are not named. By default what can go away by itself is tried again,
    /// rows that a sink refuses are isolated where the sink can tell, and all else stops the query.
    #[serde(default)]
    pub on_error: OnError,
    /// The guarantee that every query must give. The guarantee is computed from source, query and sink; when one of them gives less, the
    /// job does not start. By default none is demanded.
    #[serde(default)]
    pub guarantee: Option<Guarantee>,
    /// The HTTP server for health and metrics.
    #[serde(default)]
    pub http: HttpSettings,
    /// When the job counts as healthy.
    #[serde(default)]
    pub health: HealthSettings,
    /// Who is told when something is wrong. `perennial alerts` lists the rules.
    #[serde(default)]
    pub alerts: AlertSettings,
    /// Traces and metrics that the job sends to others.
    #[serde(default)]
    pub telemetry: TelemetrySettings,
    /// Time zone of the session: for dates and times without one, and for functions such as `hour`. A name such as `Europe/Berlin`, or an
    /// offset such as `+02:00`.
    #[serde(default = "default_time_zone")]
    pub time_zone: String,
    /// In how many partitions a query works and keeps its state. By default the number of cores.
    #[serde(default)]
    pub parallelism: Option<usize>,
    /// How many of the last batches keep their logs and their state in the checkpoint, so that one can go back to them; at least 2.
    #[serde(default = "default_batches_to_retain")]
    pub batches_to_retain: u64,
    /// For how long the process that runs the job is taken for alive after its last sign of life in the checkpoint; it gives three in that time.
    /// Then a process that was started with `--standby` takes over.
    #[serde(default = "default_lease")]
    pub lease: HumanDuration,
    /// Where the state of the queries is while they run.
    #[serde(default)]
    pub state: StateSettings,
    /// How much memory the queries may take together.
    #[serde(default)]
    pub memory: MemorySettings,
    /// Lets the size of batches follow the time that they take: after a downtime a query catches up in batches that grow from small ones, and a
    /// sink that gets slower gets smaller ones. By default a batch takes all that is there, as far as the sources' own limits allow.
    #[serde(default)]
    pub backpressure: Option<PaceSettings>,
}

fn default_version() -> String {
    "1.0".into()
}

fn default_time_zone() -> String {
    "UTC".into()
}

/// Where records come from, and what they look like.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// The connector and its settings, under its own key.
    pub connector: SourceConfig,
    /// All but the connector.
    pub records: RecordSettings,
}

/// What the records of a source look like.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordSettings {
    /// The format of a record: just its name, or its name with options.
    #[serde(default)]
    pub format: Format,
    /// The columns, as Spark DDL: `sensor_id STRING NOT NULL, event_time TIMESTAMP, temperature DOUBLE`. `NOT NULL` is a rule that a record
    /// can break.
    pub schema: Ddl,
    /// Event time: how long to wait for records that come late. Without it windows never close.
    #[serde(default)]
    pub watermark: Option<WatermarkSettings>,
    /// Which records are duplicates of earlier ones, and dropped.
    #[serde(default)]
    pub deduplicate: Option<DeduplicateSettings>,
    /// Rules that every record must keep, by name.
    #[serde(default)]
    pub expectations: BTreeMap<String, ExpectationSettings>,
}

/// How late a record may come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WatermarkSettings {
    /// The column with the event time; a `TIMESTAMP`.
    pub column: String,
    /// How far behind the newest event time the watermark stays. Records behind the watermark are late.
    pub delay: HumanDuration,
    /// Whether each Kafka partition has a watermark of its own, and the slowest decides: so that catching up after a downtime does not
    /// make late what stands in the slower ones. As in Spark the newest record of all decides by default.
    #[serde(default)]
    pub per_partition: bool,
    /// With `per_partition`: after how long without a record (by the clock, at the times of the batches) a partition no longer holds the
    /// others back. By default never: a partition that falls silent holds the watermark until it speaks again.
    #[serde(default)]
    pub idle_after: Option<HumanDuration>,
}

/// Dropping the duplicates of a source, before any query sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeduplicateSettings {
    /// The columns whose values together tell duplicates. With the watermark's column among them a record is remembered until the watermark
    /// reaches its event time, without it for ever.
    pub columns: Vec<String>,
    /// A record is remembered only until the watermark is past its event time by the watermark's delay (Spark's
    /// `dropDuplicatesWithinWatermark`).
    #[serde(default)]
    pub within_watermark: bool,
}

/// A rule for the records of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectationSettings {
    /// A Spark SQL condition over the columns of the source: `battery BETWEEN 0 AND 100`. NULL breaks a rule.
    pub check: String,
    /// What happens to a record that breaks the rule.
    #[serde(default)]
    pub on_violation: OnViolation,
}

/// A bounded table that queries join their sources with.
#[derive(Debug, Clone)]
pub struct TableSettings {
    /// The connector and its settings, under its own key.
    pub connector: TableConfig,
    /// All but the connector.
    pub records: TableRows,
}

/// What the rows of a table look like, and how long they are good.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableRows {
    /// The format of the files: just its name, or its name with options. By default `json`. A record that cannot be decoded fails the batch,
    /// unless the format's `mode` is `permissive` or `dropmalformed`. A table of a database has none.
    #[serde(default)]
    pub format: Option<Format>,
    /// The columns, as Spark DDL: `sensor_id STRING NOT NULL, plant STRING`. Others that the table has are not read.
    pub schema: Ddl,
    /// When the table is read anew: `every_batch`, as Spark does; by the first batch that begins a duration (`5 minutes`) after the last
    /// reading; or `never` again after the start, for a table that does not change. Only with `never` does a batch that is run again surely
    /// have the same rows, so the other two make the guarantee at least once where the sink writes what it is given.
    #[serde(default)]
    pub refresh: Refresh,
}

/// What is made of the records, and where it goes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuerySettings {
    /// One `SELECT` in Spark SQL over the sources.
    pub sql: String,
    /// Which rows of the result a batch writes: `append` only those that never change again, `update` those that changed, `complete` the
    /// whole result each time.
    #[serde(default)]
    pub output_mode: OutputMode,
    /// What happens when an expression fails on a row (a cast, an overflow, a division by zero): `fail` stops the query, as Spark does;
    /// `dead_letter` sends exactly that row, whole, to the dead letters and processes the rest. Or what to do by class of error, as in the
    /// job's `on_error`, which counts where nothing is said here.
    #[serde(default)]
    pub on_error: OnError,
    /// What happens to rows that come when the watermark has passed their event time: `drop`, they are left out and counted, as in Spark;
    /// `dead_letter`, their records go to the dead letters, whole, with the watermark that they missed. A record that is late for some of its
    /// windows only is not a dead letter: the others have it.
    #[serde(default)]
    pub late: OnLate,
    /// How the watermarks of several sources become one: `min`, the slowest source decides, and nothing is late that one of them still
    /// holds back; `max`, the fastest decides.
    #[serde(default)]
    pub watermark_policy: WatermarkPolicy,
    /// What a restart does to the watermarks of the single sources: `keep`, so that a restart changes no result; `spark`, they are
    /// forgotten, and the query's watermark waits until each source has spoken again.
    #[serde(default)]
    pub watermark_after_restart: WatermarkAfterRestart,
    /// Whether a batch without data follows a batch that moved the watermark, to write what became final. Without it that waits for the
    /// next records.
    #[serde(default = "yes")]
    pub no_data_batches: bool,
    /// Where the result goes: the name of a sink with its settings.
    pub sink: SinkConfig,
}

fn yes() -> bool {
    true
}

pub(crate) fn default_lease() -> HumanDuration {
    HumanDuration(Duration::from_secs(10))
}

/// Spark's `spark.sql.streaming.minBatchesToRetain`.
pub(crate) fn default_batches_to_retain() -> u64 {
    100
}

/// When a batch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// When the batch before is done and there is something new.
    #[default]
    AsFastAsPossible,
    /// At fixed intervals. A batch that takes longer delays the next one; `0s` is `as_fast_as_possible`.
    Every(HumanDuration),
    /// Everything that is there at the start is worked off in batches; then the job ends.
    AvailableNow,
}

impl From<Trigger> for perennial_core::job::Trigger {
    fn from(trigger: Trigger) -> Self {
        match trigger {
            Trigger::AsFastAsPossible => Self::Every(Duration::ZERO),
            Trigger::Every(interval) => Self::Every(interval.0),
            Trigger::AvailableNow => Self::AvailableNow,
        }
    }
}

/// Where records go that cannot be processed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetterSettings {
    /// Directory of the dead letters, or an `s3://` URL. Default: `./dlq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Instead of `path`: dead letters in a PostgreSQL database. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresLetters>,
    /// For how long entries and their records are kept. From files they are removed by whole days (UTC), so some stay up to a day longer.
    pub retention: HumanDuration,
}

impl Default for DeadLetterSettings {
    fn default() -> Self {
        Self { path: None, postgres: None, retention: HumanDuration(Duration::from_secs(30 * 86_400)) }
    }
}

impl DeadLetterSettings {
    /// The directory or URL, where they go to files.
    pub fn directory(&self) -> Option<&str> {
        self.postgres.is_none().then(|| self.path.as_deref().unwrap_or("./dlq"))
    }
}

/// Where the state of the queries is while they run. What makes it survive a restart is the checkpoint, whatever stands here, so the
/// settings can be changed from one start to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StateSettings {
    /// `memory` is fastest. `disk` is for more state than fits into memory: the rows are on a local disk, and those of the last batches in
    /// memory.
    pub backend: StateBackend,
    /// With `disk`, a directory on a fast local disk, for this job alone. By default `./state/<name>`. What is in it is removed at each start
    /// and loaded anew from the checkpoint; it needs about as much room as the state has in the checkpoint, twice.
    pub directory: Option<String>,
    /// With `disk`, memory per query for rows that were read lately. As much again is used for rows that were written lately.
    pub cache: ByteSize,
}

impl Default for StateSettings {
    fn default() -> Self {
        Self { backend: StateBackend::Memory, directory: None, cache: ByteSize(64_000_000) }
    }
}

/// How much memory the queries may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MemorySettings {
    /// The most that state and the rows of batches may hold. With a limit, batches start small and grow as far as the memory allows; one that does
    /// not fit is taken back for a smaller one; and when nothing is left to make smaller, the query stops with a clear error. Buffers of the clients
    /// (Kafka's fetch queue, files that are written) are not counted: leave them 100 MB or so. By default there is no limit.
    pub limit: Option<ByteSize>,
}

/// What holds the rows of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateBackend {
    /// Memory.
    #[default]
    Memory,
    /// A local disk.
    Disk,
}

/// The HTTP server for health and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Whether there is one.
    pub enabled: bool,
    /// Address and port. Port 0 takes a free one, which the log names.
    pub listen: String,
    /// What a client has to show as `Authorization: Bearer TOKEN` to act on the job: pause and resume a query, run dead letters again, stop. By
    /// default the environment variable `PERENNIAL_HTTP_TOKEN`; without either nobody may. Looking needs none.
    pub token: Option<Secret>,
    /// A certificate, to answer over HTTPS. By default it is HTTP.
    pub tls: Option<TlsSettings>,
}

/// A certificate for HTTPS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// Path of the certificate, PEM, with those of its authorities behind it.
    pub certificate: String,
    /// Path of its private key, PEM.
    pub key: String,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { enabled: true, listen: "0.0.0.0:5001".into(), token: None, tls: None }
    }
}

/// When the job counts as healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthSettings {
    /// For how long an error counts: 1 to 4 errors within it make the job `degraded`, 5 or more `unhealthy`.
    pub error_window: HumanDuration,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self { error_window: HumanDuration(Duration::from_secs(3600)) }
    }
}

/// Alerts that the job sends itself. What is found always stands in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AlertSettings {
    /// How often the rules are looked at.
    pub every: HumanDuration,
    /// An alert that goes on is told again after this.
    pub repeat: HumanDuration,
    /// An alert is over when its rule has not held for this long, so that what comes and goes is one alert.
    pub resolve_after: HumanDuration,
    /// Other limits than the usual ones, by rule (`perennial alerts` lists them).
    pub rules: BTreeMap<String, RuleSettings>,
    /// Addresses that messages are posted to.
    pub webhooks: Vec<WebhookSettings>,
    /// A Prometheus Alertmanager.
    pub alertmanager: Option<AlertmanagerSettings>,
    /// People who get mail.
    pub email: Option<EmailSettings>,
}

impl Default for AlertSettings {
    fn default() -> Self {
        let seconds = |seconds| HumanDuration(Duration::from_secs(seconds));
        Self {
            every: seconds(15),
            repeat: seconds(4 * 3600),
            resolve_after: seconds(60),
            rules: BTreeMap::new(),
            webhooks: Vec::new(),
            alertmanager: None,
            email: None,
        }
    }
}

/// What a job has different about a rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuleSettings {
    /// Whether it is looked at.
    pub enabled: bool,
    /// The limit. By default the rule's usual one.
    pub threshold: Option<f64>,
    /// For how long it must hold before it is told. By default the rule's usual time.
    #[serde(rename = "for")]
    pub hold: Option<HumanDuration>,
    /// `warning` or `critical`. By default what the rule usually is.
    pub severity: Option<Severity>,
}

impl Default for RuleSettings {
    fn default() -> Self {
        Self { enabled: true, threshold: None, hold: None, severity: None }
    }
}

/// An address that messages are posted to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// The address; it often holds a secret.
    pub url: Secret,
    /// What is posted: `json`, all alerts with all fields; `slack`, a text, as Slack and compatible services take it.
    #[serde(default)]
    pub format: WebhookFormat,
    /// Headers to send along, such as `Authorization`.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
}

/// What is posted to a webhook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookFormat {
    /// All alerts with all fields.
    #[default]
    Json,
    /// A text.
    Slack,
}

/// A Prometheus Alertmanager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertmanagerSettings {
    /// Where it is: `http://localhost:9093`.
    pub url: String,
}

/// Mail over SMTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmailSettings {
    /// Host name or address of the mail server.
    pub server: String,
    /// Its port. By default 587 with `tls: starttls`, 465 with `tls: tls`, 25 with `tls: none`.
    #[serde(default)]
    pub port: Option<u16>,
    /// How the connection is encrypted.
    #[serde(default)]
    pub tls: MailTls,
    /// File with the certificates (PEM) of the authorities that may vouch for the server. By default those of the system.
    #[serde(default)]
    pub root_certificate: Option<String>,
    /// User to log in as. By default nobody logs in.
    #[serde(default)]
    pub username: Option<String>,
    /// The user's password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Who writes: `perennial@example.com` or `Perennial <perennial@example.com>`.
    pub from: String,
    /// Who is written to.
    pub to: Vec<String>,
}

/// How a connection to a mail server is encrypted. Its certificate is always checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// After the greeting, by STARTTLS.
    #[default]
    Starttls,
    /// From the beginning.
    Tls,
    /// Not at all; then nobody can log in.
    None,
}

/// Traces and metrics that the job sends to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySettings {
    /// A collector of OpenTelemetry. By default nothing is sent.
    pub otlp: Option<OtlpSettings>,
}

/// A collector of OpenTelemetry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OtlpSettings {
    /// Where it takes OTLP over HTTP: `http://localhost:4318`. `/v1/traces` and `/v1/metrics` are added.
    pub endpoint: String,
    /// Headers to send along, such as `Authorization`.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// How often something is sent.
    #[serde(default = "otlp_interval")]
    pub every: HumanDuration,
    /// Whether each batch is sent as a trace.
    #[serde(default = "yes")]
    pub traces: bool,
    /// Whether the metrics are sent.
    #[serde(default = "yes")]
    pub metrics: bool,
}

fn otlp_interval() -> HumanDuration {
    HumanDuration(Duration::from_secs(10))
}

/// A schema as Spark DDL, with the columns that it means.
#[derive(Clone, PartialEq)]
pub struct Ddl {
    text: String,
    /// The columns.
    pub columns: SchemaRef,
}

impl std::str::FromStr for Ddl {
    type Err = perennial_core::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self { text: text.to_owned(), columns: Arc::new(perennial_core::ddl::parse(text)?) })
    }
}

impl fmt::Debug for Ddl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Ddl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Ddl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error: perennial_core::Error| de::Error::custom(format!("this schema is not Spark DDL: {error}")))
    }
}

impl JsonSchema for Ddl {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Ddl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Columns as Spark DDL: names, types and `NOT NULL`, separated by commas.",
            "examples": ["sensor_id STRING NOT NULL, event_time TIMESTAMP, temperature DOUBLE"],
        })
    }
}

connector::beside! {
    SourceSettings { connector: SourceConfig, records: RecordSettings },
    keys: SOURCE_KEYS = ["format", "schema", "watermark", "deduplicate", "expectations"],
    one: "a source", two: "two sources", description: "Where records come from, and what they look like."
}

connector::beside! {
    TableSettings { connector: TableConfig, records: TableRows },
    keys: TABLE_KEYS = ["format", "schema", "refresh"],
    one: "a table", two: "two tables", description: "A bounded table that queries join their sources with."
}

/// A job file that has been read: the settings, and the file for messages about it.
pub struct LoadedJobFile {
    /// The settings. `name` is set.
    pub settings: JobFile,
    /// The file.
    pub origin: Origin,
}

/// The file that a job came from, to say where in it something is wrong. It holds expanded secrets and shows none.
#[derive(Clone)]
pub struct Origin {
    file: String,
    text: Arc<str>,
    tree: Arc<yaml::Node>,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)
    }
}

impl Origin {
    /// The path of the file, as it was named.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The error that these problems are; those without a place get that of their key.
    pub fn error(&self, problems: Vec<Problem>) -> JobFileError {
        let located = problems.into_iter().map(|problem| {
            let steps: Vec<&str> = problem.path.split('.').filter(|step| !step.is_empty()).collect();
            // What was found out later quotes values as they are; the file says what may be shown.
            let message = match self.tree.find(&steps).and_then(yaml::Node::scalar) {
                Some(scalar) => scalar.hide(&problem.message),
                None => problem.message,
            };
            Problem { at: problem.at.or_else(|| Some(self.tree.locate(&steps))), message, ..problem }
        });
        JobFileError::new(Some(self.file.clone()), self.text.clone(), located.collect())
    }
}

/// Reads a job file from the disk, with the variables and files of this process.
///
/// `also` looks for what is wrong beyond the form of the file; its problems are told together with the others.
pub fn load(path: &Path, also: impl FnOnce(&JobFile) -> Vec<Problem>) -> Result<LoadedJobFile, Box<JobFileError>> {
    let name = path.display().to_string();
    let fail = |text: &str, at: Option<Location>, message: String, help: Option<String>| {
        let problem = Problem { at, path: String::new(), message, help };
        Box::new(JobFileError::new(Some(name.clone()), text.into(), vec![problem]))
    };
    let bytes = std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            fail("", None, "there is no such file".into(), Some("`perennial init` writes one to begin with".into()))
        }
        _ => fail("", None, format!("the file cannot be read: {error}"), None),
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        fail("", Some(Location { line, column: 1, length: 0 }), "this line is not UTF-8 text".into(), None)
    })?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    parse(&name, &stem, &text, &ProcessLookup, also)
}

/// Reads the text of a job file. `file` is what messages call it, `default_name` is the job's name where the text gives none.
pub fn parse(
    file: &str,
    default_name: &str,
    text: &str,
    lookup: &dyn Lookup,
    also: impl FnOnce(&JobFile) -> Vec<Problem>,
) -> Result<LoadedJobFile, Box<JobFileError>> {
    let text: Arc<str> = text.strip_prefix('\u{feff}').unwrap_or(text).into();
    let mut tree = yaml::parse(&text)
        .map_err(|problem| Box::new(JobFileError::new(Some(file.into()), text.clone(), vec![*problem])))?;
    let mut problems = expand::expand(&mut tree, lookup);
    // A value that did not expand is not what it will be, so nothing is said about the rest of the file.
    let settings = if problems.is_empty() {
        let (settings, wrong) = read::read::<JobFile>(&tree);
        problems = wrong;
        settings
    } else {
        None
    };
    let origin = Origin { file: file.into(), text, tree: Arc::new(tree) };
    let Some(mut settings) = settings else { return Err(Box::new(origin.error(problems))) };
    settings.name.get_or_insert_with(|| default_name.into());
    // An empty section is only wrong when nothing was left out of it.
    let complete = problems.is_empty();
    problems.extend(also(&settings).into_iter().filter(|p| complete || !matches!(&*p.path, "sources" | "queries")));
    if problems.is_empty() { Ok(LoadedJobFile { settings, origin }) } else { Err(Box::new(origin.error(problems))) }
}
