//! A small HTTP/1 server with bounds on everything that a client decides.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use perennial_core::error::{Error, Result, class};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at the same time. Further ones wait in the backlog of the socket.
const MAX_CONNECTIONS: usize = 256;
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// How long a client may take for the head of a request, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take for everything on one connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// How long open requests may take when the server ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// A bound port: it is the job's, though nothing is answered yet.
#[derive(Debug)]
pub struct Listener {
    socket: std::net::TcpListener,
    address: SocketAddr,
}

/// Binds `listen` (address and port). `setting` says where the address comes from, for the message about a port that is in use.
pub fn bind(listen: &str, setting: &str) -> Result<Listener> {
    let socket = std::net::TcpListener::bind(listen).map_err(|error| {
        let port = listen.rsplit_once(':').map_or(listen, |(_, port)| port);
        let why = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!("port {port} is in use by another process (`{listen}`)"),
            std::io::ErrorKind::PermissionDenied => format!("this user may not listen on port {port} (`{listen}`)"),
            std::io::ErrorKind::AddrNotAvailable => format!("this machine does not have the address `{listen}`"),
            _ => format!("cannot listen on `{listen}`: {error}"),
        };
        Error::new(class::CONFIG_INVALID, format!("{why}; stop that process or set another address with {setting}"))
            .caused_by(error)
    })?;
    let prepared = socket.set_nonblocking(true).and_then(|()| socket.local_addr());
    let address = prepared.map_err(|error| {
        Error::new(class::CONFIG_INVALID, format!("cannot listen on `{listen}`: {error}")).caused_by(error)
    })?;
    Ok(Listener { socket, address })
}

impl Listener {
    /// The address, with the port that was taken for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests on a thread of its own until the [`Server`] is stopped or dropped.
    pub fn serve(self, router: Router, tls: Option<Tls>) -> Result<Server> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let fail = |error: std::io::Error| Error::bug(format!("the HTTP server does not start: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(async move {
                match TcpListener::from_std(self.socket) {
                    Ok(listener) => accept(listener, router, tls, stopped).await,
                    Err(error) => tracing::error!("the HTTP server does not start: {error}"),
                }
            });
        });
        Ok(Server { address: self.address, scheme, stop, thread: Some(thread.map_err(fail)?) })
    }
}

/// A certificate to serve with.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl Tls {
    /// Reads a certificate (with those of its authorities behind it) and its key, both PEM.
    ///
    /// # Errors
    /// `ConfigInvalid` where they cannot be read or do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self> {
        let wrong = |what: &Path, setting: &str, error: &dyn std::fmt::Display| {
            Error::new(class::CONFIG_INVALID, format!("http.tls.{setting}: {}: {error}", what.display()))
        };
        let certificates = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates = certificates.map_err(|error| wrong(certificate, "certificate", &error))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, "key", &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, private))
            .map_err(|error| wrong(certificate, "certificate", &error))?;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// The stream inside; `None` where the client does not get that far.
    async fn accept(&self, stream: TcpStream) -> Option<impl AsyncRead + AsyncWrite + Unpin> {
        timeout(HEAD_TIMEOUT, self.0.accept(stream)).await.ok()?.ok()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    scheme: &'static str,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as a person on this machine would open it.
    pub fn url(&self) -> String {
        match self.address.ip() {
            ip if ip.is_unspecified() => format!("{}://localhost:{}", self.scheme, self.address.port()),
            _ => format!("{}://{}", self.scheme, self.address),
        }
    }

    /// Takes no further connections, finishes open requests and frees the port.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It ends within SHUTDOWN_TIMEOUT; a panic in it has been logged and concerns nobody else.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

async fn accept(listener: TcpListener, router: Router, tls: Option<Tls>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.ok()?;
            Some((slot, listener.accept().await))
        };
        let next = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        match next {
            Some((slot, Ok((stream, _)))) => {
                let (router, tls, stop) = (router.clone(), tls.clone(), stop.clone());
                connections.spawn(async move {
                    // Answers are small and written at once; without this they wait for the client's acknowledgement.
                    let _ = stream.set_nodelay(true);
                    match tls {
                        None => connection(stream, router, stop).await,
                        Some(tls) => {
                            if let Some(stream) = tls.accept(stream).await {
                                connection(stream, router, stop).await;
                            }
                        }
                    }
                    drop(slot);
                });
            }
            // Out of file descriptors, or a client that left: waiting a little keeps this from spinning.
            Some((_, Err(_))) => tokio::time::sleep(Duration::from_millis(50)).await,
            None => break,
        }
    }
    drop(listener);
    connections.close();
    let _ = timeout(SHUTDOWN_TIMEOUT, connections.wait()).await;
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(timeout(CONNECTION_TIMEOUT, connection));
    tokio::select! {
        // What a client does wrong is its own business.
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use axum::routing::get;

    use super::*;

    fn serve() -> Server {
        let router = Router::new().route("/", get(async || "hello"));
        bind("127.0.0.1:0", "a test").unwrap().serve(router, None).unwrap()
    }

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn a_busy_port_is_named_with_its_setting() {
        let server = serve();
        let listen = server.address().to_string();
        let error = bind(&listen, "`http.listen` in the job file").unwrap_err();
        let port = server.address().port().to_string();
        let text = error.to_string();
        assert!(text.contains(&format!("port {port} is in use")) && text.contains("`http.listen`"), "{text}");
    }

    #[test]
    fn requests_are_answered_and_the_port_is_free_afterwards() {
        let server = serve();
        let address = server.address();
        let answer = ask(address, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
        server.stop();
        bind(&address.to_string(), "a test").unwrap();
    }

    #[test]
    fn heads_are_bounded() {
        let server = serve();
        let many: String = (0..200).map(|i| format!("h{i}: x\r\n")).collect();
        let answer = ask(server.address(), format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        let long = "x".repeat(1 << 20);
        let answer = ask(server.address(), format!("GET / HTTP/1.1\r\nhost: x\r\nh: {long}\r\n\r\n").as_bytes());
        assert!(!answer.contains("200 OK"), "{answer}");
    }
}
