//! Writes the events of the Nexmark benchmark as JSON lines: `nexmark-events EVENTS FILES DIRECTORY [SEED]`.
//!
//! The directory gets `bid`, `auction` and `person`, each with as many files. File N of each covers the same stretch of event time,
//! so that a job that takes a file of each per batch sees the streams side by side. The same arguments give the same bytes.
//!
//! Event time goes on by a millisecond from event to event, and starts on 2026-01-01T00:00:00Z.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use nexmark::EventGenerator;
use nexmark::config::NexmarkConfig;
use nexmark::event::Event;

const START_MILLIS: u64 = 1_767_225_600_000;
const EVENTS_PER_SECOND: usize = 1000;
/// Ids of events decide on everything in them but the time. Seeds are this many events apart, a multiple of the 50 after
/// which the mix of persons, auctions and bids repeats.
const EVENTS_PER_SEED: usize = 1_000_000_000;
const KINDS: [&str; 3] = ["bid", "auction", "person"];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [events, files, directory] => write(events, files, directory, "0"),
        [events, files, directory, seed] => write(events, files, directory, seed),
        _ => Err("usage: nexmark-events EVENTS FILES DIRECTORY [SEED]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(events: &str, files: &str, directory: &str, seed: &str) -> Result<()> {
    let (events, files): (usize, usize) = (events.parse()?, files.parse()?);
    if files == 0 {
        return Err("there is at least one file".into());
    }
    let mut generator = EventGenerator::new(NexmarkConfig {
        base_time: START_MILLIS,
        first_rate: EVENTS_PER_SECOND,
        next_rate: EVENTS_PER_SECOND,
        first_event_id: seed.parse::<usize>()? * EVENTS_PER_SEED,
        ..NexmarkConfig::default()
    });
    for kind in KINDS {
        std::fs::create_dir_all(Path::new(directory).join(kind))?;
    }
    for file in 0..files {
        let open =
            |kind| File::create(Path::new(directory).join(kind).join(format!("{file:04}.json"))).map(BufWriter::new);
        let [mut bids, mut auctions, mut persons] = [open(KINDS[0])?, open(KINDS[1])?, open(KINDS[2])?];
        for event in generator.by_ref().take(events * (file + 1) / files - events * file / files) {
            match &event {
                Event::Bid(_) => write_line(&mut bids, &event)?,
                Event::Auction(_) => write_line(&mut auctions, &event)?,
                Event::Person(_) => write_line(&mut persons, &event)?,
            }
        }
        for mut written in [bids, auctions, persons] {
            written.flush()?;
        }
    }
    Ok(())
}

/// One event as a line of JSON. No text of the generator has a character that JSON escapes.
fn write_line(out: &mut impl Write, event: &Event) -> std::io::Result<()> {
    match event {
        Event::Bid(bid) => writeln!(
            out,
            r#"{{"auction":{},"bidder":{},"price":{},"channel":"{}","url":"{}","date_time":"{}","extra":"{}"}}"#,
            bid.auction,
            bid.bidder,
            bid.price,
            bid.channel,
            bid.url,
            Time(bid.date_time),
            bid.extra,
        ),
        Event::Auction(auction) => writeln!(
            out,
            r#"{{"id":{},"item_name":"{}","description":"{}","initial_bid":{},"reserve":{},"date_time":"{}","expires":"{}","seller":{},"category":{},"extra":"{}"}}"#,
            auction.id,
            auction.item_name,
            auction.description,
            auction.initial_bid,
            auction.reserve,
            Time(auction.date_time),
            Time(auction.expires),
            auction.seller,
            auction.category,
            auction.extra,
        ),
        Event::Person(person) => writeln!(
            out,
            r#"{{"id":{},"name":"{}","email_address":"{}","credit_card":"{}","city":"{}","state":"{}","date_time":"{}","extra":"{}"}}"#,
            person.id,
            person.name,
            person.email_address,
            person.credit_card,
            person.city,
            person.state,
            Time(person.date_time),
            person.extra,
        ),
    }
}

/// Milliseconds since 1970 as ISO text. Events lie within 2026 unless there are more than 31 billion of them.
struct Time(u64);

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const DAYS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let millis = self.0 - START_MILLIS;
        let (mut day, mut month) = (millis / 86_400_000, 0);
        while month < 11 && day >= DAYS[month] {
            day -= DAYS[month];
            month += 1;
        }
        let (hour, minute, second) = (millis / 3_600_000 % 24, millis / 60_000 % 60, millis / 1000 % 60);
        write!(f, "2026-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", month + 1, day + 1, millis % 1000)
    }
}
