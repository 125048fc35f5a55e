//! Secrets: tokens and shared keys as the configuration holds them.
//!
//! Invariant: neither `Debug` nor `Serialize` nor any error shows a secret's text; only
//! [`Secret::expose`] does, so that every use can be found by that name.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A secret text, cheap to clone. Compare with a constant-time function, not with `==`, where an
/// outsider can measure.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// What is shown in a secret's place.
    pub const REDACTED: &'static str = "<redacted>";

    /// Takes `text` as a secret.
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The text itself, to compare with or to derive a key from, never to show.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Self::REDACTED)
    }
}

/// The secrets accepted at the same time: the first is used, all are accepted. Empty: none is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// Whether no secret is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The secret that this node itself uses, if one is set.
    pub fn first(&self) -> Option<&Secret> {
        self.0.first()
    }

    /// All that are accepted, the one in use first.
    pub fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.0.iter()
    }

    /// The secrets in a file's text: one a line, line ends and empty lines left out.
    pub(super) fn from_lines(text: &str) -> Self {
        text.lines().filter(|line| !line.is_empty()).map(Secret::new).collect()
    }
}

impl FromIterator<Secret> for Secrets {
    fn from_iter<I: IntoIterator<Item = Secret>>(secrets: I) -> Self {
        Self(secrets.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_itself_to_nobody() {
        let secrets = Secrets::from_lines("hush\r\n\nolder\n");
        assert_eq!(format!("{secrets:?}"), "Secrets([<redacted>, <redacted>])");
        assert_eq!(
            serde_json::to_string(&secrets).expect("secrets serialize"),
            r#"["<redacted>","<redacted>"]"#
        );
        let texts: Vec<_> = secrets.iter().map(Secret::expose).collect();
        assert_eq!(texts, ["hush", "older"]);
    }
}
