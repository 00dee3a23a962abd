//! The own log of a source in the checkpoint.

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};

use crate::crash::CrashPoint;
use crate::env::Env;
use crate::error::{Error, Result, class};

/// The own log of a source in the checkpoint: small files in `sources/<i>/`, written once and never changed.
///
/// Their formats are the sources' (Spark's, where Spark has one) and have no room for a checksum. It stands in a file of its own, which is
/// written after the file and removed before it: a file without one may be Spark's, a checksum without its file means that the file got lost.
#[derive(Clone, Debug)]
pub struct SourceLog {
    env: Env,
    dir: Path,
    sums: Option<Path>,
}

impl SourceLog {
    /// The log in a directory of the storage, without checksums.
    pub fn new(env: Env, dir: Path) -> Self {
        Self { env, dir, sums: None }
    }

    /// The same log with its checksums in another directory.
    #[must_use]
    pub fn with_checksums(mut self, dir: Path) -> Self {
        self.sums = Some(dir);
        self
    }

    /// Names of the files, unordered.
    pub async fn names(&self) -> Result<Vec<String>> {
        let files: Vec<_> = self.env.storage.list(Some(&self.dir)).try_collect().await?;
        Ok(files.iter().filter_map(|f| f.location.filename().map(str::to_owned)).collect())
    }

    /// The content of a file, `None` where there never was such a file.
    ///
    /// # Errors
    /// `CheckpointCorrupt` when it is not as it was written, or is missing although it was written.
    pub async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.dir.clone().join(name);
        let content = get(&self.env, &path).await?;
        let sums = match &self.sums {
            Some(sums) => get(&self.env, &sums.clone().join(name)).await?,
            None => None,
        };
        match (content, sums) {
            (content, None) => Ok(content),
            (Some(content), Some(sums)) if fits(&content, &sums) => Ok(Some(content)),
            (Some(_), Some(_)) => Err(Error::new(
                class::CHECKPOINT_CORRUPT,
                format!("{path} is damaged: its content does not fit its checksum; restore it from a backup"),
            )),
            (None, Some(_)) => Err(Error::new(
                class::CHECKPOINT_CORRUPT,
                format!("{path} is missing, although it was written; restore it from a backup"),
            )),
        }
    }

    /// Writes a file that does not exist yet; durable when it returns. A file of this name with the same content is fine (an earlier
    /// attempt got so far); with another content it is another writer's, and the query is fenced.
    pub async fn write(&self, name: &str, content: Bytes) -> Result<()> {
        let path = self.dir.clone().join(name);
        self.env.crash.pass(CrashPoint::BeforeSourceLog).await;
        create(&self.env, &path, content.clone()).await?;
        if let Some(sums) = &self.sums {
            self.env.crash.pass(CrashPoint::HalfSourceLog).await;
            create(&self.env, &sums.clone().join(name), sum(&content).into()).await?;
        }
        self.env.crash.pass(CrashPoint::AfterSourceLog).await;
        Ok(())
    }

    /// Removes a file; a missing one is fine.
    pub async fn delete(&self, name: &str) -> Result<()> {
        if let Some(sums) = &self.sums {
            remove(&self.env, &sums.clone().join(name)).await?;
        }
        remove(&self.env, &self.dir.clone().join(name)).await
    }
}

async fn get(env: &Env, path: &Path) -> Result<Option<Bytes>> {
    match env.storage.get(path).await {
        Ok(found) => Ok(Some(found.bytes().await?)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn create(env: &Env, path: &Path, content: Bytes) -> Result<()> {
    let options = PutOptions { mode: PutMode::Create, ..Default::default() };
    match env.storage.put_opts(path, content.clone().into(), options).await {
        Ok(_) => Ok(()),
        Err(object_store::Error::AlreadyExists { .. }) if get(env, path).await?.as_ref() == Some(&content) => Ok(()),
        Err(object_store::Error::AlreadyExists { .. }) => Err(Error::new(
            class::FENCED,
            format!("{path} was written by another process: two processes use this checkpoint; stop one of them"),
        )),
        Err(error) => Err(error.into()),
    }
}

async fn remove(env: &Env, path: &Path) -> Result<()> {
    match env.storage.delete(path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The checksum, twice: so that one that is damaged itself is told from one that does not fit.
fn sum(content: &[u8]) -> String {
    let sum = crc32c::crc32c(content);
    format!("{sum:08x} {sum:08x}")
}

/// Whether the content is as it was written. A checksum of which too little is left says nothing.
pub(super) fn fits(content: &[u8], sums: &[u8]) -> bool {
    let sum = format!("{:08x}", crc32c::crc32c(content));
    sums.len() < sum.len() || sums.starts_with(sum.as_bytes()) || sums.ends_with(sum.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_told_from_a_damaged_checksum() {
        let content = b"v1\n{\"startMs\":5}".to_vec();
        let sums = sum(&content).into_bytes();
        assert!(fits(&content, &sums));
        for bit in 0..content.len() * 8 {
            let mut flipped = content.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!fits(&flipped, &sums), "bit {bit} of the content");
        }
        for bit in 0..sums.len() * 8 {
            let mut flipped = sums.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(fits(&content, &flipped), "bit {bit} of the checksum");
        }
        for end in 0..sums.len() {
            assert!(fits(&content, &sums[..end]), "the checksum cut at {end}");
        }
        assert!(!fits(b"", &sums), "an emptied file");
    }
}
