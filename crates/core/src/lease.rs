//! Who runs a job, as long as it gives signs of life; and who waits beside it for the day that it gives none.
//!
//! A process that runs a job has a *term*, a file in the job's checkpoint, and writes it again and again. A process that waits looks at the
//! newest term: once its writer has ended it, is known to be dead, or has not written it for as long as it said it would at most, the next
//! term can be begun. Its file is created, so of several that wait one gets it.
//!
//! A term says who should run, no more. That nobody else writes is up to the epochs of the queries: whoever was silent only because it slept
//! is fenced by them, whatever it thinks. So nothing here has to be exact about time; only durations on one's own clock are compared.

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::error::{Error, Result};

/// Where the terms are, beside the queries.
const DIRECTORY: &str = "_perennial/leases";

/// What a term says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// Its writer, for people.
    pub holder: String,
    /// Tells it from everybody else.
    pub id: u64,
    /// Goes up with every sign of life.
    pub beat: u64,
    /// For how long the last sign of life is good.
    pub lease_ms: u64,
    /// Whether the writer has a lock that the system takes from it when it dies: then its death shows at once.
    pub locked: bool,
    /// Whether the writer has stopped in order.
    pub ended: bool,
}

/// What is known of the newest term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// For how long it was seen without a change.
    pub unchanged: Duration,
    /// Whether somebody has the lock that goes with it, where that can be known.
    pub lock_is_held: Option<bool>,
}

/// Whether the next term can be begun.
pub fn is_over(term: Option<&Term>, observed: Observed) -> bool {
    // Whoever has the lock without a term, or behind one that has ended, is about to begin one.
    let is_free = observed.lock_is_held != Some(true);
    let Some(term) = term else { return is_free };
    let died = term.locked && observed.lock_is_held == Some(false);
    died || (term.ended && is_free) || observed.unchanged >= Duration::from_millis(term.lease_ms)
}

/// A term of this process.
#[derive(Debug)]
pub struct Lease {
    env: Env,
    number: u64,
    term: Term,
}

/// How many terms are kept, for people.
const KEPT: u64 = 10;

impl Lease {
    /// Begins the term after the newest. `None`: another process was faster.
    pub async fn begin(env: &Env, holder: String, lease: Duration, locked: bool) -> Result<Option<Self>> {
        let number = newest(env).await?.map_or(0, |newest| newest + 1);
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        let term = Term { holder, id: env.entropy.next_u64(), beat: 0, lease_ms, locked, ended: false };
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        match env.storage.put_opts(&path(number), encode(&term)?.into(), options).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => return Ok(None),
            Err(error) => return Err(Error::from(error)),
        }
        for old in number.saturating_sub(2 * KEPT)..number.saturating_sub(KEPT) {
            match env.storage.delete(&path(old)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(Self { env: env.clone(), number, term }))
    }

    /// How often a sign of life is due.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.term.lease_ms) / 3
    }

    /// Gives a sign of life. False: another process has begun the next term.
    pub async fn renew(&mut self, locked: bool) -> Result<bool> {
        // Who slept for very long may find the next term removed; then its own went before.
        let (own, next) = (path(self.number), path(self.number + 1));
        match futures::join!(self.env.storage.head(&own), self.env.storage.head(&next)) {
            (Ok(_), Err(object_store::Error::NotFound { .. })) => {}
            (Err(error), _) | (_, Err(error)) if !matches!(error, object_store::Error::NotFound { .. }) => {
                return Err(error.into());
            }
            _ => return Ok(false),
        }
        self.term.beat += 1;
        self.term.locked = locked;
        self.write().await?;
        Ok(true)
    }

    /// Ends the term: who waits needs not wait any longer.
    pub async fn end(mut self) -> Result<()> {
        self.term.ended = true;
        self.write().await
    }

    async fn write(&self) -> Result<()> {
        self.env.storage.put(&path(self.number), encode(&self.term)?.into()).await?;
        Ok(())
    }
}

/// Looks at the terms of others.
#[derive(Debug)]
pub struct Watch {
    env: Env,
    seen: Option<(u64, Term)>,
    /// Since when it is unchanged.
    since: Duration,
}

impl Watch {
    /// Knows nothing yet.
    pub fn new(env: &Env) -> Self {
        Self { since: env.clock.monotonic(), env: env.clone(), seen: None }
    }

    /// Whether the next term can be begun, and the newest one. `lock_is_held`: see [`Observed::lock_is_held`].
    ///
    /// After an error all that was seen counts from the next look on: while the storage is away, nobody can give a sign of life.
    pub async fn look(&mut self, lock_is_held: Option<bool>) -> Result<(bool, Option<&Term>)> {
        let found = match self.read().await {
            Ok(found) => found,
            Err(error) => {
                self.seen = None;
                return Err(error);
            }
        };
        let now = self.env.clock.monotonic();
        if found != self.seen {
            (self.seen, self.since) = (found, now);
        }
        let term = self.seen.as_ref().map(|(_, term)| term);
        let observed = Observed { unchanged: now.saturating_sub(self.since), lock_is_held };
        Ok((is_over(term, observed), term))
    }

    async fn read(&self) -> Result<Option<(u64, Term)>> {
        let Some(number) = newest(&self.env).await? else { return Ok(None) };
        Ok(read(&self.env, number).await?.map(|term| (number, term)))
    }
}

fn path(number: u64) -> Path {
    Path::from(format!("{DIRECTORY}/{number}"))
}

fn encode(term: &Term) -> Result<Bytes> {
    Ok(serde_json::to_vec(term).map_err(|error| Error::bug("a term").caused_by(error))?.into())
}

async fn newest(env: &Env) -> Result<Option<u64>> {
    let files: Vec<_> = env.storage.list(Some(&Path::from(DIRECTORY))).try_collect().await?;
    Ok(files.iter().filter_map(|file| file.location.filename()?.parse().ok()).max())
}

/// A term; a damaged one counts as none.
async fn read(env: &Env, number: u64) -> Result<Option<Term>> {
    let bytes = match env.storage.get(&path(number)).await {
        Ok(found) => found.bytes().await?,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(serde_json::from_slice(&bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_over_when_it_ended_when_its_writer_died_and_when_it_is_silent() {
        let term = |locked, ended| Term { holder: "x".into(), id: 1, beat: 7, lease_ms: 1000, locked, ended };
        let observed = |ms, lock_is_held| Observed { unchanged: Duration::from_millis(ms), lock_is_held };
        for (lock, expected) in [(None, true), (Some(false), true), (Some(true), false)] {
            assert_eq!(is_over(None, observed(0, lock)), expected, "{lock:?}");
        }
        for (locked, ended, ms, lock) in [true, false].into_iter().flat_map(|locked| {
            [true, false].into_iter().flat_map(move |ended| {
                [0, 999, 1000]
                    .into_iter()
                    .flat_map(move |ms| [None, Some(true), Some(false)].map(move |lock| (locked, ended, ms, lock)))
            })
        }) {
            let expected = match lock {
                _ if ms >= 1000 => true,
                Some(true) => false,
                Some(false) => ended || locked,
                None => ended,
            };
            assert_eq!(
                is_over(Some(&term(locked, ended)), observed(ms, lock)),
                expected,
                "{locked} {ended} {ms} {lock:?}"
            );
        }
    }
}
