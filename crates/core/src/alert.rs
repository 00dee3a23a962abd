//! Alerts: what is worth waking a person for, decided by the process itself.
//!
//! A rule looks at a copy of the status board and says for what it holds now; [`Alerts`] is a pure machine over time that turns this into
//! messages: a rule must hold for a while before it fires, it is told once and then reminded of rarely, and it is resolved only when it has
//! been gone for a while, so that nothing that comes and goes makes a storm. The same rules are given to Prometheus as expressions over the
//! metrics, which are made from the same board.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::breaker::{BreakerState, Part};
use crate::progress::QueryState;
use crate::status::{QueryStatus, Status};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
}

impl Severity {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Pairs of a label and its value.
pub type Labels = Vec<(&'static str, String)>;

/// For what a rule holds, and how much.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// For what: pairs of a label and its value, as the metric of the rule has them.
    pub labels: Labels,
    /// The value that was compared.
    pub value: f64,
    /// What it is, for people.
    pub what: String,
}

/// A rule.
pub struct Rule {
    /// Its name in the job file.
    pub name: &'static str,
    /// Its name as an alert.
    pub alert: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub summary: &'static str,
    /// The limit, unless the job file has another.
    pub threshold: f64,
    /// For so long it must hold, unless the job file says otherwise.
    pub hold: Duration,
    /// The metric that is compared with the limit, in the language of Prometheus.
    pub metric: &'static str,
    /// How it is compared.
    pub comparison: &'static str,
    /// What holds now, at this limit.
    find: fn(&Status, f64) -> Vec<Finding>,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Rule").field(&self.name).finish()
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// All rules.
pub static RULES: &[Rule] = &[
    Rule {
        name: "error_rate",
        alert: "PerennialErrorRate",
        severity: Severity::Warning,
        summary: "More errors than usual",
        threshold: 5.0,
        hold: Duration::ZERO,
        metric: "perennial_errors_in_window",
        comparison: ">",
        find: |status, limit| {
            let errors = status.errors_in_window() as f64;
            let what = format!("{errors} errors within {} seconds", status.error_window.as_secs());
            above(errors, limit, vec![], what).into_iter().collect()
        },
    },
    Rule {
        name: "stale",
        alert: "PerennialStale",
        severity: Severity::Critical,
        summary: "No batch although input waits",
        threshold: 300.0,
        hold: Duration::ZERO,
        metric: "perennial_seconds_without_commit",
        comparison: ">",
        find: |status, limit| {
            each(status, |name, query| {
                let seconds = status.seconds_without_commit(query);
                above(
                    seconds,
                    limit,
                    query_label(name),
                    format!("{name} has committed nothing for {seconds:.0} seconds"),
                )
            })
        },
    },
    Rule {
        name: "lag",
        alert: "PerennialLag",
        severity: Severity::Warning,
        summary: "Much waits in a source",
        threshold: 1_000_000.0,
        hold: SECOND.saturating_mul(300),
        metric: "perennial_lag_records",
        comparison: ">",
        find: |status, limit| {
            of_sources(status, |name, source, query| {
                let records = query.lag.get(source)?.records? as f64;
                let what = format!("{records} records of {source} wait for {name}");
                above(records, limit, source_labels(name, source), what)
            })
        },
    },
    Rule {
        name: "lag_growing",
        alert: "PerennialLagGrowing",
        severity: Severity::Warning,
        summary: "More comes in than goes out",
        threshold: 0.0,
        hold: SECOND.saturating_mul(300),
        metric: "perennial_lag_growing",
        comparison: ">",
        find: |status, limit| {
            of_sources(status, |name, source, query| {
                let grows = f64::from(query.lag_trend.get(source)?.grows(status.now_micros));
                above(grows, limit, source_labels(name, source), format!("{name} falls behind {source}"))
            })
        },
    },
    Rule {
        name: "failed_batches",
        alert: "PerennialFailedBatches",
        severity: Severity::Critical,
        summary: "A batch fails again and again",
        threshold: 3.0,
        hold: Duration::ZERO,
        metric: "perennial_failures_in_a_row",
        comparison: ">",
        find: |status, limit| {
            each(status, |name, query| {
                let what = format!("{name} failed {} times in a row{}", query.failures_in_a_row, last_error(query));
                above(f64::from(query.failures_in_a_row), limit, query_label(name), what)
            })
        },
    },
    Rule {
        name: "query_failed",
        alert: "PerennialQueryFailed",
        severity: Severity::Critical,
        summary: "A query stopped because of an error",
        threshold: 0.0,
        hold: Duration::ZERO,
        metric: "perennial_query_state{state=\"failed\"}",
        comparison: ">",
        find: |status, limit| {
            each(status, |name, query| {
                let failed = f64::from(query.state == QueryState::Failed);
                above(failed, limit, query_label(name), format!("{name} stopped{}", last_error(query)))
            })
        },
    },
    Rule {
        name: "checkpoint_failures",
        alert: "PerennialCheckpointFailures",
        severity: Severity::Critical,
        summary: "Checkpoint or dead letters cannot be written",
        threshold: 0.0,
        hold: Duration::ZERO,
        metric: "perennial_breaker_failures{part=\"storage\"}",
        comparison: ">",
        find: |status, limit| {
            each(status, |name, query| {
                let failures = query.breakers.get(&Part::Storage)?.failures;
                let labels = vec![("part", Part::Storage.to_string()), ("query", name.to_owned())];
                let what = format!("the storage of {name} failed {failures} times in a row{}", last_error(query));
                above(f64::from(failures), limit, labels, what)
            })
        },
    },
    Rule {
        name: "checkpoint_size",
        alert: "PerennialCheckpointSize",
        severity: Severity::Warning,
        summary: "A batch writes much to the checkpoint",
        threshold: 1e9,
        hold: SECOND.saturating_mul(60),
        metric: "perennial_last_checkpoint_bytes",
        comparison: ">",
        find: |status, limit| {
            each(status, |name, query| {
                let bytes = query.last_checkpoint_bytes as f64;
                above(bytes, limit, query_label(name), format!("the last batch of {name} wrote {bytes} bytes"))
            })
        },
    },
    Rule {
        name: "state_near_limit",
        alert: "PerennialStateNearLimit",
        severity: Severity::Critical,
        summary: "State and batches near the memory limit",
        threshold: 0.9,
        hold: SECOND.saturating_mul(60),
        metric: "perennial_memory_bytes / perennial_memory_limit_bytes",
        comparison: ">",
        find: |status, limit| {
            let share = status.memory_limit.map(|all| status.memory_bytes as f64 / all.max(1) as f64);
            let found = share
                .and_then(|share| above(share, limit, vec![], format!("{:.0}% of the memory is used", share * 100.0)));
            found.into_iter().collect()
        },
    },
    Rule {
        name: "breaker_open",
        alert: "PerennialBreakerOpen",
        severity: Severity::Critical,
        summary: "A circuit breaker is open",
        threshold: 0.0,
        hold: Duration::ZERO,
        metric: "sum without (state) (perennial_breaker_state{state!=\"closed\"})",
        comparison: ">",
        find: |status, limit| {
            let queries = status.queries.iter();
            let parts = queries.flat_map(|(name, query)| query.breakers.iter().map(move |found| (name, query, found)));
            let found = parts.filter_map(|(name, query, (part, breaker))| {
                let labels = vec![("part", part.to_string()), ("query", name.clone())];
                let what =
                    format!("the circuit breaker of {name}: {part} is {}{}", breaker.state.name(), last_error(query));
                above(f64::from(breaker.state != BreakerState::Closed), limit, labels, what)
            });
            found.collect()
        },
    },
    Rule {
        name: "disk_nearly_full",
        alert: "PerennialDiskNearlyFull",
        severity: Severity::Critical,
        summary: "A disk is nearly full",
        threshold: 0.1,
        hold: SECOND.saturating_mul(60),
        metric: "perennial_disk_free_ratio",
        comparison: "<",
        find: |status, limit| {
            let full = status.disks.iter().filter(|(_, free)| *free < limit);
            full.map(|(disk, free)| Finding {
                labels: vec![("disk", disk.clone())],
                value: *free,
                what: format!("{:.1}% of the disk of {disk} is free", free * 100.0),
            })
            .collect()
        },
    },
    Rule {
        name: "conservation_broken",
        alert: "PerennialConservationBroken",
        severity: Severity::Critical,
        summary: "The counts of a batch do not add up",
        threshold: 0.0,
        hold: Duration::ZERO,
        metric: "perennial_unaccounted_batches_total",
        comparison: ">",
        find: |status, limit| {
            each(status, |name, query| {
                let batches = query.unaccounted_batches as f64;
                above(
                    batches,
                    limit,
                    query_label(name),
                    format!("{batches} batches of {name} do not add up: report this"),
                )
            })
        },
    },
];

fn above(value: f64, limit: f64, labels: Labels, what: String) -> Option<Finding> {
    (value > limit).then_some(Finding { labels, value, what })
}

fn each(status: &Status, find: impl Fn(&str, &QueryStatus) -> Option<Finding>) -> Vec<Finding> {
    status.queries.iter().filter_map(|(name, query)| find(name, query)).collect()
}

fn of_sources(status: &Status, find: impl Fn(&str, &str, &QueryStatus) -> Option<Finding>) -> Vec<Finding> {
    let queries = status.queries.iter();
    let sources = queries.flat_map(|(name, query)| query.lag.keys().map(move |source| (name, source, query)));
    sources.filter_map(|(name, source, query)| find(name, source, query)).collect()
}

fn query_label(query: &str) -> Labels {
    vec![("query", query.to_owned())]
}

fn source_labels(query: &str, source: &str) -> Labels {
    vec![("query", query.to_owned()), ("source", source.to_owned())]
}

fn last_error(query: &QueryStatus) -> String {
    let error = query.last_error.as_ref();
    error.map_or_else(String::new, |e| format!(": {}: {} ({})", e.class.code, e.message, e.class.recommendation))
}

/// What the job file says about a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// Whether it is looked at.
    pub enabled: bool,
    /// The limit.
    pub threshold: f64,
    /// For so long it must hold.
    pub hold: Duration,
    /// How bad it is.
    pub severity: Severity,
}

impl Rule {
    /// The settings of a rule about which the job file says nothing.
    pub fn setting(&self) -> Setting {
        Setting { enabled: true, threshold: self.threshold, hold: self.hold, severity: self.severity }
    }

    /// What holds now.
    pub fn find(&self, status: &Status, threshold: f64) -> Vec<Finding> {
        (self.find)(status, threshold)
    }
}

/// Whether an alert begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It fires, or it fires still and is told again.
    Firing,
    /// It is over.
    Resolved,
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The rule.
    pub rule: &'static str,
    /// Its name as an alert.
    pub alert: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub summary: &'static str,
    /// Whether it begins or ends.
    pub stage: Stage,
    /// For what it holds, and how much; when it is over, what was last found.
    pub finding: Finding,
    /// The limit.
    pub threshold: f64,
    /// Since when it holds, in microseconds since the epoch.
    pub since_micros: i64,
    /// When this was found out, in microseconds since the epoch.
    pub at_micros: i64,
}

/// When what is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// An alert that goes on is told again after this.
    pub repeat: Duration,
    /// An alert is over when its rule has not held for this long.
    pub resolve_after: Duration,
}

/// What fires, and what is about to.
#[derive(Debug)]
pub struct Alerts {
    rules: Vec<(&'static Rule, Setting)>,
    pace: Pace,
    known: BTreeMap<(&'static str, Labels), Known>,
}

#[derive(Debug)]
struct Known {
    since: i64,
    last: i64,
    /// When it was told last; `None` while it is only about to fire.
    told: Option<i64>,
    finding: Finding,
}

impl Alerts {
    /// Nothing fires yet.
    pub fn new(settings: impl Fn(&Rule) -> Setting, pace: Pace) -> Self {
        let rules = RULES.iter().map(|rule| (rule, settings(rule))).filter(|(_, setting)| setting.enabled);
        Self { rules: rules.collect(), pace, known: BTreeMap::new() }
    }

    /// Looks at the job as it is now, and says what is to be told.
    pub fn step(&mut self, status: &Status) -> Vec<Notice> {
        let now = status.now_micros;
        let mut notices = Vec::new();
        for (rule, setting) in &self.rules {
            for finding in rule.find(status, setting.threshold) {
                let key = (rule.name, finding.labels.clone());
                let new = Known { since: now, last: now, told: None, finding: finding.clone() };
                let known = self.known.entry(key).or_insert(new);
                (known.last, known.finding) = (now, finding);
                let due = match known.told {
                    None => elapsed(known.since, now) >= setting.hold,
                    Some(told) => elapsed(told, now) >= self.pace.repeat,
                };
                if due {
                    known.told = Some(now);
                    notices.push(notice(rule, setting, known, Stage::Firing, now));
                }
            }
            let resolve_after = self.pace.resolve_after;
            self.known.retain(|(name, _), known| {
                let gone = *name == rule.name && known.last != now;
                match known.told {
                    _ if !gone => true,
                    // What did not last for long enough was nothing.
                    None => false,
                    Some(_) if elapsed(known.last, now) < resolve_after => true,
                    Some(_) => {
                        notices.push(notice(rule, setting, known, Stage::Resolved, now));
                        false
                    }
                }
            });
        }
        notices
    }

    /// All that fires now.
    pub fn firing(&self, now_micros: i64) -> Vec<Notice> {
        let mut firing = Vec::new();
        for (rule, setting) in &self.rules {
            let told = self.known.iter().filter(|((name, _), known)| *name == rule.name && known.told.is_some());
            firing.extend(told.map(|(_, known)| notice(rule, setting, known, Stage::Firing, now_micros)));
        }
        firing
    }
}

fn elapsed(since_micros: i64, now_micros: i64) -> Duration {
    Duration::from_micros(now_micros.saturating_sub(since_micros).max(0).unsigned_abs())
}

fn notice(rule: &'static Rule, setting: &Setting, known: &Known, stage: Stage, at_micros: i64) -> Notice {
    Notice {
        rule: rule.name,
        alert: rule.alert,
        severity: setting.severity,
        summary: rule.summary,
        stage,
        finding: known.finding.clone(),
        threshold: setting.threshold,
        since_micros: known.since,
        at_micros,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::breaker::Breaker;
    use crate::checkpoint::BatchCounts;
    use crate::env::Clock;
    use crate::error::{Error, class};
    use crate::policy::Action;
    use crate::progress::Observer;
    use crate::source::Lag;
    use crate::status::StatusBoard;

    #[derive(Debug, Default)]
    struct SetClock(AtomicI64);

    #[async_trait::async_trait]
    impl Clock for SetClock {
        fn now_micros(&self) -> i64 {
            self.0.load(Ordering::Relaxed)
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }

        async fn sleep(&self, _: Duration) {}
    }

    struct World {
        clock: Arc<SetClock>,
        board: StatusBoard,
        alerts: Alerts,
    }

    impl World {
        fn new(settings: impl Fn(&Rule) -> Setting) -> Self {
            let clock = Arc::new(SetClock::default());
            let board = StatusBoard::new(clock.clone(), "job", "1.0", ["q"], SECOND * 3600);
            let pace = Pace { repeat: SECOND * 3600, resolve_after: SECOND * 60 };
            Self { clock, board, alerts: Alerts::new(settings, pace) }
        }

        /// What is told at a second: the rules that begin, and with a minus those that end.
        fn told(&mut self, second: i64) -> Vec<String> {
            self.clock.0.store(second * 1_000_000, Ordering::Relaxed);
            let notices = self.alerts.step(&self.board.snapshot());
            let sign = |notice: &Notice| if notice.stage == Stage::Resolved { "-" } else { "" };
            notices.iter().map(|notice| format!("{}{}", sign(notice), notice.rule)).collect()
        }

        fn breaker(&self, state: BreakerState) {
            self.board.breaker("q", &Part::Sink, &Breaker { state, ..Breaker::default() });
        }
    }

    const OPEN: BreakerState = BreakerState::Open { until_micros: 0 };

    fn only(name: &'static str, hold: Duration) -> impl Fn(&Rule) -> Setting {
        move |rule| Setting { enabled: rule.name == name, hold, ..rule.setting() }
    }

    #[test]
    fn an_alert_is_told_once_reminded_of_and_resolved() {
        let mut world = World::new(only("breaker_open", Duration::ZERO));
        assert!(world.told(0).is_empty());
        world.breaker(OPEN);
        assert_eq!(world.told(1), ["breaker_open"]);
        assert!(world.told(2).is_empty());
        // It flaps: that is one alert.
        for second in 3..100 {
            world.breaker(if second % 2 == 0 { OPEN } else { BreakerState::Closed });
            assert!(world.told(second).is_empty(), "second {second}");
        }
        world.breaker(BreakerState::HalfOpen);
        assert!(world.told(3600).is_empty());
        assert_eq!(world.told(3601), ["breaker_open"], "a reminder");
        world.breaker(BreakerState::Closed);
        assert!(world.told(3660).is_empty());
        assert_eq!(world.told(3661), ["-breaker_open"]);
        assert!(world.told(3662).is_empty());
        assert!(world.alerts.firing(0).is_empty());
    }

    #[test]
    fn what_does_not_last_is_not_told() {
        let mut world = World::new(only("breaker_open", SECOND * 10));
        for begin in [0, 100] {
            world.breaker(OPEN);
            assert!(world.told(begin).is_empty());
            assert!(world.told(begin + 9).is_empty());
            world.breaker(BreakerState::Closed);
            assert!(world.told(begin + 10).is_empty());
        }
        world.breaker(OPEN);
        assert!(world.told(200).is_empty());
        assert_eq!(world.told(210), ["breaker_open"]);
        assert_eq!(world.alerts.firing(0)[0].since_micros, 200_000_000);
    }

    type Cause = Box<dyn Fn(&World)>;

    /// Brings about what a rule is for; the rule alone looks.
    #[test]
    fn each_rule_finds_what_it_is_for_and_nothing_else() {
        let failed = |board: &StatusBoard, times: usize, error: fn() -> Error| {
            (0..times).for_each(|_| board.failed("q", None, &error(), Action::Stop));
        };
        let timeout = || Error::new(class::TIMEOUT, "slow");
        let report = |counts: BatchCounts, bytes: u64| crate::status::tests::report(counts, bytes);
        // A batch, and nothing to do after it.
        let committed = move |world: &World, counts: BatchCounts, bytes: u64| {
            world.board.committed("q", &report(counts, bytes));
            world.board.state("q", QueryState::Idle);
        };
        let causes: Vec<(&str, Cause)> = vec![
            ("error_rate", Box::new(move |w| failed(&w.board, 6, timeout))),
            ("stale", Box::new(|w| w.board.state("q", QueryState::Running))),
            (
                "lag",
                Box::new(|w| w.board.lag("q", &[("s".into(), Lag { records: Some(1_000_001), partitions: vec![] })])),
            ),
            ("failed_batches", Box::new(move |w| failed(&w.board, 4, timeout))),
            ("query_failed", Box::new(|w| w.board.state("q", QueryState::Failed))),
            (
                "checkpoint_failures",
                Box::new(|w| w.board.breaker("q", &Part::Storage, &Breaker { failures: 1, ..Breaker::default() })),
            ),
            ("checkpoint_size", Box::new(move |w| committed(w, BatchCounts::default(), 2_000_000_000))),
            ("breaker_open", Box::new(|w| w.breaker(OPEN))),
            ("disk_nearly_full", Box::new(|w| w.board.set_disks(vec![("checkpoint".into(), 0.09)]))),
            ("conservation_broken", Box::new(move |w| committed(w, BatchCounts { read: 1, ..Default::default() }, 0))),
        ];
        for rule in RULES {
            for (name, cause) in &causes {
                let mut world = World::new(only(rule.name, Duration::ZERO));
                world.board.state("q", QueryState::Idle);
                world.told(0);
                cause(&world);
                world.told(1);
                world.told(400);
                let fired = world.alerts.firing(0);
                // Six failures are also more than three in a row.
                let also = rule.name == "failed_batches" && *name == "error_rate";
                let expected = rule.name == *name || also;
                assert_eq!(!fired.is_empty(), expected, "{} after what {name} is for: {fired:?}", rule.name);
            }
        }
    }
}
