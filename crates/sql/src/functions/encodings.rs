//! Texts in other shapes: base64, character sets, URLs, masks, checksums of digits.

use std::sync::Arc;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, ListBuilder, StringArray, StringBuilder};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;

use super::function::{Arg, Args, Call, Spec, returns};
use super::rows;
use super::types::{self, mismatch};
use crate::error::{failed, refused_analysis};

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("base64", Args::Fixed(1, &[Arg::Bytes]), returns::text, |call| {
        let bytes = call.array(0)?;
        let bytes = bytes.as_binary::<i32>();
        rows::texts(&[bytes], |row| Ok(Some(base64_text(bytes.value(row)))))
    }),
    &Spec::new("unbase64", Args::Fixed(1, &[Arg::Text]), returns::bytes, |call| {
        let text = call.text(0)?;
        rows::bytes(&[&text], |row| match from_base64(text.value(row)) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(not_converted(text.value(row), "BASE64")),
        })
    }),
    &Spec::new("encode", Args::Fixed(2, &[Arg::Text, Arg::Text]), returns::bytes, |call| {
        let (text, charset) = (call.text(0)?, call.text(1)?);
        rows::bytes(&[&text, &charset], |row| Ok(Some(Charset::of(charset.value(row))?.encode(text.value(row))?)))
    }),
    &Spec::new("decode", Args::Fixed(2, &[Arg::Bytes, Arg::Text]), returns::text, |call| {
        let (bytes, charset) = (call.array(0)?, call.text(1)?);
        let bytes = bytes.as_binary::<i32>();
        rows::texts(&[bytes, &charset], |row| Ok(Some(Charset::of(charset.value(row))?.decode(bytes.value(row))?)))
    }),
    &Spec::new("to_binary", Args::Fixed(1, &[Arg::Text, Arg::Text]), returns::bytes, |call| to_binary(call, false)),
    &Spec::new("try_to_binary", Args::Fixed(1, &[Arg::Text, Arg::Text]), returns::bytes, |call| to_binary(call, true)),
    &Spec::new("url_encode", Args::Fixed(1, &[Arg::Text]), returns::text, |call| {
        rows::text_of(&call.text(0)?, |text| {
            let mut out = String::with_capacity(text.len());
            for byte in text.bytes() {
                match byte {
                    b' ' => out.push('+'),
                    b'.' | b'-' | b'*' | b'_' => out.push(char::from(byte)),
                    byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
                    byte => out.push_str(&format!("%{byte:02X}")),
                }
            }
            out
        })
    }),
    &Spec::new("url_decode", Args::Fixed(1, &[Arg::Text]), returns::text, |call| url_decode(call, false)),
    &Spec::new("try_url_decode", Args::Fixed(1, &[Arg::Text]), returns::text, |call| url_decode(call, true)),
    &Spec::new("parse_url", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Text]), returns::text, |call| {
        parse_url(call, false)
    }),
    &Spec::new("try_parse_url", Args::Fixed(2, &[Arg::Text, Arg::Text, Arg::Text]), returns::text, |call| {
        parse_url(call, true)
    }),
    &Spec::new("mask", Args::Fixed(1, &[Arg::Text, Arg::Text, Arg::Text, Arg::Text, Arg::Text]), mask_type, mask),
    &Spec::new("luhn_check", Args::Fixed(1, &[Arg::Text]), returns::bool, |call| {
        let text = call.text(0)?;
        rows::bools(&[&text], |row| Ok(Some(luhn(text.value(row)))))
    }),
    &Spec::new("quote", Args::Fixed(1, &[Arg::Text]), returns::text, |call| {
        rows::text_of(&call.text(0)?, |text| format!("'{}'", text.replace('\'', "\\'")))
    }),
    &Spec::new("is_valid_utf8", Args::Fixed(1, &[Arg::TextOrBytes]), returns::bool, |call| {
        let of = call.array(0)?;
        rows::bools(&[&of], |row| {
            Ok(Some(of.as_binary_opt::<i32>().is_none_or(|bytes| std::str::from_utf8(bytes.value(row)).is_ok())))
        })
    }),
    &Spec::new(
        "sentences",
        Args::Fixed(1, &[Arg::Text, Arg::Text, Arg::Text]),
        |_, _, _| Ok(types::list_of(types::list_of(DataType::Utf8))),
        sentences,
    ),
];

/// In lines of 76 characters, as MIME has it.
pub(super) fn base64_text(bytes: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut out = String::with_capacity(text.len() + text.len() / 38);
    for (at, c) in text.chars().enumerate() {
        if at > 0 && at.is_multiple_of(76) {
            out.push_str("\r\n");
        }
        out.push(c);
    }
    out
}

/// What is no character of base64 is passed over, as MIME has it.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let plain: Vec<u8> =
        text.bytes().filter(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')).collect();
    GeneralPurpose::new(&STANDARD, config).decode(plain).ok()
}

fn not_converted(text: &str, format: &str) -> datafusion::common::DataFusionError {
    failed("CONVERSION_INVALID_INPUT", format!("the text '{text}' is not {format}: use try_to_binary() to get NULL"))
}

/// The character sets that Spark has.
#[derive(Clone, Copy)]
enum Charset {
    Ascii,
    Latin1,
    Utf8,
    Utf16 { little: bool, mark: bool },
    Utf32,
}

impl Charset {
    fn of(name: &str) -> Result<Self> {
        Ok(match name.to_ascii_uppercase().as_str() {
            "US-ASCII" => Self::Ascii,
            "ISO-8859-1" => Self::Latin1,
            "UTF-8" => Self::Utf8,
            "UTF-16BE" => Self::Utf16 { little: false, mark: false },
            "UTF-16LE" => Self::Utf16 { little: true, mark: false },
            "UTF-16" => Self::Utf16 { little: false, mark: true },
            "UTF-32" => Self::Utf32,
            _ => {
                return Err(failed(
                    "INVALID_PARAMETER_VALUE.CHARSET",
                    format!(
                        "'{name}' is no character set: use US-ASCII, ISO-8859-1, UTF-8, UTF-16BE, UTF-16LE, UTF-16 or UTF-32"
                    ),
                ));
            }
        })
    }

    fn encode(self, text: &str) -> Result<Vec<u8>> {
        let single = |limit: u32| -> Result<Vec<u8>> {
            text.chars()
                .map(|c| u8::try_from(u32::from(c)).ok().filter(|code| u32::from(*code) < limit).ok_or_else(malformed))
                .collect()
        };
        Ok(match self {
            Self::Ascii => single(128)?,
            Self::Latin1 => single(256)?,
            Self::Utf8 => text.as_bytes().to_vec(),
            Self::Utf16 { little, mark } => {
                let units = (mark && !text.is_empty()).then_some(0xfeff).into_iter().chain(text.encode_utf16());
                units.flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() }).collect()
            }
            Self::Utf32 => text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect(),
        })
    }

    fn decode(self, bytes: &[u8]) -> Result<String> {
        match self {
            Self::Ascii if !bytes.is_ascii() => Err(malformed()),
            Self::Latin1 => Ok(bytes.iter().map(|byte| char::from(*byte)).collect()),
            Self::Ascii | Self::Utf8 => String::from_utf8(bytes.to_vec()).map_err(|_| malformed()),
            Self::Utf16 { little, mark } => {
                let (bytes, little) = match bytes {
                    [0xfe, 0xff, rest @ ..] if mark => (rest, false),
                    [0xff, 0xfe, rest @ ..] if mark => (rest, true),
                    bytes => (bytes, little),
                };
                let pairs = bytes.chunks_exact(2);
                if !pairs.remainder().is_empty() {
                    return Err(malformed());
                }
                let units = pairs.map(|pair| {
                    if little { u16::from_le_bytes([pair[0], pair[1]]) } else { u16::from_be_bytes([pair[0], pair[1]]) }
                });
                char::decode_utf16(units).collect::<Result<_, _>>().map_err(|_| malformed())
            }
            Self::Utf32 => bytes
                .chunks(4)
                .map(|code| match code {
                    [a, b, c, d] => char::from_u32(u32::from_be_bytes([*a, *b, *c, *d])).ok_or_else(malformed),
                    _ => Err(malformed()),
                })
                .collect(),
        }
    }
}

fn malformed() -> datafusion::common::DataFusionError {
    failed("MALFORMED_CHARACTER_CODING", "a character is not in the character set, or a byte is in no character")
}

fn to_binary(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let (text, format) = (call.text(0)?, call.text_or(1, "hex")?);
    rows::bytes(&[&text, &format], |row| {
        let text = text.value(row);
        let (converted, name) = match format.value(row).to_ascii_lowercase().as_str() {
            "hex" => (from_hex(text), "HEX"),
            "utf-8" | "utf8" => (Some(text.as_bytes().to_vec()), "UTF-8"),
            "base64" => {
                let plain: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
                (base64::engine::general_purpose::STANDARD.decode(plain).ok(), "BASE64")
            }
            other => {
                return Err(refused_analysis(
                    "DATATYPE_MISMATCH.INVALID_ARG_VALUE",
                    format!("'{other}' is no format of to_binary(): use hex, utf-8 or base64"),
                ));
            }
        };
        match converted {
            Some(bytes) => Ok(Some(bytes)),
            None if lenient => Ok(None),
            None => Err(not_converted(text, name)),
        }
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits?;
    // An odd number of digits begins with half a byte.
    let (half, pairs) = digits.split_at(digits.len() % 2);
    Some(half.iter().copied().chain(pairs.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1])).collect())
}

fn url_decode(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let text = call.text(0)?;
    rows::texts(&[&text], |row| {
        let text = text.value(row);
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        let mut fine = true;
        while let [first, behind @ ..] = rest {
            rest = behind;
            match first {
                b'+' => bytes.push(b' '),
                b'%' => {
                    let code = behind.get(..2).and_then(|code| std::str::from_utf8(code).ok());
                    match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
                        Some(byte) => {
                            bytes.push(byte);
                            rest = &behind[2..];
                        }
                        None => fine = false,
                    }
                }
                byte => bytes.push(*byte),
            }
        }
        match fine {
            true => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            false if lenient => Ok(None),
            false => Err(failed("CANNOT_DECODE_URL", format!("the text '{text}' is no encoded URL"))),
        }
    })
}

/// A URL in its parts, as `java.net.URI` takes it apart.
struct Url<'a> {
    scheme: Option<&'a str>,
    authority: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
    fragment: Option<&'a str>,
}

impl<'a> Url<'a> {
    fn parse(url: &'a str) -> Option<Self> {
        let allowed = |c: char| !(c.is_ascii_control() || c.is_whitespace() || "\"<>\\^`{|}".contains(c));
        if !url.chars().all(allowed) {
            return None;
        }
        let (rest, fragment) = match url.split_once('#') {
            Some((rest, fragment)) => (rest, Some(fragment)),
            None => (url, None),
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let (scheme, rest) = match rest.split_once(':') {
            Some((scheme, rest))
                if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                    && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) =>
            {
                (Some(scheme), rest)
            }
            _ => (None, rest),
        };
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => {
                let end = rest.find('/').unwrap_or(rest.len());
                (Some(&rest[..end]).filter(|authority| !authority.is_empty()), &rest[end..])
            }
            None => (None, rest),
        };
        Some(Self { scheme, authority, path, query, fragment })
    }

    fn part(&self, part: &str, key: Option<&str>) -> Option<String> {
        if let Some(key) = key {
            let query = self.query.filter(|_| part == "QUERY")?;
            return query.split('&').find_map(|pair| {
                pair.split_once('=').filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
            });
        }
        let user = self.authority.and_then(|authority| authority.rsplit_once('@'));
        Some(match part {
            "HOST" => {
                let host = user.map_or(self.authority?, |(_, host)| host);
                let end = if host.starts_with('[') { host.find(']').map_or(host.len(), |at| at + 1) } else { 0 };
                let host = host[end..].rfind(':').map_or(host, |at| &host[..end + at]);
                host.to_owned()
            }
            "PATH" => self.path.to_owned(),
            "QUERY" => self.query?.to_owned(),
            "REF" => self.fragment?.to_owned(),
            "PROTOCOL" => self.scheme?.to_owned(),
            "FILE" => match self.query {
                Some(query) => format!("{}?{query}", self.path),
                None => self.path.to_owned(),
            },
            "AUTHORITY" => self.authority?.to_owned(),
            "USERINFO" => user?.0.to_owned(),
            _ => return None,
        })
    }
}

fn parse_url(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let (url, part) = (call.text(0)?, call.text(1)?);
    let key = if call.len() > 2 { Some(call.text(2)?) } else { None };
    let mut arrays: Vec<&dyn Array> = vec![&url, &part];
    arrays.extend(key.iter().map(|key| key as &dyn Array));
    rows::texts(&arrays, |row| match Url::parse(url.value(row)) {
        Some(parsed) => Ok(parsed.part(part.value(row), key.as_ref().map(|key| key.value(row)))),
        None if lenient => Ok(None),
        None => Err(failed("INVALID_URL", format!("'{}' is no URL: use try_parse_url() to get NULL", url.value(row)))),
    })
}

fn mask_type(
    types: &[DataType],
    constants: &[Option<&datafusion::common::ScalarValue>],
    zone: &Arc<str>,
) -> Result<DataType> {
    for constant in constants.iter().skip(1).flatten() {
        if let datafusion::common::ScalarValue::Utf8(Some(text)) = constant
            && text.chars().count() != 1
        {
            return Err(mismatch("INPUT_SIZE_NOT_ONE", format!("mask() replaces by one character, not by '{text}'")));
        }
    }
    returns::text(types, constants, zone)
}

fn mask(call: &Call<'_>) -> Result<ArrayRef> {
    let text = call.text(0)?;
    // What replaces upper case, lower case, digits and the rest; NULL leaves it as it is.
    let by = |index: usize, default: Option<&str>| -> Result<StringArray> {
        if index < call.len() { call.text(index) } else { Ok(std::iter::repeat_n(default, call.rows).collect()) }
    };
    let (upper, lower, digit, other) = (by(1, Some("X"))?, by(2, Some("x"))?, by(3, Some("n"))?, by(4, None)?);
    rows::texts(&[&text], |row| {
        let of = |by: &StringArray| if by.is_valid(row) { by.value(row).chars().next() } else { None };
        let (upper, lower, digit, other) = (of(&upper), of(&lower), of(&digit), of(&other));
        let masked: String = text
            .value(row)
            .chars()
            .map(|c| {
                let by = match c {
                    c if c.is_uppercase() => upper,
                    c if c.is_lowercase() => lower,
                    c if c.is_ascii_digit() => digit,
                    _ => other,
                };
                by.unwrap_or(c)
            })
            .collect();
        Ok(Some(masked))
    })
}

fn luhn(text: &str) -> bool {
    let digits: Option<Vec<u32>> = text.chars().rev().map(|c| c.to_digit(10)).collect();
    match digits {
        Some(digits) if !digits.is_empty() => {
            let sum: u32 = digits
                .iter()
                .enumerate()
                .map(|(at, digit)| match at % 2 {
                    0 => *digit,
                    _ => digit * 2 / 10 + digit * 2 % 10,
                })
                .sum();
            sum.is_multiple_of(10)
        }
        _ => false,
    }
}

/// Sentences end with `.`, `!` or `?` before a blank; words are runs of letters and digits.
fn sentences(call: &Call<'_>) -> Result<ArrayRef> {
    let text = call.text(0)?;
    let mut out = ListBuilder::new(ListBuilder::new(StringBuilder::new()));
    for text in text.iter() {
        let Some(text) = text else {
            out.append(false);
            continue;
        };
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest
                .match_indices(['.', '!', '?'])
                .map(|(at, _)| at + 1)
                .find(|end| rest[*end..].starts_with(char::is_whitespace))
                .unwrap_or(rest.len());
            let is_word = |c: char| c.is_alphanumeric() || c == '\'';
            let words: Vec<&str> = rest[..end].split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).collect();
            if !words.is_empty() {
                words.iter().for_each(|word| out.values().values().append_value(word));
                out.values().append(true);
            }
            rest = &rest[end..];
        }
        out.append(true);
    }
    Ok(Arc::new(out.finish()))
}
