//! Bearer tokens, as both ports ask for them, and what each of them opens.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use subtle::{Choice, ConstantTimeEq};

use super::pace::Pace;
use super::problem::{Kind, Problem};
use super::settings::Rate;
use crate::metrics::TokenMetrics;

/// What a token may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Reading and listing keys.
    Read,
    /// Changing and deleting them.
    Write,
    /// The actions of the operations port, and its metrics.
    Admin,
    /// The metrics of the operations port.
    Metrics,
}

impl Verb {
    /// The word for it in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }
}

/// Whom tokens stand for, and what they may do.
#[derive(Clone)]
pub struct Holder {
    name: String,
    /// Any of them is accepted.
    tokens: Vec<Box<[u8]>>,
    /// The digests of `tokens`.
    digests: Vec<Digest>,
    /// `None`: everything.
    rights: Option<Rights>,
    pace: Arc<Pace>,
    requests: TokenMetrics,
}

/// The rights of a holder that has not all of them.
#[derive(Clone, Debug)]
pub struct Rights {
    /// What it may do.
    pub verbs: Vec<Verb>,
    /// What keys must begin with, one or another; none: they may be any.
    pub prefixes: Vec<String>,
    /// Limit over all its connections, if there is one.
    pub rate: Option<Rate>,
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, rights, count) = (&self.name, &self.rights, self.tokens.len());
        write!(f, "Holder({name}: {count} tokens, {rights:?})")
    }
}

impl Holder {
    /// Takes the tokens that are accepted, in any order. Without `rights` they open everything.
    pub fn new<T: AsRef<[u8]>>(
        name: &str,
        tokens: impl IntoIterator<Item = T>,
        rights: Option<Rights>,
        requests: TokenMetrics,
    ) -> Self {
        let tokens: Vec<Box<[u8]>> =
            tokens.into_iter().map(|token| Box::from(token.as_ref())).collect();
        let digests = tokens.iter().map(|token| Digest::of(token)).collect();
        let (name, pace) = (name.to_owned(), Arc::default());
        Self { name, tokens, digests, rights, pace, requests }
    }

    /// What the configuration calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts a request by its answer.
    pub fn count(&self, status: StatusCode) {
        self.requests.count(status.as_u16());
    }

    fn rate(&self) -> Option<Rate> {
        self.rights.as_ref().and_then(|rights| rights.rate)
    }

    /// Whether it may do what `verb` says.
    ///
    /// # Errors
    /// What it lacks, and where that is given.
    pub fn may(&self, verb: Verb) -> Result<(), String> {
        let lacks = |rights: &&Rights| {
            let has = |verb| rights.verbs.contains(&verb);
            !(has(verb) || verb == Verb::Metrics && has(Verb::Admin))
        };
        let Some(rights) = self.rights.as_ref().filter(lacks) else { return Ok(()) };
        let has: Vec<_> = rights.verbs.iter().map(|verb| verb.word()).collect();
        Err(format!(
            "this needs a token with the verb {}; that of {} has {}: give it the verb in \
             auth_tokens, or use another token",
            verb.word(),
            self.name,
            has.join(", ")
        ))
    }
}

/// A token that was shown, kept as what it cannot be made from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(token: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, token).as_ref());
        Self(bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest")
    }
}

/// The token in an `Authorization` field, RFC 6750 §2.1.
pub(super) fn shown_token(header: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = header.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// The tokens in force. While there is none, none is asked for.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Vec<Arc<Holder>>);

impl FromIterator<Holder> for Tokens {
    /// Holders without tokens are nobody.
    fn from_iter<H: IntoIterator<Item = Holder>>(holders: H) -> Self {
        let somebody = holders.into_iter().filter(|holder| !holder.tokens.is_empty());
        Self(somebody.map(Arc::new).collect())
    }
}

impl Tokens {
    /// Lets each holder go on at the pace of the one before it that has its name and its rate: what
    /// they were let do counts on.
    pub(super) fn keep_pace(&mut self, before: &Self) {
        for holder in &mut self.0 {
            let same = |old: &&Arc<Holder>| old.name == holder.name && old.rate() == holder.rate();
            if let Some(old) = before.0.iter().find(same) {
                Arc::make_mut(holder).pace = Arc::clone(&old.pace);
            }
        }
    }

    /// Whether no token is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose token `presented` is. The time taken tells the lengths, and whose it is.
    fn holder(&self, presented: &[u8]) -> Option<&Arc<Holder>> {
        let is_of = |holder: &Holder| {
            let compared = holder.tokens.iter().map(|token| token.ct_eq(presented));
            bool::from(compared.fold(Choice::from(0), |any, one| any | one))
        };
        // All are compared, wherever it is found.
        self.0.iter().fold(None, |found, holder| if is_of(holder) { Some(holder) } else { found })
    }

    /// Who shows one of the tokens in an `Authorization` field, RFC 6750 §2.1.
    pub fn shown_in(&self, header: &HeaderValue) -> Option<&Arc<Holder>> {
        self.holder(shown_token(header)?)
    }

    /// What a token opens that was shown before, or that none was: nothing at all (`None`) where
    /// one is asked for, and it is none of these.
    pub(super) fn grant(&self, shown: Option<&Digest>) -> Option<Grant> {
        if self.is_empty() {
            return Some(Grant::default());
        }
        let shown = shown?;
        self.0.iter().find(|holder| holder.digests.contains(shown)).map(Grant::of)
    }

    /// Whether the metrics ask for a token: they do once one is set that is for them by name.
    pub fn guard_metrics(&self) -> bool {
        let named = |rights: &Rights| rights.verbs.contains(&Verb::Metrics);
        self.0.iter().any(|holder| holder.rights.as_ref().is_some_and(named))
    }
}

/// What the token of a request opens; everything where none is asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Grant(Option<Arc<Holder>>);

impl Grant {
    pub(super) fn of(holder: &Arc<Holder>) -> Self {
        Self(Some(Arc::clone(holder)))
    }

    /// Whether it opens a key, or all keys that begin so.
    ///
    /// # Errors
    /// A [`Problem`] that says what it lacks.
    pub(super) fn check(&self, verb: Verb, key: &[u8]) -> Result<(), Problem> {
        let Some(holder) = &self.0 else { return Ok(()) };
        holder.may(verb).map_err(|lacking| Problem::new(Kind::Forbidden, lacking))?;
        let prefixes = holder.rights.iter().flat_map(|rights| &rights.prefixes);
        let mut prefixes = prefixes.map(String::as_str).peekable();
        if prefixes.peek().is_none() || prefixes.clone().any(|p| key.starts_with(p.as_bytes())) {
            return Ok(());
        }
        let detail = format!(
            "the token of {} is for keys that begin with {}; give it the prefix in auth_tokens, \
             or use another token",
            holder.name,
            prefixes.map(|prefix| format!("{prefix:?}")).collect::<Vec<_>>().join(" or ")
        );
        Err(Problem::new(Kind::Forbidden, detail))
    }

    /// Whether it opens any key at all, to read or to write.
    ///
    /// # Errors
    /// A [`Problem`] that says what it lacks.
    pub(super) fn check_any(&self) -> Result<(), Problem> {
        let Some(holder) = &self.0 else { return Ok(()) };
        let may = holder.may(Verb::Write).or_else(|_| holder.may(Verb::Read));
        may.map_err(|lacking| Problem::new(Kind::Forbidden, lacking))
    }

    /// Takes the right to `count` operations.
    ///
    /// # Errors
    /// A [`Problem`] when the token's rate does not allow them now, or ever at once.
    pub(super) fn spend(&self, count: usize) -> Result<(), Problem> {
        self.0.as_ref().map_or(Ok(()), |holder| holder.pace.spend(holder.rate(), count))
    }

    /// Takes the right to one more operation of a stream, or says how long to wait before it asks
    /// again.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.0.as_ref().and_then(|holder| holder.pace.pause(holder.rate()))
    }

    /// Counts the request by its answer.
    pub(super) fn count(&self, status: StatusCode) {
        if let Some(holder) = &self.0 {
            holder.count(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str, tokens: &[&str], rights: Option<Rights>) -> Holder {
        Holder::new(name, tokens, rights, TokenMetrics::default())
    }

    fn rights(verbs: &[Verb], prefixes: &[&str]) -> Option<Rights> {
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        Some(Rights { verbs: verbs.to_vec(), prefixes, rate: None })
    }

    #[test]
    fn any_of_the_tokens_is_accepted_and_nothing_else() {
        let all = holder("auth_token", &["new", "old"], None);
        let shop = holder("shop", &["shop's"], rights(&[Verb::Read], &[]));
        let tokens: Tokens = [all, shop, holder("nobody", &[], None)].into_iter().collect();
        let name = |presented: &str| tokens.holder(presented.as_bytes()).map(|h| h.name());
        assert_eq!(name("new").or(name("old")), Some("auth_token"));
        assert_eq!(name("shop's"), Some("shop"));
        assert_eq!([name(""), name("ne"), name("newold"), name("shop")], [None; 4]);
        assert!(!format!("{tokens:?}").contains("new"));
        assert!([holder("nobody", &[], None)].into_iter().collect::<Tokens>().is_empty());
    }

    #[test]
    fn a_grant_is_bounded_by_verbs_and_by_prefixes() {
        let grant = |rights| Grant::of(&Arc::new(holder("shop", &["t"], rights)));
        let refused = |grant: &Grant, verb, key: &str| {
            let problem = grant.check(verb, key.as_bytes()).err()?;
            Some(serde_json::to_value(problem.fields()).unwrap()["detail"].to_string())
        };
        let reader = grant(rights(&[Verb::Read], &["shop:", "cart:"]));
        assert_eq!(refused(&reader, Verb::Read, "shop:1"), None);
        assert_eq!(refused(&reader, Verb::Read, "cart:"), None);
        let lacking = refused(&reader, Verb::Write, "shop:1").unwrap();
        assert!(lacking.contains("the verb write; that of shop has read"), "{lacking}");
        for outside in ["shop", "", "shipping:1"] {
            let lacking = refused(&reader, Verb::Read, outside).unwrap();
            assert!(lacking.contains(r#"begin with \"shop:\" or \"cart:\""#), "{lacking}");
        }
        let everything = grant(None);
        assert_eq!(refused(&everything, Verb::Write, ""), None);
        assert_eq!(refused(&Grant::default(), Verb::Write, ""), None);
    }

    #[test]
    fn metrics_ask_for_a_token_once_one_is_for_them() {
        let tokens = |rights| [holder("some", &["t"], rights)].into_iter().collect::<Tokens>();
        assert!(!tokens(None).guard_metrics());
        assert!(!tokens(rights(&[Verb::Admin], &[])).guard_metrics());
        assert!(tokens(rights(&[Verb::Metrics], &[])).guard_metrics());
    }
}
