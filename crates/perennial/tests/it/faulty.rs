//! Servers that are there and do not do what they should: they ask for patience, hang, lose packets, or show a certificate that expired.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;
use perennial_core::error::{ErrorClass, class};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::support::{Home, Running, Watched, read_request, server};

/// A job that copies rows from files, and its program.
struct Job {
    home: Home,
    running: Running,
    watched: Watched,
    runtime: tokio::runtime::Runtime,
}

impl Job {
    fn start(sink: &str, failures: u32, rows: u64, environment: &[(&str, &Path)]) -> Self {
        let home = Home::new(&format!(
            "name: faulty\nsources:\n  rows:\n    files: {{ path: ./in, settle: 0s }}\n    format: json\n    schema: id BIGINT, at TIMESTAMP\n\
             queries:\n  copy:\n    sql: SELECT id, at FROM rows\n    sink: {{ {sink} }}\n\
             trigger: {{ every: 20 ms }}\nretry: {{ initial: 10ms, max: 20ms }}\ncircuit_breaker: {{ failures: {failures}, open_for: 50ms }}\n\
             guarantee: exactly_once\nhttp: {{ listen: '127.0.0.1:0' }}\n"
        ));
        home.give(0..rows);
        let mut command = home.command(&["run", "--log-format", "json", "job.yaml"]);
        command.envs(environment.iter().copied());
        let mut running = Running::start(command);
        let watched = Watched { url: running.url(), client: reqwest::Client::new() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { home, running, watched, runtime }
    }

    /// Waits until the sink is left alone because of errors of this class, and was probed in vain; checks what is told meanwhile.
    fn until_given_up(&self, class: &ErrorClass, words: &str) {
        let given_up = |answer: &Value| {
            let query = &answer["queries"]["copy"];
            let breaker = &query["breakers"]["sink"];
            query["last_error"]["type"] == class.code
                && breaker["failures"].as_u64() > Some(3)
                && breaker["state"] == "open"
        };
        self.runtime.block_on(async {
            let answer = self.watched.until("/health/detailed", "the sink is given up", given_up).await;
            let query = &answer["queries"]["copy"];
            let error = &query["last_error"];
            assert_eq!(error["recommendation"], class.recommendation, "{error}");
            assert!(error["message"].as_str().unwrap().contains(words), "{error}");
            assert!(query["errors_by_type"][class.code].as_u64() > Some(3), "{query:#}");
            assert!(query["breakers"]["sink"]["probes"].as_u64() > Some(0), "{query:#}");
            let ready = self.watched.json("/health/ready").await;
            assert_eq!(ready["ready"], false, "{ready}");
        });
    }

    fn until_written(&self, rows: u64) -> Value {
        let written = |answer: &Value| {
            let query = &answer["queries"]["copy"];
            query["records"]["written"] == rows && query["breakers"]["sink"]["state"] == "closed"
        };
        self.runtime.block_on(self.watched.until("/health/detailed", "all is written", written))
    }

    /// Ends it in order; what it logged. No good row is a dead letter.
    fn end(self) -> Vec<Value> {
        let letters = self.runtime.block_on(self.watched.json("/health/dlq"));
        assert_eq!(letters["dlq"]["total_entries"], 0, "{letters}");
        self.running.signal("TERM");
        let (code, log) = self.running.end();
        assert_eq!(code, 0, "{log}");
        assert!(self.home.files_below("dlq").is_empty());
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// What an InfluxDB does with a request to write.
#[derive(Clone, Copy)]
enum Answer {
    /// Takes the points.
    Done,
    /// Refuses them, in these words.
    Refused(&'static str),
    /// Never answers.
    Hang,
    /// Takes the points and never answers.
    HangAfterwards,
}

/// An InfluxDB as a sink sees it. Lives as long as the tests.
struct Influx {
    port: u16,
    state: Arc<Mutex<InfluxState>>,
}

#[derive(Default)]
struct InfluxState {
    /// What happens to the next requests; then all are taken.
    answers: VecDeque<Answer>,
    tls: Option<Arc<ServerConfig>>,
    /// Fields by what makes a point: measurement, tags and time.
    points: BTreeMap<String, String>,
    requests: usize,
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

impl Influx {
    fn start(answers: &[Answer], tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = InfluxState { answers: answers.iter().copied().collect(), tls, ..InfluxState::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = shared.clone();
                std::thread::spawn(move || {
                    let tls = state.lock().unwrap().tls.clone();
                    let mut stream: Box<dyn Stream> = match tls {
                        None => Box::new(stream),
                        Some(tls) => Box::new(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream)),
                    };
                    answer(&mut *stream, &state)
                });
            }
        });
        Self { port, state }
    }

    fn sink(&self, scheme: &str) -> String {
        let port = self.port;
        format!(
            "influxdb: {{ url: '{scheme}://127.0.0.1:{port}', database: d, measurement: m, time: at, allow_overwrite: true, timeout: 500ms }}"
        )
    }

    /// The ids of all points.
    fn ids(&self) -> Vec<u64> {
        let state = self.state.lock().unwrap();
        let id = |fields: &String| fields.strip_prefix("id=")?.strip_suffix('i')?.parse().ok();
        let mut ids: Vec<u64> = state.points.values().map(|fields| id(fields).unwrap()).collect();
        ids.sort_unstable();
        ids
    }
}

fn answer(mut stream: &mut dyn Stream, state: &Mutex<InfluxState>) -> Option<()> {
    let (_, body) = read_request(&mut stream)?;
    let mut lines = String::new();
    GzDecoder::new(&*body).read_to_string(&mut lines).unwrap();
    let answer = {
        let mut state = state.lock().unwrap();
        state.requests += 1;
        let answer = state.answers.pop_front().unwrap_or(Answer::Done);
        if matches!(answer, Answer::Done | Answer::HangAfterwards) {
            for line in lines.lines() {
                let [point, fields, time] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
                state.points.insert(format!("{point} {time}"), fields.to_owned());
            }
        }
        answer
    };
    let words = match answer {
        Answer::Done => "204 No Content\r\n",
        Answer::Refused(words) => words,
        Answer::Hang | Answer::HangAfterwards => {
            // Until the other side has had enough.
            let _ = stream.read(&mut [0]);
            return None;
        }
    };
    stream.write_all(format!("HTTP/1.1 {words}connection: close\r\n\r\n").as_bytes()).ok()?;
    stream.flush().ok()
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    const BUSY: &str = "503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n";
    const FEWER: &str = "429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\n";
    let influx = Influx::start(&[Answer::Refused(BUSY), Answer::Refused(FEWER)], None);
    let job = Job::start(&influx.sink("http"), 2, 100, &[]);
    let answer = job.until_written(100);
    let query = &answer["queries"]["copy"];
    assert_eq!(query["errors_by_type"], serde_json::json!({"ServerUnavailable": 1, "Throttled": 1}));
    assert_eq!(query["last_error"]["type"], "Throttled");
    let breaker = &query["breakers"]["sink"];
    assert_eq!((&breaker["opened"], &breaker["probes"]), (&1.into(), &1.into()), "{breaker}");
    let log = job.end();
    let told: Vec<_> = log.iter().filter(|line| line["error_class"].is_string()).collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    // Both are left alone for as long as they wish, and not for what the job file says.
    for (line, class, action) in
        [(told[0], class::SERVER_UNAVAILABLE, "Retry the batch"), (told[1], class::THROTTLED, "Wait, then probe")]
    {
        assert_eq!(line["error_class"], class.code);
        assert_eq!((&line["action"], &line["seconds"]), (&action.into(), &1.0.into()), "{line}");
        assert_eq!(line["recommendation"], class.recommendation);
    }
    assert_eq!(influx.ids(), (0..100).collect::<Vec<_>>());
    assert_eq!(influx.state.lock().unwrap().requests, 3);
}

#[test]
fn an_http_sink_that_hangs_is_given_up_and_taken_again() {
    let hangs = [Answer::Hang, Answer::HangAfterwards, Answer::Hang, Answer::Hang, Answer::Hang];
    let influx = Influx::start(&hangs, None);
    let job = Job::start(&influx.sink("http"), 3, 100, &[]);
    job.until_given_up(class::TIMEOUT, "did not answer within 500 milliseconds");
    job.until_written(100);
    job.end();
    assert_eq!(influx.ids(), (0..100).collect::<Vec<_>>());
}

/// An authority, a certificate of 127.0.0.1 that is valid and one that expired, made by `openssl`.
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let script = r#"
            key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
            name='-addext subjectAltName=IP:127.0.0.1'
            openssl req -x509 $key -days 2 -subj '/CN=authority' -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.crt
            printf '[ca]\ndefault_ca = all\n[all]\ndatabase = index\nserial = serial\nnew_certs_dir = .\ndefault_md = sha256\npolicy = any\ncopy_extensions = copy\n' >ca.cnf
            printf 'unique_subject = no\n[any]\ncommonName = supplied\n' >>ca.cnf
            touch index
            echo 01 >serial
            openssl req $key -subj '/CN=server' $name -keyout server.key -out server.csr
            for dates in 'expired 20200101000000Z 20200201000000Z' 'valid 20200101000000Z 20991231000000Z'; do
                set -- $dates
                openssl ca -batch -notext -config ca.cnf -cert ca.crt -keyfile ca.key -startdate $2 -enddate $3 -in server.csr -out $1.crt
            done"#;
        let made = Command::new("sh").args(["-ec", script]).current_dir(home.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(home)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn server(&self, certificate: &str) -> Arc<ServerConfig> {
        let chain = vec![CertificateDer::from_pem_file(self.path(certificate)).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}

#[test]
fn a_certificate_that_expired_is_waited_out() {
    let certificates = Certificates::new();
    let influx = Influx::start(&[], Some(certificates.server("expired.crt")));
    let job = Job::start(&influx.sink("https"), 3, 100, &[("SSL_CERT_FILE", &certificates.path("ca.crt"))]);
    job.until_given_up(class::TLS_FAILED, "certificate expired");
    assert_eq!(influx.state.lock().unwrap().requests, 0);
    influx.state.lock().unwrap().tls = Some(certificates.server("valid.crt"));
    job.until_written(100);
    job.end();
    assert_eq!(influx.ids(), (0..100).collect::<Vec<_>>());
}

/// What happens between a client and PostgreSQL.
enum Fault {
    None,
    /// After so many bytes of a client all is swallowed, and stays so.
    After(usize),
    /// The server commits, and its answer is swallowed, as is all else.
    Commit,
    /// All is swallowed.
    All,
    /// The server shows another certificate than its own.
    Certificate(Arc<ServerConfig>),
}

/// A network on the way to a server. Connections stay open while it swallows their bytes, and the server is never told of their end. Lives as
/// long as the tests.
struct Proxy {
    port: u16,
    fault: Arc<Mutex<Fault>>,
}

impl Proxy {
    fn start(target: String, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault = Arc::new(Mutex::new(fault));
        let shared = fault.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if let Fault::Certificate(tls) = &*shared.lock().unwrap() {
                    let tls = ServerConnection::new(tls.clone()).unwrap();
                    std::thread::spawn(move || shake_hands(client, tls));
                    continue;
                }
                let upstream = TcpStream::connect(&target).unwrap();
                let lost = Arc::new(AtomicBool::new(false));
                let (back, client_back) = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
                let (fault, lost_too) = (shared.clone(), lost.clone());
                std::thread::spawn(move || to_server(client, upstream, &fault, &lost));
                std::thread::spawn(move || to_client(back, client_back, &lost_too));
            }
        });
        Self { port, fault }
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }
}

/// As PostgreSQL begins TLS.
fn shake_hands(mut client: TcpStream, tls: ServerConnection) {
    let mut request = [0; 8];
    if client.read_exact(&mut request).is_ok() && client.write_all(b"S").is_ok() {
        let _ = StreamOwned::new(tls, client).read(&mut [0]);
    }
}

fn to_server(mut client: TcpStream, mut server: TcpStream, fault: &Mutex<Fault>, lost: &AtomicBool) {
    let (mut buffer, mut seen) = (vec![0; 64 << 10], 0);
    while let Ok(n @ 1..) = client.read(&mut buffer) {
        let bytes = &buffer[..n];
        seen += n;
        let mut fault = fault.lock().unwrap();
        let mut pass = !lost.load(Ordering::SeqCst);
        match *fault {
            Fault::After(limit) if seen > limit => {
                pass = false;
                *fault = Fault::All;
            }
            Fault::Commit if bytes.windows(6).any(|word| word == b"COMMIT") => {
                lost.store(true, Ordering::SeqCst);
                *fault = Fault::All;
            }
            Fault::All => pass = false,
            _ => {}
        }
        drop(fault);
        if !pass {
            lost.store(true, Ordering::SeqCst);
        } else if server.write_all(bytes).is_err() {
            break;
        }
    }
    match lost.load(Ordering::SeqCst) {
        // The end is lost, too: the connection stays open for the server.
        true => std::mem::forget(server),
        false => drop(server.shutdown(Shutdown::Both)),
    }
}

fn to_client(mut server: TcpStream, mut client: TcpStream, lost: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = server.read(&mut buffer) {
        if !lost.load(Ordering::SeqCst) && client.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    if !lost.load(Ordering::SeqCst) {
        let _ = client.shutdown(Shutdown::Both);
    }
}

/// A schema of its own in the PostgreSQL of `make test`, which a job reaches through a proxy.
struct Postgres {
    schema: &'static str,
    proxy: Proxy,
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Postgres {
    fn new(schema: &'static str, fault: Fault) -> Self {
        let url = server("PERENNIAL_TEST_POSTGRES");
        let (_, address) = url.rsplit_once('@').unwrap();
        let proxy = Proxy::start(address.split('/').next().unwrap().to_owned(), fault);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            let fresh = format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}");
            client.batch_execute(&fresh).await.unwrap();
            client
        });
        Self { schema, proxy, runtime, client }
    }

    fn sink(&self, more: &str) -> String {
        let url = server("PERENNIAL_TEST_POSTGRES");
        let (credentials, address) = url.rsplit_once('@').unwrap();
        let database = address.split_once('/').unwrap().1;
        let (port, schema) = (self.proxy.port, self.schema);
        format!(
            "postgres: {{ url: '{credentials}@127.0.0.1:{port}/{database}', table: {schema}.rows, connect_timeout: 500ms, {more} }}"
        )
    }

    fn ids(&self) -> Vec<u64> {
        let query = format!("SELECT id FROM {}.rows ORDER BY id", self.schema);
        let rows = self.runtime.block_on(self.client.query(&query, &[])).unwrap();
        rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect()
    }
}

#[test]
#[ignore = "needs PostgreSQL: run make test"]
fn a_network_that_loses_what_it_is_given_costs_nothing_but_time() {
    const ROWS: u64 = 20_000;
    // In the middle of the rows: the server waits for the rest, and its transaction holds the batch.
    let postgres = Postgres::new("faulty_network", Fault::After(100_000));
    let job = Job::start(&postgres.sink("sslmode: disable, timeout: 500ms"), 3, ROWS, &[]);
    job.until_given_up(class::TIMEOUT, "(connect_timeout)");
    postgres.proxy.set(Fault::None);
    job.until_written(ROWS);

    // The batch is written, and nobody hears of it.
    postgres.proxy.set(Fault::Commit);
    job.home.give(ROWS..ROWS + 100);
    job.until_given_up(class::TIMEOUT, "(connect_timeout)");
    postgres.proxy.set(Fault::None);
    job.until_written(ROWS + 100);
    let log = job.end();
    let slow =
        |line: &&Value| line["message"].as_str().is_some_and(|text| text.contains("no answer after 500 milliseconds"));
    assert_eq!(log.iter().filter(slow).count(), 2, "{log:#?}");
    assert_eq!(postgres.ids(), (0..ROWS + 100).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs PostgreSQL: run make test"]
fn a_certificate_of_a_database_that_expired_is_waited_out() {
    let certificates = Certificates::new();
    let postgres = Postgres::new("faulty_tls", Fault::Certificate(certificates.server("expired.crt")));
    // The certificate that PostgreSQL itself shows is another authority's.
    let trusted = certificates.path("trusted.crt");
    let both = [std::fs::read(certificates.path("ca.crt")), std::fs::read(server("PERENNIAL_TEST_CA"))];
    std::fs::write(&trusted, both.map(Result::unwrap).concat()).unwrap();
    let tls = format!("sslmode: verify-full, root_certificate: '{}'", trusted.display());
    let job = Job::start(&postgres.sink(&tls), 3, 100, &[]);
    job.until_given_up(class::TLS_FAILED, "certificate expired");
    postgres.proxy.set(Fault::None);
    job.until_written(100);
    job.end();
    assert_eq!(postgres.ids(), (0..100).collect::<Vec<_>>());
}
