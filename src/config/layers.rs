//! From sources to one set of values, each with where it came from.
//!
//! Every file, variable and flag becomes a provider of its own, so that figment can tell which of
//! them set a key. All that is wrong is gathered; nothing stops at the first fault.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value as Json;

use super::keys::{ALIASES, Config, KEYS, Key, OBSOLETE};
use super::problem::Problem;
use super::repeated::Written;
use super::setting::{Setting, Shape, found, found_secret};

/// Where a key stands that no source gives.
pub(super) const DEFAULT: &str = "default";

/// Largest edit distance at which a known key is offered for an unknown one.
const SLIP_EDITS_MAX: usize = 3;

/// A configuration file's text, with the path it is named by.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its path, as errors show it.
    pub path: PathBuf,
    /// Its bytes.
    pub text: Vec<u8>,
}

/// What was gathered from all sources.
#[derive(Default)]
pub(super) struct Layers {
    figment: Figment,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

/// One source's values, under the name that errors and `config show` give it.
struct Layer {
    origin: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

impl Layers {
    /// Lays a file's keys over what is there.
    pub(super) fn add_document(&mut self, document: &Document) {
        let origin = document.path.display().to_string();
        if let Some((what, mend)) = byte_order_mark(&document.text) {
            let problem = Problem::with_source(origin, what, mend);
            return self.problems.push(Problem { position: Some((1, 1)), ..problem });
        }
        let entries = match parse(&document.text) {
            Ok(entries) => entries,
            Err(error) => return self.problems.push(not_json(origin, &error)),
        };
        let mut values = Dict::new();
        for (name, Written { json, twice }) in entries {
            let Some(key) = self.known(&name, &name, &origin) else {
                continue;
            };
            if values.contains_key(key.name) {
                let mend = "keep one of them";
                self.problems.push(Problem::with_key(name, &origin, "stands there twice", mend));
                continue;
            }
            if let Some(twice) = twice {
                self.repeated(key, &origin, &twice);
            }
            if key.secret && json == "" {
                let mend = "give it, or remove the key; null unsets it";
                self.warnings.push(Problem::with_key(name, &origin, "is empty", mend));
            }
            values.insert(key.name.to_owned(), to_figment(&json));
        }
        self.merge(Layer { origin, values });
    }

    /// Lays the variables `AEGIS_*` over what is there.
    pub(super) fn add_environment(&mut self, variables: &[(OsString, OsString)]) {
        let mut given = BTreeSet::new();
        for (variable, value) in variables {
            let Some(variable) = variable.to_str() else {
                continue;
            };
            let Some(name) = variable.strip_prefix("AEGIS_") else {
                continue;
            };
            let origin = format!("environment {variable}");
            if is_service_link(name) {
                let mend = "set enableServiceLinks to false in the pod, to be rid of it";
                self.warnings.push(Problem::with_source(
                    origin,
                    "has the look of a variable that Kubernetes made, and is not read",
                    mend,
                ));
                continue;
            }
            let name = name.to_ascii_lowercase();
            match value.to_str() {
                Some(text) => self.add_text(&name, variable, text, origin, &mut given),
                None => self.problems.push(Problem::with_key(
                    name,
                    origin,
                    "the value is not UTF-8",
                    "give it in UTF-8",
                )),
            }
        }
    }

    /// Lays flags over what is there; they are named as keys are, or with hyphens.
    pub(super) fn add_flags(&mut self, flags: &BTreeMap<String, String>) {
        let mut given = BTreeSet::new();
        for (flag, text) in flags {
            let flag = flag.trim_start_matches('-').replace('_', "-");
            let origin = format!("flag --{flag}");
            self.add_text(&flag.replace('-', "_"), &flag, text, origin, &mut given);
        }
    }

    fn add_text(
        &mut self,
        name: &str,
        written: &str,
        text: &str,
        origin: String,
        given: &mut BTreeSet<&'static str>,
    ) {
        let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
        let name = alias.map_or(name, |(_, key)| key);
        let Some(key) = self.known(name, written, &origin) else {
            return;
        };
        if !given.insert(key.name) {
            let what = "is given twice, under two names";
            self.problems.push(Problem::with_key(key.name, origin, what, "keep one of them"));
            return;
        }
        if text.is_empty() && key.gives_secret() {
            let mend = "give it, or unset the variable or the flag";
            self.warnings.push(Problem::with_key(key.name, &origin, "is empty", mend));
        }
        if let (Shape::Json, Ok(Written { twice: Some(twice), .. })) =
            (key.shape, serde_json::from_str(text))
        {
            self.repeated(key, &origin, &twice);
        }
        let json = key.shape.json_from_text(text);
        let values = Dict::from([(key.name.to_owned(), to_figment(&json))]);
        self.merge(Layer { origin, values });
    }

    /// Notes that a name stands twice in an object of a key's value; one of them would be passed over.
    fn repeated(&mut self, key: &Key, origin: &str, twice: &str) {
        let what = format!("holds an object in which {twice:?} stands twice");
        self.problems.push(Problem::with_key(key.name, origin, what, "keep one of them"));
    }

    fn merge(&mut self, layer: Layer) {
        // Figment's merge goes into objects; a key's value must replace the one before whole. No
        // key takes an object, so an object that replaces another is an error either way.
        self.figment = std::mem::take(&mut self.figment).merge(layer);
    }

    /// The key of that name; notes the problem or the warning if there is none.
    fn known(&mut self, name: &str, written: &str, origin: &str) -> Option<&'static Key> {
        if let Some(key) = Key::find(name) {
            return Some(key);
        }
        if OBSOLETE.contains(&name) {
            let what = "belongs to the Go prototype and has no effect here";
            self.warnings.push(Problem::with_key(written, origin, what, "remove it"));
            return None;
        }
        let mend = match nearest(name) {
            Some(key) => format!("did you mean {key}?"),
            None => "`aegiskv config default` prints every key".to_owned(),
        };
        self.problems.push(Problem::with_key(written, origin, "unknown key", mend));
        None
    }

    /// Reads every key.
    pub(super) fn read(&mut self) -> (Config, Origins, BTreeSet<&'static str>) {
        let mut reader = Reader { layers: self, broken: BTreeSet::new() };
        let config = Config::read(&mut reader);
        let broken = reader.broken;
        let origins = KEYS.iter().map(|key| (key.name, self.origin(key.name))).collect();
        (config, Origins(origins), broken)
    }

    fn value(&self, name: &str) -> Option<Json> {
        // `null` in a file means: as if it had not been given.
        self.figment.extract_inner::<Json>(name).ok().filter(|json| !json.is_null())
    }

    fn origin(&self, name: &str) -> String {
        let metadata = self.value(name).and_then(|_| self.figment.find_metadata(name));
        metadata.map_or_else(|| DEFAULT.to_owned(), |metadata| metadata.name.to_string())
    }
}

/// Where each key's value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins(BTreeMap<&'static str, String>);

impl Origins {
    /// Where `key`'s value came from: `default`, a file's path, `environment AEGIS_…` or
    /// `flag --…`.
    pub fn of(&self, key: &str) -> &str {
        self.0.get(key).map_or(DEFAULT, String::as_str)
    }

    pub(super) fn set(&mut self, key: &'static str, origin: String) {
        self.0.insert(key, origin);
    }
}

/// Reads the values of single keys for [`Config::read`].
pub(super) struct Reader<'a> {
    layers: &'a mut Layers,
    broken: BTreeSet<&'static str>,
}

impl Reader<'_> {
    /// The value of `name`, or its default after noting what is wrong with the value given.
    pub(super) fn read<S: Setting>(&mut self, name: &'static str) -> S {
        let key = Key::find(name).expect("the table that names the field holds the key");
        if let Some(json) = self.layers.value(name) {
            match judge(key, &json) {
                Ok(value) => return value,
                Err((what, mend)) => {
                    let origin = self.layers.origin(name);
                    self.layers.problems.push(Problem::with_key(name, origin, what, mend));
                    self.broken.insert(name);
                }
            }
        }
        S::read(&key.default_json()).expect("every default in the table fits its key")
    }
}

/// Takes a value, or says what is wrong with it and how to mend it.
fn judge<S: Setting>(key: &Key, json: &Json) -> Result<S, (String, String)> {
    let shown = if S::NEAR_SECRETS { found_secret(json) } else { found(json) };
    if let (Some((least, greatest)), Some(show), Some(size)) =
        (key.range, key.range_text, S::measure(json))
        && !(i128::from(least)..=i128::from(greatest)).contains(&size)
    {
        let mend = format!("give {}", show((least, greatest)));
        return Err((format!("{shown} is out of range"), mend));
    }
    S::read(json).ok_or_else(|| {
        let what = S::misfit(json).unwrap_or_else(|| format!("{shown} does not fit"));
        (what, format!("give {}", S::EXPECTS))
    })
}

/// The known key that `name` was most likely meant to be.
fn nearest(name: &str) -> Option<&'static str> {
    // Distances to a long name take long to work out and are never small.
    const NAME_BYTES_MAX: usize = 64;
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let name = name.to_ascii_lowercase().replace('-', "_");
    let aliases = ALIASES.iter().map(|(alias, key)| (*alias, *key));
    let candidates = KEYS.iter().map(|key| (key.name, key.name)).chain(aliases);
    candidates
        .map(|(known, key)| (strsim::damerau_levenshtein(&name, known), key))
        .filter(|(edits, key)| *edits <= SLIP_EDITS_MAX.min(key.len() / 2))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, key)| key)
}

/// Whether Kubernetes makes such variables in every pod beside a service named `aegis`.
fn is_service_link(name: &str) -> bool {
    name == "PORT" || name.starts_with("PORT_") || name.starts_with("SERVICE_")
}

fn to_figment(json: &Json) -> Value {
    Value::serialize(json).expect("JSON is among the values that figment holds")
}

/// A file's keys in the order they stand in, repeated ones included.
struct Entries(Vec<(String, Written)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

fn parse(text: &[u8]) -> Result<Vec<(String, Written)>, serde_json::Error> {
    serde_json::from_slice::<Entries>(text).map(|entries| entries.0)
}

/// What is wrong with a text that begins with the mark of another encoding, or with one that UTF-8
/// does not need, and how to mend it. Editors show no mark.
pub(super) fn byte_order_mark(text: &[u8]) -> Option<(&'static str, &'static str)> {
    match text {
        [0xef, 0xbb, 0xbf, ..] => {
            Some(("begins with a byte-order mark", "save it as UTF-8 without one (no BOM)"))
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(("is UTF-16", "save it as UTF-8")),
        _ => None,
    }
}

fn not_json(origin: String, error: &serde_json::Error) -> Problem {
    // The parser's own words name a wrong value; that value could be a secret.
    let (what, mend) = if error.is_data() {
        ("the file holds no object".to_owned(), "put all keys inside { and }")
    } else {
        let words = error.to_string();
        let words = words.split(" at line ").next().unwrap_or_default();
        (format!("not JSON: {words}"), "correct the file there")
    };
    // A position of 0 means the very beginning.
    let position = Some((error.line().max(1), error.column().max(1)));
    Problem { position, ..Problem::with_source(origin, what, mend) }
}
