//! One life of the process: from its start to its end, or to its death.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;
use perennial_core::crash::{Crash, CrashPoint};
use perennial_core::error::{Error, Result, class};
use tokio_util::sync::CancellationToken;

use crate::world::{SimClock, SimEntropy};

/// What happened, line by line. The same seed gives the same lines.
#[derive(Debug, Default, Clone)]
pub struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    pub fn add(&self, line: String) {
        self.0.lock().push(line);
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// Where a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It works off all there is.
    Not,
    /// At the n-th passage of a point.
    Point(CrashPoint, u64),
    /// At the n-th call to the outside: before or after it took effect.
    Call(u64, Effect),
    /// After so many turns of all tasks, wherever they stand.
    Turn(u64),
}

/// Whether a call that fails took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    Done,
}

/// How a life goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    pub death: Death,
    /// One call in so many fails; 0 for none.
    pub errors: u64,
    /// One list in so many does not show the newest files; 0 for none.
    pub lag: u64,
    /// It stands still before this call, until another process has taken over.
    pub pause: Option<u64>,
}

impl Fate {
    /// A life in which nothing fails.
    pub const SOUND: Self = Self { death: Death::Not, errors: 0, lag: 0, pause: None };
}

#[derive(Debug)]
pub struct Life {
    pub number: u64,
    pub fate: Fate,
    pub random: Arc<SimEntropy>,
    pub clock: Arc<SimClock>,
    pub trace: Trace,
    /// The epoch that it took.
    pub epoch: AtomicU64,
    calls: AtomicU64,
    passages: AtomicU64,
    dead: AtomicBool,
    /// Cancelled when it dies.
    pub died: CancellationToken,
    /// Cancelled when it stands still.
    pub paused: CancellationToken,
    resumed: AtomicBool,
    /// The life that goes on when this one made so many calls.
    wakes: Mutex<Option<(u64, Arc<Life>)>>,
}

impl Life {
    pub fn new(number: u64, fate: Fate, random: Arc<SimEntropy>, clock: Arc<SimClock>, trace: Trace) -> Arc<Self> {
        trace.add(format!("life {number}: {fate:?}"));
        Arc::new(Self {
            number,
            fate,
            random,
            clock,
            trace,
            epoch: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            passages: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            died: CancellationToken::new(),
            paused: CancellationToken::new(),
            resumed: AtomicBool::new(false),
            wakes: Mutex::new(None),
        })
    }

    pub fn die(&self, why: &str) {
        if !self.dead.swap(true, SeqCst) {
            self.say(&format!("dies: {why}"));
            self.died.cancel();
        }
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(SeqCst)
    }

    /// Lets `other` go on when this life has made `calls` calls.
    pub fn wake_after(&self, calls: u64, other: Arc<Life>) {
        *self.wakes.lock() = Some((calls, other));
    }

    pub fn resume(&self) {
        if !self.resumed.swap(true, SeqCst) {
            self.say("goes on");
        }
    }

    pub fn say(&self, what: &str) {
        self.trace.add(format!("{} {what}", self.number));
    }

    /// A call to the outside begins. What it does to the caller: fail without effect, fail after it took effect, or neither.
    pub async fn begin(&self, what: &str, on: &str) -> Option<Effect> {
        for _ in 0..self.random.below(3) {
            tokio::task::yield_now().await;
        }
        self.clock.advance(self.random.below(20_000) as i64);
        let call = self.calls.fetch_add(1, SeqCst);
        if let Some((at, other)) = &*self.wakes.lock()
            && call == *at
        {
            other.resume();
        }
        if self.fate.pause == Some(call) {
            self.say("stands still");
            self.paused.cancel();
            while !self.resumed.load(SeqCst) {
                tokio::task::yield_now().await;
            }
        }
        match self.fate.death {
            Death::Call(at, Effect::None) if at == call => self.die("before a call"),
            // It dies when the call is done.
            Death::Call(at, Effect::Done) if at == call => return Some(Effect::Done),
            _ => {}
        }
        self.live_on().await;
        let fails = self.random.once_in(self.fate.errors);
        let effect = fails.then(|| if self.random.once_in(2) { Effect::None } else { Effect::Done });
        self.say(&format!("{what} {on}{}", effect.map_or_else(String::new, |effect| format!(" fails, {effect:?}"))));
        effect
    }

    /// A call to the outside took effect, but its caller is not to know.
    pub async fn lose_answer(&self) {
        if matches!(self.fate.death, Death::Call(at, Effect::Done) if at + 1 == self.calls.load(SeqCst)) {
            self.die("after a call");
        }
        self.live_on().await;
    }

    /// What is dead does nothing any more.
    pub async fn live_on(&self) {
        if self.is_dead() {
            std::future::pending().await
        }
    }

    /// A call that changes nothing.
    pub async fn call(&self, what: &str, on: &str) -> Result<()> {
        match self.begin(what, on).await {
            None => Ok(()),
            Some(_) => {
                self.lose_answer().await;
                Err(lost())
            }
        }
    }
}

/// The error of a call that failed on purpose.
pub fn lost() -> Error {
    Error::new(class::CONNECTION_LOST, "the simulated world went away")
}

impl Crash for Life {
    fn dies_at(&self, point: CrashPoint) -> bool {
        if let Death::Point(at, passage) = self.fate.death
            && at == point
            && self.passages.fetch_add(1, SeqCst) + 1 == passage
        {
            self.die(point.name());
        }
        self.is_dead()
    }
}
