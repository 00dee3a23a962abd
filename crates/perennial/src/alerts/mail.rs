//! Mail over SMTP, as far as alerts need it: one message, one connection.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mail_builder::MessageBuilder;
use mail_builder::headers::address::Address;
use mail_builder::headers::raw::Raw;
use perennial_core::error::{Error, Result, class};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::job_file::{EmailSettings, MailTls};

/// How long a message may take, from the connection to the server's receipt.
const TIMEOUT: Duration = Duration::from_secs(30);
/// An answer is not longer than this.
const LONGEST_ANSWER: u64 = 64 << 10;

/// Somebody who writes or gets mail: `ops@example.com` or `Operations <ops@example.com>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mailbox {
    name: Option<String>,
    address: String,
}

impl FromStr for Mailbox {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a mail address");
        let (name, address) = match text.trim().strip_suffix('>') {
            None => (None, text.trim()),
            Some(rest) => {
                let (name, address) = rest.split_once('<').ok_or_else(wrong)?;
                (Some(name.trim().trim_matches('"').to_owned()), address.trim())
            }
        };
        let (user, domain) = address.rsplit_once('@').ok_or_else(wrong)?;
        let allowed = |c: char| c.is_ascii_graphic() && !"<>()[]\\,;:\" @".contains(c);
        if user.is_empty() || domain.is_empty() || !user.chars().chain(domain.chars()).all(allowed) {
            return Err(wrong());
        }
        // What would begin a header of its own.
        let name = name.filter(|name| !name.is_empty());
        if name.as_ref().is_some_and(|name| name.chars().any(char::is_control)) {
            return Err(wrong());
        }
        Ok(Self { name, address: address.to_owned() })
    }
}

impl Mailbox {
    fn header(&self) -> Address<'_> {
        Address::new_address(self.name.as_deref(), self.address.as_str())
    }
}

/// What is sent.
pub(super) struct Letter<'a> {
    pub subject: &'a str,
    pub text: &'a str,
    pub at_micros: i64,
    /// Tells it from all other letters.
    pub id: u64,
}

/// Sends mail.
pub(super) struct Mailer {
    server: String,
    port: u16,
    tls: MailTls,
    connector: TlsConnector,
    login: Option<(String, String)>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Mailer {
    /// # Errors
    /// Where TLS cannot be set up, or an address is none.
    pub fn new(settings: &EmailSettings) -> Result<Self> {
        let mailbox = |text: &String| {
            text.parse().map_err(|why: String| Error::new(class::CONFIG_INVALID, format!("alerts.email: {why}")))
        };
        let password = settings.password.as_ref().map(|password| password.expose().to_owned());
        Ok(Self {
            server: settings.server.clone(),
            port: settings.port.unwrap_or(match settings.tls {
                MailTls::Starttls => 587,
                MailTls::Tls => 465,
                MailTls::None => 25,
            }),
            tls: settings.tls,
            connector: connector(settings.root_certificate.as_deref())?,
            login: settings.username.clone().map(|user| (user, password.unwrap_or_default())),
            from: mailbox(&settings.from)?,
            to: settings.to.iter().map(mailbox).collect::<Result<_>>()?,
        })
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    /// The letter as it is sent.
    pub fn message(&self, letter: &Letter<'_>) -> io::Result<Vec<u8>> {
        let domain = self.from.address.rsplit_once('@').map_or("localhost", |(_, domain)| domain);
        MessageBuilder::new()
            .from(self.from.header())
            .to(Address::new_list(self.to.iter().map(Mailbox::header).collect()))
            .subject(letter.subject)
            .date(letter.at_micros.div_euclid(1_000_000))
            .message_id(format!("{}.{:016x}@{domain}", letter.at_micros, letter.id))
            // Nobody's absence is to be told to a program.
            .header("Auto-Submitted", Raw::new("auto-generated"))
            .text_body(letter.text)
            .write_to_vec()
    }

    /// Hands a message to the server.
    pub async fn send(&self, message: &[u8]) -> Result<(), String> {
        match tokio::time::timeout(TIMEOUT, self.deliver(message)).await {
            Ok(sent) => sent.map_err(|failure| failure.to_string()),
            Err(_) => Err(format!("it took more than {} seconds", TIMEOUT.as_secs())),
        }
    }

    async fn deliver(&self, message: &[u8]) -> Result<(), Failure> {
        let tcp = TcpStream::connect((self.server.as_str(), self.port)).await?;
        // A name of this machine that is right everywhere: its address.
        let hello = match tcp.local_addr()?.ip() {
            IpAddr::V4(ip) => format!("EHLO [{ip}]"),
            IpAddr::V6(ip) => format!("EHLO [IPv6:{ip}]"),
        };
        let mut talk = match self.tls {
            MailTls::Tls => Talk::new(self.encrypted(Box::new(tcp)).await?),
            MailTls::Starttls | MailTls::None => Talk::new(Box::new(tcp)),
        };
        talk.answer("the greeting", '2').await?;
        let mut offers = talk.ask(&hello, '2').await?;
        if self.tls == MailTls::Starttls {
            if !offers.has("STARTTLS") {
                let what = "it offers no STARTTLS; `tls: tls` encrypts from the beginning, `tls: none` not at all";
                return Err(Failure::Broken(what.into()));
            }
            talk.ask("STARTTLS", '2').await?;
            talk = Talk::new(self.encrypted(talk.end()?).await?);
            offers = talk.ask(&hello, '2').await?;
        }
        if let Some((user, password)) = &self.login {
            talk.log_in(&offers, user, password).await?;
        }
        talk.ask(&format!("MAIL FROM:<{}>", self.from.address), '2').await?;
        let mut refused = Vec::new();
        for to in &self.to {
            match talk.ask(&format!("RCPT TO:<{}>", to.address), '2').await {
                Ok(_) => {}
                Err(Failure::Refused(why)) => refused.push(why),
                Err(broken) => return Err(broken),
            }
        }
        if refused.len() == self.to.len() {
            return Err(Failure::Refused(refused.join("; ")));
        }
        for why in refused {
            tracing::warn!(server = self.server, "one receiver of alerts is refused: {why}");
        }
        talk.ask("DATA", '3').await?;
        talk.send(&stuffed(message)).await?;
        talk.answer("the message", '2').await?;
        // It is taken; whether they part in peace does not matter.
        let _ = talk.ask("QUIT", '2').await;
        Ok(())
    }

    async fn encrypted(&self, stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, Failure> {
        let name = ServerName::try_from(self.server.clone()).map_err(|e| Failure::Broken(e.to_string()))?;
        Ok(Box::new(self.connector.connect(name, stream).await?))
    }
}

/// Why a message was not taken.
enum Failure {
    /// The server said no.
    Refused(String),
    /// There is no talking to it.
    Broken(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(why) | Self::Broken(why)) = self;
        f.write_str(why)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// One connection.
struct Talk(BufReader<Box<dyn Stream>>);

impl Talk {
    fn new(stream: Box<dyn Stream>) -> Self {
        Self(BufReader::new(stream))
    }

    /// The connection itself. What came unasked before it is encrypted could be anybody's.
    fn end(self) -> Result<Box<dyn Stream>, Failure> {
        match self.0.buffer().is_empty() {
            true => Ok(self.0.into_inner()),
            false => Err(Failure::Broken("it talks on before the connection is encrypted".into())),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).await?;
        Ok(self.0.flush().await?)
    }

    /// Sends a command; the lines of the answer, which begins with this digit.
    async fn ask(&mut self, command: &str, expected: char) -> Result<Offers, Failure> {
        self.send(format!("{command}\r\n").as_bytes()).await?;
        self.answer(command, expected).await
    }

    async fn answer(&mut self, what: &str, expected: char) -> Result<Offers, Failure> {
        let mut answer = (&mut self.0).take(LONGEST_ANSWER);
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            answer.read_until(b'\n', &mut line).await?;
            if !line.ends_with(b"\n") {
                return Err(Failure::Broken(format!("it went away instead of an answer to {what}")));
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let last = line.as_bytes().get(3) != Some(&b'-');
            let good = line.starts_with(expected);
            lines.push(line);
            if last && good {
                return Ok(Offers(lines));
            }
            if last {
                return Err(Failure::Refused(format!("it answered {what} with {}", lines.join(" "))));
            }
        }
    }

    async fn log_in(&mut self, offers: &Offers, user: &str, password: &str) -> Result<(), Failure> {
        let (plain, what) = (format!("\0{user}\0{password}"), "the login");
        if offers.logs_in_by("PLAIN") {
            self.send(format!("AUTH PLAIN {}\r\n", BASE64_STANDARD.encode(plain)).as_bytes()).await?;
        } else if offers.logs_in_by("LOGIN") {
            self.ask("AUTH LOGIN", '3').await?;
            self.send(format!("{}\r\n", BASE64_STANDARD.encode(user)).as_bytes()).await?;
            self.answer(what, '3').await?;
            self.send(format!("{}\r\n", BASE64_STANDARD.encode(password)).as_bytes()).await?;
        } else {
            return Err(Failure::Broken("it takes logins neither by PLAIN nor by LOGIN".into()));
        }
        self.answer(what, '2').await.map(drop)
    }
}

/// Trusts the authorities in a file, or else those of the system.
fn connector(root_certificate: Option<&str>) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match root_certificate {
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        Some(file) => {
            let wrong = |e: Box<dyn std::error::Error + Send + Sync>| {
                let what = format!("the certificates in {file} (alerts.email.root_certificate) cannot be used");
                Error::new(class::TLS_FAILED, what).caused_by(e)
            };
            for certificate in CertificateDer::pem_file_iter(file).map_err(|e| wrong(e.into()))? {
                roots.add(certificate.map_err(|e| wrong(e.into()))?).map_err(|e| wrong(e.into()))?;
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(class::TLS_FAILED, "alerts.email: TLS cannot be set up").caused_by(e))?;
    Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}

/// A message as SMTP carries it: a line that begins with a dot gets another one, a line with just one is the end.
fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for line in message.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

/// What a server answered, with its code before each line: after EHLO that is what it offers.
struct Offers(Vec<String>);

impl Offers {
    fn words(&self) -> impl Iterator<Item = impl Iterator<Item = &str>> {
        self.0.iter().map(|line| line.get(4..).unwrap_or_default().split([' ', '=']))
    }

    fn has(&self, word: &str) -> bool {
        self.words().any(|mut words| words.next().is_some_and(|first| first.eq_ignore_ascii_case(word)))
    }

    /// Whether it takes this kind of login.
    fn logs_in_by(&self, mechanism: &str) -> bool {
        self.words().any(|mut words| {
            words.next().is_some_and(|first| first.eq_ignore_ascii_case("AUTH"))
                && words.any(|word| word.eq_ignore_ascii_case(mechanism))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, name, address) in [
            ("ops@example.com", None, "ops@example.com"),
            (" Night shift <night.shift+1@mail.example.com> ", Some("Night shift"), "night.shift+1@mail.example.com"),
            ("\"Müller, K.\" <k@example.com>", Some("Müller, K."), "k@example.com"),
            ("<root@localhost>", None, "root@localhost"),
        ] {
            let mailbox: Mailbox = text.parse().unwrap();
            assert_eq!((mailbox.name.as_deref(), &*mailbox.address), (name, address));
        }
        for wrong in
            ["", "ops", "@example.com", "ops@", "a@b> <c@d", "a b@c", "a@b\r\nDATA", "x\ny <a@b>", "a,b@c", "ö@b"]
        {
            assert!(wrong.parse::<Mailbox>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_with_a_dot_does_not_end_a_message() {
        assert_eq!(stuffed(b"a\r\n.\r\n..b\r\nc."), b"a\r\n..\r\n...b\r\nc.\r\n.\r\n");
    }
}
