//! State of an earlier form of a query, made that of its form now.

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{CastOptions, cast_with_options, take};
use arrow::datatypes::{DataType, SchemaRef};

use crate::error::{Error, Result, class};

/// Where the rows of a state come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateOrigin {
    /// Number of the state in the earlier form of the query.
    pub state: usize,
    /// Name of its operator there.
    pub name: String,
    /// How many columns its key had.
    pub keys: usize,
    /// How many columns it had.
    pub width: usize,
    /// Where each column comes from: those of the key first, in their order.
    pub columns: Vec<ColumnOrigin>,
}

/// Where a column of a state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnOrigin {
    /// From a column of the earlier form, perhaps in a wider type.
    Column(usize),
    /// From nowhere: it begins as that of an aggregate which has seen nothing.
    Empty,
}

/// How the state of an earlier form of a query is read.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// The epoch under which the converted state is written.
    pub epoch: u64,
    /// Per state of the query where its rows come from; `None`: it begins empty.
    pub origins: Vec<Option<StateOrigin>>,
    /// Per state a row with the columns that an aggregate has which has seen nothing; what is in the others does not matter.
    pub empty: Vec<Option<RecordBatch>>,
}

impl Conversion {
    /// The state that takes over an earlier one.
    pub(super) fn successor(&self, old: usize) -> Option<(usize, &StateOrigin)> {
        let of = |(number, origin): (usize, &'_ Option<StateOrigin>)| {
            origin.as_ref().is_some_and(|origin| origin.state == old).then_some(number)
        };
        let number = self.origins.iter().enumerate().find_map(of)?;
        Some((number, self.origins[number].as_ref()?))
    }

    /// Rows (or keys alone) of an earlier form of the state `number`, with the columns of `target`.
    pub(super) fn convert(
        &self,
        number: usize,
        origin: &StateOrigin,
        rows: &RecordBatch,
        target: &SchemaRef,
    ) -> Result<RecordBatch> {
        let columns = origin.columns.iter().zip(target.fields()).enumerate().map(|(index, (from, field))| match from {
            ColumnOrigin::Column(column) => widen(rows.column(*column), field.data_type()),
            ColumnOrigin::Empty => {
                let empty = self.empty.get(number).and_then(Option::as_ref);
                let empty = empty
                    .ok_or_else(|| Error::bug(format!("nobody knows how column {index} of state {number} begins")))?;
                let column = widen(empty.column(index), field.data_type())?;
                Ok(take(&column, &UInt32Array::from(vec![0; rows.num_rows()]), None)?)
            }
        });
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(RecordBatch::try_new_with_options(target.clone(), columns.collect::<Result<_>>()?, &options)?)
    }
}

fn widen(column: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    if column.data_type() == to {
        return Ok(column.clone());
    }
    cast_with_options(column, to, &CastOptions { safe: false, ..Default::default() }).map_err(|error| {
        Error::new(class::CHECKPOINT_MISMATCH, format!("state of type {} cannot be made {to}", column.data_type()))
            .caused_by(error)
    })
}
