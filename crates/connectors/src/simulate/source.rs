//! The `simulate` source: records that come by themselves, and the same ones after every restart.

use std::fmt;
use std::sync::Arc;

use arrow::array::BinaryArray;
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use async_trait::async_trait;
use futures::StreamExt;
use perennial_core::config::HumanDuration;
use perennial_core::error::{Error, Result, class};
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::records::{Input, Payload, Position, RecordBlock};
use perennial_core::source::{InputStream, Lag, ReadLimit, Replay, Source, SourceContext, SourceFactory};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::sync::OnceCell;

use super::generator::{Generator, Recipe};
use super::profiles::Profile;
use crate::sources::Timestamp;

/// Simulated records, made by the job itself: for demonstrations, tests and benchmarks. The same offset always gives the same record,
/// so a query over them recovers exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SimulateSource {
    /// What the records look like: `greenhouse`, `health`, `device` or `transactions`. Default: `greenhouse`.
    pub profile: Profile,
    /// Two seeds give two unrelated sequences of records. Default: 0.
    pub seed: u64,
    /// Number of sensors, users, devices or accounts. Default: 1000.
    pub keys: u32,
    /// Records per second, or `max`: all at once. Default: 1000.
    pub rate: Rate,
    /// How many records there are; without it they never end. Default: none.
    pub records: Option<u64>,
    /// At most this many records in one batch. Default: no limit, but 1,000,000 where the rate is `max` and there is no end.
    pub max_records_per_batch: Option<u64>,
    /// Event time of the first record. Default: the time at which the query first starts.
    pub start: Option<Timestamp>,
    /// How far event time goes on from record to record. Default: what the rate gives, and 1 millisecond for the rate `max`.
    pub event_interval: Option<HumanDuration>,
    /// Share of records that cannot be decoded (cut off, not UTF-8, a wrong type, a missing field), 0 to 1. Default: 0.
    pub malformed: f64,
    /// Share of records that are sent again, 0 to 0.5. Default: 0.
    pub duplicates: f64,
    /// Share of records whose event time lies back by up to `max_delay`, 0 to 1. Default: 0.
    pub out_of_order: f64,
    /// Share of records whose event time lies back by more than `max_delay`, up to twice that, 0 to 1. Default: 0.
    pub late: f64,
    /// The border between out of order and late; set it to the watermark's delay. Default: 10 minutes.
    pub max_delay: HumanDuration,
}

impl Default for SimulateSource {
    fn default() -> Self {
        let recipe = Recipe::default();
        Self {
            profile: recipe.profile,
            seed: recipe.seed,
            keys: recipe.keys,
            rate: Rate::default(),
            records: None,
            max_records_per_batch: None,
            start: None,
            event_interval: None,
            malformed: recipe.malformed,
            duplicates: recipe.duplicates,
            out_of_order: recipe.out_of_order,
            late: recipe.late,
            max_delay: HumanDuration(recipe.max_delay),
        }
    }
}

impl SimulateSource {
    /// The recipe of these settings for a query that first starts at `now_ms`.
    pub fn recipe(&self, now_ms: i64) -> Recipe {
        Recipe {
            profile: self.profile,
            seed: self.seed,
            keys: self.keys,
            start_ms: self.start.map_or(now_ms, |start| start.0),
            interval_ns: match (self.event_interval, self.rate) {
                (Some(interval), _) => u64::try_from(interval.0.as_nanos()).unwrap_or(u64::MAX),
                (None, Rate::PerSecond(rate)) => (1e9 / rate) as u64,
                (None, Rate::Max) => 1_000_000,
            },
            malformed: self.malformed,
            duplicates: self.duplicates,
            out_of_order: self.out_of_order,
            late: self.late,
            max_delay: self.max_delay.0,
        }
    }
}

impl SourceFactory for SimulateSource {
    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        Generator::new(self.recipe(0))?;
        if self.max_records_per_batch == Some(0) {
            return Err(Error::new(class::CONFIG_INVALID, "max_records_per_batch is 0: give at least 1"));
        }
        Ok(Box::new(Simulate { settings: self.clone(), context, started: OnceCell::new() }))
    }
}

/// How fast simulated records come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// So many a second; more than 0.
    PerSecond(f64),
    /// All at once.
    Max,
}

impl Default for Rate {
    fn default() -> Self {
        Self::PerSecond(1000.0)
    }
}

impl Rate {
    /// How many records there are `elapsed_us` microseconds after the start.
    fn records_after(self, elapsed_us: i64) -> u64 {
        match self {
            // The first record is there at the start.
            Self::PerSecond(rate) if elapsed_us >= 0 => 1 + (elapsed_us as f64 * rate / 1e6) as u64,
            Self::PerSecond(_) => 0,
            Self::Max => u64::MAX,
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::PerSecond(rate) => serializer.serialize_f64(*rate),
            Self::Max => serializer.serialize_str("max"),
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("records per second (more than 0) or `max`")
            }

            fn visit_f64<E: de::Error>(self, rate: f64) -> Result<Rate, E> {
                if rate > 0.0 && rate.is_finite() {
                    Ok(Rate::PerSecond(rate))
                } else {
                    Err(E::invalid_value(de::Unexpected::Float(rate), &self))
                }
            }

            fn visit_u64<E: de::Error>(self, rate: u64) -> Result<Rate, E> {
                self.visit_f64(rate as f64)
            }

            fn visit_i64<E: de::Error>(self, rate: i64) -> Result<Rate, E> {
                self.visit_f64(rate as f64)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                match text.trim() {
                    "max" => Ok(Rate::Max),
                    other => match other.parse() {
                        Ok(rate) => self.visit_f64(rate),
                        Err(_) => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                    },
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Records per second, or `max`: all at once.",
            "anyOf": [{ "type": "number", "exclusiveMinimum": 0 }, { "const": "max" }],
        })
    }
}

/// What the source keeps in its log: when it began, and all that its records depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Beginning {
    #[serde(rename = "startMs")]
    start_ms: i64,
    rate: Rate,
    recipe: Recipe,
}

const LOG_FILE: &str = "0";
const LOG_VERSION: &str = "v1\n";
/// Where neither the settings nor the rate bound a batch.
const DEFAULT_BATCH: u64 = 1_000_000;
/// About 2 MB of records.
const BLOCK_RECORDS: u64 = 16_384;

struct Simulate {
    settings: SimulateSource,
    context: SourceContext,
    started: OnceCell<(Beginning, Arc<Generator>)>,
}

impl Simulate {
    /// The durable beginning: that of the log, or now.
    async fn started(&self) -> Result<&(Beginning, Arc<Generator>)> {
        self.started
            .get_or_try_init(|| async {
                let now_ms = self.context.env.now_ms();
                let beginning = match self.context.log.read(LOG_FILE).await? {
                    Some(content) => self.resume(&content)?,
                    None => {
                        let recipe = self.settings.recipe(now_ms);
                        let beginning = Beginning { start_ms: now_ms, rate: self.settings.rate, recipe };
                        let json = serde_json::to_string(&beginning)
                            .map_err(|e| Error::bug(format!("the beginning of a simulation does not encode: {e}")))?;
                        let content = format!("{LOG_VERSION}{json}");
                        self.context.log.write(LOG_FILE, content.clone().into()).await?;
                        // What a restart will read, to the last bit of each number.
                        self.resume(content.as_bytes())?
                    }
                };
                let generator = Arc::new(Generator::new(beginning.recipe.clone())?);
                Ok((beginning, generator))
            })
            .await
    }

    /// Reads the log and compares it with the settings: with other settings the same offsets would be other records.
    fn resume(&self, content: &[u8]) -> Result<Beginning> {
        let place = format!("the log of source {} of query {}", self.context.source, self.context.query);
        let text = std::str::from_utf8(content).unwrap_or_default();
        let logged: Beginning = match text.strip_prefix(LOG_VERSION).map(serde_json::from_str) {
            Some(Ok(logged)) => logged,
            Some(Err(error)) => {
                return Err(Error::new(
                    class::CHECKPOINT_MISMATCH,
                    format!("{place} is not of a simulate source: {error}"),
                ));
            }
            None => {
                return Err(Error::new(class::CHECKPOINT_MISMATCH, format!("{place} does not begin with `v1`")));
            }
        };
        let set = Beginning {
            start_ms: logged.start_ms,
            rate: self.settings.rate,
            recipe: self.settings.recipe(logged.recipe.start_ms),
        };
        // Both went through text, so that they are equal to the last bit where the settings are.
        let (set, was) = (json(&set), json(&logged));
        if set == was {
            return Ok(logged);
        }
        let differing: Vec<_> = ["rate", "recipe"]
            .iter()
            .flat_map(|part| match (&set[part], &was[part]) {
                (serde_json::Value::Object(set), serde_json::Value::Object(was)) => set
                    .iter()
                    .filter(|(name, value)| was.get(*name) != Some(value))
                    .map(|(name, value)| format!("{name} is {value} and was {}", was[name]))
                    .collect(),
                (set, was) if set != was => vec![format!("{part} is {set} and was {was}")],
                _ => vec![],
            })
            .collect();
        Err(Error::new(
            class::CHECKPOINT_MISMATCH,
            format!(
                "{place} was begun with other settings, so its records would change: {}; set them back, or use another checkpoint",
                differing.join(", ")
            ),
        ))
    }

    /// How many records there are now.
    async fn available(&self) -> Result<u64> {
        let (beginning, _) = self.started().await?;
        let elapsed_us = self.context.env.clock.now_micros() - beginning.start_ms * 1000;
        Ok(beginning.rate.records_after(elapsed_us).min(self.settings.records.unwrap_or(u64::MAX)))
    }

    fn count(offset: Option<&Offset>) -> Result<u64> {
        offset.map_or(Ok(0), Offset::decode)
    }
}

fn json(value: &Beginning) -> serde_json::Value {
    serde_json::to_string(value).and_then(|text| serde_json::from_str(&text)).unwrap_or_default()
}

#[async_trait]
impl Source for Simulate {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, start: Option<&Offset>, limit: &ReadLimit) -> Result<Option<Offset>> {
        let from = Self::count(start)?;
        let available = self.available().await?.max(from);
        let own = self.settings.max_records_per_batch.or((available == u64::MAX).then_some(DEFAULT_BATCH));
        let most = own.unwrap_or(u64::MAX).min(limit.max_records.unwrap_or(u64::MAX));
        let until = limit.until.as_ref().map_or(Ok(u64::MAX), Offset::decode)?;
        let end = available.min(from.saturating_add(most)).min(until).max(from);
        match start {
            Some(start) if end == from => Ok(Some(start.clone())),
            None if end == 0 => Ok(None),
            _ => Offset::encode(&end).map(Some),
        }
    }

    async fn newest(&self, _start: Option<&Offset>, _: &ReadLimit) -> Result<Option<Offset>> {
        match self.available().await? {
            u64::MAX => Err(Error::new(
                class::CONFIG_INVALID,
                format!(
                    "source {} never ends (rate: max without records), so available_now would not end either: set records",
                    self.context.source
                ),
            )),
            0 => Ok(None),
            available => Offset::encode(&available).map(Some),
        }
    }

    async fn read(&self, range: &OffsetRange, parallelism: usize) -> Result<Vec<InputStream>> {
        let (first, end) = (Self::count(range.start.as_ref())?, Self::count(Some(&range.end))?);
        let (_, generator) = self.started().await?;
        let name: Arc<str> = self.context.source.as_str().into();
        // Whole blocks, so that the streams of a small batch do not give blocks of a few records.
        let blocks = end.saturating_sub(first).div_ceil(BLOCK_RECORDS);
        let share = blocks.div_ceil(parallelism.max(1) as u64).max(1) * BLOCK_RECORDS;
        let mut streams = Vec::new();
        let mut from = first;
        while from < end {
            let to = from.saturating_add(share).min(end);
            let (generator, name) = (generator.clone(), name.clone());
            let firsts = (from..to).step_by(BLOCK_RECORDS as usize);
            let blocks = firsts.map(move |first| block(&generator, &name, first, (first + BLOCK_RECORDS).min(to)));
            streams.push(futures::stream::iter(blocks).boxed());
            from = to;
        }
        Ok(streams)
    }

    async fn lag(&self, end: Option<&Offset>) -> Result<Option<Lag>> {
        let waiting = match self.available().await? {
            u64::MAX => None,
            available => Some(available.saturating_sub(Self::count(end)?)),
        };
        Ok(Some(Lag { records: waiting, partitions: Vec::new() }))
    }

    async fn check(&self) -> Result<()> {
        match self.context.log.read(LOG_FILE).await? {
            Some(content) => self.resume(&content).map(|_| ()),
            None => Ok(()),
        }
    }
}

/// Records `first..end`.
fn block(generator: &Generator, name: &Arc<str>, first: u64, end: u64) -> Result<Input> {
    let count = (end - first) as usize;
    let mut values = Vec::with_capacity(count * 150);
    let mut offsets = Vec::with_capacity(count + 1);
    offsets.push(0_i32);
    for number in first..end {
        generator.generate(number, &mut values);
        offsets.push(values.len() as i32);
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    let values = BinaryArray::try_new(offsets, Buffer::from_vec(values), None)?;
    let position = Position::Sequence { name: name.clone(), first };
    Ok(Input::Records(RecordBlock { payload: Payload::Values(values), position }))
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;

    use super::*;
    use crate::sources::testing::{World, collect};

    fn settings(yaml_as_json: &str) -> SimulateSource {
        serde_json::from_str(yaml_as_json).unwrap()
    }

    fn values(inputs: &[Input]) -> Vec<Vec<u8>> {
        let mut values: Vec<(u64, Vec<u8>)> = Vec::new();
        for input in inputs {
            let Input::Records(RecordBlock {
                payload: Payload::Values(array),
                position: Position::Sequence { first, .. },
            }) = input
            else {
                panic!("not a block of a sequence")
            };
            values.extend((0..array.len()).map(|i| (first + i as u64, array.value(i).to_vec())));
        }
        values.sort();
        assert!(values.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0), "no gap and nothing twice");
        values.into_iter().map(|(_, value)| value).collect()
    }

    #[test]
    fn settings_are_read_and_checked() {
        assert_eq!(settings("{}"), SimulateSource::default());
        assert_eq!(settings(r#"{"rate": "max"}"#).rate, Rate::Max);
        assert_eq!(settings(r#"{"rate": 2}"#).recipe(5).interval_ns, 500_000_000);
        assert_eq!(settings(r#"{"rate": 2, "event_interval": "1 ms"}"#).recipe(5).interval_ns, 1_000_000);
        assert_eq!(settings(r#"{"start": "1970-01-01T00:00:01Z"}"#).recipe(5).start_ms, 1000);
        for wrong in [r#"{"rate": 0}"#, r#"{"rate": "fast"}"#, r#"{"profile": "rocket"}"#, r#"{"sped": 1}"#] {
            assert!(serde_json::from_str::<SimulateSource>(wrong).is_err(), "{wrong}");
        }
        let back = serde_json::to_string(&settings(r#"{"rate": "max", "start": 1500}"#)).unwrap();
        assert_eq!(settings(&back), settings(r#"{"rate": "max", "start": 1500}"#));
    }

    #[tokio::test]
    async fn records_come_at_the_rate_and_go_on_after_a_restart() {
        let world = World::new();
        let settings = settings(r#"{"rate": 10, "keys": 5, "malformed": 0.1}"#);
        let source = settings.open(world.context()).unwrap();
        assert_eq!(source.latest(None, &ReadLimit::default()).await.unwrap().unwrap().as_str(), "1");
        world.clock.advance_ms(1_000);
        let end = source.latest(None, &ReadLimit::default()).await.unwrap().unwrap();
        assert_eq!(end.as_str(), "11");
        assert_eq!(source.latest(Some(&end), &ReadLimit::default()).await.unwrap(), Some(end.clone()), "nothing new");
        let first = collect(&*source, None, &end, 2).await;
        world.clock.advance_ms(500);

        let again = settings.open(world.context()).unwrap();
        assert_eq!(values(&collect(&*again, None, &end, 1).await), values(&first));
        let next = again.latest(Some(&end), &ReadLimit::default()).await.unwrap().unwrap();
        assert_eq!(next.as_str(), "16");
        assert_eq!(again.lag(Some(&end)).await.unwrap().unwrap().records, Some(5));
        let limit = ReadLimit { max_records: Some(2), until: None };
        assert_eq!(again.latest(Some(&end), &limit).await.unwrap().unwrap().as_str(), "13");
        let limit = ReadLimit { max_records: None, until: Some(Offset::from_json("12")) };
        assert_eq!(again.latest(Some(&end), &limit).await.unwrap().unwrap().as_str(), "12");
        assert_eq!(again.newest(Some(&end), &ReadLimit::default()).await.unwrap().unwrap().as_str(), "16");
    }

    #[tokio::test]
    async fn streams_share_the_records() {
        let world = World::new();
        let source = settings(r#"{"rate": "max", "records": 100000, "seed": 3}"#).open(world.context()).unwrap();
        let end = source.newest(None, &ReadLimit::default()).await.unwrap().unwrap();
        assert_eq!(end.as_str(), "100000");
        let range = OffsetRange { start: Some(Offset::from_json("10")), end: end.clone() };
        assert_eq!(source.read(&range, 4).await.unwrap().len(), 4);
        let one = values(&collect(&*source, None, &end, 1).await);
        assert_eq!(one.len(), 100_000);
        assert_eq!(one, values(&collect(&*source, None, &end, 3).await));
        let empty = OffsetRange { start: Some(end.clone()), end };
        assert!(source.read(&empty, 4).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn other_settings_on_the_same_checkpoint_are_refused() {
        let world = World::new();
        let source = settings(r#"{"seed": 1}"#).open(world.context()).unwrap();
        source.latest(None, &ReadLimit::default()).await.unwrap();
        let same = settings(r#"{"seed": 1, "records": 7}"#).open(world.context()).unwrap();
        same.check().await.unwrap();
        let other = settings(r#"{"seed": 2, "rate": 5}"#).open(world.context()).unwrap();
        for error in [other.check().await.unwrap_err(), other.latest(None, &ReadLimit::default()).await.unwrap_err()] {
            assert_eq!(error.class(), class::CHECKPOINT_MISMATCH);
            assert!(error.to_string().contains("seed is 2 and was 1"), "{error}");
            assert!(error.to_string().contains("rate is 5.0 and was 1000.0"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_never_ends_is_bounded_per_batch_and_refused_for_available_now() {
        let world = World::new();
        let source = settings(r#"{"rate": "max"}"#).open(world.context()).unwrap();
        let end = source.latest(None, &ReadLimit::default()).await.unwrap().unwrap();
        assert_eq!(end.as_str(), "1000000");
        assert_eq!(source.newest(None, &ReadLimit::default()).await.unwrap_err().class(), class::CONFIG_INVALID);
        assert_eq!(source.lag(Some(&end)).await.unwrap().unwrap().records, None);
    }
}
