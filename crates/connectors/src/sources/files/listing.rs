//! What lies in the directory.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use perennial_core::error::{Error, Result, class};

use super::io_error;

/// Endings of files that are still being written.
const UNFINISHED: [&str; 3] = ["tmp", "part", "inprogress"];

/// A file that is ready to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// `file:///…`, as the log holds it.
    pub url: Arc<str>,
    /// Time of the last change, in milliseconds since the epoch.
    pub modified_ms: i64,
    /// Size in bytes.
    pub size: u64,
}

/// Where to look, and what is ready.
#[derive(Debug)]
pub(super) struct Listing {
    path: PathBuf,
    recursive: bool,
    settle: Duration,
    /// Files that looked unfinished, how they looked, and since when they look so (in microseconds of the job's clock). A clock of the
    /// file system that runs ahead of the job's thus cannot keep a file out for ever.
    unsettled: Mutex<HashMap<Arc<str>, (Look, i64)>>,
}

/// Time of the last change and size.
type Look = (i64, u64);

impl Listing {
    pub(super) fn new(path: &str, recursive: bool, settle: Duration) -> Result<Self> {
        let invalid = |why: String| Error::new(class::CONFIG_INVALID, format!("path `{path}` cannot be read: {why}"));
        let local = match path.split_once("://") {
            Some(("file", local)) => local,
            Some((scheme, _)) => {
                return Err(invalid(format!("`{scheme}` is not a local path; `files` reads local files only")));
            }
            None => path,
        };
        if local.is_empty() {
            return Err(invalid("it is empty".into()));
        }
        glob::Pattern::new(local).map_err(|e| invalid(format!("it is not a glob: {e}")))?;
        let path = std::path::absolute(local).map_err(|e| invalid(e.to_string()))?;
        Ok(Self { path, recursive, settle, unsettled: Mutex::default() })
    }

    /// Files that are ready and not in `seen`, oldest first.
    pub(super) fn list(&self, seen: &HashSet<Arc<str>>, now_us: i64) -> Result<Vec<Found>> {
        let mut scan = Scan { listing: self, seen, now_us, found: Vec::new(), unsettled: HashMap::new() };
        match fs::metadata(&self.path) {
            Ok(metadata) => scan.visit(&self.path, &metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_glob() => scan.glob()?,
            Err(error) => return Err(io_error("read", &self.path, error)),
        }
        let Scan { mut found, unsettled, .. } = scan;
        *self.unsettled.lock().unwrap_or_else(PoisonError::into_inner) = unsettled;
        found.sort_unstable_by(|a, b| (a.modified_ms, &a.url).cmp(&(b.modified_ms, &b.url)));
        Ok(found)
    }

    /// How many files the last look found that may still be written.
    pub(super) fn unsettled(&self) -> usize {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn is_glob(&self) -> bool {
        is_glob(self.path.as_os_str())
    }

    /// The part of a glob before its first wildcard.
    fn fixed_part(&self) -> PathBuf {
        self.path.components().take_while(|part| !is_glob(part.as_os_str())).collect()
    }
}

fn is_glob(text: &OsStr) -> bool {
    text.as_encoded_bytes().iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

struct Scan<'a> {
    listing: &'a Listing,
    seen: &'a HashSet<Arc<str>>,
    now_us: i64,
    found: Vec<Found>,
    unsettled: HashMap<Arc<str>, (Look, i64)>,
}

impl Scan<'_> {
    fn glob(&mut self) -> Result<()> {
        let fixed = self.listing.fixed_part();
        // A glob over a directory that does not exist would silently match nothing for ever.
        fs::read_dir(&fixed).map_err(|e| io_error("list", &fixed, e))?;
        let pattern = self.listing.path.to_string_lossy();
        let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
        let matches = glob::glob_with(&pattern, options)
            .map_err(|e| Error::new(class::CONFIG_INVALID, format!("path `{pattern}` is not a glob: {e}")))?;
        let depth = fixed.components().count();
        for path in matches {
            let path = match path {
                Ok(path) => path,
                Err(error) => {
                    let path = error.path().to_owned();
                    io_result("list", &path, Err::<(), _>(io::Error::from(error)))?;
                    continue;
                }
            };
            let hidden = |part: Component<'_>| is_ignored(part.as_os_str());
            if path.components().skip(depth).any(hidden) {
                continue;
            }
            if let Some(metadata) = io_result("read", &path, fs::metadata(&path))? {
                self.visit(&path, &metadata)?;
            }
        }
        Ok(())
    }

    /// Takes a file, or the files of a directory, that was asked for by its name.
    fn visit(&mut self, path: &Path, metadata: &Metadata) -> Result<()> {
        if !metadata.is_dir() {
            return self.take(path, || Ok(metadata.clone()));
        }
        let mut directories = vec![path.to_owned()];
        while let Some(directory) = directories.pop() {
            let Some(entries) = io_result("list", &directory, fs::read_dir(&directory))? else {
                // Only the directory that was asked for must be there.
                if directory == path {
                    return Err(io_error("list", &directory, io::ErrorKind::NotFound.into()));
                }
                continue;
            };
            for entry in entries {
                let Some(entry) = io_result("list", &directory, entry)? else { continue };
                if is_ignored(&entry.file_name()) {
                    continue;
                }
                let path = entry.path();
                let Some(mut kind) = io_result("read", &path, entry.file_type())? else { continue };
                if kind.is_symlink() {
                    match io_result("read", &path, fs::metadata(&path))? {
                        Some(target) => kind = target.file_type(),
                        None => continue,
                    }
                }
                if kind.is_dir() {
                    if self.listing.recursive {
                        directories.push(path);
                    }
                } else if kind.is_file() {
                    self.take(&path, || fs::metadata(&path))?;
                }
            }
        }
        Ok(())
    }

    /// Takes a file unless it has been seen or is unfinished. `metadata` is only asked for files that have not been seen.
    fn take(&mut self, path: &Path, metadata: impl FnOnce() -> io::Result<Metadata>) -> Result<()> {
        let url =
            url::Url::from_file_path(path).map_err(|()| Error::bug(format!("{} is not absolute", path.display())))?;
        if self.seen.contains(url.as_str()) {
            return Ok(());
        }
        let Some(metadata) = io_result("read", path, metadata())? else { return Ok(()) };
        let modified_us = match metadata.modified() {
            Ok(at) => match at.duration_since(UNIX_EPOCH) {
                Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
                Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
            },
            Err(error) => return Err(io_error("read", path, error)),
        };
        let url: Arc<str> = String::from(url).into();
        let file = Found { modified_ms: modified_us.div_euclid(1000), size: metadata.len(), url };
        // An empty file may be one that somebody has just opened.
        if file.size > 0 && self.is_settled(&file, modified_us) {
            self.found.push(file);
        }
        Ok(())
    }

    fn is_settled(&mut self, file: &Found, modified_us: i64) -> bool {
        let settle = i64::try_from(self.listing.settle.as_micros()).unwrap_or(i64::MAX);
        if settle == 0 || self.now_us.saturating_sub(modified_us) >= settle {
            return true;
        }
        let look = (modified_us, file.size);
        let before = self.listing.unsettled.lock().unwrap_or_else(PoisonError::into_inner).get(&file.url).copied();
        let since = before.filter(|(old, _)| *old == look).map_or(self.now_us, |(_, since)| since);
        if self.now_us - since >= settle {
            return true;
        }
        self.unsettled.insert(file.url.clone(), (look, since));
        false
    }
}

/// `None` for what vanished between being listed and being looked at.
fn io_result<T>(action: &str, path: &Path, result: io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(action, path, error)),
    }
}

fn is_ignored(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(b".")
        || bytes.starts_with(b"_")
        || Path::new(name).extension().is_some_and(|ending| UNFINISHED.iter().any(|unfinished| ending == *unfinished))
}
