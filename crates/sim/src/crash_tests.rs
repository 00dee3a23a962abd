//! Crashes at every write of a run, and the accounts afterwards.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use parking_lot::Mutex;
use perennial_core::Error;
use perennial_core::checkpoint::{CheckpointLog, recover};
use perennial_core::dead_letter::{DeadLetters, FileDeadLetters};
use perennial_core::decode::Decoder;
use perennial_core::error::{ErrorKind, class};
use perennial_core::expectation::Expectations;
use perennial_core::guarantee::Guarantee;
use perennial_core::job::{JobSpec, QuerySpec, SourceSpec, Trigger};
use perennial_core::policy::Action;
use perennial_core::progress::{BatchReport, Observer, QueryState};
use perennial_core::query::{Query, Step};
use perennial_core::sink::{BatchId, OutputMode};
use perennial_core::supervisor;
use tokio_util::sync::CancellationToken;

use crate::job::{LedgerSink, NumberDecoder, Numbers, PassThrough, is_malformed, numbers_schema, record_bytes};
use crate::store::{FAULTS, Fault, FaultyStore};
use crate::world::env;

const RECORDS: u64 = 47;
const PER_BATCH: u64 = 20;

#[derive(Default)]
struct Seen {
    reports: Mutex<Vec<BatchReport>>,
    failures: Mutex<Vec<String>>,
}

impl Observer for Seen {
    fn committed(&self, _: &str, report: &BatchReport) {
        self.reports.lock().push(report.clone());
    }

    fn failed(&self, _: &str, _: Option<BatchId>, error: &Error, action: Action) {
        self.failures.lock().push(format!("{error} -> {}", action.describe()));
    }

    fn state(&self, _: &str, _: QueryState) {}
}

struct World {
    checkpoint: Arc<dyn ObjectStore>,
    letters: Arc<dyn ObjectStore>,
    sink: LedgerSink,
    seen: Arc<Seen>,
}

impl World {
    fn new() -> Self {
        Self {
            checkpoint: Arc::new(InMemory::new()),
            letters: Arc::new(InMemory::new()),
            sink: LedgerSink::default(),
            seen: Arc::default(),
        }
    }

    fn job(&self, checkpoint: Arc<FaultyStore>, letters: Arc<FaultyStore>) -> JobSpec {
        let source = SourceSpec {
            name: "numbers".into(),
            schema: numbers_schema(),
            factory: Arc::new(Numbers { records: RECORDS, per_batch: PER_BATCH }),
            decoder: Arc::new(|_| Ok(Arc::new(NumberDecoder) as Arc<dyn Decoder>)),
            expectations: Expectations::default(),
            per_partition: None,
        };
        let query = QuerySpec {
            name: "copy".into(),
            plan: Arc::new(PassThrough::default()),
            sources: vec![source],
            tables: Vec::new(),
            sink: Arc::new(self.sink.clone()),
            output_mode: OutputMode::Append,
            watermark_policy: Default::default(),
            on_error: Default::default(),
            late: None,
            watermark_after_restart: Default::default(),
            no_data_batches: true,
        };
        let letters: Arc<dyn ObjectStore> = letters;
        JobSpec {
            name: "test".into(),
            version: "1.0".into(),
            env: env(checkpoint, 7),
            queries: vec![query],
            trigger: Trigger::AvailableNow,
            dead_letters: Arc::new(FileDeadLetters::new(letters.clone(), Arc::new(letters), "dlq")),
            retry: Default::default(),
            breaker: Default::default(),
            guarantee: Some(Guarantee::ExactlyOnce),
            batches_to_retain: 100,
            state: Default::default(),
            accept_state_changes: false,
            memory: Default::default(),
            pace: None,
            controls: Default::default(),
            adopt: None,
            observer: self.seen.clone(),
        }
    }

    /// One life of the process. Whether it got to the end.
    async fn live(&self, checkpoint: Arc<FaultyStore>, letters: Arc<FaultyStore>) -> bool {
        let stop = CancellationToken::new();
        let run = supervisor::run(self.job(checkpoint.clone(), letters.clone()), stop.clone());
        let dead = async {
            while !checkpoint.is_dead() && !letters.is_dead() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ends = run => {
                for end in ends {
                    end.result.unwrap();
                }
                true
            }
            () = dead => false,
        }
    }

    async fn live_soundly(&self) {
        let (checkpoint, letters) =
            (FaultyStore::sound(self.checkpoint.clone()), FaultyStore::sound(self.letters.clone()));
        assert!(self.live(checkpoint, letters).await);
    }

    /// Every record is in the target or in the dead letters, once; the logs have no gap; the accounts close.
    async fn assert_nothing_lost_or_doubled(&self, about: &str) {
        let mut rows: Vec<i64> = self.sink.target.lock().batches.values().flatten().copied().collect();
        rows.sort_unstable();
        let good: Vec<i64> = (0..RECORDS).filter(|n| !is_malformed(*n)).map(|n| n as i64).collect();
        assert_eq!(rows, good, "{about}");

        let dlq = FileDeadLetters::new(self.letters.clone(), Arc::new(self.letters.clone()), "dlq");
        let mut letters = Vec::new();
        for entry in dlq.entries().await.unwrap() {
            let records = dlq.records(&entry).await.unwrap();
            assert_eq!(records.len() as u64, entry.records, "{about}");
            letters.extend(records);
        }
        let found: Vec<_> =
            letters.iter().map(|l| (l["offset"].as_u64().unwrap(), l["value"].as_str().unwrap())).collect();
        let bad: Vec<_> = (0..RECORDS).filter(|n| is_malformed(*n)).collect();
        assert_eq!(found.iter().map(|(n, _)| *n).collect::<Vec<_>>(), bad, "{about}");
        assert!(found.iter().all(|(n, bytes)| record_bytes(*n) == bytes.as_bytes()), "{about}");

        let log = CheckpointLog::open(env(self.checkpoint.clone(), 9), "copy").await.unwrap();
        let logged = log.find().await.unwrap();
        recover(&logged).unwrap();
        assert_eq!(logged.offsets, logged.commits, "{about}");
        let mut read = 0;
        for batch in logged.commits {
            let counts = log.read_commit(batch).await.unwrap().perennial.unwrap().counts;
            assert_eq!(counts.missing(false), 0, "{about}: batch {batch}");
            read += counts.read;
        }
        assert_eq!(read, RECORDS, "{about}");
    }
}

#[tokio::test]
async fn a_run_without_faults_delivers_everything_once() {
    let world = World::new();
    world.live_soundly().await;
    world.assert_nothing_lost_or_doubled("no fault").await;
    assert_eq!(world.seen.reports.lock().iter().map(|r| r.counts.read).collect::<Vec<_>>(), [20, 20, 7]);
    world.live_soundly().await;
    assert_eq!(world.seen.reports.lock().len(), 3, "a second run has nothing to do");
}

#[tokio::test]
async fn a_fault_at_any_write_of_checkpoint_or_dead_letters_loses_and_doubles_nothing() {
    let probe = World::new();
    let counted = [FaultyStore::sound(probe.checkpoint.clone()), FaultyStore::sound(probe.letters.clone())];
    assert!(probe.live(counted[0].clone(), counted[1].clone()).await);
    let writes = [counted[0].writes(), counted[1].writes()];
    assert!(writes.iter().all(|w| *w >= 6), "the run writes less than it should: {writes:?}");
    for (which, writes) in writes.into_iter().enumerate() {
        for at in 0..writes {
            for fault in FAULTS {
                let world = World::new();
                let store = |index: usize, inner: &Arc<dyn ObjectStore>| match index == which {
                    true => FaultyStore::failing(inner.clone(), at, fault),
                    false => FaultyStore::sound(inner.clone()),
                };
                let finished = world.live(store(0, &world.checkpoint), store(1, &world.letters)).await;
                let about = format!("store {which}, write {at}, {fault:?}");
                assert_eq!(finished, matches!(fault, Fault::ErrorBefore | Fault::ErrorAfter), "{about}");
                world.live_soundly().await;
                world.assert_nothing_lost_or_doubled(&about).await;
            }
        }
    }
}

#[tokio::test]
async fn a_sink_that_fails_gets_the_same_batch_again() {
    for at in 0..3 {
        for committed in [false, true] {
            let world = World::new();
            *world.sink.fail.lock() = Some((at, committed));
            world.live_soundly().await;
            world.assert_nothing_lost_or_doubled(&format!("sink write {at}, committed {committed}")).await;
            assert_eq!(world.sink.target.lock().offered_again, u64::from(committed));
            let failures = world.seen.failures.lock();
            assert_eq!(failures.len(), 1);
            assert!(failures[0].contains("the simulated sink went away -> Retry"), "{failures:?}");
        }
    }
}

#[tokio::test]
async fn a_process_that_was_taken_over_is_fenced_before_it_writes() {
    let world = World::new();
    let sound = || FaultyStore::sound(world.checkpoint.clone());
    let job = world.job(sound(), FaultyStore::sound(world.letters.clone()));
    let mut first = perennial_core::query::Query::open(&job, &job.queries[0]).await.unwrap();
    first.run_batch().await.unwrap();
    let mut second = perennial_core::query::Query::open(&job, &job.queries[0]).await.unwrap();
    let error = first.run_batch().await.unwrap_err();
    assert_eq!((error.kind(), error.class()), (ErrorKind::Fenced, class::FENCED));
    assert!(error.to_string().contains("another process took over the checkpoint copy"), "{error}");
    assert_eq!(world.sink.target.lock().batches.len(), 1, "the fenced process wrote to the sink");
    second.run_batch().await.unwrap();
    second.run_batch().await.unwrap();
    world.assert_nothing_lost_or_doubled("two processes").await;
}

#[tokio::test]
async fn a_process_that_slept_through_many_takeovers_is_fenced() {
    let world = World::new();
    let sound = || FaultyStore::sound(world.checkpoint.clone());
    let job = world.job(sound(), FaultyStore::sound(world.letters.clone()));
    let mut sleeper = Query::open(&job, &job.queries[0]).await.unwrap();
    sleeper.run_batch().await.unwrap();
    // More than the number of epochs whose files are kept.
    for _ in 0..15 {
        Query::open(&job, &job.queries[0]).await.unwrap();
    }
    let error = sleeper.run_batch().await.unwrap_err();
    assert_eq!(error.class(), class::FENCED, "{error}");
    assert_eq!(world.sink.target.lock().batches.len(), 1, "the fenced process wrote to the sink");
}

#[tokio::test]
async fn a_checkpoint_of_another_job_is_refused() {
    let world = World::new();
    world.live_soundly().await;
    let sound = FaultyStore::sound(world.checkpoint.clone());
    let mut job = world.job(sound, FaultyStore::sound(world.letters.clone()));
    job.name = "other".into();
    let ends = supervisor::run(job, CancellationToken::new()).await;
    let error = ends.into_iter().next().unwrap().result.unwrap_err();
    assert_eq!(error.class(), class::CHECKPOINT_MISMATCH);
    assert!(error.to_string().contains("belongs to job test, query copy"), "{error}");
}

#[tokio::test]
async fn old_logs_are_removed_and_the_rest_still_recovers() {
    let world = World::new();
    for _ in 0..2 {
        let (checkpoint, letters) =
            (FaultyStore::sound(world.checkpoint.clone()), FaultyStore::sound(world.letters.clone()));
        let mut job = world.job(checkpoint, letters);
        job.batches_to_retain = 2;
        job.queries[0].sources[0].factory = Arc::new(Numbers { records: RECORDS, per_batch: 1 });
        job.trigger = Trigger::AvailableNow;
        for end in supervisor::run(job, CancellationToken::new()).await {
            end.result.unwrap();
        }
    }
    let log = CheckpointLog::open(env(world.checkpoint.clone(), 9), "copy").await.unwrap();
    let found = log.find().await.unwrap();
    assert!(found.offsets.len() <= 4 && found.offsets.last() == Some(&(RECORDS - 1)), "{found:?}");
    assert_eq!(found.offsets, found.commits);
}

#[tokio::test]
async fn a_cleanup_that_fails_leaves_no_gap() {
    for at in 0..60 {
        let world = World::new();
        let job = |checkpoint| {
            let mut job = world.job(checkpoint, FaultyStore::sound(world.letters.clone()));
            job.batches_to_retain = 2;
            job.queries[0].sources[0].factory = Arc::new(Numbers { records: 12, per_batch: 1 });
            job
        };
        for checkpoint in [
            FaultyStore::failing(world.checkpoint.clone(), at, Fault::ErrorBefore),
            FaultyStore::sound(world.checkpoint.clone()),
        ] {
            for end in supervisor::run(job(checkpoint), CancellationToken::new()).await {
                assert!(end.result.is_ok(), "write {at}: {:?}", end.result);
            }
        }
    }
}

#[tokio::test]
async fn a_stop_lets_the_batch_at_hand_finish() {
    let world = World::new();
    let (checkpoint, letters) =
        (FaultyStore::sound(world.checkpoint.clone()), FaultyStore::sound(world.letters.clone()));
    let mut job = world.job(checkpoint, letters);
    job.trigger = Trigger::Every(Duration::from_secs(10));
    let stop = CancellationToken::new();
    let (run, seen) = (tokio::spawn(supervisor::run(job, stop.clone())), world.seen.clone());
    while seen.reports.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    for end in run.await.unwrap() {
        end.result.unwrap();
    }
    let log = CheckpointLog::open(env(world.checkpoint.clone(), 9), "copy").await.unwrap();
    let found = log.find().await.unwrap();
    assert_eq!(found.offsets, found.commits, "no batch was left in the middle");
}

#[tokio::test]
async fn old_dead_letters_go_while_the_query_runs() {
    const DAY: Duration = Duration::from_secs(86_400);
    let world = World::new();
    let sound = |store: &Arc<dyn ObjectStore>| FaultyStore::sound(store.clone());
    let mut job = world.job(sound(&world.checkpoint), sound(&world.letters));
    let letters = FileDeadLetters::new(world.letters.clone(), Arc::new(world.letters.clone()), "dlq");
    let letters = Arc::new(letters.with_retention(7 * DAY));
    job.dead_letters = letters.clone();
    job.trigger = Trigger::Every(Duration::ZERO);
    // One malformed record in each batch.
    job.queries[0].sources[0].factory = Arc::new(Numbers { records: 400, per_batch: 10 });
    let mut query = Query::open(&job, &job.queries[0]).await.unwrap();
    let mut expired = 0;
    for _ in 0..40 {
        let Step::Committed(report) = query.run_batch().await.unwrap() else { panic!("there is more to read") };
        expired += report.dead_letters_expired;
        job.env.clock.sleep(DAY).await;
    }
    let left = letters.entries().await.unwrap();
    assert_eq!(left.iter().map(|entry| entry.batch_id).collect::<Vec<_>>(), (32..40).collect::<Vec<_>>());
    assert_eq!(expired, 32, "what was removed was counted");
}
