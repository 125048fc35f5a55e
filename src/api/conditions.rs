//! `If-Match` and `If-None-Match`, RFC 9110 §13: ETags, as they are written and as they compare.
//!
//! Invariant: an ETag that this server would not give out is compared like any other, and matches
//! nothing. Proxies make ETags weak, and clients bring along several.

use super::params::{self, Malformed};
use crate::entry::Version;
use crate::shard::Condition;

/// What either field holds, all its lines together.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Etags {
    /// `*`: whatever is there.
    Any,
    These(Vec<Etag>),
}

/// An entity tag, RFC 9110 §8.8.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Etag {
    weak: bool,
    /// The version that it stands for, if it is one that this server could have given out.
    version: Option<Version>,
}

impl Etags {
    /// Reads the lines of one field; `None` if they are no list of ETags, or an empty one.
    pub(super) fn parse<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let (mut stars, mut etags) = (0, Vec::new());
        for line in lines {
            if line.trim_ascii() == b"*" {
                stars += 1;
            } else {
                parse_line(line, &mut etags)?;
            }
        }
        match (stars, etags.is_empty()) {
            (0, false) => Some(Self::These(etags)),
            (1, true) => Some(Self::Any),
            _ => None,
        }
    }

    /// The one of a version.
    pub(super) fn of(version: Version) -> Self {
        Self::These(vec![Etag { weak: false, version: Some(version) }])
    }

    /// Whether the version is among them, by the strong comparison: a weak ETag matches nothing.
    fn hold_strongly(&self, version: Version) -> bool {
        match self {
            Self::Any => true,
            Self::These(etags) => etags.iter().any(|e| !e.weak && e.version == Some(version)),
        }
    }

    /// The same by the weak comparison.
    fn hold_weakly(&self, version: Version) -> bool {
        match self {
            Self::Any => true,
            Self::These(etags) => etags.iter().any(|e| e.version == Some(version)),
        }
    }

    /// As a write's `If-Match`.
    pub(super) fn wanted(self) -> Condition {
        let Self::These(etags) = self else { return Condition::Present };
        let strong = etags.into_iter().filter(|etag| !etag.weak);
        let versions: Vec<_> = strong.filter_map(|etag| etag.version).collect();
        match versions[..] {
            [version] => Condition::Is(version),
            _ => Condition::OneOf(versions),
        }
    }

    /// As a write's `If-None-Match`.
    pub(super) fn unwanted(self) -> Condition {
        let Self::These(etags) = self else { return Condition::Absent };
        Condition::NoneOf(etags.into_iter().filter_map(|etag| etag.version).collect())
    }
}

/// Appends the ETags of a line; a comma may stand in one, and nothing between two commas.
fn parse_line(mut rest: &[u8], etags: &mut Vec<Etag>) -> Option<()> {
    loop {
        rest = rest.trim_ascii_start();
        match rest {
            [] => return Some(()),
            [b',', after @ ..] => rest = after,
            _ => {
                let unprefixed = rest.strip_prefix(b"W/");
                let quoted = unprefixed.unwrap_or(rest).strip_prefix(b"\"")?;
                let end = quoted.iter().position(|byte| *byte == b'"')?;
                let version = std::str::from_utf8(&quoted[..end]).ok().and_then(params::digits);
                etags.push(Etag { weak: unprefixed.is_some(), version });
                rest = quoted[end + 1..].trim_ascii_start();
                if !matches!(rest, [] | [b',', ..]) {
                    return None;
                }
            }
        }
    }
}

/// What must hold for a write.
///
/// # Errors
/// [`Malformed::TwoConditions`].
pub(super) fn of_write(
    if_match: Option<Etags>,
    if_none_match: Option<Etags>,
) -> Result<Condition, Malformed> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::Always),
        (Some(etags), None) => Ok(etags.wanted()),
        (None, Some(etags)) => Ok(etags.unwanted()),
        (Some(_), Some(_)) => Err(Malformed::TwoConditions),
    }
}

/// What a reader has already, or insists on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReadCondition {
    pub(super) wanted: Option<Etags>,
    pub(super) known: Option<Etags>,
}

impl ReadCondition {
    /// Whether the reader insists on another version than `present`.
    pub(super) fn fails(&self, present: Version) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| !wanted.hold_strongly(present))
    }

    /// Whether the reader insists on any version at all.
    pub(super) fn fails_on_absence(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether the reader has `present` already.
    pub(super) fn knows(&self, present: Version) -> bool {
        self.known.as_ref().is_some_and(|known| known.hold_weakly(present))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etags(lines: &[&'static str]) -> Option<Etags> {
        Etags::parse(lines.iter().map(|line| line.as_bytes()))
    }

    #[test]
    fn etags_are_read_from_lists_and_from_several_lines() {
        let etag = |weak, version: u64| Etag { weak, version: Some(Version(version)) };
        let foreign = |weak| Etag { weak, version: None };
        for (lines, expected) in [
            (&["\"7\""][..], vec![etag(false, 7)]),
            (&["W/\"7\",\"8\" , \"9\""], vec![etag(true, 7), etag(false, 8), etag(false, 9)]),
            (&["\"7\"", "W/\"8\""], vec![etag(false, 7), etag(true, 8)]),
            (&[", \"7\",, ,\"8\","], vec![etag(false, 7), etag(false, 8)]),
            (&["\"5d8c72-a,b\""], vec![foreign(false)]),
            (&["W/\"\", \"7-gzip\""], vec![foreign(true), foreign(false)]),
            (&["\"07\", \"+7\", \"18446744073709551616\""], vec![foreign(false); 3]),
            (&["\"\u{e4}\""], vec![foreign(false)]),
        ] {
            assert_eq!(etags(lines), Some(Etags::These(expected)), "{lines:?}");
        }
        assert_eq!(etags(&[" * "]), Some(Etags::Any));
    }

    #[test]
    fn what_is_no_list_of_etags_is_none() {
        for bad in [
            "",
            " ",
            ",",
            "7",
            "seven",
            "\"7",
            "7\"",
            "w/\"7\"",
            "W/ \"7\"",
            "W/7",
            "\"7\" \"8\"",
            "\"7\"8",
            "*, \"7\"",
            "**",
            "\"7\", x",
        ] {
            assert_eq!(etags(&[bad]), None, "{bad}");
        }
        assert_eq!(etags(&["*", "*"]), None);
        assert_eq!(etags(&["*", "\"7\""]), None);
    }

    #[test]
    fn a_write_compares_strongly_what_it_wants_and_weakly_what_it_does_not() {
        let wanted = |text| etags(&[text]).unwrap().wanted();
        assert_eq!(wanted("*"), Condition::Present);
        assert_eq!(wanted("\"7\""), Condition::Is(Version(7)));
        assert_eq!(wanted("\"x\", \"7\""), Condition::Is(Version(7)));
        assert_eq!(wanted("W/\"7\""), Condition::OneOf(Vec::new()));
        assert_eq!(wanted("\"x\""), Condition::OneOf(Vec::new()));
        assert_eq!(wanted("\"7\", \"8\""), Condition::OneOf(vec![Version(7), Version(8)]));
        let unwanted = |text| etags(&[text]).unwrap().unwanted();
        assert_eq!(unwanted("*"), Condition::Absent);
        assert_eq!(unwanted("W/\"7\", \"x\""), Condition::NoneOf(vec![Version(7)]));
    }

    #[test]
    fn a_read_compares_strongly_what_it_wants_and_weakly_what_it_knows() {
        let fails = |text| ReadCondition { wanted: etags(&[text]), known: None }.fails(Version(7));
        assert!(!fails("\"6\", \"7\"") && !fails("*"));
        assert!(fails("W/\"7\"") && fails("\"6\"") && fails("\"7-gzip\""));
        let knows = |text| ReadCondition { wanted: None, known: etags(&[text]) }.knows(Version(7));
        assert!(knows("\"6\", W/\"7\"") && knows("*"));
        assert!(!knows("\"6\"") && !knows("W/\"7-gzip\""));
    }
}
