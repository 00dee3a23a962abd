//! Numbers and bytes from text, by the rules of the Java classes that Spark's readers use.

/// Reads a decimal as Java's `BigDecimal` (`1`, `-.5`, `1.`, `2e3`) and rounds it half up to `scale` digits behind the point. Gives the
/// unscaled value; `None` for another text and for a value of more than `precision` digits.
pub(crate) fn parse_decimal(text: &[u8], precision: u8, scale: i8) -> Option<i128> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let mantissa_end = text.iter().position(|b| matches!(b, b'e' | b'E')).unwrap_or(text.len());
    let exponent: i64 = match &text[mantissa_end..] {
        [] => 0,
        [_, digits @ ..] => i64::from(parse_exponent(digits)?),
    };
    let mantissa = &text[..mantissa_end];
    let point = mantissa.iter().position(|b| *b == b'.').unwrap_or(mantissa.len());
    let (whole, fraction) = (&mantissa[..point], mantissa.get(point + 1..).unwrap_or_default());
    if whole.len() + fraction.len() == 0 || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let significant = whole.iter().chain(fraction).skip_while(|d| **d == b'0');
    let digits = whole.len() + fraction.len() - whole.iter().chain(fraction).take_while(|d| **d == b'0').count();
    if digits == 0 {
        return Some(0);
    }
    // The value is 0.<digits> * 10^magnitude in units of the last place that is kept, so `magnitude` digits are kept.
    let magnitude = digits as i64 + exponent - fraction.len() as i64 + i64::from(scale);
    if magnitude < 0 {
        return Some(0);
    }
    if magnitude > 39 {
        return None;
    }
    let kept = magnitude as usize;
    let mut value: i128 = 0;
    let mut half_up = false;
    for (at, digit) in significant.copied().chain(std::iter::repeat(b'0')).enumerate().take(kept + 1) {
        if at < kept {
            value = value.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
        } else {
            half_up = digit >= b'5';
        }
    }
    value += i128::from(half_up);
    (value < 10i128.pow(u32::from(precision))).then_some(if negative { -value } else { value })
}

/// An exponent as Java reads it: an optional sign and at most ten digits.
fn parse_exponent(text: &[u8]) -> Option<i32> {
    let digits = match text {
        [b'+' | b'-', digits @ ..] => digits,
        digits => digits,
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Reads the decimal as Spark's readers do from text: commas are left out first.
pub(crate) fn parse_decimal_text(text: &str, precision: u8, scale: i8) -> Option<i128> {
    if text.contains(',') {
        parse_decimal(text.replace(',', "").as_bytes(), precision, scale)
    } else {
        parse_decimal(text.as_bytes(), precision, scale)
    }
}

/// Decodes base64 as Jackson's `MIME_NO_LINEFEEDS`: the standard alphabet, padding required, blanks between groups of four skipped,
/// groups allowed behind a padded one.
pub(crate) fn parse_base64(text: &[u8]) -> Option<Vec<u8>> {
    let value = |byte: u8| {
        Some(u32::from(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    };
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let mut rest = text;
    loop {
        while let [0..=b' ', tail @ ..] = rest {
            rest = tail;
        }
        let (group, tail) = match rest.split_first_chunk::<4>() {
            Some(split) => split,
            None if rest.is_empty() => return Some(decoded),
            None => return None,
        };
        rest = tail;
        let [a, b, c, d] = *group;
        let bits = value(a)? << 18 | value(b)? << 12;
        match (c, d) {
            (b'=', b'=') => decoded.push((bits >> 16) as u8),
            (c, b'=') => {
                let bits = bits | value(c)? << 6;
                decoded.extend([(bits >> 16) as u8, (bits >> 8) as u8]);
            }
            (c, d) => {
                let bits = bits | value(c)? << 6 | value(d)?;
                decoded.extend([(bits >> 16) as u8, (bits >> 8) as u8, bits as u8]);
            }
        }
    }
}

/// What a person needs to see of a text: a line, cut where it gets long.
pub(crate) fn excerpt(text: &[u8]) -> String {
    const LENGTH: usize = 60;
    let shown = String::from_utf8_lossy(&text[..text.len().min(4 * LENGTH + 4)]).into_owned();
    let mut excerpt: String = shown.chars().take(LENGTH).flat_map(char::escape_debug).collect();
    if shown.chars().count() > LENGTH {
        excerpt.push('…');
    }
    excerpt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_rounded_half_up_and_checked() {
        for (text, precision, scale, expected) in [
            ("1", 6, 2, Some(100)),
            ("1.005", 6, 2, Some(101)),
            ("1.004", 6, 2, Some(100)),
            ("-1.005", 6, 2, Some(-101)),
            ("-0.004", 6, 2, Some(0)),
            ("0.005", 6, 2, Some(1)),
            ("9999.994", 6, 2, Some(999_999)),
            ("9999.995", 6, 2, None),
            ("10000", 6, 2, None),
            ("+1.5", 6, 2, Some(150)),
            ("1.", 6, 2, Some(100)),
            (".5", 6, 2, Some(50)),
            ("1e2", 6, 2, Some(10_000)),
            ("1E-2", 6, 2, Some(1)),
            ("1e-3", 6, 2, Some(0)),
            ("5e-3", 6, 2, Some(1)),
            ("49e-4", 6, 2, Some(0)),
            ("1e-400", 38, 10, Some(0)),
            ("0e400", 38, 10, Some(0)),
            ("1e27", 38, 10, Some(10i128.pow(37))),
            ("1e28", 38, 10, None),
            ("1e400", 38, 10, None),
            ("1e-2147483647", 38, 10, Some(0)),
            ("1e99999999999", 38, 10, None),
            ("0.999999", 5, 5, None),
            ("0.123456", 5, 5, Some(12_346)),
            ("2.5", 10, 0, Some(3)),
            ("-2.5", 10, 0, Some(-3)),
            ("9999999999999999999999999999.9999999999", 38, 10, Some(10i128.pow(38) - 1)),
            ("9999999999999999999999999999.99999999999", 38, 10, None),
            ("000000000000000000000000000000000000000000000001", 6, 2, Some(100)),
            ("", 6, 2, None),
            (".", 6, 2, None),
            ("-", 6, 2, None),
            ("1e", 6, 2, None),
            ("1e+", 6, 2, None),
            ("e1", 6, 2, None),
            (" 1", 6, 2, None),
            ("1.2.3", 6, 2, None),
            ("--1", 6, 2, None),
            ("abc", 6, 2, None),
            ("1e+-2", 6, 2, None),
        ] {
            assert_eq!(parse_decimal(text.as_bytes(), precision, scale), expected, "{text}");
        }
        assert_eq!(parse_decimal_text("1,000.5", 6, 2), Some(100_050));
        assert_eq!(parse_decimal_text("-,1", 6, 2), Some(-100));
        assert_eq!(parse_decimal_text(",", 6, 2), None);
    }

    #[test]
    fn base64_is_read_as_jackson_reads_it() {
        for (text, expected) in [
            ("", Some(&b""[..])),
            ("aGVsbG8=", Some(b"hello")),
            ("aGVs bG8=", Some(b"hello")),
            ("YQ==", Some(b"a")),
            ("YR==", Some(b"a")),
            ("YWJ=", Some(b"ab")),
            ("YQ==YQ==", Some(b"aa")),
            ("aGVs/G8=", Some(b"hel\xfco")),
            ("a GVs bG8=", None),
            ("aGVsbG8", None),
            ("YQ=", None),
            ("YQ", None),
            ("=", None),
            ("!!!!", None),
            ("aGVs-_8=", None),
            ("Y===", None),
        ] {
            assert_eq!(parse_base64(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }
}
