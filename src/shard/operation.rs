//! What clients may ask of a key, and the judgement of it against the key's present state.

use std::time::Duration;

use bytes::Bytes;

use crate::entry::{Departure, Effect, Timestamp, Verdict, Version};

/// Content type of a counter that `incr` created.
const COUNTER_CONTENT_TYPE: &[u8] = b"text/plain; charset=utf-8";

/// Longest text of a 64-bit integer, in bytes.
pub const INTEGER_BYTES_MAX: usize = 20;

/// How long the key shall live from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Ttl {
    /// For ever.
    Unlimited,
    /// As long as it was going to.
    Keep,
    /// This long, from the primary's clock.
    For(Duration),
}

/// What must hold for a write to happen.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Condition {
    /// Nothing.
    Always,
    /// There is no live value (`If-None-Match: *`).
    Absent,
    /// There is a live value (`If-Match: *`).
    Present,
    /// The live value has this version (`If-Match: "v"`).
    Is(Version),
    /// The live value has one of these versions; of none, the condition never holds.
    OneOf(Vec<Version>),
    /// There is no live value with one of these versions (`If-None-Match: "v"`).
    NoneOf(Vec<Version>),
}

impl Condition {
    /// Whether it holds while the live value, if there is one, has the version `live`.
    pub fn holds(&self, live: Option<Version>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => live.is_none(),
            Self::Present => live.is_some(),
            Self::Is(version) => live == Some(*version),
            Self::OneOf(versions) => live.is_some_and(|live| versions.contains(&live)),
            Self::NoneOf(versions) => live.is_none_or(|live| !versions.contains(&live)),
        }
    }
}

/// A write, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Operation {
    /// Store a value.
    Put {
        /// The bytes.
        value: Bytes,
        /// As the client sent it; empty if unset.
        content_type: Bytes,
        /// Its time to live.
        ttl: Ttl,
    },
    /// Delete, whether or not it is there.
    Delete,
    /// Add to an integer, creating it at 0.
    Incr {
        /// What to add.
        by: i64,
        /// Time to live, if this creates it; `None` for ever.
        ttl: Option<Duration>,
    },
    /// Set a new time to live.
    Touch {
        /// The new one; [`Ttl::Keep`] only gives a new version.
        ttl: Ttl,
    },
    /// Nothing but a verdict to be kept beside the request id: the sum of a longer piece of work.
    Note(Verdict),
}

/// The live entry that a write meets.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    /// Its version.
    pub version: Version,
    /// When it expires, if ever.
    pub expires_at: Option<Timestamp>,
    /// Its bytes.
    pub value: &'a [u8],
    /// Its content type.
    pub content_type: &'a [u8],
}

impl Operation {
    /// Decides what the operation does to a key whose live entry is `live`, at `now`.
    ///
    /// A refusal is an answer too: an [`Effect::None`] with the verdict that says why.
    pub fn judge(
        self,
        condition: Condition,
        live: Option<Live<'_>>,
        now: Timestamp,
    ) -> (Effect, Verdict) {
        let present = live.map(|l| l.version);
        if !condition.holds(present) {
            return (Effect::None, Verdict::ConditionFailed(present));
        }
        match self {
            Self::Put { value, content_type, ttl } => {
                let expires_at = expiry(ttl, live, now);
                let verdict = if live.is_some() { Verdict::Replaced } else { Verdict::Created };
                (Effect::Put { value, content_type, expires_at }, verdict)
            }
            // Also where nothing is: the record raises the key's fencing version.
            Self::Delete => (Effect::Remove(Departure::Deleted), Verdict::Deleted),
            Self::Incr { by, ttl } => incr(by, ttl, live, now),
            Self::Touch { ttl } => match live {
                Some(_) => (Effect::Touch { expires_at: expiry(ttl, live, now) }, Verdict::Touched),
                None => (Effect::None, Verdict::Absent),
            },
            Self::Note(verdict) => (Effect::None, verdict),
        }
    }
}

fn expiry(ttl: Ttl, live: Option<Live<'_>>, now: Timestamp) -> Option<Timestamp> {
    match ttl {
        Ttl::Unlimited => None,
        Ttl::Keep => live.and_then(|l| l.expires_at),
        // A span past the end of time is for ever.
        Ttl::For(span) => now.checked_add(span),
    }
}

fn incr(
    by: i64,
    ttl: Option<Duration>,
    live: Option<Live<'_>>,
    now: Timestamp,
) -> (Effect, Verdict) {
    let present = match live {
        None => Some(0),
        Some(l) => std::str::from_utf8(l.value).ok().and_then(|text| text.parse::<i64>().ok()),
    };
    let Some(sum) = present.and_then(|n| n.checked_add(by)) else {
        return (Effect::None, Verdict::NotAnInteger);
    };
    let (content_type, expires_at) = match live {
        Some(l) => (Bytes::copy_from_slice(l.content_type), l.expires_at),
        None => {
            (Bytes::from_static(COUNTER_CONTENT_TYPE), ttl.and_then(|span| now.checked_add(span)))
        }
    };
    let value = Bytes::from(sum.to_string());
    (Effect::Put { value, content_type, expires_at }, Verdict::Number(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn live(value: &'static [u8]) -> Option<Live<'static>> {
        Some(Live {
            version: Version(77),
            expires_at: Some(Timestamp(1_000_500)),
            value,
            content_type: b"text/css",
        })
    }

    fn put(ttl: Ttl) -> Operation {
        Operation::Put { value: Bytes::from_static(b"v"), content_type: Bytes::new(), ttl }
    }

    #[test]
    fn a_condition_that_fails_names_the_version_that_is_there() {
        let refused = |condition, live| put(Ttl::Unlimited).judge(condition, live, NOW);
        let failed = |version| (Effect::None, Verdict::ConditionFailed(version));
        assert_eq!(refused(Condition::Absent, live(b"x")), failed(Some(Version(77))));
        assert_eq!(refused(Condition::Is(Version(76)), live(b"x")), failed(Some(Version(77))));
        assert_eq!(refused(Condition::Is(Version(77)), None), failed(None));
        assert_eq!(refused(Condition::Present, None), failed(None));
        let (these, none) = (vec![Version(7), Version(77)], Vec::new());
        assert_eq!(refused(Condition::OneOf(these.clone()), None), failed(None));
        assert_eq!(refused(Condition::OneOf(none), live(b"x")), failed(Some(Version(77))));
        assert_eq!(refused(Condition::NoneOf(these), live(b"x")), failed(Some(Version(77))));
    }

    #[test]
    fn a_condition_that_holds_lets_the_write_through() {
        let verdict = |condition, live| put(Ttl::Unlimited).judge(condition, live, NOW).1;
        assert_eq!(verdict(Condition::Absent, None), Verdict::Created);
        assert_eq!(verdict(Condition::Is(Version(77)), live(b"x")), Verdict::Replaced);
        assert_eq!(verdict(Condition::Present, live(b"x")), Verdict::Replaced);
        let these = vec![Version(7), Version(77)];
        assert_eq!(verdict(Condition::OneOf(these.clone()), live(b"x")), Verdict::Replaced);
        assert_eq!(verdict(Condition::NoneOf(these), None), Verdict::Created);
        assert_eq!(verdict(Condition::NoneOf(vec![Version(7)]), live(b"x")), Verdict::Replaced);
    }

    #[test]
    fn a_ttl_counts_from_now_or_is_kept() {
        let expires_at = |ttl, live| match put(ttl).judge(Condition::Always, live, NOW).0 {
            Effect::Put { expires_at, .. } => expires_at,
            other => panic!("{other:?}"),
        };
        assert_eq!(expires_at(Ttl::For(Duration::from_secs(2)), None), Some(Timestamp(1_002_000)));
        assert_eq!(expires_at(Ttl::Keep, live(b"x")), Some(Timestamp(1_000_500)));
        assert_eq!(expires_at(Ttl::Keep, None), None);
        assert_eq!(expires_at(Ttl::Unlimited, live(b"x")), None);
        assert_eq!(expires_at(Ttl::For(Duration::MAX), None), None);
    }

    #[test]
    fn incr_creates_at_zero_and_keeps_what_the_counter_had() {
        let ttl = Some(Duration::from_secs(60));
        let (effect, verdict) = Operation::Incr { by: -3, ttl }.judge(Condition::Always, None, NOW);
        assert_eq!(verdict, Verdict::Number(-3));
        assert_eq!(
            effect,
            Effect::Put {
                value: Bytes::from_static(b"-3"),
                content_type: Bytes::from_static(b"text/plain; charset=utf-8"),
                expires_at: Some(Timestamp(1_060_000)),
            }
        );
        let (effect, verdict) =
            Operation::Incr { by: 1, ttl }.judge(Condition::Always, live(b"41"), NOW);
        assert_eq!(verdict, Verdict::Number(42));
        assert_eq!(
            effect,
            Effect::Put {
                value: Bytes::from_static(b"42"),
                content_type: Bytes::from_static(b"text/css"),
                expires_at: Some(Timestamp(1_000_500)),
            }
        );
    }

    #[test]
    fn incr_refuses_what_is_no_integer_and_what_would_overflow() {
        let verdict = |value, by| {
            Operation::Incr { by, ttl: None }.judge(Condition::Always, live(value), NOW)
        };
        assert_eq!(verdict(b"4x", 1), (Effect::None, Verdict::NotAnInteger));
        assert_eq!(verdict(b"", 1), (Effect::None, Verdict::NotAnInteger));
        assert_eq!(verdict(b"9223372036854775807", 1), (Effect::None, Verdict::NotAnInteger));
        assert_eq!(verdict(b"-9223372036854775808", -1), (Effect::None, Verdict::NotAnInteger));
    }

    #[test]
    fn touch_of_nothing_is_absent() {
        let touch = Operation::Touch { ttl: Ttl::Unlimited };
        assert_eq!(touch.judge(Condition::Always, None, NOW), (Effect::None, Verdict::Absent));
    }
}
