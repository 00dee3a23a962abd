//! Functions of arrays and maps. Elements are compared as rows are: NULL is one value, NaN is one, 0.0 and -0.0 are one.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, ListArray, MapArray, StructArray, UInt32Array,
    new_null_array,
};
use datafusion::arrow::compute::{self, SortOptions, interleave, take};
use datafusion::arrow::datatypes::{DataType, Date32Type, Field, Int32Type, Int64Type, TimestampMicrosecondType};
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::{Result, ScalarValue, exec_err};

use super::cast::{cast_array, time};
use super::function::{Arg, Args, Call, Spec, any_null, returns};
use super::higher_order::list_array;
use super::intervals::Intervals;
use super::keys::normalise;
use super::nested::build_map;
use super::rows;
use super::types::{self, common, is_integral, is_string, list_of, map_of, map_types, mismatch, sql_name};
use crate::error::{failed, refused_analysis};

const ARRAY: Args = Args::Fixed(1, &[Arg::Array]);
const WITH_ELEMENT: Args = Args::Custom(with_element);
const FIND_ELEMENT: Args = Args::Custom(find_element);
const TWO_ARRAYS: Args = Args::Custom(two_arrays);
const MAP: Args = Args::Fixed(1, &[Arg::Map]);

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("array_contains", FIND_ELEMENT, returns::bool, |call| {
        let (lists, wanted) = (Lists::of(call, 0)?, call.array(1)?);
        let elements = Compared::of(&[lists.list.values(), &wanted])?;
        let found: BooleanArray = (0..call.rows)
            .map(|row| {
                if lists.list.is_null(row) || wanted.is_null(row) {
                    return None;
                }
                let mut range = lists.range(row);
                let has_null = range.clone().any(|at| lists.list.values().is_null(at));
                match range.any(|at| elements.same((0, at), (1, row))) {
                    true => Some(true),
                    false if has_null => None,
                    false => Some(false),
                }
            })
            .collect();
        Ok(Arc::new(found))
    }),
    &Spec::new("array_position", FIND_ELEMENT, returns::long, |call| {
        let (lists, wanted) = (Lists::of(call, 0)?, call.array(1)?);
        let elements = Compared::of(&[lists.list.values(), &wanted])?;
        let found = rows::numbers::<Int64Type>(&[&lists.list, &wanted], |row| {
            let place = lists.range(row).position(|at| elements.same((0, at), (1, row)));
            Ok(Some(place.map_or(0, |place| place as i64 + 1)))
        });
        Ok(Arc::new(found?))
    }),
    &Spec::new("array_distinct", ARRAY, returns::first, |call| {
        of_sets(call, |left, _, elements, out| {
            let mut seen = HashSet::new();
            out.extend(left.filter(|at| seen.insert(elements.key((0, *at)))).map(|at| (0, at)));
        })
    }),
    &Spec::new("array_union", TWO_ARRAYS, returns::first, |call| {
        of_sets(call, |left, right, elements, out| {
            let mut seen = HashSet::new();
            let all = left.map(|at| (0, at)).chain(right.map(|at| (1, at)));
            out.extend(all.filter(|place| seen.insert(elements.key(*place))));
        })
    }),
    &Spec::new("array_intersect", TWO_ARRAYS, returns::first, |call| {
        of_sets(call, |left, right, elements, out| {
            let other: HashSet<_> = right.map(|at| elements.key((1, at))).collect();
            let mut seen = HashSet::new();
            let both = |at: &usize| other.contains(elements.key((0, *at)));
            out.extend(left.filter(both).filter(|at| seen.insert(elements.key((0, *at)))).map(|at| (0, at)));
        })
    }),
    &Spec::new("array_except", TWO_ARRAYS, returns::first, |call| {
        of_sets(call, |left, right, elements, out| {
            let mut seen: HashSet<_> = right.map(|at| elements.key((1, at))).collect();
            out.extend(left.filter(|at| seen.insert(elements.key((0, *at)))).map(|at| (0, at)));
        })
    }),
    &Spec::new("arrays_overlap", TWO_ARRAYS, returns::bool, |call| {
        let (left, right) = (Lists::of(call, 0)?, Lists::of(call, 1)?);
        let elements = Compared::of(&[left.list.values(), right.list.values()])?;
        rows::bools(&[&left.list, &right.list], |row| {
            let (l, r) = (left.range(row), right.range(row));
            let valid = |list: &Lists, at: usize| list.list.values().is_valid(at);
            let other: HashSet<_> = r.clone().filter(|at| valid(&right, *at)).map(|at| elements.key((1, at))).collect();
            let overlap = l.clone().any(|at| valid(&left, at) && other.contains(elements.key((0, at))));
            let nulls = l.clone().any(|at| !valid(&left, at)) || r.clone().any(|at| !valid(&right, at));
            Ok(match overlap {
                true => Some(true),
                false if nulls && !l.is_empty() && !r.is_empty() => None,
                false => Some(false),
            })
        })
    }),
    &Spec::new("array_join", Args::Custom(join_args), returns::text, array_join),
    &Spec::new("array_max", ARRAY, returns::element, |call| extreme(call, true)),
    &Spec::new("array_min", ARRAY, returns::element, |call| extreme(call, false)),
    &Spec::new("array_remove", WITH_ELEMENT, returns::first, |call| {
        let (lists, unwanted) = (Lists::of(call, 0)?, call.array(1)?);
        let elements = Compared::of(&[lists.list.values(), &unwanted])?;
        made(call, &[&lists.list, &unwanted], &[lists.list.values()], |row, out| {
            let kept = |at: &usize| lists.list.values().is_null(*at) || !elements.same((0, *at), (1, row));
            out.extend(lists.range(row).filter(kept).map(|at| (0, at)));
            Ok(())
        })
    }),
    &Spec::new(
        "array_repeat",
        Args::Fixed(2, &[Arg::Any, Arg::Int]),
        |types, _, _| Ok(list_of(types[0].clone())),
        |call| {
            let (value, count) = (call.array(0)?, call.numbers::<Int32Type>(1)?);
            made(call, &[&count], &[&value], |row, out| {
                out.extend(std::iter::repeat_n((0, row), usize::try_from(count.value(row)).unwrap_or(0)));
                Ok(())
            })
        },
    ),
    &Spec::new("array_append", WITH_ELEMENT, returns::first, |call| {
        let (lists, value) = (Lists::of(call, 0)?, call.array(1)?);
        made(call, &[&lists.list], &[lists.list.values(), &value], |row, out| {
            out.extend(lists.range(row).map(|at| (0, at)).chain([(1, row)]));
            Ok(())
        })
    }),
    &Spec::new("array_prepend", WITH_ELEMENT, returns::first, |call| {
        let (lists, value) = (Lists::of(call, 0)?, call.array(1)?);
        made(call, &[&lists.list], &[lists.list.values(), &value], |row, out| {
            out.extend(std::iter::once((1, row)).chain(lists.range(row).map(|at| (0, at))));
            Ok(())
        })
    }),
    &Spec::new("array_insert", Args::Custom(insert_args), returns::first, array_insert),
    &Spec::new("array_compact", ARRAY, returns::first, |call| {
        let lists = Lists::of(call, 0)?;
        made(call, &[&lists.list], &[lists.list.values()], |row, out| {
            out.extend(lists.range(row).filter(|at| lists.list.values().is_valid(*at)).map(|at| (0, at)));
            Ok(())
        })
    }),
    &Spec::new("array_sort", ARRAY, returns::first, |call| {
        sorted(call, |_| Some(SortOptions { descending: false, nulls_first: false }))
    }),
    &Spec::new("sort_array", Args::Fixed(1, &[Arg::Array, Arg::Bool]), returns::first, |call| {
        let ascending = match call.len() {
            1 => BooleanArray::from(vec![true; call.rows]),
            _ => call.array(1)?.as_boolean().clone(),
        };
        sorted(call, |row| {
            ascending.is_valid(row).then(|| {
                let descending = !ascending.value(row);
                SortOptions { descending, nulls_first: !descending }
            })
        })
    }),
    &Spec::new("arrays_zip_named", Args::Custom(zip_args), zip_type, arrays_zip),
    &Spec::new("flatten", Args::Custom(flatten_args), returns::element, |call| {
        let outer = Lists::of(call, 0)?;
        let Some(inner) = outer.list.values().as_list_opt::<i32>() else { return exec_err!("flatten() needs lists") };
        let offsets = inner.value_offsets();
        let mut order: Vec<u32> = Vec::new();
        let mut lengths = Vec::with_capacity(call.rows);
        let mut valid = Vec::with_capacity(call.rows);
        for row in 0..call.rows {
            let before = order.len();
            let is_valid = outer.list.is_valid(row) && outer.range(row).all(|at| inner.is_valid(at));
            if is_valid {
                order.extend(outer.range(row).flat_map(|at| offsets[at] as u32..offsets[at + 1] as u32));
            }
            lengths.push(order.len() - before);
            valid.push(is_valid);
        }
        let values = take(inner.values(), &UInt32Array::from(order), None)?;
        list_array(call.returns, values, &lengths, Some(valid.into()))
    }),
    &Spec::new("sequence", Args::Custom(sequence_args), |types, _, _| Ok(list_of(types[0].clone())), sequence),
    &Spec::new("slice", Args::Fixed(3, &[Arg::Array, Arg::Int, Arg::Int]), returns::first, slice),
    &Spec::new("map_keys", MAP, |types, _, _| map_part(types, 0), |call| map_column(call, 0)),
    &Spec::new("map_values", MAP, |types, _, _| map_part(types, 1), |call| map_column(call, 1)),
    &Spec::new("map_entries", MAP, entries_type, |call| {
        let of = call.array(0)?;
        let Some(map) = of.as_map_opt() else { return Ok(new_null_array(call.returns, call.rows)) };
        let DataType::List(item) = call.returns else { return exec_err!("map_entries() makes a list") };
        let DataType::Struct(fields) = item.data_type() else { return exec_err!("map_entries() makes structs") };
        let columns = vec![map.keys().clone(), map.values().clone()];
        let entries = StructArray::try_new(fields.clone(), columns, None)?;
        Ok(Arc::new(ListArray::try_new(item.clone(), map.offsets().clone(), Arc::new(entries), map.nulls().cloned())?))
    }),
    &Spec::new("map_contains_key", Args::Custom(key_args), returns::bool, |call| {
        let (of, key) = (call.array(0)?, call.array(1)?);
        let map = of.as_map();
        let keys = Compared::of(&[map.keys(), &key])?;
        rows::bools(&[map, &key], |row| Ok(Some(entries_of(map, row).any(|at| keys.same((0, at), (1, row))))))
    }),
    &Spec::new("map_from_arrays", Args::Fixed(2, &[Arg::Array, Arg::Array]), map_from_arrays_type, map_from_arrays),
    &Spec::new("map_from_entries", ARRAY, map_from_entries_type, map_from_entries),
    &Spec::new("map_concat", Args::Custom(map_concat_args), map_concat_type, map_concat),
    &Spec::new("str_to_map", Args::Fixed(1, &[Arg::Text, Arg::Text, Arg::Text]), text_map, str_to_map),
    &Spec::new("stack_rows", Args::Custom(stack_args), stack_type, stack),
];

/// Lists of a first argument.
struct Lists {
    list: ListArray,
}

impl Lists {
    fn of(call: &Call<'_>, index: usize) -> Result<Self> {
        let array = call.array(index)?;
        let array =
            if array.data_type().is_null() { new_null_array(&list_of(DataType::Null), call.rows) } else { array };
        match array.as_list_opt::<i32>() {
            Some(list) => Ok(Self { list: list.clone() }),
            None => exec_err!("argument {index} is {}, not an ARRAY", array.data_type()),
        }
    }

    /// The places of a row's elements; none where the list is NULL.
    fn range(&self, row: usize) -> std::ops::Range<usize> {
        if self.list.is_null(row) {
            return 0..0;
        }
        let offsets = self.list.value_offsets();
        offsets[row] as usize..offsets[row + 1] as usize
    }
}

/// Columns of one type whose values can be compared.
struct Compared(Vec<Rows>);

impl Compared {
    fn of(columns: &[&ArrayRef]) -> Result<Self> {
        let data_type = columns.iter().map(|column| column.data_type()).find(|data_type| !data_type.is_null());
        let data_type = data_type.unwrap_or(&DataType::Null).clone();
        let converter = RowConverter::new(vec![SortField::new(data_type.clone())])?;
        let rows = columns.iter().map(|column| {
            let column = if column.data_type().is_null() {
                new_null_array(&data_type, column.len())
            } else {
                normalise(column)?
            };
            Ok(converter.convert_columns(&[column])?)
        });
        Ok(Self(rows.collect::<Result<_>>()?))
    }

    fn key(&self, (column, at): (usize, usize)) -> &[u8] {
        self.0[column].row(at).data()
    }

    fn same(&self, left: (usize, usize), right: (usize, usize)) -> bool {
        self.key(left) == self.key(right)
    }
}

/// Lists out of places in columns, where none of some other columns is NULL.
fn made(
    call: &Call<'_>,
    needed: &[&dyn Array],
    sources: &[&ArrayRef],
    mut places: impl FnMut(usize, &mut Vec<(usize, usize)>) -> Result<()>,
) -> Result<ArrayRef> {
    if call.returns.is_null() {
        return Ok(new_null_array(call.returns, call.rows));
    }
    let DataType::List(item) = call.returns else { return exec_err!("{} is no list", call.returns) };
    let mut order = Vec::new();
    let mut lengths = Vec::with_capacity(call.rows);
    let mut valid = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        let before = order.len();
        let is_valid = !any_null(needed, row);
        if is_valid {
            places(row, &mut order)?;
        }
        lengths.push(order.len() - before);
        valid.push(is_valid);
    }
    let sources = sources
        .iter()
        .map(|source| {
            if source.data_type() == item.data_type() {
                Ok((*source).clone())
            } else {
                cast_array(source, item.data_type(), false)
            }
        })
        .collect::<Result<Vec<_>>>()?;
    let sources: Vec<&dyn Array> = sources.iter().map(AsRef::as_ref).collect();
    list_array(call.returns, interleave(&sources, &order)?, &lengths, Some(valid.into()))
}

type Range = std::ops::Range<usize>;

/// The functions that take arrays as sets.
fn of_sets(call: &Call<'_>, with: fn(Range, Range, &Compared, &mut Vec<(usize, usize)>)) -> Result<ArrayRef> {
    let left = Lists::of(call, 0)?;
    let right = Lists::of(call, call.len() - 1)?;
    let elements = Compared::of(&[left.list.values(), right.list.values()])?;
    made(call, &[&left.list, &right.list], &[left.list.values(), right.list.values()], |row, out| {
        with(left.range(row), right.range(row), &elements, out);
        Ok(())
    })
}

/// The common type of two, of which not only one is a text.
fn common_element(left: &DataType, right: &DataType) -> Option<DataType> {
    let mixed = is_string(left) != is_string(right) && !left.is_null() && !right.is_null();
    if mixed { None } else { common(left, right) }
}

fn wrong_count(needed: usize) -> datafusion::common::DataFusionError {
    refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", format!("{needed} arguments are needed"))
}

/// An array and a value of its kind.
fn with_element(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let [of, value] = types else { return Err(wrong_count(2)) };
    let DataType::List(item) = of else {
        return Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("an ARRAY is needed, not {}", sql_name(of))));
    };
    match common_element(item.data_type(), value) {
        Some(common) => Ok(vec![list_of(common.clone()), common]),
        None => Err(mismatch(
            "ARRAY_FUNCTION_DIFF_TYPES",
            format!("{} has no element of type {}", sql_name(of), sql_name(value)),
        )),
    }
}

/// An array, and a value that may be in it.
fn find_element(types: &[DataType], zone: &Arc<str>) -> Result<Vec<DataType>> {
    if types.first().is_some_and(DataType::is_null) {
        return Err(mismatch("NULL_TYPE", "nothing is found in NULL"));
    }
    with_element(types, zone)
}

fn two_arrays(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let [left, right] = types else { return Err(wrong_count(2)) };
    let common = match (left, right) {
        (DataType::List(l), DataType::List(r)) => common_element(l.data_type(), r.data_type()),
        _ => None,
    };
    match common {
        Some(common) => Ok(vec![list_of(common); 2]),
        None => Err(mismatch(
            "BINARY_ARRAY_DIFF_TYPES",
            format!("two arrays of one type are needed, not {} and {}", sql_name(left), sql_name(right)),
        )),
    }
}

fn join_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [DataType::List(_) | DataType::Null, rest @ ..] if (1..=2).contains(&rest.len()) => {
            Ok(std::iter::once(list_of(DataType::Utf8)).chain(rest.iter().map(|_| DataType::Utf8)).collect())
        }
        [of, ..] => Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("an ARRAY is joined, not {}", sql_name(of)))),
        [] => Err(wrong_count(2)),
    }
}

fn array_join(call: &Call<'_>) -> Result<ArrayRef> {
    let (lists, separator) = (Lists::of(call, 0)?, call.text(1)?);
    let by = if call.len() > 2 { Some(call.text(2)?) } else { None };
    let texts = lists.list.values().as_string::<i32>();
    let mut needed: Vec<&dyn Array> = vec![&lists.list, &separator];
    needed.extend(by.iter().map(|by| by as &dyn Array));
    rows::texts(&needed, |row| {
        let parts: Vec<&str> = lists
            .range(row)
            .filter_map(|at| match texts.is_valid(at) {
                true => Some(texts.value(at)),
                false => by.as_ref().map(|by| by.value(row)),
            })
            .collect();
        Ok(Some(parts.join(separator.value(row))))
    })
}

fn extreme(call: &Call<'_>, greatest: bool) -> Result<ArrayRef> {
    let lists = Lists::of(call, 0)?;
    let values = lists.list.values();
    let elements = Compared::of(&[values])?;
    let places: UInt32Array = (0..call.rows)
        .map(|row| {
            let present = lists.range(row).filter(|at| values.is_valid(*at) && !values.data_type().is_null());
            let found = if greatest {
                present.rev().max_by(|l, r| elements.key((0, *l)).cmp(elements.key((0, *r))))
            } else {
                present.min_by(|l, r| elements.key((0, *l)).cmp(elements.key((0, *r))))
            };
            found.map(|at| at as u32)
        })
        .collect();
    Ok(take(values, &places, None)?)
}

fn insert_args(types: &[DataType], zone: &Arc<str>) -> Result<Vec<DataType>> {
    let [of, _, value] = types else { return Err(wrong_count(3)) };
    let coerced = with_element(&[of.clone(), value.clone()], zone).map_err(|_| {
        mismatch("ARRAY_FUNCTION_DIFF_TYPES", format!("{} cannot go into {}", sql_name(value), sql_name(of)))
    })?;
    Ok(vec![coerced[0].clone(), DataType::Int32, coerced[1].clone()])
}

fn array_insert(call: &Call<'_>) -> Result<ArrayRef> {
    let (lists, position, value) = (Lists::of(call, 0)?, call.numbers::<Int32Type>(1)?, call.array(2)?);
    let nothing = new_null_array(value.data_type(), 1);
    made(call, &[&lists.list, &position], &[lists.list.values(), &value, &nothing], |row, out| {
        let range = lists.range(row);
        let length = range.len();
        let elements = range.map(|at| (0, at));
        match position.value(row) {
            0 => return Err(failed("INVALID_INDEX_OF_ZERO", "the position of array_insert() begins at 1")),
            position if position > 0 => {
                let before = position.unsigned_abs() as usize - 1;
                out.extend(elements.clone().take(before));
                out.extend(std::iter::repeat_n((2, 0), before.saturating_sub(length)));
                out.push((1, row));
                out.extend(elements.skip(before));
            }
            position => {
                let behind = position.unsigned_abs() as usize - 1;
                let before = length.saturating_sub(behind);
                out.extend(elements.clone().take(before));
                out.push((1, row));
                out.extend(std::iter::repeat_n((2, 0), behind.saturating_sub(length)));
                out.extend(elements.skip(before));
            }
        }
        Ok(())
    })
}

fn sorted(call: &Call<'_>, options: impl Fn(usize) -> Option<SortOptions>) -> Result<ArrayRef> {
    let lists = Lists::of(call, 0)?;
    let values = lists.list.values();
    if matches!(values.data_type(), DataType::Map(..)) {
        return Err(mismatch("INVALID_ORDERING_TYPE", "maps have no order"));
    }
    let elements = Compared::of(&[values])?;
    let with_order: Int32Array = (0..call.rows).map(|row| options(row).map(|_| 0)).collect();
    made(call, &[&lists.list, &with_order], &[values], |row, out| {
        let Some(options) = options(row) else { return Ok(()) };
        let (mut present, nulls): (Vec<usize>, Vec<usize>) = lists.range(row).partition(|at| values.is_valid(*at));
        present.sort_by(|l, r| {
            let order = elements.key((0, *l)).cmp(elements.key((0, *r)));
            if options.descending { order.reverse() } else { order }
        });
        let (first, second) = if options.nulls_first { (nulls, present) } else { (present, nulls) };
        out.extend(first.into_iter().chain(second).map(|at| (0, at)));
        Ok(())
    })
}

/// Names and arrays, in turn.
fn zip_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types.iter().skip(1).step_by(2).find(|t| !matches!(t, DataType::List(_) | DataType::Null)) {
        Some(wrong) => {
            Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("arrays_zip() needs arrays, not {}", sql_name(wrong))))
        }
        None => Ok(types.to_vec()),
    }
}

fn zip_type(types: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    let fields: Vec<Field> = types
        .chunks(2)
        .zip(constants.chunks(2))
        .map(|(types, constants)| {
            let name = match constants.first() {
                Some(Some(ScalarValue::Utf8(Some(name)))) => name.as_str(),
                _ => "",
            };
            Field::new(name, types.get(1).and_then(types::element_of).cloned().unwrap_or(DataType::Null), true)
        })
        .collect();
    Ok(list_of(DataType::Struct(fields.into())))
}

fn arrays_zip(call: &Call<'_>) -> Result<ArrayRef> {
    let DataType::List(item) = call.returns else { return exec_err!("arrays_zip() makes a list") };
    let DataType::Struct(fields) = item.data_type() else { return exec_err!("arrays_zip() makes structs") };
    let lists = (1..call.len()).step_by(2).map(|at| Lists::of(call, at)).collect::<Result<Vec<_>>>()?;
    let mut lengths = Vec::with_capacity(call.rows);
    let mut places: Vec<Vec<Option<u32>>> = vec![Vec::new(); lists.len()];
    let valid: Vec<bool> = (0..call.rows).map(|row| lists.iter().all(|list| list.list.is_valid(row))).collect();
    for (row, valid) in valid.iter().enumerate() {
        let longest = if *valid { lists.iter().map(|list| list.range(row).len()).max().unwrap_or(0) } else { 0 };
        for (list, places) in lists.iter().zip(&mut places) {
            let range = list.range(row);
            places.extend((0..longest).map(|at| range.clone().nth(at).map(|at| at as u32)));
        }
        lengths.push(longest);
    }
    let count = lengths.iter().sum();
    let columns = lists
        .iter()
        .zip(places)
        .map(|(list, places)| Ok(take(list.list.values(), &UInt32Array::from(places), None)?))
        .collect::<Result<Vec<_>>>()?;
    let structs = StructArray::try_new_with_length(fields.clone(), columns, None, count)?;
    list_array(call.returns, Arc::new(structs), &lengths, Some(valid.into()))
}

fn flatten_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [DataType::List(item)] if matches!(item.data_type(), DataType::List(_)) => Ok(types.to_vec()),
        [other] => Err(mismatch(
            "UNEXPECTED_INPUT_TYPE",
            format!("flatten() needs an ARRAY of ARRAYs, not {}", sql_name(other)),
        )),
        _ => Err(wrong_count(1)),
    }
}

fn sequence_args(types: &[DataType], zone: &Arc<str>) -> Result<Vec<DataType>> {
    let wrong = || {
        let names: Vec<String> = types.iter().map(sql_name).collect();
        mismatch(
            "SEQUENCE_WRONG_INPUT_TYPES",
            format!("sequence() needs integers, or times and an interval, not {}", names.join(", ")),
        )
    };
    let (first, step) = match types {
        [start, stop] => (common(start, stop), None),
        [start, stop, step] => (common(start, stop), Some(step)),
        _ => return Err(wrong_count(2)),
    };
    let Some(first) = first else { return Err(wrong()) };
    match (&first, step) {
        (DataType::Null, _) => Ok(vec![DataType::Int32; types.len()]),
        (of, None) if is_integral(of) => Ok(vec![first.clone(); 2]),
        (of, Some(step)) if is_integral(of) && (is_integral(step) || step.is_null()) => {
            Ok(vec![common(&first, step).unwrap_or(first.clone()); 3])
        }
        (DataType::Date32 | DataType::Timestamp(..), step)
            if step.is_none_or(|step| matches!(step, DataType::Interval(_))) =>
        {
            Ok([first.clone(), first.clone()].into_iter().chain(step.cloned()).collect())
        }
        (of, _) if is_string(of) && step.is_some() => {
            let time = types::timestamp(zone);
            Ok([time.clone(), time].into_iter().chain(step.cloned()).collect())
        }
        _ => Err(wrong()),
    }
}

/// Arrays may have so many elements.
const LONGEST: usize = i32::MAX as usize - 15;

fn sequence(call: &Call<'_>) -> Result<ArrayRef> {
    let bounds = |start: &str, stop: &str, step: &str| {
        failed("IllegalArgumentException", format!("a sequence does not go from {start} to {stop} by {step}"))
    };
    let (start, stop) = (call.array(0)?, call.array(1)?);
    let step = if call.len() > 2 { Some(call.array(2)?) } else { None };
    let mut needed: Vec<&dyn Array> = vec![&start, &stop];
    needed.extend(step.iter().map(AsRef::as_ref));
    let mut values: Vec<i64> = Vec::new();
    let mut lengths = Vec::with_capacity(call.rows);
    let mut valid = Vec::with_capacity(call.rows);
    let is_time = matches!(start.data_type(), DataType::Date32 | DataType::Timestamp(..));
    let unit = if *start.data_type() == DataType::Date32 { time::DAY } else { 1 };
    let micros = |of: &ArrayRef| -> Result<Int64Array> {
        Ok(match of.data_type() {
            DataType::Date32 => of.as_primitive::<Date32Type>().unary(|days| i64::from(days) * time::DAY),
            DataType::Timestamp(..) => of.as_primitive::<TimestampMicrosecondType>().unary(|micros| micros),
            _ => compute::cast(of, &DataType::Int64)?.as_primitive::<Int64Type>().clone(),
        })
    };
    let (from, to) = (micros(&start)?, micros(&stop)?);
    let zone = time::zone_of(start.data_type())?;
    let intervals = match &step {
        Some(step) if is_time => Some(Intervals::of(step)?),
        _ => None,
    };
    let steps = match &step {
        Some(step) if !is_time => Some(micros(step)?),
        _ => None,
    };
    for row in 0..call.rows {
        let before = values.len();
        let is_valid = !any_null(&needed, row);
        valid.push(is_valid);
        if is_valid {
            let (from, to) = (from.value(row), to.value(row));
            let direction = if from <= to { 1 } else { -1 };
            let (months, by) = match (&intervals, &steps) {
                (Some(intervals), _) => intervals.at(row),
                (None, Some(steps)) => (0, steps.value(row)),
                (None, None) if is_time => (0, direction * time::DAY),
                (None, None) => (0, direction),
            };
            let forward = months > 0 || months == 0 && by > 0;
            let fits = from == to || (forward && from < to) || (!forward && (months, by) != (0, 0) && from > to);
            if !fits {
                return Err(bounds(&from.to_string(), &to.to_string(), &by.to_string()));
            }
            let mut at = from;
            let mut count = 0;
            while if forward || from == to { at <= to } else { at >= to } {
                if values.len() - before >= LONGEST {
                    return Err(failed("COLLECTION_SIZE_LIMIT_EXCEEDED.PARAMETER", "a sequence is too long"));
                }
                values.push(at / unit);
                count += 1;
                if (months, by) == (0, 0) {
                    break;
                }
                let next = if is_time {
                    super::dates::moved(from, count * months, count * by, zone).ok()
                } else {
                    at.checked_add(by)
                };
                match next {
                    Some(next) => at = next,
                    None => break,
                }
            }
        }
        lengths.push(values.len() - before);
    }
    let values: ArrayRef = Arc::new(Int64Array::from(values));
    let values = match start.data_type() {
        DataType::Date32 => compute::cast(&compute::cast(&values, &DataType::Int32)?, &DataType::Date32)?,
        other => compute::cast(&values, other)?,
    };
    list_array(call.returns, values, &lengths, Some(valid.into()))
}

fn slice(call: &Call<'_>) -> Result<ArrayRef> {
    let (lists, start, length) = (Lists::of(call, 0)?, call.numbers::<Int32Type>(1)?, call.numbers::<Int32Type>(2)?);
    made(call, &[&lists.list, &start, &length], &[lists.list.values()], |row, out| {
        let range = lists.range(row);
        let Ok(length) = usize::try_from(length.value(row)) else {
            return Err(failed("INVALID_PARAMETER_VALUE.LENGTH", "the length of slice() cannot be negative"));
        };
        let magnitude = start.value(row).unsigned_abs() as usize;
        let skipped = match start.value(row) {
            0 => return Err(failed("INVALID_PARAMETER_VALUE.START", "the start of slice() begins at 1")),
            start if start > 0 => Some(magnitude - 1),
            _ => range.len().checked_sub(magnitude),
        };
        if let Some(skipped) = skipped {
            out.extend(range.skip(skipped).take(length).map(|at| (0, at)));
        }
        Ok(())
    })
}

fn map_part(types: &[DataType], at: usize) -> Result<DataType> {
    Ok(list_of(map_types(&types[0]).map_or(DataType::Null, |(key, value)| {
        if at == 0 { key.data_type().clone() } else { value.data_type().clone() }
    })))
}

fn map_column(call: &Call<'_>, at: usize) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let Some(map) = of.as_map_opt() else { return Ok(new_null_array(call.returns, call.rows)) };
    let DataType::List(item) = call.returns else { return exec_err!("{} is no list", call.returns) };
    let values = if at == 0 { map.keys() } else { map.values() };
    Ok(Arc::new(ListArray::try_new(item.clone(), map.offsets().clone(), values.clone(), map.nulls().cloned())?))
}

fn entries_type(types: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    let (key, value) = map_types(&types[0])
        .map_or((DataType::Null, DataType::Null), |(k, v)| (k.data_type().clone(), v.data_type().clone()));
    Ok(list_of(DataType::Struct(vec![Field::new("key", key, true), Field::new("value", value, true)].into())))
}

fn key_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let [of, key] = types else { return Err(wrong_count(2)) };
    let wanted = map_types(of).and_then(|(own, value)| {
        let key = common_element(own.data_type(), key)?;
        Some(vec![map_of(key.clone(), value.data_type().clone()), key])
    });
    wanted.ok_or_else(|| {
        mismatch("MAP_FUNCTION_DIFF_TYPES", format!("{} has no key of type {}", sql_name(of), sql_name(key)))
    })
}

fn entries_of(map: &MapArray, row: usize) -> std::ops::Range<usize> {
    map.value_offsets()[row] as usize..map.value_offsets()[row + 1] as usize
}

fn map_from_arrays_type(types: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    let of = |at: usize| types.get(at).and_then(types::element_of).cloned().unwrap_or(DataType::Null);
    Ok(map_of(of(0), of(1)))
}

/// Maps out of places in columns of keys and of values.
fn map_of_places(
    returns: &DataType,
    (keys, key_places): (&ArrayRef, Vec<u32>),
    (values, value_places): (&ArrayRef, Vec<u32>),
    lengths: &[usize],
    valid: Vec<bool>,
) -> Result<ArrayRef> {
    let keys = take(keys, &UInt32Array::from(key_places), None)?;
    let values = take(values, &UInt32Array::from(value_places), None)?;
    build_map(returns, keys, values, lengths, Some(valid.into()))
}

fn map_from_arrays(call: &Call<'_>) -> Result<ArrayRef> {
    let (keys, values) = (Lists::of(call, 0)?, Lists::of(call, 1)?);
    let (mut of_keys, mut of_values) = (Vec::new(), Vec::new());
    let (mut lengths, mut valid) = (Vec::new(), Vec::new());
    for row in 0..call.rows {
        let is_valid = keys.list.is_valid(row) && values.list.is_valid(row);
        valid.push(is_valid);
        if !is_valid {
            lengths.push(0);
            continue;
        }
        let (k, v) = (keys.range(row), values.range(row));
        if k.len() != v.len() {
            return Err(failed(
                "_LEGACY_ERROR_TEMP_2128",
                format!("a map is not made of {} keys and {} values", k.len(), v.len()),
            ));
        }
        lengths.push(k.len());
        of_keys.extend(k.map(|at| at as u32));
        of_values.extend(v.map(|at| at as u32));
    }
    map_of_places(call.returns, (keys.list.values(), of_keys), (values.list.values(), of_values), &lengths, valid)
}

fn map_from_entries_type(types: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    match types.first().and_then(types::element_of) {
        Some(DataType::Struct(fields)) if fields.len() == 2 => {
            Ok(map_of(fields[0].data_type().clone(), fields[1].data_type().clone()))
        }
        _ => Err(mismatch(
            "UNEXPECTED_INPUT_TYPE",
            format!("map_from_entries() needs an ARRAY of pairs, not {}", sql_name(&types[0])),
        )),
    }
}

fn map_from_entries(call: &Call<'_>) -> Result<ArrayRef> {
    let lists = Lists::of(call, 0)?;
    let entries = lists.list.values().as_struct();
    let (mut places, mut lengths, mut valid) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..call.rows {
        let range = lists.range(row);
        let is_valid = lists.list.is_valid(row) && range.clone().all(|at| entries.is_valid(at));
        valid.push(is_valid);
        lengths.push(if is_valid { range.len() } else { 0 });
        if is_valid {
            places.extend(range.map(|at| at as u32));
        }
    }
    let columns = entries.columns();
    map_of_places(call.returns, (&columns[0], places.clone()), (&columns[1], places), &lengths, valid)
}

fn map_concat_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let common = types::common_of(types).filter(|_| types.iter().all(|t| matches!(t, DataType::Map(..))));
    match common {
        Some(common) => Ok(vec![common; types.len()]),
        None if types.is_empty() => Ok(Vec::new()),
        None => {
            let names: Vec<String> = types.iter().map(sql_name).collect();
            Err(mismatch(
                "MAP_CONCAT_DIFF_TYPES",
                format!("map_concat() needs maps of one type, not {}", names.join(", ")),
            ))
        }
    }
}

fn map_concat_type(types: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    match types.first() {
        None => Ok(map_of(DataType::Utf8, DataType::Utf8)),
        Some(of @ DataType::Map(..)) => Ok(of.clone()),
        Some(other) => {
            Err(mismatch("MAP_CONCAT_DIFF_TYPES", format!("map_concat() needs maps, not {}", sql_name(other))))
        }
    }
}

fn map_concat(call: &Call<'_>) -> Result<ArrayRef> {
    let columns = call.arrays()?;
    let maps: Vec<&MapArray> = columns.iter().filter_map(|column| column.as_map_opt()).collect();
    if maps.is_empty() {
        let empty = || new_null_array(&DataType::Utf8, 0);
        return build_map(call.returns, empty(), empty(), &vec![0; call.rows], None);
    }
    let needed: Vec<&dyn Array> = maps.iter().map(|map| *map as &dyn Array).collect();
    let (mut order, mut lengths, mut valid) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..call.rows {
        let before = order.len();
        let is_valid = !any_null(&needed, row);
        if is_valid {
            for (at, map) in maps.iter().enumerate() {
                order.extend(entries_of(map, row).map(|entry| (at, entry)));
            }
        }
        lengths.push(order.len() - before);
        valid.push(is_valid);
    }
    let keys: Vec<&dyn Array> = maps.iter().map(|map| map.keys().as_ref()).collect();
    let values: Vec<&dyn Array> = maps.iter().map(|map| map.values().as_ref()).collect();
    build_map(call.returns, interleave(&keys, &order)?, interleave(&values, &order)?, &lengths, Some(valid.into()))
}

fn text_map(_: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    Ok(map_of(DataType::Utf8, DataType::Utf8))
}

fn str_to_map(call: &Call<'_>) -> Result<ArrayRef> {
    let (text, pairs, key) = (call.text(0)?, call.text_or(1, ",")?, call.text_or(2, ":")?);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let (mut lengths, mut valid) = (Vec::new(), Vec::new());
    let (mut by_pair, mut by_key) = (super::regex::Splitter::default(), super::regex::Splitter::default());
    for row in 0..call.rows {
        let is_valid = !any_null(&[&text, &pairs, &key], row);
        let before = keys.len();
        if is_valid {
            for pair in by_pair.split(text.value(row), pairs.value(row), None)? {
                let mut parts = by_key.split(pair, key.value(row), Some(2))?.into_iter();
                keys.push(parts.next().unwrap_or_default().to_owned());
                values.push(parts.next().map(str::to_owned));
            }
        }
        lengths.push(keys.len() - before);
        valid.push(is_valid);
    }
    let keys: ArrayRef = Arc::new(datafusion::arrow::array::StringArray::from(keys));
    let values: ArrayRef = Arc::new(datafusion::arrow::array::StringArray::from(values));
    build_map(call.returns, keys, values, &lengths, Some(valid.into()))
}

/// A number of rows, and values: the columns get their common types.
fn stack_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    if types.len() < 2 {
        return Err(wrong_count(2));
    }
    Ok(std::iter::once(DataType::Int32).chain(types[1..].iter().cloned()).collect())
}

fn stack_rows(constant: Option<&ScalarValue>) -> Result<usize> {
    let rows = match constant {
        Some(ScalarValue::Int32(Some(rows))) => usize::try_from(*rows).ok(),
        Some(ScalarValue::Int64(Some(rows))) => usize::try_from(*rows).ok(),
        _ => None,
    };
    rows.filter(|rows| *rows > 0)
        .ok_or_else(|| mismatch("NON_FOLDABLE_INPUT", "the number of rows of stack() is a constant above 0"))
}

fn stack_type(types: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    let rows = stack_rows(constants.first().copied().flatten())?;
    let width = (types.len() - 1).div_ceil(rows);
    let fields = (0..width)
        .map(|column| {
            let of_column = types[1..].iter().skip(column).step_by(width);
            match types::common_of(of_column) {
                Some(common) => Ok(Field::new(format!("col{column}"), common, true)),
                None => Err(mismatch("STACK_COLUMN_DIFF_TYPES", "the values of a column of stack() have one type")),
            }
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(list_of(DataType::Struct(fields.into())))
}

fn stack(call: &Call<'_>) -> Result<ArrayRef> {
    let DataType::List(item) = call.returns else { return exec_err!("stack() makes a list") };
    let DataType::Struct(fields) = item.data_type() else { return exec_err!("stack() makes structs") };
    let count = match call.args.first() {
        Some(datafusion::logical_expr::ColumnarValue::Scalar(rows)) => stack_rows(Some(rows))?,
        _ => return exec_err!("the number of rows of stack() is not constant"),
    };
    let columns = fields
        .iter()
        .enumerate()
        .map(|(at, field)| {
            let nothing = new_null_array(field.data_type(), 1);
            let mut sources = Vec::with_capacity(count + 1);
            for row in 0..count {
                let place = 1 + row * fields.len() + at;
                if place < call.len() {
                    sources.push(cast_array(&call.array(place)?, field.data_type(), false)?);
                }
            }
            let present = sources.len();
            sources.push(nothing);
            let refs: Vec<&dyn Array> = sources.iter().map(AsRef::as_ref).collect();
            let order: Vec<(usize, usize)> = (0..call.rows)
                .flat_map(|row| (0..count).map(move |of| if of < present { (of, row) } else { (present, 0) }))
                .collect();
            Ok(interleave(&refs, &order)?)
        })
        .collect::<Result<Vec<_>>>()?;
    let structs = StructArray::try_new_with_length(fields.clone(), columns, None, count * call.rows)?;
    list_array(call.returns, Arc::new(structs), &vec![count; call.rows], None)
}
