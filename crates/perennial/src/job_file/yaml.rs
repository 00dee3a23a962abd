//! YAML to a tree in which everything knows its place in the file.
//!
//! YAML 1.2, core schema, one document. What kind of scalar something is, is decided only when it is read ([`super::read`]), because only
//! then is known whether `1.0` is wanted as a number or as a text.

use std::collections::HashMap;
use std::fmt;

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, Span};

use super::problem::{Location, Problem};

/// Limits that no job file comes near; they keep a hostile one from eating memory.
const MAX_NESTING: usize = 64;
const MAX_NODES: usize = 100_000;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    /// Number of the node in its tree. The copies that an alias makes share it.
    pub id: usize,
    /// Where it stands.
    pub at: Location,
    /// The value.
    pub value: Value,
}

/// The value of a node.
#[derive(Debug, Clone)]
pub enum Value {
    /// A scalar of any type.
    Scalar(Scalar),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
}

/// A scalar.
#[derive(Debug, Clone)]
pub struct Scalar {
    /// As it stands in the file: what messages quote.
    pub raw: String,
    /// With variables expanded: what counts.
    pub text: String,
    /// Not quoted and not a block, so that it may be a number, a truth value or nothing.
    pub plain: bool,
    /// What each variable expanded to: `("${PASSWORD}", "hunter2")`.
    pub expansions: Vec<(String, String)>,
}

/// One key of a mapping and its value.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub at: Location,
    /// The value.
    pub value: Node,
}

impl Scalar {
    /// A message about the scalar with what the file says in place of what it expanded to.
    pub fn hide(&self, message: &str) -> String {
        if self.expansions.is_empty() {
            return message.to_owned();
        }
        let mut message = message.to_owned();
        if !self.text.is_empty() {
            message = message.replace(&self.text, &self.raw);
        }
        // A message may quote only a part. Very short values are no secrets, and would garble the message.
        for (reference, value) in self.expansions.iter().filter(|(_, value)| value.len() > 2) {
            message = message.replace(value, reference);
        }
        message
    }
}

impl Node {
    /// The node that `path` leads to.
    pub fn find(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, step| Some(node.step(step)?.0))
    }

    /// The node one step further, and where a person looks for it.
    fn step(&self, step: &str) -> Option<(&Node, Location)> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == step).map(|e| (&e.value, e.at)),
            Value::List(items) => items.get(step.parse::<usize>().ok()?).map(|item| (item, item.at)),
            Value::Scalar(_) => None,
        }
    }

    /// Where a person looks for what `path` (keys, and indexes written as numbers) leads to, or for as much of it as there is.
    pub fn locate(&self, path: &[&str]) -> Location {
        let mut node = self;
        let mut at = self.at;
        for step in path {
            let Some(found) = node.step(step) else { return at };
            (node, at) = found;
        }
        // A short value says more than its key; a long one is underlined at its key.
        match &node.value {
            Value::Scalar(scalar) if node.at.length > 0 && !scalar.raw.contains('\n') => node.at,
            _ => at,
        }
    }

    /// The node as a scalar.
    pub fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// Whether nothing stands there: no value, `~` or `null`.
    pub fn is_null(&self) -> bool {
        self.scalar().is_some_and(|s| {
            s.plain && s.expansions.is_empty() && matches!(&*s.raw, "" | "~" | "null" | "Null" | "NULL")
        })
    }

    /// All scalars, to change them.
    pub fn for_each_scalar(&mut self, visit: &mut impl FnMut(&mut Vec<String>, Location, &mut Scalar)) {
        fn walk(
            node: &mut Node,
            path: &mut Vec<String>,
            visit: &mut impl FnMut(&mut Vec<String>, Location, &mut Scalar),
        ) {
            match &mut node.value {
                Value::Scalar(scalar) => visit(path, node.at, scalar),
                Value::List(items) => {
                    for (i, item) in items.iter_mut().enumerate() {
                        path.push(i.to_string());
                        walk(item, path, visit);
                        path.pop();
                    }
                }
                Value::Map(entries) => {
                    for entry in entries {
                        path.push(entry.key.clone());
                        walk(&mut entry.value, path, visit);
                        path.pop();
                    }
                }
            }
        }
        walk(self, &mut Vec::new(), visit);
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar(_) => 0,
            Value::List(items) => items.iter().map(Node::size).sum(),
            Value::Map(entries) => entries.iter().map(|e| e.value.size()).sum(),
        }
    }
}

/// What stands in the file, for messages: "the text `abc`", "a list".
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::List(_) => f.write_str("a list"),
            Value::Map(_) => f.write_str("a mapping of keys to values"),
            Value::Scalar(_) if self.is_null() => f.write_str("nothing"),
            Value::Scalar(scalar) => {
                let raw = scalar.raw.trim_end();
                let line = raw.lines().next().unwrap_or_default();
                let shown: String = line.chars().take(60).collect();
                let more = if shown.len() < raw.len() { "…" } else { "" };
                let wrapped = if scalar.expansions.is_empty() { "" } else { " (expanded)" };
                write!(f, "`{shown}{more}`{wrapped}")
            }
        }
    }
}

/// Reads a file's text.
pub fn parse(text: &str) -> Result<Node, Box<Problem>> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_NESTING,
        block_nesting_limit: MAX_NESTING,
    };
    let parser = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader { text, parser, anchors: HashMap::new(), nodes: 0 };
    let mut document = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamStart | Event::DocumentEnd => {}
            Event::DocumentStart(..) if document.is_some() => {
                return Err(problem(location(span), "a second document begins here; a job file is one document"));
            }
            Event::DocumentStart(..) => {
                let (event, span) = reader.next()?;
                document = Some(reader.node(event, span)?);
            }
            Event::StreamEnd => break,
            other => return Err(problem(location(span), format!("this YAML is not understood ({other:?})"))),
        }
    }
    document.ok_or_else(|| problem(Location::START, "the file is empty"))
}

struct Reader<'t> {
    text: &'t str,
    parser: Parser<'t, granit_parser::StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Span), Box<Problem>> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => {
                let mark = error.marker();
                let at = Location { line: mark.line().max(1), column: mark.col() + 1, length: 0 };
                let line = self.text.lines().nth(at.line - 1).unwrap_or_default();
                let mut problem = problem(at, format!("this is not YAML: {}", error.kind()));
                problem.help = hint(line).map(str::to_owned);
                Err(problem)
            }
            None => Err(problem(Location::START, "the file ends in the middle")),
        }
    }

    /// The node that begins with `event`.
    fn node(&mut self, event: Event<'t>, span: Span) -> Result<Node, Box<Problem>> {
        self.nodes += 1;
        let id = self.nodes;
        let at = location(span);
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let as_text = match tag.as_deref() {
                    None => false,
                    Some(tag) if tag.is_yaml_core_schema_tag("str") => true,
                    Some(tag) if tag.is_yaml_core_schema() => false,
                    Some(tag) => return Err(unknown_tag(at, &tag.original())),
                };
                let plain = style == ScalarStyle::Plain && !as_text;
                let raw = text.into_owned();
                (anchor, Value::Scalar(Scalar { text: raw.clone(), raw, plain, expansions: Vec::new() }))
            }
            Event::SequenceStart(_, anchor, tag) => {
                refuse_tag(at, tag.as_deref())?;
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, span)?),
                    }
                }
                (anchor, Value::List(items))
            }
            Event::MappingStart(_, anchor, tag) => {
                refuse_tag(at, tag.as_deref())?;
                let mut entries: Vec<Entry> = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if event == Event::MappingEnd {
                        break;
                    }
                    let entry = self.entry(event, span)?;
                    if let Some(first) = entries.iter().find(|e| e.key == entry.key) {
                        let message =
                            format!("the key `{}` is given twice; first in line {}", entry.key, first.at.line);
                        return Err(problem(entry.at, message));
                    }
                    entries.push(entry);
                }
                (anchor, Value::Map(entries))
            }
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor) else {
                    return Err(problem(at, "this alias stands inside of what it refers to"));
                };
                self.nodes += target.size();
                if self.nodes > MAX_NODES {
                    return Err(problem(at, "too much YAML: aliases multiply the file beyond all bounds"));
                }
                return Ok(target.clone());
            }
            other => return Err(problem(at, format!("this YAML is not understood ({other:?})"))),
        };
        if self.nodes > MAX_NODES {
            return Err(problem(at, format!("too much YAML: more than {MAX_NODES} values")));
        }
        let node = Node { id, at, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn entry(&mut self, event: Event<'t>, span: Span) -> Result<Entry, Box<Problem>> {
        let key = self.node(event, span)?;
        let Value::Scalar(scalar) = key.value else {
            return Err(problem(key.at, "a key is a plain text, not a list or a mapping"));
        };
        let (event, span) = self.next()?;
        let mut value = self.node(event, span)?;
        // A value that is not there has the place of whatever comes next; its key is where a person looks.
        if value.is_null() && value.at.length == 0 {
            value.at = key.at;
        }
        Ok(Entry { key: scalar.raw, at: key.at, value })
    }
}

/// What has often gone wrong where a line is not YAML.
fn hint(line: &str) -> Option<&'static str> {
    let unquoted = line.contains("${") && !line.contains("\"${") && !line.contains("'${");
    if line.trim_start_matches(' ').starts_with('\t') {
        Some("YAML is indented with spaces, not with tabs")
    } else if unquoted && line.contains(['{', '[']) {
        Some("inside `{ … }` and `[ … ]` a variable is quoted: \"${NAME}\"")
    } else {
        None
    }
}

fn refuse_tag(at: Location, tag: Option<&granit_parser::Tag>) -> Result<(), Box<Problem>> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => Err(unknown_tag(at, &tag.original())),
        _ => Ok(()),
    }
}

fn unknown_tag(at: Location, tag: &str) -> Box<Problem> {
    problem(at, format!("the tag `{tag}` means nothing in a job file; leave it out"))
}

fn problem(at: Location, message: impl Into<String>) -> Box<Problem> {
    Box::new(Problem { at: Some(at), path: String::new(), message: message.into(), help: None })
}

fn location(span: Span) -> Location {
    let length = if span.start.line() == span.end.line() { span.end.col().saturating_sub(span.start.col()) } else { 0 };
    Location { line: span.start.line().max(1), column: span.start.col() + 1, length }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_knows_its_place() {
        let tree = parse("a: 1\nb:\n  - x\n  - {c: 'two words'}\n").unwrap();
        for (path, line, column, length) in [
            (&["a"][..], 1, 4, 1),
            (&["b"], 2, 1, 1),
            (&["b", "0"], 3, 5, 1),
            (&["b", "1", "c"], 4, 9, 11),
            (&["b", "7"], 2, 1, 1),
        ] {
            let at = tree.locate(path);
            assert_eq!((at.line, at.column, at.length), (line, column, length), "{path:?}");
        }
    }

    #[test]
    fn anchors_are_copied_in_bounds() {
        let tree = parse("a: &x {k: v}\nb: *x\n").unwrap();
        let Value::Map(entries) = &tree.value else { panic!() };
        assert!(matches!(&entries[1].value.value, Value::Map(copied) if copied[0].key == "k"));
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            let copies = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb += &format!("a{i}: &a{i} [{copies}]\n");
        }
        assert!(parse(&bomb).unwrap_err().message.contains("too much YAML"));
    }

    #[test]
    fn what_is_not_one_mapping_of_texts_is_refused() {
        for (text, line, message) in [
            ("", 1, "empty"),
            ("# only a comment\n", 1, "empty"),
            ("a: 1\n---\nb: 2\n", 2, "second document"),
            ("a: 1\nb: 2\na: 3\n", 3, "given twice; first in line 1"),
            ("a: [1\nb: 2\n", 2, "not YAML"),
            ("a: !secret x\n", 1, "tag `!secret`"),
            ("? [x]\n: 1\n", 1, "a key is a plain text"),
            ("a: *nowhere\n", 1, "not YAML"),
            ("a:\n\t- b\n", 2, "not YAML"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.message.contains(message), "{text:?}: {}", problem.message);
            assert_eq!(problem.at.unwrap().line, line, "{text:?}: {}", problem.message);
        }
    }
}
