//! Copies of a checkpoint: to a directory, a bucket, or an archive, with a checksum of each file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path as FsPath, PathBuf};

use bytes::Bytes;
use object_store::ObjectStoreExt;
use perennial_connectors::storage::{self, Storage, StorageOptions};
use perennial_core::checkpoint::{Inspector, Look};
use perennial_core::error::{Error, Result, ResultExt, class};
use serde::{Deserialize, Serialize};

/// The version of the manifest.
const FORMAT: u64 = 1;
pub const MANIFEST: &str = "manifest.json";

/// What a backup holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u64,
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: i64,
    /// Where from.
    pub location: String,
    pub queries: Vec<QueryManifest>,
}

/// A query in a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QueryManifest {
    pub query: String,
    /// The last batch that it has.
    pub last_batch: u64,
    /// The greatest epoch at the time.
    pub epoch: u64,
    pub files: Vec<FileManifest>,
}

/// A file in a backup, below the query's directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileManifest {
    pub path: String,
    pub bytes: u64,
    pub crc32c: u32,
}

impl Manifest {
    pub fn new(created_ms: i64, location: &str) -> Self {
        Self { format: FORMAT, created_ms, location: location.to_owned(), queries: Vec::new() }
    }

    pub fn encode(&self) -> Result<Bytes> {
        let text =
            serde_json::to_vec_pretty(self).map_err(|e| Error::bug(format!("a manifest does not encode: {e}")))?;
        Ok(text.into())
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|e| damaged(format!("{MANIFEST} does not read: {e}")))?;
        if manifest.format > FORMAT {
            return Err(Error::new(
                class::CHECKPOINT_NEWER,
                format!("the backup has format {}; this version reads up to {FORMAT}", manifest.format),
            ));
        }
        Ok(manifest)
    }
}

fn damaged(what: String) -> Error {
    Error::new(class::CHECKPOINT_CORRUPT, what)
}

/// Something that takes files.
pub trait Take {
    async fn put(&mut self, name: &str, content: Bytes) -> Result<()>;
}

/// Copies what the batches up to `last` are made of, and says which files that were; they go under `prefix`. A job that runs may remove old
/// batches meanwhile: these are left out. The identity comes last, so that a copy that was interrupted is none.
pub async fn copy_query(
    inspector: &Inspector,
    look: &Look,
    last: u64,
    prefix: &str,
    target: &mut impl Take,
    progress: impl Fn(u64, u64),
) -> Result<Vec<FileManifest>> {
    let all = look.files_up_to(last);
    let total: u64 = all.iter().filter_map(|name| look.files.get(name)).map(|file| file.bytes).sum();
    let is_log = |name: &str| name.starts_with("offsets/") || name.starts_with("commits/");
    let is_identity = |name: &str| name == "metadata" || name == "_perennial/metadata";
    let mut copied = Vec::new();
    let mut done = 0;
    let mut gone = BTreeSet::new();
    let mut copy = async |name: &str, content: Bytes, target: &mut _| -> Result<()> {
        let file =
            FileManifest { path: name.to_owned(), bytes: content.len() as u64, crc32c: crc32c::crc32c(&content) };
        done += file.bytes;
        copied.push(file);
        progress(done, total);
        Take::put(target, &format!("{prefix}{name}"), content).await
    };
    for name in all.iter().filter(|name| !is_log(name) && !is_identity(name)) {
        match inspector.read(name).await? {
            Some(content) => copy(name, content, target).await?,
            None => drop(gone.insert(name.trim_start_matches("state/").to_owned())),
        }
    }
    for batch in look.commits.range(..=last).rev().map(|(batch, _)| *batch) {
        let state = look.commits.get(&batch).and_then(|c| c.good()?.perennial.as_ref()?.state.as_ref());
        let complete = state.is_none_or(|state| state.files().iter().all(|name| !gone.contains(name)));
        let (offsets, commit) = (format!("offsets/{batch}"), format!("commits/{batch}"));
        match (complete, inspector.read(&offsets).await?, inspector.read(&commit).await?) {
            (true, Some(offsets_content), Some(commit_content)) => {
                copy(&offsets, offsets_content, target).await?;
                copy(&commit, commit_content, target).await?;
            }
            _ if batch == last => {
                return Err(Error::new(
                    class::STORAGE_NOT_FOUND,
                    format!(
                        "batch {last} of {} lacks files, or was removed while it was copied: look with verify, or try again",
                        look.query
                    ),
                ));
            }
            _ => break,
        }
    }
    for name in all.iter().filter(|name| is_identity(name)) {
        if let Some(content) = inspector.read(name).await? {
            copy(name, content, target).await?;
        }
    }
    Ok(copied)
}

/// A directory or bucket that files are copied to.
pub struct Directory(pub Storage);

impl Take for Directory {
    async fn put(&mut self, name: &str, content: Bytes) -> Result<()> {
        self.0.store.put(&path(name), content.into()).await?;
        Ok(())
    }
}

fn path(name: &str) -> object_store::path::Path {
    object_store::path::Path::from(name)
}

/// An archive (`tar.zst`) that is written under another name until it is complete.
pub struct Archive {
    builder: tar::Builder<zstd::Encoder<'static, File>>,
    part: PathBuf,
    path: PathBuf,
}

/// Whether a path names an archive.
pub fn is_archive(path: &str) -> bool {
    path.ends_with(".tar.zst") || path.ends_with(".tzst")
}

fn io(path: &FsPath) -> impl Fn(std::io::Error) -> Error {
    move |error| {
        let place = path.display().to_string();
        Error::from(object_store::Error::Generic { store: "local disk", source: Box::new(error) }).at(place)
    }
}

impl Archive {
    pub fn create(path: &str) -> Result<Self> {
        let path = PathBuf::from(path);
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).map_err(io(&part))?;
        let encoder = zstd::Encoder::new(file, 3).map_err(io(&part))?;
        Ok(Self { builder: tar::Builder::new(encoder), part, path })
    }

    /// Complete and on the disk.
    pub fn finish(self) -> Result<()> {
        let at = io(&self.part);
        let mut file = self.builder.into_inner().and_then(zstd::Encoder::finish).map_err(&at)?;
        file.flush().and_then(|()| file.sync_all()).map_err(&at)?;
        std::fs::rename(&self.part, &self.path).map_err(io(&self.path))
    }
}

impl Take for Archive {
    async fn put(&mut self, name: &str, content: Bytes) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        self.builder.append_data(&mut header, name, content.as_ref()).map_err(io(&self.part))
    }
}

/// A backup that is there.
pub enum Backup {
    Directory(Storage),
    Archive(PathBuf),
}

impl Backup {
    pub fn open(place: &str) -> Result<Self> {
        Ok(match is_archive(place) {
            true => Self::Archive(place.into()),
            false => Self::Directory(storage::open(place, &StorageOptions::default())?),
        })
    }

    /// Reads everything and compares it with the manifest.
    pub async fn verify(&self) -> Result<Manifest> {
        let mut sums = std::collections::BTreeMap::new();
        let manifest = match self {
            Self::Directory(storage) => {
                let text = storage.store.get(&path(MANIFEST)).await.map_err(Error::from);
                let manifest = Manifest::decode(&text.at(|| MANIFEST.into())?.bytes().await?)?;
                for (name, _) in names(&manifest) {
                    match storage.store.get(&path(&name)).await {
                        Ok(found) => drop(sums.insert(name, crc32c::crc32c(&found.bytes().await?))),
                        Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                manifest
            }
            Self::Archive(place) => {
                let mut manifest = None;
                self.entries(place, |name, content| {
                    match name == MANIFEST {
                        true => manifest = Some(Manifest::decode(&content)?),
                        false => drop(sums.insert(name, crc32c::crc32c(&content))),
                    }
                    Ok(())
                })?;
                manifest
                    .ok_or_else(|| damaged(format!("{}: it has no {MANIFEST}: it is not complete", place.display())))?
            }
        };
        for (name, crc32c) in names(&manifest) {
            match sums.get(&name) {
                Some(sum) if *sum == crc32c => {}
                Some(_) => return Err(damaged(format!("the backup is damaged: {name} does not fit its checksum"))),
                None => return Err(damaged(format!("the backup is damaged: {name} is missing"))),
            }
        }
        Ok(manifest)
    }

    /// Copies the files of a query to where they belong, its identity last.
    pub async fn restore(
        &self,
        query: &QueryManifest,
        target: &mut impl Take,
        progress: impl Fn(u64, u64),
    ) -> Result<()> {
        let total: u64 = query.files.iter().map(|file| file.bytes).sum();
        let mut done = 0;
        match self {
            Self::Directory(storage) => {
                for file in &query.files {
                    let name = format!("{}/{}", query.query, file.path);
                    let content = storage.store.get(&path(&name)).await?.bytes().await?;
                    done += file.bytes;
                    target.put(&file.path, content).await?;
                    progress(done, total);
                }
            }
            Self::Archive(place) => {
                // The archive is in the order of the copy: its identity comes last as well.
                let mut archive = open_archive(place)?;
                let prefix = format!("{}/", query.query);
                for entry in archive.entries().map_err(io(place))? {
                    let (name, content) = read_entry(place, entry)?;
                    if let Some(name) = name.strip_prefix(&prefix) {
                        done += content.len() as u64;
                        target.put(name, content).await?;
                        progress(done, total);
                    }
                }
            }
        }
        Ok(())
    }

    fn entries(&self, place: &FsPath, mut each: impl FnMut(String, Bytes) -> Result<()>) -> Result<()> {
        let mut archive = open_archive(place)?;
        for entry in archive.entries().map_err(io(place))? {
            let (name, content) = read_entry(place, entry)?;
            each(name, content)?;
        }
        Ok(())
    }
}

type Reader = zstd::Decoder<'static, std::io::BufReader<File>>;

fn open_archive(place: &FsPath) -> Result<tar::Archive<Reader>> {
    let file = File::open(place).map_err(io(place))?;
    Ok(tar::Archive::new(zstd::Decoder::new(file).map_err(io(place))?))
}

fn read_entry(place: &FsPath, entry: std::io::Result<tar::Entry<'_, Reader>>) -> Result<(String, Bytes)> {
    let broken = |error: std::io::Error| damaged(format!("{} is damaged: {error}", place.display()));
    let mut entry = entry.map_err(broken)?;
    let name = entry.path().map_err(broken)?.to_string_lossy().into_owned();
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(broken)?;
    Ok((name, content.into()))
}

/// Names of all files in a backup, with their checksums.
fn names(manifest: &Manifest) -> impl Iterator<Item = (String, u32)> {
    manifest
        .queries
        .iter()
        .flat_map(|query| query.files.iter().map(move |file| (format!("{}/{}", query.query, file.path), file.crc32c)))
}
