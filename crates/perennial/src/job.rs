//! A job: from a file, or built in Rust. Both are the same thing, checked by the same rules.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::logical_expr::ScalarUDF;
use perennial_connectors::format::Format;
use perennial_core::alert::RULES;
use perennial_core::config::{HumanDuration, Secret};
use perennial_core::crash::CrashPoints;
use perennial_core::expectation::OnViolation;
use perennial_core::guarantee::Guarantee;
use perennial_core::on_error::OnError;
use perennial_core::pace::PaceSettings;
use perennial_core::policy::{BreakerPolicy, RetryPolicy};
use perennial_core::sink::{OutputMode, SinkFactory};
use perennial_core::source::SourceFactory;
use perennial_core::table::{Refresh, TableFactory};
use perennial_core::watermark::{OnLate, WatermarkAfterRestart, WatermarkPolicy};

use crate::alerts::Mailbox;
use crate::job_file::{
    self, AlertSettings, DeadLetterSettings, DeduplicateSettings, ExpectationSettings, HealthSettings, HttpSettings,
    JobFile, JobFileError, LoadedJobFile, Lookup, MailTls, MemorySettings, Origin, Problem, ProcessLookup,
    StateSettings, TelemetrySettings, Trigger, WatermarkSettings, nearest,
};

/// A job whose settings are right. Whether its SQL plans and its servers answer is what `check` and `run` find out.
#[derive(Debug, Clone)]
pub struct Job {
    /// Name: what sinks, consumer groups and monitors see.
    pub name: String,
    /// Version, for people.
    pub version: String,
    /// Sources by name.
    pub sources: BTreeMap<String, JobSource>,
    /// Static tables by name.
    pub tables: BTreeMap<String, JobTable>,
    /// Queries by name.
    pub queries: BTreeMap<String, JobQuery>,
    /// Scalar functions beside the built-in ones.
    pub functions: Vec<Arc<ScalarUDF>>,
    /// When a batch starts.
    pub trigger: Trigger,
    /// Directory or `s3://` URL of the checkpoints.
    pub checkpoint: String,
    /// Where records go that cannot be processed.
    pub dead_letters: DeadLetterSettings,
    /// How a query is tried again.
    pub retry: RetryPolicy,
    /// When to stop trying for a while.
    pub circuit_breaker: BreakerPolicy,
    /// What is done about errors of which class, where a query does not say otherwise.
    pub on_error: OnError,
    /// The guarantee that every query must give, if one is demanded.
    pub guarantee: Option<Guarantee>,
    /// The HTTP server.
    pub http: HttpSettings,
    /// When the job counts as healthy.
    pub health: HealthSettings,
    /// Who is told when something is wrong.
    pub alerts: AlertSettings,
    /// What is sent to a collector.
    pub telemetry: TelemetrySettings,
    /// Time zone of the session.
    pub time_zone: String,
    /// In how many partitions a query works.
    pub parallelism: usize,
    /// How many of the last batches keep their logs and state; at least 2.
    pub batches_to_retain: u64,
    /// For how long this process is taken for alive after its last sign of life, by one that stands by.
    pub lease: HumanDuration,
    /// Where the state of the queries is while they run.
    pub state: StateSettings,
    /// What state and batches may hold.
    pub memory: MemorySettings,
    /// How the size of batches follows their time; by default it does not.
    pub backpressure: Option<PaceSettings>,
    /// Whether a query that changed may drop state that it cannot keep; by default it does not start.
    pub accept_state_changes: bool,
    origin: Option<Origin>,
}

/// Less memory than this is a mistake.
const LEAST_MEMORY: u64 = 16_000_000;

/// A source of a job.
#[derive(Debug, Clone)]
pub struct JobSource {
    /// What kind of source it is, for people.
    pub connector: String,
    /// What opens it, once per query.
    pub factory: Arc<dyn SourceFactory>,
    /// How its raw records are decoded. A source that gives rows does not use it.
    pub format: Format,
    /// Its columns.
    pub schema: SchemaRef,
    /// Event time. The column is a top-level column of the schema, in the schema's own spelling.
    pub watermark: Option<WatermarkSettings>,
    /// Which records are duplicates. The columns are top-level columns of the schema, in the schema's own spelling.
    pub deduplicate: Option<DeduplicateSettings>,
    /// Rules for its records, by name.
    pub expectations: BTreeMap<String, ExpectationSettings>,
}

impl JobSource {
    /// A source with columns; see [`schema`](crate::schema) for columns as Spark DDL. Records are JSON unless [`JobSource::format`] says
    /// otherwise.
    pub fn new(factory: impl SourceFactory + 'static, schema: SchemaRef) -> Self {
        Self {
            connector: "custom".into(),
            factory: Arc::new(factory),
            format: Format::default(),
            schema,
            watermark: None,
            deduplicate: None,
            expectations: BTreeMap::new(),
        }
    }

    /// How raw records are decoded.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// The column with the event time, and how far the watermark stays behind the newest.
    #[must_use]
    pub fn watermark(mut self, column: impl Into<String>, delay: Duration) -> Self {
        self.watermark = Some(WatermarkSettings {
            column: column.into(),
            delay: HumanDuration(delay),
            per_partition: false,
            idle_after: None,
        });
        self
    }

    /// The watermark is the least of those of the source's partitions ([`Position::partition`](perennial_core::records::Position::partition)),
    /// but for those that had no record for `idle_after`. Only with [`JobSource::watermark`].
    #[must_use]
    pub fn watermark_per_partition(mut self, idle_after: Option<Duration>) -> Self {
        if let Some(watermark) = &mut self.watermark {
            watermark.per_partition = true;
            watermark.idle_after = idle_after.map(HumanDuration);
        }
        self
    }

    /// Drops records whose values in these columns came before. `within_watermark`: as Spark's `dropDuplicatesWithinWatermark`.
    #[must_use]
    pub fn deduplicate(mut self, columns: impl IntoIterator<Item = impl Into<String>>, within_watermark: bool) -> Self {
        let columns = columns.into_iter().map(Into::into).collect();
        self.deduplicate = Some(DeduplicateSettings { columns, within_watermark });
        self
    }

    /// A rule for its records: a Spark SQL condition.
    #[must_use]
    pub fn expect(mut self, name: impl Into<String>, check: impl Into<String>, on_violation: OnViolation) -> Self {
        self.expectations.insert(name.into(), ExpectationSettings { check: check.into(), on_violation });
        self
    }
}

/// A static table of a job: bounded, and read whole.
#[derive(Debug, Clone)]
pub struct JobTable {
    /// What kind of table it is, for people.
    pub connector: String,
    /// What opens it, once per query.
    pub factory: Arc<dyn TableFactory>,
    /// How its raw records are decoded, where it has raw records.
    pub format: Format,
    /// Its columns.
    pub schema: SchemaRef,
    /// When it is read anew.
    pub refresh: Refresh,
}

impl JobTable {
    /// A table with columns that is read for every batch.
    pub fn new(factory: impl TableFactory + 'static, schema: SchemaRef) -> Self {
        Self {
            connector: "custom".into(),
            factory: Arc::new(factory),
            format: Format::default(),
            schema,
            refresh: Refresh::default(),
        }
    }

    /// How raw records are decoded.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// When it is read anew.
    #[must_use]
    pub fn refresh(mut self, refresh: Refresh) -> Self {
        self.refresh = refresh;
        self
    }
}

/// A query of a job.
#[derive(Debug, Clone)]
pub struct JobQuery {
    /// One `SELECT` in Spark SQL.
    pub sql: String,
    /// Which rows a batch writes.
    pub output_mode: OutputMode,
    /// What happens to rows on which an expression fails.
    pub on_error: OnError,
    /// What happens to rows that come when the watermark has passed their event time.
    pub late: OnLate,
    /// How the watermarks of several sources become one.
    pub watermark_policy: WatermarkPolicy,
    /// What a restart does to the watermarks of the single sources.
    pub watermark_after_restart: WatermarkAfterRestart,
    /// Whether a batch without data follows a batch that moved the watermark.
    pub no_data_batches: bool,
    /// What kind of sink it has, for people.
    pub sink_name: String,
    /// What opens its sink.
    pub sink: Arc<dyn SinkFactory>,
}

impl JobQuery {
    /// A query in append mode.
    pub fn new(sql: impl Into<String>, sink: impl SinkFactory + 'static) -> Self {
        Self {
            sql: sql.into(),
            output_mode: OutputMode::Append,
            on_error: OnError::default(),
            late: OnLate::default(),
            watermark_policy: WatermarkPolicy::default(),
            watermark_after_restart: WatermarkAfterRestart::default(),
            no_data_batches: true,
            sink_name: "custom".into(),
            sink: Arc::new(sink),
        }
    }

    /// Which rows a batch writes.
    #[must_use]
    pub fn output_mode(mut self, mode: OutputMode) -> Self {
        self.output_mode = mode;
        self
    }

    /// What happens to rows on which an expression fails.
    #[must_use]
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.on_error = on_error;
        self
    }

    /// What happens to rows that come when the watermark has passed their event time.
    #[must_use]
    pub fn late(mut self, late: OnLate) -> Self {
        self.late = late;
        self
    }

    /// How the watermarks of several sources become one.
    #[must_use]
    pub fn watermark_policy(mut self, policy: WatermarkPolicy) -> Self {
        self.watermark_policy = policy;
        self
    }

    /// What a restart does to the watermarks of the single sources.
    #[must_use]
    pub fn watermark_after_restart(mut self, choice: WatermarkAfterRestart) -> Self {
        self.watermark_after_restart = choice;
        self
    }

    /// Whether a batch without data follows a batch that moved the watermark.
    #[must_use]
    pub fn no_data_batches(mut self, enabled: bool) -> Self {
        self.no_data_batches = enabled;
        self
    }
}

impl Job {
    /// A job that is built in Rust.
    pub fn builder(name: impl Into<String>) -> JobBuilder {
        let name = name.into();
        JobBuilder {
            job: Self {
                version: "1.0".into(),
                sources: BTreeMap::new(),
                tables: BTreeMap::new(),
                queries: BTreeMap::new(),
                functions: Vec::new(),
                trigger: Trigger::default(),
                checkpoint: format!("./checkpoints/{name}"),
                dead_letters: DeadLetterSettings::default(),
                retry: RetryPolicy::default(),
                circuit_breaker: BreakerPolicy::default(),
                on_error: OnError::default(),
                guarantee: None,
                http: HttpSettings::default(),
                health: HealthSettings::default(),
                alerts: AlertSettings::default(),
                telemetry: TelemetrySettings::default(),
                time_zone: "UTC".into(),
                parallelism: std::thread::available_parallelism().map_or(1, usize::from),
                batches_to_retain: job_file::default_batches_to_retain(),
                lease: job_file::default_lease(),
                state: StateSettings::default(),
                memory: MemorySettings::default(),
                backpressure: None,
                accept_state_changes: false,
                origin: None,
                name,
            },
            twice: Vec::new(),
        }
    }

    /// The job of a file, with the environment variables and files of this process. The error tells everything that is wrong with it.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Box<JobFileError>> {
        job_file::load(path.as_ref(), problems_of_file).map(from_loaded)
    }

    /// The job of a text. `file` is what messages call it.
    pub fn from_text(file: &str, text: &str) -> Result<Self, Box<JobFileError>> {
        Self::from_text_with(file, text, &ProcessLookup)
    }

    /// As [`Job::from_text`], with variables and files from elsewhere.
    pub fn from_text_with(file: &str, text: &str, lookup: &dyn Lookup) -> Result<Self, Box<JobFileError>> {
        let stem = Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        job_file::parse(file, &stem, text, lookup, problems_of_file).map(from_loaded)
    }

    /// What a client has to show to act on the running job, if anybody may.
    pub(crate) fn http_token(&self) -> Option<Secret> {
        let environment = || std::env::var("PERENNIAL_HTTP_TOKEN").ok().map(Secret::new);
        self.http.token.clone().or_else(environment).filter(|token| !token.expose().is_empty())
    }

    /// The file that the job came from.
    pub fn file(&self) -> Option<&str> {
        self.origin.as_ref().map(Origin::file)
    }

    /// The error for something that is wrong with the job: at its place in the file, for a job that came from one. Paths are keys with
    /// dots in between: `queries.per_minute.sql`.
    pub fn error(&self, problems: Vec<Problem>) -> JobFileError {
        match &self.origin {
            Some(origin) => origin.error(problems),
            None => JobFileError::new(None, "".into(), problems),
        }
    }

    /// What is wrong with the settings.
    fn problems(&self) -> Vec<Problem> {
        let mut found = Problems::default();
        let file_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        found.check(file_name(&self.name), "name", || {
            let help = "letters, digits, `_`, `-` and `.` make a name, and it begins with a letter or digit";
            (format!("`{}` is not a name for a job", self.name), help)
        });
        found.check(!self.sources.is_empty(), "sources", || {
            ("the job has no source".into(), "a job is at least a source, a query and a sink")
        });
        found.check(!self.queries.is_empty(), "queries", || {
            ("the job has no query".into(), "a job is at least a source, a query and a sink")
        });
        for (name, source) in &self.sources {
            source.problems(name, &format!("sources.{name}"), &mut found);
        }
        for (name, table) in &self.tables {
            let path = format!("tables.{name}");
            table_name(name, "table", &path, &mut found);
            found.check(!self.sources.contains_key(name), &path, || {
                (
                    format!("`{name}` is a source, too"),
                    "sources and tables are tables in SQL: give one of them another name",
                )
            });
            columns(&table.schema, &path, &mut found);
        }
        for (name, query) in &self.queries {
            found.check(file_name(name), &format!("queries.{name}"), || {
                let help =
                    "letters, digits, `_`, `-` and `.` make a name: it is the name of the checkpoint's directory";
                (format!("`{name}` is not a name for a query"), help)
            });
            found.check(!query.sql.trim().is_empty(), &format!("queries.{name}.sql"), || {
                ("the SQL is empty".into(), "write one SELECT over the sources")
            });
        }
        let on_errors = self.queries.iter().map(|(name, query)| (format!("queries.{name}.on_error"), &query.on_error));
        for (path, on_error) in on_errors.chain([("on_error".to_owned(), &self.on_error)]) {
            for (code, why) in on_error.objections() {
                found.check(false, &format!("{path}.{code}"), || (why, "`perennial errors` explains the classes"));
            }
        }
        self.problems_of_settings(&mut found);
        found.0
    }

    fn problems_of_settings(&self, found: &mut Problems) {
        let Self { retry, circuit_breaker: breaker, .. } = self;
        found.check(!self.checkpoint.trim().is_empty(), "checkpoint", || {
            ("the path is empty".into(), "name a directory or an `s3://` URL")
        });
        let letters = &self.dead_letters;
        found.check(letters.path.as_ref().is_none_or(|path| !path.trim().is_empty()), "dead_letters.path", || {
            ("the path is empty".into(), "name a directory")
        });
        found.check(letters.path.is_none() || letters.postgres.is_none(), "dead_letters", || {
            ("dead letters go to one place, and there are `path` and `postgres`".into(), "leave one of them out")
        });
        let opened =
            letters.postgres.as_ref().map(|at| at.open(&self.name, letters.retention.0, CrashPoints::default()));
        if let Some(Err(error)) = opened {
            found.check(false, "dead_letters.postgres", || (error.to_string(), "mend the setting"));
        }
        found.check(
            self.state.directory.as_ref().is_none_or(|path| !path.trim().is_empty()),
            "state.directory",
            || ("the path is empty".into(), "name a directory on a local disk, or leave it out"),
        );
        found.check(retry.factor >= 1.0 && retry.factor.is_finite(), "retry.factor", || {
            (format!("the waiting time cannot grow by {}", retry.factor), "1 or more; 2 doubles it each time")
        });
        found.check((0.0..=1.0).contains(&retry.jitter), "retry.jitter", || {
            (format!("{} is not a share", retry.jitter), "from 0 to 1")
        });
        found.check(retry.max >= retry.initial, "retry.max", || {
            (
                format!("{} is less than `initial` ({})", retry.max, retry.initial),
                "the longest wait is at least the first one",
            )
        });
        found.check(breaker.failures > 0, "circuit_breaker.failures", || {
            ("a breaker that opens after 0 failures is never closed".into(), "1 or more")
        });
        found.check(self.memory.limit.is_none_or(|limit| limit.0 >= LEAST_MEMORY), "memory.limit", || {
            ("that is too little to run a batch in".into(), "16 MB or more; leave it out for no limit")
        });
        if let Some(pace) = &self.backpressure {
            found.check(pace.min_records > 0, "backpressure.min_records", || {
                ("a batch of 0 records makes no progress".into(), "1 or more")
            });
            found.check(pace.max_records >= pace.min_records, "backpressure.max_records", || {
                (
                    format!("{} is less than `min_records` ({})", pace.max_records, pace.min_records),
                    "at least `min_records`",
                )
            });
            found.check(!pace.target_batch_time.0.is_zero(), "backpressure.target_batch_time", || {
                ("a batch takes some time".into(), "for example `5 seconds`")
            });
        }
        found.check(is_time_zone(&self.time_zone), "time_zone", || {
            (format!("there is no time zone `{}`", self.time_zone), "for example `UTC`, `Europe/Berlin` or `+02:00`")
        });
        found.check(self.parallelism > 0, "parallelism", || {
            ("nothing works in 0 partitions".into(), "1 or more; leave it out for the number of cores")
        });
        found.check(self.batches_to_retain >= 2, "batches_to_retain", || {
            ("a batch cannot be run again without the one before it".into(), "2 or more")
        });
        found.check(self.lease.0 >= Duration::from_millis(100), "lease", || {
            ("no process can show so often that it is alive".into(), "for example `10 seconds`")
        });
        for name in self.alerts.rules.keys().filter(|name| RULES.iter().all(|rule| rule.name != **name)) {
            found.check(false, &format!("alerts.rules.{name}"), || {
                (format!("there is no rule `{name}`"), "`perennial alerts` lists the rules")
            });
        }
        if let Some(otlp) = &self.telemetry.otlp {
            let there = url::Url::parse(&otlp.endpoint).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
            found.check(there, "telemetry.otlp.endpoint", || {
                (format!("`{}` is not an address", otlp.endpoint), "for example `http://localhost:4318`")
            });
            found.check(!otlp.every.0.is_zero(), "telemetry.otlp.every", || {
                ("it would be sent without a pause".into(), "for example `10 seconds`")
            });
        }
        if let Some(email) = &self.alerts.email {
            let addresses = email.to.iter().enumerate().map(|(i, to)| (format!("alerts.email.to[{i}]"), to));
            for (path, address) in addresses.chain([("alerts.email.from".to_owned(), &email.from)]) {
                if let Err(why) = address.parse::<Mailbox>() {
                    found.check(false, &path, || {
                        (why, "for example `ops@example.com` or `Operations <ops@example.com>`")
                    });
                }
            }
            found.check(!email.to.is_empty(), "alerts.email.to", || {
                ("nobody is written to".into(), "an address or more")
            });
            found.check(email.username.is_some() == email.password.is_some(), "alerts.email.username", || {
                ("a login needs both a user and a password".into(), "give `username` and `password`, or neither")
            });
            found.check(email.username.is_none() || email.tls != MailTls::None, "alerts.email.tls", || {
                ("a password would be sent to the server unencrypted".into(), "`starttls` or `tls`")
            });
        }
        found.check(!self.http.enabled || is_address(&self.http.listen), "http.listen", || {
            let help = "for example `0.0.0.0:5001`, `127.0.0.1:5001` or `[::]:5001`";
            (format!("`{}` is not an address and a port", self.http.listen), help)
        });
    }
}

impl JobSource {
    fn problems(&self, name: &str, path: &str, found: &mut Problems) {
        table_name(name, "source", path, found);
        columns(&self.schema, path, found);
        if let Some(watermark) = &self.watermark {
            let column_path = format!("{path}.watermark.column");
            if let Some(field) = self.column(&watermark.column, &column_path, found) {
                found.check(matches!(field.data_type(), DataType::Timestamp(..)), &column_path, || {
                    let message = format!("the column `{}` is no TIMESTAMP, and event time is one", watermark.column);
                    (message, "give the column that type in the schema")
                });
            }
            found.check(
                watermark.per_partition || watermark.idle_after.is_none(),
                &format!("{path}.watermark.idle_after"),
                || ("it is partitions that become idle".into(), "add `per_partition: true`, or leave it out"),
            );
        }
        if let Some(deduplicate) = &self.deduplicate {
            let path = format!("{path}.deduplicate");
            let columns_path = format!("{path}.columns");
            found.check(!deduplicate.columns.is_empty(), &columns_path, || {
                ("there are no columns to tell duplicates by".into(), "name at least one")
            });
            for column in &deduplicate.columns {
                self.column(column, &columns_path, found);
            }
            found.check(!deduplicate.within_watermark || self.watermark.is_some(), &path, || {
                ("without a watermark nothing is within it".into(), "give the source a `watermark`")
            });
        }
        for (name, expectation) in &self.expectations {
            let path = format!("{path}.expectations.{name}");
            found.check(is_identifier(name), &path, || {
                let help = "letters, digits and `_`, not a digit first: dead letters and metrics carry it";
                (format!("`{name}` is not a name for an expectation"), help)
            });
            found.check(!expectation.check.trim().is_empty(), &format!("{path}.check"), || {
                ("the condition is empty".into(), "write a condition over the columns of the source")
            });
        }
    }
}

impl JobSource {
    /// The column of this name; where there is none, that is a problem of the setting at `path`.
    fn column(&self, name: &str, path: &str, found: &mut Problems) -> Option<&Field> {
        let columns = || self.schema.fields().iter().map(|field| field.name().as_str());
        let column = self.schema.field_with_name(name).ok();
        if column.is_none() {
            let all = columns().collect::<Vec<_>>().join(", ");
            let help = match nearest(name, columns()) {
                Some(near) => format!("did you mean `{near}`? the schema has: {all}"),
                None => format!("the schema has: {all}"),
            };
            let message = format!("the schema has no column `{name}`");
            found.0.push(Problem { at: None, path: path.to_owned(), message, help: Some(help) });
        }
        column
    }
}

/// What is wrong with the name of a source or table.
fn table_name(name: &str, what: &str, path: &str, found: &mut Problems) {
    found.check(is_identifier(name), path, || {
        let help = "letters, digits and `_`, not a digit first: it is a table name in SQL";
        (format!("`{name}` is not a name for a {what}"), help)
    });
}

fn columns(schema: &SchemaRef, path: &str, found: &mut Problems) {
    found.check(!schema.fields().is_empty(), &format!("{path}.schema"), || {
        ("the schema has no columns".into(), "for example `id BIGINT NOT NULL, event_time TIMESTAMP`")
    });
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn check(&mut self, holds: bool, path: &str, otherwise: impl FnOnce() -> (String, &'static str)) {
        if !holds {
            let (message, help) = otherwise();
            self.0.push(Problem { at: None, path: path.to_owned(), message, help: Some(help.to_owned()) });
        }
    }
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A name of the time zone database, or an offset of hours and minutes.
fn is_time_zone(name: &str) -> bool {
    name.parse::<arrow::array::timezone::Tz>().is_ok()
}

fn is_address(text: &str) -> bool {
    text.parse::<SocketAddr>().is_ok()
        || text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains([':', '/', ' ']) && port.parse::<u16>().is_ok()
        })
}

/// Builds a [`Job`] in Rust.
#[derive(Debug, Clone)]
pub struct JobBuilder {
    job: Job,
    /// Names that were given twice.
    twice: Vec<Problem>,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $name: $type) -> Self {
            self.job.$name = $name;
            self
        }
    )*};
}

impl JobBuilder {
    /// Adds a source. The name is the table name in SQL.
    #[must_use]
    pub fn source(mut self, name: impl Into<String>, source: JobSource) -> Self {
        let name = name.into();
        self.once(!self.job.sources.contains_key(&name), format!("sources.{name}"));
        self.job.sources.insert(name, source);
        self
    }

    /// Adds a static table. The name is the table name in SQL.
    #[must_use]
    pub fn table(mut self, name: impl Into<String>, table: JobTable) -> Self {
        let name = name.into();
        self.once(!self.job.tables.contains_key(&name), format!("tables.{name}"));
        self.job.tables.insert(name, table);
        self
    }

    /// Adds a query.
    #[must_use]
    pub fn query(mut self, name: impl Into<String>, query: JobQuery) -> Self {
        let name = name.into();
        self.once(!self.job.queries.contains_key(&name), format!("queries.{name}"));
        self.job.queries.insert(name, query);
        self
    }

    /// Adds a scalar function, to be called by its name in the SQL of all queries.
    #[must_use]
    pub fn function(mut self, function: ScalarUDF) -> Self {
        self.job.functions.push(Arc::new(function));
        self
    }

    /// Version of the job, for people.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.job.version = version.into();
        self
    }

    /// Directory or `s3://` URL of the checkpoints.
    #[must_use]
    pub fn checkpoint(mut self, path: impl Into<String>) -> Self {
        self.job.checkpoint = path.into();
        self
    }

    /// Time zone of the session.
    #[must_use]
    pub fn time_zone(mut self, name: impl Into<String>) -> Self {
        self.job.time_zone = name.into();
        self
    }

    /// The guarantee that every query must give.
    #[must_use]
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.job.guarantee = Some(guarantee);
        self
    }

    setters! {
        /// When a batch starts.
        trigger: Trigger;
        /// Where records go that cannot be processed.
        dead_letters: DeadLetterSettings;
        /// How a query is tried again.
        retry: RetryPolicy;
        /// When to stop trying for a while.
        circuit_breaker: BreakerPolicy;
        /// What is done about errors of which class, where a query does not say otherwise.
        on_error: OnError;
        /// The HTTP server.
        http: HttpSettings;
        /// When the job counts as healthy.
        health: HealthSettings;
        /// Who is told when something is wrong.
        alerts: AlertSettings;
        /// What is sent to a collector of OpenTelemetry.
        telemetry: TelemetrySettings;
        /// In how many partitions a query works.
        parallelism: usize;
        /// How many of the last batches keep their logs and state; at least 2.
        batches_to_retain: u64;
        /// Where the state of the queries is while they run.
        state: StateSettings;
        /// What state and batches may hold.
        memory: MemorySettings;
        /// Whether a query that changed may drop state that it cannot keep.
        accept_state_changes: bool;
        /// For how long this process is taken for alive after its last sign of life.
        lease: HumanDuration;
    }

    fn once(&mut self, first: bool, path: String) {
        if !first {
            let message = "this name is given twice".into();
            self.twice.push(Problem { at: None, path, message, help: None });
        }
    }

    /// The job, or everything that is wrong with it.
    pub fn build(self) -> Result<Job, Box<JobFileError>> {
        let mut problems = self.twice;
        problems.extend(self.job.problems());
        if problems.is_empty() { Ok(self.job) } else { Err(Box::new(self.job.error(problems))) }
    }
}

/// A job file is a builder that was filled in elsewhere.
fn builder_of(file: &JobFile) -> JobBuilder {
    let mut builder = Job::builder(file.name.clone().unwrap_or_default())
        .version(&file.version)
        .trigger(file.trigger)
        .dead_letters(file.dead_letters.clone())
        .retry(file.retry)
        .circuit_breaker(file.circuit_breaker)
        .on_error(file.on_error.clone())
        .http(file.http.clone())
        .health(file.health.clone())
        .alerts(file.alerts.clone())
        .telemetry(file.telemetry.clone())
        .state(file.state.clone())
        .memory(file.memory)
        .lease(file.lease)
        .time_zone(&file.time_zone);
    builder.job.guarantee = file.guarantee;
    builder.job.backpressure = file.backpressure;
    if let Some(checkpoint) = &file.checkpoint {
        builder = builder.checkpoint(checkpoint);
    }
    builder = builder.batches_to_retain(file.batches_to_retain);
    if let Some(parallelism) = file.parallelism {
        builder = builder.parallelism(parallelism);
    }
    for (name, source) in &file.sources {
        let records = &source.records;
        builder = builder.source(
            name,
            JobSource {
                connector: source.connector.name().into(),
                factory: source.connector.factory(),
                format: records.format.clone(),
                schema: records.schema.columns.clone(),
                watermark: records.watermark.clone(),
                deduplicate: records.deduplicate.clone(),
                expectations: records.expectations.clone(),
            },
        );
    }
    for (name, table) in &file.tables {
        builder = builder.table(
            name,
            JobTable {
                connector: table.connector.name().into(),
                factory: table.connector.factory(),
                format: table.records.format.clone().unwrap_or_default(),
                schema: table.records.schema.columns.clone(),
                refresh: table.records.refresh,
            },
        );
    }
    for (name, query) in &file.queries {
        builder = builder.query(
            name,
            JobQuery {
                sql: query.sql.clone(),
                output_mode: query.output_mode,
                on_error: query.on_error.clone(),
                late: query.late,
                watermark_policy: query.watermark_policy,
                watermark_after_restart: query.watermark_after_restart,
                no_data_batches: query.no_data_batches,
                sink_name: query.sink.name().into(),
                sink: query.sink.factory(),
            },
        );
    }
    builder
}

fn problems_of_file(file: &JobFile) -> Vec<Problem> {
    let mut problems = builder_of(file).job.problems();
    for (name, source) in file.sources.iter().filter(|(_, source)| !source.connector.reads(&source.records.format)) {
        problems.push(Problem {
            at: None,
            path: format!("sources.{name}.format"),
            message: format!("a `{}` source has no Parquet records", source.connector.name()),
            help: Some("Parquet is a format of `files`".into()),
        });
    }
    let unpartitioned = file.sources.iter().filter(|(_, source)| !source.connector.has_partitions());
    for (name, source) in unpartitioned.filter(|(_, s)| s.records.watermark.as_ref().is_some_and(|w| w.per_partition)) {
        problems.push(Problem {
            at: None,
            path: format!("sources.{name}.watermark.per_partition"),
            message: format!("a `{}` source has no partitions", source.connector.name()),
            help: Some("leave it out; it is for `kafka`".into()),
        });
    }
    let databases = file.tables.iter().filter(|(_, table)| !table.connector.has_records());
    for (name, table) in databases.filter(|(_, table)| table.records.format.is_some()) {
        problems.push(Problem {
            at: None,
            path: format!("tables.{name}.format"),
            message: format!("a `{}` table has rows and no records in a format", table.connector.name()),
            help: Some("leave it out".into()),
        });
    }
    problems
}

fn from_loaded(loaded: LoadedJobFile) -> Job {
    let mut job = builder_of(&loaded.settings).job;
    job.origin = Some(loaded.origin);
    job
}
