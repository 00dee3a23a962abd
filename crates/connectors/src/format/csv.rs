//! CSV.
use arrow::datatypes::{Schema, SchemaRef};
use perennial_core::decode::{Decoded, Decoder};
use perennial_core::error::Result;
use perennial_core::records::Input;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// x
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CsvFormat {}

#[derive(Debug)]
pub(super) struct CsvDecoder {}
impl CsvDecoder {
    pub(super) fn new(_: &CsvFormat, _: &Schema, _: &[usize]) -> Result<Self> {
        Ok(Self {})
    }
}
impl Decoder for CsvDecoder {
    fn schema(&self) -> SchemaRef {
        SchemaRef::new(Schema::empty())
    }
    fn decode(&self, _: Input) -> Result<Decoded> {
        Err(perennial_core::Error::bug("x"))
    }
}
