//! How one configuration value is read from JSON or text, and shown again.
//!
//! Invariant: what [`Setting::show`] gives, [`Setting::read`] takes, and both mean the same value.
//! Reading never panics and never repeats a secret.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

use super::address::HostPort;
use super::secret::{Secret, Secrets};
use super::span;
use crate::logging;

/// The form a value takes, which decides how text from the environment and flags is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Text as it stands.
    Text,
    /// A number where the text is one, else text.
    Number,
    /// `true` or `false`; a flag of this shape may stand alone and means `true`.
    Switch,
    /// Several texts; commas part them outside JSON.
    List,
    /// JSON, everywhere.
    Json,
}

impl Shape {
    /// Turns text from the environment or a flag into the JSON that a file would hold. Text that
    /// does not fit stays text, so that reading it names it in the error.
    pub(super) fn json_from_text(self, text: &str) -> Json {
        let as_text = || Json::String(text.to_owned());
        match self {
            Self::Text => as_text(),
            Self::Number => text.parse::<i64>().map(Json::from).unwrap_or_else(|_| {
                text.parse::<f64>().ok().filter(|n| n.is_finite()).map_or_else(as_text, Json::from)
            }),
            Self::Switch => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Json::Bool(true),
                "false" | "0" | "no" | "off" => Json::Bool(false),
                _ => as_text(),
            },
            Self::Json => serde_json::from_str(text).unwrap_or_else(|_| as_text()),
            Self::List => text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect(),
        }
    }
}

/// A type that a configuration key can have.
pub(super) trait Setting: Sized {
    /// The form of the value.
    const SHAPE: Shape;
    /// What a value must be, to follow "expects".
    const EXPECTS: &'static str;
    /// Whether the value must never be shown.
    const SECRET: bool = false;
    /// Whether a secret may stand where it does not belong; then no misfit value is repeated.
    const NEAR_SECRETS: bool = Self::SECRET;

    /// Takes the value, or `None` if it is not what [`Self::EXPECTS`] says.
    fn read(json: &Json) -> Option<Self>;

    /// The value as a configuration file holds it. Of a secret: that there is one.
    fn show(&self) -> Json;

    /// What of the value does not fit, where that can be said more closely.
    fn misfit(_json: &Json) -> Option<String> {
        None
    }

    /// The size that a key's range bounds: a number itself, a duration in milliseconds.
    fn measure(_json: &Json) -> Option<i128> {
        None
    }

    /// A size in the words of this type.
    fn measured(size: i64) -> String {
        size.to_string()
    }
}

macro_rules! whole_number {
    ($($type:ty),*) => { $(
        impl Setting for $type {
            const SHAPE: Shape = Shape::Number;
            const EXPECTS: &'static str = "a whole number";

            fn read(json: &Json) -> Option<Self> {
                Self::try_from(Self::measure(json)?).ok()
            }

            fn show(&self) -> Json {
                Json::from(*self)
            }

            fn measure(json: &Json) -> Option<i128> {
                json.as_i64().map(i128::from).or_else(|| json.as_u64().map(i128::from))
            }
        }
    )* };
}
whole_number!(u8, u16, u32, u64);

impl Setting for f64 {
    const SHAPE: Shape = Shape::Number;
    const EXPECTS: &'static str = "a number";

    fn read(json: &Json) -> Option<Self> {
        json.as_f64()
    }

    fn show(&self) -> Json {
        Json::from(*self)
    }
}

impl Setting for bool {
    const SHAPE: Shape = Shape::Switch;
    const EXPECTS: &'static str = "true or false";

    fn read(json: &Json) -> Option<Self> {
        json.as_bool()
    }

    fn show(&self) -> Json {
        Json::Bool(*self)
    }
}

impl Setting for String {
    const SHAPE: Shape = Shape::Text;
    const EXPECTS: &'static str = "a string";

    fn read(json: &Json) -> Option<Self> {
        json.as_str().map(str::to_owned)
    }

    fn show(&self) -> Json {
        Json::String(self.clone())
    }
}

impl Setting for PathBuf {
    const SHAPE: Shape = Shape::Text;
    const EXPECTS: &'static str = "a path";

    fn read(json: &Json) -> Option<Self> {
        Option::<Self>::read(json)?
    }

    fn show(&self) -> Json {
        Json::String(self.to_string_lossy().into_owned())
    }
}

impl Setting for Option<PathBuf> {
    const SHAPE: Shape = Shape::Text;
    const EXPECTS: &'static str = "a path, or an empty string for none";

    fn read(json: &Json) -> Option<Self> {
        let text = json.as_str().filter(|text| !text.contains('\0'))?;
        Some((!text.is_empty()).then(|| PathBuf::from(text)))
    }

    fn show(&self) -> Json {
        self.as_ref().map_or_else(|| Json::from(""), Setting::show)
    }
}

impl Setting for Duration {
    const SHAPE: Shape = Shape::Number;
    const EXPECTS: &'static str = "a duration like 30s, 500ms or 1m30s, or a number of seconds";

    fn read(json: &Json) -> Option<Self> {
        match json {
            Json::String(text) => span::parse(text),
            Json::Number(number) => span::from_seconds(number.as_f64()?),
            _ => None,
        }
    }

    fn show(&self) -> Json {
        Json::String(span::text(*self))
    }

    fn measure(json: &Json) -> Option<i128> {
        i128::try_from(Self::read(json)?.as_millis()).ok()
    }

    fn measured(size: i64) -> String {
        span::text(Self::from_millis(size.unsigned_abs()))
    }
}

impl Setting for HostPort {
    const SHAPE: Shape = Shape::Text;
    const EXPECTS: &'static str = "an address to listen on, host:port, like 127.0.0.1:7700";

    fn read(json: &Json) -> Option<Self> {
        Self::parse_listening(json.as_str()?)
    }

    fn show(&self) -> Json {
        Json::String(self.to_string())
    }
}

impl Setting for Option<HostPort> {
    const SHAPE: Shape = Shape::Text;
    const EXPECTS: &'static str =
        "an address that others can reach, host:port, like 10.0.1.10:7700, or an empty string";

    fn read(json: &Json) -> Option<Self> {
        match json.as_str()? {
            "" => Some(None),
            text => HostPort::parse_reachable(text).map(Some),
        }
    }

    fn show(&self) -> Json {
        self.as_ref().map_or_else(|| Json::from(""), Setting::show)
    }
}

impl Setting for Vec<HostPort> {
    const SHAPE: Shape = Shape::List;
    const EXPECTS: &'static str =
        "a list of addresses that this node can reach, each host:port, like 10.0.1.10:7701";

    fn read(json: &Json) -> Option<Self> {
        json.as_array()?.iter().map(|one| HostPort::parse_reachable(one.as_str()?)).collect()
    }

    fn show(&self) -> Json {
        self.iter().map(Setting::show).collect()
    }
}

impl Setting for Vec<String> {
    const SHAPE: Shape = Shape::List;
    const EXPECTS: &'static str = "a list of strings";

    fn read(json: &Json) -> Option<Self> {
        json.as_array()?.iter().map(String::read).collect()
    }

    fn show(&self) -> Json {
        self.iter().map(Setting::show).collect()
    }
}

impl Setting for Secrets {
    const SHAPE: Shape = Shape::List;
    const EXPECTS: &'static str = "a string or a list of strings";
    const SECRET: bool = true;

    fn read(json: &Json) -> Option<Self> {
        let one = |text: &str| (!text.is_empty()).then(|| Secret::new(text));
        match json {
            Json::String(text) => Some(one(text).into_iter().collect()),
            Json::Array(list) => list.iter().map(|item| one(item.as_str()?)).collect(),
            _ => None,
        }
    }

    fn show(&self) -> Json {
        if self.is_empty() { Json::from("") } else { Json::from(Secret::REDACTED) }
    }
}

/// How many copies a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// More than half of the replication factor.
    Majority,
    /// Every copy; `-1` in the configuration.
    All,
    /// So many; 0 waits for none.
    Count(u32),
}

impl Quorum {
    /// The number of copies to wait for out of `copies`.
    pub fn of(self, copies: u32) -> u32 {
        match self {
            Self::Majority => copies / 2 + 1,
            Self::All => copies,
            Self::Count(count) => count,
        }
    }
}

impl Setting for Quorum {
    const SHAPE: Shape = Shape::Number;
    const EXPECTS: &'static str = "a whole number, or \"majority\"";

    fn read(json: &Json) -> Option<Self> {
        match json.as_i64() {
            Some(-1) => Some(Self::All),
            Some(count) => u32::try_from(count).ok().map(Self::Count),
            None => (json.as_str()? == "majority").then_some(Self::Majority),
        }
    }

    fn show(&self) -> Json {
        match self {
            Self::Majority => Json::from("majority"),
            Self::All => Json::from(-1),
            Self::Count(count) => Json::from(*count),
        }
    }

    fn measure(json: &Json) -> Option<i128> {
        u64::measure(json)
    }
}

macro_rules! choice {
    ($(#[$meta:meta])* $type:ident, $expects:literal,
     $($(#[$doc:meta])+ $variant:ident = $name:literal $(or $alias:literal)?),+ $(,)?) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$doc])+ $variant),+ }

        impl Setting for $type {
            const SHAPE: Shape = Shape::Text;
            const EXPECTS: &'static str = $expects;

            fn read(json: &Json) -> Option<Self> {
                match json.as_str()? {
                    $($name $(| $alias)? => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn show(&self) -> Json {
                Json::from(match self { $(Self::$variant => $name),+ })
            }
        }
    };
}

choice! {
    /// What is written to disk before a write is acknowledged.
    WalMode, "one of off, async (also: write), sync (also: fsync)",
    /// Nothing is written; data lives in memory alone.
    Off = "off",
    /// The record is handed to the kernel; it outlives the process, not a loss of power.
    Async = "async" or "write",
    /// The record is on the disk.
    Sync = "sync" or "fsync",
}

choice! {
    /// What happens when memory runs short.
    EvictionPolicy, "one of s3fifo, none",
    /// The least useful entries go.
    S3Fifo = "s3fifo",
    /// Nothing goes; writes are refused.
    None = "none",
}

choice! {
    /// Whether clients must show a certificate.
    TlsClientAuth, "one of none, required",
    /// None is asked for.
    None = "none",
    /// One signed by `tls_ca_file` is.
    Required = "required",
}

choice! {
    /// What to do when no majority of a shard's copies with memory can be had.
    UncleanRecovery, "one of serve, wait",
    /// Go on with the most advanced copy left.
    Serve = "serve",
    /// Wait for the operator.
    Wait = "wait",
}

choice! {
    /// What a node does that learns that it was removed from its cluster.
    WhenRemoved, "one of exit, stay",
    /// It ends.
    Exit = "exit",
    /// It runs on, and serves nobody.
    Stay = "stay",
}

impl Setting for logging::Format {
    const SHAPE: Shape = Shape::Text;
    const EXPECTS: &'static str = "one of text, json";

    fn read(json: &Json) -> Option<Self> {
        match json.as_str()? {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    fn show(&self) -> Json {
        Json::from(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// How a misfit value is named in an error: short, and never a list's or an object's content.
pub(super) fn found(json: &Json) -> String {
    const CHARS_MAX: usize = 60;
    match json {
        Json::String(text) => {
            let mut shown: String = text.chars().take(CHARS_MAX).collect();
            if shown.len() < text.len() {
                shown.push('…');
            }
            format!("{shown:?}")
        }
        Json::Array(list) => {
            let misfit = |item: &&Json| {
                item.as_str().is_none_or(|text| HostPort::parse_reachable(text).is_none())
            };
            let no_text = list.iter().find(|item| !item.is_string());
            match no_text.or_else(|| list.iter().find(misfit)) {
                Some(item) if !item.is_array() => format!("a list with {}", found(item)),
                _ => "a list".to_owned(),
            }
        }
        other => found_kind(other, &other.to_string()),
    }
}

/// How a misfit secret is named: by its kind alone.
pub(super) fn found_secret(json: &Json) -> String {
    match json {
        Json::String(_) => "a string".to_owned(),
        Json::Array(_) => "a list with something else, or something empty, in it".to_owned(),
        Json::Number(_) => "a number".to_owned(),
        other => found_kind(other, "something else"),
    }
}

fn found_kind(json: &Json, otherwise: &str) -> String {
    match json {
        Json::Object(_) => "an object".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Null => "null".to_owned(),
        _ => otherwise.to_owned(),
    }
}
