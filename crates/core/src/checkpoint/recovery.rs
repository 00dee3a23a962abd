//! What to do next, from what is found in the logs: a pure decision.

use crate::error::{Error, Result, class};
use crate::sink::BatchId;

/// The numbers of the files in the logs, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether there is a `metadata`.
    pub metadata: bool,
    /// Numbers in `offsets`.
    pub offsets: Vec<BatchId>,
    /// Numbers in `commits`.
    pub commits: Vec<BatchId>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was logged: begin with batch 0.
    Fresh,
    /// Batch `batch` was logged but not committed: run it again from its logged ranges.
    RunAgain {
        /// The batch.
        batch: BatchId,
    },
    /// All logged batches are committed, the last is `last`.
    Continue {
        /// The last batch.
        last: BatchId,
    },
}

/// Decides how a query goes on. Spark's rule: the last offsets and the last commit are equal, or the last batch was not committed.
///
/// # Errors
/// `CheckpointCorrupt` where the logs cannot be the work of one writer that stopped somewhere: it says which file is missing.
pub fn recover(found: &Found) -> Result<Recovery> {
    let refuse = |what: String| {
        Err(Error::new(
            class::CHECKPOINT_CORRUPT,
            format!(
                "{what}. The query does not start, because it could lose or double records. Restore the file from a backup, or begin with another checkpoint directory"
            ),
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
    let recovery = match found.commits.last() {
        Some(&commit) if commit > last => {
            return refuse(format!("commits/{commit} is there, but offsets/{commit} is missing"));
        }
        Some(&commit) if commit == last => Recovery::Continue { last },
        Some(&commit) if commit + 1 == last => Recovery::RunAgain { batch: last },
        None if last == 0 => Recovery::RunAgain { batch: 0 },
        _ => {
            let missing = last - 1;
            return refuse(format!("commits/{missing} is missing, although offsets/{last} is there"));
        }
    };
    // A batch starts where the batch before it ended.
    if let Recovery::RunAgain { batch } = recovery
        && batch > 0
        && first == batch
    {
        return refuse(format!("offsets/{} is missing, which tells where batch {batch} starts", batch - 1));
    }
    Ok(recovery)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_small_mix_of_logs_has_one_answer() {
        // All subsets of four offsets and four commits.
        for bits in 0..256_u32 {
            let set = |shift: u32| (0..4).filter(|n| bits >> (shift + n) & 1 == 1).map(u64::from).collect::<Vec<_>>();
            let found = Found { metadata: true, offsets: set(0), commits: set(4) };
            let (last, commit) = (found.offsets.last().copied(), found.commits.last().copied());
            let gapless = found.offsets.windows(2).all(|w| w[0] + 1 == w[1]);
            let expected = match (last, commit) {
                (None, None) => Some(Recovery::Fresh),
                (Some(l), Some(c)) if gapless && l == c => Some(Recovery::Continue { last: l }),
                (Some(l), Some(c)) if gapless && l == c + 1 && found.offsets.len() > 1 => {
                    Some(Recovery::RunAgain { batch: l })
                }
                (Some(0), None) => Some(Recovery::RunAgain { batch: 0 }),
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
    fn logs_without_an_identity_are_refused() {
        let found = Found { metadata: false, offsets: vec![0], commits: vec![0] };
        assert!(recover(&found).unwrap_err().to_string().contains("metadata"));
    }
}
