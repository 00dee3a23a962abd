//! What Spark's offset log says of how its state is kept. The log wins over what a session would have.

use perennial_core::error::Result;
use perennial_core::watermark::WatermarkPolicy;
use serde_json::{Map, Value};

use crate::codec::Codec;
use crate::refused;

const PREFIX: &str = "spark.sql.streaming.";

/// What keeps the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Provider {
    Hdfs,
    RocksDb,
}

/// The settings in an entry of the offset log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Settings<'a> {
    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.get(key)?.as_str()
    }

    fn streaming(&self, key: &str) -> Option<&'a str> {
        self.get(&format!("{PREFIX}{key}"))
    }

    fn number(&self, key: &str, default: u64) -> Result<u64> {
        match self.streaming(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| refused(format!("`{PREFIX}{key}` is `{text}`, which is no number"))),
        }
    }

    fn is_on(&self, key: &str) -> bool {
        self.streaming(key) == Some("true")
    }

    /// In how many partitions the state is.
    pub(crate) fn partitions(&self) -> Result<usize> {
        const KEY: &str = "spark.sql.shuffle.partitions";
        let text = self.get(KEY).ok_or_else(|| {
            refused(format!(
                "the offset log does not say `{KEY}`, so it is not known in how many partitions the state is"
            ))
        })?;
        let partitions = text.parse().ok().filter(|partitions| *partitions > 0);
        partitions.ok_or_else(|| refused(format!("`{KEY}` is `{text}`")))
    }

    pub(crate) fn provider(&self) -> Result<Provider> {
        let class = self.streaming("stateStore.providerClass");
        match class.map(|class| class.rsplit('.').next().unwrap_or(class)) {
            None | Some("HDFSBackedStateStoreProvider") => Ok(Provider::Hdfs),
            Some("RocksDBStateStoreProvider") => Ok(Provider::RocksDb),
            Some(other) => Err(refused(format!("the state was kept by `{other}`, whose files are not known"))),
        }
    }

    pub(crate) fn codec(&self) -> Result<Codec> {
        Codec::parse(self.streaming("stateStore.compression.codec").unwrap_or("lz4"))
    }

    /// Refuses rows of the state that are not plain ones of Spark.
    pub(crate) fn expect_rows(&self) -> Result<()> {
        match self.streaming("stateStore.encodingFormat") {
            None | Some("unsaferow") => Ok(()),
            Some(other) => {
                Err(refused(format!("the rows of the state are encoded as `{other}`; only `unsaferow` is known")))
            }
        }
    }

    /// Whether each record has a checksum.
    pub(crate) fn row_checksums(&self) -> bool {
        self.is_on("stateStore.rowChecksum.enabled")
    }

    /// Whether keys are spread by exactly the columns that they are grouped by.
    pub(crate) fn strict_distribution(&self) -> bool {
        self.is_on("statefulOperator.useStrictDistribution")
    }

    /// Whether the values of an aggregate begin with its keys. Spark takes a log that does not say it for one of the old format.
    pub(crate) fn aggregate_has_keys(&self) -> Result<bool> {
        match self.number("aggregation.stateFormatVersion", 1)? {
            1 => Ok(true),
            2 => Ok(false),
            other => Err(refused(format!("the state of aggregates has the format {other}; 1 and 2 are known"))),
        }
    }

    /// How RocksDB puts values together.
    pub(crate) fn merge_operator(&self) -> Option<&'a str> {
        self.streaming("stateStore.rocksdb.mergeOperatorVersion")
    }

    pub(crate) fn join_version(&self) -> Result<u64> {
        self.number("join.stateFormatVersion", 1)
    }

    /// How several watermarks become one, where it is said.
    pub(crate) fn watermark_policy(&self) -> Option<WatermarkPolicy> {
        match self.streaming("multipleWatermarkPolicy")? {
            "max" => Some(WatermarkPolicy::Max),
            "min" => Some(WatermarkPolicy::Min),
            _ => None,
        }
    }
}
