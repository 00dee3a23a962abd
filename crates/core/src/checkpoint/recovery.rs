//! What to do next, from what is found in the logs: a pure decision.

use std::fmt;

use crate::error::{Error, Result, class};
use crate::sink::BatchId;

/// The numbers of the files in the logs, ascending, and what is wrong with those that recovery needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether there is a `metadata`.
    pub metadata: bool,
    /// Numbers in `offsets`.
    pub offsets: Vec<BatchId>,
    /// Numbers in `commits`.
    pub commits: Vec<BatchId>,
    /// What cannot be used. Only what was looked at is known.
    pub damage: Vec<Damage>,
    /// What was mended on the way.
    pub repairs: Vec<String>,
}

/// Part of a batch in the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `offsets/N`.
    Offsets,
    /// `commits/N`.
    Commit,
    /// The state after the batch.
    State,
}

/// A part of a batch that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which part.
    pub part: Part,
    /// The batch.
    pub batch: BatchId,
    /// What is wrong with it; names the file.
    pub why: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was logged: begin with batch 0.
    Fresh,
    /// Run batches again from their logged ranges, and then go on.
    RunAgain {
        /// The first one: all before it is committed and sound.
        from: BatchId,
        /// The last one that was logged. After a crash it is the first one, too.
        last: BatchId,
    },
    /// All logged batches are committed, the last is `last`.
    Continue {
        /// The last batch.
        last: BatchId,
    },
}

impl Recovery {
    /// The committed batch that the query goes on from.
    pub fn base(&self) -> Option<BatchId> {
        match *self {
            Self::Fresh => None,
            Self::RunAgain { from, .. } => from.checked_sub(1),
            Self::Continue { last } => Some(last),
        }
    }
}

impl Found {
    fn is_sound(&self, part: Part, batch: BatchId) -> bool {
        !self.damage.iter().any(|damage| (damage.part, damage.batch) == (part, batch))
    }

    /// Whether running these batches again is more than what a crash asks for: committed ones are among them, or were.
    pub fn repeats_commits(&self, recovery: Recovery) -> bool {
        match recovery {
            Recovery::RunAgain { from, last } => from < last || self.commits.contains(&from),
            _ => false,
        }
    }
}

/// Decides how a query goes on: from the newest batch of which everything is sound, by running again what was logged after it, with its
/// logged ranges, watermark and timestamp.
///
/// After a crash that is at most the last batch (Spark's rule). After damage to a commit or to the state it may be more; the result is
/// exact all the same, as long as the query gives exactly-once ([`Found::repeats_commits`] tells when that matters).
///
/// # Errors
/// `CheckpointCorrupt` where nothing exact is possible: it says which files are missing or damaged.
pub fn recover(found: &Found) -> Result<Recovery> {
    let refuse = |what: String| {
        let reasons: Vec<String> = std::iter::once(what).chain(found.damage.iter().map(Damage::to_string)).collect();
        Err(Error::new(
            class::CHECKPOINT_CORRUPT,
            format!("{}. The query does not start, because it could lose or double records", reasons.join("; ")),
        ))
    };
    let (Some(&last), Some(&first)) = (found.offsets.last(), found.offsets.first()) else {
        return match found.commits.last() {
            Some(commit) => refuse(format!("commits/{commit} is there, but offsets/ is empty")),
            None => Ok(Recovery::Fresh),
        };
    };
    if !found.metadata {
        return refuse("offsets/ is there, but metadata, which tells whose it is, is missing".into());
    }
    if let Some(hole) = (first..=last).zip(&found.offsets).find(|(expected, found)| expected != *found) {
        return refuse(format!("offsets/{} is missing, although offsets/{last} is there", hole.0));
    }
    if let Some(&commit) = found.commits.last()
        && commit > last
    {
        return refuse(format!("commits/{commit} is there, but offsets/{commit} is missing"));
    }
    let is_base = |batch: &BatchId| {
        *batch >= first && [Part::Offsets, Part::Commit, Part::State].iter().all(|part| found.is_sound(*part, *batch))
    };
    let base = found.commits.iter().copied().rev().find(is_base);
    // A batch starts where the batch before it ended; only batch 0 starts without one.
    let from = match base {
        Some(base) => base + 1,
        None if first == 0 => 0,
        None => {
            return refuse(format!(
                "no commit from batch {first} on can be used, and it is not known where batch {first} starts"
            ));
        }
    };
    if let Some(lost) = (from..=last).find(|batch| !found.is_sound(Part::Offsets, *batch)) {
        return refuse(format!("it is not known what batch {lost} reads"));
    }
    Ok(if from > last { Recovery::Continue { last } } else { Recovery::RunAgain { from, last } })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn logs(bits: u32) -> Found {
        let set = |shift: u32| (0..4).filter(|n| bits >> (shift + n) & 1 == 1).map(u64::from).collect::<Vec<_>>();
        Found { metadata: true, offsets: set(0), commits: set(4), ..Default::default() }
    }

    #[test]
    fn every_small_mix_of_logs_has_one_answer() {
        // All subsets of four offsets and four commits.
        for bits in 0..256_u32 {
            let found = logs(bits);
            let (last, commit) = (found.offsets.last().copied(), found.commits.last().copied());
            let gapless = found.offsets.windows(2).all(|w| w[0] + 1 == w[1]);
            let base = found.commits.iter().rev().find(|c| found.offsets.contains(c));
            let expected = match (last, commit) {
                (None, None) => Some(Recovery::Fresh),
                (Some(l), Some(c)) if gapless && l == c => Some(Recovery::Continue { last: l }),
                (Some(l), c) if gapless && c.is_none_or(|c| c < l) => match base {
                    Some(base) => Some(Recovery::RunAgain { from: base + 1, last: l }),
                    None if found.offsets[0] == 0 => Some(Recovery::RunAgain { from: 0, last: l }),
                    None => None,
                },
                _ => None,
            };
            match (recover(&found), expected) {
                (Ok(decided), Some(expected)) => assert_eq!(decided, expected, "{found:?}"),
                (Err(error), None) => assert_eq!(error.class(), class::CHECKPOINT_CORRUPT),
                (decided, expected) => panic!("{found:?}: {decided:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn damage_of_any_parts_leads_to_the_newest_sound_batch_or_a_refusal() {
        // Batches 3 to 6 (and 0 to 3) with every mix of damage to offsets, commits and states, committed to the end or not.
        for first in [0, 3] {
            for committed in [3, 4] {
                for bits in 0..4096_u32 {
                    let parts = [Part::Offsets, Part::Commit, Part::State];
                    let damage = (0..12).filter(|bit| bits >> bit & 1 == 1).map(|bit| {
                        let (part, batch) = (parts[bit / 4], first + bit as u64 % 4);
                        Damage { part, batch, why: format!("{part:?} of {batch} is damaged") }
                    });
                    let found = Found {
                        metadata: true,
                        offsets: (first..first + 4).collect(),
                        commits: (first..first + committed).collect(),
                        damage: damage.collect(),
                        repairs: Vec::new(),
                    };
                    let broken = |part: usize, batch: u64| bits >> (part as u64 * 4 + batch - first) & 1 == 1;
                    let sound = |batch: u64| (0..3).all(|part| !broken(part, batch));
                    let base = found.commits.iter().copied().filter(|batch| sound(*batch)).max();
                    let last = first + 3;
                    let again = base.map_or(first, |base| base + 1);
                    match recover(&found) {
                        Ok(Recovery::Continue { last: decided }) => assert_eq!((Some(decided), decided), (base, last)),
                        Ok(Recovery::RunAgain { from, last: to }) => {
                            assert_eq!((from, to), (again, last));
                            assert!(base.is_some() || first == 0, "where it starts is known");
                            assert!((from..=to).all(|batch| !broken(0, batch)), "what it reads is known");
                        }
                        Ok(Recovery::Fresh) => panic!("{found:?} is not fresh"),
                        Err(error) => {
                            let starts_unknown = base.is_none() && first > 0;
                            assert!(
                                starts_unknown || (again..=last).any(|batch| broken(0, batch)),
                                "{found:?}: {error}"
                            );
                            for damage in &found.damage {
                                assert!(error.to_string().contains(&damage.why), "{error} leaves out {damage}");
                            }
                        }
                    }
                }
            }
        }
    }

    /// What is durable somewhere: in the checkpoint, and in the ledger of a sink.
    #[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
    struct Durable {
        offsets: BTreeSet<BatchId>,
        states: BTreeSet<BatchId>,
        commits: BTreeSet<BatchId>,
        ledger: BTreeSet<BatchId>,
        /// Losses so far.
        losses: u32,
    }

    impl Durable {
        fn found(&self) -> Found {
            let lost = self.commits.difference(&self.states);
            let why = |batch| format!("the state of batch {batch} is damaged");
            Found {
                metadata: true,
                offsets: self.offsets.iter().copied().collect(),
                commits: self.commits.iter().copied().collect(),
                damage: lost.map(|batch| Damage { part: Part::State, batch: *batch, why: why(*batch) }).collect(),
                repairs: Vec::new(),
            }
        }

        /// One life, step by step: what would be left by a death after each of them.
        fn live(mut self, batches: BatchId) -> Vec<Self> {
            let decision = recover(&self.found()).unwrap_or_else(|error| panic!("{self:?}: {error}"));
            let (mut left, again) = (
                vec![self.clone()],
                match decision {
                    Recovery::RunAgain { from, last } => from..last + 1,
                    _ => 0..0,
                },
            );
            let next = decision.base().map_or(0, |base| base + 1);
            assert!(
                decision.base().is_none_or(|base| self.states.contains(&base)),
                "{self:?} goes on from {decision:?}"
            );
            while self.commits.last().is_some_and(|last| *last >= next) {
                // Taken out of the log, newest first.
                self.commits.pop_last();
                left.push(self.clone());
            }
            for batch in next..batches {
                assert_eq!(
                    self.offsets.contains(&batch),
                    again.contains(&batch),
                    "logged batches run as they were logged"
                );
                self.offsets.insert(batch);
                left.push(self.clone());
                // A sink with a ledger takes a batch once; in a sink without gaps none is left out.
                let newest = self.ledger.last().map_or(0, |last| last + 1);
                assert!(batch <= newest, "{self:?} left out a batch before {batch}");
                self.ledger.insert(batch);
                left.push(self.clone());
                assert!(
                    batch == 0 || self.states.contains(&(batch - 1)),
                    "{self:?} builds on a state that is not there"
                );
                self.states.insert(batch);
                left.push(self.clone());
                self.commits.insert(batch);
                left.push(self.clone());
            }
            left
        }

        /// The same with one commit or state lost.
        fn losses(&self) -> Vec<Self> {
            let lossy = |lose: &dyn Fn(&mut Self)| {
                let mut lossy = Self { losses: self.losses + 1, ..self.clone() };
                lose(&mut lossy);
                lossy
            };
            let commits = self.commits.iter().map(|batch| {
                lossy(&|world| {
                    world.commits.remove(batch);
                })
            });
            let states = self.states.iter().map(|batch| {
                lossy(&|world| {
                    world.states.remove(batch);
                })
            });
            commits.chain(states).collect()
        }
    }

    #[test]
    fn every_mix_of_logs_states_and_ledgers_that_can_be_reached_continues_exactly() {
        // Lives of up to three batches, dying after any step, any number of times, with up to two losses in between.
        const BATCHES: BatchId = 3;
        let (mut reached, mut open) = (BTreeSet::new(), vec![Durable::default()]);
        while let Some(durable) = open.pop() {
            if !reached.insert(durable.clone()) {
                continue;
            }
            open.extend(durable.clone().live(BATCHES));
            if durable.losses < 2 {
                open.extend(durable.losses());
            }
        }
        assert!(reached.len() > 100, "{} mixes", reached.len());
        for durable in reached {
            let end = durable.live(BATCHES).pop().unwrap();
            assert_eq!(end.ledger, (0..BATCHES).collect());
            assert_eq!((end.commits.last(), &end.offsets), (Some(&(BATCHES - 1)), &end.ledger));
        }
    }

    #[test]
    fn what_a_crash_leaves_repeats_no_commit() {
        let crash = Found { metadata: true, offsets: vec![0, 1], commits: vec![0], ..Default::default() };
        assert!(!crash.repeats_commits(recover(&crash).unwrap()));
        let lost = Damage { part: Part::Commit, batch: 1, why: "commits/1 is damaged".into() };
        let torn = Found { commits: vec![0, 1], damage: vec![lost], ..crash.clone() };
        assert_eq!(recover(&torn).unwrap(), Recovery::RunAgain { from: 1, last: 1 });
        assert!(torn.repeats_commits(recover(&torn).unwrap()));
        let two = Found { commits: vec![], ..crash };
        assert!(two.repeats_commits(recover(&two).unwrap()));
    }

    #[test]
    fn logs_without_an_identity_are_refused() {
        let found = Found { metadata: false, offsets: vec![0], commits: vec![0], ..Default::default() };
        assert!(recover(&found).unwrap_err().to_string().contains("metadata"));
    }
}
