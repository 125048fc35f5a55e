//! Whatever is given: a configuration, or problems that each name a key or a position.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use aegiskv::config::{Document, Inputs, KEYS};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

fn key() -> impl Strategy<Value = String> {
    let known: Vec<String> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    prop_oneof![8 => select(known), 1 => ".{0,80}"]
}

fn text() -> impl Strategy<Value = String> {
    let telling = [
        "",
        "0",
        "-1",
        "1e999",
        "NaN",
        "18446744073709551616",
        "-9223372036854775809",
        "30s",
        "999999999999h",
        "0.0001ms",
        "true",
        "async",
        "majority",
        "127.0.0.1:7700",
        "[::1]:0",
        ":99999",
        "[:1",
        "a:1,b:2,,",
        "/dev/zero",
        "/nonexistent\n/x",
        "/",
        "\0",
        "info,=",
        "é,ß",
    ];
    prop_oneof![select(telling.map(str::to_owned).to_vec()), ".{0,40}"]
}

fn value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        text().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2i64..=20).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    scalar.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            inner.prop_map(|value| json!({"nested": value}))
        ]
    })
}

fn document() -> impl Strategy<Value = Vec<u8>> {
    let entries = vec((key(), value()), 0..6).prop_map(|entries| {
        let members: Vec<_> =
            entries.iter().map(|(key, value)| format!("{}:{value}", json!(key))).collect();
        format!("{{{}}}", members.join(",")).into_bytes()
    });
    let damaged = (document_bytes(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |(mut bytes, at, byte)| {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        },
    );
    let marks = select(vec![&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"]);
    let marked = (marks, document_bytes()).prop_map(|(mark, bytes)| [mark, &bytes].concat());
    prop_oneof![4 => entries, 2 => damaged, 1 => vec(any::<u8>(), 1..60), 1 => marked]
}

fn document_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec((key(), value()), 0..3)
        .prop_map(|entries| Value::Object(entries.into_iter().collect()).to_string().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn loading_never_panics_and_each_problem_says_where_it_is(
        documents in vec(document(), 0..3),
        environment in vec((key(), prop_oneof![
            text().prop_map(String::into_bytes),
            vec(any::<u8>(), 0..20),
        ]), 0..4),
        flags in vec((key(), text()), 0..4),
    ) {
        let inputs = Inputs {
            documents: documents
                .into_iter()
                .map(|text| Document { path: "any.json".into(), text })
                .collect(),
            environment: environment
                .into_iter()
                .map(|(key, value)| {
                    let name = format!("AEGIS_{}", key.to_ascii_uppercase());
                    (OsString::from(name), OsString::from_vec(value))
                })
                .collect(),
            flags: flags.into_iter().collect(),
            host_name: "db1".to_owned(),
        };
        match inputs.evaluate() {
            Ok(loaded) => {
                prop_assert_eq!(loaded.explain().0.len(), KEYS.len());
                prop_assert!(loaded.hash() < 1 << 48);
                let again = loaded.replaced_by(inputs.evaluate().expect("as before"));
                prop_assert!(again.expect("nothing changed").applied.is_empty());
            }
            Err(problems) => {
                prop_assert!(!problems.0.is_empty());
                for problem in &problems.0 {
                    prop_assert!(problem.key.is_some() || problem.position.is_some());
                    prop_assert!(!problem.to_string().contains('\n'), "{:?}", problem);
                }
            }
        }
    }
}
