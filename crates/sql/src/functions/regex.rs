//! Java's regular expressions, and LIKE.
//!
//! A pattern is translated where the two languages differ: `\d`, `\w` and `\s` are ASCII, `.` stops at every line terminator, `$` also
//! matches before the last one, `\h`, `\R`, `\Q…\E`, POSIX classes and Java's own names of classes. What cannot be said, and is refused:
//! look-around, back references, atomic groups, `\G` and blocks (`\p{InGreek}`). `(?i)` is for all of Unicode, in Java for ASCII alone, and
//! a possessive quantifier gives back what it took.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::arrow::datatypes::Int32Type;
use datafusion::common::Result;
use regex::{Captures, Regex};

use super::function::{Arg, Args, Call, Spec, returns};
use super::rows;
use crate::error::failed;

const TWO: Args = Args::Fixed(2, &[Arg::Text, Arg::Text]);

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("rlike", TWO, returns::bool, |call| {
        let (text, pattern) = (call.text(0)?, call.text(1)?);
        let mut patterns = Patterns::default();
        rows::bools(&[&text, &pattern], |row| {
            let text = text.value(row);
            Ok(Some(patterns.of(pattern.value(row))?.next(text, 0).is_some()))
        })
    })
    .or(&["regexp", "regexp_like"]),
    &Spec::new("regexp_extract", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Int]), returns::text, |call| {
        let (text, pattern, group) = (call.text(0)?, call.text(1)?, group(call)?);
        let mut patterns = Patterns::default();
        rows::texts(&[&text, &pattern, &group], |row| {
            let text = text.value(row);
            let regex = patterns.of(pattern.value(row))?;
            let found = regex.next(text, 0);
            let Some(found) = found else { return Ok(Some("")) };
            let group = regex.group("regexp_extract", group.value(row))?;
            Ok(Some(found.get(group).map_or("", |found| found.as_str())))
        })
    }),
    &Spec::new("regexp_extract_all", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Int]), returns::texts, |call| {
        let (text, pattern, group) = (call.text(0)?, call.text(1)?, group(call)?);
        let mut patterns = Patterns::default();
        rows::lists(&[&text, &pattern, &group], |row| {
            let text = text.value(row);
            let regex = patterns.of(pattern.value(row))?;
            let mut all = Vec::new();
            regex.each(text, |found| {
                let group = regex.group("regexp_extract_all", group.value(row))?;
                all.push(found.get(group).map_or("", |found| found.as_str()));
                Ok(())
            })?;
            Ok(Some(all))
        })
    }),
    &Spec::new(
        "regexp_replace",
        Args::Fixed(3, &[Arg::Text, Arg::Text, Arg::Text, Arg::Int]),
        returns::text,
        regexp_replace,
    ),
    &Spec::new("regexp_count", TWO, returns::int, |call| {
        let (text, pattern) = (call.text(0)?, call.text(1)?);
        let mut patterns = Patterns::default();
        let counts = rows::numbers::<Int32Type>(&[&text, &pattern], |row| {
            let mut count = 0;
            patterns.of(pattern.value(row))?.each(text.value(row), |_| {
                count += 1;
                Ok(())
            })?;
            Ok(Some(count))
        });
        Ok(Arc::new(counts?))
    }),
    &Spec::new("regexp_instr", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Int]), returns::int, |call| {
        let (text, pattern, group) = (call.text(0)?, call.text(1)?, group(call)?);
        let mut patterns = Patterns::default();
        let found = rows::numbers::<Int32Type>(&[&text, &pattern, &group], |row| {
            let text = text.value(row);
            let found = patterns.of(pattern.value(row))?.next(text, 0).and_then(|found| found.get(0));
            Ok(Some(found.map_or(0, |found| text[..found.start()].chars().count() as i32 + 1)))
        });
        Ok(Arc::new(found?))
    }),
    &Spec::new("regexp_substr", TWO, returns::text, |call| {
        let (text, pattern) = (call.text(0)?, call.text(1)?);
        let mut patterns = Patterns::default();
        rows::texts(&[&text, &pattern], |row| {
            let found = patterns.of(pattern.value(row))?.next(text.value(row), 0);
            // An empty match counts as none.
            Ok(found.and_then(|found| found.get(0)).map(|found| found.as_str()).filter(|found| !found.is_empty()))
        })
    }),
    &Spec::new("split", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Int]), returns::texts, split),
    &Spec::new("spark_like", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Text]), returns::bool, |call| {
        like(call, false)
    }),
    &Spec::new("spark_ilike", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Text]), returns::bool, |call| {
        like(call, true)
    }),
];

fn group(call: &Call<'_>) -> Result<datafusion::arrow::array::Int32Array> {
    match call.len() {
        2 => Ok(datafusion::arrow::array::Int32Array::from(vec![1; call.rows])),
        _ => call.numbers::<Int32Type>(2),
    }
}

/// The patterns of one call; each is compiled once.
#[derive(Default)]
struct Patterns {
    compiled: HashMap<String, JavaRegex>,
}

impl Patterns {
    fn of(&mut self, pattern: &str) -> Result<&JavaRegex> {
        if !self.compiled.contains_key(pattern) {
            let compiled = JavaRegex::compile(pattern).map_err(|error| {
                failed("INVALID_PARAMETER_VALUE.PATTERN", format!("'{pattern}' is no regular expression: {error}"))
            })?;
            self.compiled.insert(pattern.to_owned(), compiled);
        }
        Ok(&self.compiled[pattern])
    }
}

/// A compiled pattern.
struct JavaRegex {
    regex: Regex,
    /// Whether the pattern has a `$`, which also matches before the last line terminator.
    has_end: bool,
}

impl JavaRegex {
    fn compile(pattern: &str) -> Result<Self, String> {
        let (translated, has_end) = Translation::of(pattern)?;
        Ok(Self { regex: Regex::new(&translated).map_err(|error| error.to_string())?, has_end })
    }

    /// The first match that begins at a place or behind it.
    fn next<'t>(&self, text: &'t str, from: usize) -> Option<Captures<'t>> {
        let found = self.regex.captures_at(text, from);
        let ended = text.strip_suffix("\r\n").or_else(|| text.strip_suffix(LINE_TERMINATORS)).filter(|_| self.has_end);
        let Some(before) =
            ended.filter(|before| from <= before.len()).and_then(|text| self.regex.captures_at(text, from))
        else {
            return found;
        };
        let start = |captures: &Captures<'_>| captures.get(0).map_or(0, |found| found.start());
        match found {
            Some(found) if start(&found) <= start(&before) => Some(found),
            _ => Some(before),
        }
    }

    /// All matches as Java's `find()` gives them.
    fn each<'t>(&self, text: &'t str, mut with: impl FnMut(Captures<'t>) -> Result<()>) -> Result<()> {
        let mut from = 0;
        while from <= text.len() {
            let Some(captures) = self.next(text, from) else { break };
            let Some(found) = captures.get(0) else { break };
            from = if found.end() > found.start() {
                found.end()
            } else {
                found.end() + text[found.end()..].chars().next().map_or(1, char::len_utf8)
            };
            with(captures)?;
        }
        Ok(())
    }

    fn group(&self, of: &str, group: i32) -> Result<usize> {
        let groups = self.regex.captures_len() - 1;
        match usize::try_from(group) {
            Ok(group) if group <= groups => Ok(group),
            _ => Err(failed(
                "INVALID_PARAMETER_VALUE.REGEX_GROUP_INDEX",
                format!("the pattern of {of}() has {groups} groups, and none of number {group}"),
            )),
        }
    }
}

/// A pattern on its way from Java's language.
struct Translation<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    out: String,
    has_end: bool,
}

const LINE_TERMINATORS: [char; 5] = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
const HORIZONTAL: &str = r" \t\x{A0}\x{1680}\x{180e}\x{2000}-\x{200a}\x{202f}\x{205f}\x{3000}";
const VERTICAL: &str = r"\n\x0B\f\r\x{85}\x{2028}\x{2029}";

impl<'a> Translation<'a> {
    fn of(pattern: &'a str) -> Result<(String, bool), String> {
        let mut translation = Self { rest: pattern.chars().peekable(), out: String::new(), has_end: false };
        translation.run()?;
        Ok((translation.out, translation.has_end))
    }

    fn run(&mut self) -> Result<(), String> {
        // Flags of the groups around: `s` and `m`.
        let mut flags = vec![(false, false)];
        while let Some(c) = self.rest.next() {
            let (dot_all, multi_line) = flags.last().copied().unwrap_or_default();
            match c {
                '\\' => self.escape(false)?,
                '[' => self.class()?,
                '.' if dot_all => self.out.push_str("(?s:.)"),
                '.' => self.out.push_str(r"[^\n\r\x{85}\x{2028}\x{2029}]"),
                '$' if multi_line => self.out.push_str("(?m:$)"),
                '$' => {
                    self.has_end = true;
                    self.out.push_str(r"\z");
                }
                '^' if multi_line => self.out.push_str("(?m:^)"),
                '(' => {
                    flags.push((dot_all, multi_line));
                    self.out.push('(');
                    self.group(&mut flags)?;
                }
                ')' => {
                    if flags.len() > 1 {
                        flags.pop();
                    }
                    self.out.push(')');
                }
                // Literal where nothing opens it.
                ']' | '}' => self.out.extend(['\\', c]),
                '{' => {
                    self.out.push('{');
                    for c in self.rest.by_ref() {
                        self.out.push(c);
                        if c == '}' {
                            break;
                        }
                        if !c.is_ascii_digit() && c != ',' {
                            return Err("a number is missing behind `{`".to_owned());
                        }
                    }
                }
                c => self.out.push(c),
            }
        }
        Ok(())
    }

    /// What stands behind `(`.
    fn group(&mut self, flags: &mut Vec<(bool, bool)>) -> Result<(), String> {
        if self.rest.peek() != Some(&'?') {
            return Ok(());
        }
        self.rest.next();
        match self.rest.peek().copied() {
            Some('<' | ':' | '=' | '!' | '>') => {
                self.out.push('?');
                Ok(())
            }
            _ => {
                let mut on = true;
                let mut text = String::new();
                let Some((outer, inner)) = flags.len().checked_sub(2).map(|outer| (outer, outer + 1)) else {
                    return Ok(());
                };
                for c in self.rest.by_ref() {
                    match c {
                        ')' | ':' => {
                            // Flags without a group hold until the group around them ends.
                            if c == ')' {
                                let set = flags.pop().unwrap_or_default();
                                flags[outer] = set;
                            }
                            let text = text.trim_end_matches('-');
                            match (c, text.is_empty()) {
                                (')', true) => {
                                    self.out.pop();
                                }
                                (_, true) => self.out.push_str("?:"),
                                (c, false) => {
                                    self.out.push('?');
                                    self.out.push_str(text);
                                    self.out.push(c);
                                }
                            }
                            return Ok(());
                        }
                        '-' => {
                            on = false;
                            text.push('-');
                        }
                        's' => flags[inner].0 = on,
                        'm' => flags[inner].1 = on,
                        'i' | 'x' => text.push(c),
                        'u' | 'd' | 'U' => {}
                        '#' => return Err("`(?#` is no group".to_owned()),
                        other => return Err(format!("`{other}` is no flag")),
                    }
                }
                Err("a group is not closed".to_owned())
            }
        }
    }

    fn hex(&mut self, digits: usize) -> Result<u32, String> {
        let code: String = self.rest.by_ref().take(digits).collect();
        u32::from_str_radix(&code, 16).map_err(|_| format!("`{code}` is no code of a character"))
    }

    fn code(&mut self, code: u32) -> Result<(), String> {
        match char::from_u32(code) {
            Some(_) => {
                self.out.push_str(&format!("\\x{{{code:x}}}"));
                Ok(())
            }
            None => Err(format!("{code:x} is no code of a character")),
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let Some(c) = self.rest.next() else { return Err("a backslash ends the pattern".to_owned()) };
        let set = |out: &mut String, members: &str, negated: bool| {
            out.push_str(&if negated { format!("[^{members}]") } else { format!("[{members}]") });
        };
        match c {
            'd' | 'D' => set(&mut self.out, "0-9", c == 'D'),
            'w' | 'W' => set(&mut self.out, "a-zA-Z0-9_", c == 'W'),
            's' | 'S' => set(&mut self.out, r" \t\n\x0B\f\r", c == 'S'),
            'h' | 'H' => set(&mut self.out, HORIZONTAL, c == 'H'),
            'v' | 'V' => set(&mut self.out, VERTICAL, c == 'V'),
            'R' if !in_class => self.out.push_str(&format!(r"(?:\r\n|[{VERTICAL}])")),
            'Z' if !in_class => {
                self.has_end = true;
                self.out.push_str(r"\z");
            }
            'A' | 'z' | 'b' | 'B' if !in_class => self.out.extend(['\\', c]),
            'n' | 't' | 'r' | 'f' => self.out.extend(['\\', c]),
            'a' => self.out.push_str(r"\x07"),
            'e' => self.out.push_str(r"\x1B"),
            'Q' => {
                let mut literal = String::new();
                for c in self.rest.by_ref() {
                    literal.push(c);
                    if literal.ends_with("\\E") {
                        literal.truncate(literal.len() - 2);
                        break;
                    }
                }
                self.out.push_str(&regex::escape(&literal));
            }
            'E' => {}
            'x' if self.rest.peek() == Some(&'{') => {
                self.rest.next();
                let code: String = self.rest.by_ref().take_while(|c| *c != '}').collect();
                let code = u32::from_str_radix(&code, 16).map_err(|_| format!("`{code}` is no code of a character"))?;
                self.code(code)?;
            }
            'x' => {
                let code = self.hex(2)?;
                self.code(code)?;
            }
            'u' => {
                let code = self.hex(4)?;
                self.code(code)?;
            }
            'c' => match self.rest.next() {
                Some(c) => self.code(u32::from(c) ^ 64)?,
                None => return Err("a character is missing behind `\\c`".to_owned()),
            },
            '0' => {
                let mut digits = String::new();
                while digits.len() < 3
                    && let Some(digit) = self.rest.next_if(|c| c.is_digit(8))
                {
                    digits.push(digit);
                }
                let code = u32::from_str_radix(&digits, 8).map_err(|_| "`\\0` needs octal digits".to_owned())?;
                self.code(code)?;
            }
            'p' | 'P' => self.property(c == 'P')?,
            '1'..='9' if !in_class => self.out.extend(['\\', c]),
            'k' if !in_class => self.out.push_str("\\k"),
            c if c.is_ascii_alphabetic() => return Err(format!("`\\{c}` has no meaning")),
            c => self.out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
        Ok(())
    }

    fn property(&mut self, negated: bool) -> Result<(), String> {
        let name: String = match self.rest.next() {
            Some('{') => self.rest.by_ref().take_while(|c| *c != '}').collect(),
            Some(c) => c.to_string(),
            None => return Err("a name is missing behind `\\p`".to_owned()),
        };
        let members = match name.as_str() {
            "Lower" => "a-z",
            "Upper" => "A-Z",
            "ASCII" => r"\x00-\x7F",
            "Alpha" => "a-zA-Z",
            "Digit" => "0-9",
            "Alnum" => "a-zA-Z0-9",
            "Punct" => r"!-/:-@\[-`\{-~",
            "Graph" => "!-~",
            "Print" => " -~",
            "Blank" => r" \t",
            "Cntrl" => r"\x00-\x1F\x7F",
            "XDigit" => "0-9a-fA-F",
            "Space" => r" \t\n\x0B\f\r",
            "javaLowerCase" | "IsLowercase" => r"\p{Lowercase}",
            "javaUpperCase" | "IsUppercase" => r"\p{Uppercase}",
            "javaWhitespace" | "IsWhite_Space" => r"\p{White_Space}",
            "javaLetter" => r"\p{L}",
            "javaDigit" => r"\p{Nd}",
            "javaLetterOrDigit" => r"\p{L}\p{Nd}",
            "IsAlphabetic" | "javaAlphabetic" => r"\p{Alphabetic}",
            "IsDigit" => r"\p{Nd}",
            "L1" => r"\x00-\xFF",
            "LC" => r"\p{Lu}\p{Ll}\p{Lt}",
            name if name.starts_with("In") => return Err(format!("blocks such as `{name}` are not known")),
            name => {
                let known = name.rsplit('=').next().unwrap_or(name);
                let known = known.strip_prefix("Is").unwrap_or(known);
                self.out.push_str(&format!("\\{}{{{known}}}", if negated { 'P' } else { 'p' }));
                return Ok(());
            }
        };
        self.out.push_str(&if negated { format!("[^{members}]") } else { format!("[{members}]") });
        Ok(())
    }

    /// What stands behind `[`, up to its `]`.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut first = true;
        while let Some(c) = self.rest.next() {
            match c {
                ']' if !first => {
                    self.out.push(']');
                    return Ok(());
                }
                '[' => self.class()?,
                '\\' => self.escape(true)?,
                '&' if self.rest.next_if_eq(&'&').is_some() => self.out.push_str("&&"),
                '-' if first || matches!(self.rest.peek(), Some(']' | '[' | '-' | '\\')) => self.out.push_str("\\-"),
                '&' | '~' | ']' => self.out.extend(['\\', c]),
                c => self.out.push(c),
            }
            first = false;
        }
        Err("a class is not closed".to_owned())
    }
}

fn regexp_replace(call: &Call<'_>) -> Result<ArrayRef> {
    let (text, pattern, by) = (call.text(0)?, call.text(1)?, call.text(2)?);
    let position = match call.len() {
        3 => datafusion::arrow::array::Int32Array::from(vec![1; call.rows]),
        _ => call.numbers::<Int32Type>(3)?,
    };
    let mut patterns = Patterns::default();
    rows::texts(&[&text, &pattern, &by, &position], |row| {
        let (text, by, position) = (text.value(row), by.value(row), position.value(row));
        let Some(skipped) = usize::try_from(position).ok().and_then(|position| position.checked_sub(1)) else {
            return Err(crate::error::failed(
                "DATATYPE_MISMATCH.VALUE_OUT_OF_RANGE",
                format!("the position of regexp_replace() begins at 1, and is {position}"),
            ));
        };
        let regex = patterns.of(pattern.value(row))?;
        let mut places = text.char_indices().map(|(at, _)| at);
        let start = match skipped {
            0 => 0,
            skipped => match places.nth(skipped) {
                Some(start) => start,
                None => return Ok(Some(text.to_owned())),
            },
        };
        let (kept, searched) = text.split_at(start);
        let mut out = kept.to_owned();
        let mut last = 0;
        regex.each(searched, |found| {
            if let Some(whole) = found.get(0) {
                out.push_str(&searched[last..whole.start()]);
                replacement(by, &found, &mut out)?;
                last = whole.end();
            }
            Ok(())
        })?;
        out.push_str(&searched[last..]);
        Ok(Some(out))
    })
}

/// Java's replacement text: `$1`, `${name}`, and a backslash before what is meant as it is.
fn replacement(by: &str, found: &Captures<'_>, out: &mut String) -> Result<()> {
    let illegal = |what: String| failed("INVALID_REGEXP_REPLACE", format!("the replacement '{by}' {what}"));
    let mut rest = by.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                Some(c) => out.push(c),
                None => return Err(illegal("ends with a backslash".to_owned())),
            },
            '$' => {
                let group = if rest.next_if_eq(&'{').is_some() {
                    let name: String = rest.by_ref().take_while(|c| *c != '}').collect();
                    match found.name(&name) {
                        Some(group) => Some(group),
                        None => return Err(illegal(format!("names the group {name}, which is not there"))),
                    }
                } else {
                    let Some(first) = rest.next().and_then(|c| c.to_digit(10)) else {
                        return Err(illegal("has a $ that names no group".to_owned()));
                    };
                    let mut group = first as usize;
                    if group >= found.len() {
                        return Err(illegal(format!("names the group {group}, which is not there")));
                    }
                    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10))
                        && group * 10 + (digit as usize) < found.len()
                    {
                        group = group * 10 + digit as usize;
                        rest.next();
                    }
                    found.get(group)
                };
                out.push_str(group.map_or("", |group| group.as_str()));
            }
            c => out.push(c),
        }
    }
    Ok(())
}

fn split(call: &Call<'_>) -> Result<ArrayRef> {
    let (text, pattern) = (call.text(0)?, call.text(1)?);
    let limit = match call.len() {
        2 => datafusion::arrow::array::Int32Array::from(vec![-1; call.rows]),
        _ => call.numbers::<Int32Type>(2)?,
    };
    let mut splitter = Splitter::default();
    rows::lists(&[&text, &pattern, &limit], |row| {
        let limit = usize::try_from(limit.value(row)).ok().filter(|limit| *limit > 0);
        splitter.split(text.value(row), pattern.value(row), limit).map(Some)
    })
}

/// Takes texts apart at patterns.
#[derive(Default)]
pub(super) struct Splitter {
    patterns: Patterns,
}

impl Splitter {
    /// The parts of a text, at most so many; the last one is all that is left.
    pub(super) fn split<'t>(&mut self, text: &'t str, pattern: &str, limit: Option<usize>) -> Result<Vec<&'t str>> {
        let limit = limit.unwrap_or(usize::MAX);
        let mut parts: Vec<&str> = Vec::new();
        // Every character is a part.
        if pattern.is_empty() && !text.is_empty() {
            let mut rest = text;
            while let Some(c) = rest.chars().next() {
                if parts.len() + 1 == limit {
                    parts.push(rest);
                    break;
                }
                parts.push(&rest[..c.len_utf8()]);
                rest = &rest[c.len_utf8()..];
            }
            return Ok(parts);
        }
        let mut last = 0;
        self.patterns.of(pattern)?.each(text, |found| {
            if let Some(found) = found.get(0)
                && parts.len() + 1 < limit
                // Nothing stands before an empty match at the start.
                && found.end() > 0
                && !(found.start() == found.end() && found.start() == text.len())
            {
                parts.push(&text[last..found.start()]);
                last = found.end();
            }
            Ok(())
        })?;
        parts.push(&text[last..]);
        Ok(parts)
    }
}

/// A compiled LIKE pattern.
enum Like {
    Equal(String),
    Start(String),
    End(String),
    Inside(String),
    Any(Vec<Piece>),
}

#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Is(char),
    One,
    Many,
}

impl Like {
    fn compile(pattern: &str, escape: char) -> Result<Self> {
        let wrong = |condition: &str, what: &str| {
            failed(condition, format!("the LIKE pattern '{pattern}' {what}: `{escape}` stands before %, _ or itself"))
        };
        let mut pieces = Vec::new();
        let mut rest = pattern.chars();
        while let Some(c) = rest.next() {
            pieces.push(match c {
                c if c == escape => match rest.next() {
                    Some(c) if c == '%' || c == '_' || c == escape => Piece::Is(c),
                    Some(_) => return Err(wrong("INVALID_FORMAT.ESC_IN_THE_MIDDLE", "has a wrong escape")),
                    None => return Err(wrong("INVALID_FORMAT.ESC_AT_THE_END", "ends with an escape")),
                },
                '%' => Piece::Many,
                '_' => Piece::One,
                c => Piece::Is(c),
            });
        }
        let literal = |pieces: &[Piece]| -> Option<String> {
            pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Is(c) => Some(*c),
                    _ => None,
                })
                .collect()
        };
        Ok(match pieces.as_slice() {
            all if literal(all).is_some() => Self::Equal(literal(all).unwrap_or_default()),
            [start @ .., Piece::Many] if literal(start).is_some() => Self::Start(literal(start).unwrap_or_default()),
            [Piece::Many, end @ ..] if literal(end).is_some() => Self::End(literal(end).unwrap_or_default()),
            [Piece::Many, inside @ .., Piece::Many] if literal(inside).is_some() => {
                Self::Inside(literal(inside).unwrap_or_default())
            }
            _ => Self::Any(pieces),
        })
    }

    fn matches(&self, text: &str) -> bool {
        let pieces = match self {
            Self::Equal(all) => return text == all,
            Self::Start(start) => return text.starts_with(start.as_str()),
            Self::End(end) => return text.ends_with(end.as_str()),
            Self::Inside(inside) => return text.contains(inside.as_str()),
            Self::Any(pieces) => pieces,
        };
        // The last % takes one character more each time that what is behind it does not fit.
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut piece) = (0, 0);
        let mut retry = None;
        while at < text.len() {
            match pieces.get(piece) {
                Some(Piece::Many) => {
                    retry = Some((piece, at));
                    piece += 1;
                }
                Some(Piece::One) => (at, piece) = (at + 1, piece + 1),
                Some(Piece::Is(c)) if *c == text[at] => (at, piece) = (at + 1, piece + 1),
                _ => match retry {
                    Some((many, from)) => {
                        retry = Some((many, from + 1));
                        (at, piece) = (from + 1, many + 1);
                    }
                    None => return false,
                },
            }
        }
        pieces[piece..].iter().all(|piece| *piece == Piece::Many)
    }
}

fn like(call: &Call<'_>, lower: bool) -> Result<ArrayRef> {
    let (text, pattern, escape) = (call.text(0)?, call.text(1)?, call.text_or(2, "\\")?);
    let fold = |of: StringArray| -> StringArray {
        if lower { of.iter().map(|text| text.map(str::to_lowercase)).collect() } else { of }
    };
    let (text, pattern) = (fold(text), fold(pattern));
    let mut compiled: HashMap<(&str, &str), Like> = HashMap::new();
    rows::bools(&[&text, &pattern, &escape], |row| {
        let key = (pattern.value(row), escape.value(row));
        let like = match compiled.entry(key) {
            Entry::Occupied(like) => like.into_mut(),
            Entry::Vacant(new) => new.insert(Like::compile(key.0, key.1.chars().next().unwrap_or('\\'))?),
        };
        Ok(Some(like.matches(text.value(row))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_java_means() {
        let matches = |pattern: &str, text: &str| JavaRegex::compile(pattern).unwrap().next(text, 0).is_some();
        for (pattern, text, expected) in [
            (r"^\d+$", "12\n", true),
            (r"^\d+\z", "12\n", false),
            (r"^\w$", "é", false),
            ("a.b", "a\rb", false),
            ("(?s)a.b", "a\rb", true),
            ("(?s:a.)b.c", "a\nb\nc", false),
            (r"[a-c&&[^b]]", "b", false),
            (r"[\]x-]", "-", true),
            (r"\p{Punct}", "~", true),
            (r"\Qa.b\E", "axb", false),
            (r"a++b", "aab", true),
            (r"\x41\u0042\0103", "ABC", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text:?}");
        }
        assert!(JavaRegex::compile(r"(a)\1").is_err());
        assert!(JavaRegex::compile("x(?=y)").is_err());
        assert!(JavaRegex::compile("x{a}").is_err());
        assert!(JavaRegex::compile("(").is_err());
        assert!(JavaRegex::compile(r"\y").is_err());
    }

    #[test]
    fn like_takes_as_much_as_it_must() {
        let matches = |pattern: &str, text: &str| Like::compile(pattern, '\\').unwrap().matches(text);
        assert!(matches("a%b_d%", "aXbbcde"));
        assert!(matches("%ab%ab", "abab"));
        assert!(!matches("_%c", "c"));
        assert!(matches(r"100\%", "100%"));
        assert!(Like::compile(r"a\b", '\\').is_err());
        assert!(Like::compile(r"a\", '\\').is_err());
    }
}
