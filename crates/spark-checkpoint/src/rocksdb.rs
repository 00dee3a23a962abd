//! State that was kept in RocksDB: the tables of a version, or those of an older one and the changes since.
//!
//! A version is `N.zip`, which names the tables that belong to it and lie in `SSTs/`, and `N.changelog` has the changes of a batch. Where
//! checkpoints have the format 2, the names carry an identity, and each changelog tells the line that it continues.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use perennial_core::error::{ErrorKind, Result};
use serde_json::Value;

use crate::records::{self, Change};
use crate::state::{Rows, StateReader, StoreInfo};
use crate::{damaged, refused, sst};

/// The first byte of keys and values: the version of their encoding.
const ENCODING: u8 = 0;

/// The rows of a store in a partition, or those of one of its column families.
pub(crate) async fn load(
    reader: &StateReader<'_>,
    operator: u64,
    partition: usize,
    dir: &str,
    store: &StoreInfo,
    family: &str,
) -> Result<Rows> {
    let shown = reader.dir.shown(dir);
    let mut rows = Rows::new();
    for (key, value) in raw_rows(reader, operator, partition, dir, store, family).await? {
        // With a prefix, the version stands in front of each of the two halves.
        let key = if store.prefix_columns > 0 { key } else { plain(&shown, &key)?.to_vec() };
        rows.insert(key, plain(&shown, &value)?.to_vec());
    }
    Ok(rows)
}

/// The rows of a column family in which a key has several, by the key and a time: keys and rows, each key's in the order of their times.
pub(crate) async fn load_lists(
    reader: &StateReader<'_>,
    operator: u64,
    partition: usize,
    dir: &str,
    store: &StoreInfo,
    family: &str,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let shown = reader.dir.shown(dir);
    let broken = || damaged(&shown, "the rows of a key are not what its store says");
    let mut found = Vec::new();
    for (key, value) in raw_rows(reader, operator, partition, dir, store, family).await? {
        // The bytes of the time are in its order.
        let (key, time) =
            plain(&shown, &key)?.split_last_chunk::<8>().map(|(key, time)| (key.to_vec(), *time)).ok_or_else(broken)?;
        // Each row with its length in front, as 4 bytes.
        let mut rest = value.as_slice();
        while !rest.is_empty() {
            let (length, behind) = rest.split_first_chunk::<4>().ok_or_else(broken)?;
            rest = behind;
            let length = u32::from_le_bytes(*length) as usize;
            let (row, behind) = rest.split_at_checked(length).ok_or_else(broken)?;
            rest = behind;
            found.push((key.clone(), time, found.len(), plain(&shown, row)?.to_vec()));
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(key, _, _, row)| (key, row)).collect())
}

/// A key or a value without the version of its encoding.
fn plain<'a>(shown: &str, bytes: &'a [u8]) -> Result<&'a [u8]> {
    match bytes.split_first() {
        Some((&ENCODING, rest)) => Ok(rest),
        _ => Err(refused(format!("{shown}: keys and values are in an encoding that is not known"))),
    }
}

/// Keys and values of a store, or of one of its column families, as they are in it.
async fn raw_rows(
    reader: &StateReader<'_>,
    operator: u64,
    partition: usize,
    dir: &str,
    store: &StoreInfo,
    family: &str,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let files = Files { reader, dir, names: line(reader, operator, partition, dir).await? };
    let raw = files.load().await?;
    if !store.families {
        return Ok(raw.rows.into_iter().collect());
    }
    let id = files.family(&raw, family)?;
    let mut rows = Vec::new();
    for (key, value) in raw.rows {
        match key.split_first_chunk::<2>() {
            Some((of, key)) if i16::from_le_bytes(*of) == id => rows.push((key.to_vec(), value)),
            Some(_) => {}
            None => return Err(damaged(&reader.dir.shown(dir), "a key has no column family")),
        }
    }
    Ok(rows)
}

/// The two halves of a key that is looked for by its first one.
pub(crate) fn halves(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = key.split_first_chunk::<4>()?;
    let (first, rest) = rest.split_at_checked(usize::try_from(i32::from_le_bytes(*length)).ok()?)?;
    Some((first.strip_prefix(&[ENCODING])?, rest.strip_prefix(&[ENCODING])?))
}

/// Per version the identity in the names of its files; empty where they have none.
type Line = HashMap<u64, String>;

async fn line(reader: &StateReader<'_>, operator: u64, partition: usize, dir: &str) -> Result<Line> {
    let Some(names) = &reader.names else { return Ok(Line::new()) };
    let missing = || damaged(&reader.dir.shown(dir), "the commit does not name its files");
    let id = names[operator.to_string()][partition][0].as_str().ok_or_else(missing)?;
    let mut line = Line::from([(reader.version, id.to_owned())]);
    let mut oldest = reader.version;
    // Each changelog tells the versions back to a snapshot; where that is damaged, its own changelog tells those before.
    loop {
        let name = format!("{dir}/{oldest}_{}.changelog", line[&oldest]);
        let Some(content) = reader.dir.read(&name).await? else { return Ok(line) };
        let shown = reader.dir.shown(&name);
        let content = reader.settings.codec()?.decompress(&shown, &content)?;
        let told = records::lineage(&shown, &content)?;
        let before = oldest;
        for (version, id) in told {
            oldest = oldest.min(version);
            line.entry(version).or_insert(id);
        }
        if oldest == before {
            return Ok(line);
        }
    }
}

/// The rows of a version, with their encodings.
struct Raw {
    rows: HashMap<Vec<u8>, Vec<u8>>,
    /// Numbers of column families, where a snapshot tells them.
    families: Value,
}

struct Files<'a> {
    reader: &'a StateReader<'a>,
    dir: &'a str,
    names: Line,
}

impl Files<'_> {
    fn name(&self, version: u64, ending: &str) -> String {
        match self.names.get(&version) {
            Some(id) => format!("{}/{version}_{id}.{ending}", self.dir),
            None => format!("{}/{version}.{ending}", self.dir),
        }
    }

    /// From the newest snapshot and the changes after it; where something is damaged, from an older one and more changes.
    async fn load(&self) -> Result<Raw> {
        let (files, _) = self.reader.dir.list(self.dir).await?;
        let snapshot = |name: &String| {
            let name = name.strip_suffix(".zip")?;
            let (version, id) = name.split_once('_').map_or((name, None), |(version, id)| (version, Some(id)));
            let version = version.parse::<u64>().ok()?;
            (self.names.get(&version).map(String::as_str) == id && version <= self.reader.version).then_some(version)
        };
        let mut snapshots: Vec<u64> = files.iter().filter_map(snapshot).collect();
        snapshots.push(0);
        snapshots.sort_unstable();
        let mut first_error = None;
        for from in snapshots.into_iter().rev() {
            match self.load_from(from).await {
                Ok(raw) => {
                    if let Some(error) = first_error {
                        tracing::warn!("the state was read around a damaged file: {error}");
                    }
                    return Ok(raw);
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => drop(first_error.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        Err(first_error.unwrap_or_else(|| self.reader.dir.missing(self.dir)))
    }

    async fn load_from(&self, from: u64) -> Result<Raw> {
        let mut raw = match from {
            0 => Raw { rows: HashMap::new(), families: Value::Null },
            from => self.snapshot(from).await?,
        };
        for version in from + 1..=self.reader.version {
            let name = self.name(version, "changelog");
            let shown = self.reader.dir.shown(&name);
            let content = self.reader.dir.required(&name).await?;
            let content = self.reader.settings.codec()?.decompress(&shown, &content)?;
            for record in records::read_changelog(&shown, &content, self.reader.settings.row_checksums())? {
                match record {
                    Change::Put(key, value) => drop(raw.rows.insert(key.to_vec(), value.to_vec())),
                    Change::Remove(key) => drop(raw.rows.remove(key)),
                    Change::Merge(key, value) => {
                        self.expect_merges(&shown)?;
                        raw.rows.entry(key.to_vec()).or_default().extend_from_slice(value);
                    }
                }
            }
        }
        Ok(raw)
    }

    /// The rows of a snapshot: of all tables that it names, each key's last value.
    async fn snapshot(&self, version: u64) -> Result<Raw> {
        let name = self.name(version, "zip");
        let shown = self.reader.dir.shown(&name);
        let content = self.reader.dir.required(&name).await?;
        let metadata = unzip(&content, "metadata").map_err(|what| damaged(&shown, what))?;
        let broken = || damaged(&shown, "it does not say which tables belong to it");
        let (_, json) = metadata.split_once('\n').ok_or_else(broken)?;
        let metadata: Value = serde_json::from_str(json).map_err(|_| broken())?;
        if !metadata["logFiles"].as_array().is_none_or(Vec::is_empty) {
            return Err(refused(format!("{shown}: a part of its rows is in a log, which is not known")));
        }
        let tables = match metadata.get("sstFiles") {
            Some(tables) => tables.as_array().ok_or_else(broken)?.clone(),
            None => Vec::new(),
        };
        let mut entries: Vec<sst::Entry> = Vec::new();
        for table in tables {
            let name = format!("{}/SSTs/{}", self.dir, table["dfsSstFileName"].as_str().ok_or_else(broken)?);
            let shown = self.reader.dir.shown(&name);
            let content = self.reader.dir.required(&name).await?;
            if table["sizeBytes"].as_u64() != Some(content.len() as u64) {
                return Err(damaged(&shown, "it has another size than its snapshot says"));
            }
            entries.extend(sst::read(&content).map_err(|what| damaged(&shown, what))?);
        }
        // Each key's in the order in which they were written.
        entries.sort_by(|one, other| (&one.key, one.sequence).cmp(&(&other.key, other.sequence)));
        let mut rows: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        let mut merges = false;
        for sst::Entry { key, change, .. } in entries {
            match change {
                sst::Change::Put(value) => drop(rows.insert(key, value)),
                sst::Change::Remove => drop(rows.remove(&key)),
                sst::Change::Merge(value) => {
                    self.expect_merges(&shown)?;
                    merges = true;
                    rows.entry(key).or_default().extend_from_slice(&value);
                }
            }
        }
        let counted = |name: &str| metadata[name].as_i64().filter(|keys| *keys >= 0);
        if let (Some(keys), Some(internal)) = (counted("numKeys"), counted("numInternalKeys"))
            && !merges
            && (keys + internal) as usize != rows.len()
        {
            return Err(damaged(
                &shown,
                format!("its tables have {} keys, and it says {}", rows.len(), keys + internal),
            ));
        }
        Ok(Raw { rows, families: metadata["columnFamilyMapping"].clone() })
    }

    /// Values are put one behind the other only by the merge operator that Spark has since 4.1.
    fn expect_merges(&self, shown: &str) -> Result<()> {
        match self.reader.settings.merge_operator() {
            Some("2") => Ok(()),
            _ => Err(refused(format!("{shown}: it merges values in a way that is not known"))),
        }
    }

    /// The number of a column family. Where no snapshot tells it, the order in which Spark makes those of a join does.
    fn family(&self, raw: &Raw, name: &str) -> Result<i16> {
        if let Some(id) = raw.families[name].as_i64().and_then(|id| i16::try_from(id).ok()) {
            return Ok(id);
        }
        let mut known = [
            ("left-keyToNumValues", 2),
            ("left-keyWithIndexToValue", 3),
            ("right-keyToNumValues", 4),
            ("right-keyWithIndexToValue", 5),
            ("left-keyWithTsToValues", 2),
            ("left-tsWithKey", 3),
            ("right-keyWithTsToValues", 4),
            ("right-tsWithKey", 5),
        ]
        .into_iter();
        let id = known.find_map(|(family, id)| (family == name).then_some(id));
        id.ok_or_else(|| {
            refused(format!("{}: the number of the column family {name} is not known", self.reader.dir.shown(self.dir)))
        })
    }
}

/// A text in an archive.
fn unzip(content: &[u8], name: &str) -> Result<String, String> {
    let broken = |error: &dyn std::fmt::Display| format!("it is no archive, or is damaged: {error}");
    let mut archive = zip::ZipArchive::new(Cursor::new(content)).map_err(|error| broken(&error))?;
    let mut file = archive.by_name(name).map_err(|error| broken(&error))?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| broken(&error))?;
    Ok(text)
}
