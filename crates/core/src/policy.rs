//! What the supervisor does about an error: a pure decision.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::HumanDuration;
use crate::error::{Error, ErrorClass, ErrorKind, class};

/// How often and how fast a failed batch is tried again: exponential backoff with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// Attempts in a row before the circuit breaker opens.
    pub max_attempts: u32,
    /// Wait before the second attempt.
    pub initial: HumanDuration,
    /// By what each further wait is longer.
    pub factor: f64,
    /// The longest wait.
    pub max: HumanDuration,
    /// Share of the wait that is random: 0.2 spreads a wait of 10 seconds over 8 to 12 seconds.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            initial: HumanDuration(Duration::from_secs(1)),
            factor: 2.0,
            max: HumanDuration(Duration::from_secs(60)),
            jitter: 0.2,
        }
    }
}

/// When a query stops knocking at a door that stays shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerPolicy {
    /// Failures in a row that open the breaker.
    pub failures: u32,
    /// How long nothing is tried; then one attempt probes.
    pub open_for: HumanDuration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self { failures: 5, open_for: HumanDuration(Duration::from_secs(30)) }
    }
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// Run the batch again after a wait.
    Retry {
        /// The wait.
        after: Duration,
    },
    /// Leave the other side alone, then probe with one attempt.
    OpenBreaker {
        /// How long.
        wait: Duration,
    },
    /// Stop the query (not the process).
    Stop,
}

impl Action {
    /// What people read in logs and dead letters.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Retry { .. } => "Retry the batch",
            Self::OpenBreaker { .. } => "Wait, then probe",
            Self::Stop => "Stop the query",
        }
    }
}

/// Whether errors of a class can go away without a change of the job.
fn may_heal(class: &'static ErrorClass) -> bool {
    match class.kind {
        ErrorKind::Transient | ErrorKind::Throttled => true,
        ErrorKind::Config => [
            class::AUTHENTICATION_FAILED,
            class::AUTHORIZATION_FAILED,
            class::TLS_FAILED,
            class::TARGET_MISSING,
            class::STORAGE_PERMISSION_DENIED,
            class::STORAGE_AUTHENTICATION_FAILED,
        ]
        .contains(&class),
        ErrorKind::Data | ErrorKind::Schema | ErrorKind::Fenced | ErrorKind::Corrupt | ErrorKind::Bug => false,
    }
}

/// What happens by default when an error of a class comes up, for people who read the catalogue.
pub fn default_action(class: &'static ErrorClass) -> &'static str {
    if [class::MALFORMED_RECORD, class::EXPECTATION_FAILED].contains(&class) {
        return "The record goes to the dead letters, and the batch goes on";
    }
    if may_heal(class) {
        return "The batch is tried again with growing waits, then behind the circuit breaker, until it works";
    }
    "The query stops; the other queries of the job go on"
}

/// Decides. `attempts` are the failures of this batch in a row, this one included; `random` is uniform in 0..1.
///
/// What can go away by itself is tried again for ever, because a job outlives every outage; so are credentials, which are often only
/// late. What a person or another process must decide stops the query. A bug is never retried blindly.
pub fn decide(retry: &RetryPolicy, breaker: &BreakerPolicy, error: &Error, attempts: u32, random: f64) -> Action {
    if !may_heal(error.class()) {
        return Action::Stop;
    }
    if attempts >= breaker.failures.min(retry.max_attempts).max(1) {
        let wait = breaker.open_for.0.max(error.retry_hint().unwrap_or_default());
        return Action::OpenBreaker { wait };
    }
    let exponential =
        retry.initial.0.as_secs_f64() * retry.factor.max(1.0).powi(attempts.saturating_sub(1).min(64) as i32);
    let base = exponential.min(retry.max.0.as_secs_f64());
    let spread = 1.0 + retry.jitter.clamp(0.0, 1.0) * (2.0 * random - 1.0);
    let wait = Duration::from_secs_f64((base * spread).clamp(0.0, retry.max.0.as_secs_f64()));
    Action::Retry { after: wait.max(error.retry_hint().unwrap_or_default()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(error: Error, attempts: u32) -> Action {
        decide(&RetryPolicy::default(), &BreakerPolicy::default(), &error, attempts, 0.5)
    }

    #[test]
    fn outages_are_waited_out_and_never_stop_a_query() {
        for attempts in 1..5 {
            let after = Duration::from_secs(1 << (attempts - 1));
            assert_eq!(act(Error::new(class::CONNECTION_REFUSED, ""), attempts), Action::Retry { after });
        }
        for attempts in [5, 6, 1_000_000] {
            let wait = Duration::from_secs(30);
            assert_eq!(act(Error::new(class::CONNECTION_REFUSED, ""), attempts), Action::OpenBreaker { wait });
            assert_eq!(act(Error::new(class::AUTHENTICATION_FAILED, ""), attempts), Action::OpenBreaker { wait });
        }
    }

    #[test]
    fn the_servers_wish_counts() {
        let hint = Duration::from_secs(120);
        let busy = || Error::new(class::THROTTLED, "").retry_after(hint);
        assert_eq!(act(busy(), 1), Action::Retry { after: hint });
        assert_eq!(act(busy(), 9), Action::OpenBreaker { wait: hint });
    }

    #[test]
    fn what_a_person_must_decide_stops() {
        for class in
            [class::INTERNAL, class::FENCED, class::CHECKPOINT_CORRUPT, class::ANALYSIS, class::EXPRESSION_FAILED]
        {
            assert_eq!(act(Error::new(class, ""), 1), Action::Stop, "{}", class.code);
        }
    }

    #[test]
    fn the_catalogue_says_what_is_done() {
        for class in crate::error::CATALOGUE {
            let stops = act(Error::new(class, ""), 1) == Action::Stop;
            let said = default_action(class);
            assert_eq!(stops, !said.contains("tried again"), "{}: {said}", class.code);
        }
    }

    #[test]
    fn jitter_spreads_around_the_wait_and_stays_below_the_maximum() {
        let error = Error::new(class::TIMEOUT, "");
        let at = |random, attempts| match decide(
            &RetryPolicy::default(),
            &BreakerPolicy { failures: 99, ..Default::default() },
            &error,
            attempts,
            random,
        ) {
            Action::Retry { after } => after.as_secs_f64(),
            other => panic!("{other:?}"),
        };
        assert_eq!((at(0.0, 1), at(1.0, 1)), (0.8, 1.2));
        let lax = RetryPolicy { max_attempts: 99, ..Default::default() };
        let breaker = BreakerPolicy { failures: 99, ..Default::default() };
        assert_eq!(decide(&lax, &breaker, &error, 50, 1.0), Action::Retry { after: Duration::from_secs(60) });
    }
}
