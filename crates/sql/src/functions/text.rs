//! Functions of texts. Positions count characters and begin at 1, and those of BINARY count bytes.

use std::borrow::Cow;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BinaryArray, ListArray, StringArray, StringBuilder};
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::{DataType, Int32Type, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_err};

use super::function::{Arg, Args, Call, Spec, returns};
use super::rows;
use super::types::{self, mismatch, sql_name};
use crate::error::{failed, refused_analysis};

const TEXT: Args = Args::Fixed(1, &[Arg::Text]);
const TEXTS: Args = Args::Fixed(2, &[Arg::Text, Arg::Text]);
const EITHER: Args = Args::Fixed(2, &[Arg::TextOrBytes, Arg::TextOrBytes]);

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("concat", Args::Custom(concat_args), concat_type, concat),
    &Spec::new("concat_ws", Args::Custom(concat_ws_args), returns::text, concat_ws),
    &Spec::new("substring", Args::Fixed(2, &[Arg::TextOrBytes, Arg::Int, Arg::Int]), returns::first, substring)
        .or(&["substr"]),
    &Spec::new("left", Args::Fixed(2, &[Arg::TextOrBytes, Arg::Int]), returns::first, |call| {
        let length = call.numbers::<Int32Type>(1)?;
        parts(call, &[&length], |row| (1, length.value(row)))
    }),
    &Spec::new("right", Args::Fixed(2, &[Arg::Text, Arg::Int]), returns::text, |call| {
        let length = call.numbers::<Int32Type>(1)?;
        parts(call, &[&length], |row| match length.value(row) {
            length if length <= 0 => (1, 0),
            length => (length.saturating_neg(), length),
        })
    }),
    &Spec::new("substring_index", Args::Fixed(3, &[Arg::Text, Arg::Text, Arg::Int]), returns::text, |call| {
        let (text, delimiter, count) = (call.text(0)?, call.text(1)?, call.numbers::<Int32Type>(2)?);
        rows::texts(&[&text, &delimiter, &count], |row| {
            Ok(Some(before(text.value(row), delimiter.value(row), count.value(row))))
        })
    }),
    &Spec::new("trim", TEXT, returns::text, |call| trim(call, 0, None, true, true)),
    &Spec::new("btrim", Args::Fixed(1, &[Arg::Text, Arg::Text]), returns::text, |call| {
        trim(call, 0, (call.len() > 1).then_some(1), true, true)
    }),
    &Spec::new("ltrim", Args::Fixed(1, &[Arg::Text, Arg::Text]), returns::text, |call| {
        trim(call, call.len() - 1, (call.len() > 1).then_some(0), true, false)
    }),
    &Spec::new("rtrim", Args::Fixed(1, &[Arg::Text, Arg::Text]), returns::text, |call| {
        trim(call, call.len() - 1, (call.len() > 1).then_some(0), false, true)
    }),
    &Spec::new("lpad", Args::Custom(pad_args), returns::first, |call| pad(call, true)),
    &Spec::new("rpad", Args::Custom(pad_args), returns::first, |call| pad(call, false)),
    &Spec::new("upper", TEXT, returns::text, |call| rows::text_of(&call.text(0)?, str::to_uppercase)).or(&["ucase"]),
    &Spec::new("lower", TEXT, returns::text, |call| rows::text_of(&call.text(0)?, str::to_lowercase)).or(&["lcase"]),
    &Spec::new("initcap", TEXT, returns::text, |call| rows::text_of(&call.text(0)?, capitals)),
    &Spec::new("reverse", Args::Custom(reverse_args), returns::first, reverse),
    &Spec::new("repeat", Args::Fixed(2, &[Arg::Text, Arg::Int]), returns::text, |call| {
        let (text, times) = (call.text(0)?, call.numbers::<Int32Type>(1)?);
        rows::texts(&[&text, &times], |row| {
            Ok(Some(text.value(row).repeat(usize::try_from(times.value(row)).unwrap_or(0))))
        })
    }),
    &Spec::new("replace", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Text]), returns::text, |call| {
        let (text, search, by) = (call.text(0)?, call.text(1)?, call.text_or(2, "")?);
        rows::texts(&[&text, &search, &by], |row| {
            let (text, search) = (text.value(row), search.value(row));
            Ok(Some(if search.is_empty() {
                Cow::Borrowed(text)
            } else {
                Cow::Owned(text.replace(search, by.value(row)))
            }))
        })
    }),
    &Spec::new("translate", Args::Fixed(3, &[Arg::Text, Arg::Text, Arg::Text]), returns::text, |call| {
        let (text, from, to) = (call.text(0)?, call.text(1)?, call.text(2)?);
        rows::texts(&[&text, &from, &to], |row| {
            let mut by = std::collections::HashMap::new();
            let mut to = to.value(row).chars();
            for c in from.value(row).chars() {
                let replacement = to.next();
                by.entry(c).or_insert(replacement);
            }
            let translated: String =
                text.value(row).chars().filter_map(|c| by.get(&c).map_or(Some(c), |found| *found)).collect();
            Ok(Some(translated))
        })
    }),
    &Spec::new("instr", TEXTS, returns::int, |call| {
        let (text, search) = (call.text(0)?, call.text(1)?);
        let found =
            rows::numbers::<Int32Type>(&[&text, &search], |row| Ok(Some(find(text.value(row), search.value(row), 1))));
        Ok(Arc::new(found?))
    }),
    &Spec::new("locate", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Int]), returns::int, locate).or(&["position"]),
    &Spec::new("length", Args::Fixed(1, &[Arg::TextOrBytes]), returns::int, |call| {
        lengths(call, |text| text.chars().count(), <[u8]>::len)
    })
    .or(&["char_length", "character_length", "len"]),
    &Spec::new("octet_length", Args::Fixed(1, &[Arg::TextOrBytes]), returns::int, |call| {
        lengths(call, str::len, <[u8]>::len)
    }),
    &Spec::new("bit_length", Args::Fixed(1, &[Arg::TextOrBytes]), returns::int, |call| {
        lengths(call, |text| text.len() * 8, |bytes| bytes.len() * 8)
    }),
    &Spec::new("ascii", TEXT, returns::int, |call| {
        let text = call.text(0)?;
        let codes = rows::numbers::<Int32Type>(&[&text], |row| {
            Ok(Some(text.value(row).chars().next().map_or(0, |c| c as i32)))
        });
        Ok(Arc::new(codes?))
    }),
    &Spec::new("chr", Args::Fixed(1, &[Arg::Long]), returns::text, |call| {
        let code = call.numbers::<Int64Type>(0)?;
        rows::texts(&[&code], |row| {
            Ok(Some(match code.value(row) {
                code if code < 0 => String::new(),
                code => char::from((code & 0xff) as u8).to_string(),
            }))
        })
    })
    .or(&["char"]),
    &Spec::new("split_part", Args::Fixed(3, &[Arg::Text, Arg::Text, Arg::Int]), returns::text, |call| {
        let (text, delimiter, part) = (call.text(0)?, call.text(1)?, call.numbers::<Int32Type>(2)?);
        rows::texts(&[&text, &delimiter, &part], |row| {
            let (text, delimiter, part) = (text.value(row), delimiter.value(row), part.value(row));
            if part == 0 {
                return Err(failed("INVALID_INDEX_OF_ZERO", "the parts of split_part() are counted from 1"));
            }
            let parts: Vec<&str> = if delimiter.is_empty() { vec![text] } else { text.split(delimiter).collect() };
            let at = part.unsigned_abs() as usize;
            let found = if part > 0 { at.checked_sub(1) } else { parts.len().checked_sub(at) };
            Ok(Some(found.and_then(|at| parts.get(at)).copied().unwrap_or_default()))
        })
    }),
    &Spec::new("soundex", TEXT, returns::text, |call| {
        let text = call.text(0)?;
        rows::texts(&[&text], |row| Ok(Some(soundex(text.value(row)))))
    }),
    &Spec::new("levenshtein", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Int]), returns::int, levenshtein),
    &Spec::new("overlay", Args::Custom(overlay_args), returns::first, overlay),
    &Spec::new("space", Args::Fixed(1, &[Arg::Int]), returns::text, |call| {
        let count = call.numbers::<Int32Type>(0)?;
        rows::texts(&[&count], |row| Ok(Some(" ".repeat(usize::try_from(count.value(row)).unwrap_or(0)))))
    }),
    &Spec::new("contains", EITHER, returns::bool, |call| {
        compared(
            call,
            |text, part| text.contains(part),
            |bytes, part| part.is_empty() || bytes.windows(part.len()).any(|window| window == part),
        )
    }),
    &Spec::new("startswith", EITHER, returns::bool, |call| {
        compared(call, |text, part| text.starts_with(part), |bytes, part| bytes.starts_with(part))
    }),
    &Spec::new("endswith", EITHER, returns::bool, |call| {
        compared(call, |text, part| text.ends_with(part), |bytes, part| bytes.ends_with(part))
    }),
    &Spec::new("find_in_set", TEXTS, returns::int, |call| {
        let (word, set) = (call.text(0)?, call.text(1)?);
        let found = rows::numbers::<Int32Type>(&[&word, &set], |row| {
            let word = word.value(row);
            if word.contains(',') {
                return Ok(Some(0));
            }
            Ok(Some(set.value(row).split(',').position(|item| item == word).map_or(0, |at| at as i32 + 1)))
        });
        Ok(Arc::new(found?))
    }),
    &Spec::new("elt", Args::Custom(elt_args), |types, _, _| Ok(types.get(1).cloned().unwrap_or(DataType::Utf8)), elt),
];

/// Texts or BINARY of a first argument, by what it is.
enum Values {
    Texts(StringArray),
    Bytes(BinaryArray),
}

fn values(call: &Call<'_>, index: usize) -> Result<Values> {
    let array = call.array(index)?;
    match array.data_type() {
        DataType::Binary => Ok(Values::Bytes(array.as_binary::<i32>().clone())),
        _ => Ok(Values::Texts(call.text(index)?)),
    }
}

fn concat_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let wanted = match types.first() {
        None => return Ok(Vec::new()),
        Some(_) if types.iter().any(|t| matches!(t, DataType::List(_))) => match types::common_of(types) {
            Some(common) => common,
            None => {
                let names: Vec<String> = types.iter().map(sql_name).collect();
                return Err(mismatch("DATA_DIFF_TYPES", format!("concat() cannot join {}", names.join(" and "))));
            }
        },
        Some(_) if types.iter().all(|t| matches!(t, DataType::Binary | DataType::Null)) => {
            if types.iter().all(DataType::is_null) { DataType::Utf8 } else { DataType::Binary }
        }
        Some(_) => DataType::Utf8,
    };
    if wanted == DataType::Utf8
        && let Some(nested) = types.iter().find(|t| t.is_nested())
    {
        return Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("concat() cannot join {}", sql_name(nested))));
    }
    Ok(vec![wanted; types.len()])
}

fn concat_type(types: &[DataType], _: &[Option<&ScalarValue>], zone: &Arc<str>) -> Result<DataType> {
    Ok(concat_args(types, zone)?.into_iter().next().unwrap_or(DataType::Utf8))
}

fn concat(call: &Call<'_>) -> Result<ArrayRef> {
    match call.returns {
        _ if call.len() == 0 => Ok(Arc::new(StringArray::from(vec![""; call.rows]))),
        DataType::List(item) => {
            let columns = call.arrays()?;
            let lists: Vec<&ListArray> = columns.iter().filter_map(|column| column.as_list_opt::<i32>()).collect();
            let values: Vec<&dyn Array> = lists.iter().map(|list| list.values().as_ref()).collect();
            let nulls: Vec<&dyn Array> = lists.iter().map(|list| *list as &dyn Array).collect();
            let mut order = Vec::new();
            let mut lengths = Vec::with_capacity(call.rows);
            let mut valid = Vec::with_capacity(call.rows);
            for row in 0..call.rows {
                let before = order.len();
                let is_valid = !super::function::any_null(&nulls, row);
                if is_valid {
                    for (at, list) in lists.iter().enumerate() {
                        let offsets = list.value_offsets();
                        order.extend((offsets[row]..offsets[row + 1]).map(|element| (at, element as usize)));
                    }
                }
                lengths.push(order.len() - before);
                valid.push(is_valid);
            }
            let joined = compute::interleave(&values, &order)?;
            super::higher_order::list_array(&DataType::List(item.clone()), joined, &lengths, Some(valid.into()))
        }
        DataType::Binary => {
            let columns = call.arrays()?;
            let columns: Vec<&BinaryArray> = columns.iter().map(|column| column.as_binary::<i32>()).collect();
            let arrays: Vec<&dyn Array> = columns.iter().map(|column| *column as &dyn Array).collect();
            let mut joined = Vec::new();
            rows::bytes(&arrays, |row| {
                joined.clear();
                columns.iter().for_each(|column| joined.extend_from_slice(column.value(row)));
                Ok(Some(joined.clone()))
            })
        }
        _ => {
            let columns = (0..call.len()).map(|at| call.text(at)).collect::<Result<Vec<_>>>()?;
            let arrays: Vec<&dyn Array> = columns.iter().map(|column| column as &dyn Array).collect();
            rows::texts(&arrays, |row| Ok(Some(columns.iter().map(|column| column.value(row)).collect::<String>())))
        }
    }
}

fn concat_ws_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    if types.is_empty() {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "concat_ws() needs a separator"));
    }
    types
        .iter()
        .enumerate()
        .map(|(at, data_type)| match data_type {
            DataType::List(_) if at > 0 => Ok(types::list_of(DataType::Utf8)),
            other if other.is_nested() => {
                Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("concat_ws() cannot join {}", sql_name(other))))
            }
            _ => Ok(DataType::Utf8),
        })
        .collect()
}

fn concat_ws(call: &Call<'_>) -> Result<ArrayRef> {
    let separator = call.text(0)?;
    let columns = call.arrays()?;
    let mut out = StringBuilder::new();
    for row in 0..call.rows {
        if separator.is_null(row) {
            out.append_null();
            continue;
        }
        let mut joined = String::new();
        let mut first = true;
        let mut push = |part: &str| {
            if !std::mem::take(&mut first) {
                joined.push_str(separator.value(row));
            }
            joined.push_str(part);
        };
        for column in columns[1..].iter().filter(|column| column.is_valid(row)) {
            match column.as_list_opt::<i32>() {
                Some(list) => list.value(row).as_string::<i32>().iter().flatten().for_each(&mut push),
                None => push(column.as_string::<i32>().value(row)),
            }
        }
        out.append_value(joined);
    }
    Ok(Arc::new(out.finish()))
}

/// The range of so many of `count` characters from a position, which counts from the end where it is negative.
fn range(count: usize, position: i32, length: i32) -> std::ops::Range<usize> {
    let count = count as i64;
    let start = match i64::from(position) {
        position if position > 0 => position - 1,
        0 => 0,
        position => count + position,
    };
    let end = if length == i32::MAX { count } else { start + i64::from(length) };
    let clamp = |at: i64| at.clamp(0, count) as usize;
    clamp(start)..clamp(end).max(clamp(start))
}

fn part_of(text: &str, position: i32, length: i32) -> &str {
    if text.is_ascii() {
        return &text[range(text.len(), position, length)];
    }
    let range = range(text.chars().count(), position, length);
    let mut places = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    let start = places.nth(range.start).unwrap_or(text.len());
    let end = if range.is_empty() { start } else { places.nth(range.len() - 1).unwrap_or(text.len()) };
    &text[start..end]
}

fn joined<'a>(first: &'a dyn Array, others: &[&'a dyn Array]) -> Vec<&'a dyn Array> {
    std::iter::once(first).chain(others.iter().copied()).collect()
}

/// Parts of the first argument, given their positions and lengths.
fn parts(call: &Call<'_>, with: &[&dyn Array], place: impl Fn(usize) -> (i32, i32)) -> Result<ArrayRef> {
    match values(call, 0)? {
        Values::Texts(text) => rows::texts(&joined(&text, with), |row| {
            let (position, length) = place(row);
            Ok(Some(part_of(text.value(row), position, length)))
        }),
        Values::Bytes(bytes) => rows::bytes(&joined(&bytes, with), |row| {
            let (position, length) = place(row);
            let bytes = bytes.value(row);
            Ok(Some(&bytes[range(bytes.len(), position, length)]))
        }),
    }
}

fn substring(call: &Call<'_>) -> Result<ArrayRef> {
    let position = call.numbers::<Int32Type>(1)?;
    if call.len() == 2 {
        return parts(call, &[&position], |row| (position.value(row), i32::MAX));
    }
    let length = call.numbers::<Int32Type>(2)?;
    parts(call, &[&position, &length], |row| (position.value(row), length.value(row)))
}

/// What stands before the n-th delimiter, or behind the n-th one from the end.
fn before<'a>(text: &'a str, delimiter: &str, count: i32) -> &'a str {
    if delimiter.is_empty() || count == 0 {
        return "";
    }
    let nth = count.unsigned_abs() as usize - 1;
    if count > 0 {
        // The next delimiter may begin inside of the one before, as in Spark.
        let mut from = 0;
        for found in 0..=nth {
            match text[from..].find(delimiter) {
                Some(at) if found == nth => return &text[..from + at],
                Some(at) => from += at + text[from + at..].chars().next().map_or(1, char::len_utf8),
                None => return text,
            }
        }
        text
    } else {
        let mut until = text.len();
        for found in 0..=nth {
            match text[..until].rfind(delimiter) {
                Some(at) if found == nth => return &text[at + delimiter.len()..],
                Some(at) => until = (at + delimiter.len()).saturating_sub(1).max(at),
                None => return text,
            }
            while !text.is_char_boundary(until) {
                until -= 1;
            }
        }
        text
    }
}

fn trim(call: &Call<'_>, text: usize, what: Option<usize>, start: bool, end: bool) -> Result<ArrayRef> {
    let text = call.text(text)?;
    let what = match what {
        Some(what) => call.text(what)?,
        None => StringArray::from(vec![" "; text.len()]),
    };
    rows::texts(&[&text, &what], |row| {
        let what = what.value(row);
        let is_trimmed = |c: char| what.contains(c);
        let mut trimmed = text.value(row);
        if start {
            trimmed = trimmed.trim_start_matches(is_trimmed);
        }
        if end {
            trimmed = trimmed.trim_end_matches(is_trimmed);
        }
        Ok(Some(trimmed))
    })
}

fn pad_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let [of, _, with @ ..] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "padding needs a text and a length"));
    };
    if with.len() > 1 {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "padding needs 2 or 3 arguments"));
    }
    let bytes = matches!(of, DataType::Binary) && with.iter().all(|with| matches!(with, DataType::Binary));
    let wanted = if bytes { DataType::Binary } else { DataType::Utf8 };
    let mut coerced = vec![wanted.clone(), DataType::Int32];
    coerced.extend(with.iter().map(|_| wanted.clone()));
    if let Some(nested) = types.iter().find(|t| t.is_nested()) {
        return Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("{} cannot be padded", sql_name(nested))));
    }
    Ok(coerced)
}

/// Brings a sequence to a length: cut, or filled up with another one.
fn padded<T: Copy>(of: &[T], length: i32, with: &[T], left: bool) -> Vec<T> {
    let length = usize::try_from(length).unwrap_or(0);
    if of.len() >= length || with.is_empty() {
        return of[..of.len().min(length)].to_vec();
    }
    let filling = with.iter().copied().cycle().take(length - of.len());
    if left { filling.chain(of.iter().copied()).collect() } else { of.iter().copied().chain(filling).collect() }
}

fn pad(call: &Call<'_>, left: bool) -> Result<ArrayRef> {
    let length = call.numbers::<Int32Type>(1)?;
    match values(call, 0)? {
        Values::Texts(text) => {
            let with = call.text_or(2, " ")?;
            rows::texts(&[&text, &length, &with], |row| {
                let (text, length, with) = (text.value(row), length.value(row), with.value(row));
                let (text, with): (Vec<char>, Vec<char>) = (text.chars().collect(), with.chars().collect());
                Ok(Some(padded(&text, length, &with, left).into_iter().collect::<String>()))
            })
        }
        Values::Bytes(bytes) => {
            let with = match call.len() {
                2 => BinaryArray::from_iter_values(std::iter::repeat_n([0u8], call.rows)),
                _ => call.array(2)?.as_binary::<i32>().clone(),
            };
            rows::bytes(&[&bytes, &length, &with], |row| {
                Ok(Some(padded(bytes.value(row), length.value(row), with.value(row), left)))
            })
        }
    }
}

/// Words begin at the start and behind a blank.
fn capitals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut starts = true;
    for c in text.to_lowercase().chars() {
        if starts {
            // Java's title case, which is one character for what upper case makes two of.
            let mut upper = c.to_uppercase();
            match (upper.next(), upper.next()) {
                (Some(upper), None) => out.push(upper),
                _ => out.push(c),
            }
        } else {
            out.push(c);
        }
        starts = c == ' ';
    }
    out
}

fn reverse_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [DataType::List(_)] => Ok(types.to_vec()),
        [other] if !other.is_nested() => Ok(vec![DataType::Utf8]),
        [other] => Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("reverse() does not work on {}", sql_name(other)))),
        _ => Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "reverse() needs 1 argument")),
    }
}

fn reverse(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let Some(list) = of.as_list_opt::<i32>() else {
        return rows::text_of(&call.text(0)?, |text| text.chars().rev().collect::<String>());
    };
    let offsets = list.value_offsets();
    let order: datafusion::arrow::array::UInt32Array =
        offsets.windows(2).flat_map(|pair| (pair[0]..pair[1]).rev().map(|at| at as u32)).collect();
    let lengths: Vec<usize> = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect();
    let values = compute::take(list.values(), &order, None)?;
    super::higher_order::list_array(call.returns, values, &lengths, list.nulls().cloned())
}

/// The position of a text in another one from a position on; 0 where it is not there.
fn find(text: &str, search: &str, from: i32) -> i32 {
    let Some(skipped) = usize::try_from(from).ok().and_then(|from| from.checked_sub(1)) else { return 0 };
    let start = match skipped {
        0 => 0,
        skipped => match text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(skipped) {
            Some(start) => start,
            None => return if search.is_empty() { 1 } else { 0 },
        },
    };
    if search.is_empty() {
        return 1;
    }
    match text[start..].find(search) {
        Some(at) => text[..start + at].chars().count() as i32 + 1,
        None => 0,
    }
}

fn locate(call: &Call<'_>) -> Result<ArrayRef> {
    let (search, text) = (call.text(0)?, call.text(1)?);
    if call.len() == 2 {
        let found =
            rows::numbers::<Int32Type>(&[&text, &search], |row| Ok(Some(find(text.value(row), search.value(row), 1))));
        return Ok(Arc::new(found?));
    }
    let from = call.numbers::<Int32Type>(2)?;
    let found: datafusion::arrow::array::Int32Array = (0..call.rows)
        .map(|row| match from.is_valid(row) {
            // Spark: without a position, nothing is found.
            false => Some(0),
            true if text.is_null(row) || search.is_null(row) => None,
            true => Some(find(text.value(row), search.value(row), from.value(row))),
        })
        .collect();
    Ok(Arc::new(found))
}

fn lengths(call: &Call<'_>, of_text: impl Fn(&str) -> usize, of_bytes: impl Fn(&[u8]) -> usize) -> Result<ArrayRef> {
    let lengths = match values(call, 0)? {
        Values::Texts(text) => rows::numbers::<Int32Type>(&[&text], |row| Ok(Some(of_text(text.value(row)) as i32)))?,
        Values::Bytes(bytes) => {
            rows::numbers::<Int32Type>(&[&bytes], |row| Ok(Some(of_bytes(bytes.value(row)) as i32)))?
        }
    };
    Ok(Arc::new(lengths))
}

fn soundex(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let code = |byte: u8| match byte.to_ascii_uppercase() {
        b'B' | b'F' | b'P' | b'V' => b'1',
        b'C' | b'G' | b'J' | b'K' | b'Q' | b'S' | b'X' | b'Z' => b'2',
        b'D' | b'T' => b'3',
        b'L' => b'4',
        b'M' | b'N' => b'5',
        b'R' => b'6',
        // Between two letters of one code these two count as nothing.
        b'H' | b'W' => b'7',
        _ => b'0',
    };
    let Some(first) = bytes.first().filter(|byte| byte.is_ascii_alphabetic()) else { return Cow::Borrowed(text) };
    let mut out = String::from(char::from(first.to_ascii_uppercase()));
    let mut last = code(*first);
    for byte in bytes[1..].iter().filter(|byte| byte.is_ascii_alphabetic()) {
        let code = code(*byte);
        if code == b'7' {
            continue;
        }
        if code != b'0' && code != last {
            out.push(char::from(code));
            if out.len() == 4 {
                break;
            }
        }
        last = code;
    }
    Cow::Owned(format!("{out:0<4}"))
}

fn levenshtein(call: &Call<'_>) -> Result<ArrayRef> {
    let (left, right) = (call.text(0)?, call.text(1)?);
    let limit = if call.len() > 2 { Some(call.numbers::<Int32Type>(2)?) } else { None };
    let mut arrays: Vec<&dyn Array> = vec![&left, &right];
    arrays.extend(limit.iter().map(|limit| limit as &dyn Array));
    let found = rows::numbers::<Int32Type>(&arrays, |row| {
        let distance =
            datafusion::common::utils::datafusion_strsim::levenshtein(left.value(row), right.value(row)) as i32;
        Ok(Some(match &limit {
            Some(limit) if distance > limit.value(row) => -1,
            _ => distance,
        }))
    });
    Ok(Arc::new(found?))
}

fn overlay_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    if !(3..=4).contains(&types.len()) {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "overlay() needs 3 or 4 arguments"));
    }
    let bytes = matches!((&types[0], &types[1]), (DataType::Binary, DataType::Binary));
    let wanted = if bytes { DataType::Binary } else { DataType::Utf8 };
    let mut coerced = vec![wanted.clone(), wanted];
    coerced.extend(types[2..].iter().map(|_| DataType::Int32));
    Ok(coerced)
}

fn overlay(call: &Call<'_>) -> Result<ArrayRef> {
    let position = call.numbers::<Int32Type>(2)?;
    let length = if call.len() > 3 { Some(call.numbers::<Int32Type>(3)?) } else { None };
    let mut with: Vec<&dyn Array> = vec![&position];
    with.extend(length.iter().map(|length| length as &dyn Array));
    let length_of = |row: usize, default: usize| match &length {
        Some(length) if length.value(row) >= 0 => length.value(row),
        _ => default as i32,
    };
    match (values(call, 0)?, values(call, 1)?) {
        (Values::Texts(text), Values::Texts(by)) => {
            with.extend([&text as &dyn Array, &by]);
            rows::texts(&with, |row| {
                let (text, by, position) = (text.value(row), by.value(row), position.value(row));
                let length = length_of(row, by.chars().count());
                let (start, end) = (part_of(text, 1, position.saturating_sub(1)), position.saturating_add(length));
                Ok(Some([start, by, part_of(text, end, i32::MAX)].concat()))
            })
        }
        (Values::Bytes(bytes), Values::Bytes(by)) => {
            with.extend([&bytes as &dyn Array, &by]);
            rows::bytes(&with, |row| {
                let (bytes, by, position) = (bytes.value(row), by.value(row), position.value(row));
                let end = position.saturating_add(length_of(row, by.len()));
                let start = &bytes[range(bytes.len(), 1, position.saturating_sub(1))];
                Ok(Some([start, by, &bytes[range(bytes.len(), end, i32::MAX)]].concat()))
            })
        }
        _ => exec_err!("overlay() needs two texts, or two BINARY"),
    }
}

fn compared(
    call: &Call<'_>,
    texts: impl Fn(&str, &str) -> bool,
    bytes: impl Fn(&[u8], &[u8]) -> bool,
) -> Result<ArrayRef> {
    match (values(call, 0)?, values(call, 1)?) {
        (Values::Texts(left), Values::Texts(right)) => {
            rows::bools(&[&left, &right], |row| Ok(Some(texts(left.value(row), right.value(row)))))
        }
        (Values::Bytes(left), Values::Bytes(right)) => {
            rows::bools(&[&left, &right], |row| Ok(Some(bytes(left.value(row), right.value(row)))))
        }
        _ => exec_err!("a text is compared with BINARY: cast one of them"),
    }
}

fn elt_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let [_, inputs @ ..] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "elt() needs a number and values"));
    };
    if inputs.is_empty() {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "elt() needs at least one value"));
    }
    let bytes = inputs.iter().all(|t| matches!(t, DataType::Binary));
    if let Some(wrong) = inputs.iter().find(|t| t.is_nested()) {
        return Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("elt() does not work on {}", sql_name(wrong))));
    }
    let wanted = if bytes { DataType::Binary } else { DataType::Utf8 };
    Ok(std::iter::once(DataType::Int32).chain(inputs.iter().map(|_| wanted.clone())).collect())
}

fn elt(call: &Call<'_>) -> Result<ArrayRef> {
    let number = call.numbers::<Int32Type>(0)?;
    let columns = call.arrays()?;
    let inputs: Vec<&dyn Array> = columns[1..].iter().map(AsRef::as_ref).collect();
    let nothing = datafusion::arrow::array::new_null_array(call.returns, 1);
    let sources: Vec<&dyn Array> = inputs.iter().copied().chain([nothing.as_ref()]).collect();
    let order: Result<Vec<(usize, usize)>> = (0..call.rows)
        .map(|row| {
            if number.is_null(row) {
                return Ok((inputs.len(), 0));
            }
            match usize::try_from(number.value(row)) {
                Ok(at) if (1..=inputs.len()).contains(&at) => Ok((at - 1, row)),
                _ => Err(failed(
                    "INVALID_ARRAY_INDEX",
                    format!("elt() has {} values, and none of number {}", inputs.len(), number.value(row)),
                )),
            }
        })
        .collect();
    Ok(compute::interleave(&sources, &order?)?)
}
