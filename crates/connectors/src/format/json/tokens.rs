//! JSON tokens as Jackson's byte parser gives them, to the byte.
//!
//! Spark goes on after an error inside a value, and what it then finds depends on where Jackson stopped. So this tokenizer keeps the
//! same state as Jackson 2.21 (position, open scopes, the value that is parsed ahead together with its field's name) and moves the
//! position in the same steps, also when it fails. It is the exact path for records that the fast path does not take; speed does not
//! count here.

use super::JsonFormat;

/// Greatest number of open scopes (Jackson's `StreamReadConstraints`).
const MAX_DEPTH: usize = 1000;
/// Greatest number of characters of a number.
const MAX_NUMBER: usize = 1000;
/// How much of a word that is no token is looked at.
const MAX_WORD: usize = 256;

/// A token. Strings are read when they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    StartObject,
    EndObject,
    StartArray,
    EndArray,
    FieldName,
    String,
    Integer,
    /// A number with a point or an exponent, or `NaN`, `Infinity` and the like.
    Float,
    True,
    False,
    Null,
}

/// What is wrong with the text, and at which byte of the record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SyntaxError {
    pub(super) at: usize,
    pub(super) what: String,
}

type Parsed<T> = Result<T, SyntaxError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Root,
    Array,
    Object,
}

/// An open scope.
#[derive(Debug)]
struct Context {
    scope: Scope,
    /// Whether a value or a name came already, so that a comma must come before the next.
    started: bool,
    name: Option<String>,
}

/// The tokens of one record.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    input: &'a [u8],
    options: &'a JsonFormat,
    /// The next byte to read.
    at: usize,
    contexts: Vec<Context>,
    current: Option<Token>,
    /// The value that goes with the current field name.
    ahead: Option<Token>,
    /// The current string has not been read yet.
    unread: bool,
    /// Where the current value starts.
    start: usize,
    /// The text of the current string once it is read, or of the current number.
    text: String,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(input: &'a [u8], options: &'a JsonFormat) -> Self {
        let at = if input.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        let root = Context { scope: Scope::Root, started: false, name: None };
        Self {
            input,
            options,
            at,
            contexts: vec![root],
            current: None,
            ahead: None,
            unread: false,
            start: at,
            text: String::new(),
        }
    }

    /// The token that [`Tokens::next`] gave last.
    pub(super) fn current(&self) -> Option<Token> {
        self.current
    }

    /// The name of the field that the current token belongs to; `None` inside an array and at the root.
    pub(super) fn name(&self) -> Option<&str> {
        let opened = matches!(self.current, Some(Token::StartObject | Token::StartArray));
        let index = self.contexts.len() - 1;
        let context = if opened && index > 0 { &self.contexts[index - 1] } else { &self.contexts[index] };
        context.name.as_deref()
    }

    /// Moves past the current value, also when it is an object or an array, and gives its bytes.
    pub(super) fn raw(&mut self) -> Parsed<&'a [u8]> {
        let start = self.start;
        self.skip_children()?;
        Ok(&self.input[start.min(self.at)..self.at])
    }

    /// The bytes of the record from the start of the current value, for people.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.input[self.start.min(self.input.len())..]
    }

    /// Moves to the next token; `None` at the end, and after an error between a name and its value.
    pub(super) fn next(&mut self) -> Parsed<Option<Token>> {
        if self.current == Some(Token::FieldName) {
            let token = self.ahead.take();
            match token {
                Some(Token::StartArray) => self.open(Scope::Array)?,
                Some(Token::StartObject) => self.open(Scope::Object)?,
                _ => {}
            }
            self.current = token;
            return Ok(token);
        }
        if self.unread {
            self.unread = false;
            self.read_string(b'"', false)?;
        }
        let Some(byte) = self.skip_space_or_end()? else {
            self.current = None;
            return Ok(None);
        };
        match byte {
            b']' => return self.close(Scope::Array, Token::EndArray),
            b'}' => return self.close(Scope::Object, Token::EndObject),
            _ => {}
        }
        let mut byte = byte;
        let context = self.context();
        let comma = context.scope != Scope::Root && context.started;
        context.started = true;
        if comma {
            if byte != b',' {
                return Err(self.unexpected(byte, "a comma"));
            }
            byte = self.skip_space()?;
        }
        if self.context().scope == Scope::Object {
            let name = self.read_name(byte)?;
            self.context().name = Some(name);
            self.current = Some(Token::FieldName);
            let byte = self.skip_colon()?;
            self.start = self.at - 1;
            let token = self.value(byte)?;
            self.ahead = Some(token);
            return Ok(self.current);
        }
        self.start = self.at - 1;
        let token = self.value(byte)?;
        match token {
            Token::StartArray => self.open(Scope::Array)?,
            Token::StartObject => self.open(Scope::Object)?,
            _ => {}
        }
        self.current = Some(token);
        Ok(self.current)
    }

    /// Moves past the value when it is an object or an array that has just been opened; else does nothing.
    pub(super) fn skip_children(&mut self) -> Parsed<()> {
        if !matches!(self.current, Some(Token::StartObject | Token::StartArray)) {
            return Ok(());
        }
        let mut open = 1;
        while open > 0 {
            match self.next()? {
                Some(Token::StartObject | Token::StartArray) => open += 1,
                Some(Token::EndObject | Token::EndArray) => open -= 1,
                Some(_) => {}
                None => return self.end_of_input().map(|_| ()),
            }
        }
        Ok(())
    }

    /// The text of the current string or number.
    pub(super) fn text(&mut self) -> Parsed<&str> {
        if self.current == Some(Token::String) && self.unread {
            self.unread = false;
            self.text = self.read_string(b'"', true)?;
        }
        Ok(&self.text)
    }

    fn context(&mut self) -> &mut Context {
        let last = self.contexts.len() - 1;
        &mut self.contexts[last]
    }

    fn open(&mut self, scope: Scope) -> Parsed<()> {
        self.contexts.push(Context { scope, started: false, name: None });
        if self.contexts.len() > MAX_DEPTH + 1 {
            return Err(self.error(format!("it is nested more than {MAX_DEPTH} deep")));
        }
        Ok(())
    }

    fn close(&mut self, scope: Scope, token: Token) -> Parsed<Option<Token>> {
        self.start = self.at - 1;
        if self.context().scope != scope {
            let found = self.input[self.at - 1] as char;
            return Err(self.error_at(self.at - 1, format!("`{found}` closes nothing here")));
        }
        self.contexts.pop();
        self.current = Some(token);
        Ok(self.current)
    }

    /// Reads the value that starts with `byte`, except for a double-quoted string, and the inside of objects and arrays.
    fn value(&mut self, byte: u8) -> Parsed<Token> {
        match byte {
            b'"' => {
                self.unread = true;
                Ok(Token::String)
            }
            b'{' => Ok(Token::StartObject),
            b'[' => Ok(Token::StartArray),
            b'-' => {
                let digit = self.read()?;
                if !digit.is_ascii_digit() {
                    return self.signed_word(digit, true);
                }
                self.number(digit)
            }
            b'0'..=b'9' => self.number(byte),
            b't' => self.word("true", 1).map(|()| Token::True),
            b'f' => self.word("false", 1).map(|()| Token::False),
            b'n' => self.word("null", 1).map(|()| Token::Null),
            b'\'' if self.options.allow_single_quotes => {
                self.text = self.read_string(b'\'', true)?;
                self.unread = false;
                Ok(Token::String)
            }
            b'N' => {
                self.word("NaN", 1)?;
                self.not_a_number("NaN")
            }
            b'I' => {
                self.word("Infinity", 1)?;
                self.not_a_number("Infinity")
            }
            b'+' => {
                let byte = self.read()?;
                self.signed_word(byte, false)
            }
            byte => {
                if byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$') || is_latin1_letter(byte) {
                    return Err(self.bad_word());
                }
                Err(self.unexpected(byte, "a value"))
            }
        }
    }

    fn not_a_number(&mut self, text: &str) -> Parsed<Token> {
        if !self.options.allow_non_numeric_numbers {
            return Err(self.error(format!("`{text}` is not allowed (allow_non_numeric_numbers is off)")));
        }
        text.clone_into(&mut self.text);
        Ok(Token::Float)
    }

    /// `INF` or `Infinity` behind a sign; `byte` is the first one behind it.
    fn signed_word(&mut self, byte: u8, negative: bool) -> Parsed<Token> {
        let sign = if negative { '-' } else { '+' };
        if byte == b'I' {
            let word = match self.read()? {
                b'N' => format!("{sign}INF"),
                b'n' => format!("{sign}Infinity"),
                other => return Err(self.unexpected(other, "a digit")),
            };
            self.word(&word, 3)?;
            return self.not_a_number(&word);
        }
        Err(self.unexpected(byte, "a digit"))
    }

    /// Reads a number of which `digit` is the first one; a sign may stand before it.
    fn number(&mut self, digit: u8) -> Parsed<Token> {
        let first = self.at - 1;
        let negative = first > 0 && self.start < first;
        let mut length = 1;
        let mut zeros = 0;
        if digit == b'0' && self.peek().is_some_and(|b| b.is_ascii_digit()) {
            if !self.options.allow_numeric_leading_zeros {
                return Err(self.error("a number with a leading zero".to_owned()));
            }
            // All but the last digit of the zeros in front are left out.
            while self.input.get(first + zeros) == Some(&b'0')
                && self.input.get(first + zeros + 1).is_some_and(u8::is_ascii_digit)
            {
                zeros += 1;
            }
            self.at = first + zeros + 1;
        }
        length += self.digits();
        let mut float = false;
        if self.peek() == Some(b'.') {
            float = true;
            self.at += 1;
            let digits = self.digits();
            if digits == 0 {
                self.read()?;
                return Err(self.error("a decimal point without a digit behind it".to_owned()));
            }
            length += digits;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            float = true;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            let digits = self.digits();
            if digits == 0 {
                self.read()?;
                return Err(self.error("an exponent without a digit".to_owned()));
            }
            length += digits;
        }
        if length > MAX_NUMBER {
            return Err(self.error(format!("a number of more than {MAX_NUMBER} digits")));
        }
        self.text.clear();
        if negative {
            self.text.push('-');
        }
        self.text.extend(self.input[first + zeros..self.at].iter().map(|b| *b as char));
        if self.context().scope == Scope::Root
            && let Some(next) = self.peek()
            && !matches!(next, b' ' | b'\t' | b'\r' | b'\n')
        {
            self.at += 1;
            return Err(self.unexpected(next, "white space"));
        }
        Ok(if float { Token::Float } else { Token::Integer })
    }

    fn digits(&mut self) -> usize {
        let count = self.input[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        self.at += count;
        count
    }

    /// Reads the rest of a word, of which `from` bytes have been read.
    fn word(&mut self, word: &str, from: usize) -> Parsed<()> {
        for byte in word.bytes().skip(from) {
            if self.peek() != Some(byte) {
                return Err(self.bad_word());
            }
            self.at += 1;
        }
        match self.peek() {
            Some(next) if next >= b'0' && !matches!(next, b']' | b'}') => {
                let behind = self.at;
                self.at += 1;
                let part = is_identifier_part(self.char_of(next)?);
                self.at = behind;
                if part { Err(self.bad_word()) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Reads on to the first character that cannot be part of a word, and past it.
    fn bad_word(&mut self) -> SyntaxError {
        let start = self.start;
        let mut length = 0;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match self.char_of(byte) {
                Ok(c) if is_identifier_part(c) => {}
                Ok(_) => break,
                Err(error) => return error,
            }
            length += 1;
            if length >= MAX_WORD {
                break;
            }
        }
        self.error_at(start, "not a value: only true, false and null are words".to_owned())
    }

    /// Reads a name of which `byte` is the first one.
    fn read_name(&mut self, byte: u8) -> Parsed<String> {
        let quote = match byte {
            b'"' => b'"',
            b'\'' if self.options.allow_single_quotes => b'\'',
            _ if self.options.allow_unquoted_field_names => return self.read_bare_name(byte),
            _ => {
                if byte >= 0x80 {
                    self.char_of(byte)?;
                }
                return Err(self.unexpected(byte, "the quote of a field name"));
            }
        };
        // The bytes are looked at as text only when the name is complete.
        let mut bytes = Vec::new();
        loop {
            match self.read()? {
                byte if byte == quote => break,
                b'\\' => {
                    let mut units = vec![self.escape()?];
                    if (0xD800..0xDC00).contains(&units[0]) && self.peek() == Some(b'\\') {
                        self.at += 1;
                        units.push(self.escape()?);
                    }
                    for c in char::decode_utf16(units) {
                        let c = c.map_err(|_| self.error("half of a character in a field name".to_owned()))?;
                        bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                }
                byte if byte < b' ' && !self.options.allow_unquoted_control_chars => {
                    return Err(self.error_at(self.at - 1, "a control character in a field name".to_owned()));
                }
                byte => bytes.push(byte),
            }
        }
        self.name_of(&bytes)
    }

    fn read_bare_name(&mut self, first: u8) -> Parsed<String> {
        let part = |b: u8| b.is_ascii_alphanumeric() || b"@#*-+_$".contains(&b);
        if !part(first) {
            return Err(self.unexpected(first, "a field name"));
        }
        let start = self.at - 1;
        while self.peek().is_some_and(part) {
            self.at += 1;
        }
        if self.peek().is_none() {
            return Err(self.end("in a field name"));
        }
        self.name_of(&self.input[start..self.at])
    }

    /// The name that the bytes spell. Jackson checks less of UTF-8 than the standard asks.
    fn name_of(&self, bytes: &[u8]) -> Parsed<String> {
        if let Ok(name) = std::str::from_utf8(bytes) {
            return Ok(name.to_owned());
        }
        let mut units = Vec::new();
        let mut rest = Utf8 { input: bytes, at: 0 };
        while let Some(byte) = rest.take() {
            rest.decode(byte, &mut units).map_err(|what| self.error(what.to_owned()))?;
        }
        Ok(text_of(&units))
    }

    /// Reads a string up to its closing quote; its text only when `keep`.
    fn read_string(&mut self, quote: u8, keep: bool) -> Parsed<String> {
        let mut units = Vec::new();
        let mut text = String::new();
        loop {
            let byte = self.read()?;
            match byte {
                byte if byte == quote => break,
                b'\\' => {
                    let unit = self.escape()?;
                    units.push(unit);
                }
                // Jackson allows them in double quotes only.
                byte if byte < b' ' && !(quote == b'"' && self.options.allow_unquoted_control_chars) => {
                    return Err(self.error_at(self.at - 1, "a control character in a string".to_owned()));
                }
                byte if byte < 0x80 => units.push(u16::from(byte)),
                byte => {
                    let mut rest = Utf8 { input: self.input, at: self.at };
                    let decoded = rest.decode(byte, &mut units);
                    self.at = rest.at;
                    decoded.map_err(|what| self.error(what.to_owned()))?;
                }
            }
            if !keep {
                units.clear();
            }
        }
        if keep {
            text = text_of(&units);
        }
        Ok(text)
    }

    /// Reads an escape behind its backslash: one UTF-16 unit.
    fn escape(&mut self) -> Parsed<u16> {
        let byte = self.read()?;
        let unit = match byte {
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'f' => 12,
            b'r' => b'\r',
            b'"' | b'/' | b'\\' => byte,
            b'u' => {
                let mut unit = 0;
                for _ in 0..4 {
                    let digit = self.read()?;
                    let Some(value) = (digit as char).to_digit(16) else {
                        return Err(self.unexpected(digit, "a hexadecimal digit"));
                    };
                    unit = unit << 4 | value as u16;
                }
                return Ok(unit);
            }
            b'\'' if self.options.allow_single_quotes => byte,
            byte => {
                let c = self.char_of(byte)?;
                if !self.options.allow_backslash_escaping_any_character {
                    return Err(self.error(format!("`\\{c}` is no escape")));
                }
                return Ok(c as u32 as u16);
            }
        };
        Ok(u16::from(unit))
    }

    /// The character that starts with `byte`; reads the rest of it.
    fn char_of(&mut self, byte: u8) -> Parsed<char> {
        if byte < 0x80 {
            return Ok(byte as char);
        }
        let mut units = Vec::new();
        let mut rest = Utf8 { input: self.input, at: self.at };
        let decoded = rest.decode(byte, &mut units);
        self.at = rest.at;
        decoded.map_err(|what| self.error(what.to_owned()))?;
        Ok(char::decode_utf16(units).next().and_then(Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn skip_space_or_end(&mut self) -> Parsed<Option<u8>> {
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => {}
                b'/' => self.skip_comment()?,
                byte if byte < b' ' => return Err(self.invalid_space(byte)),
                byte => return Ok(Some(byte)),
            }
        }
        self.end_of_input()
    }

    fn skip_space(&mut self) -> Parsed<u8> {
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => {}
                b'/' => self.skip_comment()?,
                byte if byte < b' ' => return Err(self.invalid_space(byte)),
                byte => return Ok(byte),
            }
        }
        Err(self.end(""))
    }

    fn skip_colon(&mut self) -> Parsed<u8> {
        let byte = self.skip_space()?;
        if byte != b':' {
            return Err(self.unexpected(byte, "a colon behind the field name"));
        }
        self.skip_space()
    }

    fn skip_comment(&mut self) -> Parsed<()> {
        if !self.options.allow_comments {
            return Err(self.unexpected(b'/', "a value (allow_comments is off)"));
        }
        match self.read()? {
            b'/' => {
                while self.peek().is_some_and(|b| b != b'\n' && b != b'\r') {
                    self.at += 1;
                }
                Ok(())
            }
            b'*' => match self.input[self.at..].windows(2).position(|pair| pair == b"*/") {
                Some(length) => {
                    self.at += length + 2;
                    Ok(())
                }
                None => {
                    self.at = self.input.len();
                    Err(self.end("in a comment"))
                }
            },
            byte => Err(self.unexpected(byte, "`//` or `/*`")),
        }
    }

    fn end_of_input(&self) -> Parsed<Option<u8>> {
        if self.contexts.len() == 1 { Ok(None) } else { Err(self.end("")) }
    }

    fn peek(&self) -> Option<u8> {
        self.input.get(self.at).copied()
    }

    fn read(&mut self) -> Parsed<u8> {
        let byte = self.peek().ok_or_else(|| self.end("in a value"))?;
        self.at += 1;
        Ok(byte)
    }

    fn error(&self, what: String) -> SyntaxError {
        self.error_at(self.at, what)
    }

    fn error_at(&self, at: usize, what: String) -> SyntaxError {
        SyntaxError { at, what }
    }

    fn end(&self, place: &str) -> SyntaxError {
        let what = if place.is_empty() { "it ends too early".to_owned() } else { format!("it ends {place}") };
        self.error_at(self.input.len(), what)
    }

    fn invalid_space(&self, byte: u8) -> SyntaxError {
        self.error_at(self.at - 1, format!("the control character 0x{byte:02x} between values"))
    }

    /// `byte` has been read already.
    fn unexpected(&self, byte: u8, expected: &str) -> SyntaxError {
        let found = if byte.is_ascii_graphic() { format!("`{}`", byte as char) } else { format!("byte 0x{byte:02x}") };
        self.error_at(self.at.saturating_sub(1), format!("expected {expected}, found {found}"))
    }
}

/// Decodes UTF-8 as leniently as Jackson does, into UTF-16 as Java keeps it.
struct Utf8<'a> {
    input: &'a [u8],
    at: usize,
}

impl Utf8<'_> {
    fn take(&mut self) -> Option<u8> {
        let byte = self.input.get(self.at).copied();
        self.at += usize::from(byte.is_some());
        byte
    }

    /// Decodes the character that starts with `byte`, which has been read already.
    fn decode(&mut self, byte: u8, units: &mut Vec<u16>) -> Result<(), &'static str> {
        let (mut value, more) = match byte {
            0..0x80 => (u32::from(byte), 0),
            0xC0..=0xDF => (u32::from(byte & 0x1F), 1),
            0xE0..=0xEF => (u32::from(byte & 0x0F), 2),
            0xF0..=0xF7 => (u32::from(byte & 0x07), 3),
            _ => return Err("a byte that is not UTF-8"),
        };
        for _ in 0..more {
            match self.take() {
                Some(next) if next & 0xC0 == 0x80 => value = value << 6 | u32::from(next & 0x3F),
                Some(_) => return Err("bytes that are not UTF-8"),
                None => return Err("it ends in a value"),
            }
        }
        if more == 2 && (0xD800..0xE000).contains(&value) {
            return Err("a surrogate in UTF-8");
        }
        if more == 3 {
            let value = value.wrapping_sub(0x10000);
            units.extend([(0xD800 | value >> 10) as u16, (0xDC00 | (value & 0x3FF)) as u16]);
        } else {
            units.push(value as u16);
        }
        Ok(())
    }
}

/// Java's text as UTF-8; a surrogate without its partner becomes `?`, as in Java.
fn text_of(units: &[u16]) -> String {
    char::decode_utf16(units.iter().copied()).map(|c| c.unwrap_or('?')).collect()
}

/// What Java takes for a letter when a single byte is looked at as a character.
fn is_latin1_letter(byte: u8) -> bool {
    (byte as char).is_alphabetic() && byte >= 0x80
}

fn is_identifier_part(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '\0'..='\u{8}' | '\u{e}'..='\u{1b}' | '\u{7f}'..='\u{9f}')
}
