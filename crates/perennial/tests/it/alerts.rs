//! Alerts as they arrive: at receivers of the job's own, and through Prometheus.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::faulty::Certificates;
use crate::support::{Home, Running, code, read_request, stdout};

const PATIENCE: Duration = Duration::from_secs(60);

/// Path and body of a request.
pub type Posted = (String, Vec<u8>);

/// Takes what is posted to it. Lives as long as the tests.
pub struct Receiver {
    port: u16,
    pub posted: Arc<Mutex<Vec<Posted>>>,
}

impl Receiver {
    /// Answers the first requests with these, and all others with 204.
    pub fn start(listener: TcpListener, first: &[u16]) -> Self {
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

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits for a body in which this holds.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
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
fn take(mut stream: TcpStream, status: u16) -> Option<Posted> {
    let posted = read_request(&mut stream)?;
    let length = if status == 204 { "" } else { "content-length: 0\r\n" };
    stream.write_all(format!("HTTP/1.1 {status} X\r\n{length}connection: close\r\n\r\n").as_bytes()).ok()?;
    (status == 204).then_some(posted)
}

pub fn any_port() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A job whose sink is at a port, and the settings of its alerts.
pub fn job(port: u16, alerts: &str) -> String {
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

/// A message as a mail server got it.
#[derive(Debug, Clone)]
struct Mail {
    from: String,
    to: Vec<String>,
    text: String,
}

/// A mail server that wants TLS and a login, as those of providers do.
struct MailServer {
    port: u16,
    mails: Arc<Mutex<Vec<Mail>>>,
}

impl MailServer {
    /// Shows the first clients the first of these certificates, and so on; the last one to all others. Has no room for the first message.
    fn start(certificates: Vec<Arc<rustls::ServerConfig>>) -> Self {
        let listener = any_port();
        let port = listener.local_addr().unwrap().port();
        let mails: Arc<Mutex<Vec<Mail>>> = Arc::default();
        let taken = mails.clone();
        std::thread::spawn(move || {
            let mut full = true;
            for (client, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let certificate = certificates.get(client).or(certificates.last()).unwrap().clone();
                taken.lock().unwrap().extend(Self::talk(stream, certificate, &mut full));
            }
        });
        Self { port, mails }
    }

    fn talk(stream: TcpStream, certificate: Arc<rustls::ServerConfig>, full: &mut bool) -> Option<Mail> {
        let mut plain = BufReader::new(stream);
        plain.get_mut().write_all(b"220 mail.test ready\r\n").ok()?;
        let mut line = String::new();
        for (command, answer) in [
            ("EHLO [127.0.0.1]\r\n", "250-mail.test\r\n250-SIZE 1000000\r\n250 STARTTLS\r\n"),
            ("STARTTLS\r\n", "220 go on\r\n"),
        ] {
            line.clear();
            plain.read_line(&mut line).ok()?;
            assert_eq!(line, command);
            plain.get_mut().write_all(answer.as_bytes()).ok()?;
        }
        let tls = rustls::ServerConnection::new(certificate).unwrap();
        let mut talk = BufReader::new(rustls::StreamOwned::new(tls, plain.into_inner()));
        let (mut mail, mut welcome) = (Mail { from: String::new(), to: Vec::new(), text: String::new() }, false);
        loop {
            line.clear();
            talk.read_line(&mut line).ok()?;
            let address = |line: &str| line.split(['<', '>']).nth(1).unwrap().to_owned();
            let answer = match line.trim_end() {
                "EHLO [127.0.0.1]" => "250-mail.test\r\n250 AUTH LOGIN PLAIN",
                // NUL perennial NUL hunter2
                "AUTH PLAIN AHBlcmVubmlhbABodW50ZXIy" => {
                    welcome = true;
                    "235 welcome"
                }
                "DATA" if !mail.to.is_empty() => {
                    talk.get_mut().write_all(b"354 go on\r\n").ok()?;
                    while !mail.text.ends_with("\r\n.\r\n") {
                        talk.read_line(&mut mail.text).ok()?;
                    }
                    if std::mem::take(full) { "452 no room" } else { "250 taken" }
                }
                "QUIT" => {
                    let _ = talk.get_mut().write_all(b"221 bye\r\n");
                    return Some(mail);
                }
                from if from.starts_with("MAIL FROM:<") && welcome => {
                    mail.from = address(from);
                    "250 ok"
                }
                to if to.starts_with("RCPT TO:<gone@") => "550 nobody of this name",
                to if to.starts_with("RCPT TO:<") => {
                    mail.to.push(address(to));
                    "250 ok"
                }
                other => panic!("{other}"),
            };
            talk.get_mut().write_all(format!("{answer}\r\n").as_bytes()).ok()?;
        }
    }

    fn wait_for(&self, subject: &str) -> Mail {
        let begin = Instant::now();
        loop {
            let mails = self.mails.lock().unwrap().clone();
            if let Some(found) = mails.iter().find(|mail| mail.text.contains(subject)) {
                return found.clone();
            }
            assert!(begin.elapsed() < PATIENCE, "waited in vain for {subject}: {mails:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn people_get_mail_through_a_server_that_wants_tls_and_a_login() {
    let certificates = Certificates::new();
    let server = MailServer::start(["expired.crt", "valid.crt"].map(|name| certificates.server(name)).into());
    let sink = any_port().local_addr().unwrap().port();
    let alerts = format!(
        "alerts:\n  every: 50ms\n  resolve_after: 100ms\n  rules: {{ disk_nearly_full: {{ enabled: false }} }}\n  \
         email:\n    server: 127.0.0.1\n    port: {}\n    root_certificate: {}\n    username: perennial\n    password: hunter2\n    \
         from: Perennial <perennial@example.com>\n    to: [Wärter <ops@example.com>, gone@example.com, night@example.com]\n",
        server.port,
        certificates.path("ca.crt").display()
    );
    let home = Home::new(&job(sink, &alerts));
    home.give(0..10);
    let mut running = Running::start(home.command(&["run", "job.yaml"]));
    running.wait_for_text("an alert was not taken: invalid peer certificate: certificate expired");
    running.wait_for_text("an alert was not taken: it answered the message with 452 no room");
    let mail = server.wait_for("A circuit breaker is open");
    assert_eq!(
        (&*mail.from, &*mail.to),
        ("perennial@example.com", &["ops@example.com", "night@example.com"].map(str::to_owned)[..])
    );
    let (head, body) = mail.text.split_once("\r\n\r\n").unwrap();
    let field =
        |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default();
    assert_eq!(field("From"), "\"Perennial\" <perennial@example.com>", "{head}");
    assert!(
        head.contains("<ops@example.com>") && head.contains("night@example.com") && head.contains("=?utf-8?"),
        "{head}"
    );
    assert!(field("Subject").starts_with("[CRITICAL] alerting: "), "{head}");
    let age = chrono::Utc::now().signed_duration_since(chrono::DateTime::parse_from_rfc2822(field("Date")).unwrap());
    assert!((0..600).contains(&age.num_seconds()), "{head}");
    assert!(field("Message-ID").ends_with("@example.com>"), "{head}");
    assert_eq!(field("Auto-Submitted"), "auto-generated", "{head}");
    assert!(body.contains("CRITICAL alerting: A circuit breaker is open: "), "{body}");

    let _sink = Receiver::start(TcpListener::bind(("127.0.0.1", sink)).unwrap(), &[]);
    let over = server.wait_for("RESOLVED alerting: A circuit breaker is open");
    assert!(over.text.contains("Subject: [RESOLVED] alerting: "), "{}", over.text);
    running.signal("TERM");
    let (code, log) = running.end();
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("one receiver of alerts is refused") && log.contains("550 nobody of this name"), "{log}");
    assert!(!log.contains("hunter2") && !log.contains("AHBlcmVubmlhbA"), "{log}");
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
