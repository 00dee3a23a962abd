//! What it means for a sink when its query goes back: it keeps the rows of the batches after that.

use perennial_connectors::registry::SinkConfig;
use perennial_core::checkpoint::Look;
use perennial_core::sink::OutputMode;

use super::place::Place;

/// How a query goes back.
pub struct Back {
    job: String,
    query: String,
    id: String,
    to: u64,
    /// The last batch that the sink may have, where that is known.
    last: Option<u64>,
    keep_ranges: bool,
}

impl Back {
    /// Goes back to batch `to`.
    pub fn new(place: &Place, look: &Look, to: u64, last: Option<u64>, keep_ranges: bool) -> Self {
        let metadata = look.metadata.good().or(look.metadata_copy.good());
        let owner = metadata.and_then(|metadata| metadata.owner.clone());
        let (job, query) = owner.unwrap_or_else(|| (place.job_name().unwrap_or("JOB").to_owned(), look.query.clone()));
        let id = metadata.map_or_else(|| "ID".to_owned(), |metadata| metadata.id.clone());
        Self { job, query, id, to, last, keep_ranges }
    }

    fn batches(&self) -> String {
        match self.last {
            Some(last) if last == self.to + 1 => format!("batch {last}"),
            Some(last) => format!("batches {} to {last}", self.to + 1),
            None => format!("batches after {}", self.to),
        }
    }

    /// Removes the batches from the ledger of an SQL sink.
    fn ledger_sql(&self, ledger: &str) -> String {
        let text = |value: &str| format!("'{}'", value.replace('\'', "''"));
        format!(
            "DELETE FROM {ledger} WHERE job = {} AND query = {} AND query_id = {} AND batch > {}",
            text(&self.job),
            text(&self.query),
            text(&self.id),
            self.to
        )
    }

    /// The names of files of a batch begin with this.
    fn file_pattern(&self, batch: u64) -> String {
        format!("part-{batch:020}-{}.*", self.id.chars().take(8).collect::<String>())
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What it means, line by line. Without the sink: for each kind.
pub fn meaning(sink: Option<(&SinkConfig, OutputMode)>, back: &Back) -> Vec<String> {
    match sink {
        Some((SinkConfig::Sqlite(sink), mode)) => {
            let sql = back.ledger_sql(&quoted(&sink.ledger_table));
            let command = format!("sqlite3 {} {}", shell(&sink.path), shell(&sql));
            table("sqlite", &sink.table, &command, mode, back)
        }
        Some((SinkConfig::Postgres(sink), mode)) => {
            let ledger: Vec<String> = sink.ledger_table.split('.').map(|part| quoted(part.trim_matches('"'))).collect();
            table("postgres", &sink.table, &back.ledger_sql(&ledger.join(".")), mode, back)
        }
        Some((SinkConfig::Files(sink), _)) => files(&sink.path, back),
        Some((SinkConfig::InfluxDb(_), _)) => vec![format!(
            "the influxdb sink: the points of {} are there; points with the same tags and time are overwritten when they come again, so nothing has \
             to be done",
            back.batches()
        )],
        Some((SinkConfig::Console(_), _)) => {
            vec![format!("the console sink: {} are printed again", back.batches())]
        }
        #[allow(unreachable_patterns, reason = "sinks to come")]
        Some((other, _)) => vec![format!("the {} sink: {}", other.name(), general(back))],
        None => vec![
            format!(
                "without the job file it is not known which sink has {}; name the job file to be told what to do",
                back.batches()
            ),
            format!("  sqlite, postgres: {}", general(back)),
            "  files: the files of these batches stay until the batches of the same numbers replace them".to_owned(),
            "  influxdb: points with the same tags and time are overwritten".to_owned(),
            "  console: they are printed again".to_owned(),
        ],
    }
}

fn general(back: &Back) -> String {
    match back.keep_ranges {
        true => "the same batches come again; a sink that knows its batches leaves them out, one that only appends has their rows twice".to_owned(),
        false => format!(
            "it keeps the rows of {}; a sink that knows its batches leaves out what comes under these numbers until its ledger forgets them ({}), \
             and rows that it keeps come a second time",
            back.batches(),
            back.ledger_sql("LEDGER")
        ),
    }
}

fn table(kind: &str, table: &str, forget: &str, mode: OutputMode, back: &Back) -> Vec<String> {
    let batches = back.batches();
    if back.keep_ranges {
        return vec![format!(
            "the {kind} sink: {batches} are in the ledger of {table}, so they are left out when they come again: nothing is doubled, nothing has \
             to be done"
        )];
    }
    let rows = match mode {
        OutputMode::Append => format!(
            "  2. remove their rows from {table}: they come again. The table does not know which batch a row is of; where that cannot be told \
             from the rows, go back with --keep-ranges instead"
        ),
        OutputMode::Update => format!("  2. nothing else: rows of {table} are replaced by key when they come again"),
        OutputMode::Complete => format!("  2. nothing else: the next batch replaces {table} as a whole"),
    };
    vec![
        format!(
            "the {kind} sink: {batches} are in the ledger of {table}. Other records come under these numbers now, and the sink would leave them \
             out. Before the query starts:"
        ),
        format!("  1. make the ledger forget them: {forget}"),
        rows,
    ]
}

fn files(path: &str, back: &Back) -> Vec<String> {
    let batches = back.batches();
    if back.keep_ranges {
        return vec![format!(
            "the files sink: the files of {batches} are replaced by the same ones: nothing is doubled, nothing has to be done"
        )];
    }
    let mut lines = vec![format!(
        "the files sink: the files of {batches} stay in {path}, and their records come again in other files. Before the query starts, remove them:"
    )];
    const LISTED: u64 = 50;
    let count = back.last.map(|last| last - back.to);
    match (back.last, count) {
        (Some(last), Some(count)) if count <= LISTED && !path.contains("://") => {
            let names: Vec<String> =
                (back.to + 1..=last).map(|batch| format!("-name {}", shell(&back.file_pattern(batch)))).collect();
            lines.push(format!("  find {} \\( {} \\) -delete", shell(path), names.join(" -o ")));
        }
        _ => lines
            .push(format!("  all that are called {} or have a greater number there", back.file_pattern(back.to + 1))),
    }
    lines
}

/// A word for a shell.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
