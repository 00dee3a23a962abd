//! Interval literals: Spark's forms as the one that the planner reads.

use datafusion::sql::sqlparser::ast::{Expr, Interval, UnaryOperator, Value};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Whitespace, Word};

const SECOND: i128 = 1_000_000;

/// Months, or microseconds, of one unit.
fn length(unit: &str) -> Option<(i128, i128)> {
    Some(match unit.to_ascii_uppercase().trim_end_matches('S') {
        "YEAR" => (12, 0),
        "MONTH" => (1, 0),
        "WEEK" => (0, 7 * 86_400 * SECOND),
        "DAY" => (0, 86_400 * SECOND),
        "HOUR" => (0, 3_600 * SECOND),
        "MINUTE" => (0, 60 * SECOND),
        "SECOND" => (0, SECOND),
        "MILLISECOND" => (0, 1_000),
        "MICROSECOND" => (0, 1),
        _ => return None,
    })
}

/// A number, in microseconds of a unit of so many.
fn count(text: &str, unit: i128) -> Option<i128> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || fraction.len() > 9 || !(whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit())) {
        return None;
    }
    let fraction: i128 = format!("{fraction:0<9}").parse().ok()?;
    let total = whole.parse::<i128>().ok()?.checked_mul(unit)? + fraction * unit / 1_000_000_000;
    Some(if negative { -total } else { total })
}

/// Months and microseconds of a literal.
fn value_of(interval: &Interval) -> Option<(i128, i128)> {
    let text = match interval.value.as_ref() {
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => format!("-{}", plain(expr)?),
        expr => plain(expr)?,
    };
    let first = interval.leading_field.as_ref()?.to_string();
    match &interval.last_field {
        None => {
            let (months, micros) = length(&first)?;
            let by = count(&text, months + micros)?;
            Some(if months > 0 { (by, 0) } else { (0, by) })
        }
        Some(last) => between(text.trim(), &first, &last.to_string()),
    }
}

/// `1-2` of YEAR TO MONTH, `1 02:03:04.5` of DAY TO SECOND, and what begins or ends inside of these.
fn between(text: &str, first: &str, last: &str) -> Option<(i128, i128)> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let sign = |value: i128| if negative { -value } else { value };
    if first.eq_ignore_ascii_case("year") {
        let (years, months) = text.split_once('-')?;
        return Some((sign(count(years, 12)? + count(months, 1)?), 0));
    }
    const UNITS: [&str; 4] = ["DAY", "HOUR", "MINUTE", "SECOND"];
    let place = |name: &str| UNITS.iter().position(|unit| name.eq_ignore_ascii_case(unit));
    let units = UNITS.get(place(first)?..=place(last)?)?;
    let parts: Vec<&str> = text.split([' ', ':']).filter(|part| !part.is_empty()).collect();
    if parts.len() != units.len() {
        return None;
    }
    let mut micros = 0;
    for (part, unit) in parts.iter().zip(units) {
        micros += count(part, length(unit)?.1)?;
    }
    Some((0, sign(micros)))
}

fn plain(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => Some(digits.clone()),
            Value::SingleQuotedString(text) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// The same interval, in the words of the planner.
pub(super) fn rewritten(interval: &Interval) -> Option<Expr> {
    let (months, micros) = value_of(interval)?;
    let (days, rest) = (micros / (86_400 * SECOND), micros % (86_400 * SECOND));
    let text = format!("{months} months {days} days {rest} microseconds");
    Some(Expr::Interval(Interval {
        value: Box::new(Expr::Value(Value::SingleQuotedString(text).with_empty_span())),
        leading_field: None,
        leading_precision: None,
        last_field: None,
        fractional_seconds_precision: None,
    }))
}

/// Where `INTERVAL` stands before several units (`1 DAY 2 HOURS`, `'10 minutes'`): the tokens of one literal, and how many they stand for.
pub(super) fn of_several_units(rest: &[TokenWithSpan]) -> Option<(Vec<Token>, usize)> {
    let is_space = |token: &Token| matches!(token, Token::Whitespace(_));
    let words: Vec<(usize, &Token)> =
        rest.iter().map(|token| &token.token).enumerate().filter(|(_, token)| !is_space(token)).collect();
    let unit_at = |at: usize| match words.get(at) {
        Some((_, Token::Word(Word { value, .. }))) => length(value).map(|_| value.as_str()),
        _ => None,
    };
    let mut parts: Vec<(String, String)> = Vec::new();
    let mut taken = 0;
    if let (Some((_, Token::SingleQuotedString(text))), None) = (words.first(), unit_at(1)) {
        // All of it is text.
        let text = text.trim();
        let text = text.strip_prefix("interval ").or_else(|| text.strip_prefix("INTERVAL ")).unwrap_or(text);
        let pieces: Vec<&str> = text.split_whitespace().collect();
        if pieces.is_empty() || !pieces.len().is_multiple_of(2) {
            return None;
        }
        for pair in pieces.chunks(2) {
            length(pair[1])?;
            parts.push((pair[0].to_owned(), pair[1].to_uppercase()));
        }
        taken = words.first().map_or(0, |(at, _)| at + 1);
    } else {
        let mut at = 0;
        loop {
            let (sign, value_at) = match words.get(at) {
                Some((_, Token::Minus)) => ("-", at + 1),
                Some((_, Token::Plus)) => ("", at + 1),
                _ => ("", at),
            };
            let value = match words.get(value_at) {
                Some((_, Token::Number(digits, _))) => digits.clone(),
                Some((_, Token::SingleQuotedString(text))) => text.clone(),
                _ => break,
            };
            let Some(unit) = unit_at(value_at + 1) else { break };
            parts.push((format!("{sign}{value}"), unit.to_uppercase()));
            at = value_at + 2;
            taken = words.get(at - 1).map_or(taken, |(place, _)| place + 1);
        }
        // One unit is for the parser, and `TO` belongs to the unit before it.
        if parts.len() < 2 {
            return None;
        }
    }
    let mut months = 0;
    let mut micros = 0;
    for (value, unit) in &parts {
        let (of_months, of_micros) = length(unit)?;
        months += count(value, of_months)?;
        micros += count(value, of_micros)?;
    }
    let is_months = parts.iter().any(|(_, unit)| length(unit).is_some_and(|(months, _)| months > 0));
    let is_micros = parts.iter().any(|(_, unit)| length(unit).is_some_and(|(_, micros)| micros > 0));
    if is_months && is_micros {
        return None;
    }
    let (first, last, text) = if is_months {
        let sign = if months < 0 { "-" } else { "" };
        let months = months.abs();
        ("YEAR", "MONTH", format!("{sign}{}-{}", months / 12, months % 12))
    } else {
        const UNITS: [&str; 4] = ["DAY", "HOUR", "MINUTE", "SECOND"];
        let place = |unit: &str| match unit.trim_end_matches('S') {
            "WEEK" | "DAY" => 0,
            "HOUR" => 1,
            "MINUTE" => 2,
            _ => 3,
        };
        let first = parts.iter().map(|(_, unit)| place(unit)).min()?;
        let last = parts.iter().map(|(_, unit)| place(unit)).max()?;
        let sign = if micros < 0 { "-" } else { "" };
        let magnitude = micros.abs();
        let mut left = magnitude;
        let mut shown = Vec::new();
        for (at, unit) in UNITS.iter().enumerate().take(last + 1).skip(first) {
            let unit = length(unit)?.1;
            let value = left / unit;
            left %= unit;
            shown.push(match (at, at == first) {
                (0, _) | (_, true) if at != 3 => value.to_string(),
                (3, _) if left > 0 => format!("{value:02}.{}", format!("{left:06}").trim_end_matches('0')),
                _ => format!("{value:02}"),
            });
        }
        let text = match (first, shown.as_slice()) {
            (0, [days, clock @ ..]) if !clock.is_empty() => format!("{days} {}", clock.join(":")),
            (_, all) => all.join(":"),
        };
        (UNITS[first], UNITS[last], format!("{sign}{text}"))
    };
    let space = Token::Whitespace(Whitespace::Space);
    let mut tokens = vec![Token::SingleQuotedString(text), space.clone(), Token::make_keyword(first)];
    if first != last {
        tokens.extend([space.clone(), Token::make_keyword("TO"), space, Token::make_keyword(last)]);
    }
    Some((tokens, taken))
}
