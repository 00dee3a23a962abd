//! Plans that change a checkpoint: pure decisions over a survey, and their execution.

use std::collections::BTreeSet;

use object_store::ObjectStoreExt;
use serde::Serialize;

use super::format::Metadata;
use super::inspect::Checked;
use super::log::CheckpointLog;
use super::recovery::{Recovery, recover};
use super::survey::{BatchSurvey, Survey};
use crate::error::{Error, Result, class};
use crate::sink::BatchId;
use crate::state::StateRef;
use crate::state::inspect::Loadable;

/// One change of a file. Paths are below the query's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Step {
    /// Take it away, but keep it in `_perennial/aside`.
    SetAside {
        /// The file.
        file: String,
    },
    /// Remove it.
    Remove {
        /// The file.
        file: String,
    },
    /// Write it, or write it anew.
    Write {
        /// The file.
        file: String,
        /// Its content.
        content: String,
    },
}

impl Step {
    /// The file that changes.
    pub fn file(&self) -> &str {
        match self {
            Self::SetAside { file } | Self::Remove { file } | Self::Write { file, .. } => file,
        }
    }
}

/// Changes in an order that may be interrupted anywhere: what is left is a checkpoint that a start or the same command goes on from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The changes.
    pub steps: Vec<Step>,
    /// What they mean, for people.
    pub notes: Vec<String>,
    /// What stays wrong.
    pub unresolved: Vec<String>,
}

impl Plan {
    fn set_aside(&mut self, file: impl Into<String>) {
        self.steps.push(Step::SetAside { file: file.into() });
    }

    fn remove(&mut self, file: impl Into<String>) {
        self.steps.push(Step::Remove { file: file.into() });
    }
}

fn refused(what: String) -> Error {
    Error::new(class::CONFIG_INVALID, what)
}

impl Survey {
    /// Goes back to batch `to`: what is logged after it is set aside. With `keep_ranges` the batches after it stay planned and run
    /// again over the same ranges.
    ///
    /// # Errors
    /// `ConfigInvalid` where the query could not go on from there, `CheckpointNewer` where a newer version wrote the checkpoint.
    pub fn rewind(&self, to: BatchId, keep_ranges: bool) -> Result<Plan> {
        self.refuse_newer()?;
        let batch = self.batch(to);
        if !batch.is_good() {
            let good: Vec<BatchId> = self.batches().iter().filter(|b| b.is_good()).map(|b| b.batch).collect();
            let why = match batch.problems.first() {
                _ if !batch.committed => "it is not committed".to_owned(),
                Some(problem) => problem.to_string(),
                None => String::new(),
            };
            let choice = match good[..] {
                [] => "no batch is good".to_owned(),
                [only] => format!("only batch {only} is good"),
                [first, .., last] if last - first + 1 == good.len() as u64 => {
                    format!("batches {first} to {last} are good")
                }
                _ => format!(
                    "these batches are good: {}",
                    good.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
                ),
            };
            return Err(refused(format!("the query cannot go on from batch {to}: {why}; {choice}")));
        }
        let mut plan = Plan::default();
        self.mend_metadata(&mut plan);
        self.cut_before_gap(to, &mut plan);
        // Newest first: whatever is left of it, the last commit is one that the offsets reach.
        let commits: Vec<BatchId> = self.look.commits.range(to + 1..).map(|(batch, _)| *batch).collect();
        commits.iter().rev().for_each(|batch| plan.set_aside(format!("commits/{batch}")));
        let offsets: Vec<BatchId> = self.look.offsets.range(to + 1..).map(|(batch, _)| *batch).collect();
        if keep_ranges {
            let unusable = (to + 1..=offsets.last().copied().unwrap_or(to))
                .find(|batch| self.look.offsets.get(batch).and_then(Checked::good).is_none());
            if let Some(batch) = unusable {
                return Err(refused(format!(
                    "the ranges cannot be kept: offsets/{batch} is damaged or missing; go back without keeping them"
                )));
            }
        } else {
            offsets.iter().rev().for_each(|batch| plan.set_aside(format!("offsets/{batch}")));
        }
        let last = offsets.last().or(commits.last()).copied();
        plan.notes.push(match last {
            None => format!("batch {to} is the last one already"),
            Some(last) if keep_ranges => {
                format!("the query runs batches {} to {last} again, over the same ranges of its sources", to + 1)
            }
            Some(_) => format!(
                "the query goes on after batch {to}: it reads again what it read since, divided into batches anew, the first of which is \
                 batch {}",
                to + 1
            ),
        });
        Ok(plan)
    }

    /// Mends what can be mended without losing or doubling anything. What is left is in [`Plan::unresolved`].
    pub fn repair(&self) -> Plan {
        let mut plan = Plan::default();
        if let Some(newer) = self.newer() {
            plan.unresolved.push(newer);
            return plan;
        }
        self.mend_metadata(&mut plan);
        if let Some(good) = self.last_good() {
            self.cut_before_gap(good, &mut plan);
        }
        // Gaps that are cut off do not count any more.
        let mut found = self.found();
        let gone: BTreeSet<&str> = plan.steps.iter().map(Step::file).collect();
        found.offsets.retain(|batch| !gone.contains(format!("offsets/{batch}").as_str()));
        found.commits.retain(|batch| !gone.contains(format!("commits/{batch}").as_str()));
        match recover(&found) {
            Ok(recovery @ Recovery::RunAgain { from, last }) if found.repeats_commits(recovery) => {
                let unusable: Vec<BatchId> = found.commits.iter().copied().filter(|batch| *batch >= from).collect();
                unusable.iter().rev().for_each(|batch| plan.set_aside(format!("commits/{batch}")));
                found.commits.retain(|batch| *batch < from);
                if !unusable.is_empty() {
                    plan.notes.push(format!(
                        "{} again over the logged range; a sink that gives exactly-once has the rows once afterwards, \
                         one that only appends has them twice",
                        if from == last {
                            format!("batch {from} runs")
                        } else {
                            format!("batches {from} to {last} run")
                        }
                    ));
                }
            }
            Ok(_) => {}
            Err(error) => plan.unresolved.push(error.message().to_owned()),
        }
        for (name, _) in self.damaged_state() {
            let disposable = found.commits.iter().all(|batch| match self.batch(*batch).state {
                Some(Loadable::No(files)) => !files.contains(&name),
                _ => true,
            });
            if disposable && self.state.contains_key(&name) {
                plan.set_aside(format!("state/{name}"));
                plan.notes.push(format!("state/{name} is not needed: the state is rebuilt exactly without it"));
            }
        }
        for (name, what) in &self.sources {
            plan.unresolved.push(format!("{name}: {what}; it can only be restored from a backup"));
        }
        plan
    }

    /// Removes the files that no version needs, and, with `keep`, all but the last so many batches.
    ///
    /// # Errors
    /// `ConfigInvalid` for a checkpoint that is damaged where it is needed, `CheckpointNewer` where a newer version wrote it.
    pub fn gc(&self, keep: Option<u64>) -> Result<Plan> {
        self.refuse_newer()?;
        let recovery = self.recovery().map_err(|error| {
            refused(format!("a damaged checkpoint is not tidied up: {}; mend it first", error.message()))
        })?;
        if self.found().repeats_commits(recovery) {
            return Err(refused("a damaged checkpoint is not tidied up: repair it first".into()));
        }
        let mut plan = Plan::default();
        let first = self.look.offsets.keys().next().copied().unwrap_or(0);
        let last = recovery.base().unwrap_or(0);
        let good = || self.batches().into_iter().rev().filter(BatchSurvey::is_good).map(|batch| batch.batch);
        let oldest = keep.and_then(|keep| good().nth(usize::try_from(keep.max(2) - 1).unwrap_or(usize::MAX)));
        let oldest = oldest.unwrap_or(first);
        // A commit never outlives its offsets.
        for batch in self.batches().iter().map(|batch| batch.batch).filter(|batch| *batch < oldest) {
            for dir in ["commits", "offsets"] {
                let file = format!("{dir}/{batch}");
                if self.look.files.contains_key(&file) {
                    plan.remove(file);
                }
            }
        }
        let kept = self
            .look
            .commits
            .range(oldest..)
            .filter_map(|(_, commit)| commit.good()?.perennial.as_ref()?.state.as_ref());
        let needed: BTreeSet<String> = kept.flat_map(StateRef::files).collect();
        for file in self.look.files.keys() {
            let unneeded = file.strip_prefix("state/").is_some_and(|name| !needed.contains(name));
            if unneeded || file.starts_with("_perennial/aside/") {
                plan.remove(file.clone());
            }
        }
        let bytes: u64 = plan.steps.iter().filter_map(|step| self.look.files.get(step.file())).map(|f| f.bytes).sum();
        if !plan.steps.is_empty() {
            plan.notes
                .push(format!("{} files with {bytes} bytes go; batches {oldest} to {last} stay", plan.steps.len()));
        }
        Ok(plan)
    }

    fn refuse_newer(&self) -> Result<()> {
        match self.newer() {
            Some(newer) => Err(Error::new(class::CHECKPOINT_NEWER, newer)),
            None => Ok(()),
        }
    }

    fn mend_metadata(&self, plan: &mut Plan) {
        let write = |file: &str, metadata: &Metadata| Step::Write { file: file.into(), content: metadata.encode() };
        match (&self.look.metadata, &self.look.metadata_copy) {
            (Checked::Missing, Checked::Good(copy)) => plan.steps.push(write("metadata", copy)),
            (Checked::Damaged(_), Checked::Good(copy)) => {
                plan.set_aside("metadata");
                plan.steps.push(write("metadata", copy));
            }
            (Checked::Good(metadata), Checked::Damaged(_)) => plan.steps.push(write("_perennial/metadata", metadata)),
            _ => {}
        }
    }

    /// Takes away the logs before the newest gap below a batch: they are of no use any more.
    fn cut_before_gap(&self, below: BatchId, plan: &mut Plan) {
        let Some(first) = self.look.offsets.keys().next().copied() else { return };
        let Some(gap) = (first..below).rev().find(|batch| !self.look.offsets.contains_key(batch)) else { return };
        for (dir, batch) in self
            .look
            .commits
            .range(..=gap)
            .map(|(batch, _)| ("commits", batch))
            .chain(self.look.offsets.range(..=gap).map(|(batch, _)| ("offsets", batch)))
        {
            plan.set_aside(format!("{dir}/{batch}"));
        }
        plan.notes.push(format!("offsets/{gap} is missing: batches up to {gap} cannot be gone back to any more"));
    }
}

impl CheckpointLog {
    /// Carries out a plan, step by step, and says after how many steps it is.
    ///
    /// # Errors
    /// `Fenced` when another process took over, and those of the storage; the plan can be made and carried out again.
    pub async fn carry_out(&self, plan: &Plan, progress: impl Fn(u64)) -> Result<()> {
        self.check_fence().await?;
        for (done, step) in (1..).zip(&plan.steps) {
            let path = self.file(step.file());
            match step {
                Step::SetAside { .. } => self.set_aside(&path).await?,
                Step::Remove { .. } => self.remove(&path).await?,
                Step::Write { content, .. } => {
                    self.storage().put(&path, content.clone().into()).await?;
                }
            }
            progress(done);
        }
        Ok(())
    }
}
