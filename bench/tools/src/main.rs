//! What the benchmarks need beside the program itself: a batch query to compare with, and a topic full of records.
//!
//! ```text
//! perennial-bench datafusion-batch                              the main job as a batch query (its task is in the environment)
//! perennial-bench kafka-load BROKERS TOPIC PARTITIONS DIRECTORY makes a topic with the lines of the files in it
//! perennial-bench kafka-delete BROKERS TOPIC                    deletes it
//! ```

mod batch;
mod topic;

use std::process::ExitCode;

/// The program's own, so that what is compared differs in nothing else.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Any error; a benchmark stops at the first.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["datafusion-batch"] => batch::run().await,
        ["kafka-load", brokers, name, partitions, directory] => topic::load(brokers, name, partitions, directory).await,
        ["kafka-delete", brokers, name] => topic::delete(brokers, name).await,
        _ => Err("usage: perennial-bench datafusion-batch | kafka-load BROKERS TOPIC PARTITIONS DIRECTORY | kafka-delete BROKERS TOPIC".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
