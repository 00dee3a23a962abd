//! Signs of life of the process that runs a job, and waiting beside it until there are none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perennial_connectors::storage::{self, Lock};
use perennial_core::env::Env;
use perennial_core::error::{Error, ErrorKind, Result};
use perennial_core::lease::{Lease, Watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::job::Job;
use crate::wire::Opened;

/// The longest wait between two looks at a checkpoint on a local disk, where a look costs next to nothing, and in an object store.
const LONGEST_LOOK: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(2)];
/// How long the end of a term may take to be written.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits until the job is nobody's, and takes it. `None`: stopped meanwhile.
pub(crate) async fn wait(
    job: &Job,
    opened: &Opened,
    stop: &CancellationToken,
) -> Result<Option<(Option<Lease>, Option<Lock>)>> {
    let (env, local) = (&opened.env, opened.local.as_deref());
    let longest = LONGEST_LOOK[usize::from(local.is_none())];
    let mut watch = Watch::new(env);
    let mut active = None;
    let mut is_away = false;
    while !stop.is_cancelled() {
        let lock_is_held = local.map(storage::holder).transpose()?.map(|holder| holder.is_some());
        match watch.look(lock_is_held).await {
            Ok((true, term)) => {
                let from = term.map(|term| term.holder.clone());
                let lock = local.and_then(try_lock);
                if let Some(lease) = Lease::begin(env, name(), job.lease.0, lock.is_some()).await? {
                    match from {
                        Some(from) => tracing::warn!(job = %job.name, %from, "takes over"),
                        None => tracing::info!(job = %job.name, "nobody runs the job: this process does"),
                    }
                    return Ok(Some((Some(lease), lock)));
                }
            }
            Ok((false, term)) => {
                let holder = term.map(|term| term.holder.clone());
                if active.as_ref() != Some(&holder) {
                    let by = holder.as_deref().unwrap_or("a process that has just started");
                    tracing::info!(job = %job.name, active = by, "stands by");
                    active = Some(holder);
                }
                is_away = false;
            }
            Err(error) if !is_away => {
                tracing::warn!(%error, "stands by, and cannot see whether the job runs; it is tried again");
                is_away = true;
            }
            Err(_) => {}
        }
        pause(env, (job.lease.0 / 5).min(longest), stop).await;
    }
    Ok(None)
}

async fn pause(env: &Env, wait: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = env.clock.sleep(wait) => {}
        () = stop.cancelled() => {}
    }
}

/// The lock of the checkpoint, unless a process has it, which then stands still.
fn try_lock(directory: &Path) -> Option<Lock> {
    match storage::lock(directory) {
        Ok(lock) => Some(lock),
        Err(error) => {
            if error.kind() != ErrorKind::Fenced {
                tracing::warn!(%error, "the checkpoint could not be locked; it is tried again");
            }
            None
        }
    }
}

/// This process, for people.
fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("pid {} on {}", std::process::id(), host.trim())
}

/// The time in which this process runs the job: it gives signs of life until it ends, or until another process has taken over.
pub(crate) struct Tenure {
    task: JoinHandle<()>,
    end: CancellationToken,
    lost: Arc<AtomicBool>,
}

struct Beating {
    env: Env,
    lasts: Duration,
    lease: Option<Lease>,
    lock: Option<Lock>,
    /// The directory to lock.
    local: Option<PathBuf>,
    lost: Arc<AtomicBool>,
}

impl Tenure {
    /// Begins to give signs of life, with the term that was taken or a new one. `stop` is cancelled when another process has taken over.
    pub fn begin(
        job: &Job,
        opened: &Opened,
        lease: Option<Lease>,
        lock: Option<Lock>,
        stop: CancellationToken,
    ) -> Self {
        let (end, lost) = (CancellationToken::new(), Arc::<AtomicBool>::default());
        let (env, local) = (opened.env.clone(), opened.local.clone());
        let beating = Beating { env, lasts: job.lease.0, lease, lock, local, lost: lost.clone() };
        let task = tokio::spawn(beating.run(end.clone(), stop));
        Self { task, end, lost }
    }

    /// Whether another process has taken over.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Ends it: who stands by need not wait any longer.
    pub async fn end(self) {
        self.end.cancel();
        // A storage that is away does not keep the process from ending: who stands by waits a little longer then.
        let _ = tokio::time::timeout(PATIENCE, self.task).await;
    }
}

impl Beating {
    async fn run(mut self, end: CancellationToken, stop: CancellationToken) {
        while !end.is_cancelled() {
            match self.beat().await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::error!("another process took the job over: this one stops");
                    self.lost.store(true, Ordering::Release);
                    return stop.cancel();
                }
                Err(error) => tracing::warn!(%error, "no sign of life could be given; it is tried again"),
            }
            pause(&self.env, self.lasts / 3, &end).await;
        }
        if let Some(lease) = self.lease.take()
            && let Err(error) = lease.end().await
        {
            tracing::warn!(%error, "the end of the run could not be told");
        }
    }

    /// False: another process has taken over.
    async fn beat(&mut self) -> Result<bool> {
        if self.lock.is_none()
            && let Some(local) = self.local.clone()
        {
            // The process that had it stood still when this one took over.
            let locked = tokio::task::spawn_blocking(move || try_lock(&local)).await;
            self.lock = locked.map_err(|error| Error::bug("a lock was not taken").caused_by(error))?;
        }
        match &mut self.lease {
            Some(lease) => lease.renew(self.lock.is_some()).await,
            None => {
                self.lease = Lease::begin(&self.env, name(), self.lasts, self.lock.is_some()).await?;
                Ok(true)
            }
        }
    }
}
