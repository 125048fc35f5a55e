//! What the command says to whoever tries the cluster out.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitStatus;

use super::RESTART_AFTER;
use super::node::Node;

/// What there is, and what to try with it.
pub(super) fn what_to_try(nodes: &[Node], dir: &Path) -> String {
    let mut text = match nodes.len() {
        1 => "\nOne node serves, a cluster of its own:\n\n".to_owned(),
        count => format!("\nA cluster of {count} nodes serves; each answers for every key:\n\n"),
    };
    for node in nodes {
        let (port, ops) = (node.port, node.port + 2);
        let _ = writeln!(
            text,
            "    {}  http://127.0.0.1:{port}  operations http://127.0.0.1:{ops}  process {}",
            node.name,
            node.pid().unwrap_or_default()
        );
    }
    let first = nodes.first().map_or(0, |node| node.port);
    let last = nodes.last().map_or(0, |node| node.port);
    let _ = write!(
        text,
        "\nData and logs are in {} until this ends. Try in another terminal:\n\n\
         \x20   curl -i -X PUT 'localhost:{first}/v1/kv/user:1?ttl=15m' -d '{{\"n\":\"Ann\"}}'\n\
         \x20   curl -i localhost:{last}/v1/kv/user:1\n\
         \x20   curl 'localhost:{first}/v1/kv?prefix=user:'\n\
         \x20   curl localhost:{}/cluster\n\
         \x20   {} status --addr localhost:{first} --watch\n",
        dir.display(),
        first + 2,
        program()
    );
    if let [_, .., node] = nodes {
        let _ = write!(
            text,
            "\nTake a node away and see the others go on; it is started again after {RESTART_AFTER:?}:\n\n\
             \x20   kill -9 {}\n",
            node.pid().unwrap_or_default()
        );
    }
    text += "\nCtrl-C ends it, and nothing is left.\n\n";
    text
}

/// A node is gone, and `running` are left.
pub(super) fn node_ended(name: &str, status: ExitStatus, running: usize) -> String {
    let left = match running {
        0 => "none is left".to_owned(),
        1 => "one is left".to_owned(),
        running => format!("{running} go on"),
    };
    format!("{name} ended with {status}; {left}; it is started again in {RESTART_AFTER:?}")
}

/// How this program was called.
fn program() -> String {
    let called = std::env::args_os().next().unwrap_or_else(|| "aegiskv".into());
    called.to_string_lossy().into_owned()
}
