//! The JSON Schema of the job file, and the reference page that is made from it.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::JobFile;

/// The JSON Schema (draft 2020-12) of the job file, for editors and for checks outside of Perennial.
pub fn json_schema() -> Value {
    let mut schema = schemars::schema_for!(JobFile).to_value();
    let definitions = schema.get("$defs").cloned().unwrap_or_default();
    polish(&mut schema, &definitions);
    schema["title"] = "Perennial job".into();
    schema
}

/// Allows what the parser allows beyond serde's own forms: a variable in the place of a number or a truth value, and just the name of
/// something whose settings all have defaults.
fn polish(schema: &mut Value, definitions: &Value) {
    if let Some(object) = schema.as_object_mut() {
        let numeric = matches!(object.get("type").and_then(Value::as_str), Some("integer" | "number" | "boolean"));
        if numeric {
            object["type"] = json!([object["type"], "string"]);
            object.insert("pattern".into(), r"\$\{.*\}".into());
        }
        if let Some(Value::Array(variants)) = object.get_mut("oneOf") {
            let bare: Vec<Value> = variants
                .iter()
                .filter_map(|variant| {
                    let (name, settings) = single_property(variant)?;
                    let settings = resolve(settings, definitions);
                    let optional = settings.get("type") == Some(&json!("object")) && settings.get("required").is_none();
                    let listed = variants
                        .iter()
                        .any(|v| v["const"] == *name || v["enum"].as_array().is_some_and(|e| e.contains(&json!(name))));
                    (optional && !listed)
                        .then(|| json!({ "const": name, "description": format!("`{name}` with its defaults.") }))
                })
                .collect();
            variants.extend(bare);
        }
    }
    match schema {
        Value::Object(object) => object.values_mut().for_each(|value| polish(value, definitions)),
        Value::Array(items) => items.iter_mut().for_each(|value| polish(value, definitions)),
        _ => {}
    }
}

fn single_property(variant: &Value) -> Option<(&String, &Value)> {
    let mut properties = variant.get("properties")?.as_object()?.iter();
    let first = properties.next()?;
    properties.next().is_none().then_some(first)
}

fn resolve<'s>(schema: &'s Value, definitions: &'s Value) -> &'s Value {
    match schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/")) {
        Some(name) => &definitions[name],
        None => schema,
    }
}

/// The part of the schema that describes the value at `path` (keys; names of sources, queries and expectations are any).
pub(super) fn describe<'s>(root: &'s Value, path: &[&str]) -> Option<&'s Map<String, Value>> {
    let definitions = &root["$defs"];
    let mut schema = root;
    for key in path {
        schema = forms(schema, definitions).into_iter().find_map(|form| {
            let form = resolve(form, definitions);
            form.get("properties")
                .and_then(|p| p.get(*key))
                .or_else(|| form.get("additionalProperties").filter(|a| a.is_object()))
        })?;
    }
    schema.as_object()
}

/// The first paragraph of a description: the value's own, or that of its type.
pub(super) fn description<'s>(schema: &'s Map<String, Value>, root: &'s Value) -> Option<&'s str> {
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
    let of_type = || root["$defs"][name?].get("description");
    schema.get("description").or_else(of_type)?.as_str()?.split("\n\n").next()
}

/// A schema and the alternatives in it.
fn forms<'s>(schema: &'s Value, definitions: &'s Value) -> Vec<&'s Value> {
    let mut found = vec![resolve(schema, definitions)];
    for list in ["oneOf", "anyOf", "allOf"] {
        for alternative in found[0].get(list).and_then(Value::as_array).into_iter().flatten() {
            found.extend(forms(alternative, definitions));
        }
    }
    found
}

/// The reference page of the job file in Markdown.
pub fn reference_page() -> String {
    let schema = json_schema();
    let mut page = Page { definitions: &schema["$defs"], text: String::new(), done: Vec::new() };
    page.text += "# The job file\n\n";
    page.text +=
        "<!-- Made from the doc comments by `cargo test`; run it with UPDATE_DOCS=1 after changing them. -->\n\n";
    let _ = writeln!(page.text, "{}\n", schema["description"].as_str().unwrap_or_default());
    page.text += "Editors complete and check the file with the schema that `perennial schema` prints.\n\n";
    page.keys(&schema);
    page.sections("", &schema, 2);
    let kept = page.text.trim_end().len();
    page.text.truncate(kept);
    page.text + "\n"
}

struct Page<'s> {
    definitions: &'s Value,
    text: String,
    done: Vec<String>,
}

impl Page<'_> {
    /// The table of an object's keys.
    fn keys(&mut self, object: &Value) {
        let Some(properties) = object.get("properties").and_then(Value::as_object) else { return };
        if properties.is_empty() {
            self.text += "It has no settings.\n\n";
            return;
        }
        let required = |key: &str| object["required"].as_array().is_some_and(|r| r.contains(&json!(key)));
        let connector = |key: &str| {
            object["oneOf"].as_array().is_some_and(|forms| forms.iter().any(|form| form["required"] == json!([key])))
        };
        self.text += "| Key | Type | Default | Meaning |\n|---|---|---|---|\n";
        for (key, value) in properties {
            let default = match value.get("default") {
                _ if connector(key) => "one of these".into(),
                _ if required(key) => "required".into(),
                None | Some(Value::Null) => "none".into(),
                Some(default) => format!("`{}`", self.default(value, default)),
            };
            let own = value.get("description").or_else(|| resolve(value, self.definitions).get("description"));
            let first = own.and_then(Value::as_str).unwrap_or_default().split("\n\n").next().unwrap_or_default();
            let meaning = first.replace('\n', " ").replace('|', "\\|");
            let _ = writeln!(self.text, "| `{key}` | {} | {default} | {meaning} |", self.kind(value));
        }
        self.text += "\n";
    }

    /// A default as one would write it: just the name of something that has only defaults itself.
    fn default(&self, schema: &Value, default: &Value) -> String {
        if let Some((name, 1)) = default.as_object().and_then(|o| Some((o.keys().next()?, o.len()))) {
            let variants = resolve(schema, self.definitions)["oneOf"].as_array();
            if variants.is_some_and(|variants| variants.iter().any(|v| v["const"] == **name)) {
                return name.clone();
            }
        }
        flow(default)
    }

    /// A section for everything below an object that has keys of its own.
    fn sections(&mut self, path: &str, object: &Value, level: usize) {
        let Some(properties) = object.get("properties").and_then(Value::as_object) else { return };
        for (key, value) in properties {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            self.section(&path, value, level);
        }
    }

    fn section(&mut self, path: &str, value: &Value, level: usize) {
        for form in forms(value, self.definitions) {
            if let Some(named) = form.get("additionalProperties").filter(|a| a.is_object()) {
                self.section(&format!("{path}.<name>"), named, level);
                continue;
            }
            let is_choice = form.get("oneOf").is_some() && form.get("properties").is_none();
            if is_choice {
                self.choices(path, form, level);
                return;
            }
            let has_keys = form.get("properties").is_some() && form.get("type") == Some(&json!("object"));
            if has_keys && !self.done.contains(&path.to_owned()) {
                self.done.push(path.to_owned());
                let heading = "#".repeat(level.min(4));
                let _ = writeln!(self.text, "{heading} `{path}`\n");
                let _ = writeln!(self.text, "{}\n", form["description"].as_str().unwrap_or_default());
                self.keys(form);
                self.sections(path, form, level + 1);
            }
        }
    }

    /// The alternatives of an enumeration: a list of names, and a section for each that has settings.
    fn choices(&mut self, path: &str, form: &Value, level: usize) {
        for variant in form["oneOf"].as_array().into_iter().flatten() {
            if let Some((name, settings)) = single_property(variant) {
                self.section(&format!("{path}.{name}"), settings, level);
            }
        }
    }

    /// The type of a value, for people.
    fn kind(&self, value: &Value) -> String {
        let reference = value.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
        match reference {
            Some("Duration") => return "duration".into(),
            Some("ByteSize") => return "size".into(),
            Some("Secret") => return "secret".into(),
            Some("Ddl") => return "Spark DDL".into(),
            _ => {}
        }
        let value = resolve(value, self.definitions);
        for list in ["oneOf", "anyOf"] {
            if let (Some(variants), None) = (value[list].as_array(), value.get("properties")) {
                let mut names: Vec<String> = Vec::new();
                for variant in variants {
                    let name = match (single_property(variant), variant.get("const"), variant["enum"].as_array()) {
                        (Some((name, _)), ..) => format!("`{name}: …`"),
                        (_, Some(constant), _) => format!("`{}`", constant.as_str().unwrap_or_default()),
                        (_, _, Some(several)) => several
                            .iter()
                            .filter_map(Value::as_str)
                            .map(|s| format!("`{s}`"))
                            .collect::<Vec<_>>()
                            .join(", "),
                        _ => self.kind(variant),
                    };
                    if !name.is_empty() && !names.contains(&name) {
                        names.push(name);
                    }
                }
                return names.join(", ");
            }
        }
        if let Some(several) = value["enum"].as_array() {
            return several.iter().filter_map(Value::as_str).map(|s| format!("`{s}`")).collect::<Vec<_>>().join(", ");
        }
        let kinds: Vec<&str> = match &value["type"] {
            Value::String(kind) => vec![kind],
            // The string is for variables, which every value may be.
            Value::Array(kinds) if value.get("pattern").is_some() => {
                kinds.iter().filter_map(Value::as_str).take(1).collect()
            }
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => return "any".into(),
        };
        let named = |kind: &str| match kind {
            "string" => "text".to_owned(),
            "integer" => "whole number".to_owned(),
            "boolean" => "true or false".to_owned(),
            "array" => format!("list of {}", self.kind(&value["items"])),
            "object" => "mapping".to_owned(),
            "null" => "nothing".to_owned(),
            other => other.to_owned(),
        };
        kinds.into_iter().map(named).filter(|kind| kind != "nothing").collect::<Vec<_>>().join(" or ")
    }
}

/// A value in one line of YAML.
pub(super) fn flow(value: &Value) -> String {
    match value {
        Value::Object(entries) => {
            let inside: Vec<String> = entries.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect();
            format!("{{ {} }}", inside.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        // A text that YAML would take for something else is quoted.
        Value::String(text) if text.parse::<f64>().is_ok() || text.contains([':', '#', ',']) => format!("\"{text}\""),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
