//! A Kafka topic with the lines of files as its records.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::Result;

/// So many lines in a row go to one partition: event time goes on in all of them together.
const RUN: usize = 500;
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the topic and writes the lines of all files of the directory to it, in the order of the files' names.
pub async fn load(brokers: &str, name: &str, partitions: &str, directory: &str) -> Result<()> {
    let partitions: i32 = partitions.parse()?;
    let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for created in admin.create_topics([&topic], &AdminOptions::new()).await? {
        created.map_err(|(topic, code)| format!("topic {topic}: {code}"))?;
    }
    let producer: BaseProducer = client(brokers)
        .set("queue.buffering.max.messages", "200000")
        .set("linger.ms", "20")
        .set("batch.size", "1000000")
        .create()?;
    let mut files = std::fs::read_dir(directory)?.map(|file| Ok(file?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    let mut sent = 0;
    for file in files {
        for line in BufReader::with_capacity(1 << 20, File::open(file)?).split(b'\n') {
            let partition = i32::try_from(sent / RUN)? % partitions;
            send(&producer, name, partition, &line?)?;
            sent += 1;
        }
    }
    producer.flush(PATIENCE)?;
    Ok(())
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, line: &[u8]) -> Result<()> {
    let mut record = BaseRecord::<(), [u8]>::to(topic).partition(partition).payload(line);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                producer.poll(Duration::from_millis(10));
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}

/// Deletes the topic.
pub async fn delete(brokers: &str, name: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
    for deleted in admin.delete_topics(&[name], &AdminOptions::new()).await? {
        deleted.map_err(|(topic, code)| format!("topic {topic}: {code}"))?;
    }
    Ok(())
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}
