//! What the tests of the program share.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub const PERENNIAL: &str = env!("CARGO_BIN_EXE_perennial");

/// How long anything that a test waits for may take; far more than it does.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The address of a real server, as `scripts/services env` prints it.
pub fn server(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run `make test`, or `eval \"$(scripts/services env)\"`"))
}

/// Runs the program in a directory, to its end.
pub fn perennial(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(PERENNIAL)
        .args(arguments)
        .current_dir(directory)
        .env_remove("NO_COLOR")
        .env("HYDRO_PASSWORD", "hunter2")
        .output()
        .unwrap()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A directory with a job in it: a job file, its input, and what it makes of them.
pub struct Home(TempDir);

impl Home {
    pub fn new(job: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(home.path("in")).unwrap();
        home.write_job(job);
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write_job(&self, text: &str) {
        std::fs::write(self.path("job.yaml"), text).unwrap();
    }

    /// One more input file, with a record for each number; a second of event time lies between two.
    pub fn give(&self, numbers: Range<u64>) {
        let name = format!("in/{:06}.json", numbers.start);
        let lines: String = numbers
            .map(|n| {
                format!("{{\"id\": {n}, \"at\": \"2026-01-01T{:02}:{:02}:{:02}Z\"}}\n", n / 3600, n / 60 % 60, n % 60)
            })
            .collect();
        std::fs::write(self.path("in/.new"), lines).unwrap();
        std::fs::rename(self.path("in/.new"), self.path(&name)).unwrap();
    }

    /// `perennial` with these arguments, here.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_by(&[], arguments)
    }

    /// `perennial`, started by another program: `by` are that one's name and arguments.
    pub fn command_by(&self, by: &[&str], arguments: &[&str]) -> Command {
        let mut words = by.iter().copied().chain([PERENNIAL]).chain(arguments.iter().copied());
        let mut command = Command::new(words.next().unwrap());
        command.args(words).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// Works off what is there now.
    pub fn run(&self) -> Output {
        self.command(&["run", "--available-now", "job.yaml"]).output().unwrap()
    }

    /// A field of all rows that the job wrote to the JSON files in `out`, sorted.
    pub fn results(&self, field: &str) -> Vec<u64> {
        let mut results = Vec::new();
        for (path, content) in self.files_below("out") {
            assert!(path.extension().is_some_and(|end| end == "json"), "not a result: {}", path.display());
            for line in String::from_utf8(content).unwrap().lines() {
                let row: Value = serde_json::from_str(line).unwrap();
                results.push(row[field].as_u64().unwrap());
            }
        }
        results.sort_unstable();
        results
    }

    /// All files below a directory, hidden ones too, with their content.
    pub fn files_below(&self, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.path(name)];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => directories.push(entry.path()),
                    false => drop(files.insert(entry.path(), std::fs::read(entry.path()).unwrap())),
                }
            }
        }
        files
    }
}

/// A program that runs, and whose log is read line by line.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    log: String,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, log: String::new() }
    }

    /// Where its HTTP server is, of a program that logs in JSON and has just been started: `http://127.0.0.1:1234`.
    pub fn url(&mut self) -> String {
        let line: Value = serde_json::from_str(&self.wait_for_text("/health")).unwrap();
        line["health"].as_str().unwrap().trim_end_matches("/health").to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of the log for which this holds.
    pub fn wait_for(&mut self, what: &str, mut holds: impl FnMut(&str) -> bool) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) else {
                self.child.kill().unwrap();
                panic!("waited in vain for {what}; the log:\n{}", self.log)
            };
            self.log += &line;
            self.log.push('\n');
            if holds(&line) {
                return line;
            }
        }
    }

    /// The next line of the log that has this in it.
    pub fn wait_for_text(&mut self, text: &str) -> String {
        self.wait_for(text, |line| line.contains(text))
    }

    /// Sends a signal, by its name: `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end; the exit code and the whole log.
    pub fn end(mut self) -> (i32, String) {
        let until = Instant::now() + PATIENCE;
        // The log ends when the program does.
        while let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.log += &line;
            self.log.push('\n');
        }
        if Instant::now() > until {
            self.child.kill().unwrap();
            panic!("it does not end; the log:\n{}", self.log);
        }
        (self.child.wait().unwrap().code().unwrap_or(-1), self.log)
    }
}

/// What a running job tells over HTTP.
pub struct Watched {
    pub url: String,
    pub client: reqwest::Client,
}

impl Watched {
    pub async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path).await).unwrap()
    }

    pub async fn text(&self, path: &str) -> String {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap().text().await.unwrap()
    }

    /// The status of the answer.
    pub async fn post(&self, path: &str, token: &str) -> u16 {
        self.client.post(format!("{}{path}", self.url)).bearer_auth(token).send().await.unwrap().status().as_u16()
    }

    /// Asks until it is so.
    pub async fn until(&self, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let answer = self.json(path).await;
            if holds(&answer) {
                return answer;
            }
            assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}: {answer:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Path and body of a request over HTTP; `None` where there is none.
pub fn read_request(stream: &mut impl Read) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if path.is_empty() {
            path = line.split(' ').nth(1)?.to_owned();
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}
