//! `from_csv`, `to_csv` and `schema_of_csv`.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringArray, StringBuilder, StructArray};
use datafusion::arrow::datatypes::{DataType, Date32Type, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue, exec_err};

use super::cast::read::{date, timestamp};
use super::cast::show;
use super::function::{Args, Call, Spec};
use super::json::{self, Outcome, Settings, Times, finish_rows, option, options, read_cells, schema_of};
use super::rows;
use super::types::{mismatch, sql_name};

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("from_csv", Args::Custom(json::from_args), from_type, from_csv),
    &Spec::new("to_csv", Args::Custom(to_args), |_, _, _| Ok(DataType::Utf8), to_csv),
    &Spec::new("schema_of_csv", Args::Custom(json::from_args), json::constant_text, |call| {
        let text = call.text(0)?;
        let syntax = Syntax::of(&options(call, 1)?);
        rows::texts(&[&text], |row| {
            let cells = syntax.cells(text.value(row));
            let fields: Vec<String> = cells
                .iter()
                .enumerate()
                .map(|(at, cell)| format!("_c{at}: {}", cell.as_deref().map_or("STRING", inferred)))
                .collect();
            Ok(Some(format!("STRUCT<{}>", fields.join(", "))))
        })
    }),
];

fn inferred(cell: &str) -> &'static str {
    match cell {
        cell if cell.parse::<i32>().is_ok() => "INT",
        cell if cell.parse::<i64>().is_ok() => "BIGINT",
        cell if cell.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && cell.parse::<f64>().is_ok() => {
            "DOUBLE"
        }
        cell if cell.eq_ignore_ascii_case("true") || cell.eq_ignore_ascii_case("false") => "BOOLEAN",
        cell if cell.len() == 10 && date(cell).is_some() => "DATE",
        cell if cell.len() > 10 && timestamp(cell, None).is_some() => "TIMESTAMP",
        _ => "STRING",
    }
}

/// How cells are written.
struct Syntax {
    separator: String,
    quote: char,
    escape: char,
    null: String,
    trim_start: bool,
    trim_end: bool,
}

impl Syntax {
    fn of(options: &[(String, String)]) -> Self {
        let character = |name, default| option(options, name).and_then(|text| text.chars().next()).unwrap_or(default);
        Self {
            separator: option(options, "sep").or_else(|| option(options, "delimiter")).unwrap_or(",").to_owned(),
            quote: character("quote", '"'),
            escape: character("escape", '\\'),
            null: option(options, "nullValue").unwrap_or("").to_owned(),
            trim_start: json::flag(options, "ignoreLeadingWhiteSpace", false),
            trim_end: json::flag(options, "ignoreTrailingWhiteSpace", false),
        }
    }

    /// The cells of a line; NULL for empty ones.
    fn cells(&self, line: &str) -> Vec<Option<String>> {
        let mut cells = Vec::new();
        let mut rest = line;
        loop {
            let mut cell = String::new();
            let quoted = rest.starts_with(self.quote);
            if quoted {
                let mut chars = rest[self.quote.len_utf8()..].chars();
                while let Some(c) = chars.next() {
                    let next = chars.clone().next();
                    let is_quoted = next == Some(self.quote) && (c == self.quote || c == self.escape);
                    if is_quoted || c == self.escape && next == Some(self.escape) {
                        cell.extend(chars.next());
                    } else if c == self.quote {
                        break;
                    } else {
                        cell.push(c);
                    }
                }
                rest = chars.as_str();
            }
            let end = rest.find(&self.separator);
            if !quoted {
                cell.push_str(&rest[..end.unwrap_or(rest.len())]);
                if self.trim_start {
                    cell = cell.trim_start().to_owned();
                }
                if self.trim_end {
                    cell.truncate(cell.trim_end().len());
                }
            }
            cells.push((quoted || cell != self.null).then_some(cell));
            match end {
                Some(end) => rest = &rest[end + self.separator.len()..],
                None => return cells,
            }
        }
    }

    fn write(&self, cell: &str, out: &mut String) {
        let cell = cell.trim();
        let special = |c: char| c == self.quote || c == '\n' || c == '\r';
        if cell.is_empty() || cell.contains(&self.separator) || cell.contains(special) {
            out.push(self.quote);
            for c in cell.chars() {
                if c == self.quote {
                    out.push(self.escape);
                }
                out.push(c);
            }
            out.push(self.quote);
        } else {
            out.push_str(cell);
        }
    }
}

fn from_type(_: &[DataType], constants: &[Option<&ScalarValue>], zone: &Arc<str>) -> Result<DataType> {
    match schema_of(constants.get(1).copied().flatten(), zone)? {
        found @ DataType::Struct(_) => Ok(found),
        other => Err(mismatch("INVALID_CSV_SCHEMA", format!("from_csv() gives a STRUCT, not {}", sql_name(&other)))),
    }
}

fn from_csv(call: &Call<'_>) -> Result<ArrayRef> {
    let texts = call.text(0)?;
    let options = options(call, 2)?;
    let settings = Settings::of(&options, call.tz()?)?;
    let syntax = Syntax::of(&options);
    let DataType::Struct(fields) = call.returns else { return exec_err!("from_csv() makes a struct") };
    let corrupt = option(&options, "columnNameOfCorruptRecord").unwrap_or("_corrupt_record");
    let cells: Vec<Vec<Option<String>>> =
        texts.iter().map(|text| text.map(|text| syntax.cells(text)).unwrap_or_default()).collect();
    let width = fields.iter().filter(|field| field.name() != corrupt).count();
    // A line with other than as many cells does not fit, and has those that it has.
    let mut outcomes: Vec<Outcome> = cells
        .iter()
        .map(|cells| if cells.is_empty() || cells.len() == width { Outcome::Fine } else { Outcome::Partly })
        .collect();
    let mut columns = Vec::with_capacity(fields.len());
    let mut at = 0;
    for field in fields {
        if field.name() == corrupt {
            columns.push(datafusion::arrow::array::new_null_array(field.data_type(), texts.len()));
            continue;
        }
        let of_field: StringArray = cells
            .iter()
            .map(|cells| cells.get(at).and_then(Option::as_deref))
            .map(blank_is_null(field.data_type()))
            .collect();
        let (column, of_column) = read_cells(&of_field, field.data_type(), &settings)?;
        for (outcome, inner) in outcomes.iter_mut().zip(of_column) {
            if inner != Outcome::Fine {
                *outcome = Outcome::Partly;
            }
        }
        columns.push(column);
        at += 1;
    }
    let structs = StructArray::try_new_with_length(fields.clone(), columns, texts.nulls().cloned(), texts.len())?;
    finish_rows(&(Arc::new(structs) as ArrayRef), outcomes, &texts, &settings, |row| texts.is_null(row))
}

/// Empty cells are NULL, but for text between quotes.
fn blank_is_null(data_type: &DataType) -> impl Fn(Option<&str>) -> Option<&str> {
    let is_text = *data_type == DataType::Utf8;
    move |cell| cell.filter(|cell| is_text || !cell.is_empty())
}

fn to_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [DataType::Struct(_)] | [DataType::Struct(_), _] => Ok(types.to_vec()),
        [other, ..] => {
            Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("to_csv() needs a STRUCT, not {}", sql_name(other))))
        }
        [] => Err(crate::error::refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "to_csv() needs a struct")),
    }
}

fn to_csv(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let options = options(call, 1)?;
    let syntax = Syntax::of(&options);
    let times = Times::of(&options, call.zone)?;
    let columns = of
        .as_struct()
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Timestamp(_, zone) => {
                let micros = column.as_primitive::<TimestampMicrosecondType>();
                let mut out = StringBuilder::new();
                for micros in micros.iter() {
                    out.append_option(micros.map(|micros| {
                        let mut text = String::new();
                        times.moment(micros, zone.is_some(), &mut text);
                        text
                    }));
                }
                Ok(out.finish())
            }
            DataType::Date32 => {
                let mut out = StringBuilder::new();
                for days in column.as_primitive::<Date32Type>().iter() {
                    out.append_option(days.map(|days| {
                        let mut text = String::new();
                        times.day(days, &mut text);
                        text
                    }));
                }
                Ok(out.finish())
            }
            _ => show::text(column),
        })
        .collect::<Result<Vec<_>>>()?;
    rows::texts(&[&of], |row| {
        let mut out = String::new();
        for (at, column) in columns.iter().enumerate() {
            if at > 0 {
                out.push_str(&syntax.separator);
            }
            if column.is_valid(row) {
                syntax.write(column.value(row), &mut out);
            } else {
                out.push_str(&syntax.null);
            }
        }
        Ok(Some(out))
    })
}
