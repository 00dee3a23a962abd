//! The generator as a producer: to Kafka, to files, to standard output.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perennial_core::error::{Error, Result, class};
use tokio_util::sync::CancellationToken;

use super::generator::{Generated, Generator, Timeliness};
use super::source::Rate;
#[cfg(feature = "kafka")]
pub use crate::sources::kafka::KafkaTarget;

/// Which records to send, and how fast.
#[derive(Debug, Clone)]
pub struct Run {
    /// What computes them.
    pub generator: Generator,
    /// Number of the first record.
    pub first: u64,
    /// How many; without it until it is stopped.
    pub records: Option<u64>,
    /// How fast.
    pub rate: Rate,
}

/// Where the records go.
#[derive(Debug, Clone)]
pub enum Target {
    /// A Kafka topic.
    #[cfg(feature = "kafka")]
    Kafka(KafkaTarget),
    /// JSON-lines files in a directory.
    Files(FilesTarget),
    /// Standard output, one record a line.
    Stdout,
}

/// A directory that gets JSON-lines files. A file is written under a hidden name and appears whole under its own.
#[derive(Debug, Clone)]
pub struct FilesTarget {
    /// The directory; it is made where it does not exist.
    pub dir: PathBuf,
    /// Records per file.
    pub records_per_file: u64,
    /// A file is finished at this age, too, so that slow records appear.
    pub max_age: Duration,
}

impl FilesTarget {
    /// Files of 100,000 records, or of what came in 10 seconds.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), records_per_file: 100_000, max_age: Duration::from_secs(10) }
    }
}

/// What has been sent so far. Counters only grow; others may read them at any time.
#[derive(Debug, Default)]
pub struct Progress {
    messages: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    malformed: AtomicU64,
    duplicates: AtomicU64,
    out_of_order: AtomicU64,
    late: AtomicU64,
}

impl Progress {
    /// Records handed to the target.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Their bytes, without line ends.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Records that the target did not take in the end.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Malformed records among them.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Repeated records among them.
    pub fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }

    /// Records out of order among them.
    pub fn out_of_order(&self) -> u64 {
        self.out_of_order.load(Ordering::Relaxed)
    }

    /// Late records among them.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    fn count(&self, generated: &Generated, bytes: usize) {
        let one = |counter: &AtomicU64, really: bool| {
            if really {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        one(&self.messages, true);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        one(&self.malformed, generated.malformed.is_some());
        one(&self.duplicates, generated.duplicate);
        one(&self.out_of_order, generated.timeliness == Timeliness::OutOfOrder);
        one(&self.late, generated.timeliness == Timeliness::Late);
    }

    #[cfg(feature = "kafka")]
    pub(crate) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where a run puts its records.
pub(crate) trait Output {
    /// Takes a record.
    fn send(&mut self, key: &[u8], value: &[u8]) -> Result<()>;

    /// Called now and then, and before each wait: what has been sent becomes visible.
    fn tick(&mut self) -> Result<()>;

    /// All records are sent: returns when they are delivered.
    fn finish(&mut self) -> Result<()>;
}

/// Sends records until the run is over or `stop` is cancelled; then what has been sent is delivered. Returns early with the first error of
/// the target.
pub async fn produce(run: Run, target: Target, progress: Arc<Progress>, stop: CancellationToken) -> Result<()> {
    let work = move || {
        let mut output: Box<dyn Output> = match target {
            #[cfg(feature = "kafka")]
            Target::Kafka(target) => Box::new(target.open(progress.clone())?),
            Target::Files(target) => Box::new(Files::open(target, &run)?),
            Target::Stdout => {
                Box::new(Stdout { out: BufWriter::with_capacity(1 << 16, io::stdout()), stop: stop.clone() })
            }
        };
        send_all(&run, &mut *output, &progress, &stop)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::bug(format!("the producer broke down: {panic}"))),
    }
}

fn send_all(run: &Run, output: &mut dyn Output, progress: &Progress, stop: &CancellationToken) -> Result<()> {
    const TICK: u64 = 4096;
    const LONGEST_WAIT: Duration = Duration::from_millis(50);
    let end = run.records.map_or(u64::MAX, |records| run.first.saturating_add(records));
    let began = Instant::now();
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let mut number = run.first;
    while number < end && !stop.is_cancelled() {
        let due = match run.rate {
            Rate::Max => end,
            // The first record is due at once.
            Rate::PerSecond(rate) => run.first.saturating_add(1 + (began.elapsed().as_secs_f64() * rate) as u64),
        };
        let until = due.min(end).min(number + TICK);
        while number < until {
            key.clear();
            value.clear();
            let generated = run.generator.generate(number, &mut value);
            run.generator.key(&generated, &mut key);
            output.send(&key, &value)?;
            progress.count(&generated, value.len());
            number += 1;
        }
        output.tick()?;
        if let Rate::PerSecond(rate) = run.rate
            && number < end
        {
            let next_due = Duration::from_secs_f64((number - run.first) as f64 / rate);
            std::thread::sleep(next_due.saturating_sub(began.elapsed()).min(LONGEST_WAIT));
        }
    }
    output.finish()
}

/// Standard output. A reader that goes away (`| head`) ends the run as `stop` does.
struct Stdout {
    out: BufWriter<io::Stdout>,
    stop: CancellationToken,
}

impl Stdout {
    fn outcome(&self, result: io::Result<()>) -> Result<()> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.stop.cancel();
                Ok(())
            }
            other => other.map_err(|e| file_error("write", Path::new("standard output"), e)),
        }
    }
}

impl Output for Stdout {
    fn send(&mut self, _: &[u8], value: &[u8]) -> Result<()> {
        let written = self.out.write_all(value).and_then(|()| self.out.write_all(b"\n"));
        self.outcome(written)
    }

    fn tick(&mut self) -> Result<()> {
        let flushed = self.out.flush();
        self.outcome(flushed)
    }

    fn finish(&mut self) -> Result<()> {
        self.tick()
    }
}

struct Files {
    target: FilesTarget,
    prefix: String,
    next: u64,
    open: Option<OpenFile>,
}

struct OpenFile {
    file: BufWriter<File>,
    hidden: PathBuf,
    finished: PathBuf,
    records: u64,
    since: Instant,
}

impl Files {
    fn open(target: FilesTarget, run: &Run) -> Result<Self> {
        if target.records_per_file == 0 {
            return Err(Error::new(class::CONFIG_INVALID, "records per file is 0: give at least 1"));
        }
        fs::create_dir_all(&target.dir).map_err(|e| file_error("create", &target.dir, e))?;
        let recipe = run.generator.recipe();
        let prefix = format!("{}-{}-{}", recipe.profile.name(), recipe.seed, recipe.start_ms);
        Ok(Self { target, prefix, next: run.first, open: None })
    }

    fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let OpenFile { file, hidden, finished, .. } = open;
        let sync = |file: BufWriter<File>| file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all();
        sync(file).map_err(|e| file_error("write", &hidden, e))?;
        fs::rename(&hidden, &finished).map_err(|e| file_error("rename", &hidden, e))
    }
}

impl Output for Files {
    fn send(&mut self, _: &[u8], value: &[u8]) -> Result<()> {
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let name = format!("{}-{:012}.json", self.prefix, self.next);
                let hidden = self.target.dir.join(format!(".{name}.tmp"));
                let file = File::create(&hidden).map_err(|e| file_error("create", &hidden, e))?;
                let file = BufWriter::with_capacity(1 << 18, file);
                let finished = self.target.dir.join(name);
                self.open.insert(OpenFile { file, hidden, finished, records: 0, since: Instant::now() })
            }
        };
        let written = open.file.write_all(value).and_then(|()| open.file.write_all(b"\n"));
        written.map_err(|e| file_error("write", &open.hidden, e))?;
        open.records += 1;
        self.next += 1;
        if open.records >= self.target.records_per_file { self.close() } else { Ok(()) }
    }

    fn tick(&mut self) -> Result<()> {
        match &self.open {
            Some(open) if open.since.elapsed() >= self.target.max_age => self.close(),
            _ => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.close()
    }
}

fn file_error(action: &str, path: &Path, error: io::Error) -> Error {
    let class = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => class::STORAGE_PERMISSION_DENIED,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => class::DISK_FULL,
        io::ErrorKind::NotFound => class::STORAGE_NOT_FOUND,
        _ => class::STORAGE_UNAVAILABLE,
    };
    Error::new(class, format!("cannot {action} {}: {error}", path.display())).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::super::generator::Recipe;
    use super::*;

    fn run(records: Option<u64>, rate: Rate) -> Run {
        let recipe = Recipe { malformed: 0.1, duplicates: 0.1, late: 0.1, out_of_order: 0.1, ..Recipe::default() };
        Run { generator: Generator::new(recipe).unwrap(), first: 5, records, rate }
    }

    fn expected(from: u64, to: u64) -> Vec<u8> {
        let mut text = Vec::new();
        for number in from..to {
            run(None, Rate::Max).generator.generate(number, &mut text);
            text.push(b'\n');
        }
        text
    }

    #[tokio::test]
    async fn files_appear_whole_and_hold_every_record_once() {
        let dir = tempfile::tempdir().unwrap();
        let target = FilesTarget { records_per_file: 400, ..FilesTarget::new(dir.path().join("new")) };
        let progress = Arc::new(Progress::default());
        produce(run(Some(1000), Rate::Max), Target::Files(target), progress.clone(), CancellationToken::new())
            .await
            .unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path().join("new")).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        let shown: Vec<_> = names.iter().map(|n| n.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(shown, [5, 405, 805].map(|first| format!("greenhouse-0-1767225600000-{first:012}.json")));
        let content: Vec<u8> = names.iter().flat_map(|name| fs::read(name).unwrap()).collect();
        assert_eq!(content, expected(5, 1005));
        assert_eq!((progress.messages(), progress.errors()), (1000, 0));
        assert_eq!(progress.bytes(), content.len() as u64 - 1000);
        for count in [progress.malformed(), progress.duplicates(), progress.late(), progress.out_of_order()] {
            assert!((50..200).contains(&count), "{count}");
        }
    }

    #[tokio::test]
    async fn an_endless_run_stops_when_it_is_told_and_keeps_what_it_sent() {
        let dir = tempfile::tempdir().unwrap();
        let (progress, stop) = (Arc::new(Progress::default()), CancellationToken::new());
        let target = Target::Files(FilesTarget { records_per_file: 50, ..FilesTarget::new(dir.path()) });
        let producer =
            tokio::spawn(produce(run(None, Rate::PerSecond(5000.0)), target, progress.clone(), stop.clone()));
        while progress.messages() < 120 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        producer.await.unwrap().unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        let content: Vec<u8> = names.iter().flat_map(|name| fs::read(name).unwrap()).collect();
        assert_eq!(content, expected(5, 5 + progress.messages()));
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let target = Target::Files(FilesTarget::new(file.path().join("sub")));
        let result = produce(run(Some(1), Rate::Max), target, Arc::default(), CancellationToken::new()).await;
        let message = result.unwrap_err().to_string();
        assert!(message.contains("cannot create") && message.contains("sub"), "{message}");
    }
}
