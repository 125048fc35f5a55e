//! The configuration from outside: sources, errors, reload, and what is shown.

mod arbitrary;
mod check;
mod commands;
mod docs;
mod reload;
mod sources;

use std::ffi::OsString;

use aegiskv::config::{Document, Inputs, Loaded};

/// Inputs with one file, `test.json`.
fn file(text: &str) -> Inputs {
    Inputs { host_name: "db1".to_owned(), ..Inputs::default() }.with_file("test.json", text)
}

trait With {
    fn with_file(self, path: &str, text: &str) -> Self;
    fn with_variable(self, name: &str, value: &str) -> Self;
    fn with_flag(self, name: &str, value: &str) -> Self;
    fn loaded(&self) -> Loaded;
    fn problems(&self) -> Vec<String>;
}

impl With for Inputs {
    fn with_file(mut self, path: &str, text: &str) -> Self {
        self.documents.push(Document { path: path.into(), text: text.as_bytes().to_vec() });
        self
    }

    fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((OsString::from(name), OsString::from(value)));
        self
    }

    fn with_flag(mut self, name: &str, value: &str) -> Self {
        self.flags.insert(name.to_owned(), value.to_owned());
        self
    }

    fn loaded(&self) -> Loaded {
        self.evaluate().unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn problems(&self) -> Vec<String> {
        let problems = self.evaluate().expect_err("the configuration is wrong");
        problems.0.iter().map(ToString::to_string).collect()
    }
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    loaded.warnings.iter().map(ToString::to_string).collect()
}

/// A certificate and its key, in PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    fn make() -> Self {
        let made = rcgen::generate_simple_self_signed(["node1".to_owned()]).expect("a certificate");
        Self { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }
}
