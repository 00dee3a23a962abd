//! What the supervisor does about an error: a pure decision.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::breaker::{Breaker, BreakerState};
use crate::config::HumanDuration;
use crate::error::{Error, ErrorClass, class};
use crate::on_error::{OnError, Reaction, usual};

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
    /// Wait until a person resumes the query.
    Pause,
    /// Stop the query (not the process).
    Stop,
}

impl Action {
    /// What people read in logs and dead letters.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Retry { .. } => "Retry the batch",
            Self::OpenBreaker { .. } => "Wait, then probe",
            Self::Pause => "Wait for a person",
            Self::Stop => "Stop the query",
        }
    }
}

/// What happens by default when an error of a class comes up, for people who read the catalogue.
pub fn default_action(class: &'static ErrorClass) -> &'static str {
    if [class::MALFORMED_RECORD, class::EXPECTATION_FAILED].contains(&class) {
        return "The record goes to the dead letters, and the batch goes on";
    }
    if class == class::LATE_RECORD {
        return "The record is left out and counted, or goes to the dead letters where the query says so, and the batch goes on";
    }
    match usual(class) {
        Reaction::Retry(_) => {
            "The batch is tried again with growing waits, then behind the circuit breaker, until it works"
        }
        Reaction::Isolate => {
            "The rows that are refused go to the dead letters, and the rest of the batch is written, where the sink can tell them and the query has no state; else the query stops"
        }
        Reaction::DeadLetterBatch => "All rows of the batch go to the dead letters",
        Reaction::Pause => "The query waits for a person",
        Reaction::Stop => "The query stops; the other queries of the job go on",
    }
}

/// What an error is decided by.
#[derive(Debug, Clone, Copy)]
pub struct Policies<'a> {
    /// What is done about which class.
    pub on_error: &'a OnError,
    /// How fast a batch is tried again where the class has no policy of its own.
    pub retry: &'a RetryPolicy,
    /// When to stop knocking.
    pub breaker: &'a BreakerPolicy,
}

/// Decides. `attempts` are the failures of this batch in a row, this one included; `breaker` is that of the part that failed, as it was
/// before; `random` is uniform in 0..1. An error that the batch itself could not be rid of (no single row was at fault, nothing could be
/// dead-lettered) stops the query.
pub fn decide(policies: Policies<'_>, error: &Error, attempts: u32, breaker: &Breaker, random: f64) -> Action {
    let retry = match policies.on_error.reaction(error.class()) {
        Reaction::Retry(own) => own.unwrap_or(*policies.retry),
        Reaction::Pause => return Action::Pause,
        Reaction::Isolate | Reaction::DeadLetterBatch | Reaction::Stop => return Action::Stop,
    };
    let probed = breaker.state != BreakerState::Closed;
    if probed || breaker.failures.saturating_add(1) >= threshold(policies, &retry, error) {
        let wait = policies.breaker.open_for.0.max(error.retry_hint().unwrap_or_default());
        return Action::OpenBreaker { wait };
    }
    let exponential =
        retry.initial.0.as_secs_f64() * retry.factor.max(1.0).powi(attempts.saturating_sub(1).min(64) as i32);
    let base = exponential.min(retry.max.0.as_secs_f64());
    let spread = 1.0 + retry.jitter.clamp(0.0, 1.0) * (2.0 * random - 1.0);
    let wait = Duration::from_secs_f64((base * spread).clamp(0.0, retry.max.0.as_secs_f64()));
    Action::Retry { after: wait.max(error.retry_hint().unwrap_or_default()) }
}

/// So many failures in a row open the breaker. Credentials that are refused are not tried in quick succession: servers lock accounts for that.
fn threshold(policies: Policies<'_>, retry: &RetryPolicy, error: &Error) -> u32 {
    match [class::AUTHENTICATION_FAILED, class::STORAGE_AUTHENTICATION_FAILED].contains(&error.class()) {
        true => 1,
        false => policies.breaker.failures.min(retry.max_attempts).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide_by(retry: &RetryPolicy, breaker: &BreakerPolicy, error: &Error, attempts: u32, random: f64) -> Action {
        let before = Breaker { failures: attempts - 1, ..Breaker::default() };
        decide(Policies { on_error: &OnError::default(), retry, breaker }, error, attempts, &before, random)
    }

    fn act(error: Error, attempts: u32) -> Action {
        decide_by(&RetryPolicy::default(), &BreakerPolicy::default(), &error, attempts, 0.5)
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
            assert_eq!(act(Error::new(class::TARGET_MISSING, ""), attempts), Action::OpenBreaker { wait });
        }
    }

    #[test]
    fn credentials_that_are_refused_are_not_tried_again_at_once() {
        let wait = Duration::from_secs(30);
        assert_eq!(act(Error::new(class::AUTHENTICATION_FAILED, ""), 1), Action::OpenBreaker { wait });
    }

    #[test]
    fn a_probe_that_fails_opens_the_breaker_again_whatever_the_number() {
        let policies = Policies {
            on_error: &OnError::default(),
            retry: &RetryPolicy::default(),
            breaker: &BreakerPolicy::default(),
        };
        let before = Breaker { state: BreakerState::HalfOpen, failures: 1, ..Breaker::default() };
        let action = decide(policies, &Error::new(class::TIMEOUT, ""), 1, &before, 0.5);
        assert_eq!(action, Action::OpenBreaker { wait: Duration::from_secs(30) });
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
        let at = |random, attempts| match decide_by(
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
        assert_eq!(decide_by(&lax, &breaker, &error, 50, 1.0), Action::Retry { after: Duration::from_secs(60) });
    }
}
