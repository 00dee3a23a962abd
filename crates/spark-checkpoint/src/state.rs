//! Reads the state of an operator at a version: which files make it up, and the rows in them.

use std::collections::HashMap;

use arrow::array::ArrayRef;
use arrow::datatypes::Schema;
use perennial_core::error::{ErrorKind, Result};
use serde_json::Value;

use crate::files::{Directory, number};
use crate::records::{self, Change};
use crate::settings::{Provider, Settings};
use crate::types::{DEFAULT, StoreSchema};
use crate::{damaged, refused, rocksdb, row};

/// The rows of a store, as they are in its files.
pub(crate) type Rows = HashMap<Vec<u8>, Vec<u8>>;

/// What Spark says of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OperatorInfo {
    /// `stateStoreSave`, `dedupe`, …
    pub(crate) name: String,
    /// Its stores.
    pub(crate) stores: Vec<StoreInfo>,
}

/// What Spark says of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreInfo {
    pub(crate) name: String,
    /// How many of the columns of a key are looked for by themselves.
    pub(crate) prefix_columns: usize,
    /// Whether several stores share its files, as column families.
    pub(crate) families: bool,
    /// The file with its schemas, where it has another place than the usual one.
    schema: Option<String>,
}

impl StoreInfo {
    /// A store of which Spark says nothing but its name.
    pub(crate) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), prefix_columns: 0, families: false, schema: None }
    }
}

/// The rows of a store in one partition, as columns.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) keys: Vec<ArrayRef>,
    pub(crate) values: Vec<ArrayRef>,
    pub(crate) rows: usize,
}

/// Reads the state of a checkpoint at a version.
pub(crate) struct StateReader<'a> {
    pub(crate) dir: &'a Directory,
    pub(crate) settings: Settings<'a>,
    pub(crate) version: u64,
    /// Where the files' names have more than a version: the rest of the name per operator, partition and store.
    pub(crate) names: Option<Value>,
}

impl StateReader<'_> {
    /// Numbers of the operators that have a state, ascending.
    pub(crate) async fn operators(&self) -> Result<Vec<u64>> {
        let (_, dirs) = self.dir.list("state").await?;
        let mut numbers: Vec<u64> = dirs.iter().filter_map(|name| number(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What Spark says of an operator; nothing where it left no word.
    pub(crate) async fn info(&self, operator: u64) -> Result<Option<OperatorInfo>> {
        let newer = format!("state/{operator}/_metadata/v2");
        let name = match self.dir.numbers(&newer).await?.last() {
            Some(last) => format!("{newer}/{last}"),
            None => format!("state/{operator}/_metadata/metadata"),
        };
        let Some(content) = self.dir.read(&name).await? else { return Ok(None) };
        let broken = || damaged(&self.dir.shown(&name), "it is not the description of an operator");
        let text = std::str::from_utf8(&content).map_err(|_| broken())?;
        let (version, json) = text.split_once('\n').ok_or_else(broken)?;
        if !matches!(version, "v1" | "v2") {
            return Err(refused(format!(
                "{}: descriptions of the version {version} are not known",
                self.dir.shown(&name)
            )));
        }
        let json: Value = serde_json::from_str(json).map_err(|_| broken())?;
        let properties = json["operatorPropertiesJson"].as_str().unwrap_or("{}");
        let properties: Value = serde_json::from_str(properties).map_err(|_| broken())?;
        let stores = json["stateStoreInfo"].as_array().ok_or_else(broken)?;
        let store = |store: &Value| {
            Some(StoreInfo {
                name: store["storeName"].as_str()?.to_owned(),
                prefix_columns: usize::try_from(store["numColsPrefixKey"].as_u64()?).ok()?,
                families: properties["useVirtualColumnFamilies"].as_bool().unwrap_or(false),
                // The path is absolute, and where the checkpoint was; what is behind `state` has not changed.
                schema: store["stateSchemaFilePaths"]
                    .as_array()
                    .and_then(|paths| paths.last()?.as_str()?.rsplit_once("/state/"))
                    .map(|(_, path)| format!("state/{path}")),
            })
        };
        Ok(Some(OperatorInfo {
            name: json["operatorInfo"]["operatorName"].as_str().ok_or_else(broken)?.to_owned(),
            stores: stores.iter().map(store).collect::<Option<_>>().ok_or_else(broken)?,
        }))
    }

    /// What the rows of a store are. `family` is the name of its column family, where there are several.
    pub(crate) async fn schema(&self, operator: u64, store: &StoreInfo, family: &str) -> Result<StoreSchema> {
        let usual = match store.name.as_str() {
            DEFAULT => format!("state/{operator}/0/_metadata/schema"),
            store => format!("state/{operator}/0/{store}/_metadata/schema"),
        };
        let name = store.schema.clone().unwrap_or(usual);
        let shown = self.dir.shown(&name);
        let Some(content) = self.dir.read(&name).await? else {
            return Err(refused(format!("{shown} is missing, and without it the columns of the state are not known")));
        };
        let schemas = StoreSchema::read(&shown, &content)?;
        match &schemas[..] {
            [only] if only.name == DEFAULT => Ok(only.clone()),
            _ => schemas
                .into_iter()
                .find(|schema| schema.name == family)
                .ok_or_else(|| refused(format!("{shown} says nothing of `{family}`"))),
        }
    }

    /// The rows of a store in a partition, as columns of these schemas.
    pub(crate) async fn read(
        &self,
        operator: u64,
        partition: usize,
        store: &StoreInfo,
        schema: &StoreSchema,
    ) -> Result<Stored> {
        let dir = match store.name.as_str() {
            DEFAULT => format!("state/{operator}/{partition}"),
            store => format!("state/{operator}/{partition}/{store}"),
        };
        let rows = match self.settings.provider()? {
            Provider::Hdfs => self.load_hdfs(&dir).await?,
            Provider::RocksDb => rocksdb::load(self, operator, partition, &dir, store, &schema.name).await?,
        };
        let broken = |what: &str| damaged(&self.dir.shown(&dir), format!("at version {}: {what}", self.version));
        let columns =
            |schema: &Schema, rows: &mut dyn Iterator<Item = &[u8]>| row::decode(schema.fields(), rows).map_err(broken);
        let (first, rest) = match self.settings.provider()? {
            // There a key is two rows: what one looks for, and the rest.
            Provider::RocksDb if store.prefix_columns > 0 => schema.key.fields().split_at(store.prefix_columns),
            _ => (&schema.key.fields()[..], &[][..]),
        };
        let mut keys = Vec::new();
        if rest.is_empty() {
            keys = columns(&schema.key, &mut rows.keys().map(Vec::as_slice))?;
        } else {
            let halves: Option<Vec<_>> = rows.keys().map(|key| rocksdb::halves(key)).collect();
            let (firsts, rests): (Vec<_>, Vec<_>) =
                halves.ok_or_else(|| broken("a key is not what its store says"))?.into_iter().unzip();
            for (fields, rows) in [(first, firsts), (rest, rests)] {
                keys.extend(row::decode(fields, rows.into_iter()).map_err(broken)?);
            }
        }
        Ok(Stored { keys, values: columns(&schema.value, &mut rows.values().map(Vec::as_slice))?, rows: rows.len() })
    }

    /// The rows of a column family in which a key has several; the last column of its keys is a time, which is left out.
    pub(crate) async fn read_lists(
        &self,
        operator: u64,
        partition: usize,
        store: &StoreInfo,
        schema: &StoreSchema,
    ) -> Result<Stored> {
        let dir = format!("state/{operator}/{partition}");
        if self.settings.provider()? != Provider::RocksDb {
            return Err(refused(format!("{}: only RocksDB has state of this format", self.dir.shown(&dir))));
        }
        let rows = rocksdb::load_lists(self, operator, partition, &dir, store, &schema.name).await?;
        let broken = |what: &str| damaged(&self.dir.shown(&dir), format!("at version {}: {what}", self.version));
        let keys = schema.key.fields().split_last().map_or(&[][..], |(_, keys)| keys);
        Ok(Stored {
            keys: row::decode(keys, rows.iter().map(|(key, _)| key.as_slice())).map_err(broken)?,
            values: row::decode(schema.value.fields(), rows.iter().map(|(_, row)| row.as_slice())).map_err(broken)?,
            rows: rows.len(),
        })
    }

    /// From a snapshot and the deltas after it; where the newest snapshot is damaged, from an older one and more deltas.
    async fn load_hdfs(&self, dir: &str) -> Result<Rows> {
        let (files, _) = self.dir.list(dir).await?;
        let snapshot = |name: &String| name.strip_suffix(".snapshot").and_then(number);
        let mut snapshots: Vec<u64> = files.iter().filter_map(snapshot).filter(|v| *v <= self.version).collect();
        snapshots.push(0);
        snapshots.sort_unstable();
        let mut first_error = None;
        for from in snapshots.into_iter().rev() {
            match self.load_hdfs_from(dir, from).await {
                Ok(rows) => {
                    if let Some(error) = first_error {
                        tracing::warn!("the state was read around a damaged file: {error}");
                    }
                    return Ok(rows);
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => drop(first_error.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        Err(first_error.unwrap_or_else(|| self.dir.missing(dir)))
    }

    async fn load_hdfs_from(&self, dir: &str, from: u64) -> Result<Rows> {
        let mut rows = Rows::new();
        if from > 0 {
            self.apply_delta(&format!("{dir}/{from}.snapshot"), &mut rows).await?;
        }
        for version in from + 1..=self.version {
            self.apply_delta(&format!("{dir}/{version}.delta"), &mut rows).await?;
        }
        Ok(rows)
    }

    async fn apply_delta(&self, name: &str, rows: &mut Rows) -> Result<()> {
        let content = self.dir.required(name).await?;
        let shown = self.dir.shown(name);
        let content = self.settings.codec()?.decompress(&shown, &content)?;
        for record in records::read(&shown, &content, self.settings.row_checksums())? {
            match record {
                Change::Put(key, value) => drop(rows.insert(key.to_vec(), value.to_vec())),
                Change::Remove(key) => drop(rows.remove(key)),
                Change::Merge(..) => return Err(damaged(&shown, "it merges values")),
            }
        }
        Ok(())
    }
}
