//! What became of dead letters: marks on entries, the newest of which counts.

use serde::{Deserialize, Serialize};

/// How an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is handed to the job, which has not committed it yet.
    Replaying,
    /// All its records went through when they were run again.
    Recovered,
    /// Some of its records failed again: they are in a new entry.
    FailedAgain,
    /// A person says that nothing is left to do.
    Resolved,
}

impl Outcome {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Replaying => "replaying",
            Self::Recovered => "recovered",
            Self::FailedAgain => "failed_again",
            Self::Resolved => "resolved",
        }
    }
}

/// A mark on an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Identity of the entry.
    pub entry: String,
    /// How it stands since then.
    pub outcome: Outcome,
    /// Since when, as the entries have it.
    pub timestamp: String,
    /// Records of the entry that failed again.
    #[serde(default)]
    pub failed: u64,
    /// What a person noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How an entry stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The newest mark.
    pub mark: Mark,
    /// How often it was handed to its job.
    pub replays: u64,
}

/// Name of the file with the marks.
pub(super) const FILE: &str = "outcomes.json";
