//! State in memory, as simple as it can be.

use std::collections::HashMap;

use arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{cast, interleave_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::row::{OwnedRow, RowConverter, SortField};
use perennial_core::Result;
use perennial_core::state::{ScanPosition, StatePartition, StateSpec};

/// One partition: whole batches as they were put, and where in them the newest row of each key is.
pub(crate) struct MemoryState {
    spec: StateSpec,
    converter: RowConverter,
    batches: Vec<RecordBatch>,
    rows: HashMap<Option<OwnedRow>, (usize, usize)>,
}

impl MemoryState {
    pub(crate) fn new(spec: &StateSpec) -> Self {
        let keys = spec.schema.fields().iter().take(spec.keys);
        let converter =
            RowConverter::new(keys.map(|field| SortField::new(field.data_type().clone())).collect()).unwrap();
        Self { spec: spec.clone(), converter, batches: Vec::new(), rows: HashMap::new() }
    }

    fn keys(&self, keys: &[ArrayRef], rows: usize) -> Vec<Option<OwnedRow>> {
        if self.spec.keys == 0 {
            return vec![None; rows];
        }
        self.converter.convert_columns(keys).unwrap().iter().map(|row| Some(row.owned())).collect()
    }

    fn take(&self, places: &[(usize, usize)]) -> RecordBatch {
        if places.is_empty() {
            return RecordBatch::new_empty(self.spec.schema.clone());
        }
        if self.spec.schema.fields().is_empty() {
            let options = RecordBatchOptions::new().with_row_count(Some(places.len()));
            return RecordBatch::try_new_with_options(self.spec.schema.clone(), vec![], &options).unwrap();
        }
        interleave_record_batch(&self.batches.iter().collect::<Vec<_>>(), places).unwrap()
    }
}

impl StatePartition for MemoryState {
    fn get(&mut self, keys: &[ArrayRef]) -> Result<(UInt32Array, RecordBatch)> {
        let rows = keys.first().map_or(1, |column| column.len());
        let found: Vec<(u32, (usize, usize))> = self
            .keys(keys, rows)
            .iter()
            .enumerate()
            .filter_map(|(index, key)| Some((index as u32, *self.rows.get(key)?)))
            .collect();
        let places: Vec<_> = found.iter().map(|(_, place)| *place).collect();
        Ok((found.iter().map(|(index, _)| *index).collect::<Vec<_>>().into(), self.take(&places)))
    }

    fn put(&mut self, rows: &RecordBatch) -> Result<()> {
        assert_eq!(rows.schema(), self.spec.schema);
        let keys = self.keys(&rows.columns()[..self.spec.keys], rows.num_rows());
        for (row, key) in keys.into_iter().enumerate() {
            self.rows.insert(key, (self.batches.len(), row));
        }
        self.batches.push(rows.clone());
        Ok(())
    }

    fn remove(&mut self, keys: &[ArrayRef]) -> Result<()> {
        for key in self.keys(keys, keys[0].len()) {
            self.rows.remove(&key);
        }
        Ok(())
    }

    fn due(&mut self, at: i64) -> Result<Vec<RecordBatch>> {
        let expiry = self.spec.expiry.expect("due() of an operator without expiry");
        let mut due = Vec::new();
        let columns: Vec<ArrayRef> =
            self.batches.iter().map(|rows| cast(rows.column(expiry), &DataType::Int64).unwrap()).collect();
        for (batch, row) in self.rows.values() {
            let times = columns[*batch].as_primitive::<Int64Type>();
            if arrow::array::Array::is_valid(times, *row) && times.value(*row) <= at {
                due.push((*batch, *row));
            }
        }
        due.sort_unstable();
        Ok(if due.is_empty() { vec![] } else { vec![self.take(&due)] })
    }

    fn scan_next(&mut self, position: &mut ScanPosition) -> Result<Option<RecordBatch>> {
        let mut all: Vec<_> = self.rows.values().copied().collect();
        all.sort_unstable();
        Ok((position.is_first() && !all.is_empty()).then(|| self.take(&all)))
    }

    fn rows(&self) -> u64 {
        self.rows.len() as u64
    }

    fn bytes(&self) -> u64 {
        self.batches.iter().map(|rows| rows.get_array_memory_size() as u64).sum()
    }
}
