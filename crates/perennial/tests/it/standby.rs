//! Two processes for a job: one waits beside the other and takes over, whatever becomes of that one.

use std::net::TcpListener;
use std::process::Command;

use crate::s3::{bucket, with_s3};
use crate::support::{Home, Running};

/// A job that never ends by itself; `in` is its input and `out` has the records it wrote, `out.db` how many there were in each window.
fn job(checkpoint: &str) -> String {
    format!(
        "\
name: pair
sources:
  input:
    files: {{ path: in, settle: 0s, max_files_per_batch: 1 }}
    format: json
    schema: id BIGINT NOT NULL, at TIMESTAMP NOT NULL
    watermark: {{ column: at, delay: 0s }}
queries:
  copies: {{ sql: SELECT id FROM input, sink: {{ files: {{ path: out, format: json }} }} }}
  counts:
    sql: SELECT window.start AS s, count(*) AS n FROM input GROUP BY window(at, '10 seconds')
    sink: {{ sqlite: {{ path: out.db, table: counts }} }}
trigger: {{ every: 20ms }}
checkpoint: {checkpoint}
lease: 3 seconds
http: {{ listen: \"127.0.0.1:${{PORT}}\" }}
"
    )
}

/// A port that was free a moment ago.
fn port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn get(port: &str, path: &str) -> serde_json::Value {
    let address = format!("http://127.0.0.1:{port}{path}");
    let output = Command::new("curl").args(["-s", "--noproxy", "*", &address]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{address}: {error}: {output:?}"))
}

struct Pair {
    home: Home,
    on_s3: bool,
    given: u64,
}

impl Pair {
    fn new(checkpoint: &str) -> Self {
        Self { home: Home::new(&job(checkpoint)), on_s3: checkpoint.starts_with("s3:"), given: 0 }
    }

    fn start(&self, arguments: &[&str], port: &str) -> Running {
        let mut command = self.home.command(&[&["run", "job.yaml"], arguments].concat());
        command.env("PORT", port);
        if self.on_s3 {
            with_s3(&mut command);
        }
        Running::start(command)
    }

    /// One more file, and both queries have it.
    fn give(&mut self, process: &mut Running) {
        self.home.give(self.given..self.given + 10);
        self.given += 10;
        let (mut copies, mut counts) = (false, false);
        process.wait_for("a batch of both queries", |line| {
            let batch = line.contains("batch committed") && line.contains("read=10");
            copies |= batch && line.contains("copies");
            counts |= batch && line.contains("counts");
            copies && counts
        });
    }

    /// Everything arrived once, after one more process has done what was left to do.
    fn assert_exact(&self) {
        let (code, log) = self.start(&["--available-now"], &port()).end();
        assert_eq!(code, 0, "{log}");
        assert_eq!(self.home.results("id"), (0..self.given).collect::<Vec<_>>());
        let database = rusqlite::Connection::open(self.home.path("out.db")).unwrap();
        let mut statement = database.prepare("SELECT n FROM counts ORDER BY s").unwrap();
        let counts: Vec<i64> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        // The last window is open.
        assert_eq!(counts, vec![10; self.given as usize / 10 - 1]);
    }

    /// One process runs, the other waits; something becomes of the first, and the second takes over.
    fn change_hands(mut self, becomes: impl FnOnce(&Running)) -> (Self, Running, Running) {
        let (first, second) = (port(), port());
        let mut active = self.start(&[], &first);
        self.give(&mut active);
        let mut standby = self.start(&["--standby"], &second);
        standby.wait_for_text("stands by");
        let health = get(&second, "/health");
        assert_eq!((&health["role"], &health["status"]), (&"standby".into(), &"healthy".into()), "{health}");
        assert_eq!(get(&first, "/health")["role"], "active");
        self.give(&mut active);
        becomes(&active);
        standby.wait_for_text("takes over");
        self.give(&mut standby);
        self.give(&mut standby);
        assert_eq!(get(&second, "/health")["role"], "active");
        (self, active, standby)
    }
}

fn stop(process: Running) {
    process.signal("TERM");
    let (code, log) = process.end();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn who_dies_is_replaced() {
    let (pair, active, standby) = Pair::new("checkpoint").change_hands(|active| active.signal("KILL"));
    assert_eq!(active.end().0, -1);
    stop(standby);
    pair.assert_exact();
}

#[test]
fn who_is_stopped_is_replaced() {
    let (pair, active, standby) = Pair::new("checkpoint").change_hands(|active| active.signal("TERM"));
    assert_eq!(active.end().0, 0);
    stop(standby);
    pair.assert_exact();
}

/// A process that stood still and wakes up again, when its place has been taken, writes nothing more and ends.
fn who_stands_still_is_replaced_and_shut_out(checkpoint: &str) {
    let (mut pair, active, mut standby) = Pair::new(checkpoint).change_hands(|active| active.signal("STOP"));
    active.signal("CONT");
    let (code, log) = active.end();
    assert_eq!(code, 1, "{log}");
    // It sees the other one's epoch in a query's checkpoint, or its term, whichever it looks at first.
    assert!(log.contains("another process took"), "{log}");
    pair.give(&mut standby);
    stop(standby);
    pair.assert_exact();
}

#[test]
fn who_stands_still_on_a_local_disk_is_replaced_and_shut_out() {
    who_stands_still_is_replaced_and_shut_out("checkpoint");
}

#[test]
#[ignore = "needs S3: run make test"]
fn who_stands_still_on_s3_is_replaced_and_shut_out() {
    who_stands_still_is_replaced_and_shut_out(&format!("s3://{}/checkpoint", bucket("standby")));
}

/// Nobody runs the job: whoever stands by does, and one that waits can be told to end.
#[test]
fn who_waits_for_nobody_runs_and_who_waits_can_be_stopped() {
    let mut pair = Pair::new("checkpoint");
    let mut first = pair.start(&["--standby"], &port());
    pair.give(&mut first);
    let mut second = pair.start(&["--standby"], &port());
    second.wait_for_text("stands by");
    stop(second);
    pair.give(&mut first);
    stop(first);
    pair.assert_exact();
}
