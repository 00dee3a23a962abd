//! Variables: `${VAR}`, `${VAR:-default}` and `${file:/path}` in the values of a job file. `$${` stands for `${` itself.

use super::problem::{Location, Problem, nearest};
use super::yaml::{Node, Scalar};

/// Where variables and files come from.
pub trait Lookup {
    /// The value of a variable, `None` where it is not set.
    fn variable(&self, name: &str) -> Option<String>;

    /// The content of a file; the error says what is wrong with it.
    fn file(&self, path: &str) -> Result<String, String>;

    /// Names of all variables, for "did you mean".
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The environment of the process and the files of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessLookup;

/// A file that holds a secret is small.
const MAX_FILE: u64 = 1 << 20;

impl Lookup for ProcessLookup {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn file(&self, path: &str) -> Result<String, String> {
        let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
        if length > MAX_FILE {
            return Err(format!("it has {length} bytes, more than the {MAX_FILE} that a value may have"));
        }
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        // Editors and `echo` end a file with a newline that is no part of the secret.
        Ok(text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).to_owned())
    }

    fn names(&self) -> Vec<String> {
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect()
    }
}

/// Expands all values of the tree. Keys stay as they are. What does not expand is a problem each, and stays as it stands.
pub fn expand(tree: &mut Node, lookup: &dyn Lookup) -> Vec<Problem> {
    let mut problems = Vec::new();
    tree.for_each_scalar(&mut |path: &mut Vec<String>, at: Location, scalar: &mut Scalar| {
        if !scalar.raw.contains("${") {
            return;
        }
        let mut text = String::with_capacity(scalar.raw.len());
        for part in split(&scalar.raw) {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Reference(reference) => match resolve(reference, lookup) {
                    Ok(value) => {
                        text.push_str(&value);
                        scalar.expansions.push((format!("${{{reference}}}"), value));
                    }
                    Err((message, help)) => {
                        problems.push(Problem { at: Some(at), path: path.join("."), message, help });
                    }
                },
                Part::Open => problems.push(Problem {
                    at: Some(at),
                    path: path.join("."),
                    message: "`${` is not closed by `}`".into(),
                    help: Some("write `$${` for the characters `${` themselves".into()),
                }),
            }
        }
        scalar.text = text;
    });
    problems
}

enum Part<'t> {
    Text(&'t str),
    /// What stands between `${` and `}`.
    Reference(&'t str),
    /// A `${` without its `}`.
    Open,
}

fn split(mut rest: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            // `$${`: one dollar less, and no reference.
            parts.push(Part::Text(&rest[..start - 1]));
            parts.push(Part::Text("${"));
            rest = &rest[start + 2..];
            continue;
        }
        parts.push(Part::Text(&rest[..start]));
        let inside = &rest[start + 2..];
        let Some(end) = inside.find('}') else {
            parts.push(Part::Open);
            return parts;
        };
        parts.push(Part::Reference(&inside[..end]));
        rest = &inside[end + 1..];
    }
    parts.push(Part::Text(rest));
    parts
}

fn resolve(reference: &str, lookup: &dyn Lookup) -> Result<String, (String, Option<String>)> {
    if let Some(path) = reference.strip_prefix("file:") {
        return lookup.file(path).map_err(|reason| (format!("the file `{path}` cannot be read: {reason}"), None));
    }
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let is_name = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        let help =
            "write `${NAME}`, `${NAME:-default}` or `${file:/path}`, and `$${` for the characters `${` themselves";
        return Err((format!("`${{{reference}}}` is not a reference to a variable"), Some(help.into())));
    }
    match (lookup.variable(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            let names = lookup.names();
            let mut help = format!("set it, or give a default: `${{{name}:-…}}`");
            if let Some(near) = nearest(name, names.iter().map(String::as_str)) {
                help += &format!("; there is `{near}`");
            }
            Err((format!("the environment variable `{name}` is not set"), Some(help)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    struct Fixed;

    impl Lookup for Fixed {
        fn variable(&self, name: &str) -> Option<String> {
            match name {
                "HOST" => Some("db.example".into()),
                "EMPTY" => Some(String::new()),
                "NESTED" => Some("${HOST}".into()),
                _ => None,
            }
        }

        fn file(&self, path: &str) -> Result<String, String> {
            if path == "/run/secret" { Ok("s3cret".into()) } else { Err("no such file".into()) }
        }

        fn names(&self) -> Vec<String> {
            vec!["HOST".into()]
        }
    }

    #[test]
    fn values_expand() {
        for (raw, expected) in [
            ("plain", "plain"),
            ("${HOST}", "db.example"),
            ("http://${HOST}:${PORT:-80}/", "http://db.example:80/"),
            ("${EMPTY}", ""),
            ("${EMPTY:-x}", "x"),
            ("${MISSING:-}", ""),
            ("${MISSING:-a:-b}", "a:-b"),
            ("${file:/run/secret}", "s3cret"),
            ("$HOST costs 5$", "$HOST costs 5$"),
            ("$${HOST}", "${HOST}"),
            ("$$${HOST}", "$${HOST}"),
            ("${NESTED}", "${HOST}"),
        ] {
            let mut tree = yaml::parse(&format!("k: '{raw}'")).unwrap();
            assert_eq!(expand(&mut tree, &Fixed), [], "{raw}");
            let yaml::Value::Map(entries) = &tree.value else { panic!() };
            assert_eq!(entries[0].value.scalar().unwrap().text, expected, "{raw}");
        }
    }

    #[test]
    fn what_does_not_expand_names_the_variable_the_line_and_the_key() {
        for (raw, message) in [
            ("${HOTS}", "the environment variable `HOTS` is not set"),
            ("${file:/nowhere}", "the file `/nowhere` cannot be read: no such file"),
            ("${two words}", "`${two words}` is not a reference to a variable"),
            ("${", "not closed"),
            ("${}", "not a reference"),
        ] {
            let mut tree = yaml::parse(&format!("a:\n  - k: '{raw}'")).unwrap();
            let problems = expand(&mut tree, &Fixed);
            assert_eq!(problems.len(), 1, "{raw}");
            assert!(problems[0].message.contains(message), "{}", problems[0].message);
            assert_eq!((problems[0].path.as_str(), problems[0].at.unwrap().line), ("a.0.k", 2));
        }
        let mut tree = yaml::parse("k: ${HOTS}").unwrap();
        assert!(expand(&mut tree, &Fixed)[0].help.as_ref().unwrap().contains("there is `HOST`"));
    }

    #[test]
    fn keys_do_not_expand() {
        let mut tree = yaml::parse("'${HOST}': 1").unwrap();
        assert_eq!(expand(&mut tree, &Fixed), []);
        let yaml::Value::Map(entries) = &tree.value else { panic!() };
        assert_eq!(entries[0].key, "${HOST}");
    }
}
