//! JSON text as a tree, with what Jackson is lenient about.

use std::borrow::Cow;
use std::fmt::Write;

use super::flag;
use crate::functions::cast::show;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    /// The digits of a whole number.
    Int(Cow<'a, str>),
    /// The digits of another number, or `NaN` and `Infinity`.
    Float(Cow<'a, str>),
    Text(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

/// What is allowed beyond the standard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Syntax {
    comments: bool,
    unquoted_names: bool,
    single_quotes: bool,
    leading_zeros: bool,
    non_numeric: bool,
    any_escape: bool,
    control_chars: bool,
}

impl Default for Syntax {
    fn default() -> Self {
        Self {
            comments: false,
            unquoted_names: false,
            single_quotes: true,
            leading_zeros: false,
            non_numeric: true,
            any_escape: false,
            control_chars: false,
        }
    }
}

impl Syntax {
    pub(super) fn of(options: &[(String, String)]) -> Self {
        Self {
            comments: flag(options, "allowComments", false),
            unquoted_names: flag(options, "allowUnquotedFieldNames", false),
            single_quotes: flag(options, "allowSingleQuotes", true),
            leading_zeros: flag(options, "allowNumericLeadingZeros", false),
            non_numeric: flag(options, "allowNonNumericNumbers", true),
            any_escape: flag(options, "allowBackslashEscapingAnyCharacter", false),
            control_chars: flag(options, "allowUnquotedControlChars", false),
        }
    }
}

/// Values may be nested so deep.
const DEEPEST: usize = 1_000;

struct Parser<'a, 's> {
    text: &'a str,
    at: usize,
    syntax: &'s Syntax,
}

impl<'a> Json<'a> {
    /// The first value of a text; what is behind it does not matter, as in Spark.
    pub(super) fn parse(text: &'a str, syntax: &Syntax) -> Option<Self> {
        Parser { text, at: 0, syntax }.value(0)
    }

    /// A text as it is, NULL as nothing, and everything else as JSON.
    pub(super) fn as_text(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Text(text) => Some(text.clone().into_owned()),
            other => {
                let mut out = String::new();
                other.write(&mut out);
                Some(out)
            }
        }
    }

    /// Without blanks, numbers as Java prints them.
    pub(super) fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Int(digits) => out.push_str(digits),
            Self::Float(digits) => match digits.parse::<f64>() {
                Ok(value) if value.is_finite() => show::double(value, out),
                Ok(value) => {
                    out.push('"');
                    show::double(value, out);
                    out.push('"');
                }
                Err(_) => out.push_str(digits),
            },
            Self::Text(text) => quoted(text, out),
            Self::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(fields) => {
                out.push('{');
                for (at, (name, value)) in fields.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    quoted(name, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

/// A text as JSON.
pub(super) fn quoted(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

impl<'a> Parser<'a, '_> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip(&mut self) -> Option<()> {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(b'/') if self.syntax.comments => {
                    let rest = self.rest();
                    let length = match rest.as_bytes().get(1)? {
                        b'/' => rest.find('\n').unwrap_or(rest.len()),
                        b'*' => rest[2..].find("*/")? + 4,
                        _ => return None,
                    };
                    self.at += length;
                }
                _ => return Some(()),
            }
        }
    }

    fn value(&mut self, depth: usize) -> Option<Json<'a>> {
        if depth > DEEPEST {
            return None;
        }
        self.skip()?;
        match self.peek()? {
            b'{' => self.object(depth),
            b'[' => {
                self.at += 1;
                let mut items = Vec::new();
                self.skip()?;
                if self.peek()? == b']' {
                    self.at += 1;
                    return Some(Json::Array(items));
                }
                loop {
                    items.push(self.value(depth + 1)?);
                    self.skip()?;
                    self.at += 1;
                    match self.text.as_bytes().get(self.at - 1)? {
                        b',' => {}
                        b']' => return Some(Json::Array(items)),
                        _ => return None,
                    }
                }
            }
            b'"' => self.quoted('"').map(Json::Text),
            b'\'' if self.syntax.single_quotes => self.quoted('\'').map(Json::Text),
            b't' => self.word("true", Json::Bool(true)),
            b'f' => self.word("false", Json::Bool(false)),
            b'n' => self.word("null", Json::Null),
            _ => self.number(),
        }
    }

    fn word(&mut self, word: &str, value: Json<'a>) -> Option<Json<'a>> {
        let rest = self.rest().strip_prefix(word)?;
        if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            return None;
        }
        self.at += word.len();
        Some(value)
    }

    fn object(&mut self, depth: usize) -> Option<Json<'a>> {
        self.at += 1;
        let mut fields = Vec::new();
        self.skip()?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(Json::Object(fields));
        }
        loop {
            self.skip()?;
            let name = match self.peek()? {
                b'"' => self.quoted('"')?,
                b'\'' if self.syntax.single_quotes => self.quoted('\'')?,
                _ if self.syntax.unquoted_names => {
                    let rest = self.rest();
                    let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$' | '-')))?;
                    self.at += end;
                    Cow::Borrowed(&rest[..end])
                }
                _ => return None,
            };
            self.skip()?;
            if self.peek()? != b':' {
                return None;
            }
            self.at += 1;
            let value = self.value(depth + 1)?;
            fields.push((name, value));
            self.skip()?;
            self.at += 1;
            match self.text.as_bytes().get(self.at - 1)? {
                b',' => {}
                b'}' => return Some(Json::Object(fields)),
                _ => return None,
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Option<Cow<'a, str>> {
        self.at += 1;
        let start = self.at;
        let rest = self.rest();
        let plain = rest.find(|c: char| c == quote || c == '\\' || c < ' ')?;
        if rest[plain..].starts_with(quote) {
            self.at += plain + 1;
            return Some(Cow::Borrowed(&self.text[start..start + plain]));
        }
        let mut out = String::new();
        let mut chars = rest.chars();
        loop {
            let c = chars.next()?;
            match c {
                c if c == quote => break,
                '\\' => match chars.next()? {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'b' => out.push('\u{8}'),
                    'f' => out.push('\u{c}'),
                    c @ ('"' | '\\' | '/') => out.push(c),
                    'u' => {
                        let code = |chars: &mut std::str::Chars<'a>| {
                            let digits = chars.as_str().get(..4)?;
                            *chars = chars.as_str()[4..].chars();
                            u32::from_str_radix(digits, 16).ok()
                        };
                        let first = code(&mut chars)?;
                        let joined = if (0xd800..0xdc00).contains(&first) && chars.as_str().starts_with("\\u") {
                            chars = chars.as_str()[2..].chars();
                            let second = code(&mut chars)?;
                            0x10000 + ((first - 0xd800) << 10) + second.checked_sub(0xdc00)?
                        } else {
                            first
                        };
                        out.push(char::from_u32(joined).unwrap_or('\u{fffd}'));
                    }
                    '\'' if self.syntax.single_quotes => out.push('\''),
                    c if self.syntax.any_escape => out.push(c),
                    _ => return None,
                },
                c if c < ' ' && !self.syntax.control_chars => return None,
                c => out.push(c),
            }
        }
        self.at = self.text.len() - chars.as_str().len();
        Some(Cow::Owned(out))
    }

    fn number(&mut self) -> Option<Json<'a>> {
        let rest = self.rest();
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))).unwrap_or(rest.len());
        let word = &rest[..end];
        self.at += end;
        if self.syntax.non_numeric {
            let special = match word {
                "NaN" => Some("NaN"),
                "Infinity" | "+Infinity" | "INF" | "+INF" => Some("Infinity"),
                "-Infinity" | "-INF" => Some("-Infinity"),
                _ => None,
            };
            if let Some(special) = special {
                return Some(Json::Float(Cow::Borrowed(special)));
            }
        }
        let unsigned = word.strip_prefix('-').unwrap_or(word);
        let whole = unsigned.bytes().take_while(u8::is_ascii_digit).count();
        let leading = whole > 1 && unsigned.starts_with('0');
        if whole == 0 || leading && !self.syntax.leading_zeros {
            return None;
        }
        let digits: Cow<'a, str> = if leading {
            let cut = unsigned.trim_start_matches('0');
            let zero = if cut.starts_with(|c: char| c.is_ascii_digit()) { "" } else { "0" };
            let sign = if word.starts_with('-') { "-" } else { "" };
            Cow::Owned(format!("{sign}{zero}{cut}"))
        } else {
            Cow::Borrowed(word)
        };
        if whole == unsigned.len() {
            return Some(Json::Int(digits));
        }
        let behind = &unsigned[whole..];
        let fraction = match behind.strip_prefix('.') {
            Some(fraction) => {
                let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
                if length == 0 {
                    return None;
                }
                &fraction[length..]
            }
            None => behind,
        };
        let exponent_is_fine = match fraction.strip_prefix(['e', 'E']) {
            Some(exponent) => {
                let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                !exponent.is_empty() && exponent.bytes().all(|byte| byte.is_ascii_digit())
            }
            None => fraction.is_empty(),
        };
        exponent_is_fine.then_some(Json::Float(digits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_as_jackson_does() {
        let again = |text: &str| Json::parse(text, &Syntax::default()).and_then(|json| json.as_text());
        for (text, expected) in [
            (
                r#" {"a": [1, 2.50, {"c": null}], "b": "x\u00e9\n"} trailing"#,
                Some(r#"{"a":[1,2.5,{"c":null}],"b":"xé\n"}"#),
            ),
            ("{'a': 'it'}", Some(r#"{"a":"it"}"#)),
            (r#""\ud83d\udc4d""#, Some("👍")),
            ("-0.5e3", Some("-500.0")),
            ("NaN", Some("\"NaN\"")),
            ("01", None),
            ("+1", None),
            ("1.", None),
            ("{\"a\":}", None),
            ("[1,]", None),
            ("{a: 1}", None),
            ("tru", None),
            ("", None),
            ("null", None),
        ] {
            assert_eq!(again(text).as_deref(), expected, "{text}");
        }
        let lenient = [
            ("allowUnquotedFieldNames".to_owned(), "true".to_owned()),
            ("allowComments".to_owned(), "TRUE".to_owned()),
        ];
        assert!(Json::parse("/* c */ {a: 1} // d", &Syntax::of(&lenient)).is_some());
    }
}
