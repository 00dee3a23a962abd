//! What errors of librdkafka mean.

use std::sync::{Mutex, PoisonError};

use perennial_core::error::{Error, ErrorClass, class};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::Properties;

/// What librdkafka tells while it works: its log lines go to the job's log, and its last complaint explains why a request failed.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<Complaints>);

#[derive(Debug, Default)]
struct Complaints {
    last: Option<(RDKafkaErrorCode, String)>,
    /// No broker answers, or none lets us in: waiting does not help.
    hopeless: bool,
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // Whatever matters comes as an error, too; the lines are for those who look for the why.
        tracing::debug!(target: "librdkafka", ?level, facility, "{line}");
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
        let Some(code) = error.rdkafka_error_code() else { return };
        if code == RDKafkaErrorCode::PartitionEOF {
            return; // Told as an error, and none.
        }
        let mut complaints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = matches!(classify(code, reason).code, "AuthenticationFailed" | "TlsFailed");
        complaints.hopeless |= refused || code == RDKafkaErrorCode::AllBrokersDown;
        // That all brokers are down is only the sum of what was said about each.
        if code != RDKafkaErrorCode::AllBrokersDown {
            complaints.last = Some((code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Events {}

impl Events {
    pub(crate) fn is_hopeless(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).hopeless
    }

    /// All is well again.
    pub(crate) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Complaints::default();
    }

    /// The error of a request to `brokers`; `what` says what was asked for.
    pub(crate) fn explain(&self, error: KafkaError, brokers: &str, what: &str) -> Error {
        let complaint = self.0.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        let code = match &error {
            KafkaError::AdminOp(code) => Some(*code),
            other => other.rdkafka_error_code(),
        };
        let (class, why) = match (code, complaint) {
            // That nothing came back is explained by what went wrong meanwhile.
            (Some(code), Some((cause, reason))) if is_silence(code) => (classify(cause, &reason), reason),
            (Some(code), None) if is_silence(code) => (class::TIMEOUT, "no broker answered in time".to_owned()),
            (Some(code), _) => (classify(code, &error.to_string()), error.to_string()),
            (None, _) => (class::SERVER_UNAVAILABLE, error.to_string()),
        };
        let explained = Error::new(class, format!("Kafka at {brokers}: {what}: {why}{}", advice(class)));
        // "Timed out" behind the reason for it would only be noise.
        if why == error.to_string() { explained.caused_by(error) } else { explained }
    }
}

/// Codes that only say that no answer came.
pub(super) fn is_silence(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::*;
    matches!(
        code,
        OperationTimedOut
            | TimedOutQueue
            | MessageTimedOut
            | BrokerTransportFailure
            | AllBrokersDown
            | WaitingForCoordinator
    )
}

fn advice(class: &ErrorClass) -> &'static str {
    match class.code {
        "ConnectionRefused" => "; check that the broker runs and that `brokers` names its address",
        "NameNotResolved" => "; check the host names in `brokers`",
        "SinkRejected" => "; a record must fit `message.max.bytes` in `properties` and the topic's max.message.bytes",
        "AuthenticationFailed" => "; check `sasl.mechanism`, `sasl.username` and `sasl.password` in `properties`",
        "TlsFailed" => "; check `security.protocol` and the certificates (`ssl.ca.location`) in `properties`",
        "AuthorizationFailed" => {
            "; let the job's user use the topic and its consumer group, and for writing its transactional.id"
        }
        "ConnectionLost" => "; check the network, and that `security.protocol` in `properties` is that of the listener",
        _ => "",
    }
}

/// The class of an error of librdkafka; `reason` is what it says about it.
pub fn classify(code: RDKafkaErrorCode, reason: &str) -> &'static ErrorClass {
    use RDKafkaErrorCode::*;
    match code {
        Resolve => class::NAME_NOT_RESOLVED,
        SSL => class::TLS_FAILED,
        Authentication | SaslAuthenticationFailed | UnsupportedSASLMechanism | IllegalSASLState | SecurityDisabled => {
            class::AUTHENTICATION_FAILED
        }
        TopicAuthorizationFailed
        | GroupAuthorizationFailed
        | ClusterAuthorizationFailed
        | TransactionalIdAuthorizationFailed
        | DelegationTokenAuthorizationFailed => class::AUTHORIZATION_FAILED,
        UnknownTopic | UnknownPartition | UnknownTopicOrPartition | UnknownTopicId | InvalidTopic => {
            class::TARGET_MISSING
        }
        BrokerTransportFailure | AllBrokersDown | NetworkException | BrokerDestroy | DestroyBroker => {
            // One code for all that can befall a connection; the text tells them apart.
            if reason.contains("Connection refused") {
                class::CONNECTION_REFUSED
            } else if reason.contains("Failed to resolve") {
                class::NAME_NOT_RESOLVED
            } else if ["SSL handshake", "SSL routines", "certificate"].iter().any(|part| reason.contains(part)) {
                class::TLS_FAILED
            } else if reason.contains("timed out") {
                class::TIMEOUT
            } else {
                class::CONNECTION_LOST
            }
        }
        OperationTimedOut | TimedOutQueue | MessageTimedOut | RequestTimedOut | WaitingForCoordinator => class::TIMEOUT,
        Fenced | ProducerFenced | InvalidProducerEpoch => class::FENCED,
        OffsetOutOfRange | AutoOffsetReset | NoOffset | LogTruncation => class::OFFSET_OUT_OF_RANGE,
        ThrottlingQuotaExceeded => class::THROTTLED,
        MessageSizeTooLarge | MessageBatchTooLarge | InvalidRecord | InvalidTimestamp | PolicyViolation => {
            class::SINK_REJECTED
        }
        BadMessage | InvalidMessage | BadCompression | InvalidMessageSize => class::MALFORMED_RECORD,
        InvalidArgument
        | InvalidConfig
        | UnsupportedFeature
        | NotImplemented
        | UnsupportedVersion
        | InvalidGroupId
        | InvalidReplicationFactor
        | InvalidPartitions
        | InvalidTransactionTimeout
        | UnsupportedCompressionType => class::CONFIG_INVALID,
        // Leaders move, coordinators load, disks fail: brokers that cannot answer now.
        _ => class::SERVER_UNAVAILABLE,
    }
}

/// The error of a client that cannot be made: a property is unknown or has a value that does not fit.
pub(crate) fn config_error(error: &KafkaError) -> Error {
    let message = match error {
        // The text of librdkafka quotes the value, which may be a secret.
        KafkaError::ClientConfig(_, _, key, _) if Properties::is_secret(key) => {
            format!("the property {key} has a value that does not fit")
        }
        KafkaError::ClientConfig(_, why, key, _) => format!("the property {key}: {}", why.trim()),
        other => format!("no client can be made with these properties: {other}"),
    };
    Error::new(class::CONFIG_INVALID, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_by_their_cause() {
        use RDKafkaErrorCode::*;
        for (code, reason, expected) in [
            (
                BrokerTransportFailure,
                "Connect to ipv4#127.0.0.1:1 failed: Connection refused",
                class::CONNECTION_REFUSED,
            ),
            (BrokerTransportFailure, "Failed to resolve 'nowhere:9092'", class::NAME_NOT_RESOLVED),
            (BrokerTransportFailure, "SSL handshake failed: certificate verify failed", class::TLS_FAILED),
            (BrokerTransportFailure, "Disconnected (after 3ms in state UP)", class::CONNECTION_LOST),
            (Resolve, "", class::NAME_NOT_RESOLVED),
            (Authentication, "", class::AUTHENTICATION_FAILED),
            (TopicAuthorizationFailed, "", class::AUTHORIZATION_FAILED),
            (UnknownTopicOrPartition, "", class::TARGET_MISSING),
            (OperationTimedOut, "", class::TIMEOUT),
            (NotLeaderForPartition, "", class::SERVER_UNAVAILABLE),
            (OffsetOutOfRange, "", class::OFFSET_OUT_OF_RANGE),
            (Fenced, "", class::FENCED),
            (InvalidTransactionTimeout, "", class::CONFIG_INVALID),
        ] {
            assert_eq!(classify(code, reason).code, expected.code, "{code:?} {reason}");
        }
    }

    #[test]
    fn silence_is_explained_by_the_last_complaint() {
        let events = Events::default();
        events.error(KafkaError::Global(RDKafkaErrorCode::Resolve), "Failed to resolve 'nowhere:9092'");
        events.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert!(events.is_hopeless());
        let error =
            events.explain(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut), "nowhere:9092", "listing");
        assert_eq!(error.class(), class::NAME_NOT_RESOLVED);
        assert!(error.to_string().contains("Kafka at nowhere:9092: listing: Failed to resolve"), "{error}");
        events.forget();
        let error = events.explain(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut), "b:1", "listing");
        assert_eq!(error.class(), class::TIMEOUT);
    }
}
