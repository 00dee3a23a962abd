//! Circuit breakers: who leaves a door alone that stays shut.
//!
//! A query has a breaker for each of its sources, for its sink and for the storage of its checkpoint and dead letters. This is the state
//! machine alone: it is told what happened and at what time, and says what may be done. While a breaker of a query is open the query
//! does nothing at all, so nothing is consumed and nothing is lost; the attempt after that is the single probe.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A part of a query that can be away while the others are there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A source or a static table, by its name.
    Source(Arc<str>),
    /// The sink.
    Sink,
    /// The storage of the checkpoint and of the dead letters.
    Storage,
}

impl Part {
    /// The source or table with this name.
    pub fn source(name: &str) -> Self {
        Self::Source(name.into())
    }
}

/// As people find it in the job file.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(name) => write!(f, "sources.{name}"),
            Self::Sink => f.write_str("sink"),
            Self::Storage => f.write_str("storage"),
        }
    }
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BreakerState {
    /// All is well, or not bad enough.
    #[default]
    Closed,
    /// Nothing is tried.
    Open {
        /// When the probe is due, in microseconds since the epoch.
        until_micros: i64,
    },
    /// One attempt probes.
    HalfOpen,
}

impl BreakerState {
    /// The names of all states, for metrics.
    pub const NAMES: [&str; 3] = ["closed", "half_open", "open"];

    /// The name that people and metrics see.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open { .. } => "open",
        }
    }
}

/// The breaker of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Breaker {
    /// Where it stands.
    pub state: BreakerState,
    /// Since when, in microseconds since the epoch.
    pub since_micros: i64,
    /// Failures in a row.
    pub failures: u32,
    /// How often it went from closed to open.
    pub opened: u64,
    /// How many attempts were probes.
    pub probes: u64,
}

impl Breaker {
    /// When the next probe is due, in microseconds since the epoch.
    pub fn next_probe_micros(&self) -> Option<i64> {
        match self.state {
            BreakerState::Open { until_micros } => Some(until_micros),
            _ => None,
        }
    }

    fn enter(&mut self, state: BreakerState, now_micros: i64) -> bool {
        let changed = self.state != state;
        if changed {
            self.since_micros = now_micros;
            self.state = state;
        }
        changed
    }
}

/// The breakers of a query.
#[derive(Debug, Clone, Default)]
pub struct Breakers {
    parts: BTreeMap<Part, Breaker>,
}

impl Breakers {
    /// All closed.
    pub fn new(parts: impl IntoIterator<Item = Part>, now_micros: i64) -> Self {
        let closed = Breaker { since_micros: now_micros, ..Breaker::default() };
        Self { parts: parts.into_iter().map(|part| (part, closed)).collect() }
    }

    /// Each part with its breaker.
    pub fn iter(&self) -> impl Iterator<Item = (&Part, &Breaker)> {
        self.parts.iter()
    }

    /// The breaker of a part.
    pub fn get(&self, part: &Part) -> Breaker {
        self.parts.get(part).copied().unwrap_or_default()
    }

    /// How long nothing may be tried; `None`: an attempt may be made.
    pub fn wait(&self, now_micros: i64) -> Option<Duration> {
        let until = self.parts.values().filter_map(Breaker::next_probe_micros).max()?;
        Some(Duration::from_micros(until.saturating_sub(now_micros).max(0).unsigned_abs()))
            .filter(|wait| !wait.is_zero())
    }

    /// The wait is over: the next attempt is the probe. Gives the parts that it probes.
    pub fn probe(&mut self, now_micros: i64) -> Vec<Part> {
        let due =
            self.parts.iter_mut().filter(|(_, breaker)| breaker.next_probe_micros().is_some_and(|at| at <= now_micros));
        let probed = due.map(|(part, breaker)| {
            breaker.probes += 1;
            breaker.enter(BreakerState::HalfOpen, now_micros);
            part.clone()
        });
        probed.collect()
    }

    /// An attempt failed because of this part; its breaker opens for so long, where [`decide`](crate::policy::decide) says so. The other
    /// parts are as they were: they were perhaps not even asked.
    pub fn failed(&mut self, part: &Part, now_micros: i64, open_for: Option<Duration>) {
        let breaker = self.parts.entry(part.clone()).or_default();
        breaker.failures = breaker.failures.saturating_add(1);
        if let Some(open_for) = open_for {
            breaker.opened += u64::from(breaker.state == BreakerState::Closed);
            let wait = i64::try_from(open_for.as_micros()).unwrap_or(i64::MAX);
            breaker.enter(BreakerState::Open { until_micros: now_micros.saturating_add(wait) }, now_micros);
        }
    }

    /// An attempt asked these parts, and they did what they should. Gives those that had failed before, and whether their breakers closed by this.
    pub fn succeeded(&mut self, asked: impl Fn(&Part) -> bool, now_micros: i64) -> Vec<(Part, bool)> {
        let mut better = Vec::new();
        for (part, breaker) in self.parts.iter_mut().filter(|(part, _)| asked(part)) {
            if std::mem::take(&mut breaker.failures) > 0 {
                better.push((part.clone(), breaker.enter(BreakerState::Closed, now_micros)));
            }
        }
        better
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HumanDuration;
    use crate::error::{Error, class};
    use crate::on_error::OnError;
    use crate::policy::{Action, BreakerPolicy, Policies, RetryPolicy, decide};

    const OPEN_FOR: Duration = Duration::from_micros(10);

    /// A connection to the part is refused, and the policy decides. Whether the breaker is open now.
    fn fail(breakers: &mut Breakers, part: &Part, now_micros: i64, failures: u32) -> bool {
        let policy = BreakerPolicy { failures, open_for: HumanDuration(OPEN_FOR) };
        let policies = Policies { on_error: &OnError::default(), retry: &RetryPolicy::default(), breaker: &policy };
        let error = Error::new(class::CONNECTION_REFUSED, "");
        let open_for = match decide(policies, &error, 1, &breakers.get(part), 0.5) {
            Action::OpenBreaker { wait } => Some(wait),
            _ => None,
        };
        breakers.failed(part, now_micros, open_for);
        open_for.is_some()
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Event {
        /// An attempt, if one may be made, that succeeds for all.
        Works,
        /// An attempt, if one may be made, that fails because of the sink.
        SinkFails,
        /// An attempt, if one may be made, that fails because of the source, before the sink is asked.
        SourceFails,
        /// Time passes, less than a breaker stays open.
        Little,
        /// Time passes, as long as a breaker stays open.
        Much,
    }

    const EVENTS: [Event; 5] = [Event::Works, Event::SinkFails, Event::SourceFails, Event::Little, Event::Much];

    /// What a breaker should do, in the simplest words: a list of what happened to its part since it last worked.
    #[derive(Default)]
    struct Model {
        failures: u32,
        opened_at: Option<i64>,
    }

    /// Every story of seven events, at every threshold, compared with the model.
    #[test]
    fn every_story_of_failures_goes_by_the_rules() {
        let (sink, source) = (Part::Sink, Part::source("readings"));
        for threshold in 1..=3 {
            for number in 0..EVENTS.len().pow(7) {
                let story: Vec<Event> = (0..7).map(|i| EVENTS[number / EVENTS.len().pow(i) % EVENTS.len()]).collect();
                let mut breakers = Breakers::new([sink.clone(), source.clone()], 0);
                let mut models = [(sink.clone(), Model::default()), (source.clone(), Model::default())];
                let mut now = 0;
                for event in &story {
                    let told = || format!("{story:?} at threshold {threshold}: {breakers:?}");
                    let until = |model: &Model| model.opened_at.map(|at| at + 10).filter(|until| *until > now);
                    let open = models.iter().filter_map(|(_, model)| until(model)).max();
                    let wait = open.map(|until| Duration::from_micros(until.abs_diff(now)));
                    assert_eq!(breakers.wait(now), wait, "{}", told());
                    match event {
                        Event::Little => now += 4,
                        Event::Much => now += 10,
                        // While one is open nothing is tried.
                        _ if wait.is_some() => {}
                        _ => {
                            let due: Vec<_> = breakers
                                .iter()
                                .filter(|(_, b)| b.next_probe_micros().is_some())
                                .map(|(part, _)| part.clone())
                                .collect();
                            assert_eq!(breakers.probe(now), due, "each open one is probed once");
                            assert!(breakers.probe(now).is_empty(), "and by a single attempt");
                            match event {
                                Event::Works => {
                                    breakers.succeeded(|_| true, now);
                                    models.iter_mut().for_each(|(_, model)| *model = Model::default());
                                }
                                _ => {
                                    let part = if *event == Event::SinkFails { &sink } else { &source };
                                    let model = &mut models.iter_mut().find(|(p, _)| p == part).unwrap().1;
                                    model.failures += 1;
                                    let opens = model.opened_at.is_some() || model.failures >= threshold;
                                    model.opened_at = opens.then_some(now).or(model.opened_at);
                                    assert_eq!(fail(&mut breakers, part, now, threshold), opens);
                                }
                            }
                        }
                    }
                    for (part, model) in &models {
                        let breaker = breakers.get(part);
                        assert_eq!(breaker.failures, model.failures, "{part} in {story:?}");
                        match (model.opened_at, breaker.state) {
                            (None, BreakerState::Closed) => {}
                            (Some(at), BreakerState::Open { until_micros }) => assert_eq!(until_micros, at + 10),
                            // It was probed, and what it did is not known, because the other part failed first.
                            (Some(at), BreakerState::HalfOpen) => assert!(at + 10 <= now),
                            other => panic!("{part} in {story:?}: {other:?}"),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_breaker_tells_since_when_it_is_as_it_is_and_how_often_it_opened() {
        let mut breakers = Breakers::new([Part::Sink], 5);
        assert!(!fail(&mut breakers, &Part::Sink, 6, 2));
        assert_eq!(breakers.get(&Part::Sink).since_micros, 5);
        assert!(fail(&mut breakers, &Part::Sink, 7, 2));
        breakers.probe(17);
        assert!(fail(&mut breakers, &Part::Sink, 18, 2), "a probe that fails opens it again");
        let expected = Breaker {
            state: BreakerState::Open { until_micros: 28 },
            since_micros: 18,
            failures: 3,
            opened: 1,
            probes: 1,
        };
        assert_eq!(breakers.get(&Part::Sink), expected);
        breakers.probe(28);
        assert!(breakers.succeeded(|part| *part != Part::Sink, 29).is_empty());
        assert_eq!(breakers.succeeded(|_| true, 30), [(Part::Sink, true)]);
        assert_eq!(breakers.get(&Part::Sink).since_micros, 30);
    }
}
