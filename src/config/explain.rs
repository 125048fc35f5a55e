//! The configuration shown: each value with its source, and the hash that tells two apart.

use aws_lc_rs::digest;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::Loaded;
use super::keys::{KEYS, Key};
use super::secret::{Secret, Secrets};
use super::setting::Quorum;

/// One key's effective value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explained {
    /// The key's name.
    #[serde(skip)]
    pub key: &'static str,
    /// The value in force, as a file would hold it; a secret is `<redacted>`.
    pub value: Json,
    /// `default`, a file's path, `environment AEGIS_…` or `flag --…`.
    pub source: String,
    /// Whether a reload applies a change to it.
    pub live: bool,
}

/// Every key with its effective value, in the order of the documentation. Serializes as an object
/// with one member a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation(pub Vec<Explained>);

impl Serialize for Explanation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|one| (one.key, one)))
    }
}

impl Explanation {
    /// A table of keys, values and sources, one a line.
    pub fn table(&self) -> String {
        let rows: Vec<_> =
            self.0.iter().map(|one| (one.key, plain(&one.value), one.source.as_str())).collect();
        let key_width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
        // One long value must not push every source out of sight.
        let value_width = rows.iter().map(|row| row.1.chars().count().min(40)).max().unwrap_or(0);
        rows.iter()
            .map(|(key, value, source)| {
                format!("{key:key_width$}  {value:value_width$}  {source}\n")
            })
            .collect()
    }
}

/// A value as the command line would take it.
fn plain(value: &Json) -> String {
    match value {
        Json::String(text) if text.is_empty() => "-".to_owned(),
        Json::String(text) => text.clone(),
        Json::Array(list) if list.is_empty() => "-".to_owned(),
        Json::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

impl Loaded {
    /// Every key with its effective value and where it came from; secrets redacted.
    pub fn explain(&self) -> Explanation {
        let explained = KEYS.iter().zip(self.effective()).map(|(key, value)| Explained {
            key: key.name,
            value,
            source: self.origins.of(key.name).to_owned(),
            live: key.live,
        });
        Explanation(explained.collect())
    }

    /// A hash of every effective value, secrets included, the same for the same values on every
    /// machine and in every build of this format. It has 48 bits, so that a gauge holds it
    /// exactly.
    pub fn hash(&self) -> u64 {
        self.hash_of(|_| true)
    }

    /// As [`Self::hash`], over the keys that all nodes of a cluster should share: nodes that
    /// differ in it are configured differently.
    pub fn shared_hash(&self) -> u64 {
        self.hash_of(|key| key.shared)
    }

    fn hash_of(&self, counts: impl Fn(&Key) -> bool) -> u64 {
        // One-way, so that the number, which anyone may scrape, does not give the secrets away.
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"aegiskv configuration 1");
        for (key, value) in KEYS.iter().zip(self.effective()).filter(|(key, _)| counts(key)) {
            if key.name == "auth_tokens" && !self.config.auth_tokens.is_empty() {
                self.hash_tokens(&mut context);
                continue;
            }
            context.update(format!("\n{}={value}", key.name).as_bytes());
            for secret in self.secrets_of(key) {
                // Its length goes first: no two lists of secrets look alike.
                context.update(format!("\n{} ", secret.len()).as_bytes());
                context.update(secret.as_bytes());
            }
        }
        let hash = context.finish();
        hash.as_ref()[..6].iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
    }

    /// What the named tokens open counts, and not where their files are, nor any order.
    fn hash_tokens(&self, context: &mut digest::Context) {
        let mut tokens: Vec<_> = self.config.auth_tokens.iter().collect();
        tokens.sort_unstable_by_key(|token| &token.name);
        for token in tokens {
            let mut verbs: Vec<_> = token.verbs.iter().map(|verb| verb.word()).collect();
            verbs.sort_unstable();
            verbs.dedup();
            let mut prefixes: Vec<_> = token.prefixes.iter().collect();
            prefixes.sort_unstable();
            prefixes.dedup();
            let mut secrets: Vec<_> = token.secrets.iter().map(Secret::expose).collect();
            secrets.sort_unstable();
            // In JSON no two lists of texts look alike.
            let all = serde_json::json!([token.name, verbs, prefixes, token.rate, secrets]);
            context.update(format!("\nauth_tokens={all}").as_bytes());
        }
    }

    fn secrets_of(&self, key: &Key) -> Vec<&str> {
        let secrets = match key.name {
            "auth_token" => vec![&self.config.auth_token],
            "gossip_secret" => vec![&self.config.gossip_secret],
            _ => return Vec::new(),
        };
        secrets.into_iter().flat_map(Secrets::iter).map(Secret::expose).collect()
    }

    /// Every value in the order of [`KEYS`], the ones that follow from others worked out.
    fn effective(&self) -> Vec<Json> {
        let mut values = self.config.show();
        for (key, value) in KEYS.iter().zip(&mut values) {
            match key.name {
                "wal_dir" => *value = Json::from(self.config.wal_dir().to_string_lossy()),
                "write_quorum" if self.config.write_quorum == Quorum::Majority => {
                    *value = Json::from(self.config.write_copies());
                }
                "read_quorum" if self.config.read_quorum == Quorum::Majority => {
                    *value = Json::from(self.config.read_copies());
                }
                _ => {}
            }
        }
        values
    }
}
