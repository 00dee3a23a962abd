use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::header;
use axum::routing::get;
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use perennial::connectors::simulate::produce::FilesTarget;
use perennial::connectors::simulate::{Generator, Profile, Progress, Rate, Run, SimulateSource, Target, produce};
use perennial::connectors::sources::Timestamp;
use perennial::http::{self, Exposition, Server};
use perennial::run;
use perennial_core::config::HumanDuration;
use perennial_core::error::{Error, Result, class};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use crate::logging::LogArgs;
use crate::signals::stop_on_signals;
use crate::terminal::Failure;

/// Produce simulated records.
///
/// The same generator as the `simulate` source: the same profile, seed, start and shares always give the same records. It runs until all
/// `--records` are sent or it is stopped, and tells its counts as Prometheus metrics.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial simulate greenhouse --to stdout --records 10\n  \
                        perennial simulate greenhouse --to kafka --topic hydroponic-sensors --rate 5000 --malformed 0.01\n  \
                        perennial simulate transactions --to files --path ./in --records 1000000 --rate max")]
pub struct Simulate {
    /// What the records look like.
    #[arg(value_parser = PossibleValuesParser::new(Profile::ALL.map(Profile::name)).map(|name| profile(&name)))]
    profile: Profile,

    /// Where they go.
    #[arg(long, value_enum)]
    to: To,

    /// How many records; without it until it is stopped.
    #[arg(long, value_name = "N")]
    records: Option<u64>,

    /// Records per second, or `max`.
    #[arg(long, default_value = "1000", value_parser = rate)]
    rate: Rate,

    /// Number of the first record: goes on where an earlier run ended.
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: u64,

    #[command(flatten)]
    shape: Shape,

    #[cfg(feature = "kafka")]
    #[command(flatten)]
    kafka: Kafka,

    #[command(flatten)]
    files: Files,

    /// Address and port of the metrics (`/metrics`); `off` for none.
    #[arg(long, default_value = "0.0.0.0:8000", value_name = "ADDRESS", help_heading = "Watching")]
    metrics: String,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// A Kafka topic.
    Kafka,
    /// JSON-lines files in a directory.
    Files,
    /// Standard output, a record a line.
    Stdout,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Records")]
struct Shape {
    /// Another seed gives other records.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// How many sensors, users, devices or accounts there are.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    keys: u32,

    /// Event time of record 0, such as `2026-01-01T00:00:00Z`. By default now.
    #[arg(long, value_name = "TIME")]
    start: Option<Timestamp>,

    /// How far event time goes on from record to record. By default what the rate gives, and 1 ms at the rate `max`.
    #[arg(long, value_name = "DURATION")]
    event_interval: Option<HumanDuration>,

    /// Share of records that cannot be decoded, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    malformed: f64,

    /// Share of records that are sent again, 0 to 0.5.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    duplicates: f64,

    /// Share of records whose event time lies back by up to `--max-delay`, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    out_of_order: f64,

    /// Share of records whose event time lies back further than that, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    late: f64,

    /// The border between out of order and late.
    #[arg(long, default_value = "10 minutes", value_name = "DURATION")]
    max_delay: HumanDuration,
}

#[cfg(feature = "kafka")]
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With --to kafka")]
struct Kafka {
    /// Addresses of brokers, separated by commas.
    #[arg(long, default_value = "localhost:9092", env = "KAFKA_BROKERS", value_name = "ADDRESSES")]
    brokers: String,

    /// The topic.
    #[arg(long, required_if_eq("to", "kafka"))]
    topic: Option<String>,

    /// Make the topic with so many partitions where it does not exist.
    #[arg(long, value_name = "N")]
    partitions: Option<i32>,

    /// A property of librdkafka, for TLS, SASL and tuning; several times for several.
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With --to files")]
struct Files {
    /// The directory; it is made where it does not exist.
    #[arg(long, required_if_eq("to", "files"))]
    path: Option<PathBuf>,

    /// Records per file.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    records_per_file: u64,
}

fn profile(name: &str) -> Profile {
    Profile::ALL.into_iter().find(|profile| profile.name() == name).unwrap_or_default()
}

fn rate(text: &str) -> Result<Rate, String> {
    let text: StrDeserializer<'_, ValueError> = text.into_deserializer();
    Rate::deserialize(text).map_err(|error| error.to_string())
}

#[cfg(feature = "kafka")]
fn property(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(name, value)| (name.trim().to_owned(), value.to_owned()))
        .ok_or_else(|| "write NAME=VALUE, for example security.protocol=SSL".to_owned())
}

impl Simulate {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        self.log.start();
        let progress = Arc::new(Progress::default());
        let metrics = self.serve_metrics(progress.clone())?;
        let run = Run {
            generator: Generator::new(self.settings().recipe(now_ms()))?,
            first: self.first,
            records: self.records,
            rate: self.rate,
        };
        let target = self.target()?;
        let began = Instant::now();
        let sent = run::runtime()?.block_on(async {
            let stop = stop_on_signals().map_err(|error| Error::bug(format!("signals cannot be received: {error}")))?;
            let watching = tokio::spawn(watch(self.bar(), progress.clone()));
            let sent = produce(run, target, progress.clone(), stop).await;
            watching.abort();
            sent
        });
        drop(metrics);
        let seconds = began.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let (messages, bytes) = (progress.messages(), progress.bytes());
        tracing::info!(
            messages,
            bytes,
            malformed = progress.malformed(),
            duplicates = progress.duplicates(),
            out_of_order = progress.out_of_order(),
            late = progress.late(),
            errors = progress.errors(),
            per_second = (messages as f64 / seconds).round(),
            "sent"
        );
        sent?;
        Ok(ExitCode::SUCCESS)
    }

    fn settings(&self) -> SimulateSource {
        let shape = &self.shape;
        SimulateSource {
            profile: self.profile,
            seed: shape.seed,
            keys: shape.keys,
            rate: self.rate,
            start: shape.start,
            event_interval: shape.event_interval,
            malformed: shape.malformed,
            duplicates: shape.duplicates,
            out_of_order: shape.out_of_order,
            late: shape.late,
            max_delay: shape.max_delay,
            ..Default::default()
        }
    }

    fn target(&self) -> Result<Target> {
        match self.to {
            To::Stdout => Ok(Target::Stdout),
            To::Files => {
                let mut target = FilesTarget::new(self.files.path.clone().unwrap_or_default());
                target.records_per_file = self.files.records_per_file.max(1);
                Ok(Target::Files(target))
            }
            To::Kafka => self.kafka_target(),
        }
    }

    #[cfg(feature = "kafka")]
    fn kafka_target(&self) -> Result<Target> {
        let properties: serde_json::Map<_, _> =
            self.kafka.properties.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        let properties = serde_json::from_value(properties.into())
            .map_err(|error| Error::new(class::CONFIG_INVALID, format!("--property: {error}")))?;
        Ok(Target::Kafka(perennial::connectors::sources::kafka::KafkaTarget {
            brokers: self.kafka.brokers.clone(),
            topic: self.kafka.topic.clone().unwrap_or_default(),
            create_partitions: self.kafka.partitions,
            properties,
        }))
    }

    #[cfg(not(feature = "kafka"))]
    fn kafka_target(&self) -> Result<Target> {
        Err(Error::new(class::CONFIG_INVALID, "this build has no Kafka; build it with `cargo build --features kafka`"))
    }

    fn serve_metrics(&self, progress: Arc<Progress>) -> Result<Option<Server>> {
        if self.metrics == "off" {
            return Ok(None);
        }
        let listener = http::bind(&self.metrics, "`--metrics ADDRESS` (`--metrics off` for none)")?;
        let answer = async move || ([(header::CONTENT_TYPE, Exposition::CONTENT_TYPE)], metrics(&progress));
        let server = listener.serve(axum::Router::new().route("/metrics", get(answer)), None)?;
        tracing::info!(metrics = %format!("{}/metrics", server.url()), "http");
        Ok(Some(server))
    }

    /// A bar where there is an end to come nearer to, a counter where there is none, and nothing where nobody looks.
    fn bar(&self) -> ProgressBar {
        if !stderr().is_terminal() || self.log.is_json() {
            return ProgressBar::hidden();
        }
        let (bar, template) = match self.records {
            Some(records) => (ProgressBar::new(records), "{bar:40} {human_pos}/{human_len} {per_sec} eta {eta}"),
            None => (ProgressBar::no_length(), "{spinner} {human_pos} records {per_sec} {elapsed}"),
        };
        ProgressStyle::with_template(template).map_or(bar.clone(), |style| bar.with_style(style))
    }
}

async fn watch(bar: ProgressBar, progress: Arc<Progress>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        bar.set_position(progress.messages());
    }
}

fn metrics(progress: &Progress) -> String {
    let mut out = Exposition::default();
    for (name, help, value) in [
        // The name that dashboards of hand-written producers have.
        ("messages_sent_total", "Records handed to the target.", progress.messages()),
        ("perennial_simulate_messages_total", "Records handed to the target.", progress.messages()),
        ("perennial_simulate_bytes_total", "Bytes of them.", progress.bytes()),
        ("perennial_simulate_errors_total", "Records that the target did not take.", progress.errors()),
        ("perennial_simulate_malformed_total", "Malformed records among them.", progress.malformed()),
        ("perennial_simulate_duplicates_total", "Repeated records among them.", progress.duplicates()),
        ("perennial_simulate_out_of_order_total", "Records out of order among them.", progress.out_of_order()),
        ("perennial_simulate_late_total", "Late records among them.", progress.late()),
    ] {
        out.single(name, "counter", help, value);
    }
    out.finish()
}

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}
