//! The job file to begin with: an example, with the meaning of its keys from the schema, and what else there is.

use std::fmt::Write;

use serde_json::Value;

use super::schema::{describe, description, flow, json_schema};
use super::yaml::{self, Node};

/// A job that runs as it is: simulated records in, a SQLite file out.
const EXAMPLE: &str = include_str!("example.yaml");

/// A job file with a comment on every key, and all that has a default commented out.
pub fn example() -> String {
    let schema = json_schema();
    let mut text = String::from(
        "# A Perennial job.\n#\n# Check it:  perennial check <this file>\n# Run it:    perennial run <this file>\n#\n# The reference of all \
         keys is docs/job-file.md; `perennial schema` prints the JSON Schema for editors.\n\n",
    );
    let comments = yaml::parse(EXAMPLE).map(|tree| comments(&tree, &schema)).unwrap_or_default();
    for (number, line) in EXAMPLE.lines().enumerate() {
        for (_, comment) in comments.iter().filter(|(at, _)| *at == number + 1) {
            let indent = line.len() - line.trim_start().len();
            push_comment(&mut text, indent, comment);
        }
        text += line;
        text.push('\n');
    }
    text += "\n# What follows has these defaults.\n";
    let written: Vec<&str> = EXAMPLE.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key).collect();
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        if written.contains(&key.as_str()) {
            continue;
        }
        text.push('\n');
        push_comment(&mut text, 0, value["description"].as_str().unwrap_or_default());
        let default =
            value.get("default").filter(|d| !d.is_null()).map_or_else(String::new, |d| format!(" {}", flow(d)));
        let _ = writeln!(text, "# {key}:{default}");
    }
    text
}

/// The comment of each key that stands first in its line, by line.
fn comments(tree: &Node, schema: &Value) -> Vec<(usize, String)> {
    fn walk(node: &Node, path: &mut Vec<String>, schema: &Value, found: &mut Vec<(usize, String)>) {
        let yaml::Value::Map(entries) = &node.value else { return };
        for entry in entries {
            path.push(entry.key.clone());
            let steps: Vec<&str> = path.iter().map(String::as_str).collect();
            // Names are the user's own; what stands under them is described.
            let parent = describe(schema, &steps[..steps.len() - 1]);
            let is_name = parent.is_some_and(|p| p.get("additionalProperties").is_some_and(Value::is_object));
            if let (Some(text), false) =
                (describe(schema, &steps).and_then(|found| description(found, schema)), is_name)
            {
                found.push((entry.at.line, text.to_owned()));
            }
            walk(&entry.value, path, schema, found);
            path.pop();
        }
    }
    let mut found = Vec::new();
    walk(tree, &mut Vec::new(), schema, &mut found);
    found
}

/// A comment of lines that fit on a terminal.
fn push_comment(text: &mut String, indent: usize, comment: &str) {
    let mut line = String::new();
    for word in comment.split_whitespace() {
        if !line.is_empty() && indent + 2 + line.chars().count() + 1 + word.chars().count() > 100 {
            let _ = writeln!(text, "{:indent$}# {line}", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    if !line.is_empty() {
        let _ = writeln!(text, "{:indent$}# {line}", "");
    }
}
