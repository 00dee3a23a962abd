use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use perennial_core::checkpoint::{CommitEntry, Look, OffsetEntry, Plan, Recovery, Step};
use perennial_core::error::{Error, Result, class};
use perennial_core::offset::Offset;
use serde_json::{Map, Value, json};

use super::output::{Consent, Format, needs_yes};
use super::place::Place;
use crate::terminal::Failure;

/// Let a query continue from other offsets.
///
/// Writes a batch of its own that reads nothing and ends at these offsets; state and watermark stay as they are. Offsets are JSON as in the
/// offset log: kafka `{"topic":{"0":23}}` (the next record to read, every partition that is known now), files `{"logOffset":3}`, simulate a
/// number. `start` forgets where the source is: kafka then begins where `starting_offsets` of the job file says (`earliest`, `latest`,
/// offsets or a time), which the running job finds out, and files and simulate at their first record.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  perennial checkpoint set-offsets job.yaml raw --source 'readings={\"sensors\":{\"0\":500,\"1\":480}}'\n  \
                        perennial checkpoint set-offsets job.yaml raw --source readings=start --yes\n  \
                        perennial checkpoint set-offsets job.yaml raw --offsets offsets.json --yes"
)]
pub struct SetOffsets {
    /// Job file, directory or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    /// The query; not needed where there is one.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// Name of a source and its offset, or `start`. Sources that are not named stay where they are.
    #[arg(long = "source", value_name = "NAME=OFFSET", required_unless_present = "offsets")]
    sources: Vec<String>,

    /// A file with a JSON object of sources and their offsets.
    #[arg(long, value_name = "FILE")]
    offsets: Option<PathBuf>,

    #[command(flatten)]
    consent: Consent,

    #[command(flatten)]
    format: Format,
}

/// The new end of a source.
enum To {
    Start,
    Offset(Value),
}

fn wrong(what: String) -> Error {
    Error::new(class::CONFIG_INVALID, what)
}

impl SetOffsets {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let place = Place::open(&self.checkpoint).await?;
        let query = place.query(self.query.as_deref()).await?;
        let owned = if self.consent.yes { Some(place.own(&query, self.consent.fence).await?) } else { None };
        let survey = place.survey(&query).await?;
        let last = match survey.recovery().map_err(|error| error.at(query.clone()))? {
            Recovery::Continue { last } => last,
            Recovery::Fresh => {
                return Err(wrong(format!("{query} has no batch yet: set starting_offsets in the job file")).into());
            }
            Recovery::RunAgain { from, .. } => {
                return Err(wrong(format!(
                    "batch {from} is begun and not committed: run the query until it is, or go back (rewind) before it"
                ))
                .into());
            }
        };
        let look = &survey.look;
        let (Some(offsets), Some(commit)) = (
            look.offsets.get(&last).and_then(|entry| entry.good()),
            look.commits.get(&last).and_then(|entry| entry.good()),
        ) else {
            return Err(wrong(format!("batch {last} is damaged")).into());
        };
        let set = self.given()?;
        let boundary = Boundary::new(
            look,
            last,
            offsets,
            commit,
            set,
            place.env.now_ms(),
            owned.as_ref().map_or(0, |o| o.log.epoch()),
        )?;
        if let Some(owned) = &owned {
            owned.log.carry_out(&boundary.forget, |_| {}).await?;
            // The commit first: if only it is there, a start refuses. With only the offsets it would read up to them.
            owned.log.write_commit(last + 1, &boundary.commit).await?;
            owned.log.write_offsets(last + 1, &boundary.offsets).await?;
        }
        let (mut text, json) = boundary.describe(offsets, last + 1, self.consent.yes);
        if self.consent.yes {
            self.format.print(&text, &json)?;
            return Ok(ExitCode::SUCCESS);
        }
        text += "records between the old and the new offsets are left out where that is forward, and count a second time where it is back: in the \
                 sink, and in the state, which stays as it is\n";
        needs_yes(self.format, &text, &json)
    }

    /// The offsets of the command line.
    fn given(&self) -> Result<Map<String, Value>> {
        let mut set = Map::new();
        if let Some(path) = &self.offsets {
            let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("{}: {e}", path.display())))?;
            let file: Value =
                serde_json::from_str(&text).map_err(|e| wrong(format!("{} is not JSON: {e}", path.display())))?;
            let Value::Object(file) = file else {
                return Err(wrong(format!("{} is not a JSON object of sources and offsets", path.display())));
            };
            set.extend(file);
        }
        for given in &self.sources {
            let (name, offset) =
                given.split_once('=').ok_or_else(|| wrong(format!("--source {given}: write NAME=OFFSET")))?;
            let offset = match offset {
                "start" => json!("start"),
                "earliest" | "latest" => {
                    return Err(wrong(format!(
                        "`{offset}` is found out by the running job: set `starting_offsets: {offset}` at the source in the job file, \
                         and give --source {name}=start"
                    )));
                }
                offset => serde_json::from_str(offset)
                    .map_err(|e| wrong(format!("the offset of {name} is not JSON: {e}: {offset}")))?,
            };
            set.insert(name.to_owned(), offset);
        }
        Ok(set)
    }
}

/// A batch that reads nothing and ends elsewhere.
struct Boundary {
    offsets: OffsetEntry,
    commit: CommitEntry,
    /// What sources forget.
    forget: Plan,
}

impl Boundary {
    fn new(
        look: &Look,
        last: u64,
        old: &OffsetEntry,
        commit: &CommitEntry,
        set: Map<String, Value>,
        now_ms: i64,
        epoch: u64,
    ) -> Result<Self> {
        let mut offsets = old.clone();
        // The watermark of the last batch stays, too, so that a batch without data still comes where it was due.
        (offsets.timestamp_ms, offsets.epoch) = (now_ms.max(old.timestamp_ms), epoch);
        let mut forget = Plan::default();
        for (name, offset) in set {
            let index = match old.sources.iter().position(|source| *source == name) {
                Some(index) => index,
                None if old.sources.is_empty() => {
                    name.parse().ok().filter(|n| *n < old.offsets.len()).ok_or_else(|| {
                        wrong(format!("the sources of batch {last} have no names: number them, from 0 on"))
                    })?
                }
                None => {
                    return Err(wrong(format!(
                        "there is no source {name}: the query reads {}",
                        old.sources.join(", ")
                    )));
                }
            };
            let old_json: Option<Value> =
                old.offsets[index].as_ref().and_then(|offset| serde_json::from_str(offset.as_str()).ok());
            let to = match offset {
                Value::String(start) if start == "start" => To::Start,
                offset => To::Offset(offset),
            };
            offsets.offsets[index] = match to {
                To::Start => {
                    // Kafka notes where it began; without the note it looks at the job file again.
                    if old_json.as_ref().is_some_and(is_kafka) {
                        let dir = format!("sources/{index}/");
                        for file in look.files.keys().filter(|file| file.starts_with(&dir)) {
                            forget.steps.push(Step::SetAside { file: format!("_perennial/{file}") });
                            forget.steps.push(Step::SetAside { file: file.clone() });
                        }
                    }
                    None
                }
                To::Offset(new) => {
                    if let Some(old) = &old_json {
                        fits(&name, old, &new)?;
                    }
                    Some(Offset::from_json(new.to_string()))
                }
            };
        }
        let mut commit = commit.clone();
        if let Some(details) = &mut commit.perennial {
            details.counts = Default::default();
            details.epoch = epoch;
        }
        Ok(Self { offsets, commit, forget })
    }

    fn describe(&self, old: &OffsetEntry, batch: u64, done: bool) -> (String, Value) {
        let mut text = format!(
            "{} batch {batch}, which reads nothing and ends at:\n",
            if done { "written:" } else { "the plan:" }
        );
        let mut sources = Vec::new();
        for (index, (from, to)) in old.offsets.iter().zip(&self.offsets.offsets).enumerate() {
            let name = old.sources.get(index).cloned().unwrap_or_else(|| index.to_string());
            let show = |offset: &Option<Offset>| offset.as_ref().map_or_else(|| "start".to_owned(), Offset::to_string);
            let _ = match from == to {
                true => writeln!(text, "  {name}: {} (unchanged)", show(to)),
                false => writeln!(text, "  {name}: {} (was {})", show(to), show(from)),
            };
            let value = |offset: &Option<Offset>| {
                offset.as_ref().map(|o| serde_json::from_str(o.as_str()).unwrap_or(Value::Null))
            };
            sources.push(json!({ "source": name, "from": value(from), "to": value(to) }));
        }
        (text, json!({ "done": done, "batch": batch, "sources": sources }))
    }
}

/// Topics, partitions, offsets.
fn is_kafka(offset: &Value) -> bool {
    offset.as_object().is_some_and(|topics| !topics.is_empty() && topics.values().all(Value::is_object))
}

/// Refuses an offset of another shape than the one that is there.
fn fits(name: &str, old: &Value, new: &Value) -> Result<()> {
    let refuse = |what: String| Err(wrong(format!("the offset of {name} does not fit: {what}; it is {old} now")));
    if is_kafka(old) {
        let Some(topics) = new.as_object().filter(|_| is_kafka(new)) else {
            return refuse("it must have topics with partitions".into());
        };
        for (topic, partitions) in old.as_object().into_iter().flatten() {
            for partition in partitions.as_object().into_iter().flatten().map(|(partition, _)| partition) {
                if topics.get(topic).and_then(|t| t.get(partition)).is_none() {
                    return refuse(format!(
                        "partition {partition} of {topic} is missing, and would be read from its start"
                    ));
                }
            }
        }
        let numbers = topics.values().filter_map(Value::as_object).flatten();
        for (partition, offset) in numbers {
            if partition.parse::<i32>().is_err() || offset.as_u64().is_none() {
                return refuse(format!("{partition}: {offset} is not a partition and an offset"));
            }
        }
        return Ok(());
    }
    let same_shape = match (old, new) {
        (Value::Object(old), Value::Object(new)) => old.keys().eq(new.keys()),
        (Value::Number(_), Value::Number(new)) => new.is_u64(),
        _ => false,
    };
    if same_shape { Ok(()) } else { refuse("it has another shape".into()) }
}
