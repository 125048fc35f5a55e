//! Web pages that reach for a node by way of a browser on a machine that may reach it.
//!
//! Where no token is in force, whoever can connect may do everything; so may any page that somebody
//! on the machine has open, since a browser sends forms and simple requests anywhere, and reads
//! answers from any address to which the page can point its own name (DNS rebinding). A browser
//! says who is asking, and by which name it found the node. Both are looked at here.
//!
//! With a token in force none of this is asked: no page knows it, and no browser adds it.

use std::net::Ipv6Addr;

use hyper::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use hyper::{HeaderMap, Request};

use super::framing;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Stands for every name, or every page, in a list of either.
const ANY: &str = "*";

/// Names that the node may be asked by, beside its addresses and `localhost`, and web pages that may
/// ask it. By default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites {
    hosts: Vec<String>,
    origins: Vec<String>,
}

/// Why a request is taken for a web page's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Foreign {
    #[error(
        "this node needs no token, and so takes no request that names it '{host}': a web page could \
         have made up that name; ask by an address or localhost, or add the name to allowed_hosts, \
         or set auth_token"
    )]
    Host { host: String },
    #[error(
        "this node needs no token, and so takes no request that a web page made ({header}: \
         {value}); add its origin to allowed_origins, or set auth_token"
    )]
    Page { header: &'static str, value: String },
}

impl Sites {
    /// `hosts`: names without a port; `.example.com` stands for all names below it. `origins`: as
    /// browsers write them, `https://app.example.com`. In both `*` stands for all.
    pub fn new(
        hosts: impl IntoIterator<Item = String>,
        origins: impl IntoIterator<Item = String>,
    ) -> Self {
        Self { hosts: hosts.into_iter().collect(), origins: origins.into_iter().collect() }
    }

    /// Judges a request whose head passed [`framing::check`].
    ///
    /// # Errors
    /// A [`Foreign`].
    pub(crate) fn check<B>(&self, request: &Request<B>) -> Result<(), Foreign> {
        let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let header = request.headers().get(HOST).map(HeaderValue::as_bytes);
        for host in target.into_iter().chain(header) {
            let (name, _) = framing::split_port(host);
            if !self.is_own(name) {
                let host = String::from_utf8_lossy(&name[..name.len().min(SHOWN_BYTES_MAX)]);
                return Err(Foreign::Host { host: host.into_owned() });
            }
        }
        self.page(request.headers())
    }

    /// Whether no web page can have made the name up.
    fn is_own(&self, name: &[u8]) -> bool {
        let Ok(name) = std::str::from_utf8(name) else { return false };
        let name = name.strip_suffix('.').unwrap_or(name);
        is_address(name)
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|own| match own.as_str() {
                ANY => true,
                own if own.starts_with('.') => ends_with(name, own),
                own => own.eq_ignore_ascii_case(name),
            })
    }

    fn page(&self, headers: &HeaderMap) -> Result<(), Foreign> {
        if self.origins.iter().any(|origin| origin == ANY) {
            return Ok(());
        }
        let mut origins = headers.get_all(ORIGIN).iter().peekable();
        let has_origin = origins.peek().is_some();
        for origin in origins {
            let allowed = |own: &String| own.as_bytes().eq_ignore_ascii_case(origin.as_bytes());
            if !self.origins.iter().any(allowed) {
                return Err(Foreign::Page { header: "Origin", value: shown(origin) });
            }
        }
        // Absent: no browser of today. `none`: typed in or bookmarked. `same-site` may be another
        // program's page on another port of this machine.
        let mut sites = headers.get_all(SEC_FETCH_SITE).iter();
        match sites.find(|site| !matches!(site.as_bytes(), b"none" | b"same-origin")) {
            Some(site) if !has_origin => {
                Err(Foreign::Page { header: "Sec-Fetch-Site", value: shown(site) })
            }
            _ => Ok(()),
        }
    }
}

/// How much of what a client sent is shown back to it, in bytes.
const SHOWN_BYTES_MAX: usize = 64;

fn shown(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]).into_owned()
}

/// Whether a host is an address. What ends in a number is one to a browser, and never a name that
/// somebody owns.
fn is_address(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok()),
        None => {
            let last = host.rsplit('.').next().unwrap_or_default();
            !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
        }
    }
}

fn ends_with(name: &str, suffix: &str) -> bool {
    name.len() > suffix.len()
        && name.as_bytes()[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_line_that_names_another_site_is_looked_at_too() {
        let request = |second: &str| {
            let request = Request::builder().uri("/").header(HOST, "localhost");
            let request = request.header(SEC_FETCH_SITE, "none").header(SEC_FETCH_SITE, second);
            request.body(()).unwrap()
        };
        assert!(sites(&[], &[]).check(&request("same-origin")).is_ok());
        assert!(sites(&[], &[]).check(&request("cross-site")).is_err());
    }

    fn sites(hosts: &[&str], origins: &[&str]) -> Sites {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Sites::new(owned(hosts), owned(origins))
    }

    fn judged(sites: &Sites, lines: &[(&str, &str)]) -> Result<(), Foreign> {
        let mut request = Request::builder();
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        sites.check(&request.body(()).unwrap())
    }

    #[test]
    fn a_name_that_a_page_could_have_made_up_is_refused() {
        let closed = Sites::default();
        let own = sites(&["kv.example", ".svc.cluster.local"], &[]);
        for host in ["127.0.0.1:7700", "10.0.0.7", "[::1]:7700", "localhost:7700", "LOCALHOST."] {
            assert_eq!(judged(&closed, &[("host", host)]), Ok(()), "{host}");
        }
        let names =
            ["kv.example:7700", "KV.Example", "a.svc.cluster.local", "b.a.svc.cluster.local."];
        for host in names {
            assert_eq!(judged(&own, &[("host", host)]), Ok(()), "{host}");
            let refused = judged(&closed, &[("host", host)]).unwrap_err();
            assert!(matches!(refused, Foreign::Host { .. }), "{host}");
        }
        let strange = ["evil.example", "kv.example.evil", "xkv.example", "svc.cluster.local", ""];
        for host in strange.into_iter().chain(["127.0.0.1.evil.example", "localhost.evil", "[::g]"])
        {
            assert!(judged(&own, &[("host", host)]).is_err(), "{host}");
        }
        assert_eq!(judged(&sites(&["*"], &[]), &[("host", "evil.example")]), Ok(()));
        // HTTP/1.0, which no browser speaks.
        assert_eq!(judged(&closed, &[]), Ok(()));
    }

    #[test]
    fn the_name_in_an_absolute_target_counts_too() {
        let request = |uri: &str| Request::builder().uri(uri).header("host", "localhost").body(());
        let closed = Sites::default();
        assert_eq!(closed.check(&request("http://127.0.0.1:7700/").unwrap()), Ok(()));
        assert!(closed.check(&request("http://evil.example/").unwrap()).is_err());
    }

    #[test]
    fn a_page_may_ask_only_where_its_origin_is_allowed() {
        let host = ("host", "localhost:7700");
        let closed = Sites::default();
        let open = sites(&[], &["https://app.example"]);
        for line in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", "http://localhost:7700"),
            ("origin", ""),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", "whatever"),
        ] {
            for sites in [&closed, &open] {
                let refused = judged(sites, &[host, line]).unwrap_err();
                assert!(matches!(refused, Foreign::Page { .. }), "{line:?}");
            }
            assert_eq!(judged(&sites(&[], &["*"]), &[host, line]), Ok(()), "{line:?}");
        }
        for site in ["none", "same-origin"] {
            assert_eq!(judged(&closed, &[host, ("sec-fetch-site", site)]), Ok(()));
        }
        let page = [host, ("origin", "https://APP.example"), ("sec-fetch-site", "cross-site")];
        assert_eq!(judged(&open, &page), Ok(()));
        let two = [host, ("origin", "https://app.example"), ("origin", "https://evil.example")];
        assert!(judged(&open, &two).is_err());
    }
}
