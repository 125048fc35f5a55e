//! Addresses as operators write them: `host:port`.
//!
//! A host may be a name; it is resolved where it is used, never here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

/// Longest host name that DNS allows, in bytes.
const HOST_BYTES_MAX: usize = 253;

/// A host, by address or name, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// Takes an address to listen on. Port 0 lets the system choose; `:7700` means every IPv4
    /// address of this machine.
    pub fn parse_listening(text: &str) -> Option<Self> {
        match text.strip_prefix(':') {
            Some(port) => {
                Some(Self { host: Ipv4Addr::UNSPECIFIED.to_string(), port: port_number(port)? })
            }
            None => Self::parse(text),
        }
    }

    /// Takes an address to connect to: neither port 0 nor the address that means "all".
    pub fn parse_reachable(text: &str) -> Option<Self> {
        Self::parse(text).filter(|address| address.port != 0 && !address.is_unspecified())
    }

    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port_number(port)?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inside) => inside.parse::<Ipv6Addr>().ok()?.to_string(),
            None => host_name(host)?,
        };
        Some(Self { host, port })
    }

    /// The host, without the brackets that an IPv6 address is written in.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether only this machine can reach it. A name other than `localhost` counts as reachable
    /// from elsewhere.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// Whether it means every address of this machine.
    pub fn is_unspecified(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    /// Whether listening on both at once is sure to fail.
    pub(super) fn clashes_with(&self, other: &Self) -> bool {
        let same_host = self.host == other.host || self.is_unspecified() || other.is_unspecified();
        self.port != 0 && self.port == other.port && same_host
    }
}

fn port_number(text: &str) -> Option<u16> {
    // `parse` alone would take "+7700".
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn host_name(host: &str) -> Option<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let digits_only = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(fits) {
        return None;
    }
    // Four numbers that are no address (10.0.1.300) are a slip, not a name.
    (!digits_only || host.parse::<Ipv4Addr>().is_ok()).then(|| host.to_owned())
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(text: &str) -> Option<String> {
        HostPort::parse_listening(text).map(|address| address.to_string())
    }

    #[test]
    fn addresses_to_listen_on_are_read_in_every_common_form() {
        assert_eq!(listening("127.0.0.1:7700").as_deref(), Some("127.0.0.1:7700"));
        assert_eq!(listening(":7700").as_deref(), Some("0.0.0.0:7700"));
        assert_eq!(listening("[0:0::1]:0").as_deref(), Some("[::1]:0"));
        assert_eq!(listening("db-1.internal:7700").as_deref(), Some("db-1.internal:7700"));
        for bad in [
            "",
            "7700",
            "host",
            "host:",
            "host:+1",
            "host:70000",
            "10.0.1.300:7700",
            "::1:7700",
            "a b:1",
            "http://x:1",
        ] {
            assert_eq!(listening(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_address_to_connect_to_has_a_port_and_is_not_all_addresses() {
        assert!(HostPort::parse_reachable("node2:7701").is_some());
        for bad in ["0.0.0.0:7701", "[::]:7701", "node2:0", ":7701"] {
            assert_eq!(HostPort::parse_reachable(bad), None, "{bad}");
        }
    }

    #[test]
    fn loopback_is_told_from_the_rest() {
        let loopback = |text| HostPort::parse_listening(text).expect("valid").is_loopback();
        assert!(loopback("127.8.0.1:1") && loopback("[::1]:1") && loopback("LocalHost:1"));
        assert!(!loopback("0.0.0.0:1") && !loopback("10.0.0.1:1") && !loopback("node1:1"));
    }
}
