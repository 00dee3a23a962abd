//! What is wrong with a job file, shown as compilers show it.

use std::fmt;
use std::sync::Arc;

use perennial_core::error::{Error, class};

/// A place in a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters on that line that belong to it; 0 where that is not known.
    pub length: usize,
}

impl Location {
    pub(super) const START: Self = Self { line: 1, column: 1, length: 0 };
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in the file, for a job that comes from one.
    pub at: Option<Location>,
    /// Keys that lead there: `sources.readings.watermark`. Empty for the file as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// Everything that is wrong with a job.
///
/// `Display` shows each problem with the line of the file that it is about. Secrets that stand in that line are starred out, and values
/// of variables never appear.
#[derive(Debug, Clone)]
pub struct JobFileError {
    /// The file, as it was named; `None` for a job that was built in Rust.
    pub file: Option<String>,
    /// The text of the file.
    text: Arc<str>,
    /// What is wrong, in the order of the file. Never empty.
    pub problems: Vec<Problem>,
}

impl JobFileError {
    /// Problems of a file with this text.
    pub fn new(file: Option<String>, text: Arc<str>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.at.map_or((0, 0), |at| (at.line, at.column)));
        Self { file, text, problems }
    }

    fn snippet(&self, f: &mut fmt::Formatter<'_>, at: Location, path: &str) -> fmt::Result {
        let file = self.file.as_deref().unwrap_or("job");
        let line = at.line.to_string();
        let indent = " ".repeat(line.len());
        write!(f, "{indent}--> {file}:{}:{}", at.line, at.column)?;
        writeln!(f, "{}", if path.is_empty() { String::new() } else { format!(" ({path})") })?;
        let Some(text) = self.text.lines().nth(at.line - 1) else { return Ok(()) };
        let lead: String = text.chars().take(at.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, "{indent} |")?;
        writeln!(f, "{line} | {}", mask(text))?;
        writeln!(f, "{indent} | {lead}{}", "^".repeat(at.length.max(1)))
    }
}

impl fmt::Display for JobFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match problem.at {
                None if !problem.path.is_empty() => writeln!(f, "error: {}: {}", problem.path, problem.message)?,
                _ => writeln!(f, "error: {}", problem.message)?,
            }
            match (problem.at, &self.file) {
                (Some(at), _) => self.snippet(f, at, &problem.path)?,
                (None, Some(file)) => writeln!(f, " --> {file}")?,
                (None, None) => {}
            }
            if let Some(help) = &problem.help {
                writeln!(f, "  = {help}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for JobFileError {}

impl From<JobFileError> for Error {
    fn from(error: JobFileError) -> Self {
        let first = error.problems.first().map_or_else(String::new, |problem| {
            let place = match (&error.file, problem.at) {
                (Some(file), Some(at)) => format!("{file}:{}:{}: ", at.line, at.column),
                (Some(file), None) => format!("{file}: "),
                (None, _) => String::new(),
            };
            let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
            format!("{place}{path}{}", problem.message)
        });
        let more = match error.problems.len() {
            0 | 1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        Error::new(class::CONFIG_INVALID, first + &more).caused_by(error)
    }
}

/// Whether a key of this name holds something that must not be shown.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["password", "passwd", "passphrase", "secret", "token", "api_key", "apikey", "credential", "private_key"]
        .iter()
        .any(|word| key.contains(word))
}

/// The line of a file with passwords starred out, of the same length: values of keys that sound like secrets, and the password of URLs.
/// References to variables stay, since they say nothing.
fn mask(line: &str) -> String {
    let mut chars: Vec<char> = line.chars().collect();
    let mut star = |from: usize, to: usize| {
        if !chars[from..to].starts_with(&['$', '{']) {
            chars[from..to].fill('*');
        }
    };
    let original: Vec<char> = line.chars().collect();
    let find = |from: usize, wanted: &dyn Fn(char) -> bool| (from..original.len()).find(|i| wanted(original[*i]));

    for i in 0..original.len() {
        // key: value
        if original[i] == ':' && original.get(i + 1).is_none_or(|c| c.is_whitespace()) {
            let is_key = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
            let end = if i > 0 && matches!(original[i - 1], '"' | '\'') { i - 1 } else { i };
            let start = (0..end).rev().find(|j| !is_key(original[*j])).map_or(0, |j| j + 1);
            let key: String = original[start..end].iter().collect();
            if let (true, Some(value)) = (is_secret(&key), find(i + 1, &|c| !c.is_whitespace())) {
                let (from, to) = match original[value] {
                    quote @ ('"' | '\'') => (value + 1, find(value + 1, &|c| c == quote)),
                    _ => (value, find(value, &|c| matches!(c, ',' | '}') || c.is_whitespace())),
                };
                // The brace of a variable ends no value.
                let variable = original[from..].starts_with(&['$', '{']);
                star(from, if variable { from } else { to.unwrap_or(original.len()) });
            }
        }
        // scheme://user:password@host
        if original[i..].starts_with(&[':', '/', '/']) {
            let end =
                find(i + 3, &|c| c.is_whitespace() || matches!(c, '"' | '\'' | '/' | ',')).unwrap_or(original.len());
            if let Some(at) = (i + 3..end).rev().find(|j| original[*j] == '@')
                && let Some(colon) = (i + 3..at).find(|j| original[*j] == ':')
            {
                star(colon + 1, at);
            }
        }
    }
    chars.into_iter().collect()
}

/// The known name that someone may have meant by `given`.
pub(crate) fn nearest<'n>(given: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['_', '-', ' '], "");
    let wanted = plain(given);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&wanted, &plain(name)), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_in_its_line() {
        let text = "name: x\nsources:\n  readings:\n    watermrk: { delay: 1s }\n";
        let problem = Problem {
            at: Some(Location { line: 4, column: 5, length: 8 }),
            path: "sources.readings.watermrk".into(),
            message: "unknown key `watermrk`".into(),
            help: Some("did you mean `watermark`?".into()),
        };
        let error = JobFileError::new(Some("job.yaml".into()), text.into(), vec![problem]);
        assert_eq!(
            error.to_string(),
            "error: unknown key `watermrk`\n --> job.yaml:4:5 (sources.readings.watermrk)\n  |\n4 |     watermrk: { delay: 1s }\n  |     \
             ^^^^^^^^\n  = did you mean `watermark`?\n"
        );
        assert_eq!(Error::from(error).message(), "job.yaml:4:5: sources.readings.watermrk: unknown key `watermrk`");
    }

    #[test]
    fn passwords_in_a_shown_line_are_starred_out() {
        for (line, shown) in [
            ("password: hunter2", "password: *******"),
            ("  password: \"hunter 2\"  # old", "  password: \"********\"  # old"),
            ("{ user: me, password: hunter2, tabel: x }", "{ user: me, password: *******, tabel: x }"),
            ("sasl.password: ${PW}", "sasl.password: ${PW}"),
            ("\"api_token\": abc", "\"api_token\": ***"),
            ("url: postgres://me:hunter2@db:5432/x", "url: postgres://me:*******@db:5432/x"),
            ("url: postgres://me:${PW}@db/x", "url: postgres://me:${PW}@db/x"),
            ("url: http://localhost:8086", "url: http://localhost:8086"),
            ("topic: passages", "topic: passages"),
            ("password:", "password:"),
        ] {
            assert_eq!(mask(line), shown);
        }
    }

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["watermark", "schema", "starting_offsets", "format", "sql"];
        for (given, expected) in [
            ("watermrk", Some("watermark")),
            ("Schema", Some("schema")),
            ("startingOffsets", Some("starting_offsets")),
            ("starting-offset", Some("starting_offsets")),
            ("sq", Some("sql")),
            ("checkpoint", None),
            ("zzz", None),
        ] {
            assert_eq!(nearest(given, known), expected, "{given}");
        }
    }
}
