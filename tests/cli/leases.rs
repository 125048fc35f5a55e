//! Leave to stop a node, on one that is alone. With others: `tests/cluster/leases.rs`.

use serde_json::Value as Json;

use crate::server::Server;

#[test]
fn a_node_alone_is_not_to_be_stopped_and_why_is_told() {
    let server = Server::start(&["--node-id", "kv1"]);
    let refused = server.call(&["node", "may-stop", "kv1"]).run();
    assert_eq!((refused.code, refused.stdout.len()), (1, 0));
    assert!(refused.stderr.contains("kv1 is the only member of its cluster"), "{}", refused.stderr);
    let unknown = server.call(&["node", "may-stop", "kv9", "--wait", "1h"]).run();
    assert_eq!(unknown.code, 1, "waiting would not help");
    assert!(unknown.stderr.contains("no member named \"kv9\""), "{}", unknown.stderr);
    let long = server.call(&["node", "may-stop", "kv1", "--ttl", "25h"]).run();
    assert!(long.code == 1 && long.stderr.contains("from 1s to 24h"), "{}", long.stderr);
    let waited = server.call(&["node", "may-stop", "kv1", "--wait", "1s"]).run();
    assert_eq!(waited.code, 1);
    assert!(waited.stderr.contains("; waiting"), "{}", waited.stderr);
}

#[test]
fn that_nobody_has_leave_is_told_and_giving_it_back_does_no_harm() {
    let server = Server::start(&["--node-id", "kv1"]);
    let told = server.call(&["node", "lease"]).run().done();
    assert_eq!(told.text(), "nobody has leave to stop a node\n");
    let json = server.call(&["node", "lease", "--json"]).run().done();
    let json: Json = serde_json::from_str(json.text()).expect("it is JSON");
    assert_eq!(json, serde_json::json!({ "lease": null }));
    let told = server.call(&["node", "release", "kv1", "--holder", "x"]).run().done();
    assert_eq!(told.text(), "nobody had leave to stop kv1\n");
    assert_eq!(server.call(&["node", "release", "kv9"]).run().code, 1);
}
