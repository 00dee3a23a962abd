//! Paths of `get_json_object`: `$.a.b[0]['c d'][*]`.

use super::text::Json;

#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    Index(usize),
    /// `[*]`
    Each,
}

/// A compiled path.
#[derive(Debug)]
pub(super) struct Path(Vec<Step>);

impl Path {
    /// Nothing, where the text is no path.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut rest = text.strip_prefix('$')?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(behind) = rest.strip_prefix("['") {
                let end = behind.find("']")?;
                let name = &behind[..end];
                // Spark knows `.*` and finds nothing with it.
                if name.is_empty() || name == "*" {
                    return None;
                }
                steps.push(Step::Field(name.to_owned()));
                rest = &behind[end + 2..];
            } else if let Some(behind) = rest.strip_prefix('[') {
                let end = behind.find(']')?;
                steps.push(match &behind[..end] {
                    "*" => Step::Each,
                    digits if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                        Step::Index(digits.parse().ok()?)
                    }
                    _ => return None,
                });
                rest = &behind[end + 1..];
            } else {
                let behind = rest.strip_prefix('.')?;
                let end = behind.find(['.', '[']).unwrap_or(behind.len());
                let name = &behind[..end];
                // Spark knows `.*` and finds nothing with it.
                if name.is_empty() || name == "*" {
                    return None;
                }
                steps.push(Step::Field(name.to_owned()));
                rest = &behind[end..];
            }
        }
        Some(Self(steps))
    }

    /// What the path leads to, as text.
    pub(super) fn find(&self, json: &Json<'_>) -> Option<String> {
        if self.0.is_empty() {
            return match json {
                Json::Null => Some("null".to_owned()),
                json => json.as_text(),
            };
        }
        let mut found = String::new();
        walk(&self.0, json, Style::Raw, &mut found).then_some(found)
    }
}

/// How what is found is written.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    /// A text without its quotes.
    Raw,
    Quoted,
    /// The elements of a list that stands in another one.
    Flat,
}

/// Writes what the steps lead to; nothing is written where they lead nowhere. The styles are those of Hive, which Spark keeps.
fn walk(steps: &[Step], json: &Json<'_>, style: Style, out: &mut String) -> bool {
    let separated = |out: &mut String, item: &str| {
        if !out.is_empty() && !out.ends_with('[') {
            out.push(',');
        }
        out.push_str(item);
    };
    match (json, steps) {
        (Json::Text(text), []) if style == Style::Raw => {
            out.push_str(text);
            true
        }
        (Json::Array(items), []) if style == Style::Flat => {
            let mut any = false;
            for item in items {
                let mut found = String::new();
                if walk(&[], item, Style::Flat, &mut found) {
                    separated(out, &found);
                    any = true;
                }
            }
            any
        }
        (json, []) => {
            json.write(out);
            true
        }
        (Json::Object(fields), [Step::Field(name), rest @ ..]) => fields
            .iter()
            .find(|(own, value)| own == name && *value != Json::Null)
            .is_some_and(|(_, value)| walk(rest, value, style, out)),
        (Json::Array(items), [Step::Each, Step::Each, rest @ ..]) => {
            let mut inner = String::from("[");
            let mut any = false;
            for item in items {
                let mut found = String::new();
                if walk(rest, item, Style::Flat, &mut found) {
                    separated(&mut inner, &found);
                    any = true;
                }
            }
            inner.push(']');
            out.push_str(&inner);
            any
        }
        (Json::Array(items), [Step::Each, rest @ ..]) if style != Style::Quoted => {
            // One element stands by itself.
            let next = if style == Style::Raw { Style::Quoted } else { Style::Flat };
            let mut found = Vec::new();
            for item in items {
                let mut text = String::new();
                if walk(rest, item, next, &mut text) {
                    found.push(text);
                }
            }
            match found.as_slice() {
                [] => false,
                [one] if style == Style::Raw => {
                    out.push_str(one);
                    true
                }
                all => {
                    out.push_str(&format!("[{}]", all.join(",")));
                    true
                }
            }
        }
        (Json::Array(items), [Step::Each, rest @ ..]) => {
            let mut inner = Vec::new();
            for item in items {
                let mut text = String::new();
                if walk(rest, item, Style::Quoted, &mut text) {
                    inner.push(text);
                }
            }
            out.push_str(&format!("[{}]", inner.join(",")));
            !inner.is_empty()
        }
        (Json::Array(items), [Step::Index(at), Step::Each, ..]) => {
            items.get(*at).is_some_and(|item| walk(&steps[1..], item, Style::Quoted, out))
        }
        (Json::Array(items), [Step::Index(at), rest @ ..]) => {
            items.get(*at).is_some_and(|item| walk(rest, item, style, out))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::Syntax;
    use super::*;

    #[test]
    fn paths_lead_where_sparks_do() {
        let json =
            Json::parse(r#"{"a":[{"b":1,"c":["x"]},{"b":2}],"d e":"t","n":null,"l":[[1,2],[3]]}"#, &Syntax::default())
                .unwrap();
        for (path, expected) in [
            ("$.a[1].b", Some("2")),
            ("$.a[*].b", Some("[1,2]")),
            ("$.a[0].c", Some(r#"["x"]"#)),
            ("$['d e']", Some("t")),
            ("$.n", None),
            ("$.l[*][*]", Some("[1,2,3]")),
            ("$.a[9]", None),
            ("a", None),
            ("$.", None),
        ] {
            assert_eq!(Path::parse(path).and_then(|path| path.find(&json)).as_deref(), expected, "{path}");
        }
    }
}
