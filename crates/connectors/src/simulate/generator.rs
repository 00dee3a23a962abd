//! From the number of a record to its bytes.

use std::time::Duration;

use perennial_core::error::{Error, Result, class};
use serde::{Deserialize, Serialize};

use super::profiles::{self, EventTime, Profile, Record};

/// A duplicate repeats one of this many records before it.
const DUPLICATE_DISTANCE: u64 = 8;

/// What makes up the records: equal recipes give equal bytes, on every machine and in every version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What the records look like.
    pub profile: Profile,
    /// Two seeds give two unrelated sequences.
    pub seed: u64,
    /// How many sensors, users, devices or accounts there are; at least 1.
    pub keys: u32,
    /// Event time of record 0, in milliseconds since the epoch.
    pub start_ms: i64,
    /// How far event time goes on from one record to the next, in nanoseconds.
    pub interval_ns: u64,
    /// Share of records that cannot be decoded, 0 to 1.
    pub malformed: f64,
    /// Share of records that repeat one of the 8 records before them byte by byte, 0 to 0.5.
    pub duplicates: f64,
    /// Share of records whose event time lies back by up to `max_delay`, 0 to 1.
    pub out_of_order: f64,
    /// Share of records whose event time lies back by more than `max_delay` (up to twice that), 0 to 1.
    pub late: f64,
    /// The border between out of order and late.
    pub max_delay: Duration,
}

impl Default for Recipe {
    /// 1,000 greenhouse sensors, a record per millisecond from 2026-01-01 on, all of them well-formed and in order.
    fn default() -> Self {
        Self {
            profile: Profile::Greenhouse,
            seed: 0,
            keys: 1000,
            start_ms: 1_767_225_600_000,
            interval_ns: 1_000_000,
            malformed: 0.0,
            duplicates: 0.0,
            out_of_order: 0.0,
            late: 0.0,
            max_delay: Duration::from_secs(600),
        }
    }
}

/// What is wrong with a malformed record. Each kind is refused whichever columns a query uses, because the columns that it spoils are
/// `NOT NULL` in the profile's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformation {
    /// The JSON text ends in the middle.
    Truncated,
    /// Random bytes that are not UTF-8 (and hold no line ends).
    Garbage,
    /// The event time is not a time.
    WrongType,
    /// The key or the event time is missing.
    MissingField,
}

/// How a record's event time relates to its place in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeliness {
    /// In order.
    OnTime,
    /// Back by at most `max_delay`.
    OutOfOrder,
    /// Back by more than `max_delay`.
    Late,
}

/// What a record is, for tests and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generated {
    /// The record whose bytes these are: the number asked for, or that of the repeated record.
    pub origin: u64,
    /// Whether the record repeats an earlier one.
    pub duplicate: bool,
    /// Why it cannot be decoded, if so. A repeated malformed record is malformed, too.
    pub malformed: Option<Malformation>,
    /// Its event time against its place. That of a repeated record is that of the original.
    pub timeliness: Timeliness,
    /// Event time, in milliseconds since the epoch; also where a malformed record does not show it.
    pub event_time_ms: i64,
    /// Number of the key.
    pub key: u32,
}

/// Computes records from their numbers.
#[derive(Debug, Clone)]
pub struct Generator {
    recipe: Recipe,
    max_delay_ms: u64,
    malformed: u32,
    duplicates: u32,
    out_of_order: u32,
    late_or_out_of_order: u32,
}

impl Generator {
    /// A generator for a recipe; refuses shares that make no sense.
    pub fn new(recipe: Recipe) -> Result<Self> {
        let wrong = |what: String| Err(Error::new(class::CONFIG_INVALID, what));
        for (name, share, most) in [
            ("malformed", recipe.malformed, 1.0),
            ("duplicates", recipe.duplicates, 0.5),
            ("out_of_order", recipe.out_of_order, 1.0),
            ("late", recipe.late, 1.0),
            ("out_of_order and late together", recipe.out_of_order + recipe.late, 1.0),
        ] {
            if !(0.0..=most).contains(&share) {
                return wrong(format!("the share of {name} is {share}: give a number from 0 to {most}"));
            }
        }
        if recipe.keys == 0 {
            return wrong("keys is 0: give at least 1".into());
        }
        let max_delay_ms = u64::try_from(recipe.max_delay.as_millis()).unwrap_or(u64::MAX);
        if max_delay_ms == 0 && recipe.out_of_order + recipe.late > 0.0 {
            return wrong(
                "max_delay is 0, but there are shares of out_of_order or late records: give a longer one".into(),
            );
        }
        Ok(Self {
            max_delay_ms: max_delay_ms.min(i64::MAX as u64 / 8),
            malformed: threshold(recipe.malformed),
            duplicates: threshold(recipe.duplicates),
            out_of_order: threshold(recipe.out_of_order),
            late_or_out_of_order: threshold(recipe.out_of_order + recipe.late),
            recipe,
        })
    }

    /// What it computes from.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Appends the bytes of record `number` to `out`, without a line end, and says what they are.
    pub fn generate(&self, number: u64, out: &mut Vec<u8>) -> Generated {
        let generated = self.describe(number);
        let mut random = Random::new(self.recipe.seed, generated.origin, Stream::Content);
        let mut record = Record {
            key: generated.key,
            event_time_ms: generated.event_time_ms,
            event_time: EventTime::Valid,
            with_key: true,
        };
        match generated.malformed {
            None => self.recipe.profile.write(&record, &mut random, out),
            Some(Malformation::Truncated) => {
                let from = out.len();
                self.recipe.profile.write(&record, &mut random, out);
                let length = out.len() - from;
                // Some of the record stays, and its closing brace never does.
                let kept = 1 + random.below(length as u32 - 1) as usize;
                out.truncate(from + kept);
            }
            Some(Malformation::Garbage) => {
                // 0xFF never occurs in UTF-8.
                out.push(0xFF);
                for _ in 0..8 + random.below(32) {
                    let byte = random.next() as u8;
                    out.push(if matches!(byte, b'\n' | b'\r') { 0xFE } else { byte });
                }
            }
            Some(Malformation::WrongType) => {
                record.event_time = EventTime::Wrong(random.below(3) as u8);
                self.recipe.profile.write(&record, &mut random, out);
            }
            Some(Malformation::MissingField) => {
                if random.next() & 1 == 0 {
                    record.with_key = false;
                } else {
                    record.event_time = EventTime::Missing;
                }
                self.recipe.profile.write(&record, &mut random, out);
            }
        }
        generated
    }

    /// What record `number` is, without its bytes.
    pub fn describe(&self, number: u64) -> Generated {
        let origin = self.origin(number);
        let mut fate = Random::new(self.recipe.seed, origin, Stream::Fate);
        let (decoding, time) = (fate.next(), fate.next());
        let malformed = match (decoding >> 32) & 3 {
            _ if (decoding as u32) >= self.malformed => None,
            0 => Some(Malformation::Truncated),
            1 => Some(Malformation::Garbage),
            2 => Some(Malformation::WrongType),
            _ => Some(Malformation::MissingField),
        };
        // Less than 2^53 milliseconds in any case: 2^64 nanoseconds are 584 years.
        let in_order = self.recipe.start_ms + (origin.saturating_mul(self.recipe.interval_ns) / 1_000_000) as i64;
        let (draw, back) = (time as u32, time >> 32);
        let (timeliness, delay) = if draw < self.out_of_order {
            (Timeliness::OutOfOrder, 1 + back % self.max_delay_ms)
        } else if draw < self.late_or_out_of_order {
            (Timeliness::Late, self.max_delay_ms + 1 + back % self.max_delay_ms)
        } else {
            (Timeliness::OnTime, 0)
        };
        Generated {
            origin,
            duplicate: origin != number,
            malformed,
            timeliness,
            event_time_ms: in_order - delay as i64,
            key: (mix(fate.next()) % u64::from(self.recipe.keys)) as u32,
        }
    }

    /// Appends the key by which record `number` is partitioned (`sensor-17`) to `out`.
    pub fn key(&self, generated: &Generated, out: &mut Vec<u8>) {
        self.recipe.profile.write_key(generated.key, out);
    }

    /// The record whose bytes record `number` has: itself, unless it repeats another, which may itself be a repetition.
    fn origin(&self, mut number: u64) -> u64 {
        if self.duplicates == 0 {
            return number;
        }
        while number > 0 {
            let draw = Random::new(self.recipe.seed, number, Stream::Duplicate).next();
            if (draw as u32) >= self.duplicates {
                break;
            }
            number -= 1 + (draw >> 32) % number.min(DUPLICATE_DISTANCE);
        }
        number
    }
}

/// A share as a border for uniformly distributed 32-bit numbers.
fn threshold(share: f64) -> u32 {
    (share * f64::from(u32::MAX)) as u32
}

/// Independent random sequences of one record.
#[derive(Clone, Copy)]
enum Stream {
    Content = 1,
    Fate = 2,
    Duplicate = 3,
}

/// SplitMix64, seeded per record. Written out here, because the bytes of a record must never change with a library's version.
pub(super) struct Random(u64);

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Random {
    fn new(seed: u64, record: u64, stream: Stream) -> Self {
        Self(mix(seed ^ (stream as u64).rotate_right(4)) ^ mix(record.wrapping_mul(GOLDEN)))
    }

    /// A uniformly distributed number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number in `0..bound` (0 for a bound of 0). The bias of at most `bound / 2^32` is of no importance here.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// SplitMix64's finaliser.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Profile {
    fn write(self, record: &Record, random: &mut Random, out: &mut Vec<u8>) {
        match self {
            Self::Greenhouse => profiles::greenhouse(record, random, out),
            Self::Health => profiles::health(record, random, out),
            Self::Device => profiles::device(record, random, out),
            Self::Transactions => profiles::transactions(record, random, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn recipe(profile: Profile) -> Recipe {
        Recipe {
            profile,
            seed: 7,
            malformed: 0.05,
            duplicates: 0.04,
            out_of_order: 0.03,
            late: 0.02,
            ..Recipe::default()
        }
    }

    fn record(generator: &Generator, number: u64) -> (Vec<u8>, Generated) {
        let mut bytes = Vec::new();
        let generated = generator.generate(number, &mut bytes);
        (bytes, generated)
    }

    /// Replay after an upgrade depends on these bytes. If this test fails, the generator is wrong, not the test.
    #[test]
    fn bytes_never_change() {
        for (profile, expected, all) in [
            (Profile::Greenhouse, include_str!("golden/greenhouse.jsonl"), 0xA2D6_CC97_4F8D_734F),
            (Profile::Health, include_str!("golden/health.jsonl"), 0xB535_AEDF_682C_1260),
            (Profile::Device, include_str!("golden/device.jsonl"), 0x750A_36AC_4F16_3BBB),
            (Profile::Transactions, include_str!("golden/transactions.jsonl"), 0x2934_F17D_AB46_07DF),
        ] {
            let generator = Generator::new(Recipe { seed: 42, profile, ..Recipe::default() }).unwrap();
            let mut text = Vec::new();
            for number in [0, 1, 2, 999, 1_000_000, 10_000_000_000] {
                generator.generate(number, &mut text);
                text.push(b'\n');
            }
            assert_eq!(String::from_utf8(text).unwrap(), expected, "{profile:?}");

            // All kinds of records, as a hash (FNV-1a).
            let generator = Generator::new(recipe(profile)).unwrap();
            let mut bytes = Vec::new();
            (0..10_000).for_each(|number| _ = generator.generate(number, &mut bytes));
            let hash = bytes
                .iter()
                .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3));
            assert_eq!(hash, all, "{profile:?}");
        }
    }

    #[test]
    fn a_record_depends_on_its_number_alone() {
        let generator = Generator::new(recipe(Profile::Greenhouse)).unwrap();
        let forward: Vec<_> = (0..2000).map(|n| record(&generator, n)).collect();
        let again = Generator::new(recipe(Profile::Greenhouse)).unwrap();
        for number in (0..2000).rev() {
            assert_eq!(record(&again, number), forward[number as usize]);
        }
        let other = Generator::new(Recipe { seed: 8, ..recipe(Profile::Greenhouse) }).unwrap();
        let same = (0..2000).filter(|n| record(&other, *n).0 == forward[*n as usize].0).count();
        assert_eq!(same, 0, "another seed gives other records");
    }

    #[test]
    fn shares_are_kept_and_each_record_is_what_it_says() {
        for profile in [Profile::Greenhouse, Profile::Health, Profile::Device, Profile::Transactions] {
            let generator = Generator::new(recipe(profile)).unwrap();
            let count = 100_000_u64;
            let (mut malformed, mut duplicates, mut out_of_order, mut late) = (0, 0, 0, 0);
            let mut kinds = HashSet::new();
            for number in 0..count {
                let (bytes, generated) = record(&generator, number);
                assert!(!bytes.contains(&b'\n') && !bytes.contains(&b'\r'));
                let in_order = 1_767_225_600_000 + generated.origin as i64;
                let delay = in_order - generated.event_time_ms;
                match generated.timeliness {
                    Timeliness::OnTime => assert_eq!(delay, 0),
                    Timeliness::OutOfOrder => assert!((1..=600_000).contains(&delay)),
                    Timeliness::Late => assert!((600_001..=1_200_000).contains(&delay)),
                }
                if generated.duplicate {
                    assert!(generated.origin < number);
                    assert_eq!(record(&generator, generated.origin).0, bytes);
                }
                let decoded = serde_json::from_slice::<serde_json::Value>(&bytes);
                match generated.malformed {
                    None => {
                        let decoded = decoded.unwrap();
                        let time = decoded["event_time"].as_str().unwrap();
                        let time = chrono::DateTime::parse_from_rfc3339(time).unwrap();
                        assert_eq!(time.timestamp_millis(), generated.event_time_ms);
                        let mut key = Vec::new();
                        generator.key(&generated, &mut key);
                        assert_eq!(decoded[profile.key_column()].as_str().unwrap().as_bytes(), key);
                        assert_eq!(decoded.as_object().unwrap().len(), profile.ddl().matches(", ").count() + 1);
                    }
                    Some(Malformation::Truncated) => assert!(decoded.unwrap_err().is_eof()),
                    Some(Malformation::Garbage) => assert!(std::str::from_utf8(&bytes).is_err()),
                    Some(Malformation::WrongType) => {
                        let time = decoded.unwrap()["event_time"].clone();
                        assert!(!time.is_null() && !time.as_str().is_some_and(|t| t.starts_with("20")), "{time}");
                    }
                    Some(Malformation::MissingField) => {
                        let decoded = decoded.unwrap();
                        assert!(decoded["event_time"].is_null() != decoded[profile.key_column()].is_null());
                    }
                }
                kinds.extend(generated.malformed.map(|m| format!("{m:?}")));
                malformed += u64::from(generated.malformed.is_some());
                duplicates += u64::from(generated.duplicate);
                out_of_order += u64::from(generated.timeliness == Timeliness::OutOfOrder);
                late += u64::from(generated.timeliness == Timeliness::Late);
            }
            assert_eq!(kinds.len(), 4);
            for (seen, share) in [(malformed, 0.05), (duplicates, 0.04), (out_of_order, 0.03), (late, 0.02)] {
                let off = (seen as f64 / count as f64 - share).abs();
                assert!(off < 0.003, "{profile:?}: {seen} of {count} instead of {share}");
            }
        }
    }

    #[test]
    fn wrong_shares_are_refused() {
        for (wrong, part) in [
            (Recipe { malformed: 1.5, ..Recipe::default() }, "malformed is 1.5"),
            (Recipe { duplicates: 0.6, ..Recipe::default() }, "duplicates is 0.6"),
            (Recipe { late: -0.1, ..Recipe::default() }, "late is -0.1"),
            (Recipe { late: f64::NAN, ..Recipe::default() }, "late is NaN"),
            (Recipe { late: 0.7, out_of_order: 0.7, ..Recipe::default() }, "together"),
            (Recipe { late: 0.7, max_delay: Duration::ZERO, ..Recipe::default() }, "max_delay is 0"),
            (Recipe { keys: 0, ..Recipe::default() }, "keys is 0"),
        ] {
            let error = Generator::new(wrong).unwrap_err();
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    #[ignore = "a measurement: cargo test --release generator::tests::speed -- --ignored --nocapture"]
    fn speed() {
        for profile in [Profile::Greenhouse, Profile::Health, Profile::Device, Profile::Transactions] {
            let generator = Generator::new(recipe(profile)).unwrap();
            let (mut buffer, mut bytes) = (Vec::with_capacity(1 << 21), 0);
            let (count, start) = (5_000_000_u64, std::time::Instant::now());
            for number in 0..count {
                if buffer.len() > 1 << 20 {
                    bytes += buffer.len();
                    buffer.clear();
                }
                generator.generate(number, &mut buffer);
            }
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{profile:?}: {:.2} million records/s, {:.0} MB/s",
                count as f64 / seconds / 1e6,
                bytes as f64 / seconds / 1e6
            );
        }
    }
}
