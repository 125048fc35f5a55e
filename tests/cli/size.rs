//! `aegiskv size`: its words, its JSON, what it refuses, and the document that shows it.

use std::fs;

use serde_json::Value as Json;

use crate::program::{Outcome, aegiskv};

fn size(arguments: &str) -> Outcome {
    let arguments: Vec<&str> = ["size"].into_iter().chain(arguments.split(' ')).collect();
    aegiskv(&arguments).run()
}

#[test]
fn the_guides_example_comes_to_sixty_gigabytes_a_node() {
    let outcome = size("--data 100GB --nodes 5").done();
    assert!(
        outcome.text().contains("60.0 GB for each node: 100.0 GB x 3 copies / 5"),
        "{outcome:?}"
    );
    assert_eq!(outcome.stderr, "");
    let json = size("--data 100GB --nodes 5 --json").done();
    let json: Json = serde_json::from_str(json.text()).expect("it is JSON");
    assert_eq!(json["even_data_bytes"], 60_000_000_000_u64);
    assert_eq!(json["losses"][0]["nodes_left"], 4);
    assert_eq!(json["warnings"], Json::Array(Vec::new()));
}

#[test]
fn any_two_of_data_items_and_size_say_the_third() {
    let size_of_items = "--value-size 968 --key-size 32";
    for two in [
        "--data 10GB --items 10M",
        &format!("--data 10GB {size_of_items}"),
        &format!("--items 10M {size_of_items}"),
    ] {
        let outcome = size(&format!("{two} --nodes 3 --json")).done();
        let json: Json = serde_json::from_str(outcome.text()).expect("it is JSON");
        assert_eq!(json["data_bytes"], 10_000_000_000_u64, "{two}");
        assert_eq!(json["items"], 10_000_000, "{two}");
    }
}

#[test]
fn warnings_go_to_standard_error_and_fail_nothing() {
    let outcome = size("--data 100GB --nodes 2").done();
    assert!(outcome.stderr.starts_with("warning: two nodes"), "{}", outcome.stderr);
    assert!(!outcome.text().contains("warning"), "{}", outcome.text());
}

#[test]
fn what_makes_no_sense_is_refused_with_the_way_out() {
    for (arguments, words) in [
        ("--nodes 3", "--data 100GB"),
        ("--items 5 --nodes 3", "--data 100GB"),
        ("--data 1GB --items 5M --value-size 3 --nodes 3", "give two of"),
        ("--data 100Gb --nodes 3", "write GB or GiB"),
        ("--data 100XB --nodes 3", "as in 600B, 100GB or 64GiB"),
        ("--data 0 --nodes 3", "above 0"),
        ("--data 9EB --nodes 3", "above 1 EB"),
        ("--items 1.5M --value-size 3 --nodes 3", "as in 2000000"),
        ("--data 100GB --nodes 3 --zones 4", "3 nodes cannot stand in 4 zones"),
        ("--data 10B --items 11 --nodes 3", "10 bytes cannot be 11 items"),
        ("--data 100GB --value-size 25MiB --nodes 3", "at most 65535 and 25165824"),
        ("--data 100GB --nodes 3 --headroom 95", "0 to 90"),
        ("--data 100GB --nodes 0", "1..=1000"),
    ] {
        let outcome = size(arguments);
        assert_eq!(outcome.code, 2, "{arguments}: {outcome:?}");
        assert!(outcome.stderr.contains(words), "{arguments}: {}", outcome.stderr);
    }
}

/// Every `$ aegiskv size ...` in the document, with what it prints there.
#[test]
fn the_document_shows_what_the_command_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/size.md");
    let document = fs::read_to_string(path).expect("the document is there");
    let shown: Vec<&str> = document.split("\n$ aegiskv size ").skip(1).collect();
    assert!(shown.len() >= 2, "the document shows the command");
    for shown in shown {
        let (arguments, rest) = shown.split_once('\n').expect("the output follows");
        let (output, _) = rest.split_once("```").expect("the block ends");
        let said = size(arguments).done();
        assert_eq!(output, said.stderr.clone() + said.text(), "aegiskv size {arguments}");
    }
}
