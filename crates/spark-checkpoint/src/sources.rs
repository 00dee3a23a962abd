//! The logs of the sources: copied as they are, but for the paths of files.

use bytes::Bytes;
use perennial_core::error::{Error, Result, class};
use serde_json::{Value, json};

use crate::damaged;
use crate::files::{Directory, number};

/// Where files are now that were elsewhere: `FROM=TO`, for all paths that begin with `FROM`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathMap(Vec<(String, String)>);

impl PathMap {
    /// From pairs of a path (or URL) and its new place.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().map(|(from, to)| (as_url(&from), as_url(&to))).collect())
    }

    /// A URL in its new place, in the spelling that the files source has.
    fn map(&self, url: &str) -> String {
        let url = match url.strip_prefix("file:/") {
            Some(path) => format!("file:///{}", path.trim_start_matches('/')),
            None => url.to_owned(),
        };
        let moved = self.0.iter().find_map(|(from, to)| {
            let rest = url.strip_prefix(from.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
        });
        let url = moved.unwrap_or(url);
        let spelled = url::Url::parse(&url).ok().and_then(|url| url.to_file_path().ok());
        spelled.and_then(|path| url::Url::from_file_path(path).ok()).map_or(url, String::from)
    }
}

fn as_url(path: &str) -> String {
    let path = path.trim_end_matches('/');
    match path.split_once(":/") {
        Some(("file", rest)) => format!("file:///{}", rest.trim_start_matches('/')),
        Some(_) => path.to_owned(),
        None => url::Url::from_file_path(path).map_or_else(|()| path.to_owned(), String::from),
    }
}

/// The log of a source.
#[derive(Debug)]
pub(crate) struct SourceFiles {
    /// Where it is in the checkpoint.
    pub(crate) dir: String,
    /// Its files.
    pub(crate) files: Vec<(String, Bytes)>,
    /// How many input files it names.
    pub(crate) count: u64,
    /// What people should know.
    pub(crate) notes: Vec<String>,
}

impl SourceFiles {
    /// `in_place`: the files stay as they are, so their paths cannot change.
    pub(crate) async fn read(from: &Directory, dir: String, paths: &PathMap, in_place: bool) -> Result<Self> {
        let (names, _) = from.list(&dir).await?;
        let mut read = Self { dir, files: Vec::new(), count: 0, notes: Vec::new() };
        let mut compact = None;
        let mut kept: Vec<(u64, String)> = Vec::new();
        for name in names {
            let is_compact = name.ends_with(".compact");
            let Some(number) = number(name.strip_suffix(".compact").unwrap_or(&name)) else { continue };
            if is_compact {
                compact = compact.max(Some(number));
            }
            kept.push((number, name));
        }
        kept.sort_unstable();
        let mut inputs = Vec::new();
        for (number, name) in kept {
            let file = format!("{}/{name}", read.dir);
            let (content, fits) = from.read_edited(&file).await?;
            if !fits {
                read.notes.push(format!(
                    "{} does not fit the checksum beside it; it is taken as it is, because paths in it are changed by hand when files move",
                    from.shown(&file)
                ));
            }
            let content = match text_of_files(&content) {
                None => content,
                Some(text) => {
                    let (text, named) = rewrite(&from.shown(&file), text, paths)?;
                    // What is older than the last compact entry stands in it as well.
                    if compact.is_none_or(|compact| number >= compact) {
                        inputs.extend(named);
                    }
                    text.into()
                }
            };
            read.files.push((name, content));
        }
        read.count = inputs.len() as u64;
        expect_some(&inputs, in_place)?;
        Ok(read)
    }
}

/// The text of a log of files, if it is one.
fn text_of_files(content: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(content).ok()?;
    let mut lines = text.lines().skip(1);
    lines.next().is_some_and(|line| line.starts_with("{\"path\"")).then_some(text)
}

fn rewrite(shown: &str, text: &str, paths: &PathMap) -> Result<(String, Vec<String>)> {
    let mut lines = text.lines();
    let mut rewritten = lines.next().unwrap_or_default().to_owned();
    let mut named = Vec::new();
    for line in lines {
        let broken = || damaged(shown, format!("the line `{line}` is not of a log of files"));
        let entry: Value = serde_json::from_str(line).map_err(|_| broken())?;
        let path = paths.map(entry["path"].as_str().ok_or_else(broken)?);
        if entry["batchId"].as_u64().is_none() || entry["timestamp"].as_i64().is_none() {
            return Err(broken());
        }
        let (timestamp, batch) = (&entry["timestamp"], &entry["batchId"]);
        rewritten.push('\n');
        rewritten.push_str(&json!({ "path": path, "timestamp": timestamp, "batchId": batch }).to_string());
        named.push(path);
    }
    Ok((rewritten, named))
}

/// Refuses a log of which no file is there: its paths would be unknown to the source, which would then read all files again.
fn expect_some(inputs: &[String], in_place: bool) -> Result<()> {
    let is_there = |url: &String| {
        url::Url::parse(url).ok().and_then(|url| url.to_file_path().ok()).is_some_and(|path| path.exists())
    };
    let Some(last) = inputs.last() else { return Ok(()) };
    if inputs.iter().rev().any(is_there) {
        return Ok(());
    }
    let what = match in_place {
        true => {
            "take the checkpoint over with `perennial checkpoint import --map-path FROM=TO`, or put one of the files back"
        }
        false => "say where they are with --map-path FROM=TO, or put one of the files back",
    };
    Err(Error::new(
        class::SPARK_CHECKPOINT,
        format!(
            "none of the {} input files that Spark has read is here (the last is {last}); if they have moved, they would all be read again: {what}",
            inputs.len()
        ),
    ))
}

/// The log of a source of ours as Spark has it: without what we add to it.
pub(crate) async fn for_spark(from: &Directory, dir: &str, paths: &PathMap) -> Result<Vec<(String, Bytes)>> {
    let (names, _) = from.list(dir).await?;
    let mut files = Vec::new();
    for name in names {
        let (content, _) = from.read_edited(&format!("{dir}/{name}")).await?;
        let content = match text_of_files(&content) {
            None => content,
            Some(text) => rewrite(&from.shown(&format!("{dir}/{name}")), text, paths)?.0.into(),
        };
        files.push((name, content));
    }
    Ok(files)
}
