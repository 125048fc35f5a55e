//! Requests to a node, and errors that say how to mend them.
//!
//! Invariant: the token travels in the `Authorization` header and nowhere else; a request goes to
//! the address asked for, never through a proxy that the environment names.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::header::{AUTHORIZATION, ETAG, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, Identity, Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;

use super::connection::{Connection, Target};
use super::exit::{Usage, note};

/// What a key or a query value may hold unescaped in a URL (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How often one request of many is held up before the command gives up: in all, and by what is
/// not its rate.
const WAITS_MAX: u32 = 60;
const SHORTAGES_MAX: u32 = 5;

/// How long it waits then, if the server does not say, and at most.
const WAIT_UNTOLD: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Longest answer that is quoted when it is not of the expected form, in bytes.
const QUOTED_BYTES_MAX: usize = 200;

/// A connection to one node's client and operations APIs.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    ops: Result<Target, String>,
    token: Option<HeaderValue>,
    shows_certificate: bool,
    /// It was said that the server holds the command up.
    said_held_up: AtomicBool,
}

/// Why a request has no answer that a command can use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody answers there.
    #[error(
        "cannot reach {origin}: {source}\nis the server running there? \
         name another address with --addr or AEGISKV_ADDR"
    )]
    Unreachable {
        /// The address asked.
        origin: String,
        /// What the system says.
        source: io::Error,
    },
    /// No answer in time.
    #[error(
        "{origin} gave no answer in time; the request may or may not have been carried out\n\
         --timeout sets how long to wait"
    )]
    Slow {
        /// The address asked.
        origin: String,
    },
    /// The server's certificate is not believed, or TLS fails otherwise.
    #[error("no trusted connection to {origin}: {source}\n{mend}")]
    Tls {
        /// The address asked.
        origin: String,
        /// What is wrong.
        source: rustls::Error,
        /// How to mend it.
        mend: &'static str,
    },
    /// The connection broke, or the other side does not speak HTTP.
    #[error("the exchange with {origin} broke off: {reason}\n{hint}")]
    Broken {
        /// The address asked.
        origin: String,
        /// The innermost cause.
        reason: String,
        /// A guess at the cause.
        hint: &'static str,
        /// The error itself.
        #[source]
        source: Box<reqwest::Error>,
    },
    /// The server said no.
    #[error("{0}")]
    Refused(Problem),
    /// The server asks for a token, or for another one.
    #[error(
        "{origin} asks for {}; it takes those of its auth_token and \
         auth_tokens settings (config.json or conf.d/, or the files that they and auth_token_file name)\n\
         give one with AEGISKV_TOKEN or --token-file", if *.shown { "another token" } else { "a token" }
    )]
    Unauthorized {
        /// The address asked.
        origin: String,
        /// Whether a token was shown.
        shown: bool,
    },
}

/// A refusal in the server's own words (RFC 9457).
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Problem {
    /// The HTTP status.
    #[serde(skip)]
    pub(crate) status: u16,
    /// The version the key has, where a condition failed.
    #[serde(skip)]
    pub(crate) version: Option<String>,
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    /// How long to wait before it is asked again, where the server says so.
    #[serde(skip)]
    pub(crate) retry_after: Option<Duration>,
    outcome: Option<String>,
    #[serde(default)]
    retryable: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.told())?;
        match self.outcome.as_deref() {
            Some("not-applied") => f.write_str("\nnothing was changed")?,
            Some("unknown") => f.write_str("\nit may or may not have been carried out")?,
            _ => {}
        }
        if self.retryable {
            f.write_str("; trying again may help")?;
        }
        Ok(())
    }
}

impl Problem {
    /// What the server says of it.
    fn told(&self) -> String {
        match (self.detail.as_str(), self.title.as_str()) {
            ("", "") => format!("the server answered {}", self.status),
            ("", text) | (text, _) => format!("{text} ({})", self.status),
        }
    }

    /// Whether it passes by itself, and surely nothing was changed: over the rate, or a server that
    /// says for how long it cannot.
    fn passes(&self) -> bool {
        let is_held_up = self.status == 429 || self.status == 503 && self.retry_after.is_some();
        is_held_up && self.retryable && self.outcome.as_deref() != Some("unknown")
    }
}

impl Client {
    /// A client for the node that `connection` names. Connects with the first request.
    ///
    /// # Errors
    /// An address, a token or a certificate that cannot be used.
    pub(crate) fn new(connection: &Connection) -> anyhow::Result<Self> {
        let target = connection.target()?;
        let ops = connection.ops_target().map_err(|usage| usage.0);
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(connection.timeout)
            .read_timeout(connection.timeout)
            .user_agent(concat!("aegiskv/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &connection.ca {
            let pem = read(path, "the CA file")?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .with_context(|| format!("{} holds no PEM certificate", path.display()))?;
            builder = builder.tls_certs_only(certificates);
        } else if !target.tls && !ops.as_ref().is_ok_and(|ops| ops.tls) {
            // The system's would be read and not used; a small container has none.
            builder = builder.tls_certs_only([]);
        }
        if let (Some(cert), Some(key)) = (&connection.cert, &connection.key) {
            let mut pem = read(cert, "the certificate")?;
            pem.push(b'\n');
            pem.extend(read(key, "the key")?);
            let identity = Identity::from_pem(&pem).with_context(|| {
                format!("no client certificate in {} and {}", cert.display(), key.display())
            })?;
            builder = builder.identity(identity);
        }
        let token = connection.secret()?.map(|token| bearer(&token)).transpose()?;
        Ok(Self {
            http: builder.build().context(
                "cannot set up TLS; if this system has no certificates to trust, give the CA \
                 that signed the server's with --ca or AEGISKV_CA",
            )?,
            base: target.origin(),
            ops,
            token,
            shows_certificate: connection.cert.is_some(),
            said_held_up: AtomicBool::new(false),
        })
    }

    /// A request to the client API; `path` starts with a slash.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.authorised(self.http.request(method, format!("{}{path}", self.base)))
    }

    /// A request about one key; `query` is empty or starts with `?`.
    ///
    /// # Errors
    /// [`Usage`] for the keys `.` and `..`, which URLs cannot hold.
    pub(crate) fn key_request(
        &self,
        method: Method,
        key: &[u8],
        query: &Query,
    ) -> Result<RequestBuilder, Usage> {
        if matches!(key, b"" | b"." | b"..") {
            let key = key.escape_ascii();
            let text =
                format!("the key \"{key}\" has no place in a URL; use `aegiskv batch` for it");
            return Err(Usage(text));
        }
        Ok(self.request(method, &format!("/v1/kv/{}{}", escape(key), query.0)))
    }

    /// A request to the operations API; `path` starts with a slash.
    ///
    /// # Errors
    /// [`Usage`] when no address for it is known.
    pub(crate) fn ops_request(&self, method: Method, path: &str) -> Result<RequestBuilder, Usage> {
        let target = self.ops.as_ref().map_err(|text| Usage(text.clone()))?;
        Ok(self.authorised(self.http.request(method, format!("{}{path}", target.origin()))))
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, token),
            None => request,
        }
    }

    /// Sends a request; a status of 400 and above is an error.
    ///
    /// # Errors
    /// [`Error`], ready to be shown.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let (http, request) = request.build_split();
        let request = request.map_err(|error| self.explain(&self.base, error))?;
        let origin = request.url().origin().ascii_serialization();
        let response = http.execute(request).await.map_err(|error| self.explain(&origin, error))?;
        let status = response.status();
        if !status.is_client_error() && !status.is_server_error() {
            return Ok(response);
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(Error::Unauthorized { origin, shown: self.token.is_some() });
        }
        let version = version_of(&response);
        let retry_after = retry_after_of(&response);
        let body = response.bytes().await.unwrap_or_default();
        let problem = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Problem { detail: quoted(&body), ..Problem::default() });
        Err(Error::Refused(Problem { status: status.as_u16(), version, retry_after, ..problem }))
    }

    /// As [`Self::send`]: one request of many, which is sent again where the rate or a short
    /// shortage of the server holds it up, after as long as the server says. Nothing was changed
    /// by the ones that were refused.
    ///
    /// # Errors
    /// [`Error`], ready to be shown; a refusal that outlasts [`WAITS_MAX`].
    pub(crate) async fn send_in_turn(&self, request: RequestBuilder) -> Result<Response, Error> {
        let (mut waits, mut shortages) = (0, 0);
        while let Some(again) = request.try_clone() {
            match self.send(again).await {
                Err(Error::Refused(problem))
                    if problem.passes() && waits < WAITS_MAX && shortages < SHORTAGES_MAX =>
                {
                    waits += 1;
                    shortages += u32::from(problem.status == 503);
                    if !self.said_held_up.swap(true, Ordering::Relaxed) {
                        note(format_args!("held up, and going on by itself: {}", problem.told()));
                    }
                    let wait = problem.retry_after.unwrap_or(WAIT_UNTOLD).min(WAIT_MAX);
                    tokio::time::sleep(wait).await;
                }
                answered => return answered,
            }
        }
        self.send(request).await
    }

    /// The whole body of an answer.
    ///
    /// # Errors
    /// [`Error`] when the connection breaks before its end.
    pub(crate) async fn body(&self, response: Response) -> Result<Bytes, Error> {
        response.bytes().await.map_err(|error| self.explain(&self.base, error))
    }

    /// Says what a failed exchange means.
    pub(crate) fn explain(&self, origin: &str, error: reqwest::Error) -> Error {
        let origin = origin.to_owned();
        if let Some(tls) = find::<rustls::Error>(&error) {
            return Error::Tls { origin, source: tls.clone(), mend: tls_mend(tls) };
        }
        if error.is_timeout() {
            return Error::Slow { origin };
        }
        if error.is_connect()
            && let Some(cause) = find::<io::Error>(&error)
        {
            // The error is told again by kind and text, since its owner cannot be taken apart.
            let source = io::Error::new(cause.kind(), cause.to_string());
            return Error::Unreachable { origin, source };
        }
        let mut innermost: &dyn StdError = &error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        let reason = innermost.to_string();
        let hint = if origin.starts_with("https:") && !self.shows_certificate {
            // The server's alert may be lost when it closes the connection right behind it.
            "if the server has tls_client_auth, give --cert and --key"
        } else if origin.starts_with("http:") && !error.is_body() {
            "if the server has tls_enabled, give --ca or an https:// address"
        } else {
            "the server's log may say why"
        };
        Error::Broken { origin, reason, hint, source: Box::new(error) }
    }
}

/// A query string under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(String);

impl Query {
    /// Adds `name=value`, escaping the value.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        self.0.push_str(&escape(value.as_ref()));
        self
    }

    /// Adds `name=value` if there is a value.
    #[must_use]
    pub(crate) fn with_some(self, name: &str, value: Option<impl AsRef<[u8]>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The query with its question mark, or nothing.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// How many seconds an answer asks to wait.
fn retry_after_of(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The version in an answer's `ETag`, without its quotes.
pub(crate) fn version_of(response: &Response) -> Option<String> {
    let tag = response.headers().get(ETAG)?.to_str().ok()?;
    Some(tag.trim_matches('"').to_owned())
}

/// The header that shows a token.
///
/// # Errors
/// [`Usage`] when the token holds what no header can.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, Usage> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Usage("the token holds control characters or line ends".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Percent-encodes all but unreserved characters.
pub(crate) fn escape(bytes: &[u8]) -> String {
    percent_encode(bytes, ESCAPED).to_string()
}

/// Reads a file, saying which one if it cannot.
pub(crate) fn read(path: &Path, what: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {what} {}", path.display()))
}

/// The first error of type `E` in the chain, looking inside I/O errors as well, which hide theirs.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<E>() {
            return Some(found);
        }
        let inside = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside),
            None => cause.source(),
        };
    }
    None
}

fn tls_mend(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            Certificate::UnknownIssuer => {
                "give the CA that signed the server's certificate with --ca or AEGISKV_CA"
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "the server's certificate has run out; issue it anew and reload the server"
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "is the clock of this machine or of the server's CA wrong?"
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                "the certificate names other hosts; use one of their names in --addr, \
                 or issue it anew with this one as --san"
            }
            _ => "the server's certificate cannot be used",
        },
        rustls::Error::AlertReceived(_) => {
            "the server refused this client; does it ask for a certificate (--cert, --key)?"
        }
        rustls::Error::InvalidMessage(_) => {
            "the other side speaks no TLS; use an http:// address, or enable it there"
        }
        _ => "check the TLS settings on both sides",
    }
}

fn quoted(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(QUOTED_BYTES_MAX)]);
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_so_that_no_slash_or_dot_is_cleaned_away() {
        assert_eq!(escape(b"a//b/../c"), "a%2F%2Fb%2F..%2Fc");
        assert_eq!(escape(b"user:1 \xff?#%"), "user%3A1%20%FF%3F%23%25");
    }

    #[test]
    fn queries_leave_out_what_is_not_there() {
        let query = Query::default().with("a", "1 2").with_some("b", None::<&str>).with("c", "&");
        assert_eq!(query.as_str(), "?a=1%202&c=%26");
    }

    #[test]
    fn problems_are_told_in_the_servers_words() {
        let json = r#"{"title":"Full","detail":"memory is full","outcome":"not-applied","retryable":true}"#;
        let problem: Problem = serde_json::from_str(json).expect("the test's JSON is right");
        let problem = Problem { status: 507, ..problem };
        assert_eq!(
            problem.to_string(),
            "memory is full (507)\nnothing was changed; trying again may help"
        );
        let bare = Problem { status: 502, ..Problem::default() };
        assert_eq!(bare.to_string(), "the server answered 502");
    }
}
