//! Values as text by a format: `format_string`, `format_number`, `to_char` and its way back.

use std::fmt::Write;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use datafusion::common::{Result, ScalarValue, exec_err};

use super::cast::{cast_array, show};
use super::function::{Arg, Args, Call, Spec, returns};
use super::rows;
use super::types::{is_decimal, is_float, is_integral, is_number, is_string, mismatch, sql_name};
use crate::error::{failed, refused_analysis};

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("format_string", Args::Custom(format_string_args), returns::text, format_string).or(&["printf"]),
    &Spec::new("format_number", Args::Custom(format_number_args), returns::text, format_number),
    &Spec::new("to_char", Args::Custom(to_char_args), returns::text, to_char).or(&["to_varchar"]),
    &Spec::new("to_number", Args::Fixed(2, &[Arg::Text, Arg::Text]), to_number_type, |call| to_number(call, false)),
    &Spec::new("try_to_number", Args::Fixed(2, &[Arg::Text, Arg::Text]), to_number_type, |call| to_number(call, true)),
];

fn format_string_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let [_, of @ ..] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "format_string() needs a format"));
    };
    Ok(std::iter::once(DataType::Utf8).chain(of.iter().cloned()).collect())
}

fn illegal(format: &str, what: &str) -> datafusion::common::DataFusionError {
    failed("IllegalArgumentException", format!("the format '{format}' {what}"))
}

/// A number as its digits before and behind the point.
struct Digits {
    negative: bool,
    whole: String,
    fraction: String,
}

impl Digits {
    fn of(text: &str) -> Self {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        Self { negative, whole: whole.to_owned(), fraction: fraction.to_owned() }
    }

    /// Cut to so many digits behind the point; `half_even` says where the middle goes.
    fn rounded(mut self, places: usize, half_even: bool) -> Self {
        if self.fraction.len() <= places {
            self.fraction.extend(std::iter::repeat_n('0', places - self.fraction.len()));
            return self;
        }
        let rest = self.fraction.split_off(places);
        let middle = rest.starts_with('5') && rest[1..].bytes().all(|digit| digit == b'0');
        let last = self.fraction.bytes().last().or_else(|| self.whole.bytes().last()).unwrap_or(b'0');
        let up = if middle && half_even { last % 2 == 1 } else { rest.as_bytes()[0] >= b'5' };
        if up {
            let mut digits: Vec<u8> = self.whole.bytes().chain(self.fraction.bytes()).collect();
            let mut at = digits.len();
            loop {
                if at == 0 {
                    digits.insert(0, b'1');
                    break;
                }
                at -= 1;
                if digits[at] == b'9' {
                    digits[at] = b'0';
                } else {
                    digits[at] += 1;
                    break;
                }
            }
            let all: String = digits.into_iter().map(char::from).collect();
            let (whole, fraction) = all.split_at(all.len() - places);
            (self.whole, self.fraction) = (whole.to_owned(), fraction.to_owned());
        }
        self
    }

    fn is_zero(&self) -> bool {
        self.whole.bytes().chain(self.fraction.bytes()).all(|digit| digit == b'0')
    }
}

fn grouped(digits: &str, size: usize) -> String {
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(size) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A `%` item of Java's `Formatter`.
#[derive(Default)]
struct Item {
    index: Option<usize>,
    flags: String,
    width: usize,
    precision: Option<usize>,
    conversion: char,
}

impl Item {
    fn parse(format: &str, rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Self> {
        let mut item = Self::default();
        let mut number = String::new();
        while let Some(c) = rest.next() {
            match c {
                '$' if !number.is_empty() => item.index = std::mem::take(&mut number).parse().ok(),
                '0' if number.is_empty() => item.flags.push('0'),
                c if c.is_ascii_digit() => number.push(c),
                '-' | '+' | ' ' | ',' | '(' | '#' => item.flags.push(c),
                '.' => {
                    let mut digits = String::new();
                    while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                        digits.push(digit);
                    }
                    item.precision = digits.parse().ok();
                }
                c => {
                    item.conversion = c;
                    item.width = number.parse().unwrap_or(0);
                    return Ok(item);
                }
            }
        }
        Err(illegal(format, "ends inside of a %"))
    }

    fn has(&self, flag: char) -> bool {
        self.flags.contains(flag)
    }

    fn padded(&self, text: &str, out: &mut String) {
        let missing = self.width.saturating_sub(text.chars().count());
        let blanks = |out: &mut String| out.extend(std::iter::repeat_n(' ', missing));
        if self.has('-') {
            out.push_str(text);
            blanks(out);
        } else {
            blanks(out);
            out.push_str(text);
        }
    }

    /// A number with its sign, filled up with zeros.
    fn signed(&self, negative: bool, digits: &str, out: &mut String) {
        let (before, behind) = match negative {
            true if self.has('(') => ("(", ")"),
            true => ("-", ""),
            false if self.has('+') => ("+", ""),
            false if self.has(' ') => (" ", ""),
            false => ("", ""),
        };
        let zeros =
            if self.has('0') { self.width.saturating_sub(before.len() + digits.len() + behind.len()) } else { 0 };
        self.padded(&format!("{before}{}{digits}{behind}", "0".repeat(zeros)), out);
    }

    fn write(&self, format: &str, value: Option<&dyn Shown>, row: usize, out: &mut String) -> Result<()> {
        let upper = self.conversion.is_uppercase();
        let mut text = String::new();
        let wrong = |value: &dyn Shown| illegal(format, &format!("has a %{} for {}", self.conversion, value.name()));
        match (self.conversion.to_ascii_lowercase(), value.filter(|value| !value.is_null(row))) {
            ('b', None) => self.padded("false", &mut text),
            ('s' | 'd' | 'x' | 'o' | 'f' | 'e' | 'g' | 'c', None) => self.padded("null", &mut text),
            ('b', Some(value)) => self.padded(&value.boolean(row).to_string(), &mut text),
            ('s', Some(value)) => {
                let shown = value.text(row)?;
                let cut = match self.precision {
                    Some(precision) => shown.chars().take(precision).collect(),
                    None => shown,
                };
                self.padded(&cut, &mut text);
            }
            ('c', Some(value)) => match value.integer(row).and_then(|code| char::from_u32(u32::try_from(code).ok()?)) {
                Some(c) => self.padded(c.encode_utf8(&mut [0; 4]), &mut text),
                None => return Err(wrong(value)),
            },
            (conversion @ ('d' | 'x' | 'o'), Some(value)) => {
                let Some(number) = value.integer(row) else { return Err(wrong(value)) };
                match conversion {
                    'd' => {
                        let digits = number.unsigned_abs().to_string();
                        let digits = if self.has(',') { grouped(&digits, 3) } else { digits };
                        self.signed(number < 0, &digits, &mut text);
                    }
                    'x' => self.signed(false, &value.bits(row, true), &mut text),
                    _ => self.signed(false, &value.bits(row, false), &mut text),
                }
            }
            (conversion @ ('f' | 'e' | 'g'), Some(value)) => {
                let Some(number) = value.float(row) else { return Err(wrong(value)) };
                if !number.is_finite() {
                    let name = if number.is_nan() { "NaN" } else { "Infinity" };
                    let plain = Self { flags: self.flags.replace('0', ""), ..Self::default() };
                    let mut signed = String::new();
                    plain.signed(number < 0.0, name, &mut signed);
                    self.padded(&signed, &mut text);
                } else {
                    let precision = self.precision.unwrap_or(6);
                    let negative = number.is_sign_negative();
                    let digits = match conversion {
                        'f' => fixed(number.abs(), precision),
                        'e' => scientific(number.abs(), precision),
                        _ => {
                            let precision = precision.max(1);
                            if number == 0.0 || (1e-4..10f64.powi(precision as i32)).contains(&number.abs()) {
                                let whole = number.abs().log10().floor().max(-5.0) as i32;
                                let places =
                                    if number == 0.0 { precision as i32 - 1 } else { precision as i32 - whole - 1 };
                                fixed(number.abs(), places.max(0) as usize)
                            } else {
                                scientific(number.abs(), precision - 1)
                            }
                        }
                    };
                    let digits = match digits.split_once('.') {
                        Some((whole, fraction)) if self.has(',') => format!("{}.{fraction}", grouped(whole, 3)),
                        None if self.has(',') => grouped(&digits, 3),
                        _ => digits,
                    };
                    self.signed(negative, &digits, &mut text);
                }
            }
            _ => return Err(illegal(format, &format!("has the unknown conversion %{}", self.conversion))),
        }
        out.push_str(&if upper { text.to_uppercase() } else { text });
        Ok(())
    }
}

fn joined(digits: &Digits) -> String {
    if digits.fraction.is_empty() { digits.whole.clone() } else { format!("{}.{}", digits.whole, digits.fraction) }
}

/// `%.nf`: of the shortest digits that mean the number, the middle goes up.
fn fixed(number: f64, places: usize) -> String {
    joined(&Digits::of(&number.to_string()).rounded(places, false))
}

/// `%.ne`
fn scientific(number: f64, places: usize) -> String {
    let shown = format!("{number:e}");
    let (mantissa, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
    let mut exponent: i32 = exponent.parse().unwrap_or(0);
    let mut rounded = Digits::of(mantissa).rounded(places, false);
    if rounded.whole.len() > 1 {
        exponent += 1;
        rounded.whole.pop();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", joined(&rounded), exponent.unsigned_abs())
}

/// A column as `format_string` sees it.
trait Shown {
    fn name(&self) -> String;
    fn is_null(&self, row: usize) -> bool;
    fn text(&self, row: usize) -> Result<String>;
    fn boolean(&self, row: usize) -> bool;
    fn integer(&self, row: usize) -> Option<i64>;
    fn float(&self, row: usize) -> Option<f64>;
    fn bits(&self, row: usize, hexadecimal: bool) -> String;
}

impl Shown for ArrayRef {
    fn name(&self) -> String {
        sql_name(self.data_type())
    }

    fn is_null(&self, row: usize) -> bool {
        Array::is_null(self, row)
    }

    fn text(&self, row: usize) -> Result<String> {
        // Spark hands dates and moments over as it keeps them.
        Ok(match self.data_type() {
            DataType::Date32 => self.as_primitive::<Date32Type>().value(row).to_string(),
            DataType::Timestamp(..) => self.as_primitive::<TimestampMicrosecondType>().value(row).to_string(),
            _ => show::text(&self.slice(row, 1))?.value(0).to_owned(),
        })
    }

    fn boolean(&self, row: usize) -> bool {
        self.as_boolean_opt().is_none_or(|values| values.value(row))
    }

    fn integer(&self, row: usize) -> Option<i64> {
        match self.data_type() {
            DataType::Date32 => Some(i64::from(self.as_primitive::<Date32Type>().value(row))),
            DataType::Timestamp(..) => Some(self.as_primitive::<TimestampMicrosecondType>().value(row)),
            data_type if is_integral(data_type) => {
                let wide = datafusion::arrow::compute::cast(&self.slice(row, 1), &DataType::Int64).ok()?;
                Some(wide.as_primitive::<Int64Type>().value(0))
            }
            _ => None,
        }
    }

    fn float(&self, row: usize) -> Option<f64> {
        match self.data_type() {
            DataType::Float32 => self.as_primitive::<Float32Type>().value(row).to_string().parse().ok(),
            DataType::Float64 => Some(self.as_primitive::<Float64Type>().value(row)),
            _ => None,
        }
    }

    fn bits(&self, row: usize, hexadecimal: bool) -> String {
        let value = self.integer(row).unwrap_or_default();
        let width = self.data_type().primitive_width().unwrap_or(8).max(1) * 8;
        let bits = if width >= 64 { value as u64 } else { (value as u64) & ((1 << width) - 1) };
        if hexadecimal { format!("{bits:x}") } else { format!("{bits:o}") }
    }
}

fn format_string(call: &Call<'_>) -> Result<ArrayRef> {
    let formats = call.text(0)?;
    let columns = call.arrays()?;
    rows::texts(&[&formats], |row| {
        let format = formats.value(row);
        let mut out = String::new();
        let mut rest = format.chars().peekable();
        let mut next = 1;
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let item = Item::parse(format, &mut rest)?;
            match item.conversion {
                '%' => item.padded("%", &mut out),
                'n' => out.push('\n'),
                _ => {
                    let at = item.index.unwrap_or_else(|| {
                        next += 1;
                        next - 1
                    });
                    let Some(column) = columns.get(at).filter(|_| at > 0) else {
                        return Err(illegal(format, "needs more values than there are"));
                    };
                    item.write(format, Some(column), row, &mut out)?;
                }
            }
        }
        Ok(Some(out))
    })
}

fn format_number_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let [of, format] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "format_number() needs 2 arguments"));
    };
    let format = if is_string(format) || format.is_null() { DataType::Utf8 } else { DataType::Int32 };
    match of {
        of if is_number(of) => Ok(vec![of.clone(), format]),
        DataType::Null => Ok(vec![DataType::Float64, format]),
        other => {
            Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("format_number() needs a number, not {}", sql_name(other))))
        }
    }
}

/// A pattern of Java's `DecimalFormat`.
struct NumberPattern {
    prefix: String,
    suffix: String,
    min_whole: usize,
    min_fraction: usize,
    max_fraction: usize,
    group: usize,
    shift: usize,
}

impl NumberPattern {
    fn places(places: usize) -> Self {
        Self {
            prefix: String::new(),
            suffix: String::new(),
            min_whole: 1,
            min_fraction: places,
            max_fraction: places,
            group: 3,
            shift: 0,
        }
    }

    fn parse(pattern: &str) -> Self {
        let positive = pattern.split(';').next().unwrap_or_default();
        let is_digit = |c: char| matches!(c, '#' | '0' | ',' | '.');
        let start = positive.find(is_digit).unwrap_or(positive.len());
        let end = positive.rfind(is_digit).map_or(start, |at| at + 1);
        let (whole, fraction) = positive[start..end].split_once('.').unwrap_or((&positive[start..end], ""));
        let shift = match positive {
            text if text.contains('%') => 2,
            text if text.contains('\u{2030}') => 3,
            _ => 0,
        };
        Self {
            prefix: positive[..start].replace('\'', ""),
            suffix: positive[end..].replace('\'', ""),
            min_whole: whole.matches('0').count(),
            min_fraction: fraction.matches('0').count(),
            max_fraction: fraction.len(),
            group: whole.rfind(',').map_or(0, |at| whole.len() - at - 1),
            shift,
        }
    }

    fn write(&self, mut digits: Digits) -> String {
        for _ in 0..self.shift {
            let next = if digits.fraction.is_empty() { '0' } else { digits.fraction.remove(0) };
            digits.whole.push(next);
        }
        let mut digits = digits.rounded(self.max_fraction, true);
        while digits.fraction.len() > self.min_fraction && digits.fraction.ends_with('0') {
            digits.fraction.pop();
        }
        let whole = digits.whole.trim_start_matches('0');
        let mut whole = format!("{whole:0>width$}", width = self.min_whole);
        if self.group > 0 {
            whole = grouped(&whole, self.group);
        }
        if whole.is_empty() && digits.fraction.is_empty() {
            whole.push('0');
        }
        let sign = if digits.negative { "-" } else { "" };
        let point = if digits.fraction.is_empty() { "" } else { "." };
        format!("{sign}{}{whole}{point}{}{}", self.prefix, digits.fraction, self.suffix)
    }
}

/// Numbers as exact decimal text; of floating-point numbers all digits that they have.
fn exact_digits(array: &ArrayRef) -> Result<Box<dyn Fn(usize) -> String + '_>> {
    Ok(match array.data_type() {
        DataType::Decimal128(..) => {
            let values = array.as_primitive::<Decimal128Type>();
            Box::new(move |row| values.value_as_string(row))
        }
        data_type if is_float(data_type) => {
            let values = datafusion::arrow::compute::cast(array, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>().clone();
            Box::new(move |row| match values.value(row) {
                value if value.is_finite() => {
                    let text = format!("{value:.400}");
                    text.trim_end_matches('0').trim_end_matches('.').to_owned()
                }
                value if value.is_nan() => "NaN".to_owned(),
                value => if value > 0.0 { "∞" } else { "-∞" }.to_owned(),
            })
        }
        data_type if is_integral(data_type) => {
            let values = datafusion::arrow::compute::cast(array, &DataType::Int64)?;
            let values = values.as_primitive::<Int64Type>().clone();
            Box::new(move |row| values.value(row).to_string())
        }
        other => return exec_err!("{other} is no number"),
    })
}

fn format_number(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let format = call.array(1)?;
    let digits = exact_digits(&of)?;
    let text = format.as_string_opt::<i32>();
    rows::texts(&[&of, &format], |row| {
        let pattern = match text {
            Some(text) if text.value(row).is_empty() => NumberPattern::parse("#,###,###,###,###,###,##0"),
            Some(text) => NumberPattern::parse(text.value(row)),
            None => match usize::try_from(format.as_primitive::<Int32Type>().value(row)) {
                Ok(places) => NumberPattern::places(places),
                Err(_) => return Ok(None),
            },
        };
        let shown = digits(row);
        if shown.ends_with(['N', '∞']) {
            return Ok(Some(shown));
        }
        Ok(Some(pattern.write(Digits::of(&shown))))
    })
}

fn to_char_args(types: &[DataType], zone: &Arc<str>) -> Result<Vec<DataType>> {
    let [of, format] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "to_char() needs 2 arguments"));
    };
    if !(is_string(format) || format.is_null()) {
        return Err(mismatch("UNEXPECTED_INPUT_TYPE", "the format of to_char() is a text"));
    }
    let of = match of {
        DataType::Date32 => super::types::timestamp(zone),
        DataType::Timestamp(..) | DataType::Binary => of.clone(),
        of if is_decimal(of) => of.clone(),
        DataType::Int8 => DataType::Decimal128(3, 0),
        DataType::Int16 => DataType::Decimal128(5, 0),
        DataType::Int32 => DataType::Decimal128(10, 0),
        DataType::Int64 => DataType::Decimal128(20, 0),
        of if is_string(of) || is_float(of) => DataType::Decimal128(38, 18),
        other => {
            return Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("to_char() does not work on {}", sql_name(other))));
        }
    };
    Ok(vec![of, DataType::Utf8])
}

fn to_char(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let formats = call.text(1)?;
    match of.data_type() {
        DataType::Timestamp(..) => super::dates::formatted(&of, &formats),
        DataType::Binary => {
            let bytes = of.as_binary::<i32>();
            rows::texts(&[&of, &formats], |row| {
                let bytes = bytes.value(row);
                Ok(Some(match formats.value(row).to_lowercase().as_str() {
                    "base64" => super::encodings::base64_text(bytes),
                    "hex" => bytes.iter().fold(String::new(), |mut out, byte| {
                        // Writing to a String cannot fail.
                        let _ = write!(out, "{byte:02X}");
                        out
                    }),
                    "utf-8" | "utf8" => String::from_utf8_lossy(bytes).into_owned(),
                    other => {
                        return Err(failed(
                            "INVALID_PARAMETER_VALUE.BINARY_FORMAT",
                            format!("'{other}' is no format of to_char(): use base64, hex or utf-8"),
                        ));
                    }
                }))
            })
        }
        _ => {
            let numbers = of.as_primitive::<Decimal128Type>();
            rows::texts(&[&of, &formats], |row| {
                let format = NumberFormat::parse(formats.value(row))?;
                Ok(Some(format.write(&Digits::of(&numbers.value_as_string(row)))))
            })
        }
    }
}

/// A format of `to_char` and `to_number`.
#[derive(Default)]
struct NumberFormat {
    /// `9`, `0` and `,`.
    whole: Vec<char>,
    fraction: Vec<char>,
    dollar: bool,
    /// `S` or `MI` at the start (true) or at the end.
    sign: Option<(char, bool)>,
    brackets: bool,
}

impl NumberFormat {
    fn parse(format: &str) -> Result<Self> {
        let wrong = |condition: &str, what: &str| {
            failed(
                condition,
                format!("the number format '{format}' {what}: it is made of 0, 9, G or ',', D or '.', S, MI, PR and $"),
            )
        };
        if !format.contains(['0', '9']) {
            return Err(wrong("INVALID_FORMAT.WRONG_NUM_DIGIT", "has no digit"));
        }
        let mut parsed = Self::default();
        let text = format.to_uppercase();
        let mut rest = text.as_str();
        let mut behind_point = false;
        let mut seen_digit = false;
        while let Some(c) = rest.chars().next() {
            let mut length = c.len_utf8();
            match c {
                '0' | '9' => {
                    seen_digit = true;
                    if behind_point { parsed.fraction.push(c) } else { parsed.whole.push(c) }
                }
                'G' | ',' if !behind_point && seen_digit => parsed.whole.push(','),
                'D' | '.' if !behind_point => behind_point = true,
                '$' if !parsed.dollar && !seen_digit => parsed.dollar = true,
                'S' if parsed.sign.is_none() => parsed.sign = Some(('S', !seen_digit)),
                _ if rest.starts_with("MI") && parsed.sign.is_none() => {
                    parsed.sign = Some(('M', !seen_digit));
                    length = 2;
                }
                _ if rest.starts_with("PR") => {
                    parsed.brackets = true;
                    length = 2;
                }
                _ => return Err(wrong("INVALID_FORMAT.UNEXPECTED_TOKEN", &format!("has '{c}' where it cannot be"))),
            }
            rest = &rest[length..];
        }
        Ok(parsed)
    }

    fn places(&self) -> usize {
        self.whole.iter().filter(|c| **c != ',').count()
    }

    fn write(&self, number: &Digits) -> String {
        let places = self.places();
        let digits = number.whole.trim_start_matches('0');
        let too_long = digits.len() > places || number.fraction.trim_end_matches('0').len() > self.fraction.len();
        let padded = format!("{digits:0>places$}");
        let mut of_number = padded.chars();
        let mut out = String::new();
        // Nothing stands before the first digit that counts.
        let mut started = false;
        let first_digit = places - digits.len().min(places);
        let mut at = 0;
        let last = self.whole.iter().rposition(|c| *c != ',');
        for (position, c) in self.whole.iter().enumerate() {
            if *c == ',' {
                out.push(if too_long {
                    '#'
                } else if started {
                    ','
                } else {
                    ' '
                });
                continue;
            }
            let digit = of_number.next().unwrap_or('0');
            started |= at >= first_digit || *c == '0' || Some(position) == last;
            out.push(if too_long {
                '#'
            } else if started {
                digit
            } else {
                ' '
            });
            at += 1;
        }
        if !self.fraction.is_empty() {
            out.push('.');
            let fraction = format!("{:0<width$}", number.fraction, width = self.fraction.len());
            out.extend(fraction.chars().take(self.fraction.len()).map(|digit| if too_long { '#' } else { digit }));
        }
        // Signs stand next to the digits.
        let blanks = out.len() - out.trim_start_matches(' ').len();
        let mut text = out.split_off(blanks);
        if self.dollar {
            text.insert(0, '$');
        }
        let negative = number.negative && !number.is_zero();
        match self.sign {
            Some(('S', true)) => text.insert(0, if negative { '-' } else { '+' }),
            Some(('S', false)) => text.push(if negative { '-' } else { '+' }),
            Some((_, true)) if negative => text.insert(0, '-'),
            Some((_, true)) => out.push(' '),
            Some((_, false)) => text.push(if negative { '-' } else { ' ' }),
            None if self.brackets && negative => text = format!("<{text}>"),
            None if self.brackets => text.push(' '),
            None if negative => text.insert(0, '-'),
            None => {}
        }
        out + &text
    }

    /// The number that a text means.
    fn read(&self, text: &str) -> Option<i128> {
        let mut text = text.trim();
        let mut negative = false;
        if self.brackets
            && let Some(inner) = text.strip_prefix('<').and_then(|text| text.strip_suffix('>'))
        {
            (text, negative) = (inner, true);
        }
        if let Some((_, first)) = self.sign {
            let found = if first { text.strip_prefix(['-', '+']) } else { text.strip_suffix(['-', '+']) };
            if let Some(rest) = found {
                negative = if first { text.starts_with('-') } else { text.ends_with('-') };
                text = rest;
            }
        }
        text = text.trim();
        if self.dollar {
            text = text.strip_prefix('$')?;
        }
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = whole.replace(',', "");
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let groups =
            |of: &str| of.chars().rev().enumerate().filter(|(_, c)| *c == ',').map(|(at, _)| at).collect::<Vec<_>>();
        let pattern: String = self.whole.iter().collect();
        let fits = !(digits.is_empty() && fraction.is_empty())
            && all_digits(&digits)
            && all_digits(fraction)
            && digits.len() <= self.places()
            && fraction.len() <= self.fraction.len()
            && groups(whole).iter().all(|at| groups(&pattern).contains(at))
            && (groups(whole).len() == groups(&pattern).iter().filter(|at| **at < whole.len()).count());
        if !fits {
            return None;
        }
        let padded = format!("{digits}{fraction:0<width$}", width = self.fraction.len());
        let number: i128 = padded.parse().ok()?;
        Some(if negative { -number } else { number })
    }
}

fn to_number_type(_: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    match constants.get(1) {
        Some(Some(ScalarValue::Utf8(Some(format)))) => {
            let format = NumberFormat::parse(format)?;
            let scale = format.fraction.len();
            Ok(DataType::Decimal128((format.places() + scale) as u8, scale as i8))
        }
        Some(None) => Err(mismatch("NON_FOLDABLE_INPUT", "the format of to_number() must be a constant text")),
        _ => Ok(DataType::Decimal128(38, 18)),
    }
}

fn to_number(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let (text, format) = (call.text(0)?, call.text(1)?);
    let numbers: PrimitiveArray<Decimal128Type> = rows::numbers(&[&text, &format], |row| {
        let format_text = format.value(row);
        match NumberFormat::parse(format_text)?.read(text.value(row)) {
            Some(number) => Ok(Some(number)),
            None if lenient => Ok(None),
            None => Err(failed(
                "INVALID_FORMAT.MISMATCH_INPUT",
                format!("the text '{}' does not have the format '{format_text}': use try_to_number()", text.value(row)),
            )),
        }
    })?;
    let numbers: ArrayRef = Arc::new(numbers.with_data_type(call.returns.clone()));
    cast_array(&numbers, call.returns, lenient)
}
