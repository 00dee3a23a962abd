//! The `influxdb` sink: points in InfluxDB, by line protocol over HTTP.
//!
//! InfluxDB has no transactions, but a point is its measurement, its tags and its time: written again it overwrites itself. So a
//! repeated batch changes nothing, as long as no two rows of a result are the same point. That is checked when the sink is opened.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use perennial_core::config::{HumanDuration, Secret};
use perennial_core::env::Clock;
use perennial_core::error::{Error, ErrorClass, Result, class};
use perennial_core::sink::{Delivery, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use reqwest::{Response, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::UNIQUE_KEY;
use super::columns::{Column, Kind, write_date, write_decimal, write_iso_timestamp, write_time};
use super::fault::{network_class, root_cause};

/// Writes rows as points to InfluxDB: 1.x with `database`, 2.x and later with `org` and `bucket`.
///
/// Of the columns that are neither tags nor the time, numbers become integer or float fields (decimals become floats), BOOLEAN
/// booleans, and STRING, DATE, TIME, TIMESTAMP (`2026-11-21T09:44:23.000000Z`), STRUCT, ARRAY and MAP (JSON) strings. NULL, NaN and infinity
/// are left out, because InfluxDB cannot store them; a row in which nothing else is left is no point, and is counted in a warning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InfluxDbSink {
    /// Where InfluxDB is: `http://localhost:8086`.
    pub url: String,
    /// Database (InfluxDB 1.x).
    #[serde(default)]
    pub database: Option<String>,
    /// User (InfluxDB 1.x). Default: none.
    #[serde(default)]
    pub username: Option<String>,
    /// Password (InfluxDB 1.x). Default: none.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Retention policy (InfluxDB 1.x). Default: that of the database.
    #[serde(default)]
    pub retention_policy: Option<String>,
    /// Whether the database is created if it is missing (InfluxDB 1.x). Default: false.
    #[serde(default)]
    pub create_database: bool,
    /// Organisation (InfluxDB 2.x).
    #[serde(default)]
    pub org: Option<String>,
    /// Bucket (InfluxDB 2.x).
    #[serde(default)]
    pub bucket: Option<String>,
    /// Token (InfluxDB 2.x). Default: none.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Measurement that the points belong to.
    pub measurement: String,
    /// Columns that become tags. NULL is no tag. Default: none.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The column with the time of the point, a TIMESTAMP or DATE.
    pub time: String,
    /// Columns that become fields. Default: all that are neither tags nor the time.
    #[serde(default)]
    pub fields: Option<Vec<String>>,
    /// The unit in which times are sent; what is finer is cut off. Default: `ns`.
    #[serde(default)]
    pub precision: Precision,
    /// Whether rows may overwrite each other: allows tags and time that do not tell the rows of a result apart. Default: false.
    #[serde(default)]
    pub allow_overwrite: bool,
    /// Points per request. Default: 10,000.
    #[serde(default = "batch_lines")]
    pub batch_lines: usize,
    /// How long a request may take. Default: 30 seconds.
    #[serde(default = "timeout")]
    pub timeout: HumanDuration,
}

fn batch_lines() -> usize {
    10_000
}

fn timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(30))
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Nanoseconds.
    #[default]
    Ns,
    /// Microseconds.
    Us,
    /// Milliseconds.
    Ms,
    /// Seconds.
    S,
}

impl Precision {
    /// The time in this unit; `None` where it does not fit.
    fn of_micros(self, micros: i64) -> Option<i64> {
        match self {
            Self::Ns => micros.checked_mul(1000),
            Self::Us => Some(micros),
            Self::Ms => Some(micros.div_euclid(1000)),
            Self::S => Some(micros.div_euclid(1_000_000)),
        }
    }

    fn v1(self) -> &'static str {
        match self {
            Self::Ns => "ns",
            Self::Us => "u",
            Self::Ms => "ms",
            Self::S => "s",
        }
    }

    fn v2(self) -> &'static str {
        match self {
            Self::Us => "us",
            other => other.v1(),
        }
    }
}

impl SinkFactory for InfluxDbSink {
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let wrong = |what: String| Error::new(class::CONFIG_INVALID, format!("influxdb sink: {what}"));
        let mut url = url::Url::parse(&self.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| wrong("`url` is not an address like http://localhost:8086".to_owned()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("`url` holds credentials; write them as `username` and `password`".to_owned()));
        }
        url.set_query(None);
        let base = url.as_str().trim_end_matches('/').to_owned();
        if self.measurement.is_empty() || self.measurement.contains(['\n', '\r']) {
            return Err(wrong("`measurement` is empty or has a line break".to_owned()));
        }
        if self.batch_lines == 0 {
            return Err(wrong("`batch_lines` must be at least 1".to_owned()));
        }
        let endpoint = match (&self.database, &self.org, &self.bucket) {
            (Some(database), None, None) => {
                if self.token.is_some() {
                    return Err(wrong(
                        "`token` belongs to InfluxDB 2; with `database` use `username` and `password`".to_owned(),
                    ));
                }
                let mut query = vec![("db", database.clone()), ("precision", self.precision.v1().to_owned())];
                query.extend(self.retention_policy.clone().map(|policy| ("rp", policy)));
                Endpoint { write: address(&base, "write", &query)?, target: format!("database `{database}` at {base}") }
            }
            (None, Some(org), Some(bucket)) => {
                let first = self.username.is_some() || self.password.is_some() || self.retention_policy.is_some();
                if first || self.create_database {
                    return Err(wrong(
                        "`username`, `password`, `retention_policy` and `create_database` belong to InfluxDB 1; with `bucket` use `token`".to_owned(),
                    ));
                }
                let query =
                    [("org", org.clone()), ("bucket", bucket.clone()), ("precision", self.precision.v2().to_owned())];
                Endpoint {
                    write: address(&base, "api/v2/write", &query)?,
                    target: format!("bucket `{bucket}` of `{org}` at {base}"),
                }
            }
            _ => {
                return Err(wrong("set either `database` (InfluxDB 1), or `org` and `bucket` (InfluxDB 2)".to_owned()));
            }
        };
        let layout = Layout::new(self, &context)?;
        let client = reqwest::Client::builder()
            .timeout(self.timeout.0)
            .connect_timeout(self.timeout.0)
            .user_agent("perennial")
            .build()
            .map_err(|e| Error::new(class::TLS_FAILED, "influxdb sink: TLS cannot be set up").caused_by(e))?;
        Ok(Box::new(InfluxDb {
            settings: self.clone(),
            base,
            endpoint,
            layout: Arc::new(layout),
            client,
            database_made: Mutex::new(!self.create_database),
            clock: context.env.clock,
        }))
    }
}

fn address(base: &str, path: &str, query: &[(&str, String)]) -> Result<url::Url> {
    url::Url::parse_with_params(&format!("{base}/{path}"), query)
        .map_err(|e| Error::new(class::CONFIG_INVALID, "influxdb sink: `url` cannot be used").caused_by(e))
}

struct Endpoint {
    write: url::Url,
    /// For messages.
    target: String,
}

struct InfluxDb {
    settings: InfluxDbSink,
    base: String,
    endpoint: Endpoint,
    layout: Arc<Layout>,
    client: reqwest::Client,
    /// Whether the database is known to be there, or is not ours to make.
    database_made: Mutex<bool>,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Sink for InfluxDb {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByKey
    }

    async fn check(&self) -> Result<()> {
        if self.settings.create_database {
            // The database may be missing; that the server is there and takes the credentials can still be seen.
            self.query("SHOW DATABASES").await?;
            return Ok(());
        }
        // An empty write goes through authentication, authorization and the search for the target, and leaves nothing. That it has
        // no points is the last thing that a server complains about.
        let answer = self.authorized(self.client.post(self.endpoint.write.clone())).send().await;
        let answer = answer.map_err(|e| self.unreachable(e))?;
        if answer.status().is_success() || answer.status() == StatusCode::BAD_REQUEST {
            return Ok(());
        }
        Err(self.refused(answer, None).await)
    }

    async fn write(&self, batch: &SinkBatch, mut rows: RowStream) -> Result<Written> {
        self.make_database().await?;
        let mut lines = Lines { layout: self.layout.clone(), text: Vec::new(), lines: 0, empty: 0 };
        let (mut count, mut first_row, mut bytes) = (0u64, 0u64, 0u64);
        // While one request is under way the next one is filled.
        let mut sending: Option<tokio::task::JoinHandle<Result<u64>>> = None;
        let mut failed = None;
        'rows: loop {
            let rows = match rows.next().await {
                Some(Ok(rows)) => rows,
                Some(Err(error)) => {
                    failed = Some(error);
                    break;
                }
                None => break,
            };
            let columns = Column::all(&rows, &self.layout.kinds)?;
            for row in 0..rows.num_rows() {
                if let Err(error) = lines.add(&columns, row, count) {
                    failed = Some(error);
                    break 'rows;
                }
                count += 1;
                if lines.lines == self.settings.batch_lines {
                    bytes += finish(sending.take()).await?;
                    sending = Some(self.send(lines.take(), first_row));
                    first_row = count;
                }
            }
        }
        bytes += finish(sending.take()).await?;
        if let Some(error) = failed {
            return Err(error);
        }
        if lines.lines > 0 {
            bytes += finish(Some(self.send(lines.take(), first_row))).await?;
        }
        if lines.empty > 0 {
            tracing::warn!(
                batch = batch.id,
                rows = lines.empty,
                "rows without any field (all are NULL, NaN or infinite) are no points and were not written to {}",
                self.endpoint.target
            );
        }
        Ok(Written { rows: count, bytes, duplicate: false })
    }
}

/// Waits for a request and gives the bytes it sent.
async fn finish(sending: Option<tokio::task::JoinHandle<Result<u64>>>) -> Result<u64> {
    match sending {
        Some(task) => task.await.map_err(|e| Error::bug("influxdb sink: the sending task died").caused_by(e))?,
        None => Ok(0),
    }
}

impl InfluxDb {
    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match (&self.settings.token, &self.settings.username) {
            (Some(token), _) => request.header(header::AUTHORIZATION, format!("Token {}", token.expose())),
            (None, Some(user)) => request.basic_auth(user, self.settings.password.as_ref().map(Secret::expose)),
            (None, None) => request,
        }
    }

    /// Sends lines in a task of its own.
    fn send(&self, lines: Vec<u8>, first_row: u64) -> tokio::task::JoinHandle<Result<u64>> {
        let request = self
            .authorized(self.client.post(self.endpoint.write.clone()))
            .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
            .header(header::CONTENT_ENCODING, "gzip");
        let faults = self.faults();
        tokio::spawn(async move {
            let packed = tokio::task::spawn_blocking(move || {
                let mut gzip = GzEncoder::new(Vec::with_capacity(lines.len() / 4), Compression::fast());
                gzip.write_all(&lines).and_then(|()| gzip.finish())
            });
            let body = packed
                .await
                .map_err(std::io::Error::other)
                .flatten()
                .map_err(|e| Error::bug("influxdb sink: points cannot be compressed").caused_by(e))?;
            let bytes = body.len() as u64;
            let answer = request.body(body).send().await.map_err(|e| faults.unreachable(e))?;
            if answer.status().is_success() {
                return Ok(bytes);
            }
            Err(faults.refused(answer, Some(first_row)).await)
        })
    }

    fn faults(&self) -> Faults {
        Faults { target: self.endpoint.target.clone(), timeout: self.settings.timeout, clock: self.clock.clone() }
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        self.faults().unreachable(error)
    }

    async fn refused(&self, answer: Response, sent: Option<u64>) -> Error {
        self.faults().refused(answer, sent).await
    }

    /// Asks an InfluxDB 1.x.
    async fn query(&self, text: &str) -> Result<()> {
        let url = address(&self.base, "query", &[("q", text.to_owned())])?;
        let answer = self.authorized(self.client.post(url)).send().await.map_err(|e| self.unreachable(e))?;
        if !answer.status().is_success() {
            return Err(self.refused(answer, None).await);
        }
        #[derive(Deserialize)]
        struct Answer {
            results: Vec<Outcome>,
        }
        #[derive(Deserialize)]
        struct Outcome {
            error: Option<String>,
        }
        let body = answer.bytes().await.map_err(|e| self.unreachable(e))?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|e| {
            let what = format!("influxdb sink: {} does not answer as InfluxDB does", self.base);
            Error::new(class::SERVER_UNAVAILABLE, what).caused_by(e)
        })?;
        match answer.results.into_iter().find_map(|outcome| outcome.error) {
            Some(error) => Err(Error::new(
                class::SERVER_UNAVAILABLE,
                format!("influxdb sink: {}: {text}: {error}", self.endpoint.target),
            )),
            None => Ok(()),
        }
    }

    async fn make_database(&self) -> Result<()> {
        let mut made = self.database_made.lock().await;
        if let (false, Some(database)) = (*made, &self.settings.database) {
            let quoted = database.replace('\\', "\\\\").replace('"', "\\\"");
            self.query(&format!("CREATE DATABASE \"{quoted}\"")).await?;
            *made = true;
        }
        Ok(())
    }
}

/// Turns failures into errors.
struct Faults {
    target: String,
    timeout: HumanDuration,
    clock: Arc<dyn Clock>,
}

impl Faults {
    fn unreachable(&self, error: reqwest::Error) -> Error {
        // The address has the name of the database, but no secret; messages name the target themselves.
        let error = error.without_url();
        let class = match network_class(&error) {
            Some(class) => class,
            None if error.is_timeout() => class::TIMEOUT,
            None => class::CONNECTION_LOST,
        };
        let what = match class.code {
            "Timeout" => format!("did not answer within {}", self.timeout),
            _ => format!("cannot be reached: {}", root_cause(&error)),
        };
        Error::new(class, format!("influxdb sink: {} {what}", self.target)).caused_by(error)
    }

    /// An answer that is not a success. `sent` is the number of the first row of the request.
    async fn refused(&self, answer: Response, sent: Option<u64>) -> Error {
        let status = answer.status();
        let retry_after = answer
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| retry_after(value.to_str().ok()?.trim(), self.clock.now_micros()));
        let body = answer.text().await.unwrap_or_default();
        let text = explanation(&body);
        let (class, what) = refusal(status, &text, sent);
        let mut error = Error::new(class, format!("influxdb sink: {}: {what}", self.target));
        if let Some(after) = retry_after {
            error = error.retry_after(after);
        }
        error
    }
}

/// For how long a server wants to be left alone: it says so in seconds, or as a date.
fn retry_after(text: &str, now_micros: i64) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    let left = date.timestamp_micros().saturating_sub(now_micros);
    Some(Duration::from_micros(u64::try_from(left).unwrap_or_default()))
}

/// The server's words out of its answer, which is JSON in all versions.
fn explanation(body: &str) -> String {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(alias = "message")]
        error: String,
    }
    let text = serde_json::from_str::<Answer>(body).map_or_else(|_| body.trim().to_owned(), |answer| answer.error);
    let mut short: String = text.chars().take(500).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Class and message of an answer that is not a success.
fn refusal(status: StatusCode, text: &str, sent: Option<u64>) -> (&'static ErrorClass, String) {
    let missing = text.contains("database not found") || text.contains("bucket") && text.contains("not found");
    // The server quotes the point; this is where to look for it.
    let point = || {
        sent.map_or_else(String::new, |first| format!(" (in the request that begins with row {first} of the batch)"))
    };
    match status.as_u16() {
        401 => (class::AUTHENTICATION_FAILED, format!("the server refuses user, password or token: {text}")),
        403 => (class::AUTHORIZATION_FAILED, format!("the user or token may not write there: {text}")),
        404 if missing => (
            class::TARGET_MISSING,
            format!("{text}; create it, correct its name, or set create_database: true (InfluxDB 1)"),
        ),
        404 => (class::TARGET_MISSING, format!("nothing is found at this address (404): {text}; check `url`")),
        413 => {
            (class::SINK_REJECTED, format!("the request is too big for the server: {text}; set a smaller batch_lines"))
        }
        429 => (class::THROTTLED, format!("the server asks for fewer requests: {text}")),
        400 | 422 if text.contains("field type conflict") => (
            class::TARGET_SCHEMA,
            format!(
                "a field has another type than the query gives it: {text}{}; cast it in the query, or use another measurement",
                point()
            ),
        ),
        400 | 422 if text.contains("partial write") => {
            (class::SINK_REJECTED, format!("the server took only a part of the points: {text}{}", point()))
        }
        400 | 422 => (class::SINK_REJECTED, format!("the server refuses the points: {text}{}", point())),
        408 | 504 => (class::TIMEOUT, format!("the server gave up ({status}): {text}")),
        _ => (class::SERVER_UNAVAILABLE, format!("the server answers {status}: {text}")),
    }
}

/// Which column is what.
struct Layout {
    kinds: Vec<Kind>,
    time: usize,
    time_name: String,
    /// The measurement, escaped.
    measurement: Vec<u8>,
    /// Columns and their escaped names, sorted by name: InfluxDB indexes points faster so.
    tags: Vec<(usize, String, Vec<u8>)>,
    fields: Vec<(usize, Vec<u8>)>,
    precision: Precision,
    allow_overwrite: bool,
}

impl Layout {
    fn new(settings: &InfluxDbSink, context: &SinkContext) -> Result<Self> {
        let wrong = |what: String| Error::new(class::CONFIG_INVALID, format!("influxdb sink: {what}"));
        let fields = context.schema.fields();
        let find = |name: &str, role: &str| {
            fields.iter().position(|f| f.name() == name).ok_or_else(|| {
                let names: Vec<_> = fields.iter().map(|f| f.name().as_str()).collect();
                wrong(format!(
                    "{role} names the column `{name}`, which the query does not give; it gives {}",
                    names.join(", ")
                ))
            })
        };
        let kinds = fields
            .iter()
            .map(|field| {
                Kind::of(field.data_type()).filter(|kind| *kind != Kind::Binary).ok_or_else(|| {
                    wrong(format!(
                        "column `{}` has the type {}, which InfluxDB cannot store; cast it in the query, for example to STRING",
                        field.name(),
                        field.data_type()
                    ))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let time = find(&settings.time, "`time`")?;
        if !matches!(kinds[time], Kind::Timestamp { .. } | Kind::Date) {
            return Err(wrong(format!(
                "`time` must be a TIMESTAMP or DATE; column `{}` is {}",
                settings.time, kinds[time]
            )));
        }
        let mut tags: Vec<(usize, String, Vec<u8>)> = Vec::new();
        for name in &settings.tags {
            let index = find(name, "`tags`")?;
            if index == time || tags.iter().any(|(other, ..)| *other == index) {
                return Err(wrong(format!("column `{name}` is used twice: as a tag, and as another tag or the time")));
            }
            tags.push((index, name.clone(), escaped_name(name)?));
        }
        tags.sort_by(|a, b| a.2.cmp(&b.2));
        let is_tag = |index: usize| tags.iter().any(|(tag, ..)| *tag == index);
        let chosen = match &settings.fields {
            Some(names) => names.iter().map(|name| find(name, "`fields`")).collect::<Result<Vec<_>>>()?,
            None => (0..fields.len()).filter(|i| *i != time && !is_tag(*i)).collect(),
        };
        if let Some(twice) = chosen.iter().find(|i| **i == time || is_tag(**i)) {
            return Err(wrong(format!("column `{}` is a field, and also a tag or the time", fields[*twice].name())));
        }
        if chosen.is_empty() {
            return Err(wrong("no column is left to be a field; a point needs one".to_owned()));
        }
        if !settings.allow_overwrite {
            let covered = |name: &str| name == settings.time || settings.tags.iter().any(|tag| tag == name);
            match context.schema.metadata().get(UNIQUE_KEY) {
                None => {
                    return Err(wrong(
                        "it is not known which columns tell the rows of this query apart (it is not an aggregation), so points with \
                         the same tags and time could overwrite each other and rows be lost; write aggregates, or set \
                         allow_overwrite: true if that is meant"
                            .to_owned(),
                    ));
                }
                Some(key) => {
                    let left: Vec<_> =
                        key.split(',').map(str::trim).filter(|name| !name.is_empty() && !covered(name)).collect();
                    if !left.is_empty() {
                        return Err(wrong(format!(
                            "rows that differ only in {} would be the same point and overwrite each other; add {0} to `tags`, or \
                             set allow_overwrite: true if that is meant",
                            left.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
                        )));
                    }
                }
            }
        }
        let named = chosen
            .into_iter()
            .map(|index| Ok((index, escaped_name(fields[index].name())?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            kinds,
            time,
            time_name: settings.time.clone(),
            measurement: escaped(settings.measurement.as_bytes(), b", "),
            tags,
            fields: named,
            precision: settings.precision,
            allow_overwrite: settings.allow_overwrite,
        })
    }
}

/// `text` with a backslash before each of the `special` characters.
fn escaped(text: &[u8], special: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    escape(text, special, &mut out);
    out
}

fn escape(text: &[u8], special: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        if special.contains(byte) {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

fn escaped_name(name: &str) -> Result<Vec<u8>> {
    if name.is_empty() || name.contains(['\n', '\r']) || name.ends_with('\\') {
        return Err(Error::new(
            class::CONFIG_INVALID,
            format!("influxdb sink: `{name}` cannot be the name of a tag or field; name the column otherwise (AS)"),
        ));
    }
    Ok(escaped(name.as_bytes(), b",= "))
}

/// Line protocol in the making.
struct Lines {
    layout: Arc<Layout>,
    text: Vec<u8>,
    lines: usize,
    /// Rows of the batch that had no field.
    empty: u64,
}

impl Lines {
    fn take(&mut self) -> Vec<u8> {
        self.lines = 0;
        let size = self.text.len() + (self.text.len() >> 3);
        std::mem::replace(&mut self.text, Vec::with_capacity(size))
    }

    /// Appends the line of a row; `number` is that of the row in the batch.
    fn add(&mut self, columns: &[Column], row: usize, number: u64) -> Result<()> {
        let Self { layout, text, .. } = self;
        let refused = |what: String| {
            Error::new(class::SINK_REJECTED, format!("influxdb sink: row {number} of the batch: {what}"))
        };
        let start = text.len();
        text.extend_from_slice(&layout.measurement);
        for (index, name, escaped_name) in &layout.tags {
            let column = &columns[*index];
            if column.is_null(row) {
                continue;
            }
            let before = text.len();
            text.push(b',');
            text.extend_from_slice(escaped_name);
            text.push(b'=');
            let value = text.len();
            match column {
                Column::Text(a) | Column::Json(a) => escape(a.value(row).as_bytes(), b",= ", text),
                Column::Timestamp(a, zoned) => write_iso_timestamp(a.value(row), *zoned, text),
                other => other.write_text(row, text),
            }
            if text.len() == value {
                // InfluxDB knows no empty tag: the point would become that of the row without the tag.
                if !layout.allow_overwrite {
                    return Err(refused(format!(
                        "tag `{name}` is the empty string, which InfluxDB cannot tell from NULL; make it NULL (nullif) or give it a \
                         value, or set allow_overwrite: true"
                    )));
                }
                text.truncate(before);
            } else if text.ends_with(b"\\") || text[value..].contains(&b'\n') {
                return Err(refused(format!(
                    "tag `{name}` has a line break in it or a backslash at its end, which InfluxDB cannot store in a tag; replace it \
                     in the query"
                )));
            }
        }
        let fields = text.len();
        for (index, name) in &layout.fields {
            let column = &columns[*index];
            if column.is_null(row) || !is_finite(column, row) {
                continue;
            }
            text.push(if text.len() == fields { b' ' } else { b',' });
            text.extend_from_slice(name);
            text.push(b'=');
            write_field(column, row, text);
        }
        if text.len() == fields {
            text.truncate(start);
            self.empty += 1;
            return Ok(());
        }
        let time = &columns[layout.time];
        if time.is_null(row) {
            return Err(refused(format!(
                "the time (column `{}`) is NULL; leave such rows out in the query",
                layout.time_name
            )));
        }
        let time = match time {
            Column::Timestamp(a, _) => layout.precision.of_micros(a.value(row)),
            Column::Date(a) => layout.precision.of_micros(i64::from(a.value(row)) * 86_400_000_000),
            _ => return Err(Error::bug("the time of a point is a timestamp or date")),
        };
        let time = time.ok_or_else(|| {
            refused(format!(
                "the time (column `{}`) is outside of 1677 to 2262, which is all that nanoseconds reach; set a coarser precision",
                layout.time_name
            ))
        })?;
        // Writing to a Vec cannot fail.
        let _ = writeln!(text, " {time}");
        self.lines += 1;
        Ok(())
    }
}

fn is_finite(column: &Column, row: usize) -> bool {
    match column {
        Column::Float(a) => a.value(row).is_finite(),
        Column::Double(a) => a.value(row).is_finite(),
        _ => true,
    }
}

fn write_field(column: &Column, row: usize, text: &mut Vec<u8>) {
    let quote = |write: &dyn Fn(&mut Vec<u8>), text: &mut Vec<u8>| {
        text.push(b'"');
        write(text);
        text.push(b'"');
    };
    let _ = match column {
        Column::Short(a) => write!(text, "{}i", a.value(row)),
        Column::Integer(a) => write!(text, "{}i", a.value(row)),
        Column::Long(a) => write!(text, "{}i", a.value(row)),
        // Shortest form that reads back as the same number; `e` where the plain form would be long.
        Column::Float(a) => write!(text, "{:?}", a.value(row)),
        Column::Double(a) => write!(text, "{:?}", a.value(row)),
        Column::Decimal(a, scale) => {
            write_decimal(a.value(row), *scale, text);
            Ok(())
        }
        Column::Boolean(a) => write!(text, "{}", a.value(row)),
        Column::Text(a) | Column::Json(a) => {
            quote(&|text| escape(a.value(row).as_bytes(), b"\"\\", text), text);
            Ok(())
        }
        Column::Timestamp(a, zoned) => {
            quote(&|text| write_iso_timestamp(a.value(row), *zoned, text), text);
            Ok(())
        }
        Column::Date(a) => {
            quote(&|text| write_date(i64::from(a.value(row)), text), text);
            Ok(())
        }
        Column::Time(a) => {
            quote(&|text| write_time(a.value(row), true, text), text);
            Ok(())
        }
        Column::Binary(_) => Ok(()),
    };
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        all_kinds, batch, context, failing_stream, keyed, numbered, rows_of, server, stream_of,
    };
    use super::*;
    use arrow::array::{
        Array, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    };
    use perennial_core::ErrorKind;
    use perennial_core::sink::OutputMode;
    use serde_json::json;
    use std::io::Read;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn settings(more: serde_json::Value) -> InfluxDbSink {
        let mut all = json!({"url": "http://127.0.0.1:1", "measurement": "m", "time": "at"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn open(settings: &InfluxDbSink, rows: &RecordBatch, key: &str) -> Result<Box<dyn Sink>> {
        settings.open(context(keyed(&rows.schema(), key), OutputMode::Append))
    }

    fn at(micros: Vec<Option<i64>>) -> Arc<dyn Array> {
        Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC"))
    }

    fn lines(settings: &InfluxDbSink, rows: &RecordBatch) -> Result<(String, u64)> {
        let layout = Arc::new(Layout::new(settings, &context(keyed(&rows.schema(), ""), OutputMode::Append))?);
        let columns = Column::all(rows, &layout.kinds)?;
        let mut lines = Lines { layout, text: Vec::new(), lines: 0, empty: 0 };
        for row in 0..rows.num_rows() {
            lines.add(&columns, row, row as u64)?;
        }
        Ok((String::from_utf8(lines.text).unwrap(), lines.empty))
    }

    #[test]
    fn rows_become_lines() {
        let rows = rows_of([
            ("a tag", Arc::new(StringArray::from(vec![Some("x, y=z"), None, Some("b"), Some("c")])) as _),
            ("n", Arc::new(Int64Array::from(vec![Some(1), Some(-2), None, None])) as _),
            ("f", Arc::new(Float64Array::from(vec![Some(0.1), Some(f64::NAN), Some(1e300), Some(f64::INFINITY)])) as _),
            ("t", Arc::new(StringArray::from(vec![Some("say \"hi\" \\ \n"), Some(""), None, None])) as _),
            ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), None])) as _),
            ("at", at(vec![Some(1), Some(-1), Some(1_500_000), Some(0)])),
        ]);
        let mut settings = settings(json!({"database": "d", "measurement": "my, m", "tags": ["a tag"]}));
        let (text, empty) = lines(&settings, &rows).unwrap();
        assert_eq!(
            text,
            "my\\,\\ m,a\\ tag=x\\,\\ y\\=z n=1i,f=0.1,t=\"say \\\"hi\\\" \\\\ \n\",b=true 1000\n\
             my\\,\\ m n=-2i,t=\"\" -1000\n\
             my\\,\\ m,a\\ tag=b f=1e300,b=false 1500000000\n"
        );
        assert_eq!(empty, 1, "a row of nothing but NULL and infinity is no point");
        settings.fields = Some(vec!["b".to_owned()]);
        settings.precision = Precision::S;
        settings.measurement = "m".to_owned();
        assert_eq!(lines(&settings, &rows).unwrap().0, "m,a\\ tag=x\\,\\ y\\=z b=true 0\nm,a\\ tag=b b=false 1\n");
    }

    #[test]
    fn values_that_influxdb_cannot_keep_apart_are_refused() {
        let of = |tag: &str, time: Option<i64>| {
            rows_of([
                ("tag", Arc::new(StringArray::from(vec!["fine", tag])) as _),
                ("n", Arc::new(Int64Array::from(vec![1, 2])) as _),
                ("at", at(vec![Some(0), time])),
            ])
        };
        let settings = settings(json!({"database": "d", "tags": ["tag"]}));
        for (rows, part) in [
            (of("", Some(0)), "empty string"),
            (of("a\\", Some(0)), "backslash"),
            (of("a\nb", Some(0)), "line break"),
            (of("a", None), "is NULL"),
            (of("a", Some(i64::MAX / 10)), "precision"),
        ] {
            let error = lines(&settings, &rows).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data);
            assert!(error.to_string().contains("row 1 of the batch") && error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn mappings_that_lose_rows_are_refused() {
        let rows = rows_of([
            ("sensor", Arc::new(StringArray::from(vec!["a"])) as _),
            ("n", Arc::new(Int64Array::from(vec![1])) as _),
            ("at", at(vec![Some(0)])),
        ]);
        let database = settings(json!({"database": "d", "tags": ["sensor"]}));
        open(&database, &rows, "at, sensor").map(drop).unwrap();
        open(&database, &rows, "at").map(drop).unwrap();
        open(&database, &rows, "").map(drop).unwrap();
        let Err(error) = open(&database, &rows, "at,sensor,n") else { panic!() };
        assert!(error.to_string().contains("rows that differ only in `n`"), "{error}");
        let Err(error) = database.open(context(rows.schema(), OutputMode::Append)) else { panic!() };
        assert!(error.to_string().contains("allow_overwrite"), "{error}");
        let allowed = settings(json!({"database": "d", "allow_overwrite": true}));
        allowed.open(context(rows.schema(), OutputMode::Append)).map(drop).unwrap();

        for (wrong, part) in [
            (json!({}), "set either `database`"),
            (json!({"database": "d", "bucket": "b", "org": "o"}), "set either `database`"),
            (json!({"database": "d", "token": "hunter2"}), "InfluxDB 2"),
            (json!({"bucket": "b", "org": "o", "password": "hunter2"}), "InfluxDB 1"),
            (json!({"database": "d", "url": "http://me:hunter2@host"}), "holds credentials"),
            (json!({"database": "d", "url": "localhost:8086"}), "http://localhost:8086"),
            (json!({"database": "d", "time": "n"}), "must be a TIMESTAMP or DATE"),
            (json!({"database": "d", "time": "minute"}), "it gives sensor, n, at"),
            (json!({"database": "d", "tags": ["at"]}), "used twice"),
            (json!({"database": "d", "tags": ["sensor"], "fields": ["sensor"]}), "also a tag"),
            (json!({"database": "d", "tags": ["sensor", "n"]}), "no column is left"),
        ] {
            let settings = settings(wrong);
            let Err(error) = open(&settings, &rows, "at") else { panic!("{part}") };
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.to_string().contains(part), "{error}");
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
        let binary = all_kinds();
        let Err(error) = open(&settings(json!({"database": "d"})), &binary, "at") else { panic!() };
        assert!(error.to_string().contains("`bin`"), "{error}");
    }

    /// A server that answers each request with the next of the given answers. Gives the requests: head, and body unpacked.
    async fn canned(answers: Vec<&'static str>) -> (String, tokio::task::JoinHandle<Vec<(String, String)>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let head = loop {
                    let mut buffer = [0; 4096];
                    let n = stream.read(&mut buffer).await.unwrap();
                    assert!(n > 0, "the request ends early");
                    request.extend_from_slice(&buffer[..n]);
                    if let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") {
                        break end;
                    }
                };
                let text = String::from_utf8(request[..head].to_vec()).unwrap().to_lowercase();
                let length = text
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |length| length.parse().unwrap());
                let mut body = request.split_off(head + 4);
                while body.len() < length {
                    let mut buffer = [0; 4096];
                    let n = stream.read(&mut buffer).await.unwrap();
                    body.extend_from_slice(&buffer[..n]);
                }
                let mut unpacked = String::new();
                if text.contains("content-encoding: gzip") {
                    flate2::read::GzDecoder::new(&*body).read_to_string(&mut unpacked).unwrap();
                }
                stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                requests.push((text, unpacked));
            }
            requests
        });
        (url, server)
    }

    const DONE: &str = "204 No Content\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn the_second_api_is_spoken_as_documented() {
        let rows = rows_of([
            ("n", Arc::new(Int64Array::from(vec![1, 2, 3])) as _),
            ("at", at(vec![Some(1), Some(2), Some(3)])),
        ]);
        let (url, server) = canned(vec![DONE, DONE, "400 Bad Request\r\nconnection: close\r\n\r\n"]).await;
        let settings = settings(json!({
            "url": url, "org": "my org", "bucket": "b", "token": "hunter2", "batch_lines": 2, "precision": "us",
        }));
        let sink = open(&settings, &rows, "at").unwrap();
        let written = sink.write(&batch(0), stream_of(vec![rows])).await.unwrap();
        assert_eq!(written.rows, 3);
        // An empty write is refused for its lack of points, which is all that the check wants to know.
        sink.check().await.unwrap();
        let requests = server.await.unwrap();
        let head = "post /api/v2/write?org=my+org&bucket=b&precision=us http/1.1";
        for (request, body) in requests.iter().zip(["m n=1i 1\nm n=2i 2\n", "m n=3i 3\n", ""]) {
            assert_eq!(request.0.lines().next().unwrap(), head);
            assert!(request.0.contains("authorization: token hunter2"), "{}", request.0);
            assert_eq!(request.1, body);
        }
    }

    #[test]
    fn a_server_may_say_when_as_seconds_or_as_a_date() {
        let now = 1_763_715_600_000_000;
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("Fri, 21 Nov 2025 09:01:30 GMT", Some(90)),
            ("Fri, 21 Nov 2025 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[tokio::test]
    async fn answers_have_their_class() {
        let rows = rows_of([("n", Arc::new(Int64Array::from(vec![1])) as _), ("at", at(vec![Some(1)]))]);
        for (answer, expected, part) in [
            (
                "401 X\r\nconnection: close\r\n\r\n{\"error\":\"authorization failed\"}",
                class::AUTHENTICATION_FAILED,
                "authorization failed",
            ),
            (
                "403 X\r\nconnection: close\r\n\r\n{\"code\":\"forbidden\",\"message\":\"insufficient\"}",
                class::AUTHORIZATION_FAILED,
                "insufficient",
            ),
            (
                "404 X\r\nconnection: close\r\n\r\n{\"error\":\"database not found: \\\"d\\\"\"}",
                class::TARGET_MISSING,
                "create_database",
            ),
            ("404 X\r\nconnection: close\r\n\r\n404 page not found", class::TARGET_MISSING, "check `url`"),
            ("413 X\r\nconnection: close\r\n\r\n{\"error\":\"too large\"}", class::SINK_REJECTED, "batch_lines"),
            ("429 X\r\nretry-after: 7\r\nconnection: close\r\n\r\n", class::THROTTLED, "fewer"),
            ("503 X\r\nretry-after: 7\r\nconnection: close\r\n\r\n", class::SERVER_UNAVAILABLE, "503"),
            (
                "400 X\r\nconnection: close\r\n\r\n{\"error\":\"partial write: field type conflict: input field \\\"n\\\" on measurement \
                 \\\"m\\\" is type integer, already exists as type float dropped=1\"}",
                class::TARGET_SCHEMA,
                "input field \"n\"",
            ),
            (
                "400 X\r\nconnection: close\r\n\r\n{\"error\":\"partial write: points beyond retention policy dropped=3\"}",
                class::SINK_REJECTED,
                "dropped=3 (in the request that begins with row 0 of the batch)",
            ),
        ] {
            let (url, server) = canned(vec![answer]).await;
            let settings = settings(json!({"url": url, "database": "d", "username": "u", "password": "hunter2"}));
            let sink = open(&settings, &rows, "at").unwrap();
            let error = sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err();
            server.await.unwrap();
            assert_eq!(error.class(), expected, "{error:?}");
            assert!(error.to_string().contains(part), "{error}");
            assert!(error.to_string().contains("database `d` at http://127.0.0.1"), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error}");
            let throttled = answer.contains("retry-after");
            assert_eq!(error.retry_hint(), throttled.then_some(Duration::from_secs(7)));
        }
        // Nobody there, and a server that goes away in the middle.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for (url, expected) in [
            (format!("http://{closed}"), class::CONNECTION_REFUSED),
            ("http://no-such-host.invalid:8086".to_owned(), class::NAME_NOT_RESOLVED),
            (canned(vec![""]).await.0, class::CONNECTION_LOST),
        ] {
            let sink = open(&settings(json!({"url": url, "database": "d"})), &rows, "at").unwrap();
            let error = sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err();
            assert!(error.class() == expected, "{error:?}");
        }
    }

    /// A database of its own for each test, in the server of `make test`.
    async fn ask(database: &str, query: &str) -> serde_json::Value {
        let url = server("PERENNIAL_TEST_INFLUXDB");
        let url =
            address(&url, "query", &[("db", database.to_owned()), ("q", query.to_owned()), ("epoch", "u".to_owned())]);
        let text = reqwest::Client::new().post(url.unwrap()).send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    async fn fresh(database: &str) {
        ask("", &format!("DROP DATABASE {database}")).await;
    }

    #[tokio::test]
    #[ignore = "needs InfluxDB: run make test"]
    async fn points_arrive_and_overwrite_themselves() {
        fresh("sink_points").await;
        let rows = rows_of([
            ("sensor", Arc::new(StringArray::from(vec![Some("a b"), Some("c,=d"), None])) as _),
            ("n", Arc::new(Int64Array::from(vec![Some(1), Some(2), None])) as _),
            ("f", Arc::new(Float64Array::from(vec![Some(0.5), None, Some(1e-7)])) as _),
            ("t", Arc::new(StringArray::from(vec![Some("\"\\\nü"), None, None])) as _),
            ("at", at(vec![Some(1_795_254_263_120_001), Some(2), Some(-3)])),
        ]);
        let url = server("PERENNIAL_TEST_INFLUXDB");
        let mut with = settings(json!({
            "url": url, "database": "sink_points", "create_database": true, "tags": ["sensor"], "batch_lines": 2,
        }));
        let sink = open(&with, &rows, "at,sensor").unwrap();
        sink.check().await.unwrap();
        for _ in 0..2 {
            let written = sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
            assert_eq!((written.rows, written.duplicate), (3, false));
            assert!(written.bytes > 0);
        }
        let found = ask("sink_points", "SELECT * FROM m").await;
        assert_eq!(
            found["results"][0]["series"][0],
            json!({
                "name": "m",
                "columns": ["time", "f", "n", "sensor", "t"],
                "values": [
                    [-3, 1e-7, null, null, null],
                    [2, null, 2, "c,=d", null],
                    [1_795_254_263_120_001i64, 0.5, 1, "a b", "\"\\\nü"],
                ],
            })
        );
        // A stream that fails leaves what was sent, which the repetition overwrites.
        sink.write(&batch(0), failing_stream(vec![rows.clone(), rows.clone()])).await.unwrap_err();
        assert_eq!(ask("sink_points", "SELECT count(n) FROM m").await["results"][0]["series"][0]["values"][0][1], 2);

        // A field of another type, as the real server says it.
        let other = rows_of([
            ("n", Arc::new(StringArray::from(vec!["text"])) as _),
            ("at", at(vec![Some(1_795_254_263_120_001)])),
        ]);
        with.tags.clear();
        let error = open(&with, &other, "at").unwrap().write(&batch(1), stream_of(vec![other])).await.unwrap_err();
        assert_eq!(error.class(), class::TARGET_SCHEMA, "{error:?}");
        assert!(error.to_string().contains("input field \"n\" on measurement \"m\" is type string"), "{error}");
    }

    #[tokio::test]
    #[ignore = "needs InfluxDB: run make test"]
    async fn a_missing_database_is_told_by_the_check() {
        fresh("sink_missing").await;
        let rows = rows_of([("n", Arc::new(Int64Array::from(vec![1])) as _), ("at", at(vec![Some(1)]))]);
        let mut with = settings(json!({"url": server("PERENNIAL_TEST_INFLUXDB"), "database": "sink_missing"}));
        let sink = open(&with, &rows, "at").unwrap();
        for error in
            [sink.check().await.unwrap_err(), sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err()]
        {
            assert_eq!(error.class(), class::TARGET_MISSING, "{error:?}");
        }
        with.create_database = true;
        let creating = open(&with, &rows, "at").unwrap();
        creating.check().await.unwrap();
        assert_eq!(sink.check().await.unwrap_err().class(), class::TARGET_MISSING, "the check makes nothing");
        creating.write(&batch(0), stream_of(vec![rows])).await.unwrap();
        sink.check().await.unwrap();
    }

    #[tokio::test]
    #[ignore = "needs InfluxDB: run make test"]
    async fn many_points_go_in_many_requests() {
        fresh("sink_many").await;
        let numbers = numbered(0, 25_001);
        let times: Vec<_> = (0..25_001).map(Some).collect();
        let rows =
            rows_of([("value", numbers.column(1).clone()), ("id", numbers.column(0).clone()), ("at", at(times))]);
        let url = server("PERENNIAL_TEST_INFLUXDB");
        let with = settings(json!({"url": url, "database": "sink_many", "create_database": true}));
        let sink = open(&with, &rows, "at").unwrap();
        sink.write(&batch(0), stream_of(vec![rows])).await.unwrap();
        let sums = ask("sink_many", "SELECT count(id), sum(value) FROM m").await;
        assert_eq!(sums["results"][0]["series"][0]["values"][0], json!([0, 25_001, 156_256_250]));
    }
}
