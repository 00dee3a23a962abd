//! JSON, as Spark 4.3's reader decodes it.
//!
//! Ordinary records take the fast path ([`fast`]): from bytes into columns in one pass. Whatever is odd about a record, the fast path
//! gives up on it, its traces are removed, and the exact path ([`exact`], on the tokens of [`tokens`]) decides what becomes of it. The
//! tests hold the two against each other.

use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::Array;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use perennial_core::ddl;
use perennial_core::decode::{Decoded, Decoder};
use perennial_core::error::{Error, Result, class};
use perennial_core::records::{Input, Payload, RecordBlock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::temporal::Temporal;
use super::{Batch, CORRUPT_RECORD, Mode, Wanted, rows};
use exact::Exact;
use fast::{Fast, Shape};

mod exact;
mod fast;
mod tokens;

/// Settings of `format: json`. The defaults are those of Spark's JSON reader, except for `mode`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JsonFormat {
    /// What becomes of a malformed record: `dead_letter` (the default), or as in Spark `permissive`, `dropmalformed`, `failfast`.
    pub mode: Mode,
    /// Name of the STRING column that holds malformed records in the mode `permissive`. It works when the schema has such a column.
    pub corrupt_record_column: String,
    /// Time zone of timestamps that name none: `Europe/Paris`, `+02:00`. UTC when not set.
    pub time_zone: Option<String>,
    /// Pattern of TIMESTAMP columns, such as `dd/MM/yyyy HH:mm:ss`. When not set, the ISO forms that Spark knows are read.
    pub timestamp_format: Option<String>,
    /// Pattern of TIMESTAMP_NTZ columns. When not set, the ISO forms without a time zone are read.
    pub timestamp_ntz_format: Option<String>,
    /// Pattern of DATE columns, such as `dd/MM/yyyy`. When not set, `yyyy-MM-dd` and its shorter forms are read.
    pub date_format: Option<String>,
    /// Comments (`// …`, `/* … */`) are white space.
    pub allow_comments: bool,
    /// Field names may stand without quotes.
    pub allow_unquoted_field_names: bool,
    /// Names and strings may stand in single quotes.
    pub allow_single_quotes: bool,
    /// Numbers may have zeros in front.
    pub allow_numeric_leading_zeros: bool,
    /// `NaN`, `Infinity`, `-Infinity`, `+INF`, `-INF` are numbers, also in quotes.
    pub allow_non_numeric_numbers: bool,
    /// Any character may stand behind a backslash.
    pub allow_backslash_escaping_any_character: bool,
    /// Strings may hold control characters as they are.
    pub allow_unquoted_control_chars: bool,
}

impl Default for JsonFormat {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            corrupt_record_column: CORRUPT_RECORD.to_owned(),
            time_zone: None,
            timestamp_format: None,
            timestamp_ntz_format: None,
            date_format: None,
            allow_comments: false,
            allow_unquoted_field_names: false,
            allow_single_quotes: true,
            allow_numeric_leading_zeros: false,
            allow_non_numeric_numbers: true,
            allow_backslash_escaping_any_character: false,
            allow_unquoted_control_chars: false,
        }
    }
}

/// Decodes JSON records.
#[derive(Debug)]
pub(super) struct JsonDecoder {
    settings: JsonFormat,
    wanted: Wanted,
    temporal: Temporal,
    /// Bytes per row of the last block, to make the columns large enough at once.
    bytes_per_row: AtomicUsize,
}

impl JsonDecoder {
    pub(super) fn new(settings: &JsonFormat, declared: &Schema, columns: &[usize]) -> Result<Self> {
        let wanted = Wanted::new(declared, columns, &settings.corrupt_record_column)?;
        for field in &wanted.fields {
            check_maps(field.data_type(), field.name())?;
        }
        let temporal = Temporal::new(
            settings.time_zone.as_deref(),
            settings.timestamp_format.as_deref(),
            settings.timestamp_ntz_format.as_deref(),
            settings.date_format.as_deref(),
            true,
        )?;
        Ok(Self { settings: settings.clone(), wanted, temporal, bytes_per_row: AtomicUsize::new(100) })
    }

    /// Lines: the fast path finds the end of a record by itself.
    fn lines(&self, text: &[u8], batch: &mut Batch) -> Result<()> {
        let valid = simdutf8::basic::from_utf8(text).is_ok();
        let exact = Exact { fields: &self.wanted.fields, options: &self.settings, temporal: &self.temporal };
        let mut shape = Shape::new(self.wanted.fields.iter().map(AsRef::as_ref));
        let mut fast = Fast::new(true, &self.temporal);
        let mut start = 0;
        while start < text.len() {
            let row = batch.next_row();
            if valid || std::str::from_utf8(&text[start..end_of_line(text, start)]).is_ok() {
                fast.seek(text, start);
                if fast.record(&mut shape, &mut batch.columns, row).is_some() {
                    batch.row_done(start);
                    // What stands behind the object is ignored.
                    start = end_of_line(text, fast.at) + 1;
                    continue;
                }
                batch.row_undone();
            }
            let end = end_of_line(text, start);
            let line = &text[start..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let outcome = exact.record(line);
            match outcome.problem {
                Some(problem) => batch.malformed(start, line, outcome.rows, problem)?,
                None => batch.add_rows(start, outcome.rows, None)?,
            }
            start = end + 1;
        }
        Ok(())
    }

    fn values(&self, values: &arrow::array::BinaryArray, batch: &mut Batch) -> Result<()> {
        let valid = simdutf8::basic::from_utf8(values.value_data()).is_ok();
        let exact = Exact { fields: &self.wanted.fields, options: &self.settings, temporal: &self.temporal };
        let mut shape = Shape::new(self.wanted.fields.iter().map(AsRef::as_ref));
        let mut fast = Fast::new(false, &self.temporal);
        for record in 0..values.len() {
            if values.is_null(record) {
                batch.empty(record, "the record has no value (a tombstone)")?;
                continue;
            }
            let value = values.value(record);
            let row = batch.next_row();
            // Where all values together are valid, a character that is cut in two can only be outside of the object.
            if valid || std::str::from_utf8(value).is_ok() {
                fast.seek(value, 0);
                if fast.record(&mut shape, &mut batch.columns, row).is_some() {
                    batch.row_done(record);
                    continue;
                }
                batch.row_undone();
            }
            let outcome = exact.record(value);
            match outcome.problem {
                _ if outcome.blank => batch.empty(record, "the record is empty")?,
                Some(problem) => batch.malformed(record, value, outcome.rows, problem)?,
                None => batch.add_rows(record, outcome.rows, None)?,
            }
        }
        Ok(())
    }
}

impl Decoder for JsonDecoder {
    fn schema(&self) -> SchemaRef {
        self.wanted.schema.clone()
    }

    fn decode(&self, input: Input) -> Result<Decoded> {
        let block = match input {
            Input::Records(block) => block,
            Input::Rows(rows, _) => return rows::conform(&rows, &self.wanted.schema),
        };
        let rows = self.expected_rows(&block);
        let mut batch = Batch::new(&self.wanted, self.settings.mode, &block, rows)?;
        match &block.payload {
            Payload::Lines(text) => self.lines(text, &mut batch)?,
            Payload::Values(values) => self.values(values, &mut batch)?,
        }
        if let Some(bytes) = block.byte_len().checked_div(batch.next_row()) {
            self.bytes_per_row.store(bytes.max(1), Ordering::Relaxed);
        }
        batch.finish()
    }
}

impl JsonDecoder {
    fn expected_rows(&self, block: &RecordBlock) -> usize {
        match &block.payload {
            Payload::Values(values) => values.len(),
            Payload::Lines(text) => {
                let rows = text.len() / self.bytes_per_row.load(Ordering::Relaxed);
                rows + rows / 16 + 1
            }
        }
    }
}

/// Where the line that `from` is in ends.
#[inline]
fn end_of_line(text: &[u8], from: usize) -> usize {
    match text.get(from) {
        Some(b'\n') => from,
        Some(_) => memchr::memchr(b'\n', &text[from..]).map_or(text.len(), |length| from + length),
        None => text.len(),
    }
}

/// Keys of JSON objects are text, so keys of maps are, too.
fn check_maps(data_type: &DataType, path: &str) -> Result<()> {
    match data_type {
        DataType::Map(entries, _) => {
            let DataType::Struct(pair) = entries.data_type() else { return Ok(()) };
            if pair[0].data_type() != &DataType::Utf8 {
                let key = ddl::simple_type(pair[0].data_type()).to_uppercase();
                return Err(Error::new(
                    class::CONFIG_INVALID,
                    format!(
                        "column `{path}`: the keys of JSON objects are text: write MAP<STRING, …> instead of MAP<{key}, …>"
                    ),
                ));
            }
            check_maps(pair[1].data_type(), path)
        }
        DataType::List(element) => check_maps(element.data_type(), path),
        DataType::Struct(fields) => {
            fields.iter().try_for_each(|field| check_maps(field.data_type(), &format!("{path}.{}", field.name())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Float64Type;
    use serde_json::json;

    use super::super::recorded::{Case, decode_lines, decode_values, rows};
    use super::super::{Format, decoder};
    use super::*;

    fn cases() -> Vec<Case> {
        Case::all(include_str!("recorded/json.json"))
    }

    fn json_decoder(settings: serde_json::Value, schema: &str) -> std::sync::Arc<dyn Decoder> {
        let format: Format = serde_json::from_value(json!({ "json": settings })).unwrap();
        let schema = ddl::parse(schema).unwrap();
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        decoder(&format, &schema, &all).unwrap()
    }

    fn bytes(lines: &[&str]) -> Vec<Vec<u8>> {
        lines.iter().map(|line| line.as_bytes().to_vec()).collect()
    }

    #[test]
    fn records_decode_as_in_spark() {
        cases().iter().for_each(Case::check);
    }

    /// The same records by the exact path alone: it skips a byte order mark, which the fast path does not take.
    #[test]
    fn both_paths_agree() {
        const MARK: &str = "\u{feff}";
        for case in cases() {
            let decoder = case.decoder(None);
            let lines: Vec<_> = case.lines().into_iter().filter(|line| !line.starts_with(MARK.as_bytes())).collect();
            let marked: Vec<_> = lines.iter().map(|line| [MARK.as_bytes(), line].concat()).collect();
            let fast = rows(&decode_lines(decoder.as_ref(), &lines).unwrap().rows);
            let mut exact = rows(&decode_lines(decoder.as_ref(), &marked).unwrap().rows);
            for row in &mut exact {
                if let Some(serde_json::Value::String(text)) = row.get_mut("_corrupt_record") {
                    *text = text.trim_start_matches(MARK).to_owned();
                }
            }
            assert_eq!(fast, exact, "{}", case.about);
        }
    }

    /// Records of one source differ from each other, so what was learned from one must not spoil the next.
    #[test]
    fn single_records_decode_as_in_a_block() {
        for case in cases() {
            let decoder = case.decoder(None);
            let together = rows(&decode_lines(decoder.as_ref(), &case.lines()).unwrap().rows);
            let apart: Vec<_> = case
                .lines()
                .iter()
                .flat_map(|line| rows(&decode_lines(decoder.as_ref(), std::slice::from_ref(line)).unwrap().rows))
                .collect();
            assert_eq!(together, apart, "{}", case.about);
        }
    }

    #[test]
    fn malformed_records_are_rejected_with_a_reason_and_the_others_are_not_touched() {
        let decoder = json_decoder(
            json!({}),
            "a INT, s STRING NOT NULL, p STRUCT<x: INT, l: ARRAY<INT> NOT NULL>, m MAP<STRING, DATE>, _corrupt_record STRING",
        );
        let lines = [
            r#"{"a":1}"#,
            r#"{"a":"x","s":"kept"}"#,
            r#"{"a":2,"#,
            r#"{"p":{"x":1,"l":[1,true]}}"#,
            r#"{"m":{"k":"2024-02-30"}}"#,
            r#"5"#,
            r#"[{"a":3},{"a":4}]"#,
            r#"[{"a":5},{"a":6.5}]"#,
            "",
            "garbage",
            r#"{"p":[1,2]}"#,
            r#"{"a":7}"#,
        ];
        let decoded = decode_lines(decoder.as_ref(), &bytes(&lines)).unwrap();
        assert_eq!(decoded.rows.schema(), decoder.schema());
        assert!(decoded.rows.schema().fields().iter().all(|field| field.is_nullable()));
        let found: Vec<_> = rows(&decoded.rows).iter().map(|row| row["a"].clone()).collect();
        assert_eq!(found, [json!(1), json!(3), json!(4), json!(7)]);
        let start = |line: usize| lines[..line].iter().map(|line| line.len() + 1).sum::<usize>() as u32;
        assert_eq!(decoded.origin.records.as_deref(), Some(&[start(0), start(6), start(6), start(11)][..]));
        let rejected: Vec<_> = decoded.rejected.iter().map(|r| (r.record, r.reason.as_str())).collect();
        assert_eq!(
            rejected,
            [
                (start(1), "column `a` should be INT, found \"x\""),
                (start(2), "not valid JSON at byte 7: it ends too early"),
                (start(3), "column `p.l[1]` should be INT, found true"),
                (start(4), "column `m.k` should be DATE, found \"2024-02-30\""),
                (start(5), "a record should be a JSON object, found 5"),
                (start(7), "column `a` should be INT, found 6.5"),
                (start(9), "not valid JSON at byte 0: not a value: only true, false and null are words"),
                (start(10), "column `p` should be STRUCT<X:INT,L:ARRAY<INT>>, found [1,2]}"),
            ]
        );
        let block = decoded.origin.block.unwrap();
        let record = block.record(decoded.rejected[1].record).unwrap();
        assert_eq!(record.value.as_deref(), Some(lines[2].as_bytes()));
        assert!(decoded.rejected.iter().all(|rejected| rejected.class == class::MALFORMED_RECORD));
        assert_eq!(decoded.dropped, 0);
    }

    #[test]
    fn every_record_is_accounted_for_in_every_mode() {
        let lines = bytes(&[r#"{"a":1}"#, r#"{"a":"x"}"#, "junk", "", r#"{"a":2}"#]);
        for (mode, expected) in [("dead_letter", (2, 2, 0)), ("permissive", (4, 0, 0)), ("dropmalformed", (2, 0, 2))] {
            let decoder = json_decoder(json!({ "mode": mode }), "a INT");
            let decoded = decode_lines(decoder.as_ref(), &lines).unwrap();
            let counts = (decoded.rows.num_rows(), decoded.rejected.len(), decoded.dropped);
            assert_eq!(counts, expected, "{mode}");
        }
        let error = decode_lines(json_decoder(json!({ "mode": "failfast" }), "a INT").as_ref(), &lines).unwrap_err();
        assert_eq!(error.class(), class::MALFORMED_RECORD);
        let message = "in.txt, byte 8: column `a` should be INT, found \"x\"; `mode: failfast` stops the query here";
        assert_eq!(error.message(), message);
        let fine = bytes(&[r#"{"a":1}"#, r#"{"s":2,"zz":1}"#]);
        let decoded =
            decode_lines(json_decoder(json!({ "mode": "failfast" }), "a INT, s STRING").as_ref(), &fine).unwrap();
        assert_eq!(rows(&decoded.rows), [json!({"a":1,"s":null}), json!({"a":null,"s":"2"})]);
    }

    #[test]
    fn single_values_are_records_of_their_own() {
        let decoder = json_decoder(json!({}), "a INT, b STRING");
        let fine = [Some(&b"{\"a\":1}"[..]), Some(b"{\n  \"a\": 2,\r\n  \"b\": \"x\\ny\"\n}\n")];
        let decoded = decode_values(decoder.as_ref(), &fine).unwrap();
        assert_eq!(rows(&decoded.rows), [json!({"a":1,"b":null}), json!({"a":2,"b":"x\ny"})]);
        assert_eq!(decoded.origin.records, None);

        let odd = [
            Some(&b"{\"a\":1}"[..]),
            None,
            Some(b" "),
            Some(b"[{\"a\":2},{\"a\":3}]"),
            Some(b"\xff"),
            Some(b"{\"a\":4} \xff"),
        ];
        let decoded = decode_values(decoder.as_ref(), &odd).unwrap();
        assert_eq!(decoded.origin.records.as_deref(), Some(&[0, 3, 3, 5][..]));
        let rejected: Vec<_> = decoded.rejected.iter().map(|r| (r.record, r.reason.as_str())).collect();
        assert_eq!(
            rejected,
            [
                (1, "the record has no value (a tombstone)"),
                (2, "the record is empty"),
                (4, "not valid JSON at byte 0: not a value: only true, false and null are words"),
            ]
        );
        let permissive = json_decoder(json!({ "mode": "permissive" }), "a INT, _corrupt_record STRING");
        let found = rows(&decode_values(permissive.as_ref(), &odd).unwrap().rows);
        let nothing = json!({"a":null,"_corrupt_record":null});
        assert_eq!(found[1..3], [nothing.clone(), nothing]);
        assert_eq!(found[5], json!({"a":null,"_corrupt_record":"\u{fffd}"}));
        assert_eq!(found.len(), 7);
    }

    #[test]
    fn lines_end_with_or_without_a_carriage_return_or_a_line_feed() {
        let decoder = json_decoder(json!({ "mode": "permissive" }), "a INT, _corrupt_record STRING");
        let text = b"{\"a\":1}\r\n\r\nx\r\n{\"a\":2}\n{\"a\":3".to_vec();
        let decoded = decode_lines(decoder.as_ref(), &[text]).unwrap();
        let found = rows(&decoded.rows);
        assert_eq!(found[1], json!({"a":null,"_corrupt_record":"x"}));
        assert_eq!(found[3], json!({"a":null,"_corrupt_record":"{\"a\":3"}));
        assert_eq!(decoded.origin.records.as_deref(), Some(&[0, 11, 14, 22][..]));
    }

    #[test]
    fn numbers_are_read_to_the_last_bit() {
        let decoder = json_decoder(json!({}), "d DOUBLE");
        let mut state = 0x2545_F491_4F6C_DD1Du64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut numbers = vec!["0".to_owned(), "-0.0".to_owned(), "9007199254740993".to_owned(), "0.1e-7".to_owned()];
        for _ in 0..5000 {
            let digits = 1 + random(19);
            let whole = random(10u64.pow(digits as u32));
            let fraction =
                random(4).checked_sub(1).map(|n| format!(".{:0width$}", random(1000), width = 3 + 3 * n as usize));
            let exponent = if random(4) == 0 { format!("e{}", random(60) as i64 - 30) } else { String::new() };
            numbers.push(format!(
                "{}{whole}{}{exponent}",
                if random(2) == 0 { "-" } else { "" },
                fraction.unwrap_or_default()
            ));
        }
        let lines: Vec<_> = numbers.iter().map(|number| format!("{{\"d\":{number}}}").into_bytes()).collect();
        let decoded = decode_lines(decoder.as_ref(), &lines).unwrap();
        for (number, found) in numbers.iter().zip(decoded.rows.column(0).as_primitive::<Float64Type>().values()) {
            // `-0` is an integer, and integers have no negative zero.
            let expected = if number == "-0" { 0.0 } else { number.parse::<f64>().unwrap() };
            assert_eq!(found.to_bits(), expected.to_bits(), "{number}");
        }
    }

    #[test]
    fn columns_that_json_cannot_fill_are_refused() {
        for (schema, columns, class, message) in [
            ("m MAP<INT, STRING>", &[0][..], class::CONFIG_INVALID, "write MAP<STRING, …> instead of MAP<INT, …>"),
            ("p STRUCT<l: ARRAY<MAP<DATE, INT>>>", &[0], class::CONFIG_INVALID, "column `p.l`: the keys"),
            (
                "a INT, _corrupt_record STRING",
                &[1],
                class::UNSUPPORTED_OPERATION,
                "uses no other column than `_corrupt_record`",
            ),
            ("a INT, _corrupt_record INT", &[0, 1], class::CONFIG_INVALID, "must be a STRING"),
            ("a INT", &[1], class::INTERNAL, "column 1 of a schema of 1 columns"),
        ] {
            let error = decoder(&Format::default(), &ddl::parse(schema).unwrap(), columns).unwrap_err();
            assert_eq!(error.class(), class, "{schema}: {error}");
            assert!(error.message().contains(message), "{schema}: {error}");
        }
        for (settings, message) in [
            (
                JsonFormat { time_zone: Some("Mars/Base".into()), ..Default::default() },
                "`time_zone: Mars/Base` is not known",
            ),
            (
                JsonFormat { date_format: Some("YYYY".into()), ..Default::default() },
                "`date_format: YYYY` is no pattern: `YYYY`",
            ),
        ] {
            let error = decoder(&Format::Json(settings), &ddl::parse("a INT").unwrap(), &[0]).unwrap_err();
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.message().contains(message), "{error}");
        }
    }
}
