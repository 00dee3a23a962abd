//! The classes of errors, for people: looked up by their code, and as the page docs/errors.md.

use std::fmt::Write;

use perennial_core::error::{CATALOGUE, Error, ErrorClass, ErrorKind, Result, class};
use perennial_core::policy::default_action;

use crate::job_file::nearest;

/// The class with this code, in whatever case.
///
/// # Errors
/// `ConfigInvalid`, with the nearest code.
pub fn find(code: &str) -> Result<&'static ErrorClass> {
    let found = CATALOGUE.iter().find(|class| class.code.eq_ignore_ascii_case(code));
    found.copied().ok_or_else(|| {
        let hint = match nearest(code, CATALOGUE.iter().map(|class| class.code)) {
            Some(near) => format!("did you mean {near}?"),
            None => "`perennial errors` lists all".to_owned(),
        };
        Error::new(class::CONFIG_INVALID, format!("no class of errors has the code {code}: {hint}"))
    })
}

/// What each kind is, in the order of the page.
const KINDS: [(ErrorKind, &str); 8] = [
    (ErrorKind::Transient, "Goes away by itself: a connection lost, a server that restarts."),
    (ErrorKind::Throttled, "The other side asks for less."),
    (ErrorKind::Data, "Records that cannot be processed, whatever is tried."),
    (ErrorKind::Schema, "The schema of the data or of the target does not fit the query."),
    (ErrorKind::Config, "The job file, its credentials or its environment are wrong: a person must act."),
    (ErrorKind::Fenced, "Another process owns the checkpoint."),
    (ErrorKind::Corrupt, "Something that was written is not as it was written."),
    (ErrorKind::Bug, "An assertion of Perennial failed; it is never tried again blindly."),
];

/// The page docs/errors.md.
pub fn page() -> String {
    let mut page = String::from(
        "# Errors\n\n<!-- Made from the catalogue by `cargo test`; run it with UPDATE_DOCS=1 after changing it. -->\n\n\
         Every error has a class. Its code stands as `type` in dead letters, in `errors_by_type` of the health answer, in metrics and in logs, \
         and never changes. `perennial errors CODE` explains one.\n",
    );
    for (kind, meaning) in KINDS {
        let _ = write!(
            page,
            "\n## {kind}\n\n{meaning}\n\n| Code | When | What to do | What is done by default |\n|---|---|---|---|\n"
        );
        for class in CATALOGUE.iter().filter(|class| class.kind == kind) {
            let action = default_action(class);
            let _ = writeln!(page, "| `{}` | {} | {} | {action} |", class.code, class.meaning, class.recommendation);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_errors_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");
        let page = page();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        assert!(CATALOGUE.iter().all(|class| page.contains(&format!("| `{}` |", class.code))), "every class is in it");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == page,
            "docs/errors.md is out of date: run `UPDATE_DOCS=1 cargo test --workspace page_of_errors`"
        );
    }
}
