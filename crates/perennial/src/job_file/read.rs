//! The tree of a job file into the structs that describe it, with all that is wrong at once.
//!
//! This is a serde deserializer over [`Node`], so the structs are the single place where the file's form is written down. It knows more
//! than serde's own errors tell: `deserialize_struct` gives the known keys, so unknown ones are reported and passed over, and each
//! error gets the place of the value it came from. Any other error ends a serde derive, so it is reported, its value is left out, and
//! the tree is read again until nothing new is found. What is only missing because something was left out is not reported.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};

use super::problem::{Location, Problem, is_secret, nearest};
use super::yaml::{Entry, Node, Scalar, Value};

/// More than a person mends in one go.
const MAX_PROBLEMS: usize = 20;

/// Reads a tree. The value is there when it could be read, with what was wrong left out of it.
pub fn read<T: DeserializeOwned>(tree: &Node) -> (Option<T>, Vec<Problem>) {
    let reading = Reading::default();
    loop {
        let error = match T::deserialize(Reader { reading: &reading, node: tree, path: &Path::Root, key: None }) {
            Ok(value) => return (Some(value), reading.problems.into_inner()),
            Err(error) => error,
        };
        let Error { cause, help, place, found_in, .. } = *error;
        let place = place.unwrap_or((tree.at, String::new()));
        match cause {
            Cause::Consequence => {}
            Cause::Missing(what) => reading.report(place, format!("missing {what}"), help),
            Cause::Wrong(message) => reading.report(place, message, help),
        }
        let Some((parent, child)) = found_in else { return (None, reading.problems.into_inner()) };
        reading.leave_out(parent, child);
        if reading.problems.borrow().len() >= MAX_PROBLEMS {
            return (None, reading.problems.into_inner());
        }
    }
}

/// What is known from earlier rounds. Nodes by number.
#[derive(Default)]
struct Reading {
    problems: RefCell<Vec<Problem>>,
    left_out: RefCell<HashSet<usize>>,
    /// Nodes that something was left out of.
    incomplete: RefCell<HashSet<usize>>,
}

impl Reading {
    fn report(&self, (at, path): (Location, String), message: String, help: Option<String>) {
        self.problems.borrow_mut().push(Problem { at: Some(at), path, message, help });
    }

    fn leave_out(&self, parent: usize, child: usize) {
        self.left_out.borrow_mut().insert(child);
        self.incomplete.borrow_mut().insert(parent);
    }

    fn is_left_out(&self, node: &Node) -> bool {
        self.left_out.borrow().contains(&node.id)
    }

    fn is_incomplete(&self, node: &Node) -> bool {
        self.incomplete.borrow().contains(&node.id)
    }
}

enum Path<'p> {
    Root,
    Step(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Step(Self::Root, key) => f.write_str(key),
            Self::Step(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Debug)]
enum Cause {
    /// A message.
    Wrong(String),
    /// A key, or one of several, is missing.
    Missing(String),
    /// Follows from something that has been reported.
    Consequence,
}

#[derive(Debug)]
struct Error {
    cause: Cause,
    help: Option<String>,
    /// Where, and the keys that lead there.
    place: Option<(Location, String)>,
    /// The value to leave out, and the node that it is in.
    found_in: Option<(usize, usize)>,
}

impl Error {
    fn new(cause: Cause) -> Box<Self> {
        Box::new(Self { cause, help: None, place: None, found_in: None })
    }

    fn wrong(message: impl Into<String>) -> Box<Self> {
        Self::new(Cause::Wrong(message.into()))
    }

    fn help(mut self: Box<Self>, help: Option<String>) -> Box<Self> {
        self.help = help;
        self
    }

    /// Gives an error its place where it has none, and takes expanded values out of its message: it may quote them.
    fn at(mut self: Box<Self>, node: &Node, key: Option<Location>, path: &Path<'_>) -> Box<Self> {
        if let (Cause::Wrong(message), Some(scalar)) = (&mut self.cause, node.scalar()) {
            *message = scalar.hide(message);
        }
        if self.place.is_none() {
            let at = if node.scalar().is_some() { node.at } else { key.unwrap_or(node.at) };
            self.place = Some((at, path.to_string()));
        }
        self
    }

    fn inside(mut self: Box<Self>, parent: &Node, child: &Node) -> Box<Self> {
        self.found_in.get_or_insert((parent.id, child.id));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Wrong(message) => f.write_str(message),
            Cause::Missing(what) => write!(f, "missing {what}"),
            Cause::Consequence => f.write_str("something inside is wrong"),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Box<Error> {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error::wrong(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        let what = if field.contains('`') { field.to_owned() } else { format!("key `{field}`") };
        Error::new(Cause::Missing(what))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Error::wrong(format!("unknown key `{field}`")).help(Some(did_you_mean(field, expected)))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Error::wrong(format!("unknown value `{variant}`")).help(Some(did_you_mean(variant, expected)))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Error::wrong(format!("expected {expected}, found {unexpected}"))
    }
}

fn did_you_mean(given: &str, known: &[&str]) -> String {
    let listed = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match nearest(given, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? known: {listed}"),
        None if known.is_empty() => "there are no keys here".into(),
        None => format!("known: {listed}"),
    }
}

/// Reads one node.
#[derive(Clone, Copy)]
struct Reader<'r, 'n> {
    reading: &'r Reading,
    node: &'n Node,
    path: &'r Path<'r>,
    /// Where the node's key stands.
    key: Option<Location>,
}

/// What a plain scalar is in the core schema of YAML 1.2.
enum Core {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text,
}

fn core_value(text: &str) -> Core {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Core::Null,
        "true" | "True" | "TRUE" => return Core::Bool(true),
        "false" | "False" | "FALSE" => return Core::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" => return Core::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Core::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Core::Float(f64::NAN),
        _ => {}
    }
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'));
    if let Some(value) =
        text.strip_prefix("0x").and_then(|d| radix(d, 16)).or(text.strip_prefix("0o").and_then(|d| radix(d, 8)))
    {
        return Core::Unsigned(value);
    }
    if let Ok(value) = text.parse() {
        return Core::Unsigned(value);
    }
    if let Ok(value) = text.parse() {
        return Core::Signed(value);
    }
    // `f64::from_str` also takes `inf`, `nan` and `infinity`, which YAML does not.
    match text.parse() {
        Ok(value) if text.contains(|c: char| c.is_ascii_digit()) => Core::Float(value),
        _ => Core::Text,
    }
}

impl<'r, 'n> Reader<'r, 'n> {
    fn expected(&self, what: impl fmt::Display) -> Box<Error> {
        // The value of a password is not quoted, whatever it is.
        let secret = matches!(self.path, Path::Step(_, key) if is_secret(key));
        match (&self.node.value, secret) {
            (Value::Scalar(_), true) if !self.node.is_null() => {
                Error::wrong(format!("expected {what}, found another text"))
            }
            _ => Error::wrong(format!("expected {what}, found {}", self.node)),
        }
    }

    fn text(&self) -> Result<&'n str, Box<Error>> {
        match self.node.scalar() {
            Some(scalar) if !self.node.is_null() => Ok(&scalar.text),
            _ => Err(self.expected("a text")),
        }
    }

    /// What a scalar is where a number or a truth value is wanted. Quoted ones and blocks are text, but for variables: they must be
    /// quoted inside of `{ … }`, and still stand for what they expand to.
    fn core(&self) -> Option<Core> {
        let scalar = self.node.scalar()?;
        let expanded = !scalar.expansions.is_empty();
        Some(match core_value(&scalar.text) {
            _ if !scalar.plain && !expanded => Core::Text,
            // A variable that is set to nothing is an empty text.
            Core::Null if expanded => Core::Text,
            value => value,
        })
    }

    fn integer<T: TryFrom<i128>>(&self, min: i128, max: i128) -> Result<T, Box<Error>> {
        let value = match self.core() {
            Some(Core::Unsigned(value)) => Some(i128::from(value)),
            Some(Core::Signed(value)) => Some(i128::from(value)),
            _ => None,
        };
        let wide = max >= i128::from(i32::MAX);
        match value.map(T::try_from) {
            Some(Ok(value)) => Ok(value),
            None if wide && min == 0 => Err(self.expected("a whole number, 0 or more")),
            None if wide => Err(self.expected("a whole number")),
            _ => Err(self.expected(format_args!("a whole number from {min} to {max}"))),
        }
    }

    fn float(&self) -> Result<f64, Box<Error>> {
        match self.core() {
            Some(Core::Float(value)) => Ok(value),
            Some(Core::Unsigned(value)) => Ok(value as f64),
            Some(Core::Signed(value)) => Ok(value as f64),
            _ => Err(self.expected("a number")),
        }
    }

    fn map(&self, entries: &'n [Entry]) -> Entries<'r, 'n> {
        Entries { reading: self.reading, parent: self.node, path: self.path, rest: entries.iter(), current: None }
    }

    /// Gives what comes out of reading this node its place, and tells a missing key that follows from a reported problem.
    fn place<T>(&self, result: Result<T, Box<Error>>) -> Result<T, Box<Error>> {
        result.map_err(|mut error| {
            if error.place.is_none()
                && matches!(error.cause, Cause::Missing(_))
                && self.reading.is_incomplete(self.node)
            {
                error.cause = Cause::Consequence;
            }
            error.at(self.node, self.key, self.path)
        })
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            self.place(self.integer::<$type>(<$type>::MIN as i128, <$type>::MAX as i128).and_then(|value| visitor.$visit(value)))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'_, '_> {
    type Error = Box<Error>;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.place(match &self.node.value {
            Value::List(items) => visitor.visit_seq(Items { reader: self, index: 0, items }),
            Value::Map(entries) => visitor.visit_map(self.map(entries)),
            Value::Scalar(scalar) => match self.core().filter(|_| scalar.plain) {
                Some(Core::Null) => visitor.visit_unit(),
                Some(Core::Bool(value)) => visitor.visit_bool(value),
                Some(Core::Unsigned(value)) => visitor.visit_u64(value),
                Some(Core::Signed(value)) => visitor.visit_i64(value),
                Some(Core::Float(value)) => visitor.visit_f64(value),
                Some(Core::Text) | None => visitor.visit_str(&scalar.text),
            },
        })
    }

    integers! {
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.place(match self.core() {
            Some(Core::Bool(value)) => visitor.visit_bool(value),
            _ => Err(self.expected("`true` or `false`")),
        })
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.place(self.float().and_then(|value| visitor.visit_f64(value)))
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.place(self.text().and_then(|text| visitor.visit_str(text)))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.node.is_null() { visitor.visit_unit() } else { self.place(Err(self.expected("nothing"))) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.place(match &self.node.value {
            Value::List(items) => visitor.visit_seq(Items { reader: self, index: 0, items }),
            _ => Err(self.expected("a list")),
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.place(match &self.node.value {
            Value::Map(entries) => visitor.visit_map(self.map(entries)),
            _ if self.node.is_null() => visitor.visit_map(self.map(&[])),
            _ => Err(self.expected("a mapping of names to values")),
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let entries: &[Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            // All keys behind it are commented out.
            _ if self.node.is_null() => &[],
            _ => {
                let keys = fields.iter().map(|field| format!("`{field}`")).collect::<Vec<_>>().join(", ");
                return self.place(Err(self.expected(format_args!("a mapping with the keys {keys}"))));
            }
        };
        for entry in entries.iter().filter(|e| !fields.contains(&&*e.key) && !self.reading.is_left_out(&e.value)) {
            let path = Path::Step(self.path, &entry.key).to_string();
            let help = did_you_mean(&entry.key, fields);
            self.reading.report((entry.at, path), format!("unknown key `{}`", entry.key), Some(help));
            self.reading.leave_out(self.node.id, entry.value.id);
        }
        self.place(visitor.visit_map(self.map(entries)))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let choice = || {
            let listed = variants.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            format!("one of {listed}")
        };
        let (name, at, content) = match &self.node.value {
            Value::Map(_) if self.reading.is_incomplete(self.node) => {
                return self.place(Err(Error::new(Cause::Consequence)));
            }
            Value::Map(entries) => match entries.as_slice() {
                [entry] => (&entry.key, entry.at, Some(entry)),
                [] => return self.place(Err(Error::wrong(format!("expected {}, found nothing", choice())))),
                [_, second, ..] => {
                    let mut error =
                        Error::wrong(format!("expected only one of these keys, but `{}` follows", second.key));
                    error.place = Some((second.at, self.path.to_string()));
                    return self.place(Err(error));
                }
            },
            Value::Scalar(scalar) if !self.node.is_null() => (&scalar.text, self.node.at, None),
            _ => return self.place(Err(self.expected(choice()))),
        };
        if !variants.contains(&name.as_str()) {
            let shown =
                if content.is_some() { name } else { &self.node.scalar().map_or_else(String::new, |s| s.raw.clone()) };
            let mut error =
                Error::wrong(format!("unknown {} `{shown}`", if content.is_some() { "key" } else { "value" }))
                    .help(Some(did_you_mean(shown, variants)));
            error.place = Some((at, self.path.to_string()));
            return self.place(Err(error));
        }
        self.place(visitor.visit_enum(Choice { reader: self, name, content }))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    fn is_human_readable(&self) -> bool {
        true
    }
}

struct Entries<'r, 'n> {
    reading: &'r Reading,
    parent: &'n Node,
    path: &'r Path<'r>,
    rest: std::slice::Iter<'n, Entry>,
    current: Option<&'n Entry>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Box<Error>;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        let Some(entry) = self.rest.find(|entry| !self.reading.is_left_out(&entry.value)) else { return Ok(None) };
        self.current = Some(entry);
        let path = Path::Step(self.path, &entry.key);
        seed.deserialize(Key(&entry.key)).map(Some).map_err(|mut error| {
            error.place.get_or_insert_with(|| (entry.at, path.to_string()));
            error.inside(self.parent, &entry.value)
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        let Some(entry) = self.current.take() else { return Err(Error::wrong("a value was read before its key")) };
        let path = Path::Step(self.path, &entry.key);
        let reader = Reader { reading: self.reading, node: &entry.value, path: &path, key: Some(entry.at) };
        reader.place(seed.deserialize(reader)).map_err(|error| error.inside(self.parent, &entry.value))
    }
}

/// A key, as whatever type the map has for its keys.
struct Key<'n>(&'n str);

macro_rules! parsed_keys {
    ($($method:ident $visit:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            match self.0.parse() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(Error::wrong(format!("expected a whole number as a key, found `{}`", self.0))),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Key<'_> {
    type Error = Box<Error>;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_str(self.0)
    }

    parsed_keys! {
        deserialize_i8 visit_i8;
        deserialize_i16 visit_i16;
        deserialize_i32 visit_i32;
        deserialize_i64 visit_i64;
        deserialize_u8 visit_u8;
        deserialize_u16 visit_u16;
        deserialize_u32 visit_u32;
        deserialize_u64 visit_u64;
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    serde::forward_to_deserialize_any! {
        bool f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'r, 'n> {
    reader: Reader<'r, 'n>,
    index: usize,
    items: &'n [Node],
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Box<Error>;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Self::Error> {
        while let Some(item) = self.items.get(self.index) {
            let path = Path::Index(self.reader.path, self.index);
            self.index += 1;
            if self.reader.reading.is_left_out(item) {
                continue;
            }
            let reader = Reader { reading: self.reader.reading, node: item, path: &path, key: None };
            let value = reader.place(seed.deserialize(reader));
            return value.map(Some).map_err(|error| error.inside(self.reader.node, item));
        }
        Ok(None)
    }
}

/// One of several: `name`, or `name: content`.
struct Choice<'r, 'n> {
    reader: Reader<'r, 'n>,
    name: &'n str,
    content: Option<&'n Entry>,
}

impl<'de> EnumAccess<'de> for Choice<'_, '_> {
    type Error = Box<Error>;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Self::Error> {
        Ok((seed.deserialize(Key(self.name))?, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'_, '_> {
    type Error = Box<Error>;

    fn unit_variant(self) -> Result<(), Self::Error> {
        match self.content {
            Some(entry) if !entry.value.is_null() => {
                Err(Error::wrong(format!("`{}` has no settings; write just `{}`", self.name, self.name)))
            }
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Self::Error> {
        let path = Path::Step(self.reader.path, self.name);
        match self.content {
            Some(entry) => {
                let reader = Reader { node: &entry.value, path: &path, key: Some(entry.at), ..self.reader };
                reader.place(seed.deserialize(reader)).map_err(|error| error.inside(self.reader.node, &entry.value))
            }
            // Just the name: all settings have their defaults.
            None => {
                let nothing = Scalar { raw: String::new(), text: String::new(), plain: true, expansions: Vec::new() };
                let node = Node { id: self.reader.node.id, at: self.reader.node.at, value: Value::Scalar(nothing) };
                seed.deserialize(Reader { node: &node, path: &path, ..self.reader })
            }
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Self::Error> {
        struct Seq<V>(V);
        impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Seq<V> {
            type Value = V::Value;
            fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
                deserializer.deserialize_seq(self.0)
            }
        }
        self.newtype_variant_seed(Seq(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        struct Struct<V>(&'static [&'static str], V);
        impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Struct<V> {
            type Value = V::Value;
            fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
                deserializer.deserialize_struct("", self.0, self.1)
            }
        }
        self.newtype_variant_seed(Struct(fields, visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::super::{expand, yaml};
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        text: String,
        number: u16,
        share: f64,
        flag: bool,
        list: Vec<u8>,
        optional: Option<String>,
        choice: Choice,
        nested: BTreeMap<String, Nested>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nested {
        needed: i32,
        #[serde(default)]
        other: i32,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Choice {
        #[default]
        Nothing,
        Every(String),
        Json(Options),
        By(BTreeMap<i32, i64>),
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Options {
        strict: bool,
    }

    struct Env;

    impl expand::Lookup for Env {
        fn variable(&self, name: &str) -> Option<String> {
            (name == "PW").then(|| "hunter2".into())
        }

        fn file(&self, _: &str) -> Result<String, String> {
            Err("none".into())
        }
    }

    fn read_text(text: &str) -> (Option<Settings>, Vec<String>) {
        let mut tree = yaml::parse(text).unwrap();
        assert_eq!(expand::expand(&mut tree, &Env), []);
        let (value, problems) = read(&tree);
        let shown = problems.into_iter().map(|p| {
            let at = p.at.unwrap();
            format!("{}:{} {}: {} ({})", at.line, at.column, p.path, p.message, p.help.unwrap_or_default())
        });
        (value, shown.collect())
    }

    #[test]
    fn scalars_are_what_the_field_wants() {
        let (value, problems) = read_text(
            "text: 1.10\nnumber: 0x10\nshare: 1\nflag: True\nlist: [1, 2]\noptional: ~\nchoice: json\nnested:\n  a: {needed: -1}\n",
        );
        assert_eq!(problems, Vec::<String>::new());
        let value = value.unwrap();
        assert_eq!((value.text.as_str(), value.number, value.share, value.flag), ("1.10", 16, 1.0, true));
        assert_eq!((value.list.as_slice(), &value.optional), (&[1, 2][..], &None));
        assert_eq!(value.choice, Choice::Json(Options { strict: false }));
        assert_eq!(value.nested["a"], Nested { needed: -1, other: 0 });
        for (text, choice) in [
            ("choice: nothing", Choice::Nothing),
            ("choice: {every: 10 seconds}", Choice::Every("10 seconds".into())),
            ("choice: {json: {strict: true}}", Choice::Json(Options { strict: true })),
            ("choice: {json: }", Choice::Json(Options { strict: false })),
            ("choice: {by: {0: 15, 1: 20}}", Choice::By([(0, 15), (1, 20)].into())),
        ] {
            assert_eq!(read_text(text).0.unwrap().choice, choice, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, expected) in [
            ("number: abc", "1:9 number: expected a whole number from 0 to 65535, found `abc` ()"),
            ("number: 70000", "1:9 number: expected a whole number from 0 to 65535, found `70000` ()"),
            ("number: '5'", "1:9 number: expected a whole number from 0 to 65535, found `5` ()"),
            ("share: much", "1:8 share: expected a number, found `much` ()"),
            ("flag: yes", "1:7 flag: expected `true` or `false`, found `yes` ()"),
            ("list: 3", "1:7 list: expected a list, found `3` ()"),
            ("list: [1, 300]", "1:11 list[1]: expected a whole number from 0 to 255, found `300` ()"),
            ("text: [a]", "1:1 text: expected a text, found a list ()"),
            ("text:\nflag: true", "1:1 text: expected a text, found nothing ()"),
            ("nested: [a]", "1:1 nested: expected a mapping of names to values, found a list ()"),
            ("nested: {a: 3}", "1:13 nested.a: expected a mapping with the keys `needed`, `other`, found `3` ()"),
            ("nested:\n  a: {other: 1}", "2:3 nested.a: missing key `needed` ()"),
            (
                "choice: evry",
                "1:9 choice: unknown value `evry` (did you mean `every`? known: `nothing`, `every`, `json`, `by`)",
            ),
            ("choice: {nothing: 1}", "1:1 choice: `nothing` has no settings; write just `nothing` ()"),
            ("choice: {by: {x: 15}}", "1:15 choice.by.x: expected a whole number as a key, found `x` ()"),
            ("choice: {json: {}, every: x}", "1:20 choice: expected only one of these keys, but `every` follows ()"),
        ] {
            let (_, problems) = read_text(text);
            assert_eq!(problems, [expected], "{text}");
        }
    }

    #[test]
    fn everything_is_told_at_once_and_nothing_twice() {
        let (value, problems) = read_text(
            "txet: x\nnumber: -1\nflag: maybe\nnested:\n  a: {neded: 1}\n  b: {needed: x, other: y}\n  c: {needed: 1}\nchoice: {json: \
             {strict: 3, strickt: 1}}\n",
        );
        let mut problems = problems;
        problems.sort();
        assert_eq!(
            problems,
            [
                "1:1 txet: unknown key `txet` (did you mean `text`? known: `text`, `number`, `share`, `flag`, `list`, `optional`, \
                 `choice`, `nested`)",
                "2:9 number: expected a whole number from 0 to 65535, found `-1` ()",
                "3:7 flag: expected `true` or `false`, found `maybe` ()",
                "5:7 nested.a.neded: unknown key `neded` (did you mean `needed`? known: `needed`, `other`)",
                "6:15 nested.b.needed: expected a whole number, found `x` ()",
                "6:25 nested.b.other: expected a whole number, found `y` ()",
                "8:25 choice.json.strict: expected `true` or `false`, found `3` ()",
                "8:28 choice.json.strickt: unknown key `strickt` (did you mean `strict`? known: `strict`)",
            ]
        );
        assert_eq!(value.unwrap().nested.keys().collect::<Vec<_>>(), ["c"], "the rest is still read");
    }

    #[test]
    fn expanded_values_do_not_show() {
        for text in ["number: ${PW}", "flag: ${PW}", "choice: ${PW}", "list: ${PW}", "nested: {a: '${PW}'}"] {
            let (_, problems) = read_text(text);
            assert_eq!(problems.len(), 1, "{text}");
            assert!(problems[0].contains("${PW}") && !problems[0].contains("hunter2"), "{}", problems[0]);
        }
        #[derive(Debug, Deserialize)]
        struct Typed {
            #[allow(dead_code, reason = "only its errors are looked at")]
            every: perennial_core::config::HumanDuration,
        }
        let mut tree = yaml::parse("every: 1 ${PW}").unwrap();
        expand::expand(&mut tree, &Env);
        let (_, problems) = read::<Typed>(&tree);
        assert!(problems[0].message.starts_with("`1 ${PW}` is not a duration"), "{}", problems[0].message);
    }

    #[test]
    fn a_literal_password_does_not_show() {
        #[derive(Debug, Deserialize)]
        struct Typed {
            #[allow(dead_code, reason = "only its errors are looked at")]
            password: u8,
        }
        let (_, problems) = read::<Typed>(&yaml::parse("password: hunter2").unwrap());
        assert!(!problems[0].message.contains("hunter2"), "{}", problems[0].message);
    }
}
