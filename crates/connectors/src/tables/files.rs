//! The `files` table: what lies in a directory.

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::TryStreamExt;
use perennial_core::error::{Error, Result, class};
use perennial_core::table::{StaticTable, TableContext, TableFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sources::files::AllFiles;

/// Files of a local directory: all of them together are the table. The format is that of the table (`format: json | csv | parquet`); text
/// may be compressed (`.gz`, `.zst`).
///
/// Not read are: hidden files and directories (names that begin with `.` or `_`), names that end in `.tmp`, `.part` or `.inprogress`, and
/// empty files. Who replaces a file best writes it under such a name and renames it, so that no reading finds half of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesTable {
    /// A directory, a file, or a glob (`*`, `?`, `[a-z]`, and `**` for directories at any depth): `./plants.csv`, `/in/*.json.gz`.
    pub path: String,
    /// Whether directories inside a directory are read, too. Default: false.
    #[serde(default)]
    pub recursive: bool,
}

impl TableFactory for FilesTable {
    fn open(&self, context: TableContext) -> Result<Box<dyn StaticTable>> {
        Ok(Box::new(Files { files: AllFiles::new(&self.path, self.recursive)?, context }))
    }
}

struct Files {
    files: AllFiles,
    context: TableContext,
}

#[async_trait]
impl StaticTable for Files {
    async fn rows(&self) -> Result<Vec<RecordBatch>> {
        let now_us = self.context.env.clock.now_micros();
        let blocks = self.files.read(now_us, &self.context.schema, self.context.decoder.takes_rows());
        let rows = async { blocks.await?.and_then(async |block| self.context.decode(block)).try_collect().await }.await;
        rows.map_err(|error: Error| match error.class() == class::DATA_LOSS {
            // The next attempt finds what is there then.
            true => {
                Error::new(class::STORAGE_UNAVAILABLE, "a file of the table changed while it was read").caused_by(error)
            }
            false => error,
        })
    }

    async fn check(&self) -> Result<()> {
        self.files.list(self.context.env.clock.now_micros()).await.map(drop)
    }
}
