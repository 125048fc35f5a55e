//! Which listeners can be reached from elsewhere without the protection they should have.

use serde::Serialize;

use super::address::HostPort;
use super::keys::Config;

/// A listener that other machines can reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exposure {
    /// `client`, `peer` or `operations`.
    pub listener: &'static str,
    /// Where it listens.
    pub address: HostPort,
    /// Whether it counts as insecure; else it is only worth a note.
    pub insecure: bool,
    /// What follows from it, and how to mend it.
    pub text: String,
}

impl Config {
    /// The listeners beyond loopback that lack protection, in words for the log and `/ready`.
    /// `aegis_insecure_listeners` is the number of those that are [`Exposure::insecure`].
    pub fn exposures(&self) -> Vec<Exposure> {
        let mut exposures = Vec::new();
        let is_open = self.auth_token.is_empty() && self.auth_tokens.is_empty();
        if !self.bind_addr.is_loopback() && is_open {
            exposures.push(Exposure {
                listener: "client",
                address: self.bind_addr.clone(),
                insecure: true,
                text: format!(
                    "clients on {} need no token, so whoever reaches it can read and write \
                     everything; set auth_token, or listen on 127.0.0.1",
                    self.bind_addr
                ),
            });
        }
        let lacking = match (!self.gossip_secret.is_empty(), self.tls_enabled) {
            (true, true) => None,
            (true, false) => Some("tls_enabled"),
            (false, true) => Some("gossip_secret"),
            (false, false) => Some("gossip_secret and tls_enabled"),
        };
        if let Some(lacking) = lacking.filter(|_| !self.gossip_bind_addr.is_loopback()) {
            exposures.push(Exposure {
                listener: "peer",
                address: self.gossip_bind_addr.clone(),
                insecure: true,
                text: format!(
                    "nodes on {} are not protected from outsiders on the network; set {lacking}, \
                     or listen on 127.0.0.1",
                    self.gossip_bind_addr
                ),
            });
        }
        if !self.health_addr.is_loopback() && is_open {
            exposures.push(Exposure {
                listener: "operations",
                address: self.health_addr.clone(),
                insecure: false,
                text: format!(
                    "health and metrics on {} are open to all, and without auth_token the admin \
                     requests answer to loopback only",
                    self.health_addr
                ),
            });
        }
        exposures
    }
}
