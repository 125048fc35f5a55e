//! Whether a request's head leaves no doubt about where its body ends and whom it is for: RFC 9112
//! §3.2, §6.1, and RFC 9113 §8.3.1.
//!
//! hyper refuses what it cannot read. What it can read in a way of its own, where a proxy in front
//! might read it otherwise, is refused here.

use hyper::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use hyper::{HeaderMap, Request, Uri, Version};

/// What is doubtful about a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Doubt {
    /// The body went through something besides chunks, and would be stored as it came out of that.
    #[error(
        "the one transfer coding that this server knows is chunked; send the body without others"
    )]
    Coding,
    #[error("Transfer-Encoding names chunked more than once, or nothing")]
    Chunks,
    #[error("the request lacks a Host; name the host that it is for")]
    NoHost,
    #[error("Host is given more than once; send it once")]
    Hosts,
    #[error("Host is not a host's name or address with or without a port")]
    Host,
    #[error("the body before this request had trailers, or was not read to its end")]
    Before,
    #[error("Host and :authority are not the same; send one of them")]
    Authority,
}

/// Judges a head.
///
/// # Errors
/// A [`Doubt`]: the request must not be served, and nothing more be read from its connection.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), Doubt> {
    let headers = request.headers();
    if headers.contains_key(TRANSFER_ENCODING) {
        coding(headers)?;
    }
    host(request.version(), request.uri(), headers)
}

fn coding(headers: &HeaderMap) -> Result<(), Doubt> {
    let lines = || headers.get_all(TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes);
    let is_chunked = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    if lines().count() == 1 && lines().all(is_chunked) {
        return Ok(());
    }
    let mut codings = lines().flat_map(|line| line.split(|byte| *byte == b','));
    let known = codings.all(|coding| coding.trim_ascii().is_empty() || is_chunked(coding));
    Err(if known { Doubt::Chunks } else { Doubt::Coding })
}

fn host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Doubt> {
    let mut lines = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let (first, second) = (lines.next(), lines.next());
    if second.is_some() {
        return Err(Doubt::Hosts);
    }
    let Some(host) = first else {
        // An HTTP/1.0 client need not send it, and health checks of proxies do not.
        let named =
            version < Version::HTTP_11 || version >= Version::HTTP_2 && uri.authority().is_some();
        return if named { Ok(()) } else { Err(Doubt::NoHost) };
    };
    if !is_authority(host) {
        return Err(Doubt::Host);
    }
    match uri.authority() {
        // In HTTP/1 an absolute target stands above Host.
        Some(authority) if version >= Version::HTTP_2 => {
            let same = authority.as_str().as_bytes().eq_ignore_ascii_case(host);
            if same { Ok(()) } else { Err(Doubt::Authority) }
        }
        _ => Ok(()),
    }
}

/// Whether bytes are `uri-host [ ":" port ]`, RFC 9110 §7.2; nothing at all is, too.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = split_port(text);
    let host_fits = match host {
        [b'[', inner @ .., b']'] => {
            !inner.is_empty() && inner.iter().all(|b| is_name_byte(*b) || *b == b':')
        }
        name => name.iter().all(|byte| is_name_byte(*byte)),
    };
    host_fits && port.iter().all(u8::is_ascii_digit)
}

/// Parts a host from the port behind it, which may be empty.
pub(super) fn split_port(text: &[u8]) -> (&[u8], &[u8]) {
    let from = text.iter().rposition(|byte| *byte == b']').unwrap_or(0);
    match text[from..].iter().position(|byte| *byte == b':') {
        Some(at) => (&text[..from + at], &text[from + at + 1..]),
        None => (text, b""),
    }
}

/// `reg-name` of RFC 3986, §3.2.2.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(version: Version, target: &str, lines: &[(&str, &str)]) -> Result<(), Doubt> {
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap())
    }

    #[test]
    fn bodies_come_in_chunks_or_as_long_as_they_say() {
        let te = "transfer-encoding";
        let judged = |lines: &[(&str, &str)]| {
            judged(Version::HTTP_11, "/", &[&[("host", "n")], lines].concat())
        };
        assert_eq!(judged(&[]), Ok(()));
        assert_eq!(judged(&[(te, "chunked")]), Ok(()));
        assert_eq!(judged(&[(te, " Chunked ")]), Ok(()));
        assert_eq!(judged(&[(te, "gzip, chunked")]), Err(Doubt::Coding));
        assert_eq!(judged(&[(te, "gzip"), (te, "chunked")]), Err(Doubt::Coding));
        assert_eq!(judged(&[(te, "identity, chunked")]), Err(Doubt::Coding));
        assert_eq!(judged(&[(te, "chunked, chunked")]), Err(Doubt::Chunks));
        assert_eq!(judged(&[(te, "chunked"), (te, "chunked")]), Err(Doubt::Chunks));
        assert_eq!(judged(&[(te, ", chunked")]), Err(Doubt::Chunks));
    }

    #[test]
    fn a_host_is_named_once_and_well() {
        let of = |version, hosts: &[&str]| {
            let lines: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            judged(version, "/", &lines)
        };
        for good in ["n", "n:7700", "n:", "", "10.0.0.1:7700", "[::1]:7700", "[::1]", "a_b.c-d."] {
            assert_eq!(of(Version::HTTP_11, &[good]), Ok(()), "{good}");
        }
        let bad = ["a b", "a/b", "a@b", "a:b", "a:1:2", "::1", "[::1", "[]", "[::1]x", "a#", "a?"];
        for bad in bad.into_iter().chain(["http://a", "a, b", "a\u{e4}"]) {
            assert_eq!(of(Version::HTTP_11, &[bad]), Err(Doubt::Host), "{bad}");
        }
        assert_eq!(of(Version::HTTP_11, &[]), Err(Doubt::NoHost));
        assert_eq!(of(Version::HTTP_10, &[]), Ok(()));
        assert_eq!(of(Version::HTTP_10, &["n", "n"]), Err(Doubt::Hosts));
        assert_eq!(of(Version::HTTP_11, &["n", "m"]), Err(Doubt::Hosts));
    }

    #[test]
    fn http_2_names_it_in_its_authority() {
        let of = |target, lines: &[(&str, &str)]| judged(Version::HTTP_2, target, lines);
        assert_eq!(of("http://n:7700/", &[]), Ok(()));
        assert_eq!(of("http://n:7700/", &[("host", "N:7700")]), Ok(()));
        assert_eq!(of("http://n:7700/", &[("host", "m:7700")]), Err(Doubt::Authority));
        assert_eq!(of("/", &[("host", "n")]), Ok(()));
        assert_eq!(of("/", &[]), Err(Doubt::NoHost));
        assert_eq!(judged(Version::HTTP_11, "http://n/", &[("host", "m")]), Ok(()));
        assert_eq!(judged(Version::HTTP_11, "http://n/", &[]), Err(Doubt::NoHost));
    }
}
