//! Which files make up a version of the state, and what they are called.
//!
//! The commit log keeps a [`StateRef`] per batch, so nothing is ever found by listing a directory: a batch in which nothing changed has
//! no file, and a file that is missing is known to be missing.

use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::file::DeltaId;

/// A version of the state: everything that is needed to load it, small enough to lie in the commit log.
///
/// It is loaded from the newest snapshot and the deltas after it; where that snapshot is damaged, from an older one and more deltas.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StateRef {
    /// The version: the number of batches committed.
    pub version: u64,
    /// Epoch of the process that wrote it.
    pub epoch: u64,
    /// Rows per operator, to tell whether what was loaded is complete.
    pub rows: Vec<u64>,
    /// Snapshots that it can be loaded from, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotRef>,
    /// The version behind which all deltas are still there: the oldest snapshot's, or 0, where the state was empty.
    pub deltas_after: u64,
    /// The batches after `deltas_after` that changed something, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deltas: Vec<DeltaRun>,
    /// The newest delta.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<DeltaId>,
}

/// A snapshot.
///
/// It was written while batches went on: it has all rows as they were at `version` or later. It is exact once the deltas after `version`
/// are applied, for every version that refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// The version from which deltas are needed.
    pub version: u64,
    /// Epoch of its writer.
    pub epoch: u64,
    /// Number of files.
    pub parts: u64,
    /// Rows in it.
    pub rows: u64,
    /// Size of all files in bytes.
    pub bytes: u64,
}

/// Consecutive versions that each have a delta of the same writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaRun {
    /// The first version.
    pub first: u64,
    /// The last version.
    pub last: u64,
    /// Epoch of the writer.
    pub epoch: u64,
}

impl StateRef {
    /// Versions and epochs of the deltas after a version, ascending.
    pub(super) fn deltas_behind(&self, version: u64) -> impl Iterator<Item = (u64, u64)> {
        self.deltas
            .iter()
            .flat_map(|run| (run.first..=run.last).map(|version| (version, run.epoch)))
            .filter(move |(delta, _)| *delta > version)
    }

    /// Adds the delta of a version that is newer than all others.
    pub(super) fn add_delta(&mut self, id: DeltaId) {
        match self.deltas.last_mut() {
            Some(run) if run.last + 1 == id.version && run.epoch == id.epoch => run.last = id.version,
            _ => self.deltas.push(DeltaRun { first: id.version, last: id.version, epoch: id.epoch }),
        }
        self.newest = Some(id);
    }

    /// Adds a snapshot. The one before it stays, for the case that the new one is damaged; what is older goes.
    pub(super) fn add_snapshot(&mut self, snapshot: SnapshotRef) {
        self.snapshots.insert(0, snapshot);
        self.snapshots.truncate(2);
        // The first snapshot's fall-back is the beginning.
        if let [_, oldest] = self.snapshots[..] {
            self.deltas_after = oldest.version;
        }
        self.deltas.retain_mut(|run| {
            run.first = run.first.max(self.deltas_after + 1);
            run.first <= run.last
        });
    }

    /// Whether this version, or one that follows it, may need the file. `None`: not a file of the state.
    pub(super) fn may_need(&self, name: &str) -> Option<bool> {
        let (version, epoch, is_delta) = parse(name)?;
        Some(if is_delta {
            version > self.version || self.deltas_behind(self.deltas_after).any(|delta| delta == (version, epoch))
        } else {
            let listed = self.snapshots.iter().any(|s| (s.version, s.epoch) == (version, epoch));
            listed || self.snapshots.first().is_none_or(|newest| version > newest.version)
        })
    }
}

/// The file of a delta.
pub(super) fn delta_path(dir: &Path, version: u64, epoch: u64) -> Path {
    dir.clone().join(format!("{version}.{epoch}.delta"))
}

/// A file of a snapshot.
pub(super) fn snapshot_path(dir: &Path, version: u64, epoch: u64, part: u64) -> Path {
    dir.clone().join(format!("{version}.{epoch}.{part}.snapshot"))
}

/// Version and epoch in the name of a file, and whether it is a delta.
fn parse(name: &str) -> Option<(u64, u64, bool)> {
    match name.split('.').collect::<Vec<_>>()[..] {
        [version, epoch, "delta"] => Some((version.parse().ok()?, epoch.parse().ok()?, true)),
        [version, epoch, part, "snapshot"] => {
            part.parse::<u64>().ok()?;
            Some((version.parse().ok()?, epoch.parse().ok()?, false))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(version: u64, epoch: u64) -> DeltaId {
        DeltaId { version, epoch, crc32c: 0, bytes: 0 }
    }

    fn snapshot(version: u64) -> SnapshotRef {
        SnapshotRef { version, epoch: 1, parts: 1, rows: 0, bytes: 0 }
    }

    #[test]
    fn deltas_are_kept_as_runs_and_go_with_the_snapshots() {
        let mut state = StateRef::default();
        for (version, epoch) in [(1, 1), (2, 1), (4, 1), (5, 2), (6, 2), (7, 2)] {
            state.add_delta(delta(version, epoch));
        }
        assert_eq!(state.deltas.len(), 3);
        assert_eq!(state.deltas_behind(3).collect::<Vec<_>>(), [(4, 1), (5, 2), (6, 2), (7, 2)]);

        state.add_snapshot(snapshot(2));
        assert_eq!((state.deltas_after, state.deltas_behind(0).count()), (0, 6), "the beginning is the fall-back");
        state.add_snapshot(snapshot(6));
        assert_eq!((state.deltas_after, state.deltas_behind(0).next()), (2, Some((4, 1))));
        state.add_delta(delta(8, 2));
        state.add_snapshot(snapshot(8));
        assert_eq!(state.deltas_behind(0).collect::<Vec<_>>(), [(7, 2), (8, 2)]);
        assert_eq!(state.snapshots.iter().map(|s| s.version).collect::<Vec<_>>(), [8, 6]);
    }

    #[test]
    fn tells_which_files_are_needed() {
        let mut state = StateRef { version: 9, ..Default::default() };
        for version in 1..=9 {
            state.add_delta(delta(version, 1));
        }
        state.add_snapshot(snapshot(2));
        state.add_snapshot(snapshot(6));
        let cases = [
            ("2.1.delta", Some(false)),
            ("3.1.delta", Some(true)),
            ("9.1.delta", Some(true)),
            ("9.2.delta", Some(false)),
            ("10.1.delta", Some(true)),
            ("1.1.0.snapshot", Some(false)),
            ("2.1.0.snapshot", Some(true)),
            ("4.1.0.snapshot", Some(false)),
            ("6.1.12.snapshot", Some(true)),
            ("7.1.0.snapshot", Some(true)),
            ("6.1.x.snapshot", None),
            ("1.delta", None),
            ("readme", None),
        ];
        for (name, expected) in cases {
            assert_eq!(state.may_need(name), expected, "{name}");
        }
    }
}
