//! The rows that one side of a join remembers, by key.
//!
//! The rows of a key lie in slots 0 to n - 1, each a row of the state; the one in slot 0 says how many there are. So a key with a single row
//! costs one entry, all rows of a key are found with two look-ups, and a row that goes away is replaced by the last one of its key. What
//! a batch costs is what it touches: per key the row in slot 0, and the rows that are new, matched or gone.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, RecordBatch, StructArray, UInt32Array,
};
use datafusion::arrow::compute::{concat_batches, take, take_arrays};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, TimeUnit};
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use perennial_core::layout::SideLayout;
use perennial_core::state::{StatePartition, StateSpec};

use crate::error::external;

/// How the rows of a side lie in its state: the keys, the slot, the number of rows of the key (in slot 0), then what else is known of the
/// row.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The rows.
    rows: SchemaRef,
    /// Which columns of a row are its keys.
    keys: Vec<usize>,
    /// The state.
    state: SchemaRef,
    /// Per column of a row where it is in the state.
    columns: Vec<usize>,
    /// Whether the row had a match, where that is of interest.
    matched: Option<usize>,
    /// The column of a row after which it goes away.
    expiry: Option<usize>,
    /// The column of the state that has it.
    expires_at: Option<usize>,
}

/// The distinct keys of some rows.
#[derive(Debug)]
pub(crate) struct Keyed {
    /// The key columns, each key once.
    pub(crate) keys: Vec<ArrayRef>,
    /// Per row its key.
    pub(crate) of_row: Vec<u32>,
}

impl Keyed {
    pub(crate) fn new(keys: &[ArrayRef]) -> Result<Self> {
        let fields: Vec<Field> =
            keys.iter().map(|column| Field::new("key", column.data_type().clone(), true)).collect();
        let mut seen = new_group_values(Arc::new(Schema::new(fields)), &GroupOrdering::None)?;
        let mut groups = Vec::new();
        seen.intern(keys, &mut groups)?;
        // Keys are numbered in the order of their first rows.
        let mut first_rows: Vec<u32> = Vec::with_capacity(seen.len());
        let mut of_row = Vec::with_capacity(groups.len());
        for (row, group) in groups.into_iter().enumerate() {
            if group == first_rows.len() {
                first_rows.push(row as u32);
            }
            of_row.push(group as u32);
        }
        let keys = take_arrays(keys, &UInt32Array::from(first_rows), None)?;
        Ok(Self { keys, of_row })
    }

    fn len(&self) -> usize {
        self.keys.first().map_or(0, |column| column.len())
    }
}

impl Layout {
    /// `keys` and `expiry` are columns of `rows`; `flags` says that rows remember whether they had a match.
    pub(crate) fn new(rows: SchemaRef, keys: &[usize], expiry: Option<usize>, flags: bool) -> Self {
        let mut fields: Vec<Field> = keys.iter().map(|key| rows.field(*key).clone().with_nullable(true)).collect();
        fields.push(Field::new("slot", DataType::Int32, false));
        fields.push(Field::new("rows", DataType::Int32, false));
        let matched = flags.then(|| {
            fields.push(Field::new("matched", DataType::Boolean, false));
            fields.len() - 1
        });
        let mut expires_at = None;
        if let Some(column) = expiry
            && !matches!(rows.field(column).data_type(), DataType::Timestamp(TimeUnit::Microsecond, _))
        {
            expires_at = Some(fields.len());
            fields.push(Field::new("expires_at", DataType::Timestamp(TimeUnit::Microsecond, None), true));
        }
        let columns: Vec<usize> = (0..rows.fields().len())
            .map(|column| {
                keys.iter().position(|key| *key == column).unwrap_or_else(|| {
                    fields.push(rows.field(column).clone());
                    fields.len() - 1
                })
            })
            .collect();
        let expires_at = expires_at.or(expiry.map(|column| columns[column]));
        Self { rows, keys: keys.to_vec(), state: Arc::new(Schema::new(fields)), columns, matched, expiry, expires_at }
    }

    /// What the state store is told.
    pub(crate) fn spec(&self, number: usize, name: &str) -> StateSpec {
        StateSpec {
            operator: number,
            name: name.to_owned(),
            schema: self.state.clone(),
            keys: self.keys.len() + 1,
            expiry: self.expires_at,
        }
    }

    /// What the columns of the state mean.
    pub(crate) fn describe(&self, once: bool) -> SideLayout {
        let name = |column: usize| self.rows.field(column).name().clone();
        SideLayout {
            keys: self.keys.len(),
            slot: self.slot(),
            rows: self.count(),
            once,
            matched: self.matched,
            expires_at: self.expires_at.filter(|at| !self.columns.contains(at)),
            expiry: self.expiry.map(|column| self.columns[column]),
            columns: self.columns.iter().enumerate().map(|(column, at)| (name(column), *at)).collect(),
        }
    }

    /// Columns of rows by which they are spread over the partitions: the keys, without the slot.
    pub(crate) fn keys(&self) -> &[usize] {
        &self.keys
    }

    /// The keys of rows.
    pub(crate) fn keys_of(&self, rows: &RecordBatch) -> Vec<ArrayRef> {
        self.keys.iter().map(|key| rows.column(*key).clone()).collect()
    }

    /// When rows go away, as [`StatePartition::due`] counts; nothing where they stay.
    pub(crate) fn expiry_of(&self, rows: &RecordBatch) -> Result<Option<ArrayRef>> {
        self.expiry.map(|column| event_times(rows.column(column))).transpose()
    }

    /// Rows of the state as those that they were.
    pub(crate) fn decode(&self, stored: &RecordBatch) -> Result<RecordBatch> {
        let columns = self.columns.iter().map(|column| stored.column(*column).clone()).collect();
        Ok(RecordBatch::try_new(self.rows.clone(), columns)?)
    }

    /// Which rows of the state had a match.
    pub(crate) fn matched<'a>(&self, stored: &'a RecordBatch) -> Result<&'a BooleanArray> {
        match self.matched {
            Some(column) => Ok(stored.column(column).as_boolean()),
            None => internal_err!("this side of the join does not remember matches"),
        }
    }

    fn slot(&self) -> usize {
        self.keys.len()
    }

    fn count(&self) -> usize {
        self.keys.len() + 1
    }

    fn encode(
        &self,
        rows: &RecordBatch,
        slots: Int32Array,
        counts: Int32Array,
        matched: &BooleanArray,
    ) -> Result<RecordBatch> {
        let mut columns = self.keys_of(rows);
        columns.push(Arc::new(slots));
        columns.push(Arc::new(counts));
        if self.matched.is_some() {
            columns.push(Arc::new(matched.clone()));
        }
        // The time has a column of its own unless it is one of the row's.
        if self.expires_at.is_some_and(|column| !self.columns.contains(&column)) {
            columns.extend(self.expiry_of(rows)?);
        }
        for (column, values) in rows.columns().iter().enumerate() {
            if self.columns[column] >= columns.len() {
                columns.push(values.clone());
            }
        }
        Ok(RecordBatch::try_new(self.state.clone(), columns)?)
    }

    fn with_column(&self, stored: &RecordBatch, column: usize, values: ArrayRef) -> Result<RecordBatch> {
        let mut columns = stored.columns().to_vec();
        columns[column] = values;
        Ok(RecordBatch::try_new(self.state.clone(), columns)?)
    }
}

/// The event times of a column of timestamps, or the ends of its windows.
pub(crate) fn event_times(column: &ArrayRef) -> Result<ArrayRef> {
    let times = match column.data_type() {
        DataType::Struct(_) => {
            let windows: &StructArray = column.as_struct();
            let Some(ends) = windows.column_by_name("end") else { return internal_err!("a window has no end") };
            // A window that is NULL has no end.
            match windows.nulls() {
                Some(nulls) => datafusion::arrow::compute::nullif(ends, &BooleanArray::new(!nulls.inner(), None))?,
                None => ends.clone(),
            }
        }
        _ => column.clone(),
    };
    Ok(datafusion::arrow::compute::cast(&times, &DataType::Timestamp(TimeUnit::Microsecond, None))?)
}

/// One partition of the state of a side, inside a batch.
pub(crate) struct Buffer<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) state: &'a mut dyn StatePartition,
}

impl Buffer<'_> {
    /// The rows of the state that have these keys, and to which key each belongs.
    pub(crate) fn find(&mut self, keys: &[ArrayRef]) -> Result<(RecordBatch, Vec<u32>)> {
        let (mut owners, heads) = self.heads(keys)?;
        let counts = self.counts(&heads);
        let (mut of_tail, mut slots) = (Vec::new(), Vec::new());
        for (owner, count) in owners.iter().zip(counts.values()) {
            for slot in 1..*count {
                of_tail.push(*owner);
                slots.push(slot);
            }
        }
        if slots.is_empty() {
            return Ok((heads, owners));
        }
        let tails = self.rows_at(keys, &of_tail, slots)?;
        owners.extend(of_tail);
        Ok((concat_batches(&self.layout.state, [&heads, &tails])?, owners))
    }

    /// Adds rows. `keyed` are their keys; `matched` says which of them had a match.
    pub(crate) fn add(&mut self, rows: &RecordBatch, keyed: &Keyed, matched: &BooleanArray) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let (owners, heads) = self.heads(&keyed.keys)?;
        let mut counts = vec![0; keyed.len()];
        for (owner, count) in owners.iter().zip(self.counts(&heads).values()) {
            counts[*owner as usize] = *count;
        }
        let mut slots = Vec::with_capacity(rows.num_rows());
        for key in &keyed.of_row {
            let count = &mut counts[*key as usize];
            slots.push(*count);
            let Some(more) = count.checked_add(1) else { return internal_err!("a key of a join has too many rows") };
            *count = more;
        }
        let counts_of: Int32Array = slots
            .iter()
            .zip(&keyed.of_row)
            .map(|(slot, key)| if *slot == 0 { counts[*key as usize] } else { 0 })
            .collect::<Vec<_>>()
            .into();
        let mut grown = BooleanArray::builder(heads.num_rows());
        let mut counts_of_heads = Vec::new();
        for (owner, before) in owners.iter().zip(self.counts(&heads).values()) {
            let now = counts[*owner as usize];
            grown.append_value(now != *before);
            if now != *before {
                counts_of_heads.push(now);
            }
        }
        let heads = datafusion::arrow::compute::filter_record_batch(&heads, &grown.finish())?;
        let counts_of_heads: Int32Array = counts_of_heads.into();
        self.put(&self.layout.with_column(&heads, self.layout.count(), Arc::new(counts_of_heads))?)?;
        self.put(&self.layout.encode(rows, slots.into(), counts_of, matched)?)
    }

    /// Remembers that these rows of the state had a match.
    pub(crate) fn set_matched(&mut self, stored: &RecordBatch) -> Result<()> {
        let Some(column) = self.layout.matched else { return Ok(()) };
        let matched = BooleanArray::from(vec![true; stored.num_rows()]);
        self.put(&self.layout.with_column(stored, column, Arc::new(matched))?)
    }

    /// The rows of the state that go away at this moment.
    pub(crate) fn due(&mut self, at: i64) -> Result<RecordBatch> {
        let due = self.state.due(at).map_err(external)?;
        Ok(concat_batches(&self.layout.state, &due)?)
    }

    /// Takes rows out of the state.
    pub(crate) fn remove(&mut self, stored: &RecordBatch) -> Result<()> {
        if stored.num_rows() == 0 {
            return Ok(());
        }
        let keyed = Keyed::new(&stored.columns()[..self.layout.keys.len()])?;
        let (owners, heads) = self.heads(&keyed.keys)?;
        if owners.len() != keyed.len() {
            return internal_err!("a key of a join has rows, but none in slot 0");
        }
        let slots = stored.column(self.layout.slot()).as_primitive::<Int32Type>();
        let mut gone: Vec<(u32, i32)> = keyed.of_row.iter().copied().zip(slots.values().iter().copied()).collect();
        gone.sort_unstable();

        // The rows in the last slots of a key move into those that become free.
        let (mut freed, mut moves, mut shrunk) = (Vec::new(), Vec::new(), Vec::new());
        let counts = self.counts(&heads);
        for of_key in gone.chunk_by(|one, other| one.0 == other.0) {
            let key = of_key[0].0;
            let before = counts.value(key as usize);
            let after = before - of_key.len() as i32;
            let (holes, tail) = of_key.split_at(of_key.partition_point(|(_, slot)| *slot < after));
            let mut tail = tail.iter().map(|(_, slot)| *slot).peekable();
            let mut holes = holes.iter().map(|(_, slot)| *slot);
            let first_stays = of_key[0].1 != 0;
            for slot in after..before {
                freed.push((key, slot));
                if tail.next_if_eq(&slot).is_none() {
                    let Some(hole) = holes.next() else { return internal_err!("a key of a join lost a row") };
                    moves.push((key, slot, hole, if hole == 0 { after } else { 0 }));
                }
            }
            if first_stays && after > 0 {
                shrunk.push((key, after));
            }
        }
        let moved = self.rows_at(
            &keyed.keys,
            &moves.iter().map(|(key, ..)| *key).collect::<Vec<_>>(),
            moves.iter().map(|(_, slot, ..)| *slot).collect(),
        )?;
        let to: Int32Array = moves.iter().map(|(_, _, to, _)| *to).collect::<Vec<_>>().into();
        let counts_of_moved: Int32Array = moves.iter().map(|(.., count)| *count).collect::<Vec<_>>().into();
        let moved = self.layout.with_column(&moved, self.layout.slot(), Arc::new(to))?;
        let moved = self.layout.with_column(&moved, self.layout.count(), Arc::new(counts_of_moved))?;

        let rows: UInt32Array = shrunk.iter().map(|(key, _)| *key).collect::<Vec<_>>().into();
        let heads = datafusion::arrow::compute::take_record_batch(&heads, &rows)?;
        let counts_of_heads: Int32Array = shrunk.iter().map(|(_, count)| *count).collect::<Vec<_>>().into();
        let heads = self.layout.with_column(&heads, self.layout.count(), Arc::new(counts_of_heads))?;

        let of_key: UInt32Array = freed.iter().map(|(key, _)| *key).collect::<Vec<_>>().into();
        let mut keys = take_arrays(&keyed.keys, &of_key, None)?;
        keys.push(Arc::new(Int32Array::from_iter_values(freed.iter().map(|(_, slot)| *slot))));
        self.state.remove(&keys).map_err(external)?;
        self.put(&heads)?;
        self.put(&moved)
    }

    /// The rows in slot 0 of those keys that have rows, and which keys these are, ascending.
    fn heads(&mut self, keys: &[ArrayRef]) -> Result<(Vec<u32>, RecordBatch)> {
        let count = keys.first().map_or(0, |column| column.len());
        if count == 0 {
            return Ok((Vec::new(), RecordBatch::new_empty(self.layout.state.clone())));
        }
        let mut at = keys.to_vec();
        at.push(Arc::new(Int32Array::from(vec![0; count])));
        let (owners, heads) = self.state.get(&at).map_err(external)?;
        Ok((owners.values().to_vec(), heads))
    }

    /// The rows in these slots, all of which have one.
    fn rows_at(&mut self, keys: &[ArrayRef], of_slot: &[u32], slots: Vec<i32>) -> Result<RecordBatch> {
        let wanted = slots.len();
        if wanted == 0 {
            return Ok(RecordBatch::new_empty(self.layout.state.clone()));
        }
        let of_slot = UInt32Array::from(of_slot.to_vec());
        let mut at: Vec<ArrayRef> =
            keys.iter().map(|column| Ok(take(column, &of_slot, None)?)).collect::<Result<_, DataFusionError>>()?;
        at.push(Arc::new(Int32Array::from(slots)));
        let (_, rows) = self.state.get(&at).map_err(external)?;
        if rows.num_rows() != wanted {
            return internal_err!("a key of a join has {} rows in {wanted} slots", rows.num_rows());
        }
        Ok(rows)
    }

    fn counts(&self, heads: &RecordBatch) -> Int32Array {
        heads.column(self.layout.count()).as_primitive::<Int32Type>().clone()
    }

    fn put(&mut self, rows: &RecordBatch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        self.state.put(rows).map_err(external)
    }
}
