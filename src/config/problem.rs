//! What is wrong with a configuration, told so that the operator can mend it.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong, or that deserves a warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The key it is about, as it was written; `None` when it is about a whole source.
    pub key: Option<String>,
    /// Where the value came from: a file's path, `environment AEGIS_…`, `flag --…` or `default`.
    pub origin: String,
    /// Line and column in the file, counted from 1, where the file is not JSON.
    pub position: Option<(usize, usize)>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub mend: String,
}

impl Problem {
    /// A problem with `key` as `origin` gives it.
    pub(super) fn with_key(
        key: impl Into<String>,
        origin: impl Into<String>,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { key: Some(key.into()), ..Self::with_source(origin, what, mend) }
    }

    /// A problem with the whole of a source.
    pub(super) fn with_source(
        origin: impl Into<String>,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            key: None,
            origin: origin.into(),
            position: None,
            what: what.into(),
            mend: mend.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        // An origin that ends in the key itself has named it already.
        let named = |key: &&String| {
            let origin = self.origin.as_str();
            let name = origin.strip_prefix("flag --").or(origin.strip_prefix("environment "));
            name == Some(key.as_str())
        };
        if let Some(key) = self.key.as_ref().filter(|key| !named(key)) {
            // A key from a file may hold anything; what is printed stays on one line.
            write!(f, "{}: ", key.escape_debug())?;
        }
        if let Some((line, column)) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        write!(f, "{}; {}", self.what, self.mend)
    }
}

/// All that is wrong with a configuration; never empty. Shows one problem a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
