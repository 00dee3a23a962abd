//! Spark DDL schemas: `a STRING NOT NULL, b ARRAY<INT>` to an Arrow schema and back.
//!
//! Each Spark type has one Arrow type, here and everywhere in Perennial:
//!
//! | Spark | Arrow |
//! |---|---|
//! | `BOOLEAN` | `Boolean` |
//! | `TINYINT` (`BYTE`), `SMALLINT` (`SHORT`), `INT` (`INTEGER`), `BIGINT` (`LONG`) | `Int8`, `Int16`, `Int32`, `Int64` |
//! | `FLOAT` (`REAL`), `DOUBLE` | `Float32`, `Float64` |
//! | `DECIMAL(p, s)` (`DEC`, `NUMERIC`; `(10, 0)` when not said) | `Decimal128(p, s)` |
//! | `STRING`, `CHAR(n)`, `VARCHAR(n)` (the length is not enforced, as in Spark's readers) | `Utf8` |
//! | `BINARY` | `Binary` |
//! | `DATE` | `Date32` |
//! | `TIMESTAMP` (`TIMESTAMP_LTZ`) | `Timestamp(Microsecond, "UTC")` |
//! | `TIMESTAMP_NTZ` | `Timestamp(Microsecond, None)` |
//! | `ARRAY<e>` | `List` of a nullable field `element` |
//! | `MAP<k, v>` | `Map` of `entries { key NOT NULL, value }`, unsorted |
//! | `STRUCT<a: x, …>` | `Struct` |
//!
//! `NOT NULL` is kept as `nullable = false` and `COMMENT` as the field's metadata `comment` (Spark's key). Decoders give nullable
//! columns all the same: what a schema demands is checked as an expectation, not by the decoder.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, TimeUnit};

use crate::error::{Error, Result, class};

/// The time zone of the Arrow type of `TIMESTAMP`.
pub const UTC: &str = "UTC";

/// Key of a column's comment in the metadata of its field.
const COMMENT: &str = "comment";

/// Greatest depth of nested types; no real schema comes near it.
const MAX_DEPTH: usize = 100;

/// Parses a list of columns: `a STRING NOT NULL, b: INT COMMENT 'of the day', c STRUCT<x: INT>`.
///
/// # Errors
/// `ConfigInvalid` with the line, the column and what was expected there.
pub fn parse(text: &str) -> Result<Schema> {
    let mut parser = Parser { text, at: 0 };
    let fields = parser.columns(End::Text, 0)?;
    if fields.is_empty() {
        return Err(parser.error_at(0, "a schema needs at least one column, for example `id BIGINT, name STRING`"));
    }
    Ok(Schema::new(fields))
}

/// Spark's simple name of a type: `bigint`, `decimal(10,2)`, `struct<start:timestamp,end:timestamp>`.
///
/// Arrow types that no Spark type maps to, but that an engine may give, have the name of the nearest Spark type.
pub fn simple_type(data_type: &DataType) -> String {
    let list = |element: &FieldRef| format!("array<{}>", simple_type(element.data_type()));
    match data_type {
        DataType::Struct(fields) => {
            let fields: Vec<_> =
                fields.iter().map(|f| format!("{}:{}", f.name(), simple_type(f.data_type()))).collect();
            format!("struct<{}>", fields.join(","))
        }
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::ListView(element)
        | DataType::LargeListView(element)
        | DataType::FixedSizeList(element, _) => list(element),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) if pair.len() == 2 => {
                format!("map<{},{}>", simple_type(pair[0].data_type()), simple_type(pair[1].data_type()))
            }
            other => format!("map<{other}>"),
        },
        DataType::Dictionary(_, value) => simple_type(value),
        DataType::RunEndEncoded(_, values) => simple_type(values.data_type()),
        atomic => atomic_name(atomic),
    }
}

fn atomic_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "void",
        DataType::Boolean => "boolean",
        DataType::Int8 => "tinyint",
        DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "int",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 => "decimal(20,0)",
        DataType::Float16 | DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => "binary",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Timestamp(_, Some(_)) => "timestamp",
        DataType::Timestamp(_, None) => "timestamp_ntz",
        DataType::Time32(_) | DataType::Time64(_) => "time(6)",
        DataType::Duration(_) => "interval day to second",
        DataType::Interval(_) => "interval",
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => return format!("decimal({p},{s})"),
        other => return other.to_string().to_lowercase(),
    }
    .to_owned()
}

/// Writes a schema as Spark DDL; [`parse`] reads it back to the same schema where all types are those of the table above.
pub fn format(schema: &Schema) -> String {
    let columns: Vec<_> = schema.fields().iter().map(|field| column(field, " ")).collect();
    columns.join(", ")
}

fn column(field: &Field, separator: &str) -> String {
    let mut text = format!("{}{separator}{}", quote_if_needed(field.name()), sql_type(field.data_type()));
    if !field.is_nullable() {
        text.push_str(" NOT NULL");
    }
    if let Some(comment) = field.metadata().get(COMMENT) {
        let _ = write!(text, " COMMENT '{}'", comment.replace('\\', "\\\\").replace('\'', "\\'"));
    }
    text
}

fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Struct(fields) => {
            let fields: Vec<_> = fields.iter().map(|field| column(field, ": ")).collect();
            format!("STRUCT<{}>", fields.join(", "))
        }
        DataType::List(element) => format!("ARRAY<{}>", sql_type(element.data_type())),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) if pair.len() == 2 => {
                format!("MAP<{}, {}>", sql_type(pair[0].data_type()), sql_type(pair[1].data_type()))
            }
            _ => simple_type(data_type).to_uppercase(),
        },
        other => simple_type(other).to_uppercase(),
    }
}

fn quote_if_needed(name: &str) -> String {
    let plain =
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && name.chars().any(|c| !c.is_ascii_digit());
    if plain { name.to_owned() } else { format!("`{}`", name.replace('`', "``")) }
}

/// What ends a list of columns.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Text,
    Bracket,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    /// The columns up to the end, which is left unread.
    fn columns(&mut self, end: End, depth: usize) -> Result<Vec<Field>> {
        let mut fields: Vec<Field> = Vec::new();
        self.skip_space();
        while !self.at_end(end) {
            let start = self.at;
            let field = self.column(depth)?;
            if fields.iter().any(|f| f.name().to_lowercase() == field.name().to_lowercase()) {
                return Err(self.error_at(
                    start,
                    &format!("the column `{}` is there twice (names differ not by case alone)", field.name()),
                ));
            }
            fields.push(field);
            if self.at_end(end) {
                break;
            }
            if !self.take(',') {
                let or = if end == End::Bracket { "`,` or `>`" } else { "`,`, `NOT NULL`, `COMMENT` or the end" };
                return Err(self.expected(&format!("{or} after the column")));
            }
            if self.at_end(end) {
                return Err(self.expected("another column after `,`"));
            }
        }
        Ok(fields)
    }

    /// `name [:] type [NOT NULL] [COMMENT 'text']`.
    fn column(&mut self, depth: usize) -> Result<Field> {
        let name = self.name()?;
        self.take(':');
        let data_type = self.data_type(depth)?;
        let mut nullable = true;
        let mut metadata = HashMap::new();
        loop {
            if self.take_word("NOT") {
                if !self.take_word("NULL") {
                    return Err(self.expected("`NULL` after `NOT`"));
                }
                nullable = false;
            } else if self.take_word("NULL") {
                nullable = true;
            } else if self.take_word("COMMENT") {
                metadata.insert(COMMENT.to_owned(), self.string()?);
            } else if self.peek_word().eq_ignore_ascii_case("DEFAULT") {
                return Err(self.expected("no `DEFAULT`: a source has no default values; use `coalesce` in the query"));
            } else {
                return Ok(Field::new(name, data_type, nullable).with_metadata(metadata));
            }
        }
    }

    /// A plain or a back-quoted name.
    fn name(&mut self) -> Result<String> {
        if !self.rest().starts_with('`') {
            let word = self.peek_word();
            if word.is_empty() {
                return Err(self.expected("the name of a column"));
            }
            self.advance(word.len());
            return Ok(word.to_owned());
        }
        let start = self.at;
        let mut name = String::new();
        self.at += 1;
        loop {
            let Some(length) = self.rest().find('`') else {
                return Err(self.error_at(start, "the closing back-quote of this name is missing"));
            };
            name.push_str(&self.rest()[..length]);
            self.at += length + 1;
            if !self.rest().starts_with('`') {
                break;
            }
            name.push('`');
            self.at += 1;
        }
        self.skip_space();
        if name.is_empty() {
            return Err(self.error_at(start, "expected the name of a column between the back-quotes"));
        }
        Ok(name)
    }

    fn data_type(&mut self, depth: usize) -> Result<DataType> {
        if depth > MAX_DEPTH {
            return Err(self.error_at(self.at, &format!("types are nested more than {MAX_DEPTH} deep")));
        }
        let start = self.at;
        let word = self.peek_word();
        if word.is_empty() {
            return Err(self.expected("a type"));
        }
        self.advance(word.len());
        let found = match word.to_ascii_uppercase().as_str() {
            "BOOLEAN" => DataType::Boolean,
            "TINYINT" | "BYTE" => DataType::Int8,
            "SMALLINT" | "SHORT" => DataType::Int16,
            "INT" | "INTEGER" => DataType::Int32,
            "BIGINT" | "LONG" => DataType::Int64,
            "FLOAT" | "REAL" => DataType::Float32,
            "DOUBLE" => DataType::Float64,
            "STRING" => {
                if self.take_word("COLLATE") && !self.take_word("UTF8_BINARY") {
                    return Err(self.expected("`UTF8_BINARY`, the only collation there is"));
                }
                DataType::Utf8
            }
            "CHAR" | "CHARACTER" | "VARCHAR" => {
                let at = self.at;
                let length = self.numbers()?;
                if length.len() != 1 || length[0] < 1 {
                    return Err(self.error_at(at, &format!("expected a length after {word}, for example `{word}(20)`")));
                }
                DataType::Utf8
            }
            "BINARY" => DataType::Binary,
            "DATE" => DataType::Date32,
            "TIMESTAMP" | "TIMESTAMP_LTZ" => timestamp(),
            "TIMESTAMP_NTZ" => DataType::Timestamp(TimeUnit::Microsecond, None),
            "DECIMAL" | "DEC" | "NUMERIC" => self.decimal()?,
            "ARRAY" => {
                self.open("ARRAY", "ARRAY<INT>")?;
                let element = self.data_type(depth + 1)?;
                self.close()?;
                list_of(element)
            }
            "MAP" => {
                self.open("MAP", "MAP<STRING, INT>")?;
                let key_at = self.at;
                let key = self.data_type(depth + 1)?;
                if matches!(key, DataType::Map(..)) {
                    return Err(self.error_at(key_at, "a map cannot be the key of a map"));
                }
                if !self.take(',') {
                    return Err(self.expected("`,` and the type of the map's values"));
                }
                let value = self.data_type(depth + 1)?;
                self.close()?;
                map_of(key, value)
            }
            "STRUCT" => {
                self.open("STRUCT", "STRUCT<a: INT>")?;
                let fields = self.columns(End::Bracket, depth + 1)?;
                self.close()?;
                DataType::Struct(Fields::from(fields))
            }
            "VOID" | "NULL" | "INTERVAL" | "TIME" | "VARIANT" | "GEOGRAPHY" | "GEOMETRY" => {
                return Err(
                    self.error_at(start, &format!("columns of Spark's type `{word}` are not supported in sources"))
                );
            }
            _ => {
                return Err(self.error_at(
                    start,
                    &format!(
                        "expected a type, found `{word}`; types are BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT, DOUBLE, \
                         DECIMAL(p, s), STRING, BINARY, DATE, TIMESTAMP, TIMESTAMP_NTZ, ARRAY<…>, MAP<…, …> and STRUCT<…>"
                    ),
                ));
            }
        };
        Ok(found)
    }

    fn decimal(&mut self) -> Result<DataType> {
        let at = self.at;
        let numbers = self.numbers()?;
        let (precision, scale) = match numbers[..] {
            [] => (10, 0),
            [precision] => (precision, 0),
            [precision, scale] => (precision, scale),
            _ => return Err(self.error_at(at, "expected a precision and a scale, for example `DECIMAL(10, 2)`")),
        };
        if !(1..=38).contains(&precision) {
            return Err(self.error_at(at, &format!("the precision of a DECIMAL is 1 to 38, not {precision}")));
        }
        if scale > precision {
            return Err(self.error_at(at, &format!("the scale {scale} is greater than the precision {precision}")));
        }
        Ok(DataType::Decimal128(precision as u8, scale as i8))
    }

    /// `(1, 2)`; empty when there is no parenthesis.
    fn numbers(&mut self) -> Result<Vec<u32>> {
        let mut numbers = Vec::new();
        if !self.take('(') {
            return Ok(numbers);
        }
        loop {
            let word = self.peek_word();
            let Ok(number) = word.parse() else {
                return Err(self.expected("a whole number"));
            };
            self.advance(word.len());
            numbers.push(number);
            if self.take(')') {
                return Ok(numbers);
            }
            if !self.take(',') {
                return Err(self.expected("`,` or `)`"));
            }
        }
    }

    /// `'text'` or `"text"`, with backslash escapes.
    fn string(&mut self) -> Result<String> {
        let start = self.at;
        let Some(quote) = self.rest().chars().next().filter(|c| matches!(c, '\'' | '"')) else {
            return Err(self.expected("a quoted text after `COMMENT`"));
        };
        let mut text = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((offset, c)) = chars.next() {
            if c == quote {
                self.advance(offset + 1);
                return Ok(text);
            }
            match c {
                '\\' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, escaped)) => text.push(escaped),
                    None => break,
                },
                c => text.push(c),
            }
        }
        Err(self.error_at(start, "the closing quote of this text is missing"))
    }

    fn open(&mut self, what: &str, example: &str) -> Result<()> {
        if self.take('<') { Ok(()) } else { Err(self.expected(&format!("`<` after {what}, for example `{example}`"))) }
    }

    fn close(&mut self) -> Result<()> {
        if self.take('>') { Ok(()) } else { Err(self.expected("`>`")) }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn at_end(&self, end: End) -> bool {
        self.rest().is_empty() || (end == End::Bracket && self.rest().starts_with('>'))
    }

    /// The letters, digits and underscores that come next.
    fn peek_word(&self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.rest().starts_with(c);
        if found {
            self.advance(c.len_utf8());
        }
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek_word().eq_ignore_ascii_case(word);
        if found {
            self.advance(word.len());
        }
        found
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.skip_space();
    }

    /// Skips white space and `-- comments`.
    fn skip_space(&mut self) {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start().len();
            if !self.rest().starts_with("--") {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    fn expected(&self, what: &str) -> Error {
        let found = match self.rest().chars().next() {
            None => "the end".to_owned(),
            Some(c) if c.is_alphanumeric() || c == '_' => format!("`{}`", self.peek_word()),
            Some(c) => format!("`{c}`"),
        };
        self.error_at(self.at, &format!("expected {what}, found {found}"))
    }

    fn error_at(&self, at: usize, what: &str) -> Error {
        let before = &self.text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Error::new(class::CONFIG_INVALID, format!("schema, line {line}, column {column}: {what}"))
    }
}

/// The Arrow type of `TIMESTAMP`.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
}

/// The Arrow type of `ARRAY<element>`.
pub fn list_of(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", element, true)))
}

/// The Arrow type of `MAP<key, value>`.
pub fn map_of(key: DataType, value: DataType) -> DataType {
    let pair = Fields::from(vec![Field::new("key", key, false), Field::new("value", value, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(pair), false)), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simple(text: &str) -> String {
        let schema = parse(text).unwrap();
        let columns: Vec<_> = schema
            .fields()
            .iter()
            .map(|f| {
                format!("{} {}{}", f.name(), simple_type(f.data_type()), if f.is_nullable() { "" } else { " NOT NULL" })
            })
            .collect();
        columns.join("; ")
    }

    #[test]
    fn all_types_and_their_aliases_are_read() {
        for (text, expected) in [
            ("a STRING NOT NULL, b: INT", "a string NOT NULL; b int"),
            (
                "a boolean, b byte, c tinyint, d short, e SmallInt",
                "a boolean; b tinyint; c tinyint; d smallint; e smallint",
            ),
            (
                "a INTEGER, b LONG, c BIGINT, d REAL, e FLOAT, f DOUBLE",
                "a int; b bigint; c bigint; d float; e float; f double",
            ),
            ("a DECIMAL, b DEC(5), c NUMERIC ( 38 , 18 )", "a decimal(10,0); b decimal(5,0); c decimal(38,18)"),
            ("a CHAR(3), b VARCHAR(20), c BINARY, d DATE", "a string; b string; c binary; d date"),
            ("a TIMESTAMP, b TIMESTAMP_LTZ, c TIMESTAMP_NTZ", "a timestamp; b timestamp; c timestamp_ntz"),
            ("d ARRAY<INT>, m MAP<STRING,BIGINT>", "d array<int>; m map<string,bigint>"),
            ("s STRUCT<x: INT, y: STRING NOT NULL>", "s struct<x:int,y:string>"),
            ("s STRUCT<>", "s struct<>"),
            ("a array<array<struct<k: map<int, array<string>>>>>", "a array<array<struct<k:map<int,array<string>>>>>"),
            ("window STRUCT<start: TIMESTAMP, end TIMESTAMP>", "window struct<start:timestamp,end:timestamp>"),
            ("`odd name` INT, `a``b` INT, 2nd INT", "odd name int; a`b int; 2nd int"),
            (
                "date DATE, struct INT, not INT NOT NULL, größe DOUBLE",
                "date date; struct int; not int NOT NULL; größe double",
            ),
            ("\n  a INT,  -- the first\n  b INT\n", "a int; b int"),
        ] {
            assert_eq!(simple(text), expected, "{text}");
        }
    }

    #[test]
    fn the_arrow_types_are_fixed() {
        let schema = parse("t TIMESTAMP, n TIMESTAMP_NTZ, l ARRAY<INT>, m MAP<STRING, INT>").unwrap();
        let types: Vec<_> = schema.fields().iter().map(|f| f.data_type().clone()).collect();
        assert_eq!(types[0], DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
        assert_eq!(types[1], DataType::Timestamp(TimeUnit::Microsecond, None));
        assert_eq!(types[2], DataType::List(Arc::new(Field::new("element", DataType::Int32, true))));
        let DataType::Map(entries, false) = &types[3] else { panic!("{}", types[3]) };
        assert_eq!(entries.name(), "entries");
        let DataType::Struct(pair) = entries.data_type() else { panic!("{entries}") };
        assert_eq!((pair[0].name().as_str(), pair[0].is_nullable()), ("key", false));
        assert_eq!((pair[1].name().as_str(), pair[1].is_nullable()), ("value", true));
    }

    #[test]
    fn comments_are_kept() {
        let schema = parse(r#"a INT COMMENT 'it\'s one', b INT NOT NULL COMMENT "two""#).unwrap();
        assert_eq!(schema.field(0).metadata()["comment"], "it's one");
        assert_eq!(schema.field(1).metadata()["comment"], "two");
        assert!(!schema.field(1).is_nullable());
    }

    #[test]
    fn written_schemas_read_back_the_same() {
        for text in [
            "a STRING NOT NULL, b INT, c DECIMAL(10,2), d ARRAY<INT>, m MAP<STRING, BIGINT>",
            "s STRUCT<x: INT, y: STRING NOT NULL>, t TIMESTAMP, n TIMESTAMP_NTZ, d DATE, b BINARY",
            "`odd name` TINYINT, `1` SMALLINT, `a``b` FLOAT COMMENT 'it\\'s a \\\\ here'",
            "a ARRAY<STRUCT<k: MAP<INT, ARRAY<DOUBLE>> NOT NULL>>",
        ] {
            let schema = parse(text).unwrap();
            assert_eq!(format(&schema), text);
            assert_eq!(parse(&format(&schema)).unwrap(), schema);
        }
    }

    #[test]
    fn errors_say_where_and_what_was_expected() {
        for (text, message) in [
            ("", "line 1, column 1: a schema needs at least one column"),
            ("a", "line 1, column 2: expected a type, found the end"),
            ("a INT,", "line 1, column 7: expected another column after `,`, found the end"),
            (
                "a INT b INT",
                "line 1, column 7: expected `,`, `NOT NULL`, `COMMENT` or the end after the column, found `b`",
            ),
            ("a INT,\n  b TXT", "line 2, column 5: expected a type, found `TXT`"),
            ("a ARRAY<INT", "expected `>`, found the end"),
            ("a ARRAY", "expected `<` after ARRAY, for example `ARRAY<INT>`, found the end"),
            ("a MAP<INT>", "expected `,` and the type of the map's values, found `>`"),
            ("a MAP<MAP<INT,INT>,INT>", "a map cannot be the key of a map"),
            ("a STRUCT<x: INT y: INT>", "expected `,` or `>` after the column, found `y`"),
            ("a DECIMAL(39)", "the precision of a DECIMAL is 1 to 38, not 39"),
            ("a DECIMAL(2,3)", "the scale 3 is greater than the precision 2"),
            ("a DECIMAL(x)", "expected a whole number, found `x`"),
            ("a CHAR", "expected a length after CHAR"),
            ("a INT NOT", "expected `NULL` after `NOT`, found the end"),
            ("a INT COMMENT b", "expected a quoted text after `COMMENT`, found `b`"),
            ("a INT COMMENT 'b", "column 15: the closing quote of this text is missing"),
            ("`a INT", "column 1: the closing back-quote of this name is missing"),
            ("a INT, A STRING", "column 8: the column `A` is there twice"),
            ("a VARIANT", "columns of Spark's type `VARIANT` are not supported"),
            ("a INT DEFAULT 5", "expected no `DEFAULT`"),
            ("a INT)", "found `)`"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.message().contains(message), "{text}: {error}");
        }
        let deep = format!("a {}INT{}", "ARRAY<".repeat(200), ">".repeat(200));
        assert!(parse(&deep).unwrap_err().message().contains("nested more than 100 deep"));
    }
}
