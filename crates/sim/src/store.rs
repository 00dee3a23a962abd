//! Storage that fails at a chosen operation.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

/// What a failing write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The write does not happen, and the caller is told so; later operations work.
    ErrorBefore,
    /// The write happens, but the caller is told that it failed; later operations work.
    ErrorAfter,
    /// The process dies before the write: nothing works any more.
    CrashBefore,
    /// The process dies after the write: nothing works any more.
    CrashAfter,
}

/// All faults.
pub const FAULTS: [Fault; 4] = [Fault::ErrorBefore, Fault::ErrorAfter, Fault::CrashBefore, Fault::CrashAfter];

#[derive(Debug, Default)]
struct Plan {
    /// The writes that are still to come before the fault.
    countdown: Option<u64>,
    fault: Option<Fault>,
    dead: bool,
    writes: u64,
}

/// Storage on top of `inner` that fails once, at the write that was chosen. Storage that "crashed" is dead: a process that starts again
/// gets a new one over the same `inner`.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    plan: Mutex<Plan>,
}

impl FaultyStore {
    /// Storage that does not fail.
    pub fn sound(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { inner, plan: Mutex::default() })
    }

    /// Storage of which write number `at` (0 is the first) fails.
    pub fn failing(inner: Arc<dyn ObjectStore>, at: u64, fault: Fault) -> Arc<Self> {
        let plan = Plan { countdown: Some(at), fault: Some(fault), ..Default::default() };
        Arc::new(Self { inner, plan: Mutex::new(plan) })
    }

    /// Whether the process that uses it "died".
    pub fn is_dead(&self) -> bool {
        self.plan.lock().dead
    }

    /// Writes and deletes so far.
    pub fn writes(&self) -> u64 {
        self.plan.lock().writes
    }

    fn gone() -> object_store::Error {
        object_store::Error::Generic { store: "sim", source: "the simulated storage failed".into() }
    }

    fn alive(&self) -> Result<()> {
        if self.is_dead() { Err(Self::gone()) } else { Ok(()) }
    }

    /// The fault of the write that begins now.
    fn next_write(&self) -> Result<Option<Fault>> {
        self.alive()?;
        let mut plan = self.plan.lock();
        plan.writes += 1;
        match plan.countdown {
            Some(0) => {
                plan.countdown = None;
                let fault = plan.fault.take();
                plan.dead = matches!(fault, Some(Fault::CrashBefore | Fault::CrashAfter));
                Ok(fault)
            }
            Some(left) => {
                plan.countdown = Some(left - 1);
                Ok(None)
            }
            None => Ok(None),
        }
    }
}

impl std::fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fault = self.next_write()?;
        if matches!(fault, Some(Fault::ErrorBefore | Fault::CrashBefore)) {
            return Err(Self::gone());
        }
        let result = self.inner.put_opts(location, payload, options).await;
        if fault.is_some() { Err(Self::gone()) } else { result }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.alive()?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.alive()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.next_write() {
            Ok(None) => self.inner.delete_stream(locations),
            Ok(Some(_)) | Err(_) => stream::once(async { Err(Self::gone()) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.alive() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.alive()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.alive()?;
        self.inner.copy_opts(from, to, options).await
    }
}
