//! What a checkpoint is worth: pure judgement of what was found in it.

use std::collections::BTreeMap;

use super::inspect::{Checked, Look};
use super::recovery::{Damage, Found, Part, Recovery, recover};
use crate::error::Result;
use crate::sink::BatchId;
use crate::state::StateRef;
use crate::state::inspect::{Loadable, StateFileInfo};

/// Everything in the checkpoint of a query, read and compared with its checksums.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// The logs and the list of files.
    pub look: Look,
    /// Files of the state by name, or what is wrong with them.
    pub state: BTreeMap<String, Result<StateFileInfo, String>>,
    /// Files of the sources' logs that are damaged or missing, and why.
    pub sources: BTreeMap<String, String>,
}

/// A batch of which something is in the logs.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchSurvey {
    /// The batch.
    pub batch: BatchId,
    /// What is wrong with its parts. Empty for a batch that is committed and sound.
    pub problems: Vec<Damage>,
    /// Whether `commits/N` is there, sound or not.
    pub committed: bool,
    /// Whether its state can be rebuilt; `None` for a batch without state or without a sound commit.
    pub state: Option<Loadable>,
}

impl BatchSurvey {
    /// Whether the query can go on from here exactly.
    pub fn is_good(&self) -> bool {
        self.committed && self.problems.is_empty()
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, below the query's directory.
    pub file: String,
    /// What is wrong.
    pub what: String,
    /// What follows from it.
    pub effect: String,
}

impl Survey {
    fn state_of(&self, batch: BatchId) -> Option<&StateRef> {
        self.look.commits.get(&batch)?.good()?.perennial.as_ref()?.state.as_ref()
    }

    /// All batches of which something is in the logs, ascending.
    pub fn batches(&self) -> Vec<BatchSurvey> {
        let mut numbers: Vec<BatchId> = self.look.offsets.keys().chain(self.look.commits.keys()).copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|batch| self.batch(batch)).collect()
    }

    /// One batch.
    pub fn batch(&self, batch: BatchId) -> BatchSurvey {
        let mut problems = Vec::new();
        let offsets = self.look.offsets.get(&batch).map_or(Some("it is missing"), Checked::problem);
        problems.extend(offsets.map(|why| Damage {
            part: Part::Offsets,
            batch,
            why: format!("offsets/{batch}: {why}"),
        }));
        let commit = self.look.commits.get(&batch);
        let problem = commit.and_then(Checked::problem);
        problems.extend(problem.map(|why| Damage {
            part: Part::Commit,
            batch,
            why: format!("commits/{batch}: {why}"),
        }));
        let state = self.state_of(batch).map(|state| state.judge(&self.state));
        if let Some(Loadable::No(files)) = &state {
            let lost: Vec<String> = files.iter().map(|name| self.state_problem(name)).collect();
            problems.push(Damage { part: Part::State, batch, why: lost.join("; ") });
        }
        BatchSurvey { batch, problems, committed: commit.is_some(), state }
    }

    fn state_problem(&self, name: &str) -> String {
        match self.state.get(name) {
            Some(Err(why)) => why.clone(),
            Some(Ok(_)) => format!("state/{name} is not the file that is meant"),
            None => format!("state/{name} is missing"),
        }
    }

    /// The newest batch that the query can go on from exactly.
    pub fn last_good(&self) -> Option<BatchId> {
        self.look.commits.keys().rev().copied().find(|batch| self.batch(*batch).is_good())
    }

    /// What recovery would find, with all damage.
    pub fn found(&self) -> Found {
        let look = &self.look;
        Found {
            metadata: look.metadata.good().or(look.metadata_copy.good()).is_some(),
            offsets: look.offsets.keys().copied().collect(),
            commits: look.commits.keys().copied().collect(),
            // A missing file is no damage but a gap, which recovery sees by itself.
            damage: self.batches().into_iter().flat_map(|batch| batch.problems).filter(|d| self.is_there(d)).collect(),
            repairs: Vec::new(),
        }
    }

    fn is_there(&self, damage: &Damage) -> bool {
        damage.part != Part::Offsets || self.look.offsets.contains_key(&damage.batch)
    }

    /// What a start does.
    pub fn recovery(&self) -> Result<Recovery> {
        recover(&self.found())
    }

    /// A file of the logs that a newer version wrote.
    pub fn newer(&self) -> Option<String> {
        let of = |name: String, what: Option<&str>| what.map(|what| format!("{name}: {what}"));
        fn newer<T>(checked: &Checked<T>) -> Option<&str> {
            match checked {
                Checked::Newer(what) => Some(what),
                _ => None,
            }
        }
        let offsets = self.look.offsets.iter().rev().filter_map(|(n, c)| of(format!("offsets/{n}"), newer(c)));
        let commits = self.look.commits.iter().rev().filter_map(|(n, c)| of(format!("commits/{n}"), newer(c)));
        of("metadata".into(), newer(&self.look.metadata)).into_iter().chain(commits).chain(offsets).next()
    }

    /// Everything that is not as it should be.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut add = |file: String, what: String, effect: &str| {
            findings.push(Finding { file, what, effect: effect.to_owned() });
        };
        let look = &self.look;
        let logged = !look.offsets.is_empty() || !look.commits.is_empty();
        match (look.metadata.problem(), look.metadata_copy.problem()) {
            (Some(what), None) => add("metadata".into(), what.into(), "the next start restores it from its copy"),
            // Checkpoints of Spark have no copy, nor have those that never ran since there is one.
            (None, Some(what)) if look.metadata_copy != Checked::Missing => {
                add("_perennial/metadata".into(), what.into(), "the next start writes this copy anew");
            }
            (Some(what), Some(_)) if logged || look.metadata != Checked::Missing => {
                add("metadata".into(), what.into(), "the query does not start: it is not known whose checkpoint it is");
            }
            _ => {}
        }
        let recovery = self.recovery();
        let base = recovery.as_ref().map_or_else(|_| self.last_good(), Recovery::base);
        let effect = |batch: BatchId| match (&recovery, base) {
            (_, Some(base)) if batch < base => "one cannot go back to that batch; the query goes on",
            (Ok(_), _) => "the batch runs again from its logged range when the query starts",
            (Err(_), _) => "the query does not start",
        };
        let (first, last) = (look.offsets.keys().next().copied(), look.offsets.keys().last().copied());
        for gap in first.zip(last).into_iter().flat_map(|(first, last)| first..last) {
            if !look.offsets.contains_key(&gap) {
                add(format!("offsets/{gap}"), "it is missing".into(), "the query does not start");
            }
        }
        for (batch, entry) in &look.offsets {
            if let Some(what) = entry.problem() {
                add(format!("offsets/{batch}"), what.into(), effect(*batch));
            }
        }
        for (batch, entry) in &look.commits {
            if last.is_none_or(|last| *batch > last) {
                add(
                    format!("offsets/{batch}"),
                    "it is missing, but the commit is there".into(),
                    "the query does not start",
                );
            }
            if let Some(what) = entry.problem() {
                add(format!("commits/{batch}"), what.into(), effect(*batch));
            }
        }
        let newest_good = self.last_good();
        for (name, what) in self.damaged_state() {
            let needed = look.commits.keys().rev().find(|batch| match self.batch(**batch).state {
                Some(Loadable::No(files)) => files.contains(&name),
                _ => false,
            });
            let referred =
                look.commits.keys().any(|batch| self.state_of(*batch).is_some_and(|s| s.files().contains(&name)));
            match needed {
                Some(batch) if newest_good.is_some_and(|good| *batch < good) => {
                    add(format!("state/{name}"), what, "one cannot go back to some batches; the query goes on");
                }
                Some(batch) => add(format!("state/{name}"), what, effect(*batch)),
                None if referred => add(format!("state/{name}"), what, "the state is rebuilt exactly without it"),
                None => add(format!("state/{name}"), what, "no batch needs it; gc removes it"),
            }
        }
        for (name, what) in &self.sources {
            add(name.clone(), what.clone(), "the query stops when its source needs the file");
        }
        findings
    }

    /// Files of the state that are damaged, or missing although a commit refers to them.
    pub fn damaged_state(&self) -> Vec<(String, String)> {
        let mut names: Vec<String> =
            self.look.commits.keys().filter_map(|batch| self.state_of(*batch)).flat_map(StateRef::files).collect();
        names.extend(self.state.iter().filter(|(_, info)| info.is_err()).map(|(name, _)| name.clone()));
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .filter(|name| !matches!(self.state.get(name), Some(Ok(_))))
            .map(|name| {
                let what = self.state_problem(&name);
                (name, what)
            })
            .collect()
    }

    /// What is known to be good, and how to go on from there. `storage` is where the checkpoint is, for the commands.
    pub fn advice(&self, storage: &str) -> String {
        // Other storages do not say their URL.
        let place = if storage.starts_with('/') || storage.contains("://") { storage } else { "CHECKPOINT" };
        let query = &self.look.query;
        if let Some(name) = self.sources.keys().next() {
            return format!(
                "{name} tells where its source begins or what it has read, and nothing else does: bring it back from a backup \
                 (`perennial checkpoint restore`), or begin with another checkpoint directory"
            );
        }
        let repair = self.repair();
        if !repair.steps.is_empty() && repair.unresolved.is_empty() {
            return format!("What is damaged can be mended: `perennial checkpoint repair {place} {query}`");
        }
        match self.last_good() {
            Some(batch) => format!(
                "Everything up to batch {batch} is known to be good: restore the files from a backup, or go on from there with \
                 `perennial checkpoint rewind {place} {query} --to {batch}`, which says first what that means for the sink"
            ),
            None => "No batch is known to be good: restore a backup (`perennial checkpoint restore`), or begin with another \
                     checkpoint directory"
                .to_owned(),
        }
    }
}
