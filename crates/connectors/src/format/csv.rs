//! CSV, as Spark 4.3's reader decodes it; a record is a line.
//!
//! Lines without a quote are split at the separators. For the others [`Line`] knows what Spark's parser (univocity) makes of quotes,
//! escapes and of quotes where none should be.

use std::str::FromStr;

use arrow::array::Array;
use arrow::datatypes::{Schema, SchemaRef};
use perennial_core::ddl;
use perennial_core::decode::{Decoded, Decoder};
use perennial_core::error::{Error, Result, class};
use perennial_core::records::{Input, Payload, Position};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::columns::{Column, Data};
use super::temporal::Temporal;
use super::text::{excerpt, parse_decimal_text};
use super::time::TimestampReader;
use super::{Batch, CORRUPT_RECORD, Mode, Wanted, rows};

/// Values of one line (Spark's `maxColumns`).
const MAX_COLUMNS: usize = 20_480;

/// Settings of `format: csv`. The defaults are those of Spark's CSV reader, except for `mode`.
///
/// Columns are found by their position: the first value of a line belongs to the first column of the schema. When a query uses all
/// columns, a line with more or fewer values is malformed; when it uses some, values that are missing are NULL, as in Spark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CsvFormat {
    /// What becomes of a malformed record: `dead_letter` (the default), or as in Spark `permissive`, `dropmalformed`, `failfast`.
    pub mode: Mode,
    /// Name of the STRING column that holds malformed records in the mode `permissive`. It works when the schema has such a column.
    pub corrupt_record_column: String,
    /// The first line of each file has the names of the columns and is left out.
    pub header: bool,
    /// With `header`: when false, the names in the header must be those of the schema, in its order; else the query stops.
    pub enforce_schema: bool,
    /// What separates values: one character or several, `\t` for a tab.
    pub sep: String,
    /// The character around values that hold a separator; empty for none.
    pub quote: String,
    /// The character before a quote inside a quoted value; empty for none.
    pub escape: String,
    /// Lines that start with this character are left out; empty for none.
    pub comment: String,
    /// The text that is NULL. A value without any character is always NULL.
    pub null_value: String,
    /// What an empty value in quotes (`""`) stands for.
    pub empty_value: String,
    /// The text of a FLOAT or DOUBLE that is not a number.
    pub nan_value: String,
    /// The text of positive infinity.
    pub positive_inf: String,
    /// The text of negative infinity.
    pub negative_inf: String,
    /// White space before a value is left out.
    pub ignore_leading_white_space: bool,
    /// White space behind a value is left out.
    pub ignore_trailing_white_space: bool,
    /// Time zone of timestamps that name none: `Europe/Paris`, `+02:00`. UTC when not set.
    pub time_zone: Option<String>,
    /// Pattern of TIMESTAMP columns, such as `dd/MM/yyyy HH:mm:ss`. When not set, the ISO forms that Spark knows are read.
    pub timestamp_format: Option<String>,
    /// Pattern of TIMESTAMP_NTZ columns. When not set, the ISO forms without a time zone are read.
    pub timestamp_ntz_format: Option<String>,
    /// Pattern of DATE columns, such as `dd/MM/yyyy`. When not set, `yyyy-MM-dd` and its shorter forms are read.
    pub date_format: Option<String>,
}

impl Default for CsvFormat {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            corrupt_record_column: CORRUPT_RECORD.to_owned(),
            header: false,
            enforce_schema: true,
            sep: ",".to_owned(),
            quote: "\"".to_owned(),
            escape: "\\".to_owned(),
            comment: String::new(),
            null_value: String::new(),
            empty_value: String::new(),
            nan_value: "NaN".to_owned(),
            positive_inf: "Inf".to_owned(),
            negative_inf: "-Inf".to_owned(),
            ignore_leading_white_space: false,
            ignore_trailing_white_space: false,
            time_zone: None,
            timestamp_format: None,
            timestamp_ntz_format: None,
            date_format: None,
        }
    }
}

/// The characters that structure a line.
#[derive(Debug)]
struct Dialect {
    separator: Vec<u8>,
    quote: Option<u8>,
    escape: Option<u8>,
    comment: Option<u8>,
    trim_start: bool,
    trim_end: bool,
}

impl Dialect {
    fn new(settings: &CsvFormat) -> Result<Self> {
        let wrong = |what: String| Error::new(class::CONFIG_INVALID, what);
        let separator = match settings.sep.as_str() {
            "\\t" => b"\t".to_vec(),
            "" => {
                return Err(wrong(
                    "`sep` is empty; write the character that separates values, for example `;`".to_owned(),
                ));
            }
            other if other.contains(['\n', '\r']) => return Err(wrong("`sep` cannot be a line feed".to_owned())),
            other => other.as_bytes().to_vec(),
        };
        let character = |key: &str, text: &str| match text.as_bytes() {
            [] => Ok(None),
            [byte] if byte.is_ascii() => Ok(Some(*byte)),
            _ => Err(wrong(format!("`{key}: {text}` must be one ASCII character, or empty for none"))),
        };
        let quote = character("quote", &settings.quote)?;
        if quote.is_some_and(|quote| separator.contains(&quote)) {
            return Err(wrong(format!("`quote` and `sep` are both `{}`", settings.quote)));
        }
        Ok(Self {
            separator,
            quote,
            escape: character("escape", &settings.escape)?,
            comment: character("comment", &settings.comment)?,
            trim_start: settings.ignore_leading_white_space,
            trim_end: settings.ignore_trailing_white_space,
        })
    }

    /// Whether the line holds no record.
    fn skips(&self, line: &[u8]) -> bool {
        line.iter().all(|byte| *byte <= b' ') || (self.comment.is_some() && line.first() == self.comment.as_ref())
    }
}

/// Decodes CSV records.
#[derive(Debug)]
pub(super) struct CsvDecoder {
    settings: CsvFormat,
    dialect: Dialect,
    wanted: Wanted,
    /// For each wanted column its place in the line.
    places: Vec<usize>,
    /// Names of all columns in the line.
    names: Vec<String>,
    temporal: Temporal,
}

impl CsvDecoder {
    pub(super) fn new(settings: &CsvFormat, declared: &Schema, columns: &[usize]) -> Result<Self> {
        let wanted = Wanted::new(declared, columns, &settings.corrupt_record_column)?;
        if let Some(field) = wanted.fields.iter().find(|field| field.data_type().is_nested()) {
            let data_type = ddl::simple_type(field.data_type()).to_uppercase();
            return Err(Error::new(
                class::CONFIG_INVALID,
                format!(
                    "column `{}` is {data_type}, which CSV cannot hold: make it a STRING and use `from_json`",
                    field.name()
                ),
            ));
        }
        // The column for malformed records has no place in the line.
        let in_line: Vec<usize> = (0..declared.fields().len())
            .filter(|i| declared.field(*i).name() != &settings.corrupt_record_column)
            .collect();
        let place = |index: &usize| in_line.iter().position(|i| i == index);
        let places: Vec<usize> = wanted.declared.iter().filter_map(place).collect();
        let temporal = Temporal::new(
            settings.time_zone.as_deref(),
            settings.timestamp_format.as_deref(),
            settings.timestamp_ntz_format.as_deref(),
            settings.date_format.as_deref(),
            false,
        )?;
        let names = in_line.iter().map(|index| declared.field(*index).name().clone()).collect();
        Ok(Self { settings: settings.clone(), dialect: Dialect::new(settings)?, wanted, places, names, temporal })
    }

    /// Adds the row of a line, or whatever becomes of it.
    fn line(&self, text: &[u8], record: usize, state: &mut State, batch: &mut Batch) -> Result<()> {
        if std::str::from_utf8(text).is_ok() {
            return self.valid_line(text, text, record, state, batch);
        }
        let lossy = String::from_utf8_lossy(text);
        self.valid_line(lossy.as_bytes(), text, record, state, batch)
    }

    fn valid_line(&self, line: &[u8], raw: &[u8], record: usize, state: &mut State, batch: &mut Batch) -> Result<()> {
        state.line.split(line, &self.dialect);
        let count = state.line.count();
        let mut problem = None;
        if self.places.len() == self.names.len() && !self.names.is_empty() && count != self.names.len() {
            problem = Some(format!("{count} values instead of {}", self.names.len()));
        }
        if count > MAX_COLUMNS {
            problem = Some(format!("more than {MAX_COLUMNS} values"));
        }
        for ((column, place), field) in batch.columns.iter_mut().zip(&self.places).zip(&self.wanted.fields) {
            let value = match state.line.value(line, *place) {
                Some(Part::Text(text)) => text,
                Some(Part::Empty) => self.settings.empty_value.as_bytes(),
                Some(Part::Null) | None => {
                    column.push_null();
                    continue;
                }
            };
            if value == self.settings.null_value.as_bytes() {
                column.push_null();
            } else if self.push(column, value, &mut state.timestamps).is_none() {
                column.push_null();
                problem.get_or_insert_with(|| {
                    let expected = ddl::simple_type(field.data_type()).to_uppercase();
                    format!("column `{}` should be {expected}, found \"{}\"", field.name(), excerpt(value))
                });
            }
        }
        match problem {
            None => batch.row_done(record),
            Some(problem) => batch.row_malformed(record, raw, problem)?,
        }
        Ok(())
    }

    /// Appends a value; `None` and nothing appended where it is not of the column's type.
    fn push(&self, column: &mut Column, bytes: &[u8], timestamps: &mut TimestampReader) -> Option<()> {
        let text = || std::str::from_utf8(bytes).ok();
        match &mut column.data {
            Data::Boolean(values) => {
                let value = bytes.eq_ignore_ascii_case(b"true");
                if !value && !bytes.eq_ignore_ascii_case(b"false") {
                    return None;
                }
                values.append(value);
            }
            Data::Int8(values) => values.push(text()?.parse().ok()?),
            Data::Int16(values) => values.push(text()?.parse().ok()?),
            Data::Int32(values) => values.push(text()?.parse().ok()?),
            Data::Int64(values) => values.push(text()?.parse().ok()?),
            Data::Float32(values) => values.push(self.float(text()?)?),
            Data::Float64(values) => values.push(self.float(text()?)?),
            Data::Decimal { values, precision, scale } => values.push(parse_decimal_text(text()?, *precision, *scale)?),
            Data::Date(values) => values.push(self.temporal.date(text()?)?),
            Data::Timestamp { values, .. } => {
                let plain = if self.temporal.timestamp_is_plain() { timestamps.read(bytes) } else { None };
                values.push(plain.or_else(|| self.temporal.timestamp(text()?))?);
            }
            Data::TimestampNtz(values) => values.push(self.temporal.timestamp_ntz(text()?)?),
            Data::Text(values) | Data::Binary(values) => {
                values.bytes.extend_from_slice(bytes);
                values.end();
            }
            Data::List { .. } | Data::Map { .. } | Data::Struct { .. } => return None,
        }
        column.nulls.append_non_null();
        Some(())
    }

    /// Reads a number as Java does: with white space around it and a type letter behind it, but without hexadecimal forms.
    fn float<F: FromStr + From<f32>>(&self, text: &str) -> Option<F> {
        match text {
            text if text == self.settings.nan_value => return Some(f32::NAN.into()),
            text if text == self.settings.negative_inf => return Some(f32::NEG_INFINITY.into()),
            text if text == self.settings.positive_inf => return Some(f32::INFINITY.into()),
            _ => {}
        }
        let text = text.trim_matches(|c: char| c <= ' ');
        match text {
            "NaN" | "+NaN" | "-NaN" => return Some(f32::NAN.into()),
            "Infinity" | "+Infinity" => return Some(f32::INFINITY.into()),
            "-Infinity" => return Some(f32::NEG_INFINITY.into()),
            _ => {}
        }
        let number = text.strip_suffix(['d', 'D', 'f', 'F']).unwrap_or(text);
        // Rust knows other words for infinity.
        let plain = number.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
        if plain { number.parse().ok() } else { None }
    }

    /// Whether the header has the names of the schema.
    fn check_header(&self, header: &[u8], path: &str) -> Result<()> {
        if self.settings.enforce_schema {
            return Ok(());
        }
        let mut line = Line::default();
        line.split(header, &self.dialect);
        let name = |place: usize| match line.value(header, place) {
            Some(Part::Text(text)) => String::from_utf8_lossy(text).into_owned(),
            _ => String::new(),
        };
        let found: Vec<String> = (0..line.count()).map(name).collect();
        let same = found.len() == self.names.len()
            && found.iter().zip(&self.names).all(|(a, b)| a.to_lowercase() == b.to_lowercase());
        if same {
            return Ok(());
        }
        Err(Error::new(
            class::SCHEMA,
            format!(
                "the header of {path} does not have the columns of the schema: it has {}, the schema {}",
                found.join(", "),
                self.names.join(", ")
            ),
        ))
    }
}

/// What is kept from line to line.
#[derive(Default)]
struct State {
    line: Line,
    timestamps: TimestampReader,
}

impl Decoder for CsvDecoder {
    fn schema(&self) -> SchemaRef {
        self.wanted.schema.clone()
    }

    fn decode(&self, input: Input) -> Result<Decoded> {
        let block = match input {
            Input::Records(block) => block,
            Input::Rows(rows, _) => return rows::conform(&rows, &self.wanted.schema),
        };
        let mut state = State::default();
        let expected_rows = match &block.payload {
            Payload::Lines(text) => memchr::memchr_iter(b'\n', text).count() + 1,
            Payload::Values(values) => values.len(),
        };
        let mut batch = Batch::new(&self.wanted, self.settings.mode, &block, expected_rows)?;
        match &block.payload {
            Payload::Lines(text) => {
                let path = match &block.position {
                    Position::File { path, offset: 0 } => Some(path),
                    _ => None,
                };
                let mut header = path.filter(|_| self.settings.header);
                // The mark that some programs put at the start of a file.
                let mut start = if path.is_some() && text.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
                while start < text.len() {
                    let end = memchr::memchr(b'\n', &text[start..]).map_or(text.len(), |length| start + length);
                    let line = &text[start..end];
                    let line = line.strip_suffix(b"\r").unwrap_or(line);
                    if !self.dialect.skips(line) {
                        match header.take() {
                            Some(path) => self.check_header(line, path)?,
                            None => self.line(line, start, &mut state, &mut batch)?,
                        }
                    }
                    start = end + 1;
                }
            }
            Payload::Values(values) => {
                for record in 0..values.len() {
                    let value = values.value(record);
                    let value = value.strip_suffix(b"\n").unwrap_or(value);
                    let value = value.strip_suffix(b"\r").unwrap_or(value);
                    if values.is_null(record) {
                        batch.empty(record, "the record has no value (a tombstone)")?;
                    } else if self.dialect.skips(value) {
                        batch.empty(record, "the record is empty")?;
                    } else {
                        self.line(value, record, &mut state, &mut batch)?;
                    }
                }
            }
        }
        batch.finish()
    }
}

/// A value of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part<'a> {
    Text(&'a [u8]),
    /// Quotes with nothing between them.
    Empty,
    /// Nothing at all.
    Null,
}

/// Where a value is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// From and to, in the line.
    Line(usize, usize),
    /// From and to, in the unescaped text.
    Unescaped(usize, usize),
    Empty,
    Null,
}

/// A line, split into its values.
#[derive(Debug, Default)]
struct Line {
    places: Vec<Place>,
    /// The values that are not in the line as they are.
    unescaped: Vec<u8>,
}

impl Line {
    fn count(&self) -> usize {
        self.places.len()
    }

    fn value<'a>(&'a self, line: &'a [u8], index: usize) -> Option<Part<'a>> {
        Some(match *self.places.get(index)? {
            Place::Line(from, to) => Part::Text(&line[from..to]),
            Place::Unescaped(from, to) => Part::Text(&self.unescaped[from..to]),
            Place::Empty => Part::Empty,
            Place::Null => Part::Null,
        })
    }

    fn split(&mut self, line: &[u8], dialect: &Dialect) {
        self.places.clear();
        self.unescaped.clear();
        let mut at = 0;
        loop {
            if dialect.trim_start {
                while line.get(at).is_some_and(|b| *b <= b' ') && !line[at..].starts_with(&dialect.separator) {
                    at += 1;
                }
            }
            let end = if dialect.quote.is_some() && line.get(at) == dialect.quote.as_ref() {
                self.quoted(line, at, dialect)
            } else {
                let end = find_separator(line, at, dialect);
                self.add_plain(line, at, end, dialect);
                end
            };
            if end >= line.len() {
                return;
            }
            at = end + dialect.separator.len();
        }
    }

    fn add_plain(&mut self, line: &[u8], from: usize, to: usize, dialect: &Dialect) {
        let mut to = to;
        while dialect.trim_end && to > from && line[to - 1] <= b' ' {
            to -= 1;
        }
        self.places.push(if from == to { Place::Null } else { Place::Line(from, to) });
    }

    /// Splits off the value whose opening quote is at `open`; gives the place of the separator behind it.
    ///
    /// A quote that is not followed by a separator (or white space and a separator) is no closing quote. Where another character
    /// follows it, the whole value is taken as it is, with its quotes, up to the next separator.
    fn quoted(&mut self, line: &[u8], open: usize, dialect: &Dialect) -> usize {
        let quote = line[open];
        let escape = dialect.escape;
        let start = self.unescaped.len();
        let is_special = |byte: u8| byte == quote || Some(byte) == escape;
        let mut at = open + 1;
        // The byte before `at` as far as it still means something: a quote that may close, an escape that may escape.
        let mut before: Option<u8> = None;
        loop {
            let Some(byte) = line.get(at).copied() else {
                // A quote that opens a value with nothing behind it is text.
                if at == open + 1 {
                    self.unescaped.push(quote);
                }
                break;
            };
            if before == Some(quote) && (byte <= b' ' || line[at..].starts_with(&dialect.separator)) {
                let mut end = at;
                while line.get(end).is_some_and(|b| *b <= b' ') && !line[end..].starts_with(&dialect.separator) {
                    end += 1;
                }
                if end == line.len() || line[end..].starts_with(&dialect.separator) {
                    at = end;
                    break;
                }
                return self.unquoted(line, open, start, end + 1, at, dialect);
            }
            if !is_special(byte) {
                if before == Some(quote) {
                    return self.unquoted(line, open, start, at + 1, at, dialect);
                }
                if before.is_some() && before == escape {
                    self.unescaped.extend(before);
                }
                let length = line[at..].iter().take_while(|b| !is_special(**b)).count();
                self.unescaped.extend_from_slice(&line[at..at + length]);
                before = line.get(at + length).copied();
                at += length + 1;
                if before.is_none() {
                    at = line.len();
                    break;
                }
                continue;
            }
            // A quote or an escape.
            if escape != Some(quote) && Some(byte) == escape && before == escape {
                self.unescaped.push(byte);
                before = None;
            } else if before.is_some() && before == escape {
                if byte == quote {
                    self.unescaped.push(quote);
                    before = None;
                } else {
                    self.unescaped.extend(before);
                    before = Some(byte);
                }
            } else if before == Some(quote) {
                // Either a second quote, or an escape behind one that closes nothing.
                self.unescaped.push(quote);
                before = Some(byte);
            } else {
                before = Some(byte);
            }
            at += 1;
        }
        let end = self.unescaped.len();
        self.places.push(if start == end { Place::Empty } else { Place::Unescaped(start, end) });
        at.min(line.len())
    }

    /// Takes back the quotes: the value is what was read so far, with a quote before it and a quote behind it, then the text from
    /// `resume_from` on up to the separator.
    fn unquoted(
        &mut self,
        line: &[u8],
        open: usize,
        start: usize,
        search_from: usize,
        resume_from: usize,
        dialect: &Dialect,
    ) -> usize {
        let quote = line[open];
        let end = find_separator(line, search_from.min(line.len()), dialect);
        self.unescaped.insert(start, quote);
        self.unescaped.push(quote);
        self.unescaped.extend_from_slice(&line[resume_from..end]);
        while dialect.trim_end && self.unescaped.len() > start && self.unescaped.last().is_some_and(|b| *b <= b' ') {
            self.unescaped.pop();
        }
        self.places.push(Place::Unescaped(start, self.unescaped.len()));
        end
    }
}

/// Where the next separator is; the end of the line when there is none.
#[inline]
fn find_separator(line: &[u8], from: usize, dialect: &Dialect) -> usize {
    match &dialect.separator[..] {
        [byte] => memchr::memchr(*byte, &line[from..]).map_or(line.len(), |length| from + length),
        several => memchr::memmem::find(&line[from..], several).map_or(line.len(), |length| from + length),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::recorded::{Case, decode_lines, decode_values, lines_block, rows};
    use super::super::{Format, decoder};
    use super::*;

    fn csv_decoder(settings: serde_json::Value, schema: &str) -> Result<Arc<dyn Decoder>> {
        let format: Format = serde_json::from_value(json!({ "csv": settings })).unwrap();
        let schema = ddl::parse(schema).unwrap();
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        decoder(&format, &schema, &all)
    }

    fn bytes(lines: &[&str]) -> Vec<Vec<u8>> {
        lines.iter().map(|line| line.as_bytes().to_vec()).collect()
    }

    #[test]
    fn records_decode_as_in_spark() {
        Case::all(include_str!("recorded/csv.json")).iter().for_each(Case::check);
    }

    #[test]
    fn malformed_records_are_rejected_with_a_reason() {
        let decoder = csv_decoder(json!({}), "a INT, b STRING").unwrap();
        let decoded = decode_lines(decoder.as_ref(), &bytes(&["1,x", "y,z", "2", "3,a,b", "", "4,\"q\""])).unwrap();
        assert_eq!(rows(&decoded.rows), [json!({"a":1,"b":"x"}), json!({"a":4,"b":"q"})]);
        assert_eq!(decoded.origin.records.as_deref(), Some(&[0, 17][..]));
        let rejected: Vec<_> = decoded.rejected.iter().map(|r| (r.record, r.reason.as_str())).collect();
        let expected =
            [(4, "column `a` should be INT, found \"y\""), (8, "1 values instead of 2"), (10, "3 values instead of 2")];
        assert_eq!(rejected, expected);
        let error = decode_lines(csv_decoder(json!({"mode":"failfast"}), "a INT").unwrap().as_ref(), &bytes(&["x"]));
        assert!(error.unwrap_err().message().starts_with("in.txt, byte 0: column `a` should be INT, found \"x\""));
    }

    #[test]
    fn only_the_start_of_a_file_has_a_header() {
        let decoder = csv_decoder(json!({ "header": true }), "a INT, b INT").unwrap();
        let block = lines_block(&bytes(&["\u{feff}a,b", "1,2"]));
        let decoded = decoder.decode(Input::Records(block.clone())).unwrap();
        assert_eq!(rows(&decoded.rows), [json!({"a":1,"b":2})]);
        let further = Position::File { path: "in.txt".into(), offset: 100 };
        let block = perennial_core::records::RecordBlock { position: further, ..block };
        let decoded = decoder.decode(Input::Records(block)).unwrap();
        assert_eq!((decoded.rows.num_rows(), decoded.rejected.len()), (1, 1));

        let strict = csv_decoder(json!({ "header": true, "enforce_schema": false }), "a INT, b INT").unwrap();
        assert_eq!(decode_lines(strict.as_ref(), &bytes(&["A,b", "1,2"])).unwrap().rows.num_rows(), 1);
        let error = decode_lines(strict.as_ref(), &bytes(&["b,a", "1,2"])).unwrap_err();
        assert_eq!(error.class(), class::SCHEMA);
        assert!(error.message().contains("it has b, a, the schema a, b"), "{error}");
    }

    #[test]
    fn single_values_are_records_of_their_own() {
        let decoder = csv_decoder(json!({ "header": true }), "a INT, b STRING").unwrap();
        let decoded = decode_values(decoder.as_ref(), &[Some(b"1,x"), Some(b"2,y\r\n"), None, Some(b" ")]).unwrap();
        assert_eq!(rows(&decoded.rows), [json!({"a":1,"b":"x"}), json!({"a":2,"b":"y"})]);
        assert_eq!(decoded.origin.records, None);
        let reasons: Vec<_> = decoded.rejected.iter().map(|r| r.reason.as_str()).collect();
        assert_eq!(reasons, ["the record has no value (a tombstone)", "the record is empty"]);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        for (settings, schema, message) in [
            (json!({}), "a ARRAY<INT>", "column `a` is ARRAY<INT>, which CSV cannot hold"),
            (json!({ "sep": "" }), "a INT", "`sep` is empty"),
            (json!({ "sep": "\n" }), "a INT", "`sep` cannot be a line feed"),
            (json!({ "quote": "''" }), "a INT", "`quote: ''` must be one ASCII character"),
            (json!({ "escape": "é" }), "a INT", "`escape: é` must be one ASCII character"),
            (json!({ "sep": "|", "quote": "|" }), "a INT", "`quote` and `sep` are both `|`"),
        ] {
            let error = csv_decoder(settings, schema).unwrap_err();
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.message().contains(message), "{error}");
        }
    }
}
