//! The connection to PostgreSQL, which the sink and the table share.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use perennial_core::config::{HumanDuration, Secret};
use perennial_core::error::{Error, ErrorClass, Result, class};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use crate::sinks::fault::{network_class, root_cause};
use crate::sinks::table::{list, quoted};

/// Default of `connect_timeout`.
pub(crate) fn connect_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(10))
}

/// Default of `timeout`.
pub(crate) fn timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(300))
}

/// After so long without a word both sides ask whether the other is still there, and after some questions in vain they part. Without that a
/// network that drops packets is noticed after hours, by the server too, which keeps the locks of the connection for as long.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// How a connection is encrypted, as PostgreSQL's own clients name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Not encrypted.
    Disable,
    /// Encrypted where the server can; its certificate is not checked.
    #[default]
    Prefer,
    /// Encrypted or not at all; the server's certificate is not checked, so this does not protect from a false server.
    Require,
    /// Encrypted, and the server must show a certificate for its host name from a trusted authority.
    VerifyFull,
}

/// The settings of a connection, as the sink and the table have them.
pub(crate) struct Address<'s> {
    /// What messages call it: `postgres sink`.
    pub what: &'static str,
    pub url: Option<&'s Secret>,
    pub host: Option<&'s str>,
    pub port: Option<u16>,
    pub user: Option<&'s str>,
    pub password: Option<&'s Secret>,
    pub database: Option<&'s str>,
    pub sslmode: Option<SslMode>,
    pub root_certificate: Option<&'s str>,
    pub connect_timeout: HumanDuration,
    /// The class of what the server refuses where nothing says why.
    pub refused: &'static ErrorClass,
}

/// A server to connect to.
pub(crate) struct Server {
    what: &'static str,
    config: tokio_postgres::Config,
    sslmode: SslMode,
    root_certificate: Option<String>,
    refused: &'static ErrorClass,
    connect_timeout: HumanDuration,
    timeout: HumanDuration,
    /// Table and server, for messages.
    pub place: String,
}

/// A connection. It ends when this is dropped, whatever the server still owes: a client alone would wait for that.
pub(crate) struct Connection {
    client: Client,
    _driver: AbortOnDropHandle<()>,
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Server {
    /// The server at an address.
    pub fn new(at: Address<'_>) -> Result<Self> {
        let wrong = |what: String| Error::new(class::CONFIG_INVALID, format!("{}: {what}", at.what));
        let mut sslmode = None;
        let mut root_certificate = at.root_certificate.map(str::to_owned);
        let mut config = match at.url {
            None => tokio_postgres::Config::new(),
            Some(secret) => {
                let mut url = url::Url::parse(secret.expose())
                    .ok()
                    .filter(|url| matches!(url.scheme(), "postgres" | "postgresql"))
                    .ok_or_else(|| {
                        wrong("`url` is not of the form postgres://user:password@host:port/database".to_owned())
                    })?;
                // These two are ours: the client library knows fewer modes.
                let mut rest = Vec::new();
                for (name, value) in url.query_pairs() {
                    match &*name {
                        "sslmode" => {
                            let mode = serde_json::from_value(serde_json::Value::String(value.to_string()));
                            sslmode = Some(mode.map_err(|_| {
                                wrong("`sslmode` in `url` is none of disable, prefer, require, verify-full".to_owned())
                            })?);
                        }
                        "sslrootcert" => root_certificate = root_certificate.or(Some(value.into_owned())),
                        _ => rest.push((name.into_owned(), value.into_owned())),
                    }
                }
                url.set_query(None);
                if !rest.is_empty() {
                    url.query_pairs_mut().extend_pairs(rest);
                }
                url.as_str()
                    .parse()
                    .map_err(|e| wrong("`url` has a part that is not understood".to_owned()).caused_by(e))?
            }
        };
        if at.url.is_some() && (at.host.is_some() || at.port.is_some()) {
            return Err(wrong(
                "`url` already says where the server is; leave out `host` and `port`, or `url`".to_owned(),
            ));
        }
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            config.host(at.host.unwrap_or("localhost"));
        }
        at.port.map(|port| config.port(port));
        at.user.map(|user| config.user(user));
        at.password.map(|password| config.password(password.expose()));
        at.database.map(|database| config.dbname(database));
        let sslmode = at.sslmode.or(sslmode).unwrap_or_default();
        if root_certificate.is_some() && sslmode != SslMode::VerifyFull {
            return Err(wrong(
                "`root_certificate` is only looked at with sslmode: verify-full; set that, or leave the certificate out".to_owned(),
            ));
        }
        config.application_name("perennial").connect_timeout(at.connect_timeout.0).ssl_mode(match sslmode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
        });
        if config.get_keepalives_idle() == tokio_postgres::Config::new().get_keepalives_idle() {
            let (idle, interval, count) = KEEPALIVE;
            config.keepalives_idle(idle).keepalives_interval(interval).keepalives_retries(count);
        }
        let hosts = list(config.get_hosts().iter().map(|host| match host {
            tokio_postgres::config::Host::Tcp(host) => host.clone(),
            #[cfg(unix)]
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        }));
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let database = config.get_dbname().or(config.get_user()).unwrap_or("(default database)");
        let place = format!("{hosts}:{port}/{database}");
        let Address { what, refused, connect_timeout, .. } = at;
        Ok(Self { what, config, sslmode, root_certificate, refused, connect_timeout, timeout: timeout(), place })
    }

    /// The same server, which may take so long for each answer.
    pub fn within(self, timeout: HumanDuration) -> Result<Self> {
        if timeout.0.is_zero() {
            let what = format!("{}: `timeout` is 0: give a duration such as `5 minutes`", self.what);
            return Err(Error::new(class::CONFIG_INVALID, what));
        }
        Ok(Self { timeout, ..self })
    }

    /// The same server, with the table for messages.
    pub fn with(self, table: &Name) -> Self {
        Self { place: format!("{table} in {}", self.place), ..self }
    }

    /// A new connection, in UTC.
    pub async fn connect(&self) -> Result<Connection> {
        let tls = self.tls()?;
        let (idle, interval, count) = KEEPALIVE;
        let settings = format!(
            "SET TimeZone = 'UTC'; SET client_min_messages = warning; SET tcp_keepalives_idle = {}; SET tcp_keepalives_interval = {}; \
             SET tcp_keepalives_count = {count}; SET idle_in_transaction_session_timeout = {}",
            idle.as_secs(),
            interval.as_secs(),
            i32::try_from(self.timeout.0.as_millis()).unwrap_or(i32::MAX),
        );
        let connecting = async {
            let (client, connection) = self.config.connect(tls).await?;
            let place = self.place.clone();
            let driver = AbortOnDropHandle::new(tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!("the connection to {place} ended: {error}");
                }
            }));
            client.batch_execute(&settings).await?;
            Ok(Connection { client, _driver: driver })
        };
        // The client's own limit is for each address and ends where the first byte goes out.
        let hosts = self.config.get_hosts().len().max(1) as u32;
        match tokio::time::timeout(self.connect_timeout.0.saturating_mul(hosts), connecting).await {
            Ok(connected) => connected.map_err(|e| self.fault(e)),
            Err(_) => {
                let what = format!("there is no connection after {} (connect_timeout)", self.connect_timeout);
                Err(self.error(class::TIMEOUT, what))
            }
        }
    }

    /// What the server answers, if it does so in time. After an error the connection is worth nothing any more.
    pub async fn answer<T>(&self, answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
        self.in_time(async { answer.await.map_err(|e| self.fault(e)) }).await
    }

    /// What comes of work that may take as long as an answer. After an error the connection is worth nothing any more.
    pub async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.timeout.0, work).await {
            Ok(done) => done,
            Err(_) => {
                let what = format!("no answer after {} (timeout: set more where statements take longer)", self.timeout);
                Err(self.error(class::TIMEOUT, what))
            }
        }
    }

    fn tls(&self) -> Result<MakeRustlsConnect> {
        let failed = |what: String| self.error(class::TLS_FAILED, what);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| failed("TLS cannot be set up".to_owned()).caused_by(e))?;
        let config = if self.sslmode == SslMode::VerifyFull {
            let mut roots = RootCertStore::empty();
            match &self.root_certificate {
                Some(file) => {
                    let unreadable = |e| {
                        failed(format!("the certificates in {file} (root_certificate) cannot be read")).caused_by(e)
                    };
                    for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
                        roots.add(certificate.map_err(unreadable)?).map_err(|e| {
                            failed(format!("a certificate in {file} (root_certificate) is not valid")).caused_by(e)
                        })?;
                    }
                }
                None => {
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                }
            }
            if roots.is_empty() {
                return Err(failed("there is no certificate to trust; set `root_certificate`".to_owned()));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        } else {
            let any = Arc::new(AnyCertificate(provider));
            builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
        };
        Ok(MakeRustlsConnect::new(config))
    }

    /// An error at this place.
    pub fn error(&self, class: &'static ErrorClass, what: impl std::fmt::Display) -> Error {
        Error::new(class, format!("{}: {}: {what}", self.what, self.place))
    }

    /// An error of the client or the server with its class.
    pub fn fault(&self, error: tokio_postgres::Error) -> Error {
        let Some(answer) = error.as_db_error() else {
            let text = error.to_string();
            let class = network_class(&error).unwrap_or_else(|| {
                if text.contains("TLS") {
                    class::TLS_FAILED
                } else if text.contains("timeout") {
                    class::TIMEOUT
                } else if text.contains("authentication") || text.contains("invalid configuration") {
                    class::AUTHENTICATION_FAILED
                } else {
                    class::CONNECTION_LOST
                }
            });
            return self.error(class, format!("{text}: {}", root_cause(&error))).caused_by(error);
        };
        let mut text = answer.message().to_owned();
        for more in [answer.detail(), answer.where_().and_then(|w| w.lines().next())].into_iter().flatten() {
            text.push_str(&format!(" ({more})"));
        }
        if let Some(hint) = answer.hint() {
            text.push_str(&format!("; {hint}"));
        }
        self.error(class_of(answer.code()).unwrap_or(self.refused), text).caused_by(error)
    }
}

/// The class of an SQLSTATE, where it has one of its own.
fn class_of(state: &SqlState) -> Option<&'static ErrorClass> {
    let code = state.code();
    Some(match code {
        "28P01" | "28000" => class::AUTHENTICATION_FAILED,
        "42501" => class::AUTHORIZATION_FAILED,
        "3D000" | "3F000" | "42P01" => class::TARGET_MISSING,
        "42703" | "42804" | "42846" | "42P10" => class::TARGET_SCHEMA,
        "53100" | "58030" => class::DISK_FULL,
        "57014" => class::TIMEOUT,
        _ => match &code[..code.len().min(2)] {
            "08" => class::CONNECTION_LOST,
            "23" => class::CONSTRAINT_VIOLATION,
            // Locks, deadlocks, serialisation; resources; shutting down or a standby; the server's own faults.
            "40" | "53" | "55" | "57" | "58" | "25" | "XX" => class::SERVER_UNAVAILABLE,
            _ => return None,
        },
    })
}

/// The name of a table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Name {
    pub schema: Option<String>,
    pub table: String,
}

impl Name {
    /// `table` or `schema.table`. `what` is for the message.
    pub fn parse(what: &str, text: &str, default_schema: Option<&str>) -> Result<Self> {
        let (schema, table) = match text.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (default_schema, text),
        };
        if table.is_empty() || table.contains('.') || schema.is_some_and(str::is_empty) {
            return Err(Error::new(
                class::CONFIG_INVALID,
                format!("{what}: `{text}` is not the name of a table; write `table` or `schema.table`"),
            ));
        }
        Ok(Self { schema: schema.map(str::to_owned), table: table.to_owned() })
    }

    /// As it stands in SQL.
    pub fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.table)),
            None => quoted(&self.table),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.table)
    }
}

/// Takes every certificate: `sslmode` prefer and require encrypt, and do not ask who is on the other side.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
