//! Whatever bytes stand in the configuration file, in a variable or on the command line: loading
//! gives a configuration or problems that each name a key or a position, and never panics.
//!
//! The input is cut at its zero bytes: the file, then pairs of a key's number and a value, for the
//! environment and for flags in turn.

#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use aegiskv::config::{Document, Inputs, KEYS};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    let text = parts.next().unwrap_or_default().to_vec();
    let mut inputs = Inputs { host_name: "fuzzed".to_owned(), ..Inputs::default() };
    // An empty file is wrong by itself and would hide all else.
    if !text.is_empty() {
        inputs.documents.push(Document { path: "fuzzed.json".into(), text });
    }
    for (index, part) in parts.enumerate() {
        let Some((number, value)) = part.split_first() else { continue };
        let key = &KEYS[usize::from(*number) % KEYS.len()];
        if index % 2 == 0 {
            let value = OsString::from_vec(value.to_vec());
            inputs.environment.push((key.variable().into(), value));
        } else {
            let value = String::from_utf8_lossy(value).into_owned();
            inputs.flags.insert(key.flag(), value);
        }
    }

    match inputs.evaluate() {
        Ok(loaded) => {
            let again = inputs.evaluate().expect("what loaded once loads again");
            assert_eq!(loaded.config, again.config);
            assert_eq!(loaded.hash(), again.hash());
            assert_eq!(loaded.explain().0.len(), KEYS.len());
            loaded.config.exposures();
            let reloaded = loaded.replaced_by(again).expect("nothing changed");
            assert!(reloaded.applied.is_empty() && reloaded.needs_restart.is_empty());
        }
        Err(problems) => {
            assert!(!problems.0.is_empty());
            for problem in &problems.0 {
                assert!(problem.key.is_some() || problem.position.is_some(), "{problem}");
                assert!(!problem.to_string().contains('\n'), "{problem:?}");
            }
        }
    }
});
