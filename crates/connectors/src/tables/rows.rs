//! Rows of a database on their way to the decoder.

use std::sync::Arc;

use arrow::array::{BinaryBuilder, RecordBatch};
use perennial_core::error::{Error, Result, class};
use perennial_core::records::{Input, Payload, Position, RecordBlock};
use perennial_core::table::TableContext;

/// Bytes of rows that are decoded together.
const BLOCK: usize = 2 << 20;

/// Gathers rows, each a JSON object with the names of the schema's columns, and decodes them.
pub(super) struct Rows<'c> {
    context: &'c TableContext,
    name: Arc<str>,
    /// Number of the block's first row.
    first: u64,
    block: BinaryBuilder,
    rows: u64,
    decoded: Vec<RecordBatch>,
}

impl<'c> Rows<'c> {
    pub fn new(context: &'c TableContext) -> Self {
        let name = context.table.as_str().into();
        Self { context, name, first: 0, block: BinaryBuilder::new(), rows: 0, decoded: Vec::new() }
    }

    /// One more row.
    pub fn push(&mut self, object: &[u8]) -> Result<()> {
        self.block.append_value(object);
        self.rows += 1;
        if self.block.values_slice().len() >= BLOCK { self.decode() } else { Ok(()) }
    }

    /// All rows, decoded.
    pub fn finish(mut self) -> Result<Vec<RecordBatch>> {
        self.decode()?;
        Ok(self.decoded)
    }

    /// Number of the next row.
    pub fn next(&self) -> u64 {
        self.rows
    }

    fn decode(&mut self) -> Result<()> {
        let position = Position::Sequence { name: self.name.clone(), first: self.first };
        let block = RecordBlock { payload: Payload::Values(self.block.finish()), position };
        self.first = self.rows;
        self.decoded.push(self.context.decode(Input::Records(block))?);
        Ok(())
    }
}

/// Refuses a table of a database that is to have a format of its own.
pub(super) fn expect_no_format(context: &TableContext) -> Result<()> {
    match context.decoder.takes_rows() {
        false => Ok(()),
        true => Err(Error::new(class::CONFIG_INVALID, "a table of a database has no format: leave it out")),
    }
}
