//! What the tests of the source and of the sink both ask a broker.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

/// Against hanging for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until no transaction is open in `topic`. The brokers answer a commit when it is decided, and tell the partitions of
/// it afterwards: a reader that comes in between does not see the records yet.
pub(crate) fn settle(brokers: &str, topic: &str) {
    let began = Instant::now();
    while is_blocked(brokers, topic) {
        assert!(began.elapsed() < LIMIT, "a transaction of {topic} stays open");
    }
}

/// Whether readers of committed records wait for the end of a transaction.
pub(crate) fn is_blocked(brokers: &str, topic: &str) -> bool {
    let ends = |isolation| {
        let reader: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", brokers).set("isolation.level", isolation).create().unwrap();
        let metadata = reader.fetch_metadata(Some(topic), LIMIT).unwrap();
        let end = |partition| reader.fetch_watermarks(topic, partition, LIMIT).unwrap().1;
        (0..metadata.topics()[0].partitions().len() as i32).map(end).collect::<Vec<_>>()
    };
    // In this order, so that a transaction that ends in between shows as one that is over.
    let all = ends("read_uncommitted");
    ends("read_committed").iter().zip(all).any(|(committed, all)| *committed < all)
}
