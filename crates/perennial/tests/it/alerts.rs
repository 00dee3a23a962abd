//! Alerts as they arrive: at receivers of the job's own, and through Prometheus.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Home, Running, code, stdout};

const PATIENCE: Duration = Duration::from_secs(60);

/// Path and body of a request.
type Posted = (String, Vec<u8>);

/// Takes what is posted to it. Lives as long as the tests.
struct Receiver {
    port: u16,
    posted: Arc<Mutex<Vec<Posted>>>,
}

impl Receiver {
    /// Answers the first requests with these, and all others with 204.
    fn start(listener: TcpListener, first: &[u16]) -> Self {
        let port = listener.local_addr().unwrap().port();
        let posted: Arc<Mutex<Vec<Posted>>> = Arc::default();
        let (answers, seen) = (first.to_vec(), posted.clone());
        let mut answers = answers.into_iter();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if let Some(request) = take(stream.unwrap(), answers.next().unwrap_or(204)) {
                    seen.lock().unwrap().push(request);
                }
            }
        });
        Self { port, posted }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits for a body in which this holds.
    fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let bodies: Vec<Value> =
                self.posted.lock().unwrap().iter().map(|(_, body)| serde_json::from_slice(body).unwrap()).collect();
            if let Some(found) = bodies.iter().find(|body| holds(body)) {
                return found.clone();
            }
            assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}: {bodies:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Reads one request and answers it; nothing is given back of one that was refused.
fn take(stream: TcpStream, status: u16) -> Option<Posted> {
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
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    reader
        .get_mut()
        .write_all(if status == 204 { b"HTTP/1.1 204 X\r\nconnection: close\r\n\r\n" } else { answer.as_bytes() })
        .ok()?;
    (status == 204).then_some((path, body))
}

fn any_port() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A job whose sink is at a port, and the settings of its alerts.
fn job(port: u16, alerts: &str) -> String {
    format!(
        "name: alerting\nsources:\n  rows:\n    files: {{ path: ./in, settle: 0s }}\n    format: json\n    schema: id BIGINT, at TIMESTAMP\n\
         queries:\n  copy:\n    sql: SELECT id, at FROM rows\n    sink: {{ influxdb: {{ url: 'http://127.0.0.1:{port}', database: d, measurement: m, time: at, allow_overwrite: true }} }}\n\
         circuit_breaker: {{ failures: 1, open_for: 200ms }}\nhttp: {{ listen: '127.0.0.1:0' }}\n{alerts}"
    )
}

#[test]
fn receivers_are_told_when_it_begins_and_when_it_is_over() {
    // The first message is not taken, and comes again.
    let (webhook, slack) = (Receiver::start(any_port(), &[503]), Receiver::start(any_port(), &[]));
    let alertmanager = Receiver::start(any_port(), &[]);
    let port = any_port().local_addr().unwrap().port();
    let alerts = format!(
        "alerts:\n  every: 50ms\n  resolve_after: 100ms\n  rules: {{ disk_nearly_full: {{ enabled: false }} }}\n  webhooks:\n    - url: {}/secret\n      \
         headers: {{ X-Token: t }}\n    - {{ url: '{}', format: slack }}\n  alertmanager: {{ url: '{}' }}\n",
        webhook.url(),
        slack.url(),
        alertmanager.url()
    );
    let home = Home::new(&job(port, &alerts));
    home.give(0..10);
    let mut running = Running::start(home.command(&["run", "job.yaml"]));
    let has = |body: &Value, status: &str| {
        let alerts = body["alerts"].as_array().unwrap();
        alerts.iter().any(|alert| alert["rule"] == "breaker_open" && alert["status"] == status)
    };
    let firing = webhook.wait_for("the breaker that opened", |body| has(body, "firing"));
    let alert = firing["alerts"].as_array().unwrap().iter().find(|alert| alert["rule"] == "breaker_open").unwrap();
    assert_eq!((&alert["labels"]["query"], &alert["labels"]["part"]), (&"copy".into(), &"sink".into()));
    assert!(alert["description"].as_str().unwrap().contains("ConnectionRefused"), "{alert}");
    slack.wait_for("the text", |body| {
        body["text"].as_str().unwrap().contains("CRITICAL alerting: A circuit breaker is open")
    });
    let named = |body: &Value, ended: bool| {
        let alerts = body.as_array().unwrap();
        alerts.iter().any(|a| a["labels"]["alertname"] == "PerennialBreakerOpen" && a.get("endsAt").is_some() == ended)
    };
    alertmanager.wait_for("the alert", |body| named(body, false));
    assert!(alertmanager.posted.lock().unwrap().iter().all(|(path, _)| path == "/api/v2/alerts"));

    let sink = Receiver::start(TcpListener::bind(("127.0.0.1", port)).unwrap(), &[]);
    webhook.wait_for("the end", |body| has(body, "resolved"));
    slack.wait_for("the end", |body| body["text"].as_str().unwrap().contains("RESOLVED"));
    alertmanager.wait_for("the end", |body| named(body, true));
    assert!(!sink.posted.lock().unwrap().is_empty());
    running.wait_for_text("alert resolved");
    running.signal("TERM");
    let (code, log) = running.end();
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("it answered 503") && !log.contains("/secret"), "{log}");

    // And the run is in the history of the job.
    let history = home.command(&["history", "job.yaml", "--json"]).output().unwrap();
    let history: Value = serde_json::from_slice(&history.stdout).unwrap();
    let runs = history["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &runs[0]["reason"], &runs[0]["records"]), (1, &"stopped".into(), &10.into()));
    assert!(runs[0]["errors"].as_u64() > Some(0), "{history}");
}

#[test]
fn the_history_tells_why_runs_ended() {
    let home = Home::new(
        "name: runs\nsources:\n  rows:\n    files: { path: ./in, settle: 0s }\n    format: json\n    schema: id BIGINT\n\
         queries:\n  copy: { sql: SELECT id FROM rows, sink: { files: { path: ./out } } }\nhttp: { enabled: false }\n",
    );
    home.give(0..10);
    assert_eq!(code(&home.run()), 0);
    home.give(10..15);
    let mut running = Running::start(home.command(&["run", "job.yaml"]));
    running.wait_for_text("batch committed");
    running.signal("KILL");
    running.end();
    assert_eq!(code(&home.run()), 0);
    let output = home.command(&["history", "job.yaml"]).output().unwrap();
    let lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for (line, words) in lines[1..].iter().zip([["completed", "10"], ["died", "0"], ["completed", "0"]]) {
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }
}

struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn checked(directory: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

#[test]
#[ignore = "needs Prometheus: run make test"]
fn prometheus_fires_by_the_same_rules() {
    let port = any_port().local_addr().unwrap().port();
    let home = Home::new(&job(port, ""));
    home.give(0..10);
    let rules = home.command(&["alerts", "job.yaml", "--prometheus"]).output().unwrap();
    std::fs::write(home.path("rules.yml"), &rules.stdout).unwrap();
    let mut running = Running::start(home.command(&["run", "--log-format", "json", "job.yaml"]));
    let line: Value = serde_json::from_str(&running.wait_for_text("/metrics")).unwrap();
    let target =
        line["metrics"].as_str().unwrap().trim_start_matches("http://").trim_end_matches("/metrics").to_owned();
    let config = format!(
        "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms }}\nrule_files: [rules.yml]\n\
         scrape_configs: [{{ job_name: perennial, static_configs: [{{ targets: ['{target}'] }}] }}]\n"
    );
    let directory = home.path("");
    std::fs::write(home.path("prometheus.yml"), config).unwrap();
    checked(&directory, "promtool", &["check", "config", "prometheus.yml"]);
    let listen = any_port().local_addr().unwrap().to_string();
    let prometheus = Command::new("prometheus")
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=tsdb", &format!("--web.listen-address={listen}")])
        .current_dir(&directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _prometheus = Stopped(prometheus);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |path: &str| -> Option<Value> {
        let url = format!("http://{listen}{path}");
        let text = runtime.block_on(async { reqwest::get(url).await.ok()?.text().await.ok() })?;
        serde_json::from_str(&text).ok()
    };
    let begin = Instant::now();
    loop {
        let alerts = ask("/api/v1/alerts").unwrap_or_default();
        let fires = |alert: &Value| {
            let labels = &alert["labels"];
            alert["state"] == "firing"
                && labels["alertname"] == "PerennialBreakerOpen"
                && labels["part"] == "sink"
                && labels["query"] == "copy"
        };
        if alerts["data"]["alerts"].as_array().is_some_and(|alerts| alerts.iter().any(fires)) {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "{alerts:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Every rule is a query that Prometheus understands and finds metrics for, or none where nothing has them yet.
    let rules = ask("/api/v1/rules").unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 12);
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
    running.signal("TERM");
    assert_eq!(running.end().0, 0);
}
