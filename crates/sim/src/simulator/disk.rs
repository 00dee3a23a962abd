//! Storage that outlives the process, and what it can do to it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use perennial_core::checkpoint::CommitEntry;

use super::Bug;
use super::life::{Effect, Life};
use crate::world::SimEntropy;

/// What is stored.
#[derive(Debug, Default)]
pub struct Disk {
    pub files: InMemory,
    /// The last writes, oldest first, and what was there before: a crash may take them back.
    writes: Mutex<VecDeque<(Path, Option<Bytes>)>>,
}

/// How many of the last writes a list that lags does not show, at most.
const LAG: usize = 3;

impl Disk {
    async fn content(&self, path: &Path) -> Option<Bytes> {
        self.files.get(path).await.ok()?.bytes().await.ok()
    }

    fn wrote(&self, path: &Path, before: Option<Bytes>) {
        let mut writes = self.writes.lock();
        writes.push_back((path.clone(), before));
        if writes.len() > LAG {
            writes.pop_front();
        }
    }

    /// What a crash does to a disk that lied: the last write never happened, is torn, or an older file has lost its end. Says what it did.
    pub async fn damage(&self, random: &SimEntropy, spares: impl Fn(&Path) -> bool) -> Result<Option<String>> {
        let last = self.writes.lock().pop_back();
        match (random.below(3), last) {
            (0, Some((path, before))) if !spares(&path) => {
                match before {
                    Some(before) => drop(self.files.put(&path, before.into()).await?),
                    None => self.files.delete(&path).await?,
                }
                Ok(Some(format!("{path} was never written")))
            }
            (1, Some((path, _))) if !spares(&path) => self.tear(&path, random).await,
            (2, _) => {
                let mut files: Vec<Path> = self.files.list(None).map_ok(|file| file.location).try_collect().await?;
                files.sort();
                files.retain(|path| !spares(path));
                match files.len() as u64 {
                    0 => Ok(None),
                    count => self.tear(&files[random.below(count) as usize], random).await,
                }
            }
            _ => Ok(None),
        }
    }

    async fn tear(&self, path: &Path, random: &SimEntropy) -> Result<Option<String>> {
        let Some(content) = self.content(path).await else { return Ok(None) };
        let end = random.below(content.len().max(1) as u64) as usize;
        self.files.put(path, content.slice(..end).into()).await?;
        Ok(Some(format!("{path} ends after {end} of {} bytes", content.len())))
    }
}

/// The storage of one life.
#[derive(Debug, Clone)]
pub struct LifeStore {
    pub name: &'static str,
    pub disk: Arc<Disk>,
    pub life: Arc<Life>,
    pub bug: Option<Bug>,
}

impl fmt::Display for LifeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

fn gone() -> object_store::Error {
    object_store::Error::Generic { store: "sim", source: "the simulated storage failed".into() }
}

/// The epoch whose file this is.
fn epoch_of(path: &Path) -> Option<u64> {
    path.as_ref().split_once("/_perennial/epochs/")?.1.parse().ok()
}

impl LifeStore {
    async fn begin(&self, what: &str, path: &Path) -> Option<Effect> {
        self.life.begin(what, &format!("{}/{path}", self.name)).await
    }

    /// A call that changes nothing.
    async fn look(&self, what: &str, path: &Path) -> Result<()> {
        match self.begin(what, path).await {
            None => Ok(()),
            Some(_) => {
                self.life.lose_answer().await;
                Err(gone())
            }
        }
    }

    /// A call that does what `change` does.
    async fn change<T>(&self, what: &str, path: &Path, change: impl Future<Output = Result<T>>) -> Result<T> {
        match self.begin(what, path).await {
            Some(Effect::None) => Err(gone()),
            None => change.await,
            Some(Effect::Done) => {
                let changed = change.await;
                self.life.lose_answer().await;
                changed.and(Err(gone()))
            }
        }
    }

    async fn files(&self, prefix: Option<&Path>) -> Result<Vec<ObjectMeta>> {
        let root = Path::default();
        self.look("list", prefix.unwrap_or(&root)).await?;
        let mut files: Vec<ObjectMeta> = self.disk.files.list(prefix).try_collect().await?;
        files.sort_by(|a, b| a.location.cmp(&b.location));
        if self.life.random.once_in(self.life.fate.lag) {
            let newest = self.disk.writes.lock();
            files.retain(|file| !newest.iter().any(|(path, before)| *path == file.location && before.is_none()));
            self.life.say("the list lags");
        }
        Ok(files)
    }

    /// The commit of a batch with the state of the batch before it.
    async fn one_version_off(&self, path: &Path) -> Option<Bytes> {
        let batch: u64 = path.as_ref().split_once("/commits/")?.1.parse().ok()?;
        let before = Path::from(
            path.as_ref().replace(&format!("commits/{batch}"), &format!("commits/{}", batch.checked_sub(1)?)),
        );
        let decode = |bytes: Bytes| CommitEntry::decode(std::str::from_utf8(&bytes).ok()?).ok();
        let mut commit = decode(self.disk.content(path).await?)?;
        commit.perennial.as_mut()?.state = decode(self.disk.content(&before).await?)?.perennial?.state;
        Some(commit.encode().ok()?.into())
    }
}

#[async_trait]
impl ObjectStore for LifeStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        if self.bug == Some(Bug::MissingFence) {
            options.mode = PutMode::Overwrite;
        }
        let put = async {
            let before = self.disk.content(path).await;
            let written = self.disk.files.put_opts(path, payload, options).await?;
            if let Some(epoch) = epoch_of(path) {
                self.life.epoch.store(epoch, SeqCst);
            }
            self.disk.wrote(path, before);
            Ok(written)
        };
        self.change("put", path, put).await
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.look("upload", path).await?;
        self.disk.files.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.look(if options.head { "head" } else { "get" }, path).await?;
        let asks_for_successor = options.head && epoch_of(path) > Some(self.life.epoch.load(SeqCst));
        if self.bug == Some(Bug::MissingFence) && asks_for_successor {
            return Err(object_store::Error::NotFound { path: path.to_string(), source: "hidden".into() });
        }
        let mut found = self.disk.files.get_opts(path, options).await?;
        if self.bug == Some(Bug::StateVersion)
            && let Some(other) = self.one_version_off(path).await
        {
            (found.range, found.meta.size) = (0..other.len() as u64, other.len() as u64);
            found.payload = GetResultPayload::Stream(stream::once(async { Ok(other) }).boxed());
        }
        Ok(found)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        paths
            .then(move |path| {
                let store = store.clone();
                async move {
                    let path = path?;
                    store.change("delete", &path, store.disk.files.delete(&path)).await?;
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let files =
            async move { store.files(prefix.as_ref()).await.map(|files| stream::iter(files.into_iter().map(Ok))) };
        stream::once(files).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let shown = self.files(prefix).await?;
        let mut result = self.disk.files.list_with_delimiter(prefix).await?;
        result.objects.retain(|file| shown.iter().any(|shown| shown.location == file.location));
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.change("copy", to, self.disk.files.copy_opts(from, to, options)).await
    }
}
