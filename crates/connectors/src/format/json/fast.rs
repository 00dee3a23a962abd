//! Well-formed records straight from bytes into columns, in one pass.
//!
//! The fast path takes what producers write: objects in standard JSON whose values fit their columns. Anything else (a syntax error, a
//! value of another type, a duplicate name, single quotes, a number of unusual length) makes it give up with `None`; the caller cuts
//! the columns back and takes the exact path. So there is one place that knows Spark's rules for odd records, and this one only has to
//! agree with it on the ordinary ones.
//!
//! Three things make it fast. Names are not looked up: each object remembers the bytes between two values (`,"name":`) from the record
//! before, and compares them in one go. Values that no column wants are only skipped. And numbers, timestamps and strings have a loop
//! for their usual form.

use arrow::datatypes::{DataType, Field};

use super::super::columns::{Column, Data};
use super::super::temporal::Temporal;
use super::super::text::{parse_base64, parse_decimal, parse_decimal_text};
use super::super::time::TimestampReader;
use super::exact::map_value;

/// Depth of values that are skipped; deeper ones take the exact path.
const MAX_DEPTH: u32 = 64;
/// Digits of a number; longer ones take the exact path.
const MAX_NUMBER: usize = 400;
/// Fields of an object whose names are predicted.
const MAX_EXPECTED: usize = 1000;

/// How the values of a column are found.
#[derive(Debug)]
pub(super) enum Plan {
    Scalar,
    List(Box<Plan>),
    Map(Box<Plan>),
    Struct(Shape),
}

impl Plan {
    fn new(data_type: &DataType) -> Self {
        match data_type {
            DataType::Struct(fields) => Self::Struct(Shape::new(fields.iter().map(AsRef::as_ref))),
            DataType::List(element) => Self::List(Box::new(Self::new(element.data_type()))),
            DataType::Map(entries, _) => Self::Map(Box::new(Self::new(map_value(entries)))),
            _ => Self::Scalar,
        }
    }
}

/// The wanted fields of an object, and what is expected of the next one.
#[derive(Debug)]
pub(super) struct Shape {
    names: Vec<Box<[u8]>>,
    plans: Vec<Plan>,
    /// What stood before each value of the object before.
    expected: Vec<Expected>,
}

impl Shape {
    pub(super) fn new<'a>(fields: impl Iterator<Item = &'a Field>) -> Self {
        let (names, plans) = fields.map(|f| (f.name().as_bytes().into(), Plan::new(f.data_type()))).unzip();
        Self { names, plans, expected: Vec::new() }
    }
}

/// The bytes from the end of a value (or the start of the object) to the start of the next: `{"name":` or `,"name": `.
#[derive(Debug)]
struct Expected {
    /// The first bytes, as numbers, so that a few instructions compare them all.
    head: (u128, u128),
    /// The bits of `head` that count.
    mask: (u128, u128),
    length: usize,
    /// All bytes, where they do not fit into `head`.
    long: Option<Box<[u8]>>,
    /// The column of the value, or [`Expected::SKIP`].
    slot: usize,
}

impl Expected {
    const SKIP: usize = usize::MAX;

    fn new(bytes: &[u8], slot: usize) -> Self {
        let mut head = [0u8; 32];
        let mut mask = [0u8; 32];
        for (at, byte) in bytes.iter().take(32).enumerate() {
            (head[at], mask[at]) = (*byte, 0xFF);
        }
        let long = (bytes.len() > 32).then(|| bytes.into());
        Self { head: halves(&head), mask: halves(&mask), length: bytes.len(), long, slot }
    }

    #[inline]
    fn matches(&self, bytes: &[u8], at: usize) -> bool {
        let Some(rest) = bytes.get(at..) else { return false };
        let Some(head) = rest.first_chunk::<32>() else { return self.matches_end(rest) };
        let head = halves(head);
        let difference = ((head.0 ^ self.head.0) & self.mask.0) | ((head.1 ^ self.head.1) & self.mask.1);
        difference == 0 && (self.length <= 32 || self.long.as_ref().is_some_and(|long| rest.starts_with(long)))
    }

    /// As `matches`, for the last few bytes of a block.
    #[cold]
    fn matches_end(&self, rest: &[u8]) -> bool {
        rest.len() >= self.length && {
            let mut head = [0u8; 32];
            head[..self.length].copy_from_slice(&rest[..self.length]);
            halves(&head) == self.head
        }
    }
}

#[inline]
fn halves(bytes: &[u8; 32]) -> (u128, u128) {
    let half = |half: Option<&[u8; 16]>| half.map_or(0, |bytes| u128::from_le_bytes(*bytes));
    (half(bytes.first_chunk()), half(bytes.last_chunk()))
}

/// A position in the bytes of a block or a record.
#[derive(Debug)]
pub(super) struct Fast<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    /// A line feed ends the record, so it is no white space.
    lines: bool,
    temporal: &'a Temporal,
    timestamps: TimestampReader,
}

impl<'a> Fast<'a> {
    pub(super) fn new(lines: bool, temporal: &'a Temporal) -> Self {
        Self { bytes: &[], at: 0, lines, temporal, timestamps: TimestampReader::default() }
    }

    /// Goes to a place in `bytes`, which must be UTF-8 as far as the record goes.
    pub(super) fn seek(&mut self, bytes: &'a [u8], at: usize) {
        (self.bytes, self.at) = (bytes, at);
    }

    /// Reads the object at the position into row `row` of the columns, which then all have it, and moves behind it.
    #[inline]
    pub(super) fn record(&mut self, shape: &mut Shape, columns: &mut [Column], row: usize) -> Option<()> {
        if self.peek()? != b'{' {
            self.skip_space();
        }
        self.object(shape, columns, row)
    }

    fn object(&mut self, shape: &mut Shape, columns: &mut [Column], row: usize) -> Option<()> {
        let mut filled = 0;
        // The first 64 columns that are filled; cheaper to ask than the columns themselves.
        let mut seen = 0u64;
        let mut position = 0;
        loop {
            let slot = match shape.expected.get(position) {
                Some(expected) if expected.matches(self.bytes, self.at) => {
                    self.at += expected.length;
                    expected.slot
                }
                _ => match self.name(shape, position)? {
                    Some(slot) => slot,
                    None => break,
                },
            };
            if slot == Expected::SKIP {
                self.skip_value(0)?;
            } else {
                let column = columns.get_mut(slot)?;
                let bit = 1u64.checked_shl(slot as u32).unwrap_or(0);
                if seen & bit != 0 || (bit == 0 && column.len() != row) {
                    return None;
                }
                seen |= bit;
                self.value(shape.plans.get_mut(slot)?, column)?;
                filled += 1;
            }
            position += 1;
            if self.peek()? == b'}' {
                self.at += 1;
                break;
            }
        }
        if filled < columns.len() {
            columns.iter_mut().filter(|column| column.len() == row).for_each(Column::push_null);
        }
        Some(())
    }

    /// Reads what stands before the next value and remembers it; `Some(None)` at the end of the object.
    #[cold]
    fn name(&mut self, shape: &mut Shape, position: usize) -> Option<Option<usize>> {
        let from = self.at;
        self.skip_space();
        match (position, self.take()?) {
            (0, b'{') => {
                self.skip_space();
                if self.peek()? == b'}' {
                    self.at += 1;
                    return Some(None);
                }
            }
            (0, _) => return None,
            (_, b',') => self.skip_space(),
            (_, b'}') => return Some(None),
            _ => return None,
        }
        self.expect(b'"')?;
        let start = self.at;
        let end = self.stop(start);
        if *self.bytes.get(end)? != b'"' {
            return None;
        }
        self.at = end + 1;
        self.skip_space();
        self.expect(b':')?;
        self.skip_space();
        let name = &self.bytes[start..end];
        let slot = shape.names.iter().position(|n| **n == *name).unwrap_or(Expected::SKIP);
        let expected = Expected::new(&self.bytes[from..self.at], slot);
        match shape.expected.get_mut(position) {
            Some(known) => *known = expected,
            None if position < MAX_EXPECTED => shape.expected.push(expected),
            None => {}
        }
        Some(Some(slot))
    }

    #[inline]
    fn value(&mut self, plan: &mut Plan, column: &mut Column) -> Option<()> {
        let first = self.peek()?;
        if first == b'n' {
            self.word(b"null")?;
            column.push_null();
            return Some(());
        }
        match &mut column.data {
            Data::Boolean(values) => {
                let value = first == b't';
                self.word(if value { b"true" } else { b"false" })?;
                values.append(value);
            }
            // 128 to 255, which wrap around, are left to the exact path.
            Data::Int8(values) => values.push(self.integer()?.try_into().ok()?),
            Data::Int16(values) => values.push(self.integer()?.try_into().ok()?),
            Data::Int32(values) => values.push(self.integer()?.try_into().ok()?),
            Data::Int64(values) => values.push(self.integer()?),
            Data::Float32(values) => {
                let value = self.float()?;
                values.push(value);
            }
            Data::Float64(values) => {
                let value = self.double()?;
                values.push(value);
            }
            Data::Decimal { values, precision, scale } => {
                let value = if first == b'"' {
                    parse_decimal_text(self.text()?, *precision, *scale)?
                } else {
                    let start = self.at;
                    self.number()?;
                    parse_decimal(&self.bytes[start..self.at], *precision, *scale)?
                };
                values.push(value);
            }
            Data::Timestamp { values, .. } => {
                let value = if first == b'"' { self.timestamp()? } else { self.integer()?.wrapping_mul(1_000_000) };
                values.push(value);
            }
            Data::TimestampNtz(values) => values.push(self.temporal.timestamp_ntz(self.text()?)?),
            Data::Date(values) => values.push(self.temporal.date(self.text()?)?),
            Data::Text(values) => {
                if first == b'"' {
                    self.at += 1;
                    self.string_into(&mut values.bytes)?;
                } else {
                    let start = self.at;
                    self.skip_value(0)?;
                    values.bytes.extend_from_slice(&self.bytes[start..self.at]);
                }
                values.end();
            }
            Data::Binary(values) => {
                values.bytes.extend_from_slice(&parse_base64(self.text()?.as_bytes())?);
                values.end();
            }
            Data::List { ends, element, .. } => {
                let Plan::List(plan) = plan else { return None };
                self.list(plan, element)?;
                ends.push(element.len() as i32);
            }
            Data::Map { ends, keys, values, .. } => {
                let Plan::Map(plan) = plan else { return None };
                self.map(plan, keys, values, ends[ends.len() - 1] as usize)?;
                ends.push(keys.len() as i32);
            }
            Data::Struct { columns, .. } => {
                let Plan::Struct(shape) = plan else { return None };
                self.object(shape, columns, column.nulls.len())?;
            }
        }
        column.nulls.append_non_null();
        Some(())
    }

    fn list(&mut self, plan: &mut Plan, element: &mut Column) -> Option<()> {
        self.expect(b'[')?;
        self.skip_space();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(());
        }
        loop {
            self.skip_space();
            self.value(plan, element)?;
            self.skip_space();
            match self.take()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }

    fn map(&mut self, plan: &mut Plan, keys: &mut Column, values: &mut Column, first: usize) -> Option<()> {
        self.expect(b'{')?;
        self.skip_space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        let Data::Text(texts) = &mut keys.data else { return None };
        loop {
            self.skip_space();
            self.expect(b'"')?;
            self.string_into(&mut texts.bytes)?;
            texts.end();
            keys.nulls.append_non_null();
            // The exact path knows what to do with a key that comes twice.
            let key = |index: usize| texts.bytes.get(texts.ends[index] as usize..texts.ends[index + 1] as usize);
            let last = texts.ends.len() - 2;
            if last - first > 32 || (first..last).any(|index| key(index) == key(last)) {
                return None;
            }
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            self.value(plan, values)?;
            self.skip_space();
            match self.take()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Reads the digits from `at` on behind those that `value` is made of already; gives the number (wrapped around where it is too
    /// long) and where the digits end.
    #[inline(always)]
    fn digits(&self, mut at: usize, mut value: u64) -> (u64, usize) {
        while let Some(byte) = self.bytes.get(at) {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            at += 1;
        }
        (value, at)
    }

    #[inline(always)]
    fn integer(&mut self) -> Option<i64> {
        let negative = *self.bytes.get(self.at)? == b'-';
        let start = self.at + usize::from(negative);
        let (value, end) = self.digits(start, 0);
        let length = end - start;
        if length == 0 || length > 18 || (length > 1 && self.bytes[start] == b'0') {
            return None;
        }
        // A point or an exponent is left over, where no comma and no brace is.
        self.at = end;
        let value = value as i64;
        Some(if negative { -value } else { value })
    }

    #[inline(always)]
    fn double(&mut self) -> Option<f64> {
        let negative = *self.bytes.get(self.at)? == b'-';
        let start = self.at + usize::from(negative);
        let (mut mantissa, mut end) = self.digits(start, 0);
        let whole = end - start;
        if whole == 0 || (whole > 1 && self.bytes[start] == b'0') {
            return None;
        }
        let mut fraction = 0;
        if self.bytes.get(end) == Some(&b'.') {
            let point = end + 1;
            (mantissa, end) = self.digits(point, mantissa);
            fraction = end - point;
            if fraction == 0 {
                return None;
            }
        }
        if whole + fraction > 19
            || mantissa >= 1 << 53
            || fraction > 22
            || matches!(self.bytes.get(end), Some(b'e' | b'E'))
        {
            return self.long_double();
        }
        self.at = end;
        // Both are exact, so the quotient is rounded once.
        let value = mantissa as f64 / POWERS_OF_TEN[fraction];
        // An integer has no negative zero.
        Some(if negative && (mantissa != 0 || fraction != 0) { -value } else { value })
    }

    #[cold]
    fn long_double(&mut self) -> Option<f64> {
        let start = self.at;
        self.number()?;
        std::str::from_utf8(&self.bytes[start..self.at]).ok()?.parse().ok()
    }

    fn float(&mut self) -> Option<f32> {
        let start = self.at;
        self.number()?;
        match std::str::from_utf8(&self.bytes[start..self.at]).ok()? {
            "-0" => Some(0.0),
            text => text.parse().ok(),
        }
    }

    /// The text of a string without escapes.
    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.plain_string()?).ok()
    }

    #[inline(always)]
    fn plain_string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        let end = self.stop(start);
        if *self.bytes.get(end)? != b'"' {
            return None;
        }
        self.at = end + 1;
        self.bytes.get(start..end)
    }

    #[inline(always)]
    fn timestamp(&mut self) -> Option<i64> {
        let text = self.plain_string()?;
        if self.temporal.timestamp_is_plain()
            && let Some(micros) = self.timestamps.read(text)
        {
            return Some(micros);
        }
        self.temporal.timestamp(std::str::from_utf8(text).ok()?)
    }

    /// Appends the rest of a string behind its opening quote.
    #[inline(always)]
    fn string_into(&mut self, bytes: &mut Vec<u8>) -> Option<()> {
        loop {
            let start = self.at;
            let end = self.stop(start);
            bytes.extend_from_slice(self.bytes.get(start..end)?);
            self.at = end + 1;
            match *self.bytes.get(end)? {
                b'"' => return Some(()),
                b'\\' => self.escape_into(bytes)?,
                _ => return None,
            }
        }
    }

    #[cold]
    fn escape_into(&mut self, bytes: &mut Vec<u8>) -> Option<()> {
        bytes.push(match self.take()? {
            byte @ (b'"' | b'\\' | b'/') => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let unit = self.hex()?;
                let c = if (0xD800..0xDC00).contains(&unit) {
                    self.expect(b'\\')?;
                    self.expect(b'u')?;
                    char::decode_utf16([unit, self.hex()?]).next()?.ok()?
                } else {
                    char::from_u32(u32::from(unit))?
                };
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Some(());
            }
            _ => return None,
        });
        Some(())
    }

    fn hex(&mut self) -> Option<u16> {
        let mut unit = 0;
        for _ in 0..4 {
            unit = unit << 4 | (self.take()? as char).to_digit(16)? as u16;
        }
        Some(unit)
    }

    /// Skips a value that nobody wants.
    #[inline]
    fn skip_value(&mut self, depth: u32) -> Option<()> {
        match self.peek()? {
            b'"' => {
                self.at += 1;
                self.skip_string()
            }
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            b'{' if depth < MAX_DEPTH => self.skip_object(depth + 1),
            b'[' if depth < MAX_DEPTH => self.skip_array(depth + 1),
            _ => None,
        }
    }

    fn skip_object(&mut self, depth: u32) -> Option<()> {
        self.at += 1;
        self.skip_space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        loop {
            self.skip_space();
            self.expect(b'"')?;
            self.skip_string()?;
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            self.skip_value(depth)?;
            self.skip_space();
            match self.take()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    fn skip_array(&mut self, depth: u32) -> Option<()> {
        self.at += 1;
        self.skip_space();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(());
        }
        loop {
            self.skip_space();
            self.skip_value(depth)?;
            self.skip_space();
            match self.take()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Skips the rest of a string behind its opening quote; checks the escapes.
    #[inline(always)]
    fn skip_string(&mut self) -> Option<()> {
        loop {
            let end = self.stop(self.at);
            self.at = end + 1;
            match *self.bytes.get(end)? {
                b'"' => return Some(()),
                b'\\' => match self.take()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        self.hex()?;
                    }
                    _ => return None,
                },
                _ => return None,
            }
        }
    }

    /// Skips a number; checks that it is one.
    #[inline(always)]
    fn number(&mut self) -> Option<()> {
        let start = self.at;
        let first = start + usize::from(*self.bytes.get(start)? == b'-');
        let mut end = self.digits(first, 0).1;
        if end == first || (end > first + 1 && self.bytes[first] == b'0') {
            return None;
        }
        if self.bytes.get(end) == Some(&b'.') {
            let point = end + 1;
            end = self.digits(point, 0).1;
            if end == point {
                return None;
            }
        }
        if matches!(self.bytes.get(end), Some(b'e' | b'E')) {
            let exponent = end + 1 + usize::from(matches!(self.bytes.get(end + 1), Some(b'+' | b'-')));
            end = self.digits(exponent, 0).1;
            if end == exponent {
                return None;
            }
        }
        self.at = end;
        (end - start <= MAX_NUMBER).then_some(())
    }

    /// Where the text from `from` on has its first quote, backslash or control character: eight bytes at a time.
    #[inline(always)]
    fn stop(&self, from: usize) -> usize {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGHS: u64 = 0x8080_8080_8080_8080;
        let mut at = from;
        while let Some(eight) = self.bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_le_bytes(*eight);
            let quote = word ^ (ONES * b'"' as u64);
            let backslash = word ^ (ONES * b'\\' as u64);
            // The lowest bit that is set is right; those above it may come from a borrow.
            let zero_quote = quote.wrapping_sub(ONES) & !quote;
            let zero_backslash = backslash.wrapping_sub(ONES) & !backslash;
            let control = word.wrapping_sub(ONES * b' ' as u64) & !word;
            let found = (zero_quote | zero_backslash | control) & HIGHS;
            if found != 0 {
                return at + (found.trailing_zeros() / 8) as usize;
            }
            at += 8;
        }
        while self.bytes.get(at).is_some_and(|b| !matches!(b, b'"' | b'\\' | 0..b' ')) {
            at += 1;
        }
        at
    }

    #[inline]
    fn skip_space(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'\n' if !self.lines => self.at += 1,
                _ => return,
            }
        }
    }

    #[inline]
    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.bytes.get(self.at..)?.starts_with(word).then_some(())?;
        self.at += word.len();
        Some(())
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.take()? == byte).then_some(())
    }

    #[inline]
    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}

/// The powers of ten that a double holds exactly.
static POWERS_OF_TEN: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
