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
use perennial_core::error::{Error, ErrorClass, Result, class};
use perennial_core::sink::{Delivery, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use reqwest::{Response, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::UNIQUE_KEY;
use super::columns::{Column, Kind, write_date, write_decimal, write_iso_timestamp, write_time};
use super::fault::network_class;

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
        Faults { target: self.endpoint.target.clone(), timeout: self.settings.timeout }
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
            _ => "cannot be reached".to_owned(),
        };
        Error::new(class, format!("influxdb sink: {} {what}", self.target)).caused_by(error)
    }

    /// An answer that is not a success. `sent` is the number of the first row of the request.
    async fn refused(&self, answer: Response, sent: Option<u64>) -> Error {
        let status = answer.status();
        let retry_after = answer
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|seconds| seconds.trim().parse().ok())
            .map(Duration::from_secs);
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
