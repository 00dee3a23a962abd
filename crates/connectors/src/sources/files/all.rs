//! All files at a place, as they are now.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use perennial_core::error::Result;
use perennial_core::source::InputStream;

use super::super::stream::read_ahead;
use super::listing::{Found, Listing};
use super::log::Entry;
use super::{Unit, blocking, read_units};

/// All files at a place, read anew each time.
#[derive(Debug)]
pub(crate) struct AllFiles(Arc<Listing>);

impl AllFiles {
    /// The files of a directory, a file or a glob.
    pub(crate) fn new(path: &str, recursive: bool) -> Result<Self> {
        Ok(Self(Arc::new(Listing::new(path, recursive, Duration::ZERO)?)))
    }

    /// How many files are there.
    pub(crate) async fn list(&self, now_us: i64) -> Result<usize> {
        self.found(now_us).await.map(|found| found.len())
    }

    /// What the files that are there now hold, the oldest first. `rows`: whether they are Parquet, and give the columns of `schema`.
    pub(crate) async fn read(&self, now_us: i64, schema: &SchemaRef, rows: bool) -> Result<InputStream> {
        let (found, schema) = (self.found(now_us).await?, schema.clone());
        let units = blocking(move || {
            let mut units = Vec::new();
            for Found { url, modified_ms, size } in found {
                let entry = Entry { path: url, timestamp: modified_ms, batch_id: 0, size: Some(size) };
                units.extend(Unit::of_file(&entry, rows)?);
            }
            Ok(units)
        })
        .await?;
        Ok(read_ahead(move |output| read_units(&units, &schema, output)))
    }

    async fn found(&self, now_us: i64) -> Result<Vec<Found>> {
        let listing = self.0.clone();
        blocking(move || listing.list(&HashSet::new(), now_us)).await
    }
}
