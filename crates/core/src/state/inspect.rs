//! Looking into versions of the state without the query that they belong to: which files a version needs, whether they are sound, and
//! which rows it holds.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::reader::StreamReader;
use object_store::path::Path;

use super::StateSpec;
use super::file::{self, Content, DeltaId};
use super::manifest::{StateRef, delta_path, snapshot_path};
use super::store::{StateOptions, StateStore};
use crate::env::Env;
use crate::error::{Error, Result, class};

/// A sound file of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFileInfo {
    /// Version, writer, checksum and size.
    pub id: DeltaId,
    /// Of a delta, the one before it.
    pub previous: Option<DeltaId>,
    /// Rows in it.
    pub rows: u64,
    /// Keys that it removes.
    pub removed: u64,
}

/// Whether a version of the state can be rebuilt exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loadable {
    /// All its files are sound.
    Yes,
    /// Exactly, around these files: snapshots that can be thrown away, deltas that only they would need.
    Around(Vec<String>),
    /// Not without these files.
    No(Vec<String>),
}

impl StateRef {
    /// Names of all files that the version can be loaded from, ascending.
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.snapshots.iter().flat_map(|s| snapshot_files(s.version, s.epoch, s.parts)).collect();
        names.extend(self.deltas_behind(self.deltas_after).map(|(version, epoch)| delta_file(version, epoch)));
        names.sort_unstable();
        names
    }

    /// Whether the version can be rebuilt, given what is known of its files: a pure decision. Files that `known` lacks are missing.
    pub fn judge(&self, known: &BTreeMap<String, Result<StateFileInfo, String>>) -> Loadable {
        let sound = |name: &String| matches!(known.get(name), Some(Ok(_)));
        let damaged: Vec<String> = self.files().into_iter().filter(|name| !sound(name)).collect();
        let snapshots =
            self.snapshots.iter().map(|s| (s.version, snapshot_files(s.version, s.epoch, s.parts).collect()));
        let beginning = (self.deltas_after == 0).then(|| (0, Vec::new()));
        let base = snapshots.chain(beginning).find(|(_, parts): &(u64, Vec<String>)| parts.iter().all(sound));
        let Some((base, _)) = base else { return Loadable::No(damaged) };
        let needed: Vec<String> = self.deltas_behind(base).map(|(version, epoch)| delta_file(version, epoch)).collect();
        let mut lost: Vec<String> = needed.iter().filter(|name| !sound(name)).cloned().collect();
        // A sound file may still be another one than the one that is meant.
        let infos: Vec<_> =
            needed.iter().filter_map(|name| known.get(name)?.as_ref().ok().map(|info| (name, info))).collect();
        if lost.is_empty() {
            let breaks = infos.windows(2).filter(|pair| pair[1].1.previous != Some(pair[0].1.id)).map(|pair| pair[1].0);
            lost.extend(breaks.cloned());
            let newest =
                infos.last().filter(|(_, info)| self.newest.is_some_and(|newest| newest.version == info.id.version));
            lost.extend(newest.filter(|(_, info)| self.newest != Some(info.id)).map(|(name, _)| (*name).clone()));
        }
        match (lost.is_empty(), damaged.is_empty()) {
            (true, true) => Loadable::Yes,
            (true, false) => Loadable::Around(damaged),
            (false, _) => Loadable::No(lost),
        }
    }
}

fn delta_file(version: u64, epoch: u64) -> String {
    name_of(&delta_path(&Path::default(), version, epoch))
}

fn snapshot_files(version: u64, epoch: u64, parts: u64) -> impl Iterator<Item = String> {
    (0..parts).map(move |part| name_of(&snapshot_path(&Path::default(), version, epoch, part)))
}

fn name_of(path: &Path) -> String {
    path.filename().unwrap_or_default().to_owned()
}

/// Reads a file of the state and compares its checksum.
///
/// # Errors
/// `CheckpointCorrupt` when it is missing or not as it was written, `CheckpointNewer` when a newer version wrote it.
pub async fn check_file(env: &Env, dir: &Path, name: &str) -> Result<StateFileInfo> {
    let path = dir.clone().join(name);
    let decoded = file::decode(&path, file::read(env, &path).await?)?;
    let header = &decoded.header;
    let is_named =
        [delta_path(dir, header.version, header.epoch), snapshot_path(dir, header.version, header.epoch, header.part)];
    if !is_named.contains(&path) {
        return Err(file::damaged(&path, "it is another file under this name"));
    }
    let count = |content| header.sections.iter().filter(|s| s.content == content).map(|s| s.rows).sum();
    Ok(StateFileInfo {
        id: DeltaId { version: header.version, epoch: header.epoch, crc32c: decoded.crc32c, bytes: decoded.bytes },
        previous: header.previous,
        rows: count(Content::Rows),
        removed: count(Content::Removed),
    })
}

/// The rows of one operator in a version.
#[derive(Debug, Clone)]
pub struct OperatorRows {
    /// What it keeps. An operator that never had a row has no columns.
    pub spec: StateSpec,
    /// Its rows, in no order.
    pub rows: Vec<RecordBatch>,
}

/// All rows of a version. Writes nothing. It takes as much memory as the state.
///
/// # Errors
/// As [`StateStore::open`].
pub async fn read_rows(env: &Env, dir: &Path, at: &StateRef) -> Result<Vec<OperatorRows>> {
    let specs = specs(env, dir, at).await?;
    // One partition: nothing has to be spread.
    let spread = Arc::new(|_: usize, keys: &[ArrayRef], _: usize| Ok(vec![0; keys.first().map_or(0, |key| key.len())]));
    let (store, _) = StateStore::open(env, dir.clone(), &specs, 1, spread, Some(at), StateOptions::default()).await?;
    let mut all = Vec::new();
    for (spec, partitions) in specs.into_iter().zip(store.partitions()) {
        let mut rows = Vec::new();
        for partition in partitions {
            let mut partition =
                partition.lock().map_err(|_| Error::bug("a partition of the state was left by a panic"))?;
            rows.extend(partition.scan()?);
        }
        all.push(OperatorRows { spec, rows });
    }
    Ok(all)
}

/// What the operators keep, from what the files say of themselves.
async fn specs(env: &Env, dir: &Path, at: &StateRef) -> Result<Vec<StateSpec>> {
    let mut found: BTreeMap<usize, StateSpec> = BTreeMap::new();
    let wanted = |operator: &usize| at.rows.get(*operator).is_some_and(|rows| *rows > 0);
    // The newest first: they have the columns as they are now.
    let mut names: Vec<String> = at.deltas_behind(0).map(|(version, epoch)| delta_file(version, epoch)).collect();
    names.reverse();
    names.extend(at.snapshots.iter().flat_map(|s| snapshot_files(s.version, s.epoch, s.parts)));
    for name in names {
        if (0..at.rows.len()).filter(wanted).all(|operator| found.contains_key(&operator)) {
            break;
        }
        let path = dir.clone().join(name.as_str());
        let decoded = match file::read(env, &path).await.and_then(|bytes| file::decode(&path, bytes)) {
            Ok(decoded) => decoded,
            // Another file will tell, or opening the version fails and says why.
            Err(error) if error.kind() == crate::ErrorKind::Corrupt => continue,
            Err(error) => return Err(error),
        };
        for (section, bytes) in decoded.header.sections.iter().zip(&decoded.sections) {
            if section.content == Content::Rows && !found.contains_key(&section.operator) {
                let reader = StreamReader::try_new(Cursor::new(bytes), None)
                    .map_err(|error| file::damaged(&path, "a section cannot be read").caused_by(error))?;
                let spec = StateSpec {
                    operator: section.operator,
                    name: section.name.clone(),
                    schema: reader.schema(),
                    keys: section.keys,
                    expiry: None,
                };
                found.insert(section.operator, spec);
            }
        }
    }
    (0..at.rows.len())
        .map(|operator| match found.remove(&operator) {
            Some(spec) => Ok(spec),
            None if !wanted(&operator) => Ok(StateSpec {
                operator,
                name: String::new(),
                schema: Arc::new(Schema::new(vec![Field::new("none", DataType::Null, true)])),
                keys: 0,
                expiry: None,
            }),
            None => Err(Error::new(
                class::CHECKPOINT_CORRUPT,
                format!("{dir}: no file of version {} has the rows of operator {operator}", at.version),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{DeltaRun, SnapshotRef};

    fn id(version: u64) -> DeltaId {
        DeltaId { version, epoch: 1, crc32c: version as u32, bytes: 10 }
    }

    fn info(version: u64) -> StateFileInfo {
        StateFileInfo { id: id(version), previous: (version > 1).then(|| id(version - 1)), rows: 1, removed: 0 }
    }

    /// Version 6 with snapshots of 2 and 4, so that the deltas after 2 are there.
    fn version() -> StateRef {
        let snapshot = |version| SnapshotRef { version, epoch: 1, parts: 2, rows: 1, bytes: 1 };
        StateRef {
            version: 6,
            epoch: 1,
            rows: vec![1],
            snapshots: vec![snapshot(4), snapshot(2)],
            deltas_after: 2,
            deltas: vec![DeltaRun { first: 3, last: 6, epoch: 1 }],
            newest: Some(id(6)),
        }
    }

    #[test]
    fn every_mix_of_damaged_files_is_judged() {
        let state = version();
        let names = state.files();
        assert_eq!(names.len(), 8, "{names:?}");
        for bits in 0..256_u32 {
            let damaged = |name: &str| bits >> names.iter().position(|n| n == name).unwrap() & 1 == 1;
            let known = names
                .iter()
                .filter(|name| !damaged(name))
                .map(|name| (name.clone(), Ok(info(name.split('.').next().unwrap().parse().unwrap()))))
                .collect();
            let snapshot = |version: u64| {
                !damaged(&format!("{version}.1.0.snapshot")) && !damaged(&format!("{version}.1.1.snapshot"))
            };
            let deltas = |after: u64| (after + 1..=6).all(|version| !damaged(&format!("{version}.1.delta")));
            let expected = if snapshot(4) { deltas(4) } else { snapshot(2) && deltas(2) };
            match state.judge(&known) {
                Loadable::Yes => assert_eq!(bits, 0),
                Loadable::Around(files) => {
                    assert!(expected && bits != 0);
                    assert!(files.iter().all(|file| damaged(file)));
                }
                Loadable::No(files) => {
                    assert!(!expected, "{bits:08b}");
                    assert!(!files.is_empty() && files.iter().all(|file| damaged(file)), "{files:?}");
                }
            }
        }
    }

    #[test]
    fn a_sound_file_in_the_place_of_another_is_noticed() {
        let state = version();
        let mut known: BTreeMap<_, Result<_, String>> = state
            .files()
            .into_iter()
            .map(|name| (name.clone(), Ok(info(name.split('.').next().unwrap().parse().unwrap()))))
            .collect();
        assert_eq!(state.judge(&known), Loadable::Yes);
        let mut other = info(6);
        other.id.crc32c = 77;
        known.insert("6.1.delta".into(), Ok(other));
        assert_eq!(state.judge(&known), Loadable::No(vec!["6.1.delta".into()]));
        let mut other = info(6);
        other.previous = Some(id(4));
        known.insert("6.1.delta".into(), Ok(other));
        assert_eq!(state.judge(&known), Loadable::No(vec!["6.1.delta".into()]));
    }
}
