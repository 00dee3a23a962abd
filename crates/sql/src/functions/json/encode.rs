//! Values as JSON.

use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Date32Type, Float32Type, Float64Type, TimestampMicrosecondType};
use datafusion::common::Result;

use base64::Engine;

use super::text::quoted;
use super::{flag, option, options};
use crate::error::failed;
use crate::functions::cast::read::parse_zone;
use crate::functions::cast::{show, time};
use crate::functions::function::Call;
use crate::functions::patterns::{Pattern, Zone};
use crate::functions::rows;

/// How times are written.
pub(in crate::functions) struct Times {
    moments: Pattern,
    locals: Pattern,
    dates: Option<Pattern>,
    zone: String,
    tz: Tz,
}

impl Times {
    pub(in crate::functions) fn of(options: &[(String, String)], session: &str) -> Result<Self> {
        let pattern = |name, default| Pattern::compile(option(options, name).unwrap_or(default), false);
        let zone = option(options, "timeZone").unwrap_or(session).to_owned();
        let tz = parse_zone(&zone).ok_or_else(|| failed("INVALID_TIMEZONE", format!("'{zone}' is no time zone")))?;
        Ok(Self {
            moments: pattern("timestampFormat", "yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX]")?,
            locals: pattern("timestampNTZFormat", "yyyy-MM-dd'T'HH:mm:ss[.SSS]")?,
            dates: option(options, "dateFormat").map(|format| Pattern::compile(format, false)).transpose()?,
            zone,
            tz,
        })
    }

    pub(in crate::functions) fn moment(&self, micros: i64, has_zone: bool, out: &mut String) {
        let zone = Zone { name: &self.zone, tz: self.tz };
        let local = time::local(micros, has_zone.then_some(self.tz));
        if let (Some(utc), Some(local)) = (time::naive(micros), local) {
            let pattern = if has_zone { &self.moments } else { &self.locals };
            pattern.write(local, utc, &zone, out);
        }
    }

    pub(in crate::functions) fn day(&self, days: i32, out: &mut String) {
        match (&self.dates, time::day(days)) {
            (Some(pattern), Some(day)) => {
                let midnight = day.and_time(chrono::NaiveTime::MIN);
                pattern.write(midnight, midnight, &Zone { name: &self.zone, tz: self.tz }, out);
            }
            _ => time::show_date(days, out),
        }
    }
}

struct Writer {
    times: Times,
    skip_null: bool,
    pretty: bool,
}

pub(super) fn to_json(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let options = options(call, 1)?;
    let writer = Writer {
        times: Times::of(&options, call.zone)?,
        skip_null: flag(&options, "ignoreNullFields", true),
        pretty: flag(&options, "pretty", false),
    };
    rows::texts(&[&of], |row| {
        let mut out = String::new();
        writer.value(&of, row, 0, &mut out)?;
        Ok(Some(out))
    })
}

impl Writer {
    fn value(&self, of: &ArrayRef, row: usize, depth: usize, out: &mut String) -> Result<()> {
        if of.is_null(row) || of.data_type().is_null() {
            out.push_str("null");
            return Ok(());
        }
        let text = |of: &ArrayRef| show::text(&of.slice(row, 1));
        match of.data_type() {
            DataType::Struct(fields) => {
                let columns = of.as_struct().columns();
                let shown: Vec<(&str, &ArrayRef)> = fields
                    .iter()
                    .map(|field| field.name().as_str())
                    .zip(columns)
                    .filter(|(_, column)| !self.skip_null || column.logical_nulls().is_none_or(|n| n.is_valid(row)))
                    .collect();
                self.members(out, depth, ['{', '}'], shown.len(), |at, out| {
                    let (name, column) = shown[at];
                    self.name(name, out);
                    self.value(column, row, depth + 1, out)
                })
            }
            DataType::Map(..) => {
                let map = of.as_map();
                let range = map.value_offsets()[row] as usize..map.value_offsets()[row + 1] as usize;
                let keys = match map.keys().data_type() {
                    // Spark shows a struct as key by its values.
                    DataType::Struct(_) => {
                        let of = map.keys().as_struct();
                        let columns = of.columns().iter().map(show::text).collect::<Result<Vec<_>>>()?;
                        let shown = |row: usize| -> String {
                            let values: Vec<&str> = columns
                                .iter()
                                .map(|column| if column.is_null(row) { "null" } else { column.value(row) })
                                .collect();
                            format!("[{}]", values.join(","))
                        };
                        (0..of.len()).map(|row| Some(shown(row))).collect()
                    }
                    _ => show::text(map.keys())?,
                };
                self.members(out, depth, ['{', '}'], range.len(), |at, out| {
                    let entry = range.start + at;
                    self.name(keys.value(entry), out);
                    self.value(map.values(), entry, depth + 1, out)
                })
            }
            DataType::List(_) => {
                let list = of.as_list::<i32>();
                let range = list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize;
                let values = list.values();
                if self.pretty {
                    out.push_str(if range.is_empty() { "[" } else { "[ " });
                    for (at, element) in range.clone().enumerate() {
                        out.push_str(if at > 0 { ", " } else { "" });
                        self.value(values, element, depth, out)?;
                    }
                    out.push_str(" ]");
                    return Ok(());
                }
                out.push('[');
                for (at, element) in range.enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    self.value(values, element, depth + 1, out)?;
                }
                out.push(']');
                Ok(())
            }
            DataType::Utf8 => {
                quoted(of.as_string::<i32>().value(row), out);
                Ok(())
            }
            DataType::Binary => {
                let bytes = of.as_binary::<i32>().value(row);
                quoted(&base64::engine::general_purpose::STANDARD.encode(bytes), out);
                Ok(())
            }
            DataType::Date32 => {
                let mut text = String::new();
                self.times.day(of.as_primitive::<Date32Type>().value(row), &mut text);
                quoted(&text, out);
                Ok(())
            }
            DataType::Timestamp(_, zone) => {
                let mut text = String::new();
                self.times.moment(of.as_primitive::<TimestampMicrosecondType>().value(row), zone.is_some(), &mut text);
                quoted(&text, out);
                Ok(())
            }
            DataType::Float64 if !of.as_primitive::<Float64Type>().value(row).is_finite() => {
                quoted(text(of)?.value(0), out);
                Ok(())
            }
            DataType::Float32 if !of.as_primitive::<Float32Type>().value(row).is_finite() => {
                quoted(text(of)?.value(0), out);
                Ok(())
            }
            DataType::Interval(_) => {
                quoted(text(of)?.value(0), out);
                Ok(())
            }
            _ => {
                out.push_str(text(of)?.value(0));
                Ok(())
            }
        }
    }

    fn name(&self, name: &str, out: &mut String) {
        quoted(name, out);
        out.push_str(if self.pretty { " : " } else { ":" });
    }

    fn members(
        &self,
        out: &mut String,
        depth: usize,
        brackets: [char; 2],
        count: usize,
        write: impl Fn(usize, &mut String) -> Result<()>,
    ) -> Result<()> {
        out.push(brackets[0]);
        for at in 0..count {
            if at > 0 {
                out.push(',');
            }
            if self.pretty {
                out.push('\n');
                out.push_str(&"  ".repeat(depth + 1));
            }
            write(at, out)?;
        }
        if self.pretty && count > 0 {
            out.push('\n');
            out.push_str(&"  ".repeat(depth));
        } else if self.pretty {
            out.push(' ');
        }
        out.push(brackets[1]);
        Ok(())
    }
}
