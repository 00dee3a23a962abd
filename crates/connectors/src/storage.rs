//! Where a path or URL becomes an object store, and what makes a local disk as good as one.
//!
//! The checkpoint and the `files` sink rely on three promises of a store: a `put` is atomic, it is durable when it returns, and
//! [`PutMode::Create`] succeeds for one writer only. S3 keeps them by itself. On a local disk `object_store`'s own
//! `LocalFileSystem` writes atomically but does not reach the disk, so [`LocalStore`] does the writing and leaves reading,
//! listing and deleting to it.

use std::collections::HashSet;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::BoxStream;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, RetryConfig, UploadPart,
};
use perennial_core::config::Secret;
use perennial_core::error::{Error, Result, class};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of a storage: how to reach an S3 bucket, and how careful to be on a local disk.
///
/// What is not set here is taken from the environment as AWS's own tools do (`AWS_ACCESS_KEY_ID`, `AWS_REGION`,
/// `AWS_ENDPOINT_URL`, the instance's role, …).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StorageOptions {
    /// URL of an S3-compatible server (MinIO, Ceph, …). Default: AWS.
    pub endpoint: Option<String>,
    /// Region of the bucket. Default: `AWS_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// Access key. Default: from the environment.
    pub access_key_id: Option<Secret>,
    /// Secret key. Default: from the environment.
    pub secret_access_key: Option<Secret>,
    /// Token of a temporary access key. Default: from the environment.
    pub session_token: Option<Secret>,
    /// Whether `endpoint` may be reached without TLS. Default: false.
    pub allow_http: bool,
    /// Whether the bucket is part of the host name (`bucket.host/key`) rather than of the path. Default: false.
    pub virtual_hosted_style: bool,
    /// Whether a local write waits for the disk. Without it a power failure can lose or tear what was written last; a crash of the
    /// process cannot. Default: true.
    pub fsync: bool,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            allow_http: false,
            virtual_hosted_style: false,
            fsync: true,
        }
    }
}

/// An opened storage. Paths inside it are relative to the directory or prefix it was opened with.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The store, rooted at the directory or prefix.
    pub store: Arc<dyn ObjectStore>,
    /// The directory, where the storage is on a local disk.
    pub local: Option<PathBuf>,
}

/// Opens a local path, a `file://` URL or `s3://bucket/prefix`.
///
/// Nothing is created before the first write. Temporary files that a killed process left in a local directory are removed.
/// `ConfigInvalid` for a URL that is none of these.
pub fn open(url_or_path: &str, options: &StorageOptions) -> Result<Storage> {
    let Some((scheme, _)) = url_or_path.split_once("://") else {
        return open_local(FsPath::new(url_or_path), options);
    };
    // The URL is not quoted before it is known to hold no credentials.
    let url = url::Url::parse(url_or_path).map_err(|e| {
        Error::new(class::CONFIG_INVALID, format!("a storage URL that begins with `{scheme}://` is not a URL: {e}"))
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::new(
            class::CONFIG_INVALID,
            format!(
                "the URL of the storage at {} holds credentials; put them into the storage's access_key_id and secret_access_key",
                url.host_str().unwrap_or(scheme)
            ),
        ));
    }
    match url.scheme() {
        "file" => {
            let path = url.to_file_path().map_err(|()| {
                Error::new(class::CONFIG_INVALID, format!("{url} is not a local file URL; write file:///directory"))
            })?;
            open_local(&path, options)
        }
        "s3" | "s3a" => open_s3(&url, options),
        other => Err(Error::new(
            class::CONFIG_INVALID,
            format!("storage of the kind `{other}://` is not supported; use a local path, file:// or s3://"),
        )),
    }
}

fn open_local(path: &FsPath, options: &StorageOptions) -> Result<Storage> {
    let store = LocalStore::open(path, options.fsync)?;
    let root = store.disk.root.clone();
    Ok(Storage { store: Arc::new(store), local: Some(root) })
}

fn open_s3(url: &url::Url, options: &StorageOptions) -> Result<Storage> {
    let bucket = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| Error::new(class::CONFIG_INVALID, format!("{url} names no bucket; write s3://bucket/prefix")))?;
    // Only the supervisor retries: a request that fails goes up with its cause.
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_retry(RetryConfig { max_retries: 0, ..Default::default() })
        .with_virtual_hosted_style_request(options.virtual_hosted_style);
    if options.allow_http {
        builder = builder.with_allow_http(true);
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(key) = &options.access_key_id {
        builder = builder.with_access_key_id(key.expose());
    }
    if let Some(key) = &options.secret_access_key {
        builder = builder.with_secret_access_key(key.expose());
    }
    if let Some(token) = &options.session_token {
        builder = builder.with_token(token.expose());
    }
    let store = builder.build().map_err(|e| {
        Error::new(class::CONFIG_INVALID, format!("the storage {url} cannot be opened with these settings"))
            .caused_by(e)
    })?;
    let prefix = Path::from_url_path(url.path()).map_err(|e| {
        Error::new(class::CONFIG_INVALID, format!("{url} is not a usable prefix in a bucket")).caused_by(e)
    })?;
    Ok(Storage { store: Arc::new(PrefixStore::new(store, prefix)), local: None })
}

/// Whether the storage can be written. Leaves nothing behind.
///
/// `StoragePermissionDenied`, `StorageAuthenticationFailed`, `StorageNotFound` and their like, by cause.
pub async fn check_writable(storage: &Storage) -> Result<()> {
    const PROBE: &str = ".perennial-check";
    let Some(root) = storage.local.clone() else {
        let probe = Path::from(PROBE);
        storage.store.put(&probe, PutPayload::new()).await?;
        return Ok(storage.store.delete(&probe).await?);
    };
    let check = move || {
        // The directory itself is made at the first write.
        let Some(dir) = root.ancestors().find(|dir| dir.exists()) else { return Ok(()) };
        let probe = dir.join(format!("{PROBE}-{}", std::process::id()));
        File::create_new(&probe)
            .and_then(|_| std::fs::remove_file(&probe))
            .map_err(|e| Error::from(file_error("create a file in", dir)(e)))
    };
    tokio::task::spawn_blocking(check).await.map_err(|e| Error::bug("the check of a directory died").caused_by(e))?
}

/// How temporary files are called: hidden from readers of the directory (the dot) and from `LocalFileSystem`'s listings (`#` and
/// digits at the end).
const TEMPORARY: &str = ".perennial-tmp#";

/// A directory as an object store whose writes are atomic, exclusive where asked for, and durable.
#[derive(Debug)]
pub struct LocalStore {
    inner: PrefixStore<LocalFileSystem>,
    disk: Arc<Disk>,
}

/// What writes need, shared with the threads that do them.
#[derive(Debug)]
struct Disk {
    root: PathBuf,
    /// The directory above `root` that was there before us: its own entry needs no care.
    base: PathBuf,
    fsync: bool,
    /// Directories that exist and whose entries up to `base` are on the disk.
    durable: Mutex<HashSet<PathBuf>>,
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.disk.root.display())
    }
}

/// What could not be done to a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn file_error(action: &'static str, path: &FsPath) -> impl FnOnce(io::Error) -> object_store::Error {
    move |source| {
        let (kind, place) = (source.kind(), path.display().to_string());
        let source = Box::new(FileError { action, path: path.to_owned(), source });
        match kind {
            io::ErrorKind::PermissionDenied => object_store::Error::PermissionDenied { path: place, source },
            io::ErrorKind::AlreadyExists => object_store::Error::AlreadyExists { path: place, source },
            _ => object_store::Error::Generic { store: "local disk", source },
        }
    }
}

impl LocalStore {
    /// A store in the directory `root`, which is created at the first write. Removes what killed writers left there.
    pub fn open(root: &FsPath, fsync: bool) -> Result<Self> {
        let unusable = |what: String| {
            Error::new(class::CONFIG_INVALID, format!("{} cannot be a storage directory: {what}", root.display()))
        };
        let absolute = std::path::absolute(root).map_err(|e| unusable(e.to_string()))?;
        // The path with its links and `..` resolved, as far as it exists.
        let mut rest = Vec::new();
        let mut existing = absolute.as_path();
        let base = loop {
            match existing.canonicalize() {
                Ok(base) => break base,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::from(file_error("look into", existing)(e))),
            }
            rest.push(existing.file_name().ok_or_else(|| unusable("a `..` follows a missing directory".to_owned()))?);
            existing = existing.parent().ok_or_else(|| unusable("it has no root".to_owned()))?;
        };
        if !base.is_dir() {
            return Err(unusable(format!("{} is a file", base.display())));
        }
        let root: PathBuf = std::iter::once(base.as_os_str()).chain(rest.into_iter().rev()).collect();
        let prefix = Path::from_absolute_path(&root).map_err(|e| unusable(e.to_string()))?;
        remove_leftovers(&root);
        Ok(Self {
            inner: PrefixStore::new(LocalFileSystem::new(), prefix),
            disk: Arc::new(Disk { root, base, fsync, durable: Mutex::default() }),
        })
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> object_store::Result<T> + Send + 'static,
    ) -> object_store::Result<T> {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || work(&disk)).await?
    }
}

impl Disk {
    fn path_of(&self, location: &Path) -> object_store::Result<PathBuf> {
        let reserved = |name: &str| {
            name.split_once('#').is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|b| b.is_ascii_digit()))
        };
        match location.filename() {
            Some(name) if !reserved(name) => Ok(self.root.join(location.as_ref())),
            _ => Err(object_store::Error::NotSupported {
                source: format!("`{location}` cannot be a file name: names that end with # and digits are temporary")
                    .into(),
            }),
        }
    }

    /// Makes sure that a directory is there, on the disk as well.
    fn make_directory(&self, dir: &FsPath) -> io::Result<()> {
        let known = || self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(dir) {
            return Ok(());
        }
        std::fs::create_dir_all(dir)?;
        if self.fsync {
            // Also where it was there already: whoever made it may have been killed before its entry was on the disk.
            for parent in dir.ancestors().skip(1).take_while(|parent| parent.starts_with(&self.base)) {
                sync_directory(parent)?;
            }
        }
        known().insert(dir.to_owned());
        Ok(())
    }

    /// Creates a temporary file next to `target`.
    fn stage(&self, target: &FsPath) -> object_store::Result<Staged> {
        let dir = target.parent().unwrap_or(&self.root);
        self.make_directory(dir).map_err(file_error("create the directory", dir))?;
        match Staged::create(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Somebody removed the directory since.
                self.durable.lock().unwrap_or_else(PoisonError::into_inner).remove(dir);
                self.make_directory(dir).map_err(file_error("create the directory", dir))?;
                Staged::create(dir)
            }
            other => other,
        }
        .map_err(file_error("create a file in", dir))
    }
}

fn sync_directory(dir: &FsPath) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes temporary files that no living process holds locked. Best effort: they do no harm, they only take room.
fn remove_leftovers(dir: &FsPath) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            remove_leftovers(&entry.path());
        } else if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
            let path = entry.path();
            if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// A file that is being written under a temporary name. Dropped before it is published, it vanishes.
#[derive(Debug)]
struct Staged {
    file: File,
    path: PathBuf,
    published: AtomicBool,
}

impl Staged {
    fn create(dir: &FsPath) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{TEMPORARY}{}{number:09}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    // The lock tells the clean-up of another process that this file is in use; the kernel takes it back at our end.
                    file.try_lock().or_else(|e| match e {
                        TryLockError::WouldBlock => Ok(()),
                        TryLockError::Error(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
                        TryLockError::Error(e) => Err(e),
                    })?;
                    return Ok(Self { file, path, published: AtomicBool::new(false) });
                }
                // Left over from a process of the same number.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Gives the file, which is on the disk already, its name.
    fn publish(&self, target: &FsPath, create: bool, fsync: bool) -> object_store::Result<()> {
        if create {
            // A link fails where the name is taken, for one of two racing writers too; a rename would replace the file.
            std::fs::hard_link(&self.path, target).map_err(file_error("create", target))?;
        } else {
            std::fs::rename(&self.path, target).map_err(file_error("write", target))?;
            self.published.store(true, Ordering::Relaxed);
        }
        if fsync && let Some(dir) = target.parent() {
            sync_directory(dir).map_err(file_error("sync the directory", dir))?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published.load(Ordering::Relaxed) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => {
                return Err(object_store::Error::NotImplemented {
                    operation: "`put_opts` with `PutMode::Update`".to_owned(),
                    implementer: self.to_string(),
                });
            }
        };
        let target = self.disk.path_of(location)?;
        self.on_disk(move |disk| {
            let staged = disk.stage(&target)?;
            let write = || -> io::Result<()> {
                payload.iter().try_for_each(|part| (&staged.file).write_all(part))?;
                if disk.fsync { staged.file.sync_data() } else { Ok(()) }
            };
            write().map_err(file_error("write", &target))?;
            staged.publish(&target, create, disk.fsync)?;
            Ok(PutResult { e_tag: None, version: None })
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let target = self.disk.path_of(location)?;
        let place = target.clone();
        let staged = self.on_disk(move |disk| disk.stage(&place)).await?;
        Ok(Box::new(LocalUpload {
            staged: Some(Arc::new(staged)),
            target,
            fsync: self.disk.fsync,
            offset: 0,
            parts: 0,
            written: Arc::default(),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.prepare_parent(to).await?;
        self.inner.copy_opts(from, to, options).await?;
        self.sync_parent(to).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> object_store::Result<()> {
        self.prepare_parent(to).await?;
        self.inner.rename_opts(from, to, options).await?;
        self.sync_parent(to).await
    }
}

impl LocalStore {
    async fn prepare_parent(&self, location: &Path) -> object_store::Result<()> {
        let target = self.disk.path_of(location)?;
        self.on_disk(move |disk| match target.parent() {
            Some(dir) => disk.make_directory(dir).map_err(file_error("create the directory", dir)),
            None => Ok(()),
        })
        .await
    }

    async fn sync_parent(&self, location: &Path) -> object_store::Result<()> {
        let target = self.disk.path_of(location)?;
        self.on_disk(move |disk| match target.parent() {
            Some(dir) if disk.fsync => sync_directory(dir).map_err(file_error("sync the directory", dir)),
            _ => Ok(()),
        })
        .await
    }
}

/// A file that grows by parts and appears when it is complete. Every part is on the disk when it is done, so that completing is only
/// a rename.
#[derive(Debug)]
struct LocalUpload {
    staged: Option<Arc<Staged>>,
    target: PathBuf,
    fsync: bool,
    offset: u64,
    parts: usize,
    /// Parts that were written without an error.
    written: Arc<AtomicUsize>,
}

fn upload_is_over() -> object_store::Error {
    object_store::Error::Generic { store: "local disk", source: "the upload was completed or aborted before".into() }
}

#[async_trait]
impl MultipartUpload for LocalUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let Some(staged) = self.staged.clone() else { return async { Err(upload_is_over()) }.boxed() };
        let (offset, fsync, written) = (self.offset, self.fsync, self.written.clone());
        self.offset += data.content_length() as u64;
        self.parts += 1;
        async move {
            tokio::task::spawn_blocking(move || {
                let write = || -> io::Result<()> {
                    let mut at = offset;
                    for part in &data {
                        staged.file.write_all_at(part, at)?;
                        at += part.len() as u64;
                    }
                    if fsync { staged.file.sync_data() } else { Ok(()) }
                };
                write().map_err(file_error("write", &staged.path))?;
                written.fetch_add(1, Ordering::Release);
                Ok(())
            })
            .await?
        }
        .boxed()
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let staged = self.staged.take().ok_or_else(upload_is_over)?;
        if self.written.load(Ordering::Acquire) != self.parts {
            return Err(object_store::Error::Generic {
                store: "local disk",
                source: format!("{}: not all parts of the upload were written", self.target.display()).into(),
            });
        }
        let (target, fsync) = (self.target.clone(), self.fsync);
        tokio::task::spawn_blocking(move || staged.publish(&target, false, fsync)).await??;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.staged.take().map(drop).ok_or_else(upload_is_over)
    }
}

/// The exclusive use of a directory by this process. Ends when it is dropped or the process dies, however it dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the exclusive use of a local directory, creating it if it is missing.
///
/// `Fenced` when another process has it; the message names that process. The lock is the kernel's on the file `.lock` in the
/// directory, which stays behind and means nothing without it.
pub fn lock(dir: &FsPath) -> Result<Lock> {
    let path = dir.join(".lock");
    std::fs::create_dir_all(dir).map_err(|e| Error::from(file_error("create the directory", dir)(e)))?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| Error::from(file_error("open", &path)(e)))?;
    let mut taken = file.try_lock();
    for _ in 0..LOOKS {
        if !matches!(taken, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(A_LOOK);
        taken = file.try_lock();
    }
    match taken {
        Ok(()) => {
            let write = file.set_len(0).and_then(|()| file.write_all_at(std::process::id().to_string().as_bytes(), 0));
            write.map_err(|e| Error::from(file_error("write", &path)(e)))?;
            Ok(Lock { _file: file })
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The holder writes its number right after it has the lock.
            let _ = file.read_to_string(&mut holder);
            let holder = if holder.is_empty() { "unknown" } else { &holder };
            Err(Error::new(
                class::FENCED,
                format!(
                    "{} is in use by another process (pid {holder}): stop it, or use another directory",
                    dir.display()
                ),
            ))
        }
        Err(TryLockError::Error(e)) => Err(Error::from(file_error("lock", &path)(e))),
    }
}

/// Somebody who looks whether there is a lock has one himself for a moment: a lock waits as long as so many looks take.
const LOOKS: u32 = 50;
const A_LOOK: std::time::Duration = std::time::Duration::from_millis(2);

/// Who has the exclusive use of a local directory: the number of the process, or `unknown`. `None`: nobody. Changes nothing.
pub fn holder(dir: &FsPath) -> Result<Option<String>> {
    let path = dir.join(".lock");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::from(file_error("open", &path)(error))),
    };
    // Shared, and only for a moment: it keeps other lookers out of nothing.
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            Ok(Some(if holder.is_empty() { "unknown".to_owned() } else { holder }))
        }
        Err(TryLockError::Error(e)) => Err(Error::from(file_error("lock", &path)(e))),
    }
}

#[cfg(test)]
mod tests {
    use perennial_core::dead_letter::Journal;

    use super::*;
    use futures::TryStreamExt;
    use perennial_core::ErrorKind;

    fn store(dir: &FsPath) -> Arc<dyn ObjectStore> {
        open(dir.to_str().unwrap(), &StorageOptions::default()).unwrap().store
    }

    async fn names(store: &dyn ObjectStore) -> Vec<String> {
        let mut names: Vec<_> = store.list(None).map_ok(|m| m.location.to_string()).try_collect().await.unwrap();
        names.sort();
        names
    }

    fn files_below(dir: &FsPath) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() { found.extend(files_below(&entry)) } else { found.push(entry) }
        }
        found
    }

    fn create() -> PutOptions {
        PutOptions { mode: PutMode::Create, ..Default::default() }
    }

    #[tokio::test]
    async fn a_local_store_puts_gets_lists_and_deletes() {
        let dir = tempfile::tempdir().unwrap();
        // The directory need not exist, and nothing is created by opening.
        let root = dir.path().join("a/b");
        let store = store(&root);
        assert!(!dir.path().join("a").exists());
        assert!(names(&*store).await.is_empty());

        let file = Path::from("offsets/0");
        store.put(&file, "one".into()).await.unwrap();
        store.put(&file, "two".into()).await.unwrap();
        assert_eq!(store.get(&file).await.unwrap().bytes().await.unwrap(), "two");
        assert_eq!(std::fs::read(root.join("offsets/0")).unwrap(), b"two");
        assert_eq!(names(&*store).await, ["offsets/0"]);
        store.rename(&file, &Path::from("other/1")).await.unwrap();
        assert_eq!(names(&*store).await, ["other/1"]);
        store.delete(&Path::from("other/1")).await.unwrap();
        assert!(names(&*store).await.is_empty());
        assert!(files_below(&root).is_empty(), "no temporary file is left");

        // A directory that vanished is made again.
        std::fs::remove_dir_all(&root).unwrap();
        store.put(&file, "three".into()).await.unwrap();
        assert_eq!(names(&*store).await, ["offsets/0"]);
    }

    async fn one_writer_wins(stores: [Arc<dyn ObjectStore>; 2]) {
        for round in 0..20 {
            let path = Path::from(format!("commits/{round}"));
            let attempts = (0..8).map(|writer| {
                let (store, path) = (stores[writer % 2].clone(), path.clone());
                tokio::spawn(async move { store.put_opts(&path, format!("{writer}").into(), create()).await })
            });
            let mut winners = Vec::new();
            for (writer, attempt) in futures::future::join_all(attempts).await.into_iter().enumerate() {
                match attempt.unwrap() {
                    Ok(_) => winners.push(writer),
                    Err(object_store::Error::AlreadyExists { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            assert_eq!(winners.len(), 1);
            let content = stores[0].get(&path).await.unwrap().bytes().await.unwrap();
            assert_eq!(content, winners[0].to_string(), "the file is the winner's");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn create_succeeds_for_exactly_one_of_many_writers() {
        let dir = tempfile::tempdir().unwrap();
        // Two stores, as two processes would have.
        one_writer_wins([store(dir.path()), store(dir.path())]).await;
        assert_eq!(files_below(dir.path()).len(), 20, "losers leave nothing behind");
    }

    #[tokio::test]
    async fn an_upload_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let file = Path::from("x/big");

        let mut upload = store.put_multipart(&file).await.unwrap();
        let (first, second) = (upload.put_part("0123".into()), upload.put_part("456".into()));
        // In any order.
        second.await.unwrap();
        assert!(names(&*store).await.is_empty());
        first.await.unwrap();
        assert!(names(&*store).await.is_empty());
        upload.complete().await.unwrap();
        assert_eq!(store.get(&file).await.unwrap().bytes().await.unwrap(), "0123456");

        // Dropped or aborted: the old content stays and no file is left over.
        let mut upload = store.put_multipart(&file).await.unwrap();
        upload.put_part("new".into()).await.unwrap();
        drop(upload);
        let mut upload = store.put_multipart(&file).await.unwrap();
        upload.put_part("new".into()).await.unwrap();
        upload.abort().await.unwrap();
        // Completed without all its parts.
        let mut upload = store.put_multipart(&file).await.unwrap();
        drop(upload.put_part("new".into()));
        let error = upload.complete().await.unwrap_err();
        assert!(error.to_string().contains("not all parts"), "{error}");
        drop(upload);
        assert_eq!(store.get(&file).await.unwrap().bytes().await.unwrap(), "0123456");
        assert_eq!(files_below(dir.path()), [dir.path().join("x/big")]);
    }

    #[tokio::test]
    async fn leftovers_of_killed_writers_are_hidden_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("x").join(format!("{TEMPORARY}123"));
        std::fs::create_dir(dir.path().join("x")).unwrap();
        let first = store(dir.path());
        std::fs::write(&left, "half").unwrap();
        assert!(names(&*first).await.is_empty(), "hidden from listings");
        assert!(first.list_with_delimiter(Some(&Path::from("x"))).await.unwrap().objects.is_empty());
        // One that is still being written by another store stays.
        let mut upload = first.put_multipart(&Path::from("x/y")).await.unwrap();
        upload.put_part("whole".into()).await.unwrap();
        let second = store(dir.path());
        assert!(!left.exists());
        upload.complete().await.unwrap();
        assert_eq!(names(&*second).await, ["x/y"]);
        // Nobody can take such a name for a file that has to last.
        let error = first.put(&Path::parse(format!("x/{TEMPORARY}5")).unwrap(), "".into()).await.unwrap_err();
        assert!(error.to_string().contains("temporary"), "{error}");
    }

    #[tokio::test]
    async fn errors_have_their_class() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = open(dir.path().join("file").to_str().unwrap(), &StorageOptions::default()).unwrap_err();
        assert_eq!(error.class(), class::CONFIG_INVALID);
        for (wrong, part) in [
            ("ftp://host/x", "not supported"),
            ("s3:///x", "names no bucket"),
            ("s3://key:hunter2@bucket/x", "holds credentials"),
        ] {
            let error = open(wrong, &StorageOptions::default()).unwrap_err();
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.to_string().contains(part), "{error}");
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
        let store = store(dir.path());
        let missing = Error::from(store.get(&Path::from("nothing")).await.unwrap_err());
        assert_eq!(missing.class(), class::STORAGE_NOT_FOUND);
        // Where a directory is needed there is a file.
        let error = Error::from(store.put(&Path::from("file/x"), "".into()).await.unwrap_err());
        assert!(error.to_string().contains("file"), "{error}");
        let full = Error::from(file_error("write", FsPath::new("/x"))(io::Error::from(io::ErrorKind::StorageFull)));
        assert_eq!(full.class(), class::DISK_FULL);
        let refused =
            Error::from(file_error("write", FsPath::new("/x"))(io::Error::from(io::ErrorKind::PermissionDenied)));
        assert_eq!(refused.class(), class::STORAGE_PERMISSION_DENIED);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[ignore = "needs S3: run make test"]
    async fn an_s3_store_keeps_the_same_promises() {
        let endpoint = crate::sinks::testing::server("PERENNIAL_TEST_S3");
        let bucket = format!("storage-{}-{}", std::process::id(), chrono::Utc::now().timestamp_micros());
        reqwest::Client::new().put(format!("{endpoint}/{bucket}")).send().await.unwrap().error_for_status().unwrap();
        let open_s3 = |prefix: &str| {
            let options = StorageOptions {
                endpoint: Some(endpoint.clone()),
                allow_http: true,
                access_key_id: Some(Secret::new("test")),
                secret_access_key: Some(Secret::new("test")),
                ..StorageOptions::default()
            };
            open(&format!("s3://{bucket}/{prefix}"), &options).unwrap().store
        };
        let store = open_s3("a/b");
        assert!(names(&*store).await.is_empty());
        let file = Path::from("offsets/0");
        store.put(&file, "one".into()).await.unwrap();
        store.put(&file, "two".into()).await.unwrap();
        assert_eq!(store.get(&file).await.unwrap().bytes().await.unwrap(), "two");
        assert_eq!(names(&*store).await, ["offsets/0"]);
        assert_eq!(names(&*open_s3("a")).await, ["b/offsets/0"]);
        assert!(names(&*open_s3("other")).await.is_empty());
        store.delete(&file).await.unwrap();
        assert!(names(&*store).await.is_empty());
        one_writer_wins([open_s3("race"), open_s3("race")]).await;

        // A journal loses no line, however many write to it.
        let journals: [Arc<dyn ObjectStore>; 2] = [open_s3("journal"), open_s3("journal")];
        let writers = (0..16).map(|writer| {
            let journal = journals[writer % 2].clone();
            tokio::spawn(async move { Journal::append(&journal, "day.json", format!("line {writer}.\n")).await })
        });
        futures::future::join_all(writers).await.into_iter().for_each(|written| written.unwrap().unwrap());
        let content = Journal::read(&journals[0], "day.json").await.unwrap();
        let mut lines: Vec<&str> = std::str::from_utf8(&content).unwrap().lines().collect();
        lines.sort_unstable();
        let mut expected: Vec<String> = (0..16).map(|writer| format!("line {writer}.")).collect();
        expected.sort_unstable();
        assert_eq!(lines, expected);

        // An upload appears whole or not at all. All parts but the last have 5 MiB at least.
        let big = Path::from("x/big");
        let mut upload = store.put_multipart(&big).await.unwrap();
        upload.put_part(vec![b'x'; 5 << 20].into()).await.unwrap();
        upload.put_part("end".into()).await.unwrap();
        assert!(names(&*store).await.is_empty());
        upload.complete().await.unwrap();
        assert_eq!(store.head(&big).await.unwrap().size, (5 << 20) + 3);
        let mut upload = store.put_multipart(&big).await.unwrap();
        upload.put_part("new".into()).await.unwrap();
        upload.abort().await.unwrap();
        assert_eq!(store.head(&big).await.unwrap().size, (5 << 20) + 3);
        let error: Error = store.get(&Path::from("nowhere")).await.unwrap_err().into();
        assert_eq!(error.class(), class::STORAGE_NOT_FOUND);
    }

    #[test]
    fn s3_opens_from_its_settings_and_hides_its_secrets() {
        let options: StorageOptions = serde_json::from_value(serde_json::json!({
            "endpoint": "http://127.0.0.1:9000", "allow_http": true, "region": "eu-west-1",
            "access_key_id": "AKIA", "secret_access_key": "hunter2",
        }))
        .unwrap();
        assert!(options.fsync, "the default stands where only other keys are set");
        let storage = open("s3://bucket/some/prefix", &options).unwrap();
        assert!(storage.local.is_none());
        assert!(!format!("{options:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&options).unwrap().contains("hunter2"));
        assert!(serde_json::from_str::<StorageOptions>(r#"{"endpiont": "x"}"#).is_err());
    }

    #[test]
    fn a_directory_is_locked_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("checkpoint");
        let held = lock(&dir).unwrap();
        let error = lock(&dir).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        assert_eq!(holder(&dir).unwrap(), Some(std::process::id().to_string()));
        drop(held);
        assert_eq!(holder(&dir).unwrap(), None);
        assert_eq!(holder(&dir.join("nowhere")).unwrap(), None);
        lock(&dir).unwrap();
    }
}
