//! The own log of a source in the checkpoint.

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};

use crate::env::Env;
use crate::error::{Error, Result, class};

/// The own log of a source in the checkpoint: small files in `sources/<i>/`, written once and never changed.
#[derive(Clone, Debug)]
pub struct SourceLog {
    env: Env,
    dir: Path,
}

impl SourceLog {
    /// The log in a directory of the storage.
    pub fn new(env: Env, dir: Path) -> Self {
        Self { env, dir }
    }

    /// Names of the files, unordered.
    pub async fn names(&self) -> Result<Vec<String>> {
        let files: Vec<_> = self.env.storage.list(Some(&self.dir)).try_collect().await?;
        Ok(files.iter().filter_map(|f| f.location.filename().map(str::to_owned)).collect())
    }

    /// The content of a file, `None` where there is no such file.
    pub async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        match self.env.storage.get(&self.dir.clone().join(name)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a file that does not exist yet; durable when it returns. A file of this name with the same content is fine (an earlier
    /// attempt got so far); with another content it is another writer's, and the query is fenced.
    pub async fn write(&self, name: &str, content: Bytes) -> Result<()> {
        let path = self.dir.clone().join(name);
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        match self.env.storage.put_opts(&path, content.clone().into(), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) if self.read(name).await?.as_ref() == Some(&content) => {
                Ok(())
            }
            Err(object_store::Error::AlreadyExists { .. }) => Err(Error::new(
                class::FENCED,
                format!("{path} was written by another process: two processes use this checkpoint; stop one of them"),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a file; a missing one is fine.
    pub async fn delete(&self, name: &str) -> Result<()> {
        match self.env.storage.delete(&self.dir.clone().join(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
