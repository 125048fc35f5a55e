//! Tokens by name, each with what it is for: the key `auth_tokens`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::check::{SECRET_BYTES_ADVISED, secrets_in};
use super::secret::{Secret, Secrets};
use super::setting::{Setting, Shape};
use crate::api::Verb;

/// What `auth_token` is called where a token's name is shown.
pub const EVERYTHING: &str = "auth_token";

/// Most of them: each request's token is compared with all.
const TOKENS_MAX: usize = 256;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// A token with a name, or several while it is rotated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedToken {
    /// The name, for logs and metrics.
    pub name: String,
    /// File with the tokens, one a line; all are accepted.
    pub file: PathBuf,
    /// What it may do.
    pub verbs: Vec<Verb>,
    /// What keys must begin with, one or another; unset: they may be any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Operations a second over all its connections to a node, and at once after a rest. 0: no limit.
    #[serde(default)]
    pub rate: u32,
    /// What the file holds.
    #[serde(skip)]
    pub secrets: Secrets,
}

impl Setting for Vec<NamedToken> {
    const SHAPE: Shape = Shape::Json;
    const EXPECTS: &'static str = "a list of objects, each with name, file and verbs (of read, \
         write, admin, metrics), and if wanted prefixes and rate";
    const NEAR_SECRETS: bool = true;

    fn read(json: &Json) -> Option<Self> {
        json.as_array()?.iter().map(|one| entry(one).ok()).collect()
    }

    fn show(&self) -> Json {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn misfit(json: &Json) -> Option<String> {
        let mut tokens = json.as_array()?.iter().enumerate();
        let fault = |(at, one)| entry(one).err().map(|error| (at, error));
        tokens
            .find_map(fault)
            .map(|(at, error)| format!("its entry {} does not fit: {error}", at + 1))
    }
}

/// An entry; its fields have names, so a list of them is none.
fn entry(json: &Json) -> Result<NamedToken, String> {
    let Some(fields) = json.as_object() else {
        return Err("it is no object".to_owned());
    };
    // What somebody's template made of a list that it was not given must not open every key.
    if fields.get("prefixes").and_then(Json::as_array).is_some_and(Vec::is_empty) {
        return Err(
            "its prefixes are an empty list; leave them out if it is for all keys".to_owned()
        );
    }
    NamedToken::deserialize(json).map_err(|_| misfit_of(fields))
}

/// What does not fit of an entry. The parser's own words would repeat the value, which may be a token
/// in the wrong place.
fn misfit_of(fields: &Map<String, Json>) -> String {
    type Fits = fn(&Json) -> bool;
    const FIELDS: [(&str, &str, Fits); 5] = [
        ("name", "name is no text", Json::is_string),
        ("file", "file is no path", Json::is_string),
        ("verbs", "verbs are no list of read, write, admin, metrics", |json| {
            Vec::<Verb>::deserialize(json).is_ok()
        }),
        ("prefixes", "prefixes are no list of texts", |json| {
            Vec::<String>::deserialize(json).is_ok()
        }),
        ("rate", "rate is no whole number of operations", |json| u32::deserialize(json).is_ok()),
    ];
    for (name, misfit, fits) in FIELDS {
        match fields.get(name) {
            Some(value) if !fits(value) => return format!("its {misfit}"),
            None if matches!(name, "name" | "file" | "verbs") => {
                return format!("it has no {name}");
            }
            _ => {}
        }
    }
    "it has a field that is none of name, file, verbs, prefixes, rate".to_owned()
}

/// What is wrong with a key, and how to mend it.
type Fault = (String, String);

/// Reads the tokens' files; answers what is wrong with each that is at fault.
pub(super) fn read_files(tokens: &mut [NamedToken]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for token in tokens {
        match secrets_in(&token.file) {
            Ok(secrets) => token.secrets = secrets,
            Err((what, mend)) => faults.push((format!("the file of {}: {what}", token.name), mend)),
        }
    }
    faults
}

/// What has no effect, or one that hardly anybody means.
pub(super) fn oddities(tokens: &[NamedToken], everything: &Secrets) -> Vec<Fault> {
    let mut oddities = Vec::new();
    for NamedToken { name, verbs, prefixes, rate, .. } in tokens {
        let is_for_keys = verbs.iter().any(|verb| matches!(verb, Verb::Read | Verb::Write));
        let idle = [("prefixes", !prefixes.is_empty()), ("a rate", *rate > 0)];
        for (what, _) in idle.into_iter().filter(|(_, given)| *given && !is_for_keys) {
            let what = format!("{name} has {what}, which only count for read and write");
            oddities.push((what, "remove it, or give the token such a verb".to_owned()));
        }
    }
    let opens_none = |verb| !tokens.iter().any(|token| token.verbs.contains(&verb));
    if !tokens.is_empty()
        && everything.is_empty()
        && opens_none(Verb::Read)
        && opens_none(Verb::Write)
    {
        let what = "give nobody the verbs read and write, so all keys are for nobody";
        oddities.push((what.to_owned(), "give them to one, or set auth_token".to_owned()));
    }
    if !tokens.is_empty() && everything.is_empty() && opens_none(Verb::Admin) {
        let what = "give nobody the verb admin, so the actions of port 7702 are for nobody";
        oddities.push((what.to_owned(), "give it to one of them, or set auth_token".to_owned()));
    }
    oddities
}

/// What is wrong with the tokens, beside the ones that open everything.
pub(super) fn faults(tokens: &[NamedToken], everything: &Secrets) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |what: String, mend: &str| faults.push((what, mend.to_owned()));
    if tokens.len() > TOKENS_MAX {
        fault(format!("holds {} tokens", tokens.len()), "give at most 256");
    }
    let (mut names, mut texts) = (BTreeSet::from([EVERYTHING]), BTreeSet::new());
    texts.extend(everything.iter().map(Secret::expose));
    for token in tokens {
        let name = &token.name;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
            let mend = "use 1 to 64 letters, digits, dots, hyphens and underscores";
            fault(format!("{name:?} is no name for a token"), mend);
        } else if !names.insert(name) {
            fault(format!("{name} is taken already"), "give each token a name of its own");
        }
        if token.verbs.is_empty() {
            let mend = "give it some of read, write, admin, metrics";
            fault(format!("{name} has no verbs, so it is for nothing"), mend);
        }
        if token.prefixes.iter().any(String::is_empty) {
            let mend = "leave prefixes out if it is for all keys";
            fault(format!("{name} has an empty prefix"), mend);
        }
        // Whose it is could not be told.
        let mut own = BTreeSet::new();
        if !token.secrets.iter().all(|secret| own.insert(secret.expose())) {
            fault(format!("the file of {name} holds a token twice"), "remove one of the two");
        }
        if !own.into_iter().all(|text| texts.insert(text)) {
            let mend = "give each name a token of its own, made with `aegiskv token`";
            fault(format!("{name} has a token that stands elsewhere as well"), mend);
        }
    }
    faults
}

/// Names of those with a token that is short.
pub(super) fn short(tokens: &[NamedToken]) -> Vec<&str> {
    let is_short = |secret: &Secret| secret.expose().len() < SECRET_BYTES_ADVISED;
    let short = tokens.iter().filter(|token| token.secrets.iter().any(is_short));
    short.map(|token| token.name.as_str()).collect()
}
