//! Plans over every small checkpoint with every damage: what they leave is a checkpoint that a start goes on from.

use std::collections::BTreeMap;

use serde_json::Map;

use super::inspect::{Checked, FileMeta, Look};
use super::survey::Survey;
use super::*;
use crate::error::class;
use crate::state::inspect::StateFileInfo;
use crate::state::{DeltaId, DeltaRun, SnapshotRef, StateRef};

fn metadata() -> Metadata {
    Metadata { id: "an-id".into(), owner: Some(("job".into(), "query".into())) }
}

fn offsets(batch: u64) -> OffsetEntry {
    OffsetEntry {
        watermark_ms: 0,
        timestamp_ms: batch as i64,
        conf: Map::new(),
        offsets: vec![None],
        epoch: 1,
        sources: vec!["s".into()],
        plan: String::new(),
        replays: 0,
    }
}

fn id(version: u64) -> DeltaId {
    DeltaId { version, epoch: 1, crc32c: version as u32, bytes: 9 }
}

/// State with a delta per batch, and a snapshot of version 2 from batch 2 on.
fn commit(batch: u64) -> CommitEntry {
    let version = batch + 1;
    let snapshot = SnapshotRef { version: 2, epoch: 1, parts: 1, rows: 1, bytes: 1 };
    let state = StateRef {
        version,
        epoch: 1,
        rows: vec![1],
        snapshots: if batch >= 2 { vec![snapshot] } else { vec![] },
        deltas_after: 0,
        deltas: vec![DeltaRun { first: 1, last: version, epoch: 1 }],
        newest: Some(id(version)),
    };
    let details = CommitDetails {
        epoch: 1,
        counts: BatchCounts::default(),
        input_watermarks: vec![],
        partitions: vec![],
        state: Some(state),
        replayed: Vec::new(),
    };
    CommitEntry { next_watermark_ms: 0, perennial: Some(details) }
}

/// Batches 0 to 3, committed or all but the last, sound.
fn sound(committed: u64) -> Survey {
    let info = |version: u64| StateFileInfo {
        id: id(version),
        previous: (version > 1).then(|| id(version - 1)),
        rows: 1,
        removed: 0,
    };
    let mut state: BTreeMap<String, Result<StateFileInfo, String>> =
        (1..=committed).map(|version| (format!("{version}.1.delta"), Ok(info(version)))).collect();
    state.insert("2.1.0.snapshot".into(), Ok(info(2)));
    let mut look = Look {
        query: "query".into(),
        files: BTreeMap::new(),
        metadata: Checked::Good(metadata()),
        metadata_copy: Checked::Good(metadata()),
        offsets: (0..4).map(|batch| (batch, Checked::Good(offsets(batch)))).collect(),
        commits: (0..committed).map(|batch| (batch, Checked::Good(commit(batch)))).collect(),
        epoch: 1,
    };
    let logs = (0..4).map(|n| format!("offsets/{n}")).chain((0..committed).map(|n| format!("commits/{n}")));
    let others = ["metadata".to_owned(), "_perennial/metadata".to_owned()].into_iter();
    let state_files = state.keys().map(|name| format!("state/{name}"));
    look.files =
        logs.chain(others).chain(state_files).map(|name| (name, FileMeta { bytes: 1, modified_ms: 0 })).collect();
    Survey { look, state, sources: BTreeMap::new() }
}

#[derive(Clone, Copy)]
enum Harm {
    Damaged,
    Missing,
}

/// Every file of the checkpoint.
fn files(survey: &Survey) -> Vec<String> {
    survey.look.files.keys().cloned().collect()
}

fn harm(survey: &mut Survey, file: &str, harm: Harm) {
    fn hurt<T>(entries: &mut BTreeMap<u64, Checked<T>>, batch: &str, harm: Harm) {
        let batch = batch.parse().unwrap();
        match harm {
            Harm::Damaged => drop(entries.insert(batch, Checked::Damaged("it is torn".into()))),
            Harm::Missing => drop(entries.remove(&batch)),
        }
    }
    let checked = match harm {
        Harm::Damaged => Checked::Damaged("it is torn".into()),
        Harm::Missing => Checked::Missing,
    };
    match file.split_once('/') {
        Some(("offsets", batch)) => hurt(&mut survey.look.offsets, batch, harm),
        Some(("commits", batch)) => hurt(&mut survey.look.commits, batch, harm),
        Some(("state", name)) => match harm {
            Harm::Damaged => drop(survey.state.insert(name.into(), Err(format!("state/{name} is damaged")))),
            Harm::Missing => drop(survey.state.remove(name)),
        },
        Some(_) => survey.look.metadata_copy = checked,
        None => survey.look.metadata = checked,
    }
    if matches!(harm, Harm::Missing) {
        survey.look.files.remove(file);
    }
}

/// Does the first steps of a plan to the model.
fn apply(survey: &mut Survey, steps: &[Step]) {
    for step in steps {
        match step {
            Step::SetAside { file } | Step::Remove { file } => harm(survey, file, Harm::Missing),
            Step::Write { file, .. } if file == "metadata" => survey.look.metadata = Checked::Good(metadata()),
            Step::Write { .. } => survey.look.metadata_copy = Checked::Good(metadata()),
        }
    }
}

/// Runs a check on every checkpoint with harm to one file or two.
fn for_each_damage(check: impl Fn(&Survey, &str)) {
    for committed in [3, 4] {
        let whole = sound(committed);
        let files = files(&whole);
        for (number, one) in files.iter().enumerate() {
            for other in &files[number..] {
                for (harm_one, harm_other) in [
                    (Harm::Damaged, Harm::Damaged),
                    (Harm::Damaged, Harm::Missing),
                    (Harm::Missing, Harm::Damaged),
                    (Harm::Missing, Harm::Missing),
                ] {
                    if one == other && matches!(harm_one, Harm::Missing) {
                        continue;
                    }
                    let mut survey = whole.clone();
                    harm(&mut survey, one, harm_one);
                    harm(&mut survey, other, harm_other);
                    check(&survey, &format!("{one} and {other}, {committed} commits"));
                }
            }
        }
    }
}

#[test]
fn a_sound_checkpoint_needs_nothing() {
    for committed in [3, 4] {
        let survey = sound(committed);
        assert!(survey.findings().is_empty());
        assert_eq!(survey.repair(), Plan::default());
        assert_eq!(survey.gc(None).unwrap().steps, []);
        assert_eq!(survey.last_good(), Some(committed - 1));
    }
}

#[test]
fn damage_is_found_and_told_with_what_to_do() {
    for_each_damage(|survey, about| {
        // The last commit, when it is gone, is one that was never there; so is the copy of metadata in a checkpoint of Spark.
        let lost: Vec<_> = files(&sound(survey.look.commits.len() as u64)).into_iter().collect();
        let quiet = survey.look == sound(3).look || lost.iter().all(|file| survey.look.files.contains_key(file));
        assert!(!survey.findings().is_empty() || quiet || survey.recovery().is_ok(), "{about}");
        let advice = survey.advice("/checkpoints");
        match (survey.repair(), survey.last_good()) {
            (plan, _) if !plan.steps.is_empty() && plan.unresolved.is_empty() => {
                assert!(advice.contains("perennial checkpoint repair /checkpoints query"), "{about}: {advice}");
            }
            (_, Some(good)) => {
                assert!(advice.contains(&format!("rewind /checkpoints query --to {good}")), "{about}: {advice}")
            }
            (_, None) => assert!(advice.contains("restore a backup"), "{about}: {advice}"),
        }
    });
}

#[test]
fn after_a_repair_a_start_goes_on_or_the_plan_says_why_not() {
    for_each_damage(|survey, about| {
        let plan = survey.repair();
        // Wherever it is interrupted, the next repair does the rest.
        for done in 0..=plan.steps.len() {
            let mut part = survey.clone();
            apply(&mut part, &plan.steps[..done]);
            let rest = part.repair();
            let mut whole = part.clone();
            apply(&mut whole, &rest.steps);
            assert_eq!(
                whole.recovery().is_ok(),
                plan.unresolved.is_empty(),
                "{about}, after {done} steps: {plan:?} {rest:?}"
            );
            if plan.unresolved.is_empty() {
                let recovery = whole.recovery().unwrap();
                assert!(recovery.base().is_none_or(|base| whole.batch(base).is_good()), "{about}");
                assert!(whole.repair().steps.is_empty(), "{about}: {:?}", whole.repair());
            }
        }
    });
}

#[test]
fn a_rewind_to_any_good_batch_ends_there_however_often_it_is_interrupted() {
    for_each_damage(|survey, about| {
        for to in 0..4 {
            for keep_ranges in [false, true] {
                let plan = match survey.rewind(to, keep_ranges) {
                    Ok(plan) => plan,
                    Err(error) => {
                        let ranges_lost = keep_ranges && error.to_string().contains("the ranges cannot be kept");
                        assert!(ranges_lost || !survey.batch(to).is_good(), "{about}: {error}");
                        continue;
                    }
                };
                let has_identity = survey.look.metadata.good().or(survey.look.metadata_copy.good()).is_some();
                for done in 0..=plan.steps.len() {
                    let mut after = survey.clone();
                    apply(&mut after, &plan.steps[..done]);
                    // Interrupted and begun again.
                    let rest = after.rewind(to, keep_ranges).unwrap();
                    apply(&mut after, &rest.steps);
                    let last = survey.look.offsets.keys().next_back().copied().unwrap_or(to);
                    match after.recovery() {
                        Ok(Recovery::Continue { last }) => assert_eq!(last, to, "{about}"),
                        Ok(Recovery::RunAgain { from, last: until }) => {
                            assert_eq!((keep_ranges, from, until), (true, to + 1, last), "{about}");
                        }
                        other => assert!(!has_identity, "{about} to {to}: {other:?}"),
                    }
                }
            }
        }
    });
}

#[test]
fn gc_takes_nothing_that_a_kept_batch_needs() {
    for_each_damage(|survey, about| {
        for keep in [None, Some(0), Some(2), Some(3)] {
            let Ok(plan) = survey.gc(keep) else {
                assert!(
                    survey.recovery().is_err() || survey.found().repeats_commits(survey.recovery().unwrap()),
                    "{about}"
                );
                continue;
            };
            let good = |survey: &Survey| -> Vec<u64> {
                survey.batches().iter().filter(|batch| batch.is_good()).map(|batch| batch.batch).collect()
            };
            for done in 0..=plan.steps.len() {
                let mut after = survey.clone();
                apply(&mut after, &plan.steps[..done]);
                assert_eq!(after.recovery().unwrap(), survey.recovery().unwrap(), "{about}");
                let least = keep.map_or(4, |keep| keep.max(2)) as usize;
                let (before, after) = (good(survey), good(&after));
                assert!(
                    before.ends_with(&after) && after.len() >= before.len().min(least),
                    "{about}: {before:?} {after:?}"
                );
            }
        }
    });
}

#[test]
fn files_that_nobody_needs_go() {
    let mut survey = sound(4);
    for name in ["_perennial/aside/3/commits/1", "state/5.1.delta", "state/4.7.0.snapshot"] {
        survey.look.files.insert(name.into(), FileMeta { bytes: 1, modified_ms: 0 });
    }
    let plan = survey.gc(None).unwrap();
    let removed: Vec<&str> = plan.steps.iter().map(Step::file).collect();
    assert_eq!(removed, ["_perennial/aside/3/commits/1", "state/4.7.0.snapshot", "state/5.1.delta"]);
    let kept = survey.gc(Some(2)).unwrap();
    let logs: Vec<&str> = kept.steps.iter().map(Step::file).filter(|f| !f.starts_with("state/")).collect();
    assert_eq!(logs, ["commits/0", "offsets/0", "commits/1", "offsets/1", "_perennial/aside/3/commits/1"]);
}

#[test]
fn what_a_newer_version_wrote_is_left_alone() {
    for file in ["metadata", "offsets/3", "commits/3"] {
        let mut survey = sound(4);
        let newer = || "it was written in format 9".to_owned();
        match file {
            "metadata" => survey.look.metadata = Checked::Newer(newer()),
            "offsets/3" => drop(survey.look.offsets.insert(3, Checked::Newer(newer()))),
            _ => drop(survey.look.commits.insert(3, Checked::Newer(newer()))),
        }
        assert!(survey.repair().steps.is_empty());
        assert_eq!(survey.rewind(2, false).unwrap_err().class(), class::CHECKPOINT_NEWER, "{file}");
        assert_eq!(survey.gc(None).unwrap_err().class(), class::CHECKPOINT_NEWER, "{file}");
        assert!(survey.newer().unwrap().starts_with(file));
    }
}
